"""Flows of devices (RFC 5626): several of one, one that ends, and the pings that keep them open."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from sipproxy.engine.actions import EndSilent, RemoveBinding, SaveBinding, SendTo, TakeSlot
from sipproxy.engine.core import Engine
from sipproxy.engine.edge import with_token
from sipproxy.engine.location import MAX_LEFT, Location
from sipproxy.engine.peers import Peer
from sipproxy.engine.registrar import FLOW_GRACE_S
from sipproxy.engine.settings import Listener, Rates
from sipproxy.sip.build import write_response
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Request, Response
from tests.engine.desk import STRANGER, Desk
from tests.engine.test_location import binding
from tests.sim.conftest import make_town
from tests.sim.world import REALM
from tests.sip.test_stun import PLAIN

ALICE = Flow("UDP", 0, "203.0.113.1", 5060)
ONE = Flow("TCP", 1, "203.0.113.3", 40_001, 17)
TWO = Flow("TCP", 1, "203.0.113.3", 40_002, 18)
DEVICE = b';+sip.instance="<urn:uuid:00000000-0000-1000-8000-000A95A0E128>"'
OUTBOUND = ((b"Supported", b"path, outbound"),)


def make_desk(*, credit: int = 65_000, **settings: object) -> Desk:
    """A node with a UDP and a TCP listener."""
    world = make_town(rates=Rates(credit_bytes=credit)).world
    tcp = Listener(1, "TCP", b"192.0.2.1:5060", frozenset([("192.0.2.1", 5060), (REALM, 5060)]))
    found = replace(world.settings, listeners=(*world.settings.listeners, tcp), **settings)  # type: ignore[arg-type]
    return Desk(Engine(found, world.engine.desk.snapshot, new_token=world.random.randbytes, key=b"k" * 32))


@pytest.fixture
def desk() -> Desk:
    return make_desk()


def contact(flow: Flow, reg_id: int = 0, *, nat: bool = True) -> bytes:
    host = b"192.168.1.20" if nat else flow.host.encode()
    return b"<sip:bob@%s:%d;transport=tcp>%s" % (host, flow.port, b"%s;reg-id=%d" % (DEVICE, reg_id) if reg_id else b"")


def register(
    desk: Desk, flow: Flow, reg_id: int = 0, *, headers: tuple[tuple[bytes, bytes], ...] = OUTBOUND, **more: object
) -> Response:
    value = desk.credentials(b"REGISTER", b"sip:sip.test", user="bob", flow=flow)
    found = (value, (b"Contact", contact(flow, reg_id)), *headers)
    return desk.answer(desk.request(user=b"bob", headers=found, **more), flow)  # type: ignore[arg-type]


def flows(desk: Desk, user: str = "bob") -> set[tuple[Flow, int]]:
    return {(one.flow, one.reg_id) for one in desk.engine.desk.location.bindings(user, desk.utc_ms)}


def test_device_with_two_flows_has_two_bindings_and_is_told_that_they_are_kept_apart(desk: Desk) -> None:
    assert register(desk, ONE, 1).values(b"require") == [b"outbound"]
    response = register(desk, TWO, 2)
    assert flows(desk) == {(ONE, 1), (TWO, 2)}
    shown = response.lines(b"contact")
    assert [DEVICE + b";reg-id=%d" % number in b"".join(shown) for number in (1, 2)] == [True, True]


def test_new_registration_of_a_reg_id_replaces_its_flow_whatever_the_contact(desk: Desk) -> None:
    register(desk, ONE, 1)
    register(desk, TWO, 1)
    assert flows(desk) == {(TWO, 1)}


def test_reg_id_without_the_option_or_the_instance_is_no_flow_of_its_own(desk: Desk) -> None:
    response = register(desk, ONE, 1, headers=())
    assert not response.has(b"require")
    assert flows(desk) == {(ONE, 0)}
    value = desk.credentials(b"REGISTER", b"sip:sip.test", user="bob", flow=TWO)
    bare = (value, (b"Contact", contact(TWO) + b";reg-id=1"), *OUTBOUND)
    assert desk.answer(desk.request(user=b"bob", headers=bare), TWO).status == 200
    assert flows(desk) == {(ONE, 0), (TWO, 0)}


@pytest.mark.parametrize("value", [b"x", b"-1", b"2147483648"])
def test_malformed_reg_id_is_400(desk: Desk, value: bytes) -> None:
    header = desk.credentials(b"REGISTER", b"sip:sip.test", user="bob", flow=ONE)
    found = (header, (b"Contact", contact(ONE) + DEVICE + b";reg-id=" + value), *OUTBOUND)
    assert desk.answer(desk.request(user=b"bob", headers=found), ONE).status == 400
    assert flows(desk) == set()


def test_two_contacts_with_a_reg_id_are_400(desk: Desk) -> None:
    header = desk.credentials(b"REGISTER", b"sip:sip.test", user="bob", flow=ONE)
    found = (header, (b"Contact", contact(ONE, 1)), (b"Contact", contact(TWO, 2)), *OUTBOUND)
    assert desk.answer(desk.request(user=b"bob", headers=found), ONE).status == 400


def test_first_hop_that_keeps_no_flows_gets_439(desk: Desk) -> None:
    """RFC 5626 §6: who stands between the device and us says `ob` in its Path, or the flow cannot be used."""
    between = (
        (b"Via", b"SIP/2.0/TCP 203.0.113.50;branch=z9hG4bKproxy"),
        (b"Via", b"SIP/2.0/TCP 192.168.1.20;branch=z9hG4bKua"),
    )
    assert register(desk, ONE, 1, headers=(*OUTBOUND, *between)).status == 439
    assert flows(desk) == set()


def test_flow_timer_is_told_to_who_keeps_flows_apart_only() -> None:
    desk = make_desk(flow_timer_s=90)
    assert register(desk, ONE, 1).first(b"flow-timer") == b"90"
    assert not register(desk, TWO, headers=()).has(b"flow-timer")


def silences(desk: Desk) -> list[tuple[Flow, float]]:
    return [action for action in desk.actions if isinstance(action, EndSilent)]


def test_connection_that_promised_keep_alives_may_be_silent_for_its_flow_timer_and_a_grace() -> None:
    """RFC 5626 §5.4: as long as a flow is registered by it, and by no other device's connection."""
    desk = make_desk(flow_timer_s=90)
    register(desk, TWO, headers=())
    assert silences(desk) == [], "nothing was promised"
    register(desk, Flow("UDP", 0, "203.0.113.3", 5060), 2)
    assert silences(desk) == [], "there is no connection to end"
    register(desk, ONE, 1)
    assert silences(desk) == [(ONE, 90 + FLOW_GRACE_S)]
    register(desk, ONE, 1, headers=(*OUTBOUND, (b"Expires", b"0")))
    assert silences(desk) == [(ONE, 0.0)]
    unbound = make_desk()
    register(unbound, ONE, 1)
    assert silences(unbound) == [], "no time was told"


