"""Looking at the newest records of the stream without taking part in a consumer group: nothing is acknowledged or hidden."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cdr.entries import Fields, Poison, entry_of, pairs, pairs_of_streams
from cdr.wire import Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from cdr.facts import Record

__all__ = ["tail"]

PAGE = 500  # entries asked for at once
BLOCK_MS = 2000
TIMEOUT_S = 5.0
PAUSE_S = 0.5  # between two tries to reach a store that is away while following
LONGEST_PAUSE_S = 5.0


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


async def _newest(link: Link, stream: str) -> bytes:
    """The id of the newest entry, `0-0` when there is none."""
    found = pairs(await link.call("XREVRANGE", stream, "+", "-", "COUNT", 1))
    return found[0][0] if found else b"0-0"


async def _start_of(link: Link, stream: str, last: int, newest: bytes) -> bytes:
    """The id of the entry that is `last` entries from the end, or of the first one. Keeps one page in memory."""
    end, start, left = newest, newest, last
    while left > 0:
        page = pairs(await link.call("XREVRANGE", stream, end, "-", "COUNT", min(left, PAGE)))
        if not page:
            break
        start, left = page[-1][0], left - len(page)
        end = b"(" + start
    return start


async def _between(link: Link, stream: str, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, Fields]]:
    while page := pairs(await link.call("XRANGE", stream, start, end, "COUNT", PAGE)):
        for pair in page:
            yield pair
        start = b"(" + page[-1][0]


async def _following(link: Link, stream: str, position: bytes) -> list[tuple[bytes, Fields]]:
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
        return pairs_of_streams(reply)
