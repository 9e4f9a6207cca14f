"""Daily quality figures in the store: pseudonymous counts that stay when the records go.

A cursor says up to which entry of the stream the counts go; one script adds a page's counts and moves the cursor, so that a run
that was cut off, or two at once, count nothing twice. What is behind the cursor is in the stream still: purging and trimming
take only what was counted (`purging`, `publisher`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from cdr import quality
from cdr.entries import Poison, entry_of, pairs
from cdr.place import beside
from cdr.quality import Figures, Key
from cdr.wire import Script

if TYPE_CHECKING:
    from cdr.facts import Record
    from cdr.wire import Link

__all__ = ["figures", "roll_up"]

PAGE = 500

# KEYS: the cursor, the set of days, then a hash per day. ARGV: old cursor, new cursor, then per day its name, the number of
# fields, and fields with their counts. Returns 1, or 0 when another has moved the cursor.
_COUNT = Script("""
if (redis.call('GET', KEYS[1]) or '-') ~= ARGV[1] then
  return 0
end
local at = 3
for i = 3, #KEYS do
  redis.call('SADD', KEYS[2], ARGV[at])
  local fields = tonumber(ARGV[at + 1])
  at = at + 2
  for _ = 1, fields do
    redis.call('HINCRBY', KEYS[i], ARGV[at], ARGV[at + 1])
    at = at + 2
  end
end
redis.call('SET', KEYS[1], ARGV[2])
return 1
""")


async def roll_up(link: Link, stream: str, *, most: int | None = None, at_once: int = PAGE) -> int:
    """Count what has come since, about `most` entries, `at_once` of them in one go; how many final records those were.

    Raises RedisError and OSError as `Link.call`; repeating it is harmless.
    """
    counted = read = 0
    while most is None or read < most:
        cursor = await _cursor(link, stream)
        page = pairs(await link.call("XRANGE", stream, _behind(cursor), "+", "COUNT", at_once))
        if not page:
            break
        read += len(page)
        found = quality.grouped(_records(page))
        days: dict[str, dict[str, int]] = {}
        for key, counts in found.items():
            day = days.setdefault(key.day, {})
            for name, number in quality.write(key, counts).items():
                day[name] = day.get(name, 0) + number
        keys = (beside(stream, "stats:cursor"), beside(stream, "stats:days"), *(beside(stream, f"stats:{day}") for day in days))
        arguments: list[str | int] = [cursor, page[-1][0].decode("ascii")]
        for day_name, fields in days.items():
            arguments += [day_name, len(fields), *(part for pair in fields.items() for part in pair)]
        if await _COUNT.run(link, keys, *arguments):
            counted += sum(value.attempts for value in found.values())
    return counted


async def figures(link: Link, stream: str, first_day: str, last_day: str) -> dict[Key, Figures]:
    """Figures by key for the days between (both included; "" for no bound): counts that were kept, and the stream behind them.

    Raises RedisError and OSError as `Link.call`.
    """
    cursor = await _cursor(link, stream)
    found: dict[Key, Figures] = {}
    days = sorted(bytes(day).decode() for day in await link.call("SMEMBERS", beside(stream, "stats:days")))
    for day in days:
        if _within(day, first_day, last_day):
            reply = await link.call("HGETALL", beside(stream, f"stats:{day}"))
            found |= quality.read(day, {name.decode(): int(number) for name, number in _items(reply)})
    async for record in _following(link, stream, _behind(cursor)):
        key = quality.key_of(record)
        if record.type == "final" and _within(key.day, first_day, last_day):
            found.setdefault(key, Figures()).add(record)
    return found


async def _cursor(link: Link, stream: str) -> str:
    reply = await link.call("GET", beside(stream, "stats:cursor"))
    return reply.decode("ascii") if reply else "-"


def _behind(cursor: str) -> str:
    return cursor if cursor == "-" else f"({cursor}"


def _within(day: str, first: str, last: str) -> bool:
    return (not first or day >= first) and (not last or day <= last)


def _items(reply: Any) -> list[tuple[bytes, bytes]]:
    """A hash as RESP2 or RESP3 gives it."""
    return list(reply.items()) if isinstance(reply, dict) else list(zip(reply[::2], reply[1::2], strict=True))


def _records(page: list[tuple[bytes, dict[bytes, bytes]]]) -> list[Record]:
    items = (entry_of(entry_id, fields) for entry_id, fields in page)
    return [item for item in items if not isinstance(item, Poison)]


async def _following(link: Link, stream: str, start: str) -> AsyncIterator[Record]:
    while page := pairs(await link.call("XRANGE", stream, start, "+", "COUNT", PAGE)):
        for record in _records(page):
            yield record
        start = "(" + page[-1][0].decode("ascii")
