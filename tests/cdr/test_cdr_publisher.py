"""cdr.publisher against a real server: every record once and in order (invariants 3, 5)."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from cdr_samples import ended
from publishing import STREAM, Node, published, until

from cdr.journal import Journal
from cdr.stats import figures
from cdr.wire import Link

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import redis.asyncio
    from valkey_process import Valkey

    from cdr.reading import Entry
    from cdr.stream import Mark


async def test_publisher_moves_records_in_order_with_their_fields(node: Node, client: redis.asyncio.Redis) -> None:
    assert node.publisher.stats.state == "starting"
    node.call(70)
    await node.drained()
    assert await published(client) == list(range(1, 71))
    _, fields = (await client.xrange(STREAM, count=1))[0]
    assert set(fields) == {b"id", b"v", b"type", b"node", b"seq", b"d"}
    assert (fields[b"id"], fields[b"v"], fields[b"type"], fields[b"node"], fields[b"seq"]) == (
        b"call-1",
        b"1",
        b"final",
        b"n1",
        b"1",
    )
    stats = node.publisher.stats
    assert (stats.state, stats.backlog, stats.published, stats.resent, stats.behind_ms) == ("up", 0, 70, 0, 0)
    assert stats.barrier
    assert node.states == ["up"]
    assert node.journal.confirmed_seq == 70


async def test_publisher_goes_on_after_a_restart_of_the_node(node: Node, client: redis.asyncio.Redis) -> None:
    node.call(30)
    await node.drained()
    await node.stop()
    node.start()
    node.call(30)
    await node.drained()
    assert await published(client) == list(range(1, 61))
    assert node.publisher.stats.published == 30


async def test_publisher_backlog_is_read_from_disk_in_bounded_batches(tmp_path: Path, client: redis.asyncio.Redis) -> None:
    """Written while nobody published: several segments, more than are sent between two barriers."""
    journal = Journal(tmp_path / "journal", node="n1", segment_bytes=65536)
    journal.recover()
    for seq in range(1, 1201):
        journal.append(ended(seq, user_agent="u" * 200))
    assert journal.stats.segments > 3
    journal.close()
    node = Node(tmp_path / "journal", client).start()
    await node.drained()
    assert await published(client) == list(range(1, 1201))
    assert node.journal.stats.segments == 1
    await node.stop()


async def test_publisher_gathers_what_comes_while_it_sends(
    node: Node, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there is a further record on the disk whenever one has been sent."""
    monkeypatch.setattr("cdr.publisher.LINGER_S", 0.1)
    real, sent = node.publisher._stream.append, []

    async def append(entries: Sequence[Entry], **options: int) -> Mark:
        sent.append(time.monotonic())
        if len(sent) < 6:
            node.call()
            await node.journal.wait_synced(node.journal.position)
        return await real(entries, **options)

    monkeypatch.setattr(node.publisher._stream, "append", append)
    node.call()
    await until(lambda: node.publisher.stats.published == 6)
    await node.drained()
    assert min(later - earlier for earlier, later in pairwise(sent)) >= 0.09
    assert await published(client) == list(range(1, 7))


async def test_publisher_disk_that_refuses_to_sync_does_not_hold_records_back(node: Node, client: redis.asyncio.Redis) -> None:
    broken = pytest.MonkeyPatch()
    broken.setattr("cdr.storage.os.fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    try:
        node.call(10)
        await node.drained()
        assert await published(client) == list(range(1, 11))
        assert node.journal.stats.failure == "Input/output error"
    finally:
        broken.undo()


async def test_publisher_flush_of_a_store_that_is_away_gives_up_in_time(node: Node, valkey: Valkey) -> None:
    valkey.kill()
    node.call(1)
    assert not await node.publisher.flush(0.2)
    assert node.publisher.stats.backlog == 1


async def test_publisher_reply_of_another_shape_is_an_error_and_no_end(
    node: Node, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, replies = node.publisher._link.call, [None, [], [1], ["x", 1], {}, b"OK"]

    async def call(*command: object, **options: object) -> object:
        reply = await real(*command, **options)  # type: ignore[arg-type]
        return replies.pop() if replies and command[0] != "WAITAOF" else reply

    monkeypatch.setattr(node.publisher._link, "call", call)
    monkeypatch.setattr("cdr.publisher.FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr("cdr.publisher.LONGEST_PAUSE_S", 0.01)
    node.call(10)
    await node.drained()
    assert node.publisher.stats.errors["error"] == 6
    assert await published(client) == list(range(1, 11))


async def test_figures_are_those_of_before_when_the_stream_was_trimmed_without_a_purge(
    tmp_path: Path, client: redis.asyncio.Redis
) -> None:
    """What `keep` takes out of the stream is in the daily figures, whoever asks when."""
    node = Node(tmp_path / "trimming", client, keep=100, sinks=("billing",)).start()
    await client.xgroup_create(STREAM, "billing", id="0", mkstream=True)
    node.call(1500)
    await node.drained()
    link = Link(client, timeout_s=10)
    before = await figures(link, STREAM, "", "")
    assert sum(one.attempts for one in before.values()) == 1500
    await client.xreadgroup("billing", "me", {STREAM: ">"}, count=2000, noack=True)
    await until(lambda: node.publisher.stats.trimmed > 1000)
    assert await client.xlen(STREAM) < 500
    assert await figures(link, STREAM, "", "") == before
    await link.drop()


async def test_figures_that_cannot_be_counted_keep_the_stream_and_stop_no_record(
    tmp_path: Path, client: redis.asyncio.Redis
) -> None:
    await client.set("{sp:cdr}:stats:days", "no set")
    node = Node(tmp_path / "trimming", client, keep=100, sinks=("billing",)).start()
    await client.xgroup_create(STREAM, "billing", id="0", mkstream=True)
    node.call(500)
    await node.drained()
    await client.xreadgroup("billing", "me", {STREAM: ">"}, count=2000, noack=True)
    await until(lambda: node.publisher.stats.errors.get("figures", 0) >= 2)
    node.call(100)
    await node.drained()
    assert (await client.xlen(STREAM), node.publisher.stats.trimmed) == (600, 0)
    await client.delete("{sp:cdr}:stats:days")
    await until(lambda: node.publisher.stats.trimmed > 0)
