"""A thread that makes the journal durable in groups, and the waiters that want to know (design: invariant 3).

What is synced, and what else belongs to it, is the caller's `work`; this module decides when: at most every interval, at once
when the last time is longer ago, again after a pause when it failed. The event loop is never blocked.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SyncFailedError", "Syncer"]

RETRY_S = 1.0  # A disk that refuses to sync is asked again once a second: often enough to notice, too rarely to add load.


class SyncFailedError(OSError):
    """The disk did not take what was written."""


class _Waiter(NamedTuple):
    position: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


class Syncer:
    """Runs `work` in its own thread. `work` returns the position up to which everything is on disk, or raises OSError."""

    def __init__(self, work: Callable[[], int], *, interval_s: float, position: int) -> None:
        self._work = work
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._wanted = position
        self._synced = position
        self._extra = False
        self._stopping = False
        self._waiters: list[_Waiter] = []
        self._thread: threading.Thread | None = None
        self.last_ms = 0.0
        self.longest_ms = 0.0
        self.failures = 0
        self.failure = ""  # of the last run; "" when it went well

    @property
    def synced(self) -> int:
        """Everything before this position is on disk."""
        return self._synced

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="cdr-journal-sync", daemon=True)
        self._thread.start()

    def want(self, position: int) -> None:
        """Have everything before `position` synced soon."""
        with self._changed:
            idle = self._wanted <= self._synced
            self._wanted = max(self._wanted, position)
            if idle:
                self._changed.notify()

    def poke(self) -> None:
        """Have `work` run soon though nothing new was written."""
        with self._changed:
            self._extra = True
            self._changed.notify()

    async def wait(self, position: int) -> None:
        """Return when everything before `position` is on disk. Raises SyncFailedError when the disk refused it."""
        with self._changed:
            if self._synced >= position:
                return
            if self._stopping:
                raise SyncFailedError("the journal is closed")
            loop = asyncio.get_running_loop()
            waiter = _Waiter(position, loop, loop.create_future())
            self._waiters.append(waiter)
        self.want(position)
        await waiter.future

    def stop(self) -> None:
        """Sync what is left and end the thread. Harmless when repeated."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._settle(SyncFailedError(self.failure or "the journal is closed"))

    def _run(self) -> None:
        last = float("-inf")
        while True:
            with self._changed:
                self._changed.wait_for(self._due)
                pause = RETRY_S if self.failure else self._interval_s
                self._changed.wait_for(lambda: self._stopping, timeout=max(0.0, last + pause - time.monotonic()))
                stopping = self._stopping
                if stopping and self._wanted <= self._synced and not self._extra:
                    return
                self._extra = False
            last = time.monotonic()
            self._once()
            if stopping:
                return

    def _due(self) -> bool:
        return self._stopping or self._extra or self._wanted > self._synced

    def _once(self) -> None:
        started = time.monotonic()
        error: SyncFailedError | None = None
        try:
            position = self._work()
        except OSError as fault:
            self.failures += 1
            self.failure = fault.strerror or str(fault)
            error = SyncFailedError(self.failure)
        else:
            self.failure = ""
            self._synced = max(self._synced, position)
        self.last_ms = 1000 * (time.monotonic() - started)
        self.longest_ms = max(self.longest_ms, self.last_ms)
        self._settle(error)

    def _settle(self, error: SyncFailedError | None) -> None:
        """Tell the waiters whose position was reached; after an error, tell all of them."""
        with self._changed:
            ready = [waiter for waiter in self._waiters if error is not None or waiter.position <= self._synced]
            self._waiters = [waiter for waiter in self._waiters if waiter not in ready] if error is None else []
        for waiter in ready:
            outcome = None if waiter.position <= self._synced else error
            with contextlib.suppress(RuntimeError):  # The loop was closed: nobody waits any more.
                waiter.loop.call_soon_threadsafe(_resolve, waiter.future, outcome)


def _resolve(future: asyncio.Future[None], error: SyncFailedError | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
