"""PBXs with a fixed address are asked by OPTIONS, and calls do not wait for one that is down."""

from __future__ import annotations

import pytest

from tests.sim.carrier import Carrier
from tests.sim.conftest import Town, make_town

AT = ("203.0.113.77", 5060)
URI = b"sip:203.0.113.77:5060"
NAME = "alice " + URI.decode()
OWN = b"+4960323001"


def pbx_town(*, ping_s: float = 10.0, pings: bool = True) -> tuple[Town, Carrier]:
    """A town where the account `alice` is a PBX, which answers OPTIONS or is deaf to them."""
    town = make_town(static=(("alice", URI),), static_ping_s=ping_s)
    pbx = Carrier(town.world, AT)
    pbx.pings = pings
    pbx.user = pbx.contact_user = "alice"
    town.world.perform([])
    town.bob.register()
    town.world.run(2.0)
    return town, pbx


def state(town: Town) -> str:
    (health,) = town.world.engine.desk.statics
    return str(health.state)


def die(town: Town, pbx: Carrier) -> None:
    town.world.agents.pop(pbx.address, None)


def call_in(town: Town, seconds: float = 5.0) -> int:
    """What a call of the carrier's to the PBX's number ends with, or has come to; 0 while it is unanswered."""
    call = town.trunk.call(OWN)
    town.world.run(seconds)
    if call.status == 200:
        town.trunk.bye(call)
        town.world.run(1.0)
    return call.status


def test_a_pbx_that_is_down_costs_its_callers_nothing_and_is_called_again_when_it_is_back() -> None:
    town, pbx = pbx_town()
    assert (state(town), call_in(town)) == ("up", 200)
    die(town, pbx)
    town.world.run(25.0)
    assert state(town) == "down"
    assert call_in(town, 0.5) == 480
    (record,) = town.world.records[1:]
    assert (record.end_reason, record.status) == ("unreachable", 480)
    assert town.world.engine.desk.counters["pbx_passed_over", "alice"] == 1
    town.world.agents[AT] = pbx._receive
    town.world.run(15.0)
    assert (state(town), call_in(town)) == ("up", 200)
    told = [(note.fields["pbx"], note.fields["state"]) for note in town.world.notes if note.event == "pbx_state"]
    assert told == [(NAME, "down"), (NAME, "up")]
    town.assert_reconciled()


def test_calls_go_to_the_other_contacts_of_an_account_whose_pbx_is_down() -> None:
    town, pbx = pbx_town()
    town.alice.register()
    die(town, pbx)
    town.world.run(25.0)
    assert call_in(town) == 200
    assert len(town.alice.calls) == 1


def test_a_pbx_that_is_deaf_to_options_is_called_until_it_misses_calls() -> None:
    town, pbx = pbx_town(pings=False)
    (health,) = town.world.engine.desk.statics
    town.world.run(60.0)
    assert (state(town), call_in(town)) == ("down", 200)
    assert not health.is_dead
    die(town, pbx)
    assert call_in(town, 40.0) in (408, 480)
    town.world.run(30.0)
    assert health.is_dead
    assert call_in(town, 0.5) == 480


def test_a_pbx_that_nobody_asks_is_always_tried() -> None:
    town, pbx = pbx_town(ping_s=0.0)
    die(town, pbx)
    town.world.run(100.0)
    assert not [data for _, _, to, data in town.world.wire if to == AT]
    for _ in range(3):
        assert call_in(town, 0.5) == 0, "it is being tried"
        town.world.run(60.0)


@pytest.mark.parametrize("dialled", [b"112", b"110"])
def test_a_call_for_help_from_a_pbx_that_is_down_needs_no_challenge(dialled: bytes) -> None:
    """design, invariant 1: whoever does not answer OPTIONS may speak all the same."""
    town, pbx = pbx_town()
    die(town, pbx)
    town.world.run(25.0)
    assert state(town) == "down"
    town.world.agents[AT] = pbx._receive
    call = pbx.call(dialled)
    town.world.run(5.0)
    assert call.status == 200
    assert [one.status for one in town.psap.calls] == [200]
