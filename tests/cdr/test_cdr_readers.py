"""cdr.readers against a real server: how far behind each group is, and that nothing old is shown."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

import cdr.readers
from cdr.dead import dead_key
from cdr.lease import pulls_key
from cdr.readers import Backlog, Readers, look
from cdr.wire import Link
from sipproxy.metrics import Metrics
from sipproxy.observe import register_readers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import redis.asyncio
    from valkey_process import Valkey

STREAM = "sp:cdr"
HOUR_MS = 3_600_000
SLOW_S = 300.0  # that the test itself may take between writing and asking


@pytest.fixture
async def link(client: redis.asyncio.Redis) -> AsyncIterator[Link]:
    made = Link(client, timeout_s=5)
    yield made
    await made.drop()


def about(seconds: float) -> object:
    """Not less, and not so much more that another entry could be meant."""
    return pytest.approx(seconds + SLOW_S / 2, abs=SLOW_S / 2)


async def put(client: redis.asyncio.Redis, *hours_ago: int) -> list[bytes]:
    now = int(time.time() * 1000)
    return [await client.xadd(STREAM, {"n": n}, id=f"{now - n * HOUR_MS}-0") for n in hours_ago]


async def test_look_without_a_stream_tells_that_nothing_is_there(link: Link) -> None:
    assert await look(link, STREAM) == (0, {}, 0)


async def test_look_tells_what_a_group_has_not_acknowledged_given_out_or_not(client: redis.asyncio.Redis, link: Link) -> None:
    first, second, third = await put(client, 5, 3, 2)
    for group in ("billing", "fraud"):
        await client.xgroup_create(STREAM, group, "0")
    await client.xadd(dead_key(STREAM), {"reason": "no record"})
    await client.hset(pulls_key(STREAM), mapping={"billing": int(time.time() * 1000) - 2 * HOUR_MS, "gone": 1})

    await client.xreadgroup("billing", "c", {STREAM: ">"}, count=2)
    seen = await look(link, STREAM)
    assert (seen.letters, seen.untold, set(seen.groups)) == (1, 0, {"billing", "fraud"})
    assert seen.groups["billing"] == Backlog(3, about(5 * 3600), about(2 * 3600))
    assert seen.groups["fraud"] == Backlog(3, about(5 * 3600), None)

    await client.xack(STREAM, "billing", first)
    assert (await look(link, STREAM)).groups["billing"] == Backlog(2, about(3 * 3600), about(2 * 3600)), "given out"
    await client.xack(STREAM, "billing", second)
    assert (await look(link, STREAM)).groups["billing"] == Backlog(1, about(2 * 3600), about(2 * 3600)), "not given out"
    await client.xreadgroup("billing", "c", {STREAM: ">"})
    await client.xack(STREAM, "billing", third)
    assert (await look(link, STREAM)).groups["billing"] == Backlog(0, 0.0, about(2 * 3600))


async def test_look_at_a_pending_entry_that_was_trimmed_tells_its_age(client: redis.asyncio.Redis, link: Link) -> None:
    await put(client, 5)
    await client.xgroup_create(STREAM, "billing", "0")
    await client.xreadgroup("billing", "c", {STREAM: ">"})
    await client.xtrim(STREAM, maxlen=0, approximate=False)
    assert (await look(link, STREAM)).groups["billing"] == Backlog(1, about(5 * 3600), None)


async def test_look_at_a_group_whose_number_is_unknown_tells_its_age(client: redis.asyncio.Redis, link: Link) -> None:
    names = await put(client, 5, 4, 3)
    await client.xgroup_create(STREAM, "billing", "0")
    await client.xreadgroup("billing", "c", {STREAM: ">"}, count=1)
    await client.xack(STREAM, "billing", names[0])
    await client.xdel(STREAM, names[1])
    assert (await look(link, STREAM)).groups["billing"] == Backlog(None, about(3 * 3600), None)


async def test_more_groups_than_the_bound_are_counted_and_the_furthest_behind_are_told(
    client: redis.asyncio.Redis, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cdr.readers, "MAX_GROUPS", 2)
    names = await put(client, 5, 4, 3)
    for group, begins in {"done": names[2], "late": names[0], "new": "0"}.items():
        await client.xgroup_create(STREAM, group, begins)
    seen = await look(link, STREAM)
    assert (set(seen.groups), seen.untold) == ({"new", "late"}, 1)


async def shown(metrics: Metrics) -> dict[str, float]:
    families = list(text_string_to_metric_families((await metrics.text()).decode()))
    samples = [sample for family in families for sample in family.samples if sample.name.startswith("sipproxy_cdr_")]
    return {" ".join([sample.name.removeprefix("sipproxy_cdr_"), *sample.labels.values()]): sample.value for sample in samples}


async def test_metrics_of_a_store_that_stands_still_are_absent_until_it_is_back(
    valkey: Valkey, client: redis.asyncio.Redis
) -> None:
    await put(client, 5)
    await client.xgroup_create(STREAM, 'b"1', "0")
    await client.hset(pulls_key(STREAM), 'b"1', int(time.time() * 1000) - HOUR_MS)
    readers, metrics = Readers(client, STREAM, every_s=0.02, timeout_s=0.3), Metrics()
    register_readers(metrics, readers)
    assert (await shown(metrics)) == {}, "nothing is known yet"
    running = asyncio.create_task(readers.run())

    async def until(known: bool) -> None:
        async with asyncio.timeout(60):
            while (readers.seen is not None) is not known:  # noqa: ASYNC110  what the code under test shows
                await asyncio.sleep(0.01)

    expected = {
        "dead_letters": 0.0,
        "groups_untold": 0.0,
        'group_entries b"1': 1.0,
        'group_seconds b"1': about(5 * 3600),
        'pull_seconds b"1': about(3600),
    }
    try:
        await until(True)
        assert (await shown(metrics)) == expected
        valkey.signal(signal.SIGSTOP)
        try:
            await until(False)
            assert (await shown(metrics)) == {}
        finally:
            valkey.signal(signal.SIGCONT)
        await until(True)
        assert (await shown(metrics)) == expected
    finally:
        running.cancel()
        await asyncio.wait([running])
