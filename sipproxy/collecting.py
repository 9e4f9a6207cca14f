"""When the garbage collector looks: not while calls wait for it.

What a message, a call, a registration, a connection or a scrape leaves behind is freed with the last reference to it: none of
them leaves what refers to itself (tests/sim/test_sim_garbage.py). To look at the young all the time took a twentieth of a busy
node's processor time. The collector is for what faults leave, such as a traceback that is kept: it looks in a quiet moment, and
once memory has grown by far more than calls and registrations take. That takes a quarter of a second with 10,000 lines, and as
long again for every 3,000 live calls.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["memory_bytes", "run_sweeps", "settle_memory"]

SWEEP_S = 3600.0  # between two looks
LONGEST_S = 24 * 3600.0  # for which they may be put off
GROWN_BYTES = 512 * 1024 * 1024  # more than at the last look: 20,000 calls and 100,000 bindings take less
QUIET_CALLS = 5  # that live at most in a quiet moment
LOOK_S = 5.0


def settle_memory() -> None:
    """Take what lives as long as the node out of the garbage collector's sight; by itself it looks at nothing from now on."""
    gc.collect()
    gc.freeze()
    gc.disable()


def memory_bytes() -> int:
    """Memory that this process has in use; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def run_sweeps(live: Callable[[], int]) -> None:
    """Have the collector look when hardly anybody calls, or it cannot be put off, until cancelled. `live` tells how many calls
    there are."""
    last, held = time.monotonic(), memory_bytes()
    while True:
        await asyncio.sleep(LOOK_S)
        passed_s = time.monotonic() - last
        if passed_s >= (SWEEP_S if live() <= QUIET_CALLS else LONGEST_S) or memory_bytes() - held >= GROWN_BYTES:
            last = time.monotonic()
            freed = gc.collect()
            held, took_ms = memory_bytes(), round(1000 * (time.monotonic() - last))
            structlog.get_logger("node").debug("memory_swept", freed=freed, took_ms=took_ms)
