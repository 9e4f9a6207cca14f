"""Timers of a load generator: one heap, and one timer of the event loop for the earliest of them.

What is due is run in order; how late it was is the caller's to look at. Nothing is ever taken out: who no longer wants to be
called looks at what it was given.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections.abc import Callable
from typing import Any

__all__ = ["Clockwork"]

RESOLUTION_S = 0.001
AT_ONCE = 200  # timers run in one turn, then sockets are read

Work = Callable[[Any], None]


class Clockwork:
    """Runs `work(subject)` at monotonic times."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Work, Any]] = []
        self._count = 0
        self._armed_at = float("inf")
        self._handle: asyncio.TimerHandle | None = None

    def at(self, due: float, work: Work, subject: Any) -> None:
        """Run it at monotonic second `due`."""
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, work, subject))
        if due < self._armed_at - RESOLUTION_S:
            self._arm(due)

    def after(self, delay_s: float, work: Work, subject: Any) -> None:
        """Run it in so many seconds."""
        self.at(time.monotonic() + delay_s, work, subject)

    def stop(self) -> None:
        """Run nothing more."""
        self._heap.clear()
        if self._handle is not None:
            self._handle.cancel()

    def _arm(self, due: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_at = due
        self._handle = self._loop.call_later(max(0.0, due - time.monotonic()), self._run)

    def _run(self) -> None:
        self._handle, self._armed_at = None, float("inf")
        heap, now = self._heap, time.monotonic()
        try:
            for _ in range(AT_ONCE):
                if not heap or heap[0][0] > now:
                    break
                _, _, work, subject = heapq.heappop(heap)
                work(subject)
        finally:  # one that fails is reported by the loop, and stops none of the others
            if heap and heap[0][0] < self._armed_at:
                self._arm(heap[0][0])
