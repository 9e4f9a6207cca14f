"""When live calls show themselves in the stream: a start record at the answer, then an interim record every so often.

Only which call is due is kept here; the record is made from the call's facts when it leaves, so that what waits takes the room
of an id and is never out of date. A start record stands for the answer, as in charging (3GPP TS 32.260 §5.2.2: the 200 to the
INVITE): attempts that nobody answers have their final record alone. Pure: the time comes in, in seconds of any one clock.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Due", "Interims"]


class Due(NamedTuple):
    """A call whose record is to be made, and which one."""

    call: str
    type: Literal["start", "interim"]


class Interims:
    """The answered calls of a node and when each is due. With `interval_s` 0 no call ever is."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._next: dict[str, tuple[float, str, Literal["start", "interim"]]] = {}  # by call what the queue has of it
        self._queue: list[tuple[float, str, Literal["start", "interim"]]] = []

    def __len__(self) -> int:
        return len(self._next)

    @property
    def wanted(self) -> bool:
        """Whether any call is ever due."""
        return self._interval_s > 0

    def answered(self, call: str, now: float) -> None:
        """The call was answered: its start record is due. Without effect for a call that is known."""
        if self._interval_s > 0 and call not in self._next:
            self._put(call, now, "start")

    def resumed(self, call: str, now: float, *, since_answer_s: float) -> None:
        """A call of before a restart: it goes on in its rhythm."""
        if self._interval_s > 0:
            self._put(call, now + self._interval_s - max(0.0, since_answer_s) % self._interval_s, "interim")

    def ended(self, call: str) -> None:
        """The call is over: no record of it is due any more. Harmless when repeated."""
        self._next.pop(call, None)

    def due(self, now: float, most: int) -> list[Due]:
        """At most `most` calls whose time has come. They stay due until `done`."""
        found: list[Due] = []
        while self._queue and self._queue[0][0] <= now and len(found) < most:
            at, call, _ = heapq.heappop(self._queue)
            current = self._next.get(call)
            if current is not None and current[0] == at:
                found.append(Due(call, current[2]))
        for due in found:
            heapq.heappush(self._queue, self._next[due.call])
        return found

    def done(self, calls: Sequence[Due], now: float) -> None:
        """Their records stand in the stream, or cannot be made now: next time after the interval."""
        for call, _ in calls:
            if call in self._next:
                self._put(call, now + self._interval_s, "interim")
        if len(self._queue) > 2 * len(self._next) + 1000:
            self._queue = list(self._next.values())
            heapq.heapify(self._queue)

    @property
    def next_at(self) -> float | None:
        """When the next call may be due."""
        return self._queue[0][0] if self._queue else None

    def _put(self, call: str, at: float, kind: Literal["start", "interim"]) -> None:
        entry = self._next[call] = (at, call, kind)
        heapq.heappush(self._queue, entry)
