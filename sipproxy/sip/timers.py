"""Timer values of RFC 3261 §17 (table 4) with Timer L and M of RFC 6026, and the queue that orders deadlines.

Times are monotonic seconds given by the caller. Timer C is not here: it belongs to the response context (§16.6 step 11)
and its length is configured. That some timers are zero on a reliable transport is decided in transaction.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["TimerQueue", "Timers"]


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


class TimerQueue:
    """Deadlines by key, earliest first. Each key has at most one deadline.

    A heap in which cancelled entries, and those of deadlines that became earlier, stay until they come up or outnumber the live
    ones. A deadline that becomes later, as most do, is not put into the heap: the entry of the old one brings it up when due.
    """

    GARBAGE = 64  # dead entries always tolerated, so that a small queue is not rebuilt all the time

    __slots__ = ("_at", "_count", "_heap")

    def __init__(self) -> None:
        self._at: dict[Hashable, tuple[float, int, Hashable]] = {}  # by key what the heap has, or will have
        self._heap: list[tuple[float, int, Hashable]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._at

    def set(self, key: Hashable, at: float) -> None:
        """Set or replace the deadline of `key`. Raises ValueError for a time that is not a number."""
        if at != at:  # noqa: PLR0124  a NaN compares false with everything and would break the heap's order
            raise ValueError("deadline is not a number")
        old = self._at.get(key)
        if old is not None and old[0] == at:
            return
        if old is not None:
            key = old[2]  # one of each in memory
        self._count += 1  # orders equal deadlines by when they were set
        entry = self._at[key] = (at, self._count, key)
        if old is None:
            heappush(self._heap, entry)
        elif at < old[0]:
            heappush(self._heap, entry)
            if len(self._heap) > 2 * len(self._at) + self.GARBAGE:
                self._compact()

    def cancel(self, key: Hashable) -> None:
        """Forget the deadline of `key`; harmless when it has none."""
        if self._at.pop(key, None) is not None and len(self._heap) > 2 * len(self._at) + self.GARBAGE:
            self._compact()

    def due(self, now: float) -> list[Hashable]:
        """Remove and return the keys whose deadline is at or before `now`, in order of deadline, then of setting."""
        keys: list[Hashable] = []
        while (at := self.next_at) is not None and at <= now:
            key = heappop(self._heap)[2]
            del self._at[key]
            keys.append(key)
        return keys

    @property
    def next_at(self) -> float | None:
        """The earliest deadline, or None when there is none."""
        heap, live = self._heap, self._at
        while heap:
            entry = heap[0]
            current = live.get(entry[2])
            if current is None:
                heappop(heap)
            elif current[1] == entry[1]:  # by its number: compiled code makes a tuple anew each time
                return entry[0]
            else:
                heapreplace(heap, current)
        return None

    def _compact(self) -> None:
        self._heap = list(self._at.values())
        heapify(self._heap)