def test_connection_by_which_somebody_called_for_help_is_not_ended() -> None:
    """design, invariant 1."""
    desk = make_desk(flow_timer_s=90)
    register(desk, ONE, 1)
    calls = desk.engine.calls
    assert not calls.has_help_by(ONE)
    headers = ((b"Contact", b"<sip:bob@192.168.1.20>"),)
    desk.receive(desk.request(b"INVITE", b"sip:112@sip.test", user=b"bob", headers=headers), ONE)
    assert calls.has_help_by(ONE)
    assert not calls.has_help_by(TWO)
    (call,) = [found for found in calls.by_id.values() if found.is_live]
    desk.engine.end_call(call.id, desk.now, emergency_too=True)
    desk.tick(40)
    desk.engine.fire(desk.now)
    assert not calls.has_help_by(ONE)


def test_connection_that_ends_takes_its_binding_along_and_the_store_hears_of_it(desk: Desk) -> None:
    register(desk, ONE, 1)
    register(desk, TWO, 2)
    held = {one.reg_id: one for one in desk.engine.desk.location.bindings("bob", desk.utc_ms)}
    desk.tick(5)
    told = desk.engine.flow_closed(ONE, desk.now)
    assert flows(desk) == {(TWO, 2)}
    # Not what the device registered elsewhere since: the removal is as old as the binding.
    assert told == [RemoveBinding("bob", held[1].key, held[1].at_ms)]
    assert desk.engine.desk.counters["flows_lost", "tcp"] == 1


