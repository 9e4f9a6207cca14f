"""The deadlines of one call, by their kind: the engine's queue knows the first of them alone, or what was the first (design:
layout, "A machine owns its deadlines").

Most of them are put off or dropped before they are reached, which then costs no more than a place in a small table: the queue
brings the call up too early instead, which is harmless. Pure. What is done about each is in call_timers.py.
"""

from __future__ import annotations

from math import floor, inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipproxy.engine.call import Call

__all__ = ["await_bound", "await_only", "await_until", "awaits", "drop", "due"]

FAR_S = 60.0  # longer than what a set-up waits for
TOGETHER = 4  # times a second that calls are looked at whose deadline is further off


def await_until(call: Call, kind: str, at: float) -> None:
    """Set the call's deadline of this kind, in monotonic seconds."""
    if call.due is None:
        call.due = {kind: at}
    else:
        call.due[kind] = at
    if at < call.at:
        call.desk.queue.set(call, at)


def _look(call: Call, at: float) -> None:
    """Have the queue bring the call up at that time. One that is far off it brings up a little early, and once more: calls that
    are looked at together take little room there."""
    is_far = at > call.desk.now.mono + FAR_S
    call.desk.queue.set(call, floor(at * TOGETHER) / TOGETHER if is_far else at)


def await_bound(call: Call, at: float) -> None:
    """Set the deadline of the kind "bound", infinite for none. It is the one that an answered call has for as long as it
    lasts, and is not in the table: 20,000 calls have none then."""
    call.bound_at = at
    if at < call.at:
        _look(call, at)


def awaits(call: Call, kind: str) -> bool:
    """Whether there is a deadline of this kind."""
    return call.due is not None and kind in call.due


def drop(call: Call, kind: str) -> None:
    """There is no deadline of this kind any more. Harmless when there was none."""
    if call.due is not None:
        call.due.pop(kind, None)


def await_only(call: Call, kind: str, at: float) -> None:
    """Set the call's deadline of this kind, and drop those of all others."""
    call.due = {kind: at}
    call.bound_at = inf
    call.desk.queue.set(call, at)


def due(call: Call) -> list[str]:
    """Take out and return the kinds whose deadlines are reached, in their order, when the queue gave the call out."""
    left, now = call.due or {}, call.desk.now.mono
    reached = [(at, kind) for kind, at in left.items() if at <= now]
    for _, kind in reached:
        del left[kind]
    if call.bound_at <= now:
        reached.append((call.bound_at, "bound"))
        call.bound_at = inf
    at = min(min(left.values(), default=inf), call.bound_at)
    if at < inf:
        _look(call, at)
    return [kind for _, kind in sorted(reached)]
