"""Times as operators write them, as UTC milliseconds.

Pure. "2026-04-01" is the beginning of that day in Germany, "2026-04-01T08:30" German local time; a time that names its zone
("...Z", "...+02:00") is taken as it is. Written back it is UTC, so that it reads the same everywhere. Leaves out: leap seconds.
"""

from __future__ import annotations

import datetime as dt
import re

from policy.windows import ZONE

__all__ = ["FIRST_MS", "LAST_MS", "parse_stamp", "write_stamp"]

FIRST_MS = 946_684_800_000  # 2000-01-01: nothing here is older
LAST_MS = 4_102_444_800_000  # 2100-01-01: beyond it stands a slip of the hand

_FORM = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,6})?)?(?:Z|[+-][0-9]{2}:[0-9]{2})?)?\Z"
)


def parse_stamp(text: str) -> int | None:
    """UTC milliseconds, or None when the text is no time from 2000 to 2100."""
    if _FORM.match(text) is None:
        return None
    try:
        when = dt.datetime.fromisoformat(text.replace("Z", "+00:00"))
        if when.tzinfo is None:
            when = when.replace(tzinfo=ZONE)
        since = when.astimezone(dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        return None
    found = since // dt.timedelta(milliseconds=1)
    return found if FIRST_MS <= found <= LAST_MS else None


def write_stamp(at_ms: int | None) -> str:
    """Inverse of `parse_stamp`: "2026-03-31T22:00:00Z"; "" for None."""
    if at_ms is None:
        return ""
    seconds, millis = divmod(at_ms, 1000)
    text = dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{millis:03}Z" if millis else f"{text}Z"
