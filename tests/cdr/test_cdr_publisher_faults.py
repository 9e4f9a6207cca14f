"""cdr.publisher with lost replies, late commands, dying nodes and journals that are not what they were."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import TYPE_CHECKING

import redis.asyncio
from publishing import STREAM, Node, Relay, published, until

from cdr.stream import Stream
from cdr.wire import Link

if TYPE_CHECKING:
    from pathlib import Path

    from valkey_process import Valkey


async def test_publisher_reply_lost_after_the_script_ran_delivers_each_once(tmp_path: Path, valkey: Valkey) -> None:
    async with Relay(valkey.socket) as relay, redis.asyncio.Redis(unix_socket_path=relay.path) as through:
        node = Node(tmp_path / "journal", through, timeout_s=60.0).start()  # the loss is told by the connection's end
        for _ in range(4):
            relay.lose = 1
            node.call(50)
            await until(lambda: relay.lose == 0)
            await node.drained()
        assert relay.lost == 4
        assert node.publisher.stats.errors["away"] == 4
        assert node.publisher.stats.published == 200
        await node.stop()
    async with valkey.client() as client:
        assert await published(client) == list(range(1, 201))


async def test_publisher_reply_lost_and_node_killed_delivers_each_once(tmp_path: Path, valkey: Valkey) -> None:
    """The store has records that the journal does not know to be there, and the next run finds out."""
    async with Relay(valkey.socket) as relay, redis.asyncio.Redis(unix_socket_path=relay.path) as through:
        node = Node(tmp_path / "journal", through).start()
        node.call(10)
        await node.drained()
        relay.lose = 1
        node.call(15)
        await until(lambda: relay.lost == 1)
        await node.stop()
        assert node.journal.confirmed_seq == 10
        node.start()
        node.call(5)
        await node.drained()
        assert node.publisher.stats.published in (5, 20)  # whether the fifteen had reached the store or not
        await node.stop()
    async with valkey.client() as client:
        assert await published(client) == list(range(1, 31))


async def test_publisher_troubles_in_any_order_deliver_each_once(tmp_path: Path, valkey: Valkey) -> None:
    """Lost replies, a stopped server, a killed server, a killed node, in random order and while calls go on."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    async with Relay(valkey.socket) as relay, redis.asyncio.Redis(unix_socket_path=relay.path) as through:
        node = Node(tmp_path / "journal", through).start()
        for _ in range(12):
            node.call(chance.randrange(60))
            await asyncio.sleep(chance.uniform(0, 0.1))
            trouble = chance.choice(("reply", "stop", "kill", "node", "none"))
            if trouble == "reply":
                relay.lose += 1
            elif trouble == "stop":
                valkey.signal(signal.SIGSTOP)
                node.call(chance.randrange(60))
                await asyncio.sleep(chance.uniform(0, 0.6))
                valkey.signal(signal.SIGCONT)
            elif trouble == "kill":
                valkey.kill()
                node.call(chance.randrange(60))
                valkey.start()
            elif trouble == "node":
                await node.stop()
                node.start()
        relay.lose = 0
        await node.drained()
        last = node.journal.last_seq
        await node.stop()
    async with valkey.client() as client:
        assert await published(client) == list(range(1, last + 1))


async def test_publisher_script_of_an_earlier_run_comes_late_and_is_refused(
    tmp_path: Path, client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    """The server was stopped; a node died with its command in the server's socket, and its successor was faster."""
    node = Node(tmp_path / "journal", client).start()
    node.call(5)
    await node.drained()
    valkey.signal(signal.SIGSTOP)
    node.call(10)
    await until(lambda: node.failures() >= 1)
    run, token = node.publisher._stream.run, node.publisher._stream.token
    await node.stop()
    valkey.signal(signal.SIGCONT)
    node.start()
    node.call(10)
    await node.drained()
    link = Link(client, timeout_s=5)
    late = Stream(link, STREAM, "n1", token=token)
    late.run = run
    entries, _ = node.journal.read(0, seq=1, end=node.journal.position)
    assert (await late.append(entries, recovered=0, expected=0)).added == -1
    await link.drop()
    assert await published(client) == list(range(1, 26))
    await node.stop()


async def test_publisher_new_journal_below_the_mark_loses_nothing(
    tmp_path: Path, client: redis.asyncio.Redis, node: Node
) -> None:
    """The journal's directory was lost: numbers begin again, and no record is taken for one that was there."""
    node.call(30)
    await node.drained()
    await node.stop()
    node.directory = tmp_path / "another"
    node.start()
    node.call(45)
    await node.drained()
    assert await published(client) == [*range(1, 31), *range(1, 46)]


async def test_publisher_old_copy_of_the_journal_loses_nothing(tmp_path: Path, client: redis.asyncio.Redis, node: Node) -> None:
    """A machine restored from an old image gives numbers that the store has seen with other records."""
    import shutil

    node.call(10)
    await node.drained()
    await node.stop()
    shutil.copytree(node.directory, tmp_path / "image")
    node.start()
    node.call(20)
    await node.drained()
    await node.stop()
    node.directory = tmp_path / "image"
    node.start()
    node.call(25)
    await node.drained()
    assert await published(client) == [*range(1, 31), *range(11, 36)]


async def test_publisher_second_process_with_the_same_node_id_is_noticed(
    tmp_path: Path, client: redis.asyncio.Redis, node: Node
) -> None:
    node.call(3)
    await node.drained()
    other = Node(tmp_path / "other", client).start()
    other.call(3)
    await other.drained()
    node.call(3)
    await node.drained()
    assert node.publisher.stats.errors["contended"] >= 1
    assert sorted(await published(client)) == [1, 1, 2, 2, 3, 3, 4, 5, 6]
    await other.stop()
