"""Calls that we end ourselves: the longest duration and the silence after which a call is reaped (design, invariant 4)."""

from __future__ import annotations

import pytest

from tests.sim.conftest import Town, make_town


def bye_of(town: Town, index: int = -1) -> tuple[bytes, bytes, bytes]:
    request = [r for r in town.trunk.requests if r.method == b"BYE"][index]
    return request.uri, request.from_.tag or b"", request.to.tag or b""


def test_longest_duration_ends_with_a_bye_to_both_parties() -> None:
    town = make_town(maximum_s=100.0)
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(110.0)
    at_trunk = town.trunk.calls[0]
    assert (call.ended, at_trunk.ended) == ("remote", "remote")
    assert bye_of(town) == (b"sip:carrier@198.51.100.1:5060", call.local_tag, at_trunk.local_tag)
    assert [r.first(b"reason") for r in town.alice.requests if r.method == b"BYE"] == [b"Q.850;cause=31"]
    (record,) = town.world.records
    assert (record.end_reason, record.released_by, record.duration_certain) == ("maximum", "proxy", True)
    assert record.billable_ms == pytest.approx(100_000, abs=100)
    town.world.run(60.0)
    town.assert_reconciled()
    assert not town.world.engine.desk.transactions.clients


def test_silent_call_is_reaped_and_ends_at_its_last_proof_of_life() -> None:
    town = make_town(reap_s=300.0)
    town.register_all()
    call = town.trunk.call(b"+4960323001")
    town.world.run(5.0)
    assert call.status == 200
    for agent in (town.alice, town.trunk):
        del town.world.agents[agent.address]
    town.world.run(400.0)
    (record,) = town.world.records
    assert (record.end_reason, record.released_by, record.duration_certain) == ("session_expired", "proxy", False)
    assert record.billable_ms < 1000, "nobody was heard after the ACK"
    byes = {to for _, _, to, data in town.world.wire if data.startswith(b"BYE")}
    assert byes == {town.alice.address, town.trunk.address}
    town.assert_reconciled()


def test_proof_of_life_puts_the_reaping_off() -> None:
    town = make_town(reap_s=300.0)
    town.register_all()
    call = town.alice.call(b"03023125001")
    for _ in range(4):
        town.world.run(200.0)
        town.alice.reinvite(call, lambda _: None)
    town.world.run(5.0)
    assert not town.world.records
    town.alice.bye(call)
    town.world.run(1.0)
    assert [r.end_reason for r in town.world.records] == ["normal"]


def test_our_bye_comes_after_what_the_parties_sent_in_each_direction() -> None:
    """RFC 3261 §12.2.1.1: the CSeq that we write in a party's place is above that party's own."""
    town = make_town(maximum_s=100.0)
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    for _ in range(5):
        town.alice.reinvite(call, lambda _: None)
        town.world.run(1.0)
    town.world.run(100.0)
    bye = [r for r in town.trunk.requests if r.method == b"BYE"][-1]
    assert bye.cseq.number == call.cseq + 1