def test_device_without_nat_that_listens_is_connected_to_after_its_connection_ended(desk: Desk) -> None:
    """RFC 3261 §18.1.1: a client that closes its connection after each transaction is still reached."""
    value = desk.credentials(b"REGISTER", b"sip:sip.test", user="bob", flow=ONE)
    found = (value, (b"Contact", b"<sip:bob@203.0.113.3:5070;transport=tcp>"))
    assert desk.answer(desk.request(user=b"bob", headers=found), ONE).status == 200
    told = desk.engine.flow_closed(ONE, desk.now)
    again = Flow("TCP", 1, "203.0.113.3", 5070, 0)
    assert flows(desk) == {(again, 0)}
    assert [action.binding.flow for action in told if isinstance(action, SaveBinding)] == [again]


def test_own_connections_of_before_a_restart_are_gone(desk: Desk) -> None:
    register(desk, ONE, 1)
    kept = list(desk.engine.desk.location.items())
    after = make_desk()
    told = after.engine.bindings_read(kept, after.now, own_too=True)
    assert flows(after) == set()
    assert [(action.user, action.key) for action in told if isinstance(action, RemoveBinding)] == [("bob", kept[0][1].key)]


def invite(desk: Desk) -> list[Request]:
    """Alice calls bob; the INVITEs that leave once every slot is given."""
    uri = b"sip:020514001@sip.test"
    if not flows(desk, "alice"):
        assert desk.register(b"<sip:alice@203.0.113.1>").status == 200
    headers = (desk.credentials(b"INVITE", uri), (b"Contact", b"<sip:alice@203.0.113.1>"))
    desk.receive(desk.request(b"INVITE", uri, headers=headers))
    while asked := [action for action in desk.actions if isinstance(action, TakeSlot)]:
        told = (desk.engine.slot_result(one.slot, taken=True, used=1, now=desk.now) for one in asked)
        desk.actions = [action for actions in told for action in actions]
    return [sent for _, sent in sent_invites(desk)]


def sent_invites(desk: Desk) -> list[tuple[object, Request]]:
    pairs = zip([a for a in desk.actions if isinstance(a, SendTo)], desk.sent(), strict=True)
    return [(a.target, m) for a, m in pairs if isinstance(m, Request) and m.method == b"INVITE"]


def to(desk: Desk) -> list[object]:
    return [target for target, _ in sent_invites(desk)]


def test_device_with_two_flows_is_asked_once_by_the_one_it_used_last(desk: Desk) -> None:
    """RFC 5626 §5.3: never by two of them at a time."""
    register(desk, ONE, 1)
    desk.tick(1)
    register(desk, TWO, 2)
    invite(desk)
    assert to(desk) == [TWO]


def test_invite_whose_connection_ends_goes_on_by_the_next_flow_of_the_device(desk: Desk) -> None:
    register(desk, ONE, 1)
    desk.tick(1)
    register(desk, TWO, 2)
    invite(desk)
    desk.actions = desk.engine.flow_closed(TWO, desk.now)
    assert to(desk) == [ONE]
    assert desk.engine.desk.counters[("flows_failed_over",)] == 1
    desk.actions = desk.engine.flow_closed(ONE, desk.now)
    [final] = [m for m in desk.sent() if isinstance(m, Response)]
    assert final.status == 480


