"""store.slots: channels are exact (design, invariant 2), and the store is never in the way (invariant 5)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from typing import Literal

import pytest
from store_server import Connect, Relay, Server, eventually, eventually_async

from sipproxy.engine.actions import Holder, Slot, TakeSlot
from sipproxy.store import keys
from sipproxy.store.connection import Bounds, State
from sipproxy.store.live_slots import slots_of
from sipproxy.store.slots import BEAT_S, SlotResult, Slots

LEASE_MS = 60_000
HOLDER = Holder("n1", 1_790_000_000_000, "alice", "outgoing")
DEADLINE_MS = 100


def slot(line: str, call: str) -> Slot:
    return Slot("line", line, call)


def leases(live: Iterable[tuple[str, str]]) -> list[tuple[Slot, Holder]]:
    return [(slot(line, call), HOLDER) for line, call in live]


def take(slots: Slots, line: str, call: str, limit: int, lease_ms: int, on_result: Callable[[SlotResult], None]) -> None:
    slots.take(TakeSlot(slot(line, call), HOLDER, limit, None, 9.0), lease_ms, on_result)


async def used(slots: Slots, line: str) -> list[tuple[str, int]]:
    """The line's members, by lease."""
    found = await slots_of(slots._store.client, "line", [line])
    return [(live.slot.member, live.lease_ms) for live in sorted(found, key=lambda live: live.lease_ms)]


async def taken(slots: Slots, line: str, call: str, limit: int, lease_ms: int = LEASE_MS) -> SlotResult:
    results: list[SlotResult] = []
    take(slots, line, call, limit, lease_ms, results.append)
    await eventually(lambda: results)
    return results[0]


async def calls(slots: Slots, line: str) -> set[str]:
    return {call for call, _ in await used(slots, line)}


async def settled(slots: Slots) -> None:
    await eventually(lambda: slots.owed == 0, "all releases and refreshes confirmed")


