"""cdr.consumer with its store in trouble: nothing is lost or acknowledged that was not stored, and it goes on by itself."""

from __future__ import annotations

import asyncio
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis.asyncio
from cdr_samples import ended

import cdr.consumer
from cdr import codec
from cdr.consumer import Consumer, Delivery
from cdr.dead import dead_key
from cdr.entries import entry_of
from cdr.facts import Record
from cdr.groups import entry_id
from loadtest.relay import Relay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from valkey_process import Valkey

STREAM = "sp:cdr"
LOADED, LOAD_DELAY_US = 100_000, 50  # commands and the time for each: 10 s in all; after 1024 of them it answers


async def put(client: redis.asyncio.Redis, first: int, last: int) -> None:
    for number in range(first, last + 1):
        record = ended(number).record
        fields = {"id": record.id, "v": 1, "type": "final", "node": "n1", "seq": number, "d": codec.encode(record)}
        await client.xadd(STREAM, fields)


class Billing:
    """A database that the test holds up, and what it has."""

    def __init__(self) -> None:
        self.has: dict[str, Record] = {}
        self.given: list[str] = []
        self.open = asyncio.Event()
        self.waiting = asyncio.Event()

    async def write(self, batch: list[Delivery]) -> None:
        self.waiting.set()
        await self.open.wait()
        self.given += [one.record.id for one in batch]
        self.has.update({one.record.id: one.record for one in batch})


async def acknowledged(client: redis.asyncio.Redis) -> set[str]:
    """The ids that the group has acknowledged."""
    groups = await client.xinfo_groups(STREAM)
    if not groups:
        return set()
    given = entry_id(groups[0]["last-delivered-id"])
    pending = {row["message_id"] for row in await client.xpending_range(STREAM, "g", "-", "+", 1000)}
    entries = [(name, entry_of(name, fields)) for name, fields in await client.xrange(STREAM)]
    return {item.id for name, item in entries if isinstance(item, Record) and entry_id(name) <= given and name not in pending}


async def read_only(valkey: Valkey, client: redis.asyncio.Redis, bitten: Callable[[], Awaitable[None]]) -> None:
    await client.replicaof("127.0.0.1", "1")
    await bitten()
    await client.replicaof("NO", "ONE")


async def misconf(valkey: Valkey, client: redis.asyncio.Redis, bitten: Callable[[], Awaitable[None]]) -> None:
    obstacle = valkey.directory / "dump.rdb" / "in the way"
    obstacle.mkdir(parents=True)
    await client.config_set("save", "3600 1")
    for outcome in ("err", "ok"):
        async with asyncio.timeout(60):
            while (await client.info("persistence"))["rdb_last_bgsave_status"] != outcome:
                if not (await client.info("persistence"))["rdb_bgsave_in_progress"]:
                    await client.bgsave()
                await asyncio.sleep(0.05)
        if outcome == "err":
            await bitten()
            shutil.rmtree(obstacle.parent)


async def stopped(valkey: Valkey, client: redis.asyncio.Redis, bitten: Callable[[], Awaitable[None]]) -> None:
    valkey.signal(signal.SIGSTOP)
    try:
        await bitten()
    finally:
        valkey.signal(signal.SIGCONT)


async def killed(valkey: Valkey, client: redis.asyncio.Redis, bitten: Callable[[], Awaitable[None]]) -> None:
    valkey.kill()
    await bitten()
    await asyncio.to_thread(valkey.start)


async def old_copy(valkey: Valkey, client: redis.asyncio.Redis, bitten: Callable[[], Awaitable[None]]) -> None:
    """As it was before the group read anything: what it acknowledged since comes again."""
    files = valkey.directory / "appendonlydir"
    valkey.kill()
    await bitten()
    shutil.rmtree(files)
    (valkey.directory / "copy").rename(files)
    await asyncio.to_thread(valkey.start)


