"""Requests that are not calls: what is answered, refused or dropped (RFC 3261 §8.2, §16.3; design, invariant 6)."""

from __future__ import annotations

import pytest

from sipproxy.engine.actions import SendTo, TakeSlot
from sipproxy.sip.digest import parse_challenge, write_credentials
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Request
from tests.engine.desk import STRANGER, Desk
from tests.sim.conftest import TRUNK_A


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_options_is_answered_with_what_we_allow(desk: Desk) -> None:
    response = desk.answer(desk.request(b"OPTIONS"), STRANGER)
    assert response.status == 200
    assert b"INVITE" in response.values(b"allow")


@pytest.mark.parametrize(
    ("method", "status"),
    [(b"MESSAGE", 405), (b"SUBSCRIBE", 405), (b"PUBLISH", 405), (b"REFER", 405), (b"INFO", 405), (b"BREW", 501)],
)
def test_other_methods_outside_a_dialog_are_refused(desk: Desk, method: bytes, status: int) -> None:
    uri = b"sip:+4960323001@sip.test"
    if status == 405:
        assert desk.answer(desk.request(method, uri), STRANGER).status == 407  # who he is comes first
        proof = (desk.credentials(method, uri),)
        assert desk.answer(desk.request(method, uri), Flow("UDP", 0, *TRUNK_A)).status == status
    response = desk.answer(desk.request(method, uri, headers=proof if status == 405 else ()))
    assert response.status == status
    assert response.has(b"allow")


@pytest.mark.parametrize(
    ("uri", "status"), [(b"isbn:2983792873", 416), (b"soap.beep://192.0.2.103:3002", 416), (b"tel:+49301", 200)]
)
def test_options_for_a_scheme_that_nobody_knows_is_416(desk: Desk, uri: bytes, status: int) -> None:
    """RFC 4475 §3.3.2, §3.3.3."""
    assert desk.answer(desk.request(b"OPTIONS", uri), STRANGER).status == status


def test_request_whose_via_or_from_cannot_be_read_is_answered_to_where_it_came_from(desk: Desk) -> None:
    """RFC 4475 §3.1.2.1, §3.3.1."""
    good = desk.request(b"INVITE", b"sip:1@sip.test")
    for bad in (
        good.replace(b";rport", b";;,;,,"),
        good.replace(b"From:", b"X-From:"),
        good.replace(b"Call-ID:", b"X-Call-ID:"),
    ):
        assert desk.answer(bad, STRANGER).status == 400
        (action,) = [action for action in desk.actions if isinstance(action, SendTo)]
        assert (action.target.host, action.target.port) == (STRANGER.host, STRANGER.port)


@pytest.mark.parametrize("method", [b"BYE", b"INVITE", b"UPDATE", b"INFO", b"OPTIONS", b"MESSAGE", b"REFER", b"BREW"])
def test_made_up_dialog_is_481_and_goes_nowhere(desk: Desk, method: bytes) -> None:
    route = (b"Route", b"<sip:192.0.2.1:5060;lr;c=0123456789abcdef01234567>")
    messages = desk.receive(desk.request(method, b"sip:bob@203.0.113.3", to_tag=b"x", headers=(route,)), STRANGER)
    assert [m.status for m in messages if not isinstance(m, Request)] == [481]
    assert not [m for m in messages if isinstance(m, Request)]


def test_preloaded_route_to_elsewhere_goes_nowhere(desk: Desk) -> None:
    for method in (b"INVITE", b"OPTIONS", b"REGISTER", b"MESSAGE"):
        data = desk.request(method, b"sip:x@198.51.100.66", headers=((b"Route", b"<sip:198.51.100.66;lr>"),))
        assert not [m for m in desk.receive(data, STRANGER) if isinstance(m, Request)]


def test_stray_ack_and_stray_response_are_dropped_and_counted(desk: Desk) -> None:
    assert desk.receive(desk.request(b"ACK", b"sip:bob@sip.test", to_tag=b"x")) == []
    assert desk.receive(desk.request(b"ACK", b"sip:bob@sip.test")) == []
    answer = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKnone\r\nFrom: <sip:a@b>;tag=1\r\n"
    answer += b"To: <sip:c@d>;tag=2\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"
    assert desk.receive(answer) == []
    assert desk.engine.desk.counters["responses_dropped", "branch"] == 1
    assert desk.receive(answer.replace(b"z9hG4bKnone", desk.engine.desk.branch())) == []
    assert desk.engine.desk.counters["responses_dropped", "no_transaction"] == 1


def test_cancel_without_its_invite_is_481(desk: Desk) -> None:
    assert desk.answer(desk.request(b"CANCEL", b"sip:bob@sip.test")).status == 481


def test_exhausted_max_forwards_is_483(desk: Desk) -> None:
    assert desk.answer(desk.request(b"INVITE", b"sip:1@sip.test", headers=((b"Max-Forwards", b"0"),))).status == 483


def test_proxy_require_of_anything_but_privacy_is_420(desk: Desk) -> None:
    response = desk.answer(desk.request(b"INVITE", b"sip:1@sip.test", headers=((b"Proxy-Require", b"privacy, foo"),)))
    assert (response.status, response.first(b"unsupported")) == (420, b"foo")


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (b"", []),
        (b"\r\n\r\n", []),
        (b"\x00\x01\x02", []),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", []),
        (b"INVITE sip:1@sip.test SIP/2.0\r\n\r\n", []),
        ((b"INVITE sip:1@sip.test SIP/7.0\r\nVia: SIP/2.0/UDP 203.0.113.1;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\n"
         b"To: <sip:c@d>\r\nCall-ID: x\r\nCSeq: 1 INVITE\r\nMax-Forwards: 70\r\n\r\n"), [505]),
        ((b"INVITE sip:1@sip.test SIP/2.0\r\nVia: SIP/2.0/UDP 203.0.113.1;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\n"
         b"To: <sip:c@d>\r\nCall-ID: x\r\nCSeq: one INVITE\r\nMax-Forwards: 70\r\n\r\n"), [400]),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_answered_or_dropped_never_raised(desk: Desk, data: bytes, statuses: list[int]) -> None:
    assert [m.status for m in desk.receive(data, STRANGER) if not isinstance(m, Request)] == statuses


