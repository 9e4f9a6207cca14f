"""Records are confirmed by the sinks, and the stream is trimmed behind every group (design: §6, §8)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from publishing import STREAM, Node, published, until

from cdr import publisher as publisher_module
from cdr.stream import mark_key

if TYPE_CHECKING:
    import redis.asyncio
    from valkey_process import Valkey


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is looked at more often than once a second, so that the tests wait less."""
    monkeypatch.setattr(publisher_module, "LOOK_S", 0.02)
    monkeypatch.setattr(publisher_module, "TRIM_S", 0.02)


async def read(client: redis.asyncio.Redis, group: str, count: int) -> list[bytes]:
    """The ids of the next entries for the group, which now has them pending."""
    reply: Any = await client.xreadgroup(group, "c", {STREAM: ">"}, count=count)
    pages = [found[1] for found in reply]
    return [name for page in pages for name, _ in page]


async def take(client: redis.asyncio.Redis, group: str, count: int) -> None:
    names = await read(client, group, count)
    assert len(names) == count
    await client.xack(STREAM, group, *names)


async def confirmed(node: Node, seq: int) -> None:
    await until(lambda: node.journal.confirmed_seq == seq)


async def test_record_is_confirmed_when_the_slowest_sink_has_acknowledged_it(
    tmp_path: Path, client: redis.asyncio.Redis
) -> None:
    node = Node(tmp_path / "journal", client, sinks=("billing", "fraud"), batch=1).start()
    node.call(10)
    await node.drained()
    assert (node.publisher.stats.backlog, node.publisher.stats.unconfirmed) == (0, 10)
    await until(lambda: node.publisher.stats.sinks_missing)
    await client.xgroup_create(STREAM, "billing", "0")
    await take(client, "billing", 10)
    await client.xgroup_create(STREAM, "fraud", "0")
    await until(lambda: not node.publisher.stats.sinks_missing)
    assert node.journal.confirmed_seq == 0
    await take(client, "fraud", 4)
    await confirmed(node, 4)
    pending = await read(client, "fraud", 6)
    await client.xack(STREAM, "fraud", *pending[1:])  # all but the next one
    seen = node.publisher._looked_at
    await until(lambda: node.publisher._looked_at > seen)
    assert node.journal.confirmed_seq == 4
    assert node.publisher.stats.unconfirmed_ms > 0
    await client.xack(STREAM, "fraud", pending[0])
    await confirmed(node, 10)
    assert node.publisher.stats.unconfirmed == node.publisher.stats.unconfirmed_ms == 0
    await node.stop()


async def test_segment_goes_only_when_the_sink_has_what_it_holds(tmp_path: Path, client: redis.asyncio.Redis) -> None:
    node = Node(tmp_path / "journal", client, sinks=("billing",)).start()
    await client.xgroup_create(STREAM, "billing", "0", mkstream=True)
    node.call(1000)
    await node.drained()
    held = node.journal.stats.segments
    assert held > 3
    await node.stop()
    node.start()  # What the store has is not sent again, and the sink's acknowledgement still counts.
    node.call(1)
    await node.drained()
    assert node.publisher.stats.published == 1
    assert node.journal.stats.segments >= held
    await take(client, "billing", 1001)
    await confirmed(node, 1001)
    assert node.journal.stats.segments == 1
    await node.stop()


async def test_emptied_store_gets_again_what_the_sink_has_not_acknowledged(tmp_path: Path, client: redis.asyncio.Redis) -> None:
    """Also while no new record comes: the loss is seen, not met by chance."""
    node = Node(tmp_path / "journal", client, sinks=("billing",), batch=1).start()
    await client.xgroup_create(STREAM, "billing", "0", mkstream=True)
    node.call(40)
    await node.drained()
    await take(client, "billing", 15)
    await confirmed(node, 15)
    await client.flushall()
    await until(lambda: node.publisher.stats.resent == 1)
    await node.drained()
    assert await published(client) == list(range(16, 41))
    await client.xgroup_create(STREAM, "billing", "0")
    await take(client, "billing", 25)
    await confirmed(node, 40)
    await node.stop()


async def test_deleted_stream_whose_mark_is_left_gets_again_what_is_not_acknowledged(
    tmp_path: Path, client: redis.asyncio.Redis
) -> None:
    node = Node(tmp_path / "journal", client, sinks=("billing",), batch=1).start()
    node.call(20)
    await node.drained()
    await client.delete(STREAM)
    await until(lambda: node.publisher.stats.resent == 1)
    await node.drained()
    assert await published(client) == list(range(1, 21))
    await client.delete(STREAM)  # and another one in its place, whose entries are older
    await client.xadd(STREAM, {"x": 1}, id="1-1")
    await until(lambda: node.publisher.stats.resent == 2)
    await node.drained()
    assert int(await client.hget(mark_key(STREAM, "n1"), "seq")) == 20
    assert await client.xlen(STREAM) == 21
    await node.stop()


