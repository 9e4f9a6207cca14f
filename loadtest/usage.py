"""CPU time and memory of processes with all their descendants, from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["CpuMeter", "descriptors_of", "threads_of", "tree_cpu_seconds", "tree_memory_bytes", "tree_of"]

_TICK = os.sysconf("SC_CLK_TCK")


def tree_of(pid: int) -> list[int]:
    """The process and its descendants that live, each asked for its own: to look at all processes of the machine takes too long
    for who has a call to place meanwhile."""
    found = [pid]
    for one in found:
        for task in _names(f"/proc/{one}/task"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                found += map(int, Path(f"/proc/{one}/task/{task}/children").read_text().split())
    return found


def tree_cpu_seconds(pid: int) -> float:
    """User and system time of the process, its descendants and those of them that have ended and were waited for."""
    return sum(sum(map(int, fields[11:15])) for one in tree_of(pid) if (fields := _stat(one))) / _TICK


class CpuMeter:
    """CPU seconds of a process that may die and be started again; what it used since the last look before that is lost."""

    def __init__(self, pid: Callable[[], int]) -> None:
        self._pid_of, self._pid = pid, 0
        self._last = self._total = 0.0

    def used(self) -> float:
        """Seconds so far, of all processes that it has been."""
        pid = self._pid_of()
        if pid != self._pid:
            self._pid, self._last = pid, 0.0
        now = tree_cpu_seconds(pid)
        self._total += max(0.0, now - self._last)
        self._last = max(now, self._last)
        return self._total


def tree_memory_bytes(pid: int) -> int:
    """Memory of the process and its descendants; what several of them share is counted once (Pss)."""
    total = 0
    for one in tree_of(pid):
        try:
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
        except OSError:
            continue
        total += 1024 * int(found[1]) if found is not None else 0
    return total


def descriptors_of(pid: int) -> int:
    """Open file descriptors of the process and its descendants."""
    return sum(len(_names(f"/proc/{one}/fd")) for one in tree_of(pid))


def threads_of(pid: int) -> int:
    """Threads of the process and its descendants."""
    return sum(int(fields[17]) for one in tree_of(pid) if (fields := _stat(one)))


def _names(folder: str) -> list[str]:
    """What lies in a folder of a process; empty for one that is gone."""
    try:
        return os.listdir(folder)  # noqa: PTH208  a thousand paths are not wanted
    except OSError:
        return []


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
