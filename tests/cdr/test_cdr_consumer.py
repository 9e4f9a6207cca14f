"""cdr.consumer against a real Valkey: everything is given out until it is acknowledged, and nothing is left out in silence."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import pytest
import redis.asyncio
import redis.exceptions
from cdr_samples import draft, ended

from cdr import codec, dead
from cdr.consumer import Consumer, Delivery, RefusedError, consume, latest, supersedes
from cdr.facts import Record
from cdr.groups import EntryId, acknowledged
from cdr.wire import Link

if TYPE_CHECKING:
    from collections.abc import Callable

    from valkey_process import Valkey

STREAM = "sp:cdr"


async def put(client: redis.asyncio.Redis, *numbers: int, **changes: object) -> None:
    for number in numbers:
        record = ended(number).record
        fields = {"id": record.id, "v": 1, "type": "final", "node": "n1", "seq": number, "d": codec.encode(record), **changes}
        await client.xadd(STREAM, fields)


def seqs(batch: list[Delivery]) -> list[int]:
    return [one.record.seq for one in batch]


async def drained(consumer: Consumer) -> list[int]:
    """Acknowledges whatever there is."""
    found: list[int] = []
    try:
        async for batch in consumer.batches(follow=False):
            found += seqs(batch)
            await consumer.acknowledge(batch)
    finally:
        await vanish(consumer)
    return found


async def vanish(consumer: Consumer) -> None:
    """As a process that dies: its connection is gone, nobody leaves the group."""
    await consumer._link.drop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  the condition changes in a thread
            await asyncio.sleep(0.01)


async def letters(client: redis.asyncio.Redis) -> list[dead.Letter]:
    link = Link(client, timeout_s=5)
    try:
        return [letter async for letter in dead.letters(link.call, STREAM)]
    finally:
        await link.drop()


async def pending(client: redis.asyncio.Redis, group: str = "g") -> int:
    return int((await client.xpending(STREAM, group))["pending"])


@pytest.mark.parametrize("protocol", [2, 3])
async def test_consumer_of_a_new_group_gets_all_there_is_in_order_and_once(valkey: Valkey, protocol: int) -> None:
    async with valkey.client(protocol=protocol) as client:
        await put(client, *range(1, 8))
        async with Consumer(client, group="g", batch=3) as consumer:
            sizes = []
            async for batch in consumer.batches(follow=False):
                sizes.append(seqs(batch))
                await consumer.acknowledge(batch)
            assert sizes == [[1, 2, 3], [4, 5, 6], [7]]
            await put(client, 8)
            assert await drained(consumer) == [8]
            assert await drained(consumer) == []
        assert await pending(client) == 0
        assert await client.xinfo_consumers(STREAM, "g") == [], "a consumer that owes nothing leaves no trace"
        assert await drained(Consumer(client, group="other")) == list(range(1, 9))


async def test_consumer_gives_again_what_it_had_not_acknowledged(client: redis.asyncio.Redis) -> None:
    await put(client, 1, 2, 3)
    first = Consumer(client, group="g", name="one", batch=2)
    async for batch in first.batches(follow=False):
        assert seqs(batch) == [1, 2]
        await first.acknowledge(batch[:1])
        break
    await first.close()
    link = Link(client, timeout_s=5)
    entry = (await client.xrange(STREAM))[1][0].decode()
    assert await acknowledged(link, STREAM, "g") == EntryId(*map(int, entry.split("-")))
    await link.drop()
    again = Consumer(client, group="g", name="one")
    batches = [batch async for batch in again.batches(follow=False)]
    assert [(one.record.seq, one.deliveries) for batch in batches for one in batch] == [(2, 2), (3, 1)]
    await again.close()
    assert await pending(client) == 2, "closing acknowledges nothing"


async def test_consumer_takes_over_from_a_dead_one_only_when_it_has_been_idle(client: redis.asyncio.Redis) -> None:
    await put(client, 1, 2)
    dying = Consumer(client, group="g", name="dying")
    async for _ in dying.batches(follow=False):
        break
    await vanish(dying)
    assert await drained(Consumer(client, group="g", name="patient", idle_s=60)) == []
    await asyncio.sleep(0.05)
    heir = Consumer(client, group="g", name="heir", idle_s=0.02)
    assert await drained(heir) == [1, 2]
    assert await pending(client) == 0


async def test_consumers_at_once_share_the_work(client: redis.asyncio.Redis) -> None:
    await put(client, *range(1, 101))
    taken: Counter[int] = Counter()

    async def one() -> None:
        async with Consumer(client, group="g", batch=5) as consumer:
            async for batch in consumer.batches(follow=False):
                taken.update(seqs(batch))
                await asyncio.sleep(0)
                await consumer.acknowledge(batch)

    await asyncio.gather(one(), one(), one())
    assert taken == Counter(range(1, 101))


async def test_entries_that_are_no_record_become_dead_letters_and_the_rest_goes_on(client: redis.asyncio.Redis) -> None:
    await put(client, 1)
    await put(client, 2, d=b"\xc1")
    await put(client, 3, id="another")
    await put(client, 4)
    told: list[str] = []
    async with Consumer(client, group="g", on_event=lambda kind, text: told.append(f"{kind} {text}")) as consumer:
        assert await drained(consumer) == [1, 4]
    found = await letters(client)
    entries = await client.xrange(STREAM)
    assert [(letter.entry_id, letter.group, letter.deliveries) for letter in found] == [
        (entries[1][0].decode(), "g", 1),
        (entries[2][0].decode(), "g", 1),
    ]
    assert found[0].fields == entries[1][1]
    assert found[1].reason == "field id does not agree with the record"
    assert await pending(client) == 0
    assert len(told) == 2
    assert told[0].startswith(f"dead entry {found[0].entry_id}: no record")


async def test_dead_letters_that_are_full_leave_the_entry_pending(client: redis.asyncio.Redis) -> None:
    for number in (1, 2):
        await put(client, number, d=b"\xc1")
    await put(client, 3)
    told: list[str] = []
    async with Consumer(client, group="g", dead_limit=1, on_event=lambda kind, _: told.append(kind)) as consumer:
        assert await drained(consumer) == [3]
    assert len(await letters(client)) == 1
    assert await pending(client) == 1
    assert told == ["dead", "full"]


async def test_entry_trimmed_before_it_was_acknowledged_is_told(client: redis.asyncio.Redis) -> None:
    await put(client, 1, 2)
    first = Consumer(client, group="g", name="one")
    async for _ in first.batches(follow=False):
        break
    await vanish(first)
    await client.xtrim(STREAM, maxlen=1, approximate=False)
    again = Consumer(client, group="g", name="one")
    assert await drained(again) == [2]
    assert again.counts["lost"] == 1
    (letter,) = await letters(client)
    assert (letter.reason, letter.fields) == ("trimmed from the stream before it was acknowledged", {})
    link = Link(client, timeout_s=5)
    assert await dead.requeue(link.call, STREAM, letter.id) == -1
    await link.drop()


async def test_record_of_a_newer_schema_reaches_the_caller_whole(client: redis.asyncio.Redis) -> None:
    record = msgspec.structs.replace(ended(1).record, schema=2, unknown={"carbon_g": 3})
    await put(client, 1, v=2, d=codec.encode(record))
    async with Consumer(client, group="g") as consumer:
        async for batch in consumer.batches(follow=False):
            assert [one.record for one in batch] == [record]
            assert codec.decode(batch[0].data) == record


async def run(client: redis.asyncio.Redis, write: Callable[[list[Delivery]], None], **options: object) -> Consumer:
    async with Consumer(client, group="g", **options) as consumer, asyncio.timeout(60):
        await consumer.run(write, follow=False)
    return consumer


async def test_refused_record_becomes_a_dead_letter_and_the_batch_is_taken(client: redis.asyncio.Redis) -> None:
    await put(client, *range(1, 6))
    taken: list[int] = []

    def write(batch: list[Delivery]) -> None:
        if 3 in seqs(batch):
            raise RefusedError("no such line")
        taken.extend(seqs(batch))

    await run(client, write)
    assert taken == [1, 2, 4, 5]
    (letter,) = await letters(client)
    assert letter.reason == "refused: no such line"
    assert isinstance(letter.content, Record)
    assert letter.content.seq == 3
    assert await pending(client) == 0


async def test_database_away_makes_no_dead_letters_and_loses_nothing(client: redis.asyncio.Redis) -> None:
    await put(client, *range(1, 8))
    taken: list[int] = []
    tries = itertools.count()

    def write(batch: list[Delivery]) -> None:
        if next(tries) < 25:
            raise ConnectionError("away")
        taken.extend(seqs(batch))

    consumer = await run(client, write, batch=4)
    assert sorted(taken) == list(range(1, 8))
    assert await letters(client) == []
    assert consumer.counts["acknowledged"] == 7


async def test_database_away_for_a_single_record_makes_no_dead_letter(client: redis.asyncio.Redis) -> None:
    await put(client, 1)
    taken: list[int] = []
    tries = itertools.count()

    def write(batch: list[Delivery]) -> None:
        if next(tries) < 9:
            raise ConnectionError("away")
        taken.extend(seqs(batch))

    await run(client, write, max_deliveries=4)
    assert taken == [1]
    assert await letters(client) == []


@pytest.mark.parametrize("batch", [1, 4])
async def test_record_that_fails_while_others_are_taken_becomes_a_dead_letter(client: redis.asyncio.Redis, batch: int) -> None:
    await put(client, *range(1, 12))
    taken: list[int] = []

    def write(deliveries: list[Delivery]) -> None:
        if 2 in seqs(deliveries):
            raise KeyError("tariff")
        taken.extend(seqs(deliveries))

    consumer = Consumer(client, group="g", batch=batch, max_deliveries=4)
    task = asyncio.ensure_future(consumer.run(write))
    for number in range(12, 24):
        if await letters(client):
            break
        await put(client, number)
        await until(lambda: number in taken)  # noqa: B023  awaited at once
    (letter,) = await letters(client)
    consumer.stop()
    await task
    await consumer.close()
    assert letter.reason == "given out 4 times without success: KeyError: 'tariff'"
    assert 2 not in taken
    assert sorted(set(taken)) == sorted(taken), "nothing was given twice"


async def test_record_that_kills_its_consumers_becomes_a_dead_letter_and_delays_nobody(client: redis.asyncio.Redis) -> None:
    """Each round is a new process of the same name, as after a crash: it vanishes with the record in hand."""
    taken: list[int] = []
    numbers = iter(range(1, 100))
    for _ in range(30):
        await put(client, *itertools.islice(numbers, 2))
        consumer = Consumer(client, group="g", name="one", batch=2, max_deliveries=6)
        async for batch in consumer.batches(follow=False):
            if 3 in seqs(batch):
                break
            taken += seqs(batch)
            await consumer.acknowledge(batch)
        await vanish(consumer)
        if await letters(client):
            break
    (letter,) = await letters(client)
    assert letter.reason == "given out 6 times without success: its consumers died with it"
    assert await pending(client) == 0
    assert len(taken) == len(set(taken)), "others came once"
    assert set(range(1, next(numbers))) - set(taken) == {3}


async def test_outage_that_kills_consumer_after_consumer_makes_no_dead_letter(client: redis.asyncio.Redis) -> None:
    await put(client, 1, 2)
    for _ in range(20):
        consumer = Consumer(client, group="g", name="one", max_deliveries=5)
        async for _ in consumer.batches(follow=False):
            break
        await vanish(consumer)
    assert sorted(await drained(Consumer(client, group="g", name="one", max_deliveries=5))) == [1, 2]
    assert await letters(client) == []


async def test_write_that_takes_long_is_not_taken_over(client: redis.asyncio.Redis) -> None:
    await put(client, 1)
    going, release = threading.Event(), threading.Event()

    def write(batch: list[Delivery]) -> None:
        going.set()
        release.wait(90)

    slow = Consumer(client, group="g", idle_s=0.6)
    task = asyncio.ensure_future(slow.run(write, follow=False))
    await asyncio.to_thread(going.wait, 30)
    idle_ms = renewed = 0
    async with asyncio.timeout(60):
        while renewed < 4:
            (entry,) = await client.xpending_range(STREAM, "g", "-", "+", 1)
            idle_ms, before = entry["time_since_delivered"], idle_ms
            renewed += idle_ms < before
    release.set()
    await task
    await slow.close()
    assert await pending(client) == 0


async def test_flush_while_waiting_recreates_the_group_and_reads_on(valkey: Valkey) -> None:
    async with valkey.client() as client, asyncio.timeout(60):
        taken: list[int] = []
        told: list[str] = []
        consumer = Consumer(client, group="g", on_event=lambda kind, _: told.append(kind))
        task = asyncio.ensure_future(consumer.run(lambda batch: taken.extend(seqs(batch))))
        await put(client, 1)
        await until(lambda: taken == [1])
        await client.flushall()
        await put(client, 1, 2)
        await until(lambda: taken == [1, 1, 2])
        assert "group" in told
        consumer.stop()
        await task
        await consumer.close()


async def test_store_killed_with_a_batch_in_hand_is_waited_for(valkey: Valkey) -> None:
    async with valkey.client() as client, asyncio.timeout(60):
        await put(client, *range(1, 8))
        async with Consumer(client, group="g", batch=3) as consumer:
            taken: list[int] = []
            async for batch in consumer.batches(follow=False):
                if not taken:
                    valkey.kill()
                    starting = asyncio.to_thread(valkey.start)
                    acknowledging = asyncio.ensure_future(consumer.acknowledge(batch))
                    await starting
                    await acknowledging
                else:
                    await consumer.acknowledge(batch)
                taken += seqs(batch)
            assert sorted(set(taken)) == list(range(1, 8))
            assert consumer.counts["away"] > 0
    async with valkey.client() as client:
        assert await pending(client) == 0


async def test_store_away_for_longer_than_the_patience_raises(valkey: Valkey) -> None:
    valkey.kill()
    async with valkey.client() as client:
        with pytest.raises(redis.exceptions.ConnectionError):
            await drained(Consumer(client, group="g", patience_s=0.2))


async def test_key_of_another_type_raises_at_once(client: redis.asyncio.Redis) -> None:
    await client.set(STREAM, "x")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        await drained(Consumer(client, group="g"))


async def test_requeued_letter_comes_again_to_its_group_alone(client: redis.asyncio.Redis) -> None:
    await put(client, 1, 2)
    assert await drained(Consumer(client, group="other")) == [1, 2]

    def refuse(batch: list[Delivery]) -> None:
        raise RefusedError("not yet")

    await run(client, refuse)
    first, second = await letters(client)
    link = Link(client, timeout_s=5)
    assert await dead.requeue(link.call, STREAM, first.id) == 1
    await client.xtrim(STREAM, maxlen=0, approximate=False)
    assert await dead.requeue(link.call, STREAM, second.id) == 1
    assert await dead.requeue(link.call, STREAM, second.id) == 0
    await put(client, 3)
    consumer = Consumer(client, group="g")
    assert sorted(await drained(consumer)) == [2, 3], "the first one was trimmed behind our back, after it was requeued"
    assert [letter.reason for letter in await letters(client)] == ["trimmed from the stream before it was acknowledged"]
    assert await drained(Consumer(client, group="other")) == [3]
    assert await pending(client, "other") == 0
    assert await dead.drop(link.call, STREAM, (await letters(client))[0].id)
    assert await letters(client) == []
    await link.drop()


async def test_requeued_letter_whose_entry_is_there_becomes_pending_again(client: redis.asyncio.Redis) -> None:
    await put(client, 1)

    def refuse(batch: list[Delivery]) -> None:
        raise RefusedError("not yet")

    await run(client, refuse)
    (letter,) = await letters(client)
    link = Link(client, timeout_s=5)
    assert await dead.requeue(link.call, STREAM, letter.id) == 1
    await link.drop()
    assert await client.xlen(STREAM) == 1
    assert await drained(Consumer(client, group="g")) == [1]


def test_consume_in_a_program_without_a_loop_ends_when_nothing_is_left(valkey: Valkey) -> None:
    with redis.Redis(unix_socket_path=valkey.socket) as client:
        record = ended(1).record
        client.xadd(STREAM, {"id": record.id, "v": 1, "type": "final", "node": "n1", "seq": 1, "d": codec.encode(record)})
        taken: list[int] = []
        consume(f"unix://{valkey.socket}", lambda batch: taken.extend(seqs(batch)), group="g", follow=False)
        assert taken == [1]
        assert client.xpending(STREAM, "g")["pending"] == 0


def test_supersedes_final_replaces_and_is_never_replaced() -> None:
    start = draft(type="start")
    early, late = draft(type="interim", duration_ms=900), draft(type="interim", duration_ms=1800)
    final = draft(type="final", duration_ms=1000)
    order = [start, early, late, final]
    for (low, old), (high, new) in itertools.product(enumerate(order), repeat=2):
        if low != high:
            assert supersedes(new, old) is (high > low)
    assert supersedes(late, late)
    assert not supersedes(final, final)
    for records in itertools.permutations(order):
        assert latest(records) == [final]
    assert latest([early, draft("c2"), start]) == [early, draft("c2")]


def test_group_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="name"):
        Consumer(redis.asyncio.Redis(), group="")


@pytest.mark.parametrize(
    ("stream", "key"), [("sp:cdr", "{sp:cdr}:dead"), ("sp:{cdr:0}", "sp:{cdr:0}:dead"), ("a{b}", "a{b}:dead")]
)
def test_dead_key_is_in_the_slot_of_the_stream(stream: str, key: str) -> None:
    assert dead.dead_key(stream) == key
    with pytest.raises(ValueError, match="hash tag"):
        dead.dead_key("a{}b")
