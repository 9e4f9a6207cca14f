"""What the program keeps of what it read before, for metrics: every `lru_cache`, `Remembered` and `Shapes` of its modules.

They are looked for by what they are, so that none is left out. All follow from their keys alone and may forget any of them.
"""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.sip.memo import Remembered
from sipproxy.sip.shape import Shapes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Filled", "caches", "filled"]

PACKAGES = ("sipproxy.", "policy.", "cdr.")
_Lru = functools._lru_cache_wrapper  # noqa: SLF001  the type has no other name


class Filled(NamedTuple):
    """How many values a cache has, at most how many, and how many it read that it has not any more."""

    entries: int
    most: int
    forgotten: int


def caches() -> dict[str, Callable[[], Filled]]:
    """By name, what tells how full each cache is of the modules that are loaded by now."""
    found: dict[str, Callable[[], Filled]] = {}
    seen: set[int] = set()
    for name, module in sorted(sys.modules.items()):
        if not name.startswith(PACKAGES):
            continue
        for attribute, value in vars(module).items():
            tell = _teller(value)
            home = getattr(value, "__module__", "")
            elsewhere = home != name and home in sys.modules and home.startswith(PACKAGES) and isinstance(value, _Lru)
            if tell is not None and id(value) not in seen and not elsewhere:  # others have it from there
                seen.add(id(value))
                found[f"{name.removeprefix('sipproxy.')}.{attribute.lstrip('_')}"] = tell
    return found


def _teller(value: object) -> Callable[[], Filled] | None:
    if isinstance(value, _Lru):
        cache = value
        return lambda: filled(cache.cache_info())
    if isinstance(value, Remembered | Shapes):
        return lambda: Filled(value.kept, value.most, value.forgotten)
    return None


def filled(info: functools._CacheInfo) -> Filled:
    """How full an `lru_cache` is. What it forgot is what it read and has not; faults are among it. One without a bound is of a
    function without arguments, of which there is one value (tests/test_caches.py)."""
    most = 1 if info.maxsize is None else info.maxsize
    return Filled(info.currsize, most, max(0, info.misses - info.currsize))
