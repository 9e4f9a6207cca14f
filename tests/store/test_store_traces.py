"""store.traces: records of malicious calls, and that nobody reads them unseen (TDDDG § 14)."""

from __future__ import annotations

import pytest
from redis.exceptions import RedisError, ResponseError
from store_server import Connect, Server, eventually

from sipproxy.engine.structs import MaliciousCall
from sipproxy.store import keys
from sipproxy.store.traces import Access, Traces, accesses, read


def record(call: str, line: str = "L2", reference: str = "T1") -> MaliciousCall:
    return MaliciousCall(
        call=call,
        node="n1",
        line=line,
        reference=reference,
        at_ms=1_790_000_000_000,
        called="+4920514001",
        network="+4989123456",
        given="<sip:anonymous@anonymous.invalid>;tag=1",
    )


def reading(line: str = "L2", reference: str = "") -> Access:
    return Access(1_790_000_000_001, "op", "application of 12 May", line, reference)


async def test_records_are_read_by_line_and_order_once_each(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    traces = Traces(store)
    written = [record("c1"), record("c2", "L3"), record("c3", reference="T2"), record("c1")]
    for one in written:
        traces.keep(one)
    await eventually(lambda: traces.unwritten == 0)
    assert await read(store.client, reading()) == [written[0], written[2]]
    assert await read(store.client, reading(reference="T2")) == [written[2]]
    assert await read(store.client, reading("L9")) == []


async def test_many_records_are_read_over_several_pages(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    traces = Traces(store)
    for number in range(2500):
        traces.keep(record(f"c{number}"))
    await eventually(lambda: traces.unwritten == 0)
    assert [one.call for one in await read(store.client, reading())] == [f"c{number}" for number in range(2500)]


async def test_every_reading_is_written_down_first(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    await read(store.client, reading())
    await read(store.client, reading("", "T1"))
    assert await accesses(store.client, 10) == [reading(), reading("", "T1")]
    assert await accesses(store.client, 1) == [reading("", "T1")]


async def test_reading_that_cannot_be_written_down_shows_nothing(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    traces = Traces(store)
    traces.keep(record("c1"))
    await eventually(lambda: traces.unwritten == 0)
    server.ask("SET", keys.TRACE_ACCESS, "not a stream")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await read(store.client, reading())
    assert issubclass(ResponseError, RedisError)


async def test_record_made_while_the_store_is_away_is_written_when_it_is_back(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url)
    traces = Traces(store)
    doomed.kill()
    await eventually(lambda: store.state.value == "away")
    traces.keep(record("c1"))
    assert traces.unwritten == 1
    doomed.start()
    await eventually(lambda: traces.unwritten == 0)
    assert [one.call for one in await read(store.client, reading())] == ["c1"]


async def test_more_records_than_the_bound_are_counted_as_lost(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url)
    traces = Traces(store, limit=2)
    doomed.kill()
    await eventually(lambda: store.state.value == "away")
    for number in range(3):
        traces.keep(record(f"c{number}"))
    assert (traces.unwritten, traces.dropped) == (2, {"FULL": 1})
