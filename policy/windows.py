"""Weekly windows on the wall clock of Europe/Berlin: as text, and whether an instant lies in one.

Pure: the zone's rules are data, read once at import. A window is a statement about the clock on the wall: of the hour that
the clock skips in March nothing is inside, the hour that it shows twice in October is inside twice.

    mo-fr 08:00-17:30           five days
    sa,su 00:00-24:00           two whole days
    fr 22:00-06:00              from Friday evening to Saturday morning
    mo-fr 08:00-12:00; mo-fr 13:00-17:00
"""

from __future__ import annotations

import datetime as dt
import re
from functools import lru_cache
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from policy.rules import Window

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MAX_WINDOWS", "ZONE", "covers", "parse_windows", "write_windows"]

ZONE = ZoneInfo("Europe/Berlin")
MAX_WINDOWS = 20  # of one rule
KNOWN_MINUTES = 16  # of which is kept what the clocks show
DAY_MIN = 24 * 60

_DAYS = ("mo", "tu", "we", "th", "fr", "sa", "su")
_GERMAN = {"di": "tu", "mi": "we", "do": "th", "so": "su"}
_WINDOW = re.compile(r"([a-z,-]+) +([0-9]{2}):([0-9]{2}) *- *([0-9]{2}):([0-9]{2})\Z")


def parse_windows(text: str) -> tuple[Window, ...]:
    """The windows of a text like those above; () for "". Raises ValueError with the reason."""
    found = tuple(_window(part.strip().lower()) for part in text.split(";") if part.strip())
    if len(found) > MAX_WINDOWS:
        raise ValueError(f"more than {MAX_WINDOWS} windows")
    return found


def _window(text: str) -> Window:
    match = _WINDOW.match(text)
    if match is None:
        raise ValueError(f"not a weekly window such as 'mo-fr 08:00-17:00': {text[:80]!r}")
    start, end = (int(match[hour]) * 60 + int(match[hour + 1]) for hour in (2, 4))
    if start >= DAY_MIN or end > DAY_MIN or int(match[3]) > 59 or int(match[5]) > 59:
        raise ValueError(f"not a time of day: {text[:80]!r}")
    if start == end:
        raise ValueError(f"an empty window: {text[:80]!r}; a whole day is 00:00-24:00")
    days: set[int] = set()
    for part in match[1].split(","):
        first, dash, last = part.partition("-")
        begin, end_day = _day(first), _day(last if dash else first)
        days.update((begin + step) % 7 for step in range((end_day - begin) % 7 + 1))
    return Window(tuple(sorted(days)), start, end)


def _day(text: str) -> int:
    name = _GERMAN.get(text, text)
    if name not in _DAYS:
        raise ValueError(f"not a day of {' '.join(_DAYS)}: {text[:20]!r}")
    return _DAYS.index(name)


def write_windows(windows: Iterable[Window]) -> str:
    """Inverse of `parse_windows`, in one spelling."""
    return "; ".join(
        f"{','.join(_DAYS[day] for day in window.days)} {_clock(window.start_min)}-{_clock(window.end_min)}"
        for window in windows
    )


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def covers(windows: tuple[Window, ...], at_ms: int) -> bool:
    """Whether one of `windows` is open at a UTC instant in milliseconds."""
    day, minute = _wall_clock(at_ms // 60_000)
    for window in windows:
        if window.start_min < window.end_min:
            if day in window.days and window.start_min <= minute < window.end_min:
                return True
        elif (day in window.days and minute >= window.start_min) or ((day - 1) % 7 in window.days and minute < window.end_min):
            return True
    return False


@lru_cache(maxsize=KNOWN_MINUTES)
def _wall_clock(utc_min: int) -> tuple[int, int]:
    """Weekday (Monday 0) and minute of the day in Berlin; calls of one minute share the answer."""
    local = dt.datetime.fromtimestamp(utc_min * 60, ZONE)
    return local.weekday(), local.hour * 60 + local.minute
