"""Limits of accounts and trunk routes, soft limits, and what is decided without the store (design: invariants 2 and 5, §8)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from policy.build import snapshot_of
from sipproxy.engine.actions import Holder, Slot
from sipproxy.sip.message import Request, parse_message
from tests.sim.conftest import TRUNK_A, TRUNK_B, Town, make_town, town_snapshot
from tests.sim.restart import Restarts
from tests.sim.world import trunk

NUMBER = b"03023125001"
FOREVER = 1e9
ROUTES = (("carrier-a", TRUNK_A), ("carrier-b", TRUNK_B))
ELSEWHERE = Holder("n2", 0)


def with_limits(*, account_channels: int | None = None, **options: Any) -> Town:
    """A town; alice's account has a limit of its own."""
    limits = options.pop("calls", 0)
    town = make_town(**options)
    world = town.world
    before = world.engine.desk.snapshot
    accounts = [replace(a, channels=account_channels) if a.user == "alice" else a for a in before.accounts.values()]
    psap = [route for routes in before.psap.values() for route in routes]
    snapshot = snapshot_of(8, before.lines.values(), accounts, before.profiles, psap, before.blocks)
    if limits:
        routes = tuple(replace(trunk(name, at, n), calls=limits) for n, (name, at) in enumerate(ROUTES))
        world.settings = replace(world.settings, trunks=routes)
        world.engine = type(world.engine)(world.settings, snapshot, new_token=world.random.randbytes, key=b"k" * 32)
    else:
        world.perform(world.engine.swap_snapshot(snapshot, world.instant))
    town.register_all()
    return town


def invites_to(town: Town, address: tuple[str, int]) -> list[float]:
    """When INVITEs left for that address."""
    sent = ((at, parse_message(data)) for at, _, to, data in town.world.wire if to == address)
    return [at for at, message in sent if isinstance(message, Request) and message.method == b"INVITE"]


def at_once(town: Town) -> None:
    """No delay on the wire: what passes is what is waited for."""
    town.world.delay = (0.0, 0.0)


# Accounts


def test_account_at_its_own_limit_is_refused_while_the_line_has_channels() -> None:
    town = with_limits(account_channels=1, line_fields={"channels": 3})
    first, second, other = town.alice.call(NUMBER), town.alice.call(NUMBER), town.andrea.call(NUMBER)
    town.world.run(5.0)
    assert sorted([first.status, second.status]) == [200, 403]
    assert other.status == 200, "the other account has the line's channels"
    (record,) = town.world.records
    assert (record.rule, record.status, record.cause, record.verdict) == ("account.channels", 403, 34, "deny")
    assert town.world.engine.desk.counters["slots_refused", "account"] == 1
    town.assert_reconciled()
    town.alice.bye(first if first.status == 200 else second)
    town.world.run(2.0)
    third = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert third.status == 200


def test_account_limit_counts_both_directions_and_refuses_incoming_as_busy() -> None:
    town = with_limits(account_channels=1, line_fields={"channels": 3})
    call = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert call.status == 200
    incoming = town.trunk.call(b"+4960323001")
    town.world.run(5.0)
    assert incoming.status == 486
    assert [record.rule for record in town.world.records] == ["account.channels"]
    town.assert_reconciled()


def test_account_limit_counts_calls_of_other_nodes() -> None:
    town = with_limits(account_channels=1, line_fields={"channels": 3})
    elsewhere = Slot("line", "L1", "other")
    town.world.store.hold(elsewhere, ELSEWHERE._replace(account="alice"), FOREVER)
    call = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert (call.status, town.world.records[0].rule) == (403, "account.channels")
    town.world.store.release(elsewhere)
    town.assert_reconciled()


def test_account_limit_holds_without_the_store_over_this_nodes_calls() -> None:
    town = with_limits(account_channels=1, line_fields={"channels": 3})
    town.world.store_answers = False
    first, second = town.alice.call(NUMBER), town.alice.call(NUMBER)
    town.world.run(5.0)
    assert sorted([first.status, second.status]) == [200, 403]
    assert [record.rule for record in town.world.records] == ["account.channels"]


def test_emergency_call_passes_a_full_account() -> None:
    town = with_limits(account_channels=1)
    town.alice.call(NUMBER)
    town.world.run(5.0)
    call = town.alice.call(b"112")
    town.world.run(5.0)
    assert call.status == 200


# Soft limits


@pytest.mark.parametrize(("soft", "reported"), [(1, 1), (2, 0), (0, 0)])
def test_soft_limit_reports_and_refuses_nothing(soft: int, reported: int) -> None:
    town = make_town(line_fields={"soft_channels": soft})
    town.register_all()
    calls = [agent.call(NUMBER) for agent in (town.alice, town.andrea)]
    town.world.run(5.0)
    assert [call.status for call in calls] == [200, 200]
    assert town.world.engine.desk.counters["soft_limit", "badnauheim"] == reported
    assert [note.event for note in town.world.notes].count("line_over_soft_limit") == reported
    for agent, call in zip((town.alice, town.andrea), calls, strict=True):
        agent.bye(call)
    town.world.run(2.0)
    assert [record.over_soft for record in town.world.records if record.over_soft] == [["L1"]] * reported


