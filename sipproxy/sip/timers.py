"""Timer values of RFC 3261 §17 (table 4) with Timer L and M of RFC 6026, and the queue that orders deadlines.

Times are monotonic seconds given by the caller. Timer C is not here: it belongs to the response context (§16.6 step 11)
and its length is configured. That some timers are zero on a reliable transport is decided in transaction.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import floor, inf
from operator import attrgetter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NOWHERE", "WIDTH_S", "Alarm", "Timer", "TimerQueue", "Timers"]


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


WIDTH_S = 1 / 64
"""How far deadlines that a queue keeps together may lie apart: a power of two, so that nothing is rounded."""
PER_S = 1 / WIDTH_S
NOWHERE = 1 << 60  # the place of a timer that is at none: what compiled code holds without an object


class Timer:
    """Whoever has a deadline; at most one. To be read by all and changed by its queue alone.

    Without a constructor of its own, so that a dataclass may be one: `unset` is to be called when it is made.
    """

    __slots__ = ("at", "index", "order", "place")

    at: float
    """Monotonic seconds; infinite for none."""
    order: int
    """Orders equal deadlines by when they were set."""
    place: int
    """Where its queue has it: when it is looked at, in `WIDTH_S`."""
    index: int
    """Where it stands among those of its place."""

    def unset(self) -> None:
        """Begin without a deadline."""
        self.at, self.order, self.place, self.index = inf, 0, NOWHERE, 0


class Alarm(Timer):
    """A timer that is nothing else: what is to be run when it is due."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[], None]) -> None:
        self.unset()
        self.run = run


class TimerQueue:
    """Timers by their deadlines, the earliest first.

    Those of 1/64 s stay together, in no order, and a heap has the times at which there are any. A deadline that becomes later,
    as most do, leaves its timer where it is: it is looked at there, and put where it belongs then.
    """

    GARBAGE = 64  # times without a timer that the heap may always have, so that a small one is not rebuilt all the time

    __slots__ = ("_count", "_places", "_times", "looks_at")

    def __init__(self) -> None:
        self._times: list[int] = []
        self._places: dict[int, list[Timer]] = {}
        self._count = 0
        self.looks_at = inf
        """When a timer may be due at the earliest, as far as that is known without a look; infinite for never."""

    def __len__(self) -> int:
        """Timers with a deadline, which are counted when somebody asks: each has its place."""
        return sum([timer.at < inf for timers in self._places.values() for timer in timers])

    def set(self, timer: Timer, at: float, other: float = inf) -> None:
        """Set or replace the deadline, the first of two where there are two: infinite for none before long, when the timer is
        to have one again or to be cancelled. Raises ValueError for a time that is not a number."""
        at = other if other < at else at
        if at == timer.at:
            return
        if at == inf:
            timer.at = inf
            return
        place = floor(at * PER_S)  # there is none for what is not a number
        self._count = number = self._count + 1
        timer.at, timer.order = at, number
        former = timer.place
        if place < former:
            if former < NOWHERE:
                self._take(timer)
            self._put(timer, place)

    def cancel(self, timer: Timer) -> None:
        """Forget the deadline, and the timer; harmless when there is none."""
        timer.at, timer.order = inf, 0
        if timer.place < NOWHERE:
            self._take(timer)
            timer.place = NOWHERE

    def due(self, now: float) -> list[Timer]:
        """Take out and return whose deadline is at or before `now`, in order of deadline, then of setting."""
        found: list[Timer] = []
        others: list[Timer] = []
        times, last = self._times, floor(now * PER_S)
        while times and times[0] <= last:
            for timer in self._places.pop(heappop(times), ()):
                timer.place = NOWHERE
                if timer.at <= now:
                    found.append(timer)
                elif timer.at < inf:
                    others.append(timer)
        for timer in others:
            self._put(timer, floor(timer.at * PER_S))
        self.looks_at = times[0] * WIDTH_S if times else inf
        if len(found) > 1:
            found.sort(key=_rank)
        for timer in found:
            timer.at, timer.order = inf, 0
        return found

    @property
    def next_at(self) -> float | None:
        """The earliest deadline, or None when there is none."""
        times = self._times
        while times:
            place = times[0]
            timers = self._places.get(place, ())
            at = min([timer.at for timer in timers], default=inf)
            if at < (place + 1) * WIDTH_S:
                return at
            heappop(times)
            self._places.pop(place, None)
            for timer in timers:  # none of them is due here
                timer.place = NOWHERE
                if timer.at < inf:
                    self._put(timer, floor(timer.at * PER_S))
            self.looks_at = times[0] * WIDTH_S if times else inf
        return None

    def _put(self, timer: Timer, place: int) -> None:
        timer.place = place
        timers = self._places.get(place)
        if timers is not None:
            timer.index = len(timers)
            timers.append(timer)
            return
        timer.index = 0
        self._places[place] = [timer]
        heappush(self._times, place)
        self.looks_at = self._times[0] * WIDTH_S

    def _take(self, timer: Timer) -> None:
        timers = self._places[timer.place]
        last = timers.pop()  # takes its room: whole thousands of calls may stand at one place after a restart
        if last is not timer:
            timers[timer.index] = last
            last.index = timer.index
        if timers:
            return
        del self._places[timer.place]
        if len(self._times) > 2 * len(self._places) + self.GARBAGE:
            self._times = times = list(self._places)
            heapify(times)
            self.looks_at = times[0] * WIDTH_S if times else inf


_rank = attrgetter("at", "order")
