"""Whole calls through the real engine on the virtual network (design §5; RFC 3261 §16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sim.conftest import Town, make_town

if TYPE_CHECKING:
    from tests.sim.agent import Agent, AgentCall


def test_outgoing_call_answered_and_hung_up_gives_one_exact_record(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    assert call.status == 200
    assert call.provisional == [100, 180]
    at_trunk = town.trunk.calls[0]
    assert at_trunk.acked
    assert at_trunk.invite is not None
    assert at_trunk.invite.uri == b"sip:+493023125001@198.51.100.1:5060;user=phone"
    assert at_trunk.invite.first(b"p-asserted-identity") == b"<sip:+4960323001@sip.test;user=phone>"
    assert not at_trunk.invite.has(b"proxy-authorization")
    assert len(town.world.store.all()) == 1
    town.world.run(55.0)
    town.alice.bye(call)
    town.world.run(1.0)
    assert at_trunk.ended == "remote"
    (record,) = town.world.records
    assert (record.direction, record.line, record.account, record.trunk) == ("outgoing", "L1", "alice", "carrier-a")
    assert (record.status, record.cause, record.end_reason, record.released_by) == (200, 16, "normal", "caller")
    assert (record.calling, record.canonical, record.slots_used, record.slots_limit) == ("+4960323001", "+493023125001", 1, 2)
    assert record.duration_certain
    assert record.billable_ms == pytest.approx((call.ended_at - call.answered_at) * 1000, abs=50)
    assert record.media == ["audio"]
    town.assert_reconciled()
    assert not town.world.store.all()


def test_callee_hangs_up_record_says_so(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    town.trunk.bye(town.trunk.calls[0])
    town.world.run(1.0)
    assert call.ended == "remote"
    assert [r.released_by for r in town.world.records] == ["callee"]
    town.assert_reconciled()


def test_premium_number_is_refused_with_its_rule(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"09001123456")
    town.world.run(2.0)
    assert call.status == 403
    assert call.final is not None
    assert call.final.first(b"reason") == b"Q.850;cause=21"
    (record,) = town.world.records
    assert (record.verdict, record.rule, record.status, record.end_reason) == ("deny", "block.class.premium", 403, "refused")
    assert not town.trunk.requests
    town.assert_reconciled()


def test_third_call_of_a_two_channel_line_is_refused_whatever_account(town: Town) -> None:
    town.register_all()
    first, second = town.alice.call(b"03023125001"), town.andrea.call(b"03023125002")
    town.world.run(5.0)
    third = town.andrea.call(b"03023125003")
    town.world.run(2.0)
    assert [c.status for c in (first, second, third)] == [200, 200, 403]
    refused = town.world.records[0]
    assert (refused.rule, refused.cause, refused.slots_used, refused.slots_limit) == ("line.channels", 34, 2, 2)
    town.alice.bye(first)
    town.world.run(1.0)
    fourth = town.andrea.call(b"03023125003")
    town.world.run(5.0)
    assert fourth.status == 200
    town.assert_reconciled()


def test_emergency_call_on_a_full_line_reaches_the_psap_without_a_slot(town: Town) -> None:
    town.register_all()
    town.alice.call(b"03023125001")
    town.andrea.call(b"03023125002")
    town.world.run(5.0)
    slots = town.world.store.all()
    emergency = town.alice.call(b"112", headers=((b"Privacy", b"id"),))
    town.world.run(5.0)
    assert emergency.status == 200
    assert town.world.store.all() == slots
    invite = town.psap.calls[0].invite
    assert invite is not None
    assert invite.uri == b"sip:112@198.51.100.112:5060"
    assert not invite.has(b"privacy")
    assert invite.first(b"p-asserted-identity") == b"<sip:+4960323001@sip.test;user=phone>"
    town.alice.bye(emergency)
    town.world.run(1.0)
    assert (town.world.records[0].verdict, town.world.records[0].psap) == ("emergency", "sip:112@198.51.100.112:5060")
    # No challenge: the INVITE came over the flow of a live binding.
    assert not [r for r in town.alice.responses if r.status == 407 and r.call_id == emergency.call_id]


@pytest.mark.parametrize("silent", [True, False])
def test_emergency_call_tries_everything_when_the_psap_fails(town: Town, silent: bool) -> None:
    town.register_all()
    if silent:
        town.psap.behave = lambda call: None
        del town.world.agents[town.psap.address]
    else:
        town.psap.behave = lambda call: town.psap.reject(call, 486)
    emergency = town.alice.call(b"112")
    town.world.run(30.0)
    assert emergency.status == 200
    at_trunk = town.trunk.calls[0].invite
    assert at_trunk is not None
    assert at_trunk.uri == b"sip:112@198.51.100.1:5060;user=phone"
    town.assert_reconciled()


def test_emergency_call_does_not_wait_for_the_store(town: Town) -> None:
    town.register_all()
    town.world.store_answers = False
    town.alice.call(b"110")
    start = town.world.now
    town.world.run_until(lambda: bool(town.psap.calls))
    assert town.world.now - start < 0.1


def test_incoming_call_rings_every_binding_and_the_first_answer_wins(town: Town) -> None:
    town.register_all()
    second = town.second_device()
    second.behave = lambda call: second.ring_then_answer(call, 0.1, 30.0)
    call = town.trunk.call(b"+4920514001")
    town.world.run(5.0)
    assert call.status == 200
    assert town.bob.calls[0].status == 200
    assert second.calls[0].status == 487
    assert len(town.world.store.all()) == 1
    town.bob.bye(town.bob.calls[0])
    town.world.run(40.0)
    (record,) = town.world.records
    assert (record.direction, record.line, record.trunk, record.released_by) == ("incoming", "L2", "carrier-a", "callee")
    town.assert_reconciled()


def test_incoming_call_to_a_full_line_is_busy(town: Town) -> None:
    town.register_all()
    town.alice.call(b"03023125001")
    town.andrea.call(b"03023125002")
    town.world.run(5.0)
    call = town.trunk.call(b"+4960323001")
    town.world.run(2.0)
    assert call.status == 486
    assert call.final is not None
    assert call.final.first(b"reason") == b"Q.850;cause=17"
    town.assert_reconciled()


def test_incoming_call_to_an_unassigned_number_is_404_and_to_an_unregistered_480(town: Town) -> None:
    unknown, absent = town.trunk.call(b"+4960329999"), town.trunk.call(b"+4920514001")
    town.world.run(2.0)
    assert (unknown.status, absent.status) == (404, 480)
    assert sorted(r.cause for r in town.world.records) == [1, 20]
    town.assert_reconciled()


def test_internal_call_takes_a_slot_of_both_lines(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"020514001")
    town.world.run(5.0)
    assert call.status == 200
    assert {line for line, _ in town.world.store.all()} == {"L1", "L2"}
    town.bob.bye(town.bob.calls[0])
    town.world.run(1.0)
    (record,) = town.world.records
    assert (record.direction, record.line, record.callee_line, record.callee_account) == ("internal", "L1", "L2", "bob")
    assert not town.world.store.all()
    town.assert_reconciled()


def test_cancel_while_ringing_ends_the_call_and_frees_the_slot(town: Town) -> None:
    town.register_all()
    town.trunk.behave = lambda call: town.trunk.ring_then_answer(call, 0.1, 60.0)
    call = town.alice.call(b"03023125001")
    town.world.run(2.0)
    town.alice.cancel(call)
    town.world.run(1.0)
    assert call.status == 487
    assert town.trunk.calls[0].status == 487
    (record,) = town.world.records
    assert (record.end_reason, record.released_by, record.status) == ("cancelled", "caller", 487)
    town.assert_reconciled()


def test_busy_callee_is_relayed_and_frees_the_slot(town: Town) -> None:
    town.register_all()
    town.trunk.behave = lambda call: town.trunk.reject(call, 486)
    call = town.alice.call(b"03023125001")
    town.world.run(2.0)
    assert call.status == 486
    (record,) = town.world.records
    assert (record.end_reason, record.released_by, record.cause) == ("rejected", "callee", 17)
    assert not town.trunk_b.requests, "busy is an answer, not a failure of the route"
    town.assert_reconciled()


@pytest.mark.parametrize("status", [503, None])
def test_failing_trunk_route_is_followed_by_the_next(town: Town, status: int | None) -> None:
    town.register_all()
    if status is None:
        del town.world.agents[town.trunk.address]
    else:
        town.trunk.behave = lambda call: town.trunk.reject(call, status)
    call = town.alice.call(b"03023125001")
    town.world.run(12.0)
    assert call.status == 200
    assert len(town.trunk_b.calls) == 1
    town.alice.bye(call)
    town.world.run(40.0)
    assert [r.trunk for r in town.world.records] == ["carrier-b"]
    town.assert_reconciled()


def test_all_trunks_failing_is_500_not_503(town: Town) -> None:
    town.register_all()
    for agent in (town.trunk, town.trunk_b):
        agent.behave = lambda call, agent=agent: agent.reject(call, 503)  # type: ignore[misc]
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    assert call.status == 500
    town.assert_reconciled()


def test_store_silent_slots_are_decided_from_own_calls(town: Town) -> None:
    town.register_all()
    town.world.store_answers = False
    calls = [town.alice.call(b"0302312500%d" % n) for n in (1, 2, 3)]
    town.world.run(5.0)
    assert sorted(c.status for c in calls) == [200, 200, 403]


def test_reinvite_within_the_dialog_passes_both_ways(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    results: list[int] = []
    town.alice.reinvite(call, lambda r: results.append(r.status if r else 0))
    town.world.run(2.0)
    town.trunk.reinvite(town.trunk.calls[0], lambda r: results.append(r.status if r else 0))
    town.world.run(2.0)
    assert [r for r in results if r >= 200] == [200, 200]
    assert len(town.world.store.all()) == 1
    town.assert_reconciled()


def behave_at_random(agent: Agent) -> None:
    """Answer, reject, ring without end or stay silent."""
    choose, world = agent.world.random, agent.world

    def behave(call: AgentCall) -> None:
        roll = choose.random()
        if roll < 0.6:
            agent.ring_then_answer(call, choose.uniform(0.1, 2), choose.uniform(2, 6))
        elif roll < 0.8:
            status = choose.choice([404, 480, 486, 603])
            world.after(choose.uniform(0.1, 3), lambda: agent.reject(call, status))
        elif roll < 0.9:
            agent.progress(call, 180)

    agent.behave = behave


def call_at_random(town: Town) -> None:
    """One call of a random caller to a random target, cancelled or hung up some time."""
    choose, world = town.world.random, town.world
    caller = choose.choice([town.alice, town.andrea, town.bob, town.trunk])
    abroad = [b"03023125001", b"020514001", b"09001123456", b"112", b"01621234567"]
    target = choose.choice([b"+4960323001", b"+4920514001"] if caller is town.trunk else abroad)
    call = caller.call(target)
    if choose.random() < 0.3:
        world.after(choose.uniform(0.1, 8), lambda: caller.cancel(call))
    world.after(choose.uniform(8, 60), lambda: caller.bye(call))


@pytest.mark.parametrize("seed", range(8))
def test_random_calls_over_a_lossy_wire_reconcile(seed: int) -> None:
    """Design, invariants 2 and 3, for a random mix of calls and endings with 5 % loss, 3 % duplicates and reordering."""
    town = make_town(seed=seed, loss=0.05, duplicate=0.03, delay=(0.001, 0.3))
    world = town.world
    agents = (town.alice, town.andrea, town.bob, town.trunk, town.trunk_b, town.psap)
    for agent in agents[:3]:
        agent.register()
    world.run(40.0)
    for agent in agents:
        behave_at_random(agent)
    for _ in range(60):
        call_at_random(town)
        world.run(world.random.uniform(0.1, 10))
        assert world.store.all() == world.live_slots()
        for name, limit in (("L1", 2), ("L2", 3)):
            assert sum(1 for line, _ in world.store.all() if line == name) <= limit
    for agent in agents:
        for call in agent.calls:
            agent.bye(call)
    world.run(400.0)
    town.assert_reconciled()
    assert len(world.records) >= 50
