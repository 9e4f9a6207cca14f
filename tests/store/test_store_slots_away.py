"""store.slots while the store is away, late, full, refusing or an old copy: deadlines, and what is made up for (design §8)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
from slot_steps import DEADLINE_MS, HOLDER, LEASE_MS, calls, leases, served, settled, slot, take, taken
from store_server import BOUND_S, PATIENT, Connect, Relay, Server, eventually, impatient

from sipproxy.engine.actions import Slot, TakeSlot
from sipproxy.store import keys
from sipproxy.store.connection import State
from sipproxy.store.live_slots import slots_of
from sipproxy.store.slots import BEAT_S, SlotResult, Slots


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


@pytest.mark.plain_alone
async def test_take_that_leaves_while_another_one_is_overdue_is_not_decided_before_its_answer_was_read(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This loop's lateness is not the store's: what has come is read before anything is decided without the store."""
    slots = Slots(await connect(server.url, DEADLINE_MS))
    loop, results, fire, asked = asyncio.get_running_loop(), list[SlotResult](), slots._on_deadline, list[float]()

    def fired() -> None:
        if not asked:
            asked.append(loop.time())
            take(slots, "l", "b", 3, LEASE_MS, results.append)
            # behind b's departure, before the decision
            loop.call_soon(loop.call_soon, served, server, "l", "b", 3 * DEADLINE_MS / 1000)
        fire()

    monkeypatch.setattr(slots, "_on_deadline", fired)
    take(slots, "l", "a", 3, LEASE_MS, results.append)
    await asyncio.sleep(0)  # it has left
    served(server, "l", "a")  # its timer is still to fire
    await eventually(lambda: len(results) == 2)
    assert results == [SlotResult(taken=True, used=1), SlotResult(taken=True, used=2)]
    assert slots.timeouts == 0


async def test_nothing_is_kept_and_no_timer_runs_on_for_takes_that_have_their_answer(relay: Relay, connect: Connect) -> None:
    """While one waits, a timer tells how late this loop is; its deadline is long after its answer."""
    slots = Slots(await connect(relay.url, 10 * int(1000 * BOUND_S)))
    assert (await taken(slots, "l", "a", 9)).taken
    await eventually(lambda: slots._lateness._due is None)
    relay.hold()
    results: list[SlotResult] = []
    take(slots, "l", "b", 9, LEASE_MS, results.append)
    await eventually(lambda: slots._lateness._due is not None)
    assert slots._takes
    relay.cut()
    await eventually(lambda: results)
    assert results == [SlotResult(taken=None, used=0)]
    assert not slots._takes


async def test_take_without_answer_is_decided_at_the_deadline_and_the_late_grant_released(
    relay: Relay, connect: Connect
) -> None:
    store = await connect(relay.url)
    slots = Slots(store)
    await taken(slots, "l", "first", 9)
    store.deadline_s = DEADLINE_MS / 1000
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
    slots = Slots(store := await connect(server.url))
    await taken(slots, "l", "first", 9)
    store.deadline_s = DEADLINE_MS / 1000
    results: list[SlotResult] = []
    take(slots, "l", "a", 9, LEASE_MS, results.append)
    if is_sent:
        await asyncio.sleep(0)
        served(server, "l", "a", 3 * DEADLINE_MS / 1000)
    else:
        time.sleep(3 * DEADLINE_MS / 1000)  # noqa: ASYNC251  # the fault that is tested
        asyncio.get_running_loop().call_soon(served, server, "l", "a")  # behind its departure
    await eventually(lambda: results)
    assert results == [SlotResult(taken=True, used=2)]
    assert slots.timeouts == 0


async def test_time_in_which_this_loop_was_busy_is_not_counted_as_waiting_for_the_store(
    server: Server, connect: Connect
) -> None:
    """Invariant 5 bounds what the store costs a call, and what is left of it is what the next slot is asked for with."""
    slots = Slots(store := await connect(server.url))
    await taken(slots, "l", "first", 9)
    store.deadline_s = DEADLINE_MS / 1000
    loop, results = asyncio.get_running_loop(), list[SlotResult]()
    begun = loop.time()
    take(slots, "l", "a", 9, LEASE_MS, results.append)
    await asyncio.sleep(0)  # asked
    busy_s = served(server, "l", "a", 3 * DEADLINE_MS / 1000)
    await eventually(lambda: results)
    assert results[0].taken
    assert results[0].waited_s <= loop.time() - begun - busy_s + 2 * BEAT_S


