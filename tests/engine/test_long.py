"""Requests too long for a datagram: over TCP, and over UDP after all where nobody takes TCP (RFC 3261 §18.1.1)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sipproxy.engine.actions import SendTo, TakeSlot
from sipproxy.engine.core import Engine
from sipproxy.engine.long_requests import CONNECT_S, MAX_PLACES, REMEMBER_S
from sipproxy.engine.settings import Listener
from sipproxy.sip.build import write_cancel, write_response
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Request, Response, parse_message
from tests.engine.desk import ROUTER, Desk
from tests.sim.conftest import PSAP, TRUNK_A, make_town

CONTACT = b"<sip:alice@203.0.113.1:5060>"
CALL = b"sip:03023125001@sip.test"
HELP = b"sip:112@sip.test"
LONG = (b"X-Long", b"x" * 1200)


def desk_of(*, listens: tuple[str, ...] = ("TCP",), **options: object) -> Desk:
    town = make_town(line_fields={"channels": 10})
    first = town.world.settings.listeners[0]
    hosts = frozenset([("192.0.2.1", 5070)])
    others = tuple(Listener(number, kind, b"192.0.2.1:5070", hosts) for number, kind in enumerate(listens, start=1))
    settings = replace(town.world.settings, listeners=(first, *others), slots="local", **options)  # type: ignore[arg-type]
    engine = Engine(settings, town.world.engine.desk.snapshot, new_token=town.world.random.randbytes, key=b"k" * 32)
    desk = Desk(engine)
    assert desk.register(CONTACT).status == 200
    return desk


def sent_by(desk: Desk) -> list[SendTo]:
    return [action for action in desk.actions if isinstance(action, SendTo) and not action.data.startswith(b"SIP/2.0")]


def call(desk: Desk, uri: bytes = CALL, *, call_id: bytes = b"c1") -> SendTo:
    """The INVITE that leaves."""
    lines = (desk.credentials(b"INVITE", uri), (b"Contact", CONTACT), LONG)
    desk.receive(desk.request(b"INVITE", uri, call_id=call_id, headers=lines))
    while slots := [action for action in desk.actions if isinstance(action, TakeSlot)]:
        desk.actions = desk.engine.slot_result(slots[0].slot, taken=True, used=9, now=desk.now)
    (sent,) = sent_by(desk)
    return sent


def refuse(desk: Desk, sent: SendTo) -> SendTo:
    """The connection could not be opened: what leaves then."""
    assert sent.key is not None
    desk.actions = desk.engine.transport_failed(sent.key, desk.now)
    (again,) = sent_by(desk)
    return again


def reply(desk: Desk, sent: SendTo, status: int, *, transport: str = "TCP") -> None:
    request = parse_message(sent.data)
    assert isinstance(request, Request)
    contact = [(b"Contact", b"<sip:x@198.51.100.1>")]
    answer = write_response(request, status, to_tag=b"t1", headers=contact)
    flow = Flow(transport, 1 if transport == "TCP" else 0, sent.target.host, sent.target.port, 7 if transport == "TCP" else 0)
    desk.receive(answer, flow)


def via_of(sent: SendTo) -> tuple[str, bytes, bytes]:
    request = parse_message(sent.data)
    assert isinstance(request, Request)
    return request.via.transport, request.via.host + b":%d" % (request.via.port or 0), request.via.branch or b""


def outcomes(desk: Desk) -> dict[str, int]:
    return {key[1]: count for key, count in desk.engine.desk.counters.items() if key[0] == "long_requests"}


def test_a_request_that_is_too_long_leaves_over_tcp_with_its_via() -> None:
    desk = desk_of()
    sent = call(desk)
    assert sent.target == Hop("TCP", *TRUNK_A, 1)
    assert via_of(sent)[:2] == ("TCP", b"192.0.2.1:5070")
    assert sent.connect_s == CONNECT_S
    reply(desk, sent, 486)
    acks = sent_by(desk)
    assert [(ack.target, ack.data[:3], via_of(ack)) for ack in acks] == [(sent.target, b"ACK", via_of(sent))]
    assert Response in {type(message) for message in desk.sent()}, "the caller hears it"


@pytest.mark.parametrize(("extra", "transport"), [(0, "UDP"), (1, "TCP")])
def test_the_limit_is_that_of_the_configuration_to_the_byte(extra: int, transport: str) -> None:
    length = len(call(desk_of(udp_bytes=0)).data)
    assert call(desk_of(udp_bytes=length - extra)).target.transport == transport


def test_where_tcp_is_refused_the_same_transaction_goes_over_udp_and_the_next_one_at_once() -> None:
    desk = desk_of()
    first = call(desk)
    again = refuse(desk, first)
    assert again.target == Hop("UDP", *TRUNK_A)
    assert via_of(again) == ("UDP", b"192.0.2.1:5060", via_of(first)[2])
    assert again.data.replace(b"SIP/2.0/UDP 192.0.2.1:5060", b"SIP/2.0/TCP 192.0.2.1:5070") == first.data
    reply(desk, again, 180, transport="UDP")
    assert any(isinstance(message, Response) and message.status == 180 for message in desk.sent())
    assert call(desk, call_id=b"c2").target.transport == "UDP"
    desk.tick(REMEMBER_S + 1.0)
    desk.utc_ms -= round(1000 * REMEMBER_S)  # the binding lives on
    assert call(desk, call_id=b"c3").target.transport == "TCP", "it is tried again after a while"
    assert outcomes(desk) == {"tcp": 2, "fell_back": 1, "refused_before": 1}
    assert desk.engine.desk.trunks.view()[0]["state"] == "up", "a route without TCP has not failed"


def test_over_udp_after_all_it_is_repeated_as_datagrams_are() -> None:
    desk = desk_of()
    again = refuse(desk, call(desk))
    desk.tick(0.5)
    desk.actions = desk.engine.fire(desk.now)
    assert [sent.data for sent in sent_by(desk)] == [again.data]


def test_who_accepts_connections_and_says_nothing_is_not_tried_again() -> None:
    desk = desk_of()
    call(desk)
    desk.tick(33.0)
    desk.actions = desk.engine.fire(desk.now)
    assert outcomes(desk) == {"tcp": 2, "fell_back": 1}, "the next route, too, is asked over TCP"


def test_a_call_for_help_never_waits_to_find_out_and_uses_tcp_where_it_is_known() -> None:
    desk = desk_of()
    headers = ((b"Contact", CONTACT), LONG)
    desk.receive(desk.request(b"INVITE", HELP, headers=headers, call_id=b"h1"))
    (sent,) = sent_by(desk)
    assert sent.target == Hop("UDP", *PSAP)
    assert outcomes(desk) == {"urgent": 1}
    desk.engine.desk.long_requests.learnt(sent.target, takes_tcp=True)
    desk.receive(desk.request(b"INVITE", HELP, headers=headers, call_id=b"h2"))
    (sent,) = sent_by(desk)
    assert sent.target.transport == "TCP"
    assert sent.target.host == PSAP[0]


@pytest.mark.parametrize(
    ("contact", "transport"),
    [
        (b"<sip:andrea@203.0.113.2:5062>", "TCP"),
        (b"<sip:andrea@203.0.113.2:5062;transport=udp>", "UDP"),
        (b"<sip:andrea@192.168.178.20:5062>", "UDP"),  # behind a NAT
    ],
)
def test_a_customer_is_tried_over_tcp_only_where_he_is_reached_at_his_contact(contact: bytes, transport: str) -> None:
    desk = desk_of()
    flow = Flow("UDP", 0, "203.0.113.2", 5062)
    assert desk.register(contact, flow=flow, user="andrea", call_id=b"reg-andrea").status == 200
    number = desk.engine.desk.snapshot.accounts["andrea"].numbers[0].encode()
    sent = call(desk, b"sip:%s@sip.test" % number)
    assert (sent.target.host, sent.target.transport) == ("203.0.113.2", transport)
    if transport == "TCP":
        assert refuse(desk, sent).target == flow


def test_without_a_tcp_listener_and_without_a_limit_all_goes_over_udp() -> None:
    desk = desk_of(listens=())
    assert call(desk).target.transport == "UDP"
    assert outcomes(desk) == {"no_listener": 1}
    assert call(desk_of(udp_bytes=0)).target.transport == "UDP"


def test_a_cancel_goes_the_way_of_its_invite() -> None:
    desk = desk_of()
    sent = call(desk)
    reply(desk, sent, 180)
    servers = desk.engine.desk.transactions.servers.values()
    (invite,) = (server.request for server in servers if not server.is_final and server.request.method == b"INVITE")
    desk.receive(write_cancel(invite), ROUTER)
    (cancel,) = (found for found in sent_by(desk) if found.data.startswith(b"CANCEL"))
    assert (cancel.target, via_of(cancel)) == (sent.target, via_of(sent))


def test_what_is_known_of_places_is_bounded() -> None:
    desk = desk_of()
    for number in range(MAX_PLACES + 5):
        desk.engine.desk.long_requests.learnt(Hop("UDP", f"h{number}.example", 5060), takes_tcp=False)
    assert len(desk.engine.desk.long_requests) == MAX_PLACES
    assert desk.engine.desk.counters["places_forgotten", "full"] == 5
