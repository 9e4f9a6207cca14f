"""cdr.publisher while the store is killed, stopped, emptied, full or refuses (design: §8)."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest
from publishing import FAST, STREAM, Node, published, until

import cdr.publisher
from cdr import steps
from cdr.stream import mark_key

if TYPE_CHECKING:
    from pathlib import Path

    import redis.asyncio
    from valkey_process import Valkey

    from cdr.journal import Batch


async def test_publisher_server_killed_and_restarted_delivers_each_once(
    node: Node, client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    node.call(50)
    await until(lambda: node.publisher.stats.published > 0)
    valkey.kill()
    node.call(200)
    await until(lambda: node.publisher.stats.state == "away")
    assert node.publisher.stats.backlog >= 200
    await until(lambda: node.publisher.stats.behind_ms > 0)
    valkey.start()
    await node.drained()
    assert await published(client) == list(range(1, 251))
    assert node.states[-1] == "up"
    assert node.publisher.stats.errors["away"] >= 1


async def test_publisher_server_stopped_for_a_while_delivers_each_once(
    node: Node, client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    """SIGSTOP: commands pile up in sockets that were given up, and are executed afterwards."""
    for _ in range(3):
        node.call(40)
        valkey.signal(signal.SIGSTOP)
        node.call(100)
        before = node.failures()
        await until(lambda before=before: node.failures() >= before + 2)  # type: ignore[misc]
        assert node.publisher.stats.state in ("slow", "away")
        valkey.signal(signal.SIGCONT)
        await node.drained()
    assert await published(client) == list(range(1, 421))


@pytest.mark.parametrize("step", ["looked", "sending", "sent", "durable"])
async def test_publisher_server_stopped_at_a_step_for_longer_than_every_timeout_delivers_each_once(
    tmp_path: Path, client: redis.asyncio.Redis, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Of a command, of the barrier and of connecting. What was sent may be executed when the server goes on."""
    monkeypatch.setattr(cdr.publisher, "BARRIER_MS", 200)
    monkeypatch.setattr(cdr.publisher, "LONGEST_PAUSE_S", 0.2)
    stopped: list[float] = []

    def hook(name: str) -> None:
        if name == f"publisher.{step}" and not stopped:
            valkey.signal(signal.SIGSTOP)
            stopped.append(time.monotonic())

    monkeypatch.setattr(steps, "hook", hook)
    node = Node(tmp_path / "journal", client).start()
    node.call(40)
    await until(lambda: bool(stopped))
    node.call(40)  # for there is always something to send
    longest_s = 0.2 + 2 * FAST["timeout_s"]
    await until(lambda: node.failures() >= 4 and time.monotonic() - stopped[0] > 2 * longest_s)
    stats = node.publisher.stats
    assert "slow" in stats.errors
    assert set(stats.errors) <= {"slow", "away"}, "a connection that is not taken in time is one or the other"
    assert stats.backlog >= 40
    assert stats.behind_ms > 0
    valkey.signal(signal.SIGCONT)
    await node.drained()
    assert await published(client) == list(range(1, 81))
    assert node.states[-1] == "up"
    await node.stop()


async def test_publisher_emptied_store_is_continued_behind_what_was_confirmed(node: Node, client: redis.asyncio.Redis) -> None:
    node.call(10)
    await node.drained()
    await client.flushall()
    node.call(5)
    await node.drained()
    assert await published(client) == [11, 12, 13, 14, 15]


async def test_publisher_store_emptied_before_the_confirmation_gets_all_again(
    node: Node, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent, but not confirmed, is not there any more when the next batch arrives."""
    node.call(10)
    await node.drained()
    real, emptied = node.publisher._send, []

    async def send(batch: Batch) -> bool:
        if batch.entries[0].seq > 30 and not emptied:
            emptied.append(True)
            await client.flushall()
        return await real(batch)

    monkeypatch.setattr(node.publisher, "_send", send)
    node.call(60)
    await node.drained()
    assert await published(client) == list(range(11, 71))
    assert node.publisher.stats.resent == 1


async def test_publisher_read_only_store_is_named_and_waited_for(node: Node, client: redis.asyncio.Redis) -> None:
    await client.replicaof("127.0.0.1", "1")
    node.call(10)
    await until(lambda: node.publisher.stats.state == "readonly")
    assert node.publisher.stats.reason
    await client.replicaof("NO", "ONE")
    await node.drained()
    assert await published(client) == list(range(1, 11))


@pytest.mark.parametrize(("name", "state"), [("maxmemory", "oom"), ("min-replicas-to-write", "noreplicas")])
async def test_publisher_store_that_takes_nothing_is_named_and_waited_for(
    node: Node, client: redis.asyncio.Redis, name: str, state: str
) -> None:
    await client.config_set(name, "1")
    node.call(10)
    await until(lambda: node.publisher.stats.state == state)
    await client.config_set(name, "0")
    await node.drained()
    assert await published(client) == list(range(1, 11))


async def test_publisher_key_of_the_wrong_type_is_named_and_loses_nothing(node: Node, client: redis.asyncio.Redis) -> None:
    await client.set(STREAM, "x")
    node.call(10)
    await until(lambda: node.publisher.stats.state == "wrongtype")
    assert await client.hget(mark_key(STREAM, "n1"), "seq") in (b"0", None)
    await client.delete(STREAM)
    await node.drained()
    assert await published(client) == list(range(1, 11))


async def test_publisher_store_without_append_only_file_is_used_without_barrier(
    node: Node, client: redis.asyncio.Redis
) -> None:
    await client.config_set("appendonly", "no")
    node.call(10)
    await node.drained()
    assert not node.publisher.stats.barrier
    assert await published(client) == list(range(1, 11))
