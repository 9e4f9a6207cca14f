"""When the garbage collector looks at what: never at all that a node holds while calls wait for it.

What a message leaves behind is freed with the last reference to it. The collector is for what refers to itself, such as an
ended connection: at the young it looks by itself, which takes a part of a millisecond, at the old only in a quiet moment. All
of them take a quarter of a second with 10,000 lines, and as long again for every 3,000 live calls.
"""

from __future__ import annotations

import asyncio
import gc
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_sweeps", "settle_memory"]

YOUNG = 2_000  # objects made and not freed, after which the young are looked at: some four calls' worth, 0.4 ms
NEVER = 1_000_000_000
SWEEP_S = 3600.0  # between two looks at the old
LONGEST_S = 24 * 3600.0  # for which they may be put off
QUIET_CALLS = 5  # that live at most in a quiet moment
LOOK_S = 5.0


def settle_memory() -> None:
    """Take what lives as long as the node out of the garbage collector's sight; by itself it looks at the young alone from now
    on."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, NEVER, NEVER)


async def run_sweeps(live: Callable[[], int]) -> None:
    """Have the old looked at as well when hardly anybody calls, until cancelled. `live` tells how many calls there are."""
    last = time.monotonic()
    while True:
        await asyncio.sleep(LOOK_S)
        passed_s = time.monotonic() - last
        if passed_s >= (SWEEP_S if live() <= QUIET_CALLS else LONGEST_S):
            last = time.monotonic()
            freed = gc.collect()
            took_ms = round(1000 * (time.monotonic() - last))
            structlog.get_logger("node").debug("memory_swept", freed=freed, took_ms=took_ms)
