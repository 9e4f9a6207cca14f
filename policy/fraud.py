"""Guard against automatic dialling: how many calls each line has started within a sliding window.

Pure: the time comes with each question. The numbers are policy's (`Snapshot.setup_limit`), and so is the refusal
(`policy.evaluate`, rule line.rate). Both carriers forbid automated simultaneous dialling. Only calls that no rule refused are
counted, so that a line is as fast as its limit and no faster, and is never shut out by its own refused attempts; emergency
calls are neither asked about nor counted. Left out: sums of money, patterns of destinations.
"""

from __future__ import annotations

__all__ = ["LONGEST_WINDOW_S", "MAX_STARTS", "SetupGuard"]

MAX_STARTS = 1_000_000  # kept over all lines: a window of a minute at 10,000 calls a second, and some
LONGEST_WINDOW_S = 3600  # a line that started nothing for so long is dropped


class SetupGuard:
    """The starts of calls by line. When `limit` of them are kept the line that was idle longest is forgotten."""

    def __init__(self, limit: int = MAX_STARTS) -> None:
        self._limit = limit
        self._starts: dict[str, list[float]] = {}  # by line, that of the latest start last
        self._kept = 0

    def __len__(self) -> int:
        """How many starts are kept."""
        return self._kept

    def started(self, line: str, window_s: float, now: float) -> int:
        """How many calls the line started within the last `window_s` seconds before `now` (monotonic seconds).

        A start counts until it is `window_s` old. Starts that are older are dropped: ask with the longest window.
        """
        starts = self._starts.get(line)
        if starts is None:
            return 0
        while starts and now - starts[0] >= window_s:
            del starts[0]
            self._kept -= 1
        if not starts:
            del self._starts[line]
        return len(starts)

    def start(self, line: str, now: float) -> int:
        """Note that the line started a call at `now`, not before its latest one. How many lines were forgotten for it."""
        starts = self._starts.pop(line, None)
        if starts is None:
            starts = []
        for _ in range(2):  # a few with each start: idle lines go as fast as others come
            idle = next(iter(self._starts), "")
            if not idle or now - self._starts[idle][-1] < LONGEST_WINDOW_S:
                break
            self._kept -= len(self._starts.pop(idle))
        forgotten = 0
        while self._kept >= self._limit and self._starts:
            self._kept -= len(self._starts.pop(next(iter(self._starts))))
            forgotten += 1
        if self._kept >= self._limit:
            del starts[0]
            self._kept -= 1
        starts.append(now)
        self._kept += 1
        self._starts[line] = starts
        return forgotten
