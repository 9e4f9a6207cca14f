"""Reading records back out of the stream.

`tail` looks without taking part in a consumer group: it acknowledges nothing and hides nothing. An entry that cannot be read
is a value with its reason, never left out. Consumer groups and the dead-letter stream are left out here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cdr import codec
from cdr.wire import Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from cdr.facts import Record

__all__ = ["Poison", "entry_of", "tail"]

PAGE = 500  # entries asked for at once
BLOCK_MS = 2000
TIMEOUT_S = 5.0
PAUSE_S = 0.5  # between two tries to reach a store that is away while following
LONGEST_PAUSE_S = 5.0


class Poison(NamedTuple):
    """An entry of the stream that is no record: its id in the stream, why, and what stood there."""

    entry_id: str
    reason: str
    fields: dict[bytes, bytes]


async def tail(client: Redis, stream: str, *, last: int = 10, follow: bool = False) -> AsyncIterator[Record | Poison]:
    """The last `last` entries in order, then, with `follow`, every new one for as long as the caller goes on.

    Raises RedisError or OSError when the store does not answer or refuses; while following, a store that is away is asked
    again, from where reading left off.
    """
    link = Link(client, timeout_s=TIMEOUT_S)
    try:
        position = await _newest(link, stream)
        if last > 0:
            start = await _start_of(link, stream, last, position)
            async for entry_id, fields in _between(link, stream, start, position):
                yield entry_of(entry_id, fields)
        while follow:
            for entry_id, fields in await _following(link, stream, position):
                position = entry_id
                yield entry_of(entry_id, fields)
    finally:
        await link.drop()


def entry_of(entry_id: bytes, fields: dict[bytes, bytes]) -> Record | Poison:
    """The record of one entry. What the entry says of itself has to agree with the record inside."""
    name = entry_id.decode("ascii", "replace")
    data = fields.get(b"d")
    if data is None:
        return Poison(name, "no field d", fields)
    try:
        record = codec.decode(data)
    except codec.CodecError as error:
        return Poison(name, str(error), fields)
    inside = {b"id": record.id, b"node": record.node, b"seq": str(record.seq), b"v": str(record.schema), b"type": record.type}
    for field, value in inside.items():
        if fields.get(field) != value.encode():
            return Poison(name, f"field {field.decode()} does not agree with the record", fields)
    return record


async def _newest(link: Link, stream: str) -> bytes:
    """The id of the newest entry, `0-0` when there is none."""
    found = _pairs(await link.call("XREVRANGE", stream, "+", "-", "COUNT", 1))
    return found[0][0] if found else b"0-0"


async def _start_of(link: Link, stream: str, last: int, newest: bytes) -> bytes:
    """The id of the entry that is `last` entries from the end, or of the first one. Keeps one page in memory."""
    end, start, left = newest, newest, last
    while left > 0:
        page = _pairs(await link.call("XREVRANGE", stream, end, "-", "COUNT", min(left, PAGE)))
        if not page:
            break
        start, left = page[-1][0], left - len(page)
        end = b"(" + start
    return start


async def _between(link: Link, stream: str, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, dict[bytes, bytes]]]:
    while page := _pairs(await link.call("XRANGE", stream, start, end, "COUNT", PAGE)):
        for pair in page:
            yield pair
        start = b"(" + page[-1][0]


async def _following(link: Link, stream: str, position: bytes) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """The next entries behind `position`; empty after a while without any. Goes on asking while the store is away."""
    pause = PAUSE_S
    while True:
        try:
            reply = await link.call(
                "XREAD", "COUNT", PAGE, "BLOCK", BLOCK_MS, "STREAMS", stream, position, timeout_s=TIMEOUT_S + BLOCK_MS / 1000
            )
        except AuthenticationError:
            raise
        except (RedisConnectionError, RedisTimeoutError, OSError):
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            continue
        if not reply:
            return []
        streams = list(reply.values()) if isinstance(reply, dict) else [found[1] for found in reply]  # RESP3, RESP2
        return _pairs(streams[0])


def _pairs(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    return [(entry_id, dict(zip(parts[::2], parts[1::2], strict=True))) for entry_id, parts in entries or []]