async def loading(valkey: Valkey, client: redis.asyncio.Redis, bitten: Callable[[], Awaitable[None]]) -> None:
    """It is started again, and reads its file slowly until the consumer has met it: there, and of no use."""
    valkey.kill()
    [written] = (valkey.directory / "appendonlydir").glob("*.incr.aof")
    with written.open("ab") as file:
        file.write(LOADED * b"*2\r\n$4\r\nINCR\r\n$6\r\nfiller\r\n")
    starting = asyncio.create_task(asyncio.to_thread(valkey.start, "--key-load-delay", str(LOAD_DELAY_US)))
    await bitten()
    async with valkey.client() as another:
        await another.config_set("key-load-delay", "0")
    await starting


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (read_only, {"readonly"}),
        (misconf, {"misconf"}),
        (stopped, {"slow", "away"}),
        (killed, {"away"}),
        (old_copy, {"away"}),
        (loading, {"loading"}),
    ],
)
async def test_consumer_with_a_batch_in_hand_outlives_its_store(
    valkey: Valkey,
    client: redis.asyncio.Redis,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Valkey, redis.asyncio.Redis, Callable[[], Awaitable[None]]], Awaitable[None]],
    names: set[str],
) -> None:
    monkeypatch.setattr(cdr.consumer, "TIMEOUT_S", 0.3)
    monkeypatch.setattr(cdr.consumer, "LONGEST_PAUSE_S", 0.3)
    billing = Billing()
    await put(client, 1, 30)
    await client.config_set("appendfsync", "always")
    shutil.copytree(valkey.directory / "appendonlydir", valkey.directory / "copy")
    consumer = Consumer(client, group="g", batch=10, on_event=lambda *_: None)
    running = asyncio.create_task(consumer.run(billing.write))

    async def bitten() -> None:
        """The caller stores what he has in hand, and the acknowledgement meets the fault, several times."""
        billing.open.set()
        while sum(consumer.counts[name] for name in names) < 3:  # noqa: ASYNC110  a counter of the code under test
            await asyncio.sleep(0.01)

    async with asyncio.timeout(120):
        await billing.waiting.wait()
        assert await acknowledged(client) == set(), "nothing before it is stored"
        await fault(valkey, client, bitten)
        await put(client, 31, 60)
        wanted = {ended(number).record.id for number in range(1, 61)}
        while (done := await acknowledged(client)) != wanted:
            assert done <= billing.has.keys()
            assert not running.done()
            await asyncio.sleep(0.01)
    assert billing.has.keys() == wanted
    consumer.stop()
    await running
    await consumer.close()


async def test_full_store_keeps_a_new_group_and_a_dead_letter_waiting(
    client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs no memory goes on: entries are read and acknowledged. What does is done when there is some."""
    monkeypatch.setattr(cdr.consumer, "LONGEST_PAUSE_S", 0.1)
    billing, consumer = Billing(), Consumer(client, group="g", batch=10)
    billing.open.set()
    await put(client, 1, 10)
    poison = await client.xadd(STREAM, {"id": "poison", "d": b"\xc1"})
    await put(client, 11, 20)
    wanted = {ended(number).record.id for number in range(1, 21)}

    async def met(times: int) -> None:
        """The full store has refused so many commands since."""
        before = consumer.counts["oom"]
        while consumer.counts["oom"] < before + times:
            assert not running.done()
            await asyncio.sleep(0.01)

    async with asyncio.timeout(60):
        await client.config_set("maxmemory", "1")
        running = asyncio.create_task(consumer.run(billing.write))
        await met(3)
        assert await client.xinfo_groups(STREAM) == []
        await client.config_set("maxmemory", "0")
        await billing.waiting.wait()
        await client.config_set("maxmemory", "1")
        await met(3)
        assert await acknowledged(client) == {ended(number).record.id for number in range(1, 11)}, "what came before it"
        assert poison in [row["message_id"] for row in await client.xpending_range(STREAM, "g", "-", "+", 1000)]
        await client.config_set("maxmemory", "0")
        while await acknowledged(client) != wanted:  # noqa: ASYNC110  the store does not tell
            await asyncio.sleep(0.01)
    assert billing.has.keys() == wanted
    assert [letter[b"entry"] for _, letter in await client.xrange(dead_key(STREAM))] == [poison]
    consumer.stop()
    await running
    await consumer.close()


async def test_lost_replies_to_acknowledgements_are_asked_for_again_and_nothing_is_given_twice(
    valkey: Valkey, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdr.consumer, "LONGEST_PAUSE_S", 0.1)
    billing = Billing()
    billing.open.set()
    await put(client, 1, 30)
    path = valkey.directory / "relay"
    async with Relay(Path(valkey.socket), path, loses=b"XACK") as relay, redis.asyncio.Redis.from_url(relay.url) as through:
        relay.lose_replies = 4
        async with Consumer(through, group="g", batch=10) as consumer, asyncio.timeout(60):
            await consumer.run(billing.write, follow=False)
    assert relay.lost == 4
    assert consumer.counts["away"] == 4
    assert consumer.counts["acknowledged"] == 30
    wanted = [ended(number).record.id for number in range(1, 31)]
    assert await acknowledged(client) == set(wanted)
    assert billing.given == wanted