def test_invite_of_a_stranger_is_challenged_without_keeping_state(desk: Desk) -> None:
    response = desk.answer(desk.request(b"INVITE", b"sip:03023125001@sip.test", user=b"nobody"), STRANGER)
    assert response.status == 407
    assert not desk.engine.desk.transactions.servers
    assert not desk.engine.calls.by_id


def test_emergency_of_a_stranger_is_challenged_not_routed(desk: Desk) -> None:
    """NotrufV § 4(5): a line that is not proven has no location; credentials still prove it."""
    data = desk.request(b"INVITE", b"sip:112@sip.test", headers=((b"Contact", b"<sip:alice@203.0.113.99>"),))
    assert desk.answer(data, STRANGER).status == 407
    value = desk.credentials(b"INVITE", b"sip:112@sip.test", flow=STRANGER)
    proven = desk.request(b"INVITE", b"sip:112@sip.test", headers=(value, (b"Contact", b"<sip:alice@203.0.113.99>")))
    invites = [m for m in desk.receive(proven, STRANGER) if isinstance(m, Request)]
    assert [m.uri for m in invites] == [b"sip:112@198.51.100.112:5060"]


@pytest.mark.parametrize(
    ("uri", "accepted"),
    [
        (b"sip:03023125001@sip.test", True),
        (b"sip:sip.test:5060", True),
        (b"sip:192.0.2.1:5060", True),
        (b"sip:elsewhere.example", False),
        (b"sip:09001123456@sip.test", False),
        (b"tel:03023125001", False),
        (b"junk", False),
    ],
)
def test_digest_uri_is_the_request_uri_or_its_domain(desk: Desk, uri: bytes, accepted: bool) -> None:
    target = b"sip:03023125001@sip.test"
    challenged = desk.answer(desk.request(b"INVITE", target))
    challenge = parse_challenge(challenged.lines(b"proxy-authenticate")[0])
    value = write_credentials(challenge, method=b"INVITE", uri=uri, user="alice", password="ecila", cnonce=b"1", nc=1)
    headers = ((b"Proxy-Authorization", value), (b"Contact", b"<sip:alice@203.0.113.1>"))
    desk.receive(desk.request(b"INVITE", target, headers=headers))
    statuses = [m.status for m in desk.sent() if not isinstance(m, Request)]
    assert statuses == ([] if accepted else [407])
    assert any(isinstance(action, TakeSlot) for action in desk.actions) is accepted


def test_other_realms_credentials_travel_on_and_ours_do_not(desk: Desk) -> None:
    """RFC 3261 §22.3."""
    target = b"sip:03023125001@sip.test"
    foreign = b'Digest username="a", realm="carrier.example", nonce="n", uri="sip:x", response="' + b"0" * 32 + b'"'
    headers = (
        (b"Proxy-Authorization", foreign),
        desk.credentials(b"INVITE", target),
        (b"Contact", b"<sip:alice@203.0.113.1>"),
    )
    desk.receive(desk.request(b"INVITE", target, headers=headers))
    take = next(a for a in desk.actions if hasattr(a, "limit"))
    actions = desk.engine.slot_result(take.slot, taken=True, used=1, now=desk.now)
    (sent,) = [a.data for a in actions if isinstance(a, SendTo) and a.data.startswith(b"INVITE")]
    assert sent.count(b"Proxy-Authorization:") == 1
    assert b'realm="carrier.example"' in sent


def test_closed_node_takes_emergencies_alone() -> None:
    """Design §8: a full disk refuses new calls, never 110 and 112."""
    desk = Desk()
    desk.engine.close("journal")
    contact = (b"Contact", b"<sip:alice@203.0.113.1>")
    for target, statuses in ((b"sip:03023125001@sip.test", [503]), (b"sip:112@sip.test", [100])):
        value = desk.credentials(b"INVITE", target)
        desk.receive(desk.request(b"INVITE", target, headers=(value, contact)))
        assert [m.status for m in desk.sent() if not isinstance(m, Request)] == statuses
    desk.engine.open("journal")
    value = desk.credentials(b"INVITE", b"sip:03023125001@sip.test")
    desk.receive(desk.request(b"INVITE", b"sip:03023125001@sip.test", headers=(value, contact)))
    assert [m.status for m in desk.sent() if not isinstance(m, Request)] == []
    assert any(isinstance(action, TakeSlot) for action in desk.actions)


def test_head_of_an_unreadable_stream_message_is_answered_on_its_connection() -> None:
    """RFC 3261 §18.3: without a Content-Length that can be trusted nothing after the head can be read."""
    desk, flow = Desk(), Flow("TCP", 0, "203.0.113.1", 40000, 7)
    head = desk.request(b"INVITE", b"sip:1@sip.test").replace(b"Content-Length: 0", b"Content-Length: -1")
    fault = ParseError("bad length", status=400)
    (action,) = desk.engine.refuse_stream(head, fault, flow, desk.now)
    assert isinstance(action, SendTo)
    assert action.target == flow
    assert action.data.startswith(b"SIP/2.0 400 ")
