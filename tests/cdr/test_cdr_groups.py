"""cdr.groups against a real server: what counts as acknowledged."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from cdr.groups import EntryId, acknowledged, entry_id, positions
from cdr.wire import Link

if TYPE_CHECKING:
    import redis.asyncio

STREAM = "sp:cdr"


@pytest.fixture
async def link(client: redis.asyncio.Redis) -> AsyncIterator[Link]:
    made = Link(client, timeout_s=5)
    yield made
    await made.drop()


async def read(client: redis.asyncio.Redis, group: str, count: int, consumer: str = "c") -> list[bytes]:
    reply = await client.xreadgroup(group, consumer, {STREAM: ">"}, count=count)
    streams = list(reply.values()) if isinstance(reply, dict) else [found[1] for found in reply]
    found = streams[0][0] if isinstance(reply, dict) else streams[0]
    return [name for name, _ in found]


async def test_acknowledged_without_a_stream_or_group_is_none(client: redis.asyncio.Redis, link: Link) -> None:
    assert await positions(link, STREAM) == {}
    await client.xadd(STREAM, {"a": 1})
    assert await acknowledged(link, STREAM, "billing") is None


async def test_acknowledged_is_behind_the_last_entry_that_nothing_before_is_pending_of(
    client: redis.asyncio.Redis, link: Link
) -> None:
    names = [await client.xadd(STREAM, {"n": n}, id=f"{n}-0") for n in range(1, 7)]
    await client.xgroup_create(STREAM, "billing", "0")
    await client.xgroup_create(STREAM, "fraud", "0")
    assert await positions(link, STREAM) == {"billing": EntryId(0, 1), "fraud": EntryId(0, 1)}
    assert await read(client, "billing", 2, "one") == names[:2]
    assert await read(client, "billing", 2, "two") == names[2:4]
    assert await acknowledged(link, STREAM, "billing") == EntryId(1, 0)
    await client.xack(STREAM, "billing", names[1], names[3])  # out of order: the first is still pending
    assert await acknowledged(link, STREAM, "billing") == EntryId(1, 0)
    await client.xack(STREAM, "billing", names[0])
    assert await acknowledged(link, STREAM, "billing") == EntryId(3, 0)
    await client.xack(STREAM, "billing", names[2])
    assert await acknowledged(link, STREAM, "billing") == EntryId(4, 1)  # 5-0 was not delivered
    assert await acknowledged(link, STREAM, "fraud") == EntryId(0, 1)


async def test_acknowledged_of_a_group_that_was_set_back_goes_back(client: redis.asyncio.Redis, link: Link) -> None:
    names = [await client.xadd(STREAM, {"n": n}, id=f"{n}-0") for n in range(1, 5)]
    await client.xgroup_create(STREAM, "billing", "0")
    await read(client, "billing", 4)
    await client.xack(STREAM, "billing", *names)
    assert await acknowledged(link, STREAM, "billing") == EntryId(4, 1)
    await client.xgroup_setid(STREAM, "billing", "1-0")
    assert await acknowledged(link, STREAM, "billing") == EntryId(1, 1)


async def test_acknowledged_of_real_ids_is_exact(client: redis.asyncio.Redis, link: Link) -> None:
    """Ids of thirteen digits with a serial survive the script's numbers."""
    await client.xadd(STREAM, {"n": 1}, id="1790000000001-123456789")
    await client.xgroup_create(STREAM, "billing", "0")
    await read(client, "billing", 1)
    assert await acknowledged(link, STREAM, "billing") == EntryId(1790000000001, 123456789)


@pytest.mark.parametrize("text", ["", "1", "-", "1-", "-1", "a-1", "1-1-1", "1_0-1", "\u0661-1"])
def test_entry_id_of_anything_else_raises(text: str) -> None:
    with pytest.raises(ValueError, match="no entry id"):
        entry_id(text)


def test_entry_id_compares_as_entries_stand() -> None:
    assert entry_id(b"9-10") < entry_id("10-9") < entry_id("10-10")
    assert str(entry_id(b"10-9")) == "10-9"
