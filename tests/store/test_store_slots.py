"""store.slots: channels are exact (design, invariant 2), and the store is never in the way (invariant 5)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from slot_steps import LEASE_MS, calls, leases, settled, slot, take, taken, used
from store_server import Connect, Relay, Server, eventually, eventually_async

from sipproxy.store import keys
from sipproxy.store.connection import Bounds, State
from sipproxy.store.slots import SlotResult, Slots


async def test_take_below_at_and_beyond_limit(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    results: list[SlotResult] = []
    awaited = slots.awaited
    for call in ("a", "b", "c"):
        take(slots, "l", call, 2, LEASE_MS, results.append)
    assert results == []  # never before it has returned
    assert len(awaited) == 3
    await eventually(lambda: len(results) == 3)
    assert not awaited
    assert results == [SlotResult(taken=True, used=1), SlotResult(taken=True, used=2), SlotResult(taken=False, used=2)]
    assert await calls(slots, "l") == {"a", "b"}


@pytest.mark.parametrize("limit", [0, -1, -5])
async def test_take_limit_of_nothing_is_refused(server: Server, connect: Connect, limit: int) -> None:
    slots = Slots(await connect(server.url))
    assert await taken(slots, "l", "a", limit) == SlotResult(taken=False, used=0)
    assert server.ask("EXISTS", keys.slots("l")) == 0


async def test_take_again_refreshes_and_counts_once_even_at_a_lowered_limit(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    await taken(slots, "l", "a", 2)
    await taken(slots, "l", "b", 2)
    assert await taken(slots, "l", "a", 1, lease_ms=2 * LEASE_MS) == SlotResult(taken=True, used=2)
    (_, b_until), (last, a_until) = await used(slots, "l")
    assert last == "a"
    assert a_until > b_until + LEASE_MS / 2


async def test_take_lines_do_not_share_channels(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    assert (await taken(slots, "l", "a", 1)).taken
    assert (await taken(slots, "m", "a", 1)).taken


async def test_take_with_a_changed_clock_of_the_node_counts_by_the_server(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    seconds, micros = server.ask("TIME")  # type: ignore[misc]
    await taken(slots, "l", "a", 2, lease_ms=600_000)
    until = server.ask("ZSCORE", keys.slots("l"), "a")
    assert isinstance(until, float)
    assert 0 <= int(until) - 600_000 - (int(seconds) * 1000 + int(micros) // 1000) < 120_000


async def test_lease_that_ends_frees_its_slot_and_the_key(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    results: list[SlotResult] = []
    take(slots, "l", "a", 1, 300, results.append)  # both leave together
    take(slots, "l", "b", 1, LEASE_MS, results.append)
    await eventually(lambda: len(results) == 2)
    assert [result.taken for result in results] == [True, False]
    await eventually(lambda: server.ask("EXISTS", keys.slots("l")) == 0)
    assert await taken(slots, "l", "b", 1) == SlotResult(taken=True, used=1)


async def test_key_lives_as_long_as_its_longest_lease(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    await taken(slots, "l", "long", 2, lease_ms=500_000)
    await taken(slots, "l", "short", 2, lease_ms=1000)
    ttl = server.ask("PTTL", keys.slots("l"))
    assert isinstance(ttl, int)
    assert 300_000 < ttl <= 500_000


async def test_release_twice_or_of_nothing_changes_nothing(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    await taken(slots, "l", "a", 2)
    await taken(slots, "l", "b", 2)
    for call in ("a", "a", "never"):
        slots.release(slot("l", call))
    await settled(slots)
    assert await calls(slots, "l") == {"b"}


async def test_refresh_reasserts_after_flush_beyond_any_limit(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    live = [("l", "a"), ("l", "b"), ("m", "c")]
    for line, call in live:
        await taken(slots, line, call, 9)
    server.ask("FLUSHALL")
    slots.refresh(leases(live), LEASE_MS)
    await settled(slots)
    assert await calls(slots, "l") == {"a", "b"}
    assert await calls(slots, "m") == {"c"}
    assert await taken(slots, "l", "d", 2) == SlotResult(taken=False, used=2)


async def test_release_right_after_refresh_of_many_wins_and_is_not_delayed(server: Server, connect: Connect) -> None:
    """The windows of a refresh must neither hold a release back nor bring a released call back."""
    slots = Slots(await connect(server.url, deadline_ms=60_000))
    live = [(f"l{number}", "call") for number in range(3000)]
    slots.refresh(leases(live), LEASE_MS)
    for line, call in live[::2]:
        slots.release(slot(line, call))
    results: list[SlotResult] = []
    take(slots, live[2998][0], "next", 1, LEASE_MS, results.append)
    await eventually(lambda: results)
    assert results == [SlotResult(taken=True, used=1)]
    assert slots.owed > 0  # the refresh is still going on
    await settled(slots)
    assert len(server.ask("KEYS", "sp:*:slots")) == 1501  # type: ignore[arg-type]


async def test_refresh_with_ten_thousand_calls_leaves_takes_their_deadline(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    slots.refresh(leases([(f"l{number}", "call") for number in range(10_000)]), LEASE_MS)
    assert (await taken(slots, "other", "a", 1)).taken is True
    assert slots.owed > 5000
    await settled(slots)


async def test_script_flushed_is_sent_again_without_losing_takes_or_refreshes(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    slots = Slots(store)
    await taken(slots, "l", "a", 2)
    server.ask("SCRIPT", "FLUSH")
    results: list[SlotResult] = []
    take(slots, "l", "b", 2, LEASE_MS, results.append)
    take(slots, "l", "c", 2, LEASE_MS, results.append)
    await eventually(lambda: len(results) == 2)
    assert [result.taken for result in results] == [True, False]
    assert store.stats.errors["NOSCRIPT"] == 2
    server.ask("SCRIPT", "FLUSH")
    slots.refresh(leases([("l", "a"), ("m", "x")]), LEASE_MS)
    await settled(slots)
    assert await calls(slots, "l") == {"a", "b"}
    assert await calls(slots, "m") == {"x"}


async def test_script_flushed_take_released_meanwhile_is_not_repeated(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    await taken(slots, "l", "a", 2)
    server.ask("SCRIPT", "FLUSH")
    results: list[SlotResult] = []
    take(slots, "l", "b", 2, LEASE_MS, results.append)
    slots.release(slot("l", "b"))
    await eventually(lambda: results)
    await settled(slots)
    assert results == [SlotResult(taken=None, used=0)]
    assert await calls(slots, "l") == {"a"}


async def test_wish_for_a_key_of_another_type_is_dropped_by_name(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    server.ask("SET", keys.slots("l"), "x")
    assert (await taken(slots, "l", "a", 3)).taken is None
    slots.release(slot("l", "a"))
    slots.refresh(leases([("l", "a"), ("m", "b")]), LEASE_MS)
    await settled(slots)
    assert slots.dropped.get("WRONGTYPE") == 1 or sum(slots.dropped.values()) >= 1
    assert await calls(slots, "m") == {"b"}


async def test_names_with_odd_characters_keep_apart(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    for line in ("a b", "a}b", "ä", "a\udcff", "", "*"):
        assert await taken(slots, line, f"c{line}", 1) == SlotResult(taken=True, used=1)
        assert await calls(slots, line) == {f"c{line}"}


async def test_concurrent_takes_of_many_nodes_never_exceed_the_limit(server: Server, connect: Connect) -> None:
    nodes = [Slots(await connect(server.url)) for _ in range(4)]
    results: list[tuple[str, SlotResult]] = []

    def noted(call: str) -> Callable[[SlotResult], None]:
        return lambda result: results.append((call, result))

    for number in range(400):
        call = f"c{number}"
        take(nodes[number % 4], "l", call, 7, LEASE_MS, noted(call))
        if random.random() < 0.1:
            await asyncio.sleep(0)
    await eventually(lambda: len(results) == 400)
    granted = {call for call, result in results if result.taken}
    assert len(granted) == 7
    assert granted == await calls(nodes[0], "l")
    assert max(result.used for _, result in results) == 7


@pytest.mark.plain_alone
async def test_refusals_beyond_the_backlog_bound_are_counted(
    doomed: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipproxy.store.slots.MAX_OWED", 10)
    store = await connect(doomed.url)
    slots = Slots(store)
    doomed.kill()
    await eventually(lambda: store.state is State.AWAY)
    for number in range(25):
        slots.release(slot("l", f"c{number}"))
    assert slots.owed == 10
    assert slots.dropped == {"FULL": 15}
    doomed.start()
    await settled(slots)


async def test_store_full_holds_wishes_and_sends_them_later(relay: Relay, connect: Connect) -> None:
    store = await connect(relay.url, bounds=Bounds(commands=20, stall_ms=60_000))
    slots = Slots(store)
    relay.hold()
    slots.refresh(leases([(f"l{number}", "c") for number in range(100)]), LEASE_MS)
    await eventually(lambda: store.stats.errors.get("FULL"))
    refused = store.stats.errors["FULL"]
    await asyncio.sleep(0.05)
    assert store.stats.errors["FULL"] <= refused + 100  # it does not spin
    relay.let_go()
    await settled(slots)
    await eventually_async(lambda: calls(slots, "l99"))
