"""cdr.tailing: what stands in the stream, in order, with nothing left out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import pytest
import redis.asyncio
import redis.exceptions
from cdr_samples import ended

from cdr import codec
from cdr.entries import Poison
from cdr.facts import Record
from cdr.tailing import tail

if TYPE_CHECKING:
    from valkey_process import Valkey

STREAM = "sp:cdr"


async def put(client: redis.asyncio.Redis, number: int, **changes: object) -> bytes:
    record = ended(number).record
    fields = {"id": record.id, "v": 1, "type": "final", "node": "n1", "seq": number, "d": codec.encode(record), **changes}
    return await client.xadd(STREAM, {name: value for name, value in fields.items() if value is not None})


async def seen(client: redis.asyncio.Redis, last: int) -> list[int]:
    return [record.seq async for record in tail(client, STREAM, last=last) if isinstance(record, Record)]


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
async def test_tail_gives_the_last_entries_in_order(valkey: Valkey, protocol: int, decode: bool) -> None:
    async with valkey.client(protocol=protocol, decode_responses=decode) as client:
        assert await seen(client, 10) == []
        for seq in range(1, 13):
            await put(client, seq)
        assert await seen(client, 5) == [8, 9, 10, 11, 12]
        assert await seen(client, 100) == list(range(1, 13))
        assert await seen(client, 0) == []


async def test_tail_reads_more_than_a_page(client: redis.asyncio.Redis) -> None:
    async with client.pipeline(transaction=False) as pipe:
        for seq in range(1, 1301):
            pipe.xadd(
                STREAM,
                {"id": f"call-{seq}", "v": 1, "type": "final", "node": "n1", "seq": seq, "d": codec.encode(ended(seq).record)},
            )
        await pipe.execute()
    assert await seen(client, 1100) == list(range(201, 1301))


async def test_tail_entry_that_is_no_record_is_given_with_its_reason(client: redis.asyncio.Redis) -> None:
    await put(client, 1)
    first = await put(client, 2, d=b"\xc1")
    await put(client, 3, d=None)
    await put(client, 4, id="another")
    await put(client, 5, seq=6)
    await put(client, 6)
    found = [entry async for entry in tail(client, STREAM, last=10)]
    assert [type(entry).__name__ for entry in found] == ["Record", "Poison", "Poison", "Poison", "Poison", "Record"]
    poison = [entry for entry in found if isinstance(entry, Poison)]
    assert poison[0].entry_id == first.decode()
    assert "invalid opcode" in poison[0].reason
    assert poison[0].fields[b"d"] == b"\xc1"
    assert [entry.reason for entry in poison[1:]] == [
        "no field d",
        "field id does not agree with the record",
        "field seq does not agree with the record",
    ]


async def test_tail_record_of_a_newer_schema_keeps_its_fields(client: redis.asyncio.Redis) -> None:
    record = msgspec.structs.replace(ended(1).record, schema=2, unknown={"carbon_g": 3})
    await put(client, 1, v=2, d=codec.encode(record))
    assert [entry async for entry in tail(client, STREAM)] == [record]


@pytest.mark.parametrize("protocol", [2, 3])
async def test_tail_follow_gives_new_entries_and_outlives_a_restart_of_the_store(valkey: Valkey, protocol: int) -> None:
    async with valkey.client(protocol=protocol) as client, asyncio.timeout(30):
        await put(client, 1)
        await put(client, 2)
        entries = tail(client, STREAM, last=1, follow=True)
        got = [(await anext(entries)).seq]
        waiting = asyncio.ensure_future(anext(entries))
        await asyncio.sleep(0)
        await put(client, 3)
        got.append((await waiting).seq)
        waiting = asyncio.ensure_future(anext(entries))
        valkey.kill()
        valkey.start()
        async with valkey.client() as fresh:
            await put(fresh, 4)
            await put(fresh, 5)
        got += [(await waiting).seq, (await anext(entries)).seq]
        assert got == [2, 3, 4, 5]
        await entries.aclose()


async def test_tail_of_a_store_that_is_away_raises(valkey: Valkey) -> None:
    valkey.kill()
    async with valkey.client() as client:
        with pytest.raises((redis.exceptions.RedisError, OSError)):
            await anext(tail(client, STREAM))


async def test_tail_of_another_type_raises_also_while_following(client: redis.asyncio.Redis) -> None:
    entries = tail(client, STREAM, last=0, follow=True)
    waiting = asyncio.ensure_future(anext(entries))
    await asyncio.sleep(0)
    await client.set(STREAM, "x")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        await waiting
