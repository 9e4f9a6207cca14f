"""Timer values of RFC 3261 §17 (table 4) with Timer L and M of RFC 6026, and the queue that orders deadlines.

Times are monotonic seconds given by the caller. Timer C is not here: it belongs to the response context (§16.6 step 11)
and its length is configured. That some timers are zero on a reliable transport is decided in transaction.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Alarm", "Timer", "TimerQueue", "Timers"]


@dataclass(frozen=True, slots=True)
class Timers:
    """T1, T2, T4 in seconds, and what follows from them.

    `a` to `m` are the values for an unreliable transport, lettered as in RFC 3261 §17 and RFC 6026. `invite_trying` is the time
    after which an INVITE is answered with 100 by the transaction itself (§17.2.1); `non_invite_trying` that after which a
    client's Timer E has been reset to T2 (RFC 4320 §4.1), 3.5 s with the default values.
    """

    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0
    a: float = field(init=False)  # INVITE client: retransmits the request
    b: float = field(init=False)  # INVITE client: gives up
    d: float = field(init=False)  # INVITE client: absorbs retransmitted final responses
    e: float = field(init=False)  # non-INVITE client: retransmits the request
    f: float = field(init=False)  # non-INVITE client, and our bound for the server side of it: gives up
    g: float = field(init=False)  # INVITE server: retransmits the final response
    h: float = field(init=False)  # INVITE server: waits for the ACK
    i: float = field(init=False)  # INVITE server: absorbs retransmitted ACKs
    j: float = field(init=False)  # non-INVITE server: absorbs retransmitted requests
    k: float = field(init=False)  # non-INVITE client: absorbs retransmitted responses
    l: float = field(init=False)  # noqa: E741  INVITE server: absorbs retransmitted requests after a 2xx
    m: float = field(init=False)  # INVITE client: collects further 2xx
    invite_trying: float = field(init=False)
    non_invite_trying: float = field(init=False)

    def __post_init__(self) -> None:
        """Raise ValueError unless 0 < T1 <= T2 and 0 < T4."""
        if not (0 < self.t1 <= self.t2 and self.t4 > 0):
            raise ValueError(f"timers need 0 < t1 <= t2 and 0 < t4, not t1={self.t1} t2={self.t2} t4={self.t4}")
        t1, t4, longest = self.t1, self.t4, 64 * self.t1
        values = {"a": t1, "e": t1, "g": t1, "i": t4, "k": t4, **dict.fromkeys("bfhjlm", longest)}
        values["d"] = max(32.0, longest)  # §17.1.1.2: at least 32 seconds, and no shorter than the peer's Timer H.
        values["invite_trying"] = 0.2
        interval, passed = t1, 0.0
        while interval < self.t2:
            passed += interval
            interval = min(2 * interval, self.t2)
        values["non_invite_trying"] = passed
        for name, value in values.items():
            object.__setattr__(self, name, value)


class Timer:
    """Whoever has a deadline; at most one. To be read by all and changed by its queue alone.

    Without a constructor of its own, so that a dataclass may be one: `unset` is to be called when it is made.
    """

    __slots__ = ("at", "entry", "order")

    at: float
    """Monotonic seconds; infinite for none."""
    order: int
    """Orders equal deadlines by when they were set."""
    entry: list[Any] | None
    """What its queue has of it: a time, a number, and the timer itself."""

    def unset(self) -> None:
        """Begin without a deadline."""
        self.at, self.order, self.entry = inf, 0, None


class Alarm(Timer):
    """A timer that is nothing else: what is to be run when it is due."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[], None]) -> None:
        self.unset()
        self.run = run


class TimerQueue:
    """Timers by their deadlines, the earliest first.

    A heap with one entry at most for each timer. A deadline that becomes later, as most do, leaves the entry as it is: it
    brings the timer up when it is due itself. Where one becomes earlier, or is cancelled, the entry loses its timer, and stays
    until it comes up or such entries outnumber the others.
    """

    GARBAGE = 64  # of them always tolerated, so that a small queue is not rebuilt all the time

    __slots__ = ("_count", "_heap", "_live")

    def __init__(self) -> None:
        self._heap: list[list[Any]] = []
        self._count = 0
        self._live = 0  # timers with a deadline

    def __len__(self) -> int:
        return self._live

    def set(self, timer: Timer, at: float) -> None:
        """Set or replace the deadline, which is finite. Raises ValueError for a time that is not a number."""
        before = timer.at
        if at == before:
            return
        if at != at:  # noqa: PLR0124  a NaN compares false with everything and would break the heap's order
            raise ValueError("deadline is not a number")
        if before == inf:
            self._live += 1
        self._count = number = self._count + 1
        timer.at, timer.order = at, number
        entry = timer.entry
        if entry is not None:
            if entry[0] <= at:
                return
            entry[2] = None
        timer.entry = entry = [at, number, timer]
        heappush(self._heap, entry)
        if len(self._heap) > 2 * self._live + self.GARBAGE:
            self._compact()

    def cancel(self, timer: Timer) -> None:
        """Forget the deadline; harmless when there is none."""
        if timer.at == inf:
            return
        timer.at = inf
        if timer.entry is not None:
            timer.entry[2] = None
            timer.entry = None
        self._live -= 1
        if len(self._heap) > 2 * self._live + self.GARBAGE:
            self._compact()

    def due(self, now: float) -> list[Timer]:
        """Take out and return whose deadline is at or before `now`, in order of deadline, then of setting."""
        found: list[Timer] = []
        while (at := self.next_at) is not None and at <= now:
            timer = heappop(self._heap)[2]
            timer.at, timer.entry = inf, None
            self._live -= 1
            found.append(timer)
        return found

    @property
    def next_at(self) -> float | None:
        """The earliest deadline, or None when there is none."""
        heap = self._heap
        while heap:
            at, number, timer = heap[0]
            if timer is None:
                heappop(heap)
            elif timer.order == number:
                return float(at)
            else:
                timer.entry = [timer.at, timer.order, timer]
                heapreplace(heap, timer.entry)
        return None

    def _compact(self) -> None:
        self._heap = [entry for entry in self._heap if entry[2] is not None]
        heapify(self._heap)
