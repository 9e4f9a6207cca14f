"""Timer values of RFC 3261 §17 (table 4) with Timer L and M of RFC 6026, and the queue that orders deadlines.

Times are monotonic seconds given by the caller. Timer C is not here: it belongs to the response context (§16.6 step 11)
and its length is configured. That some timers are zero on a reliable transport is decided in transaction.py.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Timer", "TimerQueue", "Timers"]


class Timer(enum.Enum):
    """The timers of the four machines, lettered as in RFC 3261 §17 and RFC 6026; TRYING has no letter there."""

    A = "A"  # INVITE client: retransmits the request
    B = "B"  # INVITE client: gives up
    D = "D"  # INVITE client: absorbs retransmitted final responses
    E = "E"  # non-INVITE client: retransmits the request
    F = "F"  # non-INVITE client, and our bound for the server side of it: gives up
    G = "G"  # INVITE server: retransmits the final response
    H = "H"  # INVITE server: waits for the ACK
    I = "I"  # noqa: E741  INVITE server: absorbs retransmitted ACKs
    J = "J"  # non-INVITE server: absorbs retransmitted requests
    K = "K"  # non-INVITE client: absorbs retransmitted responses
    L = "L"  # INVITE server: absorbs retransmitted requests after a 2xx
    M = "M"  # INVITE client: collects further 2xx
    TRYING = "100"  # server: sends 100 (Trying) when the transaction user has not answered (§17.2.1, RFC 4320 §4.1)

    # Machines keep their deadlines in small dicts by timer; the members are singletons, so identity is their equality.
    __hash__ = object.__hash__


@dataclass(frozen=True, slots=True)
class Timers:
    """T1, T2, T4 in seconds, and what follows from them. `a` to `m` are the values for an unreliable transport."""

    t1: float = 0.5
    t2: float = 4.0
    t4: float = 5.0

    def __post_init__(self) -> None:
        """Raise ValueError unless 0 < T1 <= T2 and 0 < T4."""
        if not (0 < self.t1 <= self.t2 and self.t4 > 0):
            raise ValueError(f"timers need 0 < t1 <= t2 and 0 < t4, not {self}")

    @property
    def a(self) -> float:
        return self.t1

    @property
    def b(self) -> float:
        return 64 * self.t1

    @property
    def d(self) -> float:
        return max(32.0, 64 * self.t1)  # §17.1.1.2: at least 32 seconds, and no shorter than the peer's Timer H.

    @property
    def e(self) -> float:
        return self.t1

    @property
    def f(self) -> float:
        return 64 * self.t1

    @property
    def g(self) -> float:
        return self.t1

    @property
    def h(self) -> float:
        return 64 * self.t1

    @property
    def i(self) -> float:
        return self.t4

    @property
    def j(self) -> float:
        return 64 * self.t1

    @property
    def k(self) -> float:
        return self.t4

    @property
    def l(self) -> float:  # noqa: E743  the RFC's letter
        return 64 * self.t1

    @property
    def m(self) -> float:
        return 64 * self.t1

    @property
    def invite_trying(self) -> float:
        """Time after which an INVITE is answered with 100 by the transaction itself (§17.2.1)."""
        return 0.2

    @property
    def non_invite_trying(self) -> float:
        """Time after which a client's Timer E has been reset to T2 (RFC 4320 §4.1): 3.5 s with the default values."""
        interval, passed = self.t1, 0.0
        while interval < self.t2:
            passed += interval
            interval = min(2 * interval, self.t2)
        return passed


class TimerQueue:
    """Deadlines by key, earliest first. Each key has at most one deadline.

    A heap whose cancelled and replaced entries stay until they come up or until they outnumber the live ones.
    """

    GARBAGE = 64  # dead entries always tolerated, so that a small queue is not rebuilt all the time

    __slots__ = ("_at", "_count", "_heap")

    def __init__(self) -> None:
        self._at: dict[Hashable, tuple[float, int, Hashable]] = {}  # by key the entry of the heap that is alive
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
        self._count += 1  # orders equal deadlines by when they were set
        entry = self._at[key] = (at, self._count, key)
        heappush(self._heap, entry)
        if old is not None and len(self._heap) > 2 * len(self._at) + self.GARBAGE:
            self._compact()

    def cancel(self, key: Hashable) -> None:
        """Forget the deadline of `key`; harmless when it has none."""
        if self._at.pop(key, None) is not None and len(self._heap) > 2 * len(self._at) + self.GARBAGE:
            self._compact()

    def due(self, now: float) -> list[Hashable]:
        """Remove and return the keys whose deadline is at or before `now`, in order of deadline, then of setting."""
        heap, live, keys = self._heap, self._at, []
        while heap and heap[0][0] <= now:
            entry = heappop(heap)
            key = entry[2]
            if live.get(key) is entry:
                del live[key]
                keys.append(key)
        return keys

    @property
    def next_at(self) -> float | None:
        """The earliest deadline, or None when there is none."""
        heap, live = self._heap, self._at
        while heap:
            entry = heap[0]
            if live.get(entry[2]) is entry:
                return entry[0]
            heappop(heap)
        return None

    def _compact(self) -> None:
        self._heap = list(self._at.values())
        heapify(self._heap)