async def test_loop_is_not_woken_for_its_lateness_once_no_take_waits(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(await connect(server.url))
    loop, set_at = asyncio.get_running_loop(), list[asyncio.TimerHandle]()
    call_at = loop.call_at

    def noted(when: float, callback: Callable[..., object], *arguments: object, **named: Any) -> asyncio.TimerHandle:
        handle = call_at(when, callback, *arguments, **named)
        if callback == slots._lateness._beat:
            set_at.append(handle)
        return handle

    monkeypatch.setattr(loop, "call_at", noted)
    await taken(slots, "l", "a", 9)
    assert set_at, "it is looked at while a take waits"
    assert set_at[-1].cancelled()


async def test_time_in_which_the_store_was_silent_is_counted_in_full(relay: Relay, connect: Connect) -> None:
    slots = Slots(await connect(relay.url, DEADLINE_MS))
    relay.hold()
    result = await taken(slots, "l", "a", 9)
    assert (result.taken, result.waited_s) == (None, pytest.approx(DEADLINE_MS / 1000))
    relay.let_go()


async def test_take_deadlines_are_kept_one_by_one(relay: Relay, connect: Connect) -> None:
    slots = Slots(await connect(relay.url, DEADLINE_MS))
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
    slots = Slots(await connect(relay.url, int(4000 * BOUND_S)))
    relay.hold()
    order: list[str] = []

    def first(_: SlotResult) -> None:
        order.append("first")
        take(slots, "l", "again", 9, LEASE_MS, lambda _: order.append("again"), wait_s=4 * BOUND_S)

    take(slots, "l", "a", 9, LEASE_MS, first, wait_s=0.1)
    take(slots, "l", "b", 9, LEASE_MS, lambda _: order.append("second"), wait_s=0.2)
    await eventually(lambda: len(order) == 2)
    assert order == ["first", "second"]
    relay.let_go()
    await eventually(lambda: len(order) == 3)


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
        slots.take(TakeSlot(slot, HOLDER, 3, None, 90.0), LEASE_MS, results.append)
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


@pytest.mark.plain_alone
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
    with impatient(store):
        await eventually(lambda: store.state is State.AWAY)
    await eventually(lambda: store.state is State.UP)
    await settled(slots)
    assert await calls(slots, "l") == set()


async def test_release_after_a_take_left_in_a_dropped_connection_leaks_nothing(relay: Relay, connect: Connect) -> None:
    store = await connect(relay.url)
    slots = Slots(store)
    await taken(slots, "l", "x", 3)
    store.deadline_s = DEADLINE_MS / 1000
    relay.delay_requests()
    assert (await taken(slots, "l", "a", 3)).taken is None
    slots.release(slot("l", "a"))
    with impatient(store):
        await eventually(lambda: store.state is State.AWAY)
    await eventually(lambda: store.state is State.UP)
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


@pytest.mark.parametrize("owed", [1, 600])
async def test_take_is_not_refused_for_calls_that_ended_while_the_store_took_nothing(
    doomed: Server, connect: Connect, owed: int
) -> None:
    """Their releases wait until the state is known to be better, or behind many others: the line is not full meanwhile."""
    slots = Slots(store := await connect(doomed.url, bounds=replace(PATIENT, probe_ms=3_600_000)))
    for number in range(owed):
        await taken(slots, f"l{number}", "a", 1)
    await taken(slots, "l", "a", 1)
    doomed.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    for number in range(owed):
        slots.release(slot(f"l{number}", "a"))
    slots.release(slot("l", "a"))
    await eventually(lambda: store.state is State.REFUSING and store.pending == 0)
    doomed.ask("CONFIG", "SET", "min-replicas-to-write", "0")
    results: list[SlotResult] = []
    take(slots, "l0", "b", 1, LEASE_MS, results.append)
    take(slots, "l", "b", 1, LEASE_MS, results.append)
    take(slots, "l", "c", 1, LEASE_MS, results.append)
    await eventually(lambda: len(results) == 3)
    assert sorted(result.taken for result in results) == [False, True, True]
    assert await calls(slots, "l") in ({"b"}, {"c"})
    await settled(slots)
    assert [await calls(slots, f"l{number}") for number in range(owed)] == [{"b"}, *[set()] * (owed - 1)]