async def test_old_copy_of_the_store_gets_again_what_it_has_not(
    tmp_path: Path, client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    node = Node(tmp_path / "journal", client, sinks=("billing",), batch=1).start()
    await client.xgroup_create(STREAM, "billing", "0", mkstream=True)
    node.call(20)
    await node.drained()
    await take(client, "billing", 10)
    await confirmed(node, 10)
    await client.config_set("appendfsync", "always")
    valkey.kill()
    shutil.copytree(valkey.directory, tmp_path / "copy")
    valkey.start()
    node.call(20)
    await node.drained()
    await take(client, "billing", 15)
    await confirmed(node, 25)
    valkey.kill()
    shutil.rmtree(valkey.directory / "appendonlydir")
    shutil.copytree(tmp_path / "copy" / "appendonlydir", valkey.directory / "appendonlydir")
    valkey.start()
    await until(lambda: node.publisher.stats.resent >= 1)
    node.call(5)
    await node.drained()
    # The copy has 1 to 20, of which the sink then had acknowledged ten; 21 to 25 are confirmed and nobody misses them.
    assert await published(client) == [*range(1, 21), *range(26, 46)]
    await take(client, "billing", 30)
    await confirmed(node, 45)
    await node.stop()


async def test_trimming_stops_before_what_the_slowest_group_has_not_acknowledged(
    tmp_path: Path, client: redis.asyncio.Redis
) -> None:
    node = Node(tmp_path / "journal", client, keep=100, batch=500).start()
    node.call(1500)
    await node.drained()
    assert await client.xlen(STREAM) == 1500  # Nobody has read any of it.
    for group in ("billing", "fraud"):
        await client.xgroup_create(STREAM, group, "0")
    await take(client, "billing", 1500)
    await take(client, "fraud", 700)
    pending = await read(client, "fraud", 800)
    await client.xack(STREAM, "fraud", *pending[1:])
    await until(lambda: node.publisher.stats.trimmed >= 600)
    seen = node.publisher._looked_at
    await until(lambda: node.publisher._looked_at > seen)
    numbers = await published(client)
    assert numbers == list(range(1501 - len(numbers), 1501))
    assert 600 < numbers[0] <= 701  # whole blocks of the stream go, and 701 is pending
    await client.xack(STREAM, "fraud", pending[0])
    await until(lambda: node.publisher.stats.entries < 300)
    assert len(await published(client)) >= 100
    await node.stop()


async def test_nothing_is_trimmed_while_a_sink_has_no_group(tmp_path: Path, client: redis.asyncio.Redis) -> None:
    node = Node(tmp_path / "journal", client, keep=100, sinks=("billing", "fraud")).start()
    await client.xgroup_create(STREAM, "billing", "0", mkstream=True)
    node.call(500)
    await node.drained()
    await take(client, "billing", 500)
    seen = node.publisher._looked_at
    await until(lambda: node.publisher._looked_at > seen)
    assert await client.xlen(STREAM) == 500
    await client.xgroup_create(STREAM, "fraud", "0")
    await take(client, "fraud", 500)
    await until(lambda: node.publisher.stats.trimmed > 200)
    await node.stop()


async def test_places_in_the_stream_that_are_remembered_are_bounded(
    tmp_path: Path, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sink that is away for long costs no memory; what it acknowledges then is confirmed, if later."""
    monkeypatch.setattr(publisher_module, "MAX_POINTS", 8)
    node = Node(tmp_path / "journal", client, sinks=("billing",), batch=2).start()
    await client.xgroup_create(STREAM, "billing", "0", mkstream=True)
    node.call(101)
    await node.drained()
    assert len(node.publisher._points) <= 8
    await take(client, "billing", 100)
    await until(lambda: node.journal.confirmed_seq > 50)
    assert node.journal.confirmed_seq <= 100
    await take(client, "billing", 1)
    await confirmed(node, 101)
    await node.stop()


async def test_mark_of_an_earlier_version_is_taken_over(tmp_path: Path, client: redis.asyncio.Redis) -> None:
    """It does not say where the last record stands: that is at the newest entry or before it."""
    node = Node(tmp_path / "journal", client).start()
    node.call(10)
    await node.drained()
    await node.stop()
    await client.hdel(mark_key(STREAM, "n1"), "id")
    node = Node(tmp_path / "journal", client, sinks=("billing",)).start()
    node.call(5)
    await node.drained()
    assert await published(client) == list(range(1, 16))
    await client.xgroup_create(STREAM, "billing", "0")
    await take(client, "billing", 15)
    await confirmed(node, 15)
    await node.stop()
