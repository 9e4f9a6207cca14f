"""CPU time and memory of processes with all their descendants, from /proc (Linux)."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["tree_cpu_seconds", "tree_memory_bytes", "tree_of"]

_TICK = os.sysconf("SC_CLK_TCK")


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
    """Memory of the process and its descendants; what several of them share is counted once (Pss)."""
    total = 0
    for one in tree_of(pid):
        try:
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
        except OSError:
            continue
        total += 1024 * int(found[1]) if found is not None else 0
    return total


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
