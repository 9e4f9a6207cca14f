"""CPU time and memory of processes with all their descendants, from /proc (Linux)."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["tree_cpu_seconds", "tree_memory_bytes", "tree_of"]

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def tree_of(pid: int) -> list[int]:
    """The process and its descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, ())
    return found


def tree_cpu_seconds(pid: int) -> float:
    """User and system time of the process, its descendants and those of them that have ended and were waited for."""
    return sum(sum(map(int, fields[11:15])) for one in tree_of(pid) if (fields := _stat(one))) / _TICK


def tree_memory_bytes(pid: int) -> int:
    """Resident memory; what several processes share is counted for each."""
    return sum(int(fields[21]) for one in tree_of(pid) if (fields := _stat(one))) * _PAGE


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
