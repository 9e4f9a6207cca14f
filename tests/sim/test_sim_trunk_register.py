"""The node's own registration at a carrier (RFC 3261 §10.2): sent, answered for, refreshed, tried again."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, cast

import pytest

from sipproxy.sip.flow import Hop
from tests.sim.carrier import CREDENTIALS, PASSWORD, Carrier, carrier_town

if TYPE_CHECKING:
    from tests.sim.conftest import Town

REGISTER: dict[str, object] = {**CREDENTIALS, "register": True}


def registering_town(**route: object) -> tuple[Town, Carrier]:
    town = carrier_town(a={**REGISTER, **route})
    first = cast("Carrier", town.trunk)
    first.asks = frozenset([b"REGISTER"])
    return town, first


def row(town: Town) -> dict[str, Any]:
    return town.world.engine.desk.trunks.view()[0]


def sent(town: Town) -> list[float]:
    """When REGISTERs left, retransmissions included."""
    return [at for at, _, to, data in town.world.wire if to == town.trunk.address and data.startswith(b"REGISTER ")]


def test_registration_is_answered_for_and_refreshed_before_it_ends() -> None:
    town, first = registering_town()
    town.world.run(1.0)
    assert row(town)["registration"] == "registered"
    assert row(town)["expires_at_ms"] == pytest.approx(town.world.instant.utc_ms + 600_000, abs=2000)
    (register,) = first.registers
    assert register.uri == b"sip:198.51.100.1:5060"
    assert register.first(b"to") == b"<sip:node-77@198.51.100.1:5060>"
    assert register.first(b"contact") == b"<sip:node-77@192.0.2.1:5060>"
    town.world.run(3600.0)
    assert len(first.registers) in (7, 8), "600 s granted, refreshed after four fifths"
    assert {r.call_id for r in first.registers} == {register.call_id}
    assert first.faults == []
    assert row(town)["registration"] == "registered"
    assert [note.event for note in town.world.notes] == ["trunk_registered"]


def test_short_registration_leaves_time_for_a_repeated_refresh() -> None:
    town, first = registering_town()
    first.grant_s = 60
    town.world.run(301.0)
    assert len(first.registers) == 11


def test_domain_of_the_registered_address_may_differ_from_the_hop() -> None:
    town, first = registering_town(domain="tel.example")
    town.world.run(1.0)
    (register,) = first.registers
    assert (register.uri, register.first(b"to")) == (b"sip:tel.example", b"<sip:node-77@tel.example>")


def test_refused_registration_is_tried_again_with_growing_pauses_and_comes_back() -> None:
    town, first = registering_town()
    first.asks, first.register_status = frozenset(), 403
    town.world.run(600.0)
    times = sent(town)
    pauses = [b - a for a, b in itertools.pairwise(times)]
    assert pauses[0] == pytest.approx(5, abs=0.1)
    assert all(b >= a for a, b in itertools.pairwise(pauses))
    assert len(times) < 10
    assert row(town)["registration"] == "refused 403"
    assert [note.event for note in town.world.notes] == ["trunk_not_registered"], "told once, not at every attempt"
    first.register_status = 200
    town.world.run(310.0)
    assert row(town)["registration"] == "registered"


def test_wrong_password_is_not_tried_over_and_over() -> None:
    town, first = registering_town(password="wrong")
    town.world.run(600.0)
    assert row(town)["registration"] == "refused 407"
    assert row(town)["last_failure"] == "credentials"
    assert len(first.challenged) < 20
    assert first.registers == []


def test_silent_carrier_is_asked_again_and_the_route_counts_it() -> None:
    town, first = registering_town()
    del town.world.agents[first.address]
    town.world.run(120.0)
    assert row(town)["registration"] == "silent"
    assert row(town)["state"] == "down"
    town.world.agents[first.address] = first._receive
    town.world.run(300.0)
    assert (row(town)["registration"], row(town)["state"]) == ("registered", "up")


def test_interval_too_brief_is_asked_for_again_with_what_the_carrier_wants() -> None:
    """§10.2.8."""
    town, first = registering_town(expires_s=300)
    first.least_s = 1200
    town.world.run(2.0)
    (register,) = first.registers
    assert register.first(b"expires") == b"1200"


def test_stale_nonce_is_answered_once_more() -> None:
    town, first = registering_town()
    first.stale = 1
    town.world.run(2.0)
    assert row(town)["registration"] == "registered"


def test_lost_messages_do_not_end_a_registration() -> None:
    town = carrier_town(seed=3, a=REGISTER, loss=0.3)
    first = cast("Carrier", town.trunk)
    first.asks = frozenset([b"REGISTER"])
    town.world.run(20.0)
    for _ in range(120):
        town.world.run(60.0)
        assert row(town)["expires_at_ms"] is not None
    assert first.faults == []
    assert PASSWORD.encode() not in b"".join(data for *_, data in town.world.wire)


def test_calls_go_out_while_the_registration_is_refused() -> None:
    town, first = registering_town()
    first.asks, first.register_status = frozenset(), 403
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    assert call.status == 200
    assert len(first.calls) == 1


@pytest.mark.parametrize(
    ("lines", "granted_s"),
    [
        ((), 3600),
        (((b"Expires", b"900"),), 900),
        (((b"Contact", b"<sip:other@192.0.2.77>;expires=5"), (b"Expires", b"1200")), 1200),
        (((b"Contact", b"<<<"), (b"Expires", b"1300")), 1300),
    ],
)
def test_lifetime_comes_from_our_contact_else_expires_else_what_we_asked_for(
    lines: tuple[tuple[bytes, bytes], ...], granted_s: int
) -> None:
    """§10.2.4."""
    town, first = registering_town()
    first.granted = lambda _: lines  # type: ignore[method-assign]
    town.world.run(1.0)
    assert row(town)["expires_at_ms"] == pytest.approx(town.world.instant.utc_ms + granted_s * 1000, abs=2000)


def test_registration_that_is_granted_no_time_is_none() -> None:
    town, first = registering_town()
    first.grant_s = 0
    town.world.run(1.0)
    assert row(town)["registration"] == "refused 200"


def test_route_without_a_listener_of_its_transport_stays_unregistered() -> None:
    town, first = registering_town(hop=Hop("TCP", "198.51.100.1", 5060), ping_s=5.0)
    town.world.run(60.0)
    assert row(town)["registration"] == "silent"
    assert not first.requests