def test_soft_limit_of_the_called_line_is_told_in_an_internal_calls_record() -> None:
    town = make_town()
    before = town_snapshot()
    lines = [replace(line, soft_channels=1) if line.id == "L2" else line for line in before.lines.values()]
    psap = [route for routes in before.psap.values() for route in routes]
    snapshot = snapshot_of(8, lines, before.accounts.values(), before.profiles, psap, before.blocks)
    town.world.perform(town.world.engine.swap_snapshot(snapshot, town.world.instant))
    town.register_all()
    town.bob.call(NUMBER)
    town.world.run(3.0)
    call = town.alice.call(b"020514001")
    town.world.run(3.0)
    assert call.status == 200
    town.alice.bye(call)
    town.world.run(2.0)
    assert [record.over_soft for record in town.world.records] == [["L2"]]


# Trunk routes over all nodes


def test_route_full_by_another_nodes_call_is_passed_over() -> None:
    town = with_limits(calls=1)
    elsewhere = Slot("trunk", "carrier-a", "other")
    town.world.store.hold(elsewhere, ELSEWHERE, FOREVER)
    call = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert call.status == 200
    assert (len(town.trunk.calls), len(town.trunk_b.calls)) == (0, 1)
    assert town.world.engine.desk.counters["slots_refused", "trunk"] == 1
    town.world.store.release(elsewhere)
    town.assert_reconciled()


def test_route_slot_is_leased_while_the_call_lives_in_either_direction() -> None:
    town = with_limits(calls=2)
    out, back = town.alice.call(NUMBER), town.trunk.call(b"+4960323001")
    town.world.run(5.0)
    assert (out.status, back.status) == (200, 200)
    on_route = {member for owner, member in town.world.store.all() if owner == "trunk:carrier-a"}
    assert len(on_route) == 2
    town.world.run(100.0)  # longer than a lease: it is refreshed
    town.assert_reconciled()
    third = town.andrea.call(NUMBER)
    town.world.run(5.0)
    assert third.status != 200, "the line is full"
    town.alice.bye(out)
    town.trunk.bye(back)
    town.world.run(2.0)
    assert not town.world.store.all()


def test_incoming_calls_beyond_a_routes_limit_are_counted_and_not_refused() -> None:
    town = with_limits(calls=1)
    calls = [town.trunk.call(number) for number in (b"+4960323001", b"+4960323002")]
    town.world.run(5.0)
    assert [call.status for call in calls] == [200, 200]
    assert sum(owner == "trunk:carrier-a" for owner, _ in town.world.store.all()) == 2
    town.assert_reconciled()


@pytest.mark.parametrize(("answers_after_s", "line_by_store"), [(0.2, True), (9.0, False)])
def test_call_waits_for_the_store_no_longer_than_the_deadline_in_all(answers_after_s: float, line_by_store: bool) -> None:
    """Invariant 5, for the line's slot and the route's together."""
    town = with_limits(calls=5)
    at_once(town)
    world = town.world
    if answers_after_s > world.settings.store_wait_s:
        world.store_answers = False
    else:
        world.store_delay = answers_after_s
    begun = world.now
    town.alice.call(NUMBER)
    world.run(2.0)
    (sent_at,) = invites_to(town, TRUNK_A)
    assert world.settings.store_wait_s <= sent_at - begun < world.settings.store_wait_s + 0.01
    assert world.engine.desk.counters["slots_undecided", "local"] == (1 if line_by_store else 2)


def test_route_is_limited_by_this_nodes_calls_while_the_store_is_away() -> None:
    town = with_limits(calls=1)
    town.world.store_answers = False
    calls = [town.alice.call(NUMBER), town.bob.call(NUMBER)]
    town.world.run(5.0)
    assert [call.status for call in calls] == [200, 200]
    assert (len(town.trunk.calls), len(town.trunk_b.calls)) == (1, 1)
    town.world.store_answers = True
    town.world.reassert()
    town.assert_reconciled()


def test_emergency_call_over_a_full_route_waits_for_nothing() -> None:
    town = with_limits(calls=1)
    at_once(town)
    town.world.store.hold(Slot("trunk", "carrier-a", "other"), ELSEWHERE, FOREVER)
    town.world.store_answers = False
    del town.world.agents[town.psap.address]
    begun = town.world.now
    town.psap._respond = lambda *_, **__: None  # type: ignore[method-assign]
    town.alice.call(b"112")
    town.world.run(40.0)
    assert invites_to(town, TRUNK_A), "the carrier is asked where the PSAP does not answer"
    assert invites_to(town, town.psap.address)[0] == begun
    assert not any(key[0] == "slots_undecided" for key in town.world.engine.desk.counters)