async def test_take_below_at_and_beyond_limit(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    results: list[SlotResult] = []
    for call in ("a", "b", "c"):
        take(slots, "l", call, 2, LEASE_MS, results.append)
    assert results == []  # never before it has returned
    await eventually(lambda: len(results) == 3)
    assert results == [SlotResult(taken=True, used=1), SlotResult(taken=True, used=2), SlotResult(taken=False, used=2)]
    assert await calls(slots, "l") == {"a", "b"}


@pytest.mark.parametrize("limit", [0, -1, -5])
async def test_take_limit_of_nothing_is_refused(server: Server, connect: Connect, limit: int) -> None:
    slots = Slots(await connect(server.url))
    assert await taken(slots, "l", "a", limit) == SlotResult(taken=False, used=0)
    assert server.ask("EXISTS", keys.slots("l")) == 0


async def test_take_again_refreshes_and_counts_once_even_at_a_lowered_limit(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    await taken(slots, "l", "a", 2, lease_ms=1000)
    await taken(slots, "l", "b", 2, lease_ms=1000)
    assert await taken(slots, "l", "a", 1, lease_ms=30_000) == SlotResult(taken=True, used=2)
    (_, b_until), (last, a_until) = await used(slots, "l")
    assert last == "a"
    assert a_until > b_until + 20_000


async def test_take_lines_do_not_share_channels(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    assert (await taken(slots, "l", "a", 1)).taken
    assert (await taken(slots, "m", "a", 1)).taken


async def test_take_with_a_changed_clock_of_the_node_counts_by_the_server(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    seconds, micros = server.ask("TIME")  # type: ignore[misc]
    await taken(slots, "l", "a", 2, lease_ms=5000)
    until = server.ask("ZSCORE", keys.slots("l"), "a")
    assert isinstance(until, float)
    assert 0 <= int(until) - 5000 - (int(seconds) * 1000 + int(micros) // 1000) < 2000


async def test_lease_that_ends_frees_its_slot_and_the_key(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    await taken(slots, "l", "a", 1, lease_ms=60)
    assert (await taken(slots, "l", "b", 1)).taken is False
    await eventually(lambda: server.ask("EXISTS", keys.slots("l")) == 0)
    assert await taken(slots, "l", "b", 1) == SlotResult(taken=True, used=1)


async def test_key_lives_as_long_as_its_longest_lease(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    await taken(slots, "l", "long", 2, lease_ms=50_000)
    await taken(slots, "l", "short", 2, lease_ms=1000)
    ttl = server.ask("PTTL", keys.slots("l"))
    assert isinstance(ttl, int)
    assert 40_000 < ttl <= 50_000


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
    slots = Slots(await connect(server.url))
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


async def test_take_with_server_away_is_answered_at_once(doomed: Server, connect: Connect) -> None:
    store = await connect(doomed.url)
    slots = Slots(store)
    doomed.kill()
    await eventually(lambda: store.state is State.AWAY)
    results: list[SlotResult] = []
    take(slots, "l", "a", 1, LEASE_MS, results.append)
    assert results == []
    await asyncio.sleep(0)
    assert results == [SlotResult(taken=None, used=0)]


async def test_take_that_leaves_while_another_one_is_overdue_is_not_decided_before_its_answer_was_read(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This loop's lateness is not the store's: what has come is read before anything is decided without the store."""
    slots = Slots(await connect(server.url, DEADLINE_MS))
    loop, results, fire = asyncio.get_running_loop(), list[SlotResult](), slots._on_deadline

    def fired() -> None:
        if not results:
            take(slots, "l", "b", 3, LEASE_MS, results.append)
            loop.call_soon(loop.call_soon, time.sleep, 3 * DEADLINE_MS / 1000)  # behind b's departure, before the decision
        fire()

    monkeypatch.setattr(slots, "_on_deadline", fired)
    assert (await taken(slots, "l", "a", 3)).taken  # its timer is still to fire
    await eventually(lambda: results)
    assert results == [SlotResult(taken=True, used=2)]
    assert slots.timeouts == 0


async def test_take_without_answer_is_decided_at_the_deadline_and_the_late_grant_released(
    relay: Relay, connect: Connect
) -> None:
    store = await connect(relay.url, DEADLINE_MS, Bounds(stall_ms=10_000))
    slots = Slots(store)
    await taken(slots, "l", "first", 9)
    relay.hold()
    loop = asyncio.get_running_loop()
    asked_at, results = loop.time(), []
    take(slots, "l", "a", 9, LEASE_MS, results.append)
    take(slots, "l", "b", 9, LEASE_MS, results.append)
    await eventually(lambda: len(results) == 2)
    assert loop.time() - asked_at >= DEADLINE_MS / 1000 - 0.01
    assert results == [SlotResult(taken=None, used=0)] * 2
    await eventually(lambda: store.state is State.SLOW)
    slots.release(slot("l", "a"))  # refused by the caller; b goes on
    relay.let_go()
    await settled(slots)
    await eventually(lambda: slots.late == 2)
    assert (slots.timeouts, slots.late_grants) == (2, 2)
    assert len(results) == 2
    assert await calls(slots, "l") == {"first", "b"}


@pytest.mark.parametrize("is_sent", [False, True])
async def test_take_in_a_busy_loop_is_answered_by_the_store_that_was_in_time(
    server: Server, connect: Connect, *, is_sent: bool
) -> None:
    """Many calls at once may hold the loop for longer than the deadline: that is no standstill of the store."""
    slots = Slots(await connect(server.url, DEADLINE_MS))
    await taken(slots, "l", "first", 9)
    results: list[SlotResult] = []
    take(slots, "l", "a", 9, LEASE_MS, results.append)
    if is_sent:
        await asyncio.sleep(0)
    time.sleep(3 * DEADLINE_MS / 1000)  # noqa: ASYNC251  # the fault that is tested
    await eventually(lambda: results)
    assert results == [SlotResult(taken=True, used=2)]
    assert slots.timeouts == 0


async def test_time_in_which_this_loop_was_busy_is_not_counted_as_waiting_for_the_store(
    server: Server, connect: Connect
) -> None:
    """Invariant 5 bounds what the store costs a call, and what is left of it is what the next slot is asked for with."""
    slots = Slots(await connect(server.url, DEADLINE_MS))
    await taken(slots, "l", "first", 9)
    loop, results = asyncio.get_running_loop(), list[SlotResult]()
    begun, busy_s = loop.time(), 3 * DEADLINE_MS / 1000
    take(slots, "l", "a", 9, LEASE_MS, results.append)
    await asyncio.sleep(0)  # asked
    time.sleep(busy_s)  # noqa: ASYNC251  # the fault that is tested
    await eventually(lambda: results)
    assert results[0].taken
    assert results[0].waited_s <= loop.time() - begun - busy_s + 2 * BEAT_S


async def test_time_in_which_the_store_was_silent_is_counted_in_full(relay: Relay, connect: Connect) -> None:
    slots = Slots(await connect(relay.url, DEADLINE_MS, Bounds(stall_ms=10_000)))
    relay.hold()
    result = await taken(slots, "l", "a", 9)
    assert (result.taken, result.waited_s) == (None, pytest.approx(DEADLINE_MS / 1000))
    relay.let_go()


async def test_take_deadlines_are_kept_one_by_one(relay: Relay, connect: Connect) -> None:
    slots = Slots(await connect(relay.url, DEADLINE_MS, Bounds(stall_ms=10_000)))
    relay.hold()
    loop = asyncio.get_running_loop()
    waited: list[float] = []

    def noted(asked_at: float) -> Callable[[SlotResult], None]:
        return lambda _: waited.append(loop.time() - asked_at)

    for number in range(8):
        take(slots, "l", f"c{number}", 9, LEASE_MS, noted(loop.time()))
        await asyncio.sleep(0.02)
    await eventually(lambda: len(waited) == 8)
    assert min(waited) >= DEADLINE_MS / 1000 - 0.01
    relay.let_go()


async def test_take_from_within_a_deadline_result_keeps_the_earlier_deadline(relay: Relay, connect: Connect) -> None:
    slots = Slots(await connect(relay.url, DEADLINE_MS, Bounds(stall_ms=10_000)))
    relay.hold()
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    order: list[str] = []
    again: list[SlotResult] = []

    def first(_: SlotResult) -> None:
        order.append("first")
        take(slots, "l", "again", 9, LEASE_MS, again.append)

    def second(_: SlotResult) -> None:
        order.append(f"second {loop.time() - started_at < 2 * DEADLINE_MS / 1000}")

    take(slots, "l", "a", 9, LEASE_MS, first)
    await asyncio.sleep(0.03)
    take(slots, "l", "b", 9, LEASE_MS, second)
    await eventually(lambda: again)
    assert order == ["first", "second True"]
    relay.let_go()


async def test_release_while_away_is_made_up_for(relay: Relay, connect: Connect) -> None:
    store = await connect(relay.url)
    slots = Slots(store)
    for call in ("a", "b", "c"):
        await taken(slots, "l", call, 3)
    relay.refusing = True
    relay.cut()
    await eventually(lambda: store.state is State.AWAY)
    slots.release(slot("l", "a"))
    slots.release(slot("l", "b"))
    slots.refresh(leases([("l", "c"), ("l", "d")]), LEASE_MS)  # d was admitted without the store
    assert slots.owed == 4
    relay.refusing = False
    await eventually(lambda: store.state is State.UP)
    await settled(slots)
    assert await calls(slots, "l") == {"c", "d"}


@pytest.mark.parametrize("kind", ["line", "trunk"])
async def test_old_copy_of_the_store_keeps_no_slot_of_a_call_that_ended(
    relay: Relay, server: Server, connect: Connect, kind: Literal["line", "trunk"]
) -> None:
    """Design §8: it would refuse calls until the lease ends. What lives is not released."""
    store = await connect(relay.url)
    slots = Slots(store)
    ended, again, live = (Slot(kind, "l", call) for call in ("ended", "again", "live"))

    async def took(slot: Slot) -> bool | None:
        results: list[SlotResult] = []
        slots.take(TakeSlot(slot, HOLDER, 3, None, 9.0), LEASE_MS, results.append)
        await eventually(lambda: results)
        return results[0].taken

    assert [await took(slot) for slot in (ended, again, live)] == [True] * 3
    names = keys.slots("l", kind), keys.holders("l", kind)
    copy = [server.ask("DUMP", name) for name in names]
    slots.release(ended)
    slots.release(again)
    await settled(slots)
    assert await took(again)
    relay.refusing = True
    relay.cut()
    await eventually(lambda: store.state is State.AWAY)
    for name, data in zip(names, copy, strict=True):
        server.ask("RESTORE", name, 0, data, "REPLACE")
    relay.refusing = False
    await eventually(lambda: store.state is State.UP)
    await settled(slots)
    found = await slots_of(store.client, kind, ["l"])
    assert {each.slot for each in found} == {again, live}


async def test_releases_that_would_be_repeated_are_bounded_and_counted(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipproxy.store.slots.MAX_REPEATED", 10)
    slots = Slots(await connect(server.url))
    await taken(slots, "l", "a", 3)
    for number in range(25):
        slots.release(slot("l", f"c{number}"))
    assert slots.unrepeatable == 15
    await settled(slots)
    slots.release_again()
    assert slots.owed == 10
    await settled(slots)


async def test_releases_older_than_a_lease_are_not_repeated(server: Server, connect: Connect) -> None:
    slots = Slots(await connect(server.url))
    await taken(slots, "l", "a", 3, lease_ms=20)
    slots.release(slot("l", "a"))
    await settled(slots)
    await asyncio.sleep(0.05)
    slots.release_again()
    assert slots.owed == 0
    assert slots.unrepeatable == 0


async def test_release_whose_reply_is_lost_is_repeated(relay: Relay, connect: Connect) -> None:
    store = await connect(relay.url)
    slots = Slots(store)
    await taken(slots, "l", "a", 3)
    relay.delay_requests()  # the request never arrives
    slots.release(slot("l", "a"))
    await eventually(lambda: store.stats.connects == 2)
    await settled(slots)
    assert await calls(slots, "l") == set()


async def test_release_after_a_take_left_in_a_dropped_connection_leaks_nothing(relay: Relay, connect: Connect) -> None:
    store = await connect(relay.url, DEADLINE_MS)
    slots = Slots(store)
    await taken(slots, "l", "x", 3)
    relay.delay_requests()
    assert (await taken(slots, "l", "a", 3)).taken is None
    slots.release(slot("l", "a"))
    await eventually(lambda: store.stats.connects == 2)
    await settled(slots)
    await relay.deliver_requests()
    for _ in range(50):
        assert await calls(slots, "l") == {"x"}


async def test_full_server_goes_on_counting_channels(doomed: Server, connect: Connect) -> None:
    """The script's first write frees, so the server lets it finish: memory is short, but channels stay exact."""
    slots = Slots(await connect(doomed.url))
    await taken(slots, "l", "a", 2)
    doomed.ask("CONFIG", "SET", "maxmemory", "1")
    assert await taken(slots, "l", "b", 2) == SlotResult(taken=True, used=2)
    assert await taken(slots, "l", "c", 2) == SlotResult(taken=False, used=2)
    slots.release(slot("l", "a"))
    await settled(slots)
    assert await calls(slots, "l") == {"b"}


@pytest.mark.parametrize(
    ("break_", "mend"),
    [
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        (("CONFIG", "SET", "min-replicas-to-write", "1"), ("CONFIG", "SET", "min-replicas-to-write", "0")),
    ],
)
async def test_refusing_server_answers_takes_with_none_and_catches_up(
    doomed: Server, connect: Connect, break_: tuple[str, ...], mend: tuple[str, ...]
) -> None:
    store = await connect(doomed.url)
    slots = Slots(store)
    await taken(slots, "l", "a", 3)
    await taken(slots, "l", "b", 3)
    doomed.ask(*break_)
    assert await taken(slots, "l", "c", 3) == SlotResult(taken=None, used=0)
    slots.release(slot("l", "a"))
    slots.refresh(leases([("l", "b"), ("l", "c")]), LEASE_MS)
    await eventually(lambda: store.state is not State.UP)
    doomed.ask(*mend)
    await eventually(lambda: store.state is State.UP)
    await settled(slots)
    assert await calls(slots, "l") == {"b", "c"}


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
    store = await connect(relay.url, bounds=Bounds(commands=20, stall_ms=10_000))
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
