"""Calls that an operator ends: in whatever phase, both parties told, an emergency call only when that is meant."""

from __future__ import annotations

import pytest

from policy.model import LineStatus
from tests.sim.conftest import Town, make_town, town_snapshot


def end(town: Town, call: str = "", *, emergency_too: bool = False) -> str:
    """`call` defaults to the one live call."""
    world = town.world
    found = call or next(c.id for c in world.engine.calls.by_id.values() if str(c.phase) != "ended")
    state, actions = world.engine.end_call(found, world.instant, emergency_too=emergency_too)
    world.perform(actions)
    return state


def test_operator_ends_an_answered_call_with_a_bye_to_both_parties(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(30.0)
    assert end(town) == "answered"
    town.world.run(1.0)
    assert (call.ended, town.trunk.calls[0].ended) == ("remote", "remote")
    (record,) = town.world.records
    assert (record.end_reason, record.released_by, record.cause, record.duration_certain) == ("operator", "proxy", 31, True)
    assert record.billable_ms == pytest.approx(29_000, abs=200)
    assert end(town, record.id) == "unknown"
    assert end(town, "no-such-call") == "unknown"
    town.assert_reconciled()


def test_operator_ends_a_ringing_call_with_cancel_and_480(town: Town) -> None:
    town.register_all()
    town.trunk.behave = lambda call: town.trunk.progress(call, 180)
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    assert end(town) == "proceeding"
    town.world.run(1.0)
    assert (call.status, town.trunk.calls[0].status) == (480, 487)
    assert [(r.end_reason, r.released_by, r.status) for r in town.world.records] == [("operator", "proxy", 480)]
    town.assert_reconciled()


def test_operator_ends_a_call_that_waits_for_its_slot() -> None:
    town = make_town()
    town.register_all()
    town.world.store_answers = False
    call = town.alice.call(b"03023125001")
    town.world.run_until(lambda: any(str(c.phase) == "admitting" for c in town.world.engine.calls.by_id.values()))
    assert end(town) == "admitting"
    town.world.run(2.0)
    assert call.status == 480
    assert not town.trunk.calls
    assert [r.end_reason for r in town.world.records] == ["operator"]
    assert not town.world.live_slots()


def test_operator_whose_cancel_crosses_the_answer_ends_the_call_after_its_ack(town: Town) -> None:
    """RFC 3261 §15: no BYE from the callee's place before the caller has acknowledged the 2xx."""
    town.register_all()
    town.trunk.behave = lambda call: town.trunk.ring_then_answer(call, 0.1, 2.0)
    call = town.alice.call(b"03023125001")
    town.world.run_until(lambda: town.trunk.calls != [] and town.trunk.calls[0].status == 200)
    assert end(town) == "proceeding"
    town.world.run(5.0)
    assert call.status == 200
    assert (call.ended, town.trunk.calls[0].ended) == ("remote", "remote")
    sent = [data.split(b" ", 1)[0] for _, source, _, data in town.world.wire if data[:3] in (b"ACK", b"BYE")]
    assert sent[0] == b"ACK"
    assert [r.end_reason for r in town.world.records] == ["operator"]
    town.assert_reconciled()


def test_emergency_call_is_ended_by_an_operator_only_when_that_is_meant(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"112")
    town.world.run(10.0)
    assert end(town) == "emergency"
    town.world.run(1.0)
    assert (call.ended, town.world.records) == ("", [])
    assert end(town, emergency_too=True) == "answered"
    town.world.run(1.0)
    assert [r.end_reason for r in town.world.records] == ["operator"]


def test_line_put_on_fraud_hold_loses_what_it_has_going_out_and_nothing_else(town: Town) -> None:
    town.register_all()
    world = town.world
    outgoing, incoming = town.alice.call(b"03023125001"), town.trunk.call(b"+4960323002")
    other, emergency = town.bob.call(b"03023125002"), town.andrea.call(b"112")
    world.run(10.0)
    held = town_snapshot(version=8, status=LineStatus.FRAUD_HOLD)
    world.perform(world.engine.swap_snapshot(held, world.instant))
    world.run(2.0)
    assert [c.ended for c in (outgoing, incoming, other, emergency)] == ["remote", "", "", ""]
    (record,) = world.records
    assert (record.line, record.end_reason, record.released_by, record.duration_certain) == ("L1", "fraud_hold", "proxy", True)
    world.perform(world.engine.swap_snapshot(town_snapshot(version=9, status=LineStatus.FRAUD_HOLD), world.instant))
    world.run(2.0)
    assert len(world.records) == 1
    town.assert_reconciled()
