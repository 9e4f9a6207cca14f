"""German area codes: the longest one that a national number begins with, and its name.

Pure but for reading `area_codes.txt`, a data file of this package, when the first number is looked up (about 5 ms). The file
is made from libphonenumber (Apache-2.0) by tools/make_plan_data.py; its head names source, version and licence.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import cache
from importlib import resources

__all__ = ["area_codes", "area_of", "begins_area_code", "rows_of"]

_LENGTHS = (5, 4, 3, 2)


def rows_of(name: str) -> dict[str, str]:
    """First to second column of a data file of this package; lines that begin with # are its head."""
    text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    found = {}
    for line in text.split("\n"):
        first, tab, second = line.partition("\t")
        if tab:
            found[first] = second
    return found


@cache
def area_codes() -> dict[str, str]:
    """Every area code, without its 0, and the name of its main place, in the order of the codes."""
    return rows_of("area_codes.txt")


@cache
def _in_order() -> tuple[str, ...]:
    return tuple(area_codes())


def area_of(national: str) -> tuple[str, str] | None:
    """The area code that a national number without its 0 begins with, the longest one, and its name; None without one."""
    codes = area_codes()
    for length in _LENGTHS:  # 2129 is in front of some numbers that begin with 212, and is another area
        code = national[:length]
        name = codes.get(code)
        if name is not None:
            return code, name
    return None


def begins_area_code(national: str) -> bool:
    """Whether more digits could make an area code of these."""
    codes = _in_order()
    at = bisect_left(codes, national)
    return at < len(codes) and codes[at].startswith(national)