def test_caller_gives_up_while_the_route_is_asked_for() -> None:
    town = with_limits(calls=5)
    at_once(town)
    world = town.world
    world.store_delay = 0.1
    call = town.alice.call(NUMBER)
    world.run(0.15)  # the line's slot is there, the route's is asked for
    assert [str(c.phase) for c in world.engine.calls.by_id.values()] == ["proceeding"]
    town.alice.cancel(call)
    world.run(5.0)
    assert call.status == 487
    assert not invites_to(town, TRUNK_A)
    assert [record.end_reason for record in world.records] == ["cancelled"]
    assert not world.store.all()
    town.assert_reconciled()


def test_route_slots_are_right_after_a_restart() -> None:
    town = with_limits(calls=1, boot="boot-1")
    town.world.settings = replace(town.world.settings, boot="boot-1")
    node = Restarts(town.world)
    call = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert call.status == 200
    town.world.store.lines.clear()
    node.kill()
    town.world.run(3.0)
    node.start()
    assert {owner for owner, _ in town.world.store.all()} == {"L1", "trunk:carrier-a"}
    assert next(iter(town.world.store.holders.values())).account == "alice"
    town.alice.bye(call)
    town.world.run(3.0)
    town.assert_reconciled()
    assert not town.world.store.all()


# Without the store, and after it


def test_over_admission_without_the_store_is_bounded_by_what_the_node_knows_and_ends_with_the_calls() -> None:
    """Design §8: another node holds all the channels, which this one cannot know; it admits no more than its own limit."""
    town = with_limits()
    world = town.world
    for number in range(2):
        world.store.hold(Slot("line", "L1", f"other{number}"), ELSEWHERE, FOREVER)
    world.store_answers = False
    calls = [(agent, agent.call(NUMBER)) for agent in (town.alice, town.andrea, town.alice)]
    world.run(5.0)
    assert sorted(call.status for _, call in calls) == [200, 200, 403]
    world.store_answers = True
    world.reassert()
    assert len([1 for owner, _ in world.store.all() if owner == "L1"]) == 4, "all live calls are counted, beyond the limit"
    late = town.alice.call(NUMBER)
    world.run(3.0)
    assert late.status == 403, "no more is admitted until enough calls have ended"
    for agent, call in calls:
        if call.status == 200:
            agent.bye(call)
    world.store.release(Slot("line", "L1", "other0"))
    world.run(3.0)
    again = town.alice.call(NUMBER)
    world.run(3.0)
    assert again.status == 200


def test_refusing_without_the_store_is_told_by_its_own_rule() -> None:
    town = with_limits(slots="refuse")
    town.world.store_answers = False
    call = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert (call.status, town.world.records[0].rule) == (500, "store.away")
    assert town.world.engine.desk.counters["slots_refused", "store"] == 1
    assert not town.world.live_slots()


def test_line_lowered_while_calls_live_ends_none_and_admits_none_until_below() -> None:
    town = with_limits(line_fields={"channels": 3})
    world = town.world
    calls = [(agent, agent.call(NUMBER)) for agent in (town.alice, town.andrea)]
    world.run(5.0)

    def set_channels(number: int) -> None:
        now = world.engine.desk.snapshot
        lines = [replace(line, channels=number) if line.id == "L1" else line for line in now.lines.values()]
        psap = [route for routes in now.psap.values() for route in routes]
        changed = snapshot_of(now.version + 1, lines, now.accounts.values(), now.profiles, psap, now.blocks)
        world.perform(world.engine.swap_snapshot(changed, world.instant))

    def attempt() -> int:
        call = town.alice.call(NUMBER)
        world.run(3.0)
        if call.status == 200:
            town.alice.bye(call)
            world.run(2.0)
        return call.status

    set_channels(1)
    world.run(1.0)
    assert [str(call.phase) for call in world.engine.calls.by_id.values()] == ["answered", "answered"]
    assert attempt() == 403
    calls[0][0].bye(calls[0][1])
    world.run(2.0)
    assert attempt() == 403, "one call, one channel"
    set_channels(2)
    assert attempt() == 200, "raised again, it is free at once"


@pytest.mark.parametrize(("status", "goes_on"), [(200, False), (486, False), (503, True)])
def test_next_route_is_tried_only_if_it_is_still_wanted_when_its_slot_is_there(status: int, goes_on: bool) -> None:
    town = with_limits(calls=5, route_s=2.0)
    at_once(town)
    world, late = town.world, []
    receive = world.agents[TRUNK_A]
    world.agents[TRUNK_A] = lambda data, source: late.append((data, source))
    act = town.trunk.answer if status == 200 else partial(town.trunk.reject, status=status)
    town.trunk.behave = act
    call = town.alice.call(NUMBER)
    world.run(1.0)
    world.store_delay = 0.2
    world.run(1.1)  # the first route is overdue, and the second one's slot is asked for
    assert [slot.owner for slot in world.engine.channels._asked] == ["carrier-b"]
    world.agents[TRUNK_A] = receive
    receive(*late[0])
    world.run(5.0)
    assert call.status == (200 if goes_on else status)
    assert len(invites_to(town, TRUNK_B)) == goes_on
    assert sum(owner == "trunk:carrier-b" for owner, _ in world.store.all()) == goes_on
    town.assert_reconciled()