@pytest.mark.parametrize(("status", "next_one"), [(430, True), (408, True), (486, False), (480, False)])
def test_what_says_that_a_flow_failed_has_the_next_one_tried_and_a_device_s_word_not(
    desk: Desk, status: int, *, next_one: bool
) -> None:
    register(desk, ONE, 1)
    desk.tick(1)
    register(desk, TWO, 2)
    [sent] = invite(desk)
    desk.receive(write_response(sent, status, to_tag=b"x"), TWO)
    assert to(desk) == ([ONE] if next_one else [])


def test_flow_of_another_node_that_has_failed_there_is_followed_by_the_one_here(desk: Desk) -> None:
    """430 of the node that has the first flow (RFC 5626 §5.3.1): the device is asked by its flow at this node."""
    register(desk, ONE, 1)
    held = desk.engine.desk.location.bindings("bob", desk.utc_ms)[0]
    desk.tick(1)
    desk.engine.peers_seen([Peer("n2", (Hop("UDP", "192.0.2.2", 5060),), frozenset(["192.0.2.2"]))])
    told = with_token(desk.engine.desk.tokens, "bob", held)
    there = msgspec.structs.replace(told, key=held.key[:-1] + "2", reg_id=2, node="n2", at_ms=desk.utc_ms, call_id="other")
    desk.engine.binding_seen("bob", there, desk.now)
    [sent] = invite(desk)
    assert to(desk) == [Hop("UDP", "192.0.2.2", 5060)]
    desk.receive(write_response(sent, 430, to_tag=b"x"), Flow("UDP", 0, "192.0.2.2", 5060))
    assert to(desk) == [ONE]


def test_other_devices_of_the_account_ring_at_the_same_time(desk: Desk) -> None:
    register(desk, ONE, 1)
    third = Flow("TCP", 1, "203.0.113.4", 40_003, 19)
    register(desk, third, headers=())
    invite(desk)
    assert set(to(desk)) == {ONE, third}


def test_flows_that_were_left_are_remembered_up_to_a_bound() -> None:
    location = Location(10)
    for port in range(MAX_LEFT + 2):
        location.put("u", binding("a", Flow("UDP", 0, "203.0.113.1", port + 1), 100))
    assert len(location._left) == MAX_LEFT


def test_device_that_registered_anew_is_found_by_its_old_flow() -> None:
    location = Location(10)
    location.put("u", binding("a", ONE, 100))
    location.put("u", binding("a", TWO, 100))
    assert location.successor("u", ONE, 0) == TWO
    assert location.successor("u", ALICE, 0) == ALICE, "nobody was there"
    location.put("u", binding("b", ONE, 100))
    assert location.successor("u", ONE, 0) == ONE, "somebody of the account is there again"


# STUN


def stun(desk: Desk, flow: Flow) -> list[bytes]:
    return [a.data for a in desk.engine.receive(PLAIN, flow, desk.now) if isinstance(a, SendTo) and a.target == flow]


def test_stun_of_a_registered_router_is_answered_with_its_address(desk: Desk) -> None:
    assert desk.register(b"<sip:alice@203.0.113.1>").status == 200
    assert [answer[:2] for answer in stun(desk, ALICE)] == [b"\x01\x01"]


def test_stun_of_a_stranger_is_answered_within_his_credit_only() -> None:
    """Whoever forges a source cannot aim more at it than he sends himself, but for the credit that each source begins with."""
    desk = make_desk(credit=200)
    answers = [len(answer) for _ in range(100) for answer in stun(desk, STRANGER)]
    assert sum(answers) <= 100 * len(PLAIN) + 200
    assert desk.engine.desk.counters["stun", "credit"] > 0


def test_stun_flood_of_a_source_is_shed_before_it_is_read() -> None:
    desk = make_desk()
    for _ in range(1500):
        stun(desk, STRANGER)
    assert desk.engine.desk.counters["stun", "shed"] > 0


def test_stun_over_a_connection_is_no_stun(desk: Desk) -> None:
    assert stun(desk, ONE) == []
