"""The deadlines of one call, by their kind: the engine's queue knows the first of them alone, or what was the first (design:
layout, "A machine owns its deadlines").

Most of them are put off or dropped before they are reached, which then costs no more than a place in a small table: the queue
brings the call up too early instead, which is harmless. Pure. What is done about each is in call_timers.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipproxy.engine.call import Call

__all__ = ["await_until", "drop", "drop_all", "due"]


def await_until(call: Call, kind: str, at: float) -> None:
    """Set the call's deadline of this kind, in monotonic seconds."""
    call.due[kind] = at
    if at < call.at:
        call.desk.queue.set(call, at)


def drop(call: Call, kind: str) -> None:
    """There is no deadline of this kind any more. Harmless when there was none."""
    call.due.pop(kind, None)


def drop_all(call: Call) -> None:
    """There is none of any kind any more. The queue is told, which else would hold on to the call."""
    call.due.clear()
    call.desk.queue.cancel(call)


def due(call: Call) -> list[str]:
    """Take out and return the kinds whose deadlines are reached, in their order, when the queue gave the call out."""
    left, now = call.due, call.desk.now.mono
    reached = sorted([kind for kind, at in left.items() if at <= now], key=left.__getitem__)
    for kind in reached:
        del left[kind]
    if left:
        call.desk.queue.set(call, min(left.values()))
    return reached
