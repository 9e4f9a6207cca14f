"""How calls that a customer's line forwarded live and end: both halves together, also after a restart of the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdr.facts import Admit, Alive, Answer
from tests.sim.conftest import TRUNK_A, Town, make_town
from tests.sim.forwarded import both, forwarded_call
from tests.sim.restart import Restarts

if TYPE_CHECKING:
    from tests.sim.agent import AgentCall


def test_cancel_of_a_forwarded_call_cancels_its_part(town: Town) -> None:
    town.trunk.behave = lambda call: town.trunk.progress(call, 180)
    call = forwarded_call(town)
    town.world.run(3.0)
    assert call.provisional[-1] == 180
    town.trunk_b.cancel(call)
    town.world.run(3.0)
    assert (call.status, town.trunk.calls[0].status) == (487, 487)
    assert [(r.end_reason, r.released_by) for r in both(town)] == [("cancelled", "caller")] * 2
    town.assert_reconciled()


def test_operator_ends_the_part_and_everyone_is_told(town: Town) -> None:
    call = forwarded_call(town)
    town.world.run(5.0)
    part = next(c for c in town.world.engine.calls.by_id.values() if c.head is not None)
    state, actions = town.world.engine.end_call(part.id, town.world.instant)
    town.world.perform(actions)
    town.world.run(2.0)
    assert state == "answered"
    assert (call.ended, town.trunk.calls[0].ended) == ("remote", "remote")
    head, record = both(town)
    assert (record.end_reason, record.released_by) == ("operator", "proxy")
    assert (head.end_reason, head.released_by) == ("normal", "callee")
    town.assert_reconciled()


@pytest.mark.parametrize("gone", ["caller", "callee"])
def test_vanished_party_of_a_forwarded_call_ends_both_records_uncertain(gone: str) -> None:
    """Design, invariant 4: both end at the last proof of life."""
    town = make_town(probe_s=60.0, session_expires_s=0)
    call = forwarded_call(town)
    town.world.run(5.0)
    assert call.status == 200
    away, left = (town.trunk_b, town.trunk) if gone == "caller" else (town.trunk, town.trunk_b)
    del town.world.agents[away.address]
    town.world.run(200.0)
    assert left.calls[0].ended == "remote"
    head, part = both(town)
    for record in (head, part):
        assert (record.end_reason, record.duration_certain, record.released_by) == ("session_expired", False, "proxy")
        assert record.billable_ms <= 1000
    proofs = [fact.at_ms for fact in town.world.facts if isinstance(fact, Alive) and fact.id == part.id]
    assert all(at_ms <= head.end_at_ms for at_ms in proofs), "our own question to one party is no word of the other"
    town.assert_reconciled()


def test_live_forwarded_call_is_asked_once_for_each_party() -> None:
    town = make_town(probe_s=60.0, session_expires_s=0)
    call = forwarded_call(town)
    town.world.run(205.0)
    assert call.ended == ""
    for agent in (town.trunk, town.trunk_b):
        assert [r.method for r in agent.requests].count(b"OPTIONS") == 3
    assert not town.world.records


def test_longest_duration_ends_both_with_one_reason() -> None:
    town = make_town(maximum_s=30.0)
    call = forwarded_call(town)
    town.world.run(40.0)
    assert (call.ended, town.trunk.calls[0].ended) == ("remote", "remote")
    assert [(r.end_reason, r.released_by) for r in both(town)] == [("maximum", "proxy")] * 2
    assert [r.method for r in town.trunk.requests].count(b"BYE") == 1
    town.assert_reconciled()


def test_reinvites_pass_a_forwarded_call_both_ways(town: Town) -> None:
    call = forwarded_call(town)
    town.world.run(5.0)
    seen: list[int] = []
    town.trunk_b.reinvite(call, lambda r: seen.append(r.status) if r and r.is_final else None)
    town.world.run(1.0)
    town.trunk.reinvite(town.trunk.calls[0], lambda r: seen.append(r.status) if r and r.is_final else None)
    town.world.run(1.0)
    assert seen == [200, 200]
    town.trunk.bye(town.trunk.calls[0])
    town.world.run(1.0)
    assert call.ended == "remote"
    town.assert_reconciled()


def test_finished_forwarding_leaves_nothing(town: Town) -> None:
    call = forwarded_call(town)
    town.world.run(5.0)
    town.trunk_b.bye(call)
    town.world.run(120.0)
    engine = town.world.engine
    assert not engine.calls.by_id
    assert not any(engine.desk.channels.count().values())
    assert not engine.desk.transactions.servers
    assert not engine.desk.transactions.clients
    assert engine.calls.live == 0
    assert TRUNK_A in town.world.agents


# Restarts


def restarted() -> tuple[Town, Restarts, AgentCall]:
    """A forwarded call that is up, and its node, which may die."""
    town = make_town(boot="boot-1")
    node = Restarts(town.world)
    call = forwarded_call(town)
    town.world.run(5.0)
    assert call.status == 200
    return town, node, call


@pytest.mark.parametrize("after", [8.0, 60.0])  # seconds; after 5 both parties have been asked
@pytest.mark.parametrize("leaver", ["caller", "callee"])
def test_forwarded_call_goes_on_after_a_restart(leaver: str, after: float) -> None:
    """Design §5: both halves are taken up again and still belong together."""
    town, node, call = restarted()
    node.kill()
    town.world.run(3.0)
    node.start()
    town.world.run(after)
    assert not town.world.records
    assert len(town.world.live_slots()) == 2
    if leaver == "caller":
        town.trunk_b.bye(call)
    else:
        town.trunk.bye(town.trunk.calls[0])
    town.world.run(1.0)
    assert {call.ended, town.trunk.calls[0].ended} == {"local", "remote"}
    head, part = both(town)
    for record in (head, part):
        assert (record.end_reason, record.released_by, record.duration_certain) == ("normal", leaver, True)
    assert head.forwarded_to == [part.id]
    town.assert_reconciled()


def test_part_whose_call_is_not_taken_up_again_ends_with_the_node() -> None:
    """Nobody would watch over it."""
    town, node, call = restarted()
    node.kill()
    part = next(f.record for f in town.world.facts if isinstance(f, Admit) and f.record.forwarded_from)
    town.world.facts = [f for f in town.world.facts if not isinstance(f, Answer | Alive) or f.id == part.id]
    node.start()
    assert not town.world.live_slots()
    head, record = both(town)
    assert {head.end_reason, record.end_reason} == {"node_restart"}
    assert not record.duration_certain
    assert call.ended == ""
    town.assert_reconciled()
