"""What only the garbage collector frees, of our own types: nothing, after all that a node does (sipproxy/collecting.py)."""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["uncollected"]

OURS = ("sipproxy.", "policy.", "cdr.")


@contextlib.contextmanager
def uncollected() -> Iterator[Callable[[], Counter[str]]]:
    """The collector looks at nothing within the block; what is given counts by type what nothing reaches any more."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)

    def unreachable() -> Counter[str]:
        gc.collect()
        return Counter(kind.__qualname__ for kind in map(type, gc.garbage) if kind.__module__.startswith(OURS))

    try:
        yield unreachable
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
