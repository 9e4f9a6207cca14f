"""Which worker of a node took a call for help first, where several read copies of its INVITE at the same moment.

A lock of the kernel's on a place in a file without content that all workers have says it: whoever locks the place first has
the call, nobody waits for anybody, not for one that stands still either, and the locks of a worker that dies go with it. How
long the locked range is tells whose it is. Linux alone has it; elsewhere whoever reads a call for help has it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections import deque

__all__ = ["MAX_HELD", "Taken", "shared_file"]

# Each look at the file costs 7 ns for each of all workers' locks. One is needed until the others have been told.
MAX_HELD = 256
TRIES = 3  # for a place whose owner dies between two looks at it
PLACES = 1 << 55  # of 128 bytes each: more than a worker's number, so that no two locks touch
_WIDTH = 7
_FLOCK = struct.Struct("@hhqqi0q")  # type, whence, start, length, process


def shared_file() -> int:
    """A descriptor of the file for the workers to inherit, -1 where there is none. Raises OSError."""
    return os.memfd_create("taken") if sys.platform == "linux" else -1


class Taken:
    """What this worker took and what the others did. `descriptor` is the shared file's, which may never be closed by this
    process in any copy: its locks would go."""

    def __init__(self, descriptor: int, worker: int) -> None:
        self._descriptor, self._worker = descriptor, worker
        self._held: deque[int] = deque()
        self.forgotten = 0

    def take(self, number: int) -> int:
        """Whose the call with this number is: this worker's from now on, unless another one has it."""
        if self._descriptor < 0:
            return self._worker
        start = number % PLACES << _WIDTH
        for _ in range(TRIES):
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, self._worker, start, os.SEEK_SET)
            except (BlockingIOError, PermissionError):
                if worker := self.owner(number):
                    return worker
            except OSError:
                break  # no memory for a lock: that is no reason for a call to wait
            else:
                self._keep(start)
                break
        return self._worker

    def owner(self, number: int) -> int:
        """Which other worker has the call with this number, 0 where none has."""
        if self._descriptor < 0:
            return 0
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, number % PLACES << _WIDTH, 1, 0)
        kind, _, _, length, _ = _FLOCK.unpack(fcntl.fcntl(self._descriptor, fcntl.F_GETLK, asked))
        return 0 if kind == fcntl.F_UNLCK else int(length)

    def _keep(self, start: int) -> None:
        if start in self._held:
            return
        self._held.append(start)
        if len(self._held) > MAX_HELD:
            self.forgotten += 1
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, self._worker, self._held.popleft(), os.SEEK_SET)
