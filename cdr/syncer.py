"""A thread that makes the journal durable in groups, and the waiters that want to know (design: invariant 3).

What is synced, and what else belongs to it, is the caller's `work`; this module decides when: at most every interval, at once
when the last time is longer ago, again after a pause when it failed. The event loop is never blocked.

Each time that the thread takes the interpreter's lock, the event loop may have to wait for it. It therefore does so twice for a
sync, after its pause and after the system's call, and is woken only when it sleeps for want of work: what is shared are single
numbers and flags that one side alone writes, or that are looked at again after they were written.
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
    """Runs `work` in its own thread. `work` returns the position up to which everything is on disk, or raises OSError.

    All methods are for one other thread, that of the event loop.
    """

    def __init__(self, work: Callable[[], int], *, interval_s: float, position: int) -> None:
        self._work = work
        self._interval_s = interval_s
        self._wanted = position
        self._extra = False
        self._stopping = False
        self._asleep = False  # whether the thread waits for the bell, and not for a pause to end
        self._bell = threading.Lock()  # held but for the moment in which the thread is woken
        self._bell.acquire()
        self._waiters: list[_Waiter] = []  # of the event loop's thread; the other one only sees whether there are any
        self._thread: threading.Thread | None = None
        self.synced = position  # everything before it is on disk
        self.last_ms = 0.0
        self.longest_ms = 0.0
        self.failures = 0
        self.failure = ""  # of the last run; "" when it went well

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="cdr-journal-sync", daemon=True)
        self._thread.start()

    def want(self, position: int) -> None:
        """Have everything before `position` synced soon."""
        self._wanted = position if position > self._wanted else self._wanted
        if self._asleep:
            self._ring()

    def poke(self) -> None:
        """Have `work` run soon though nothing new was written."""
        self._extra = True
        if self._asleep:
            self._ring()

    async def wait(self, position: int) -> None:
        """Return when everything before `position` is on disk. Raises SyncFailedError when the disk refused it."""
        if self._stopping and position > self.synced:
            raise SyncFailedError("the journal is closed")
        loop = asyncio.get_running_loop()
        waiter = _Waiter(position, loop, loop.create_future())
        self._waiters.append(waiter)
        if position > self.synced:
            self.want(position)
        self._settle(None)  # The thread may have been done before it could see that somebody waits.
        await waiter.future

    def stop(self) -> None:
        """Sync what is left and end the thread. Harmless when repeated."""
        self._stopping = True
        self._ring()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with contextlib.suppress(RuntimeError):  # The loop was closed: nobody waits any more.
            self._settle(SyncFailedError(self.failure or "the journal is closed"))

    def _ring(self) -> None:
        self._asleep = False
        if self._bell.locked():
            self._bell.release()

    # The thread

    def _run(self) -> None:
        last = float("-inf")
        while True:
            if not self._is_due():
                self._asleep = True
                self._bell.acquire(blocking=not self._is_due())  # Again: who wanted something before saw nobody asleep.
                self._asleep = False
            until = last + (RETRY_S if self.failure else self._interval_s)
            while not self._stopping and (pause := until - time.monotonic()) > 0:
                self._bell.acquire(timeout=pause)  # rung before the end by `stop`, or as the thread was about to sleep
            stopping = self._stopping
            if stopping and self._wanted <= self.synced and not self._extra:
                return
            self._extra = False
            last = time.monotonic()
            self._once(last)
            if stopping:
                return

    def _is_due(self) -> bool:
        return self._wanted > self.synced or self._extra or self._stopping

    def _once(self, started: float) -> None:
        error: SyncFailedError | None = None
        try:
            position = self._work()
        except OSError as fault:
            self.failures += 1
            self.failure = fault.strerror or str(fault)
            error = SyncFailedError(self.failure)
        else:
            self.failure = ""
            self.synced = max(self.synced, position)
        self.last_ms = 1000 * (time.monotonic() - started)
        self.longest_ms = max(self.longest_ms, self.last_ms)
        if self._waiters:
            with contextlib.suppress(RuntimeError, IndexError):  # The loop was closed, or nobody waits any more.
                self._waiters[0].loop.call_soon_threadsafe(self._settle, error)

    # Again the event loop's

    def _settle(self, error: SyncFailedError | None) -> None:
        """Tell the waiters whose position was reached; after an error, tell all of them."""
        waiting, self._waiters = self._waiters, []
        for waiter in waiting:
            if waiter.future.done():
                continue
            if waiter.position <= self.synced:
                waiter.future.set_result(None)
            elif error is not None:
                waiter.future.set_exception(error)
            else:
                self._waiters.append(waiter)
