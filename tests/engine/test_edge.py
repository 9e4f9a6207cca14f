"""A node as a hop between another node and its customer, message by message (engine.edge)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sipproxy.engine.core import Engine
from sipproxy.engine.edge import with_token
from sipproxy.engine.peers import Peer, Peers
from sipproxy.engine.settings import Listener
from sipproxy.engine.structs import Reach
from sipproxy.engine.tokens import Tokens
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Request, Response
from tests.engine.desk import Desk
from tests.sim.conftest import make_town
from tests.sim.world import REALM

if TYPE_CHECKING:
    from sipproxy.engine.structs import Binding

PEER = Flow("UDP", 0, "192.0.2.2", 5060)
TCP = Flow("TCP", 1, "203.0.113.3", 40_000, 17)
URI = b"sip:bob@203.0.113.3:40000;transport=tcp"
PEER_VIA = b"SIP/2.0/UDP 192.0.2.2:5060"


@pytest.fixture
def desk() -> Desk:
    """A node with a UDP and a TCP listener, at which bob is registered over TCP; the other node is known."""
    world = make_town().world
    tcp = Listener(1, "TCP", b"192.0.2.1:5060", frozenset([("192.0.2.1", 5060), (REALM, 5060)]))
    settings = replace(world.settings, listeners=(*world.settings.listeners, tcp))
    engine = Engine(settings, world.engine.desk.snapshot, new_token=world.random.randbytes, key=b"k" * 32)
    desk = Desk(engine)
    assert desk.register(b"<" + URI + b">", flow=TCP, user="bob").status == 200
    engine.peers_seen([Peer("n2", (Hop("UDP", "192.0.2.2", 5060),), frozenset(["192.0.2.2"]))])
    return desk


def held(desk: Desk) -> Binding:
    [one] = desk.engine.desk.location.bindings("bob", desk.now.utc_ms)
    assert not one.token, "it is made for the store and not kept"
    return with_token(desk.engine.desk.tokens, "bob", one)


def invite(desk: Desk, token: bytes = b"", **options: object) -> bytes:
    route = (b"Route", b"<sip:192.0.2.1:5060;lr;e=%s>" % (token or held(desk).token.encode()))
    owner = (b"Record-Route", b"<sip:192.0.2.2:5060;lr;c=abc>")
    return desk.request(b"INVITE", URI, via=PEER_VIA, headers=(route, owner), **options)  # type: ignore[arg-type]


def forwarded(desk: Desk) -> Request:
    [request] = [message for message in desk.sent() if isinstance(message, Request)]
    return request


def test_invite_of_another_node_goes_over_the_customers_connection_with_two_record_routes(desk: Desk) -> None:
    desk.receive(invite(desk), PEER)
    sent = forwarded(desk)
    [action] = [a for a in desk.actions if getattr(a, "data", b"") == sent.raw]
    assert action.target == TCP  # type: ignore[union-attr]
    routes = [route.uri.raw for route in sent.record_routes]
    assert [route.partition(b";e=")[0] for route in routes[:2]] == [
        b"sip:192.0.2.1:5060;transport=tcp;lr",
        b"sip:192.0.2.1:5060;lr",
    ]  # RFC 5658: one for each side
    assert routes[2] == b"sip:192.0.2.2:5060;lr;c=abc"
    assert not sent.has(b"route")
    assert sent.max_forwards == 69
    assert desk.engine.calls.by_id == {}


def in_dialog(desk: Desk, method: bytes = b"BYE", *, drop: int = 0) -> bytes:
    """A request of either side within the dialog that the first INVITE opened."""
    desk.receive(invite(desk, call_id=b"in"), PEER)
    routes = [(b"Route", b"<%s>" % route.uri.raw) for route in forwarded(desk).record_routes][drop:]
    return desk.request(method, b"sip:x@192.0.2.9", call_id=b"in", to_tag=b"t1", headers=tuple(routes), via=PEER_VIA)


def test_request_of_the_customer_goes_to_the_node_that_brought_the_call(desk: Desk) -> None:
    data = in_dialog(desk)
    desk.receive(data, TCP)
    sent = forwarded(desk)
    [action] = [a for a in desk.actions if getattr(a, "data", b"") == sent.raw]
    assert action.target == Hop("UDP", "192.0.2.2", 5060)  # type: ignore[union-attr]
    assert [route.uri.raw for route in sent.routes] == [b"sip:192.0.2.2:5060;lr;c=abc"]


def test_request_for_a_customer_follows_him_to_his_new_connection(desk: Desk) -> None:
    data = in_dialog(desk)
    renewed = TCP._replace(port=40_001, connection=18)
    assert desk.register(b"<" + URI + b">", flow=renewed, user="bob").status == 200
    desk.receive(data, PEER)
    [action] = [a for a in desk.actions if getattr(a, "data", b"") == forwarded(desk).raw]
    assert action.target == renewed  # type: ignore[union-attr]
    answered = desk.request(b"BYE", b"sip:x@y", call_id=b"in", to_tag=b"t1", headers=_routes(data), via=PEER_VIA)
    desk.receive(answered, renewed)
    [action] = [a for a in desk.actions if getattr(a, "data", b"") == forwarded(desk).raw]
    assert action.target == Hop("UDP", "192.0.2.2", 5060)  # type: ignore[union-attr]


def _routes(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((b"Route", line[7:]) for line in data.split(b"\r\n") if line.startswith(b"Route: "))


def test_connection_that_is_gone_is_told_as_430(desk: Desk) -> None:
    desk.receive(invite(desk), PEER)
    [key] = [a.key for a in desk.actions if getattr(a, "target", None) == TCP]  # type: ignore[union-attr]
    desk.actions = desk.engine.transport_failed(key, desk.now)
    assert [m.status for m in desk.sent() if isinstance(m, Response)] == [430]


def test_invite_is_refused_its_passage_with_a_dialogs_token_or_another_callers(desk: Desk) -> None:
    """The token that the customer sees opens no call to him, and that of a dialog no other dialog."""
    data = in_dialog(desk)
    token = data.partition(b";e=")[2].partition(b">")[0]
    assert desk.answer(invite(desk, token), PEER).status == 407
    other = desk.request(b"BYE", b"sip:x@y", call_id=b"another", to_tag=b"t1", headers=_routes(data), via=PEER_VIA)
    assert desk.answer(other, PEER).status == 481
    assert desk.engine.desk.counters["edge_refused", "token"] == 2


def test_invite_after_the_bindings_end_or_from_an_unknown_node_has_no_passage(desk: Desk) -> None:
    data = invite(desk)
    assert desk.answer(data.replace(b"z9hG4bK", b"z9hG4bKx"), PEER._replace(host="192.0.2.77")).status == 407
    desk.tick(8000)
    assert desk.answer(data, PEER).status == 407
    counters = desk.engine.desk.counters
    assert (counters["edge_refused", "source"], counters["edge_refused", "token"]) == (1, 1)


@pytest.mark.parametrize("method", [b"REFER", b"SUBSCRIBE", b"MESSAGE"])
def test_method_that_nobody_decided_on_does_not_pass(desk: Desk, method: bytes) -> None:
    assert desk.answer(in_dialog(desk, method), PEER).status == 405


def test_emergency_call_with_a_made_up_token_is_an_emergency_call(desk: Desk) -> None:
    """Design: invariant 1."""
    route = (b"Route", b"<sip:192.0.2.1:5060;lr;e=made-up>")
    desk.receive(desk.request(b"INVITE", b"sip:112@sip.test", user=b"bob", headers=(route,)), TCP)
    assert forwarded(desk).uri.startswith(b"sip:112@")


@pytest.mark.parametrize("status", [b"100 Trying", b"180 Ringing"])
def test_passage_without_an_answer_is_cancelled_when_timer_c_is_over(desk: Desk, status: bytes) -> None:
    """RFC 3261 §16.6 step 11: its owner has a bound of its own, but may be dead."""
    desk.receive(invite(desk), PEER)
    sent = forwarded(desk)
    heard = b"\r\n".join(
        [b"SIP/2.0 " + status, *(line for line in sent.raw.split(b"\r\n") if line.startswith(b"Via")), *_core(sent), b"", b""]
    )
    desk.receive(heard, TCP)
    desk.tick(181)
    desk.actions = desk.engine.fire(desk.now)
    assert [m.method for m in desk.sent() if isinstance(m, Request)] == [b"CANCEL"]


def _core(sent: Request) -> list[bytes]:
    names = (b"From", b"To", b"Call-ID", b"CSeq")
    return [line for line in sent.raw.split(b"\r\n") if line.partition(b":")[0] in names]


def test_token_of_a_binding_names_its_flow_and_opens_here_alone(desk: Desk) -> None:
    one, tokens = held(desk), desk.engine.desk.tokens
    assert tokens.open(Reach, one.token.encode()) == Reach("bob", TCP, one.expires_at_ms // 1000)
    assert Tokens(b"n2" * 16).open(Reach, one.token.encode()) is None
    assert with_token(tokens, "bob", one) == one, "the same each time, so that nothing is written that the store has"


def test_peers_are_bounded_and_the_transport_is_one_that_both_have(desk: Desk) -> None:
    peers = Peers(desk.engine.desk.settings)
    peers.heard(Peer(f"p{n}", (Hop("TLS", "h"), Hop("TCP", f"10.0.0.{n}", 5060)), frozenset()) for n in range(300))
    assert peers.hop_to("p0") is None
    assert peers.hop_to("p299") == Hop("TCP", "10.0.0.299", 5060)
    peers.heard([Peer("n1", (Hop("UDP", "192.0.2.1"),), frozenset(["192.0.2.1"]))])
    assert not peers.has_host("192.0.2.1")  # ourselves


TLS = Flow("TLS", 2, "192.0.2.2", 41_000, 5)


@pytest.fixture
def proven(desk: Desk) -> Desk:
    """The same with a TLS listener that asks clients for certificates; the other node is reached over TLS too."""
    settings = desk.engine.desk.settings
    tls = Listener(2, "TLS", b"192.0.2.1:5061", frozenset([("192.0.2.1", 5061), (REALM, 5061)]))
    settings = replace(settings, listeners=(*settings.listeners, tls), clients_proven=True)
    engine = Engine(settings, desk.engine.desk.snapshot, new_token=lambda n: b"n" * n, key=b"k" * 32)
    found = Desk(engine)
    assert found.register(b"<" + URI + b">", flow=TCP, user="bob").status == 200
    engine.peers_seen([Peer("n2", (Hop("TLS", "n2.example", 5061),), frozenset(["192.0.2.2"]))])
    return found


@pytest.mark.parametrize(
    ("names", "believed"),
    [
        (("n2.example",), True),
        (("a.example", "n2.example"), True),
        ((), False),
        (("router.example",), False),
        (("192.0.2.2",), False),
    ],
)
def test_node_over_tls_is_believed_by_its_certificate_and_not_by_its_address(
    proven: Desk, names: tuple[str, ...], believed: bool
) -> None:
    """Invariant 6: whoever else has that address, or a certificate of the same authority, is a stranger."""
    proven.receive(invite(proven, call_id=b"in"), TLS._replace(names=names))
    went = [message for message in proven.sent() if isinstance(message, Request)]
    assert len(went) == believed
    assert proven.engine.desk.counters["edge_refused", "source"] == (not believed)


def test_request_within_a_dialog_of_a_node_over_tls_needs_its_certificate(proven: Desk) -> None:
    node = TLS._replace(names=("n2.example",))
    via = b"SIP/2.0/TLS n2.example:5061"
    route = (b"Route", b"<sip:192.0.2.1:5061;transport=tls;lr;e=%s>" % held(proven).token.encode())
    proven.receive(proven.request(b"INVITE", URI, call_id=b"in", via=via, headers=(route,)), node)
    routes = [(b"Route", b"<%s>" % value.uri.raw) for value in forwarded(proven).record_routes]
    bye = proven.request(b"BYE", b"sip:x@192.0.2.9", call_id=b"in", to_tag=b"t1", headers=tuple(routes), via=via)
    proven.receive(bye, TLS)
    assert not [message for message in proven.sent() if isinstance(message, Request)]
    proven.receive(bye.replace(b"branch=z9hG4bK", b"branch=z9hG4bKb"), node)
    assert forwarded(proven).method == b"BYE"
