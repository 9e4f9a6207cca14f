"""Responses (RFC 3261 §8.2.6), ACK (§17.1.1.3), CANCEL (§9.1) and requests of our own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sip_strategies import Model, models

from sipproxy.sip.build import REASONS, write_ack, write_cancel, write_request, write_response
from sipproxy.sip.headers import CSeq
from sipproxy.sip.message import Request, Response, check_message, parse_message, salvage

INVITE = (
    b"INVITE sip:b@192.0.2.3;x=1 SIP/2.0\r\n"
    b"v: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1,\r\n SIP/2.0/UDP 192.0.2.2;branch=z9hG4bK0\r\n"
    b"Via: SIP/2.0/TCP h;branch=z9hG4bKa\r\n"
    b'f: "A" <sip:a@example.com>;tag=1\r\n'
    b"t: sip:b@example.com\r\n"
    b"i: c@h\r\n"
    b"CSeq: 0017 INVITE\r\n"
    b"Timestamp: 54\r\n"
    b"Route: <sip:p1;lr>, <sip:p2;lr>\r\n"
    b"Route: <sip:p3;lr>\r\n"
    b"Require: 100rel\r\n"
    b"Content-Length: 2\r\n\r\nv="
)


def request(data: bytes = INVITE) -> Request:
    message = parse_message(data)
    assert isinstance(message, Request)
    return message


def test_write_response_copies_what_section_8_2_6_names() -> None:
    out = write_response(request(), 486, to_tag=b"zz", headers=[(b"Reason", b"Q.850;cause=17")])
    assert out == (
        b"SIP/2.0 486 Busy Here\r\n"
        b"v: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1,\r\n SIP/2.0/UDP 192.0.2.2;branch=z9hG4bK0\r\n"
        b"Via: SIP/2.0/TCP h;branch=z9hG4bKa\r\n"
        b'f: "A" <sip:a@example.com>;tag=1\r\n'
        b"t: sip:b@example.com;tag=zz\r\n"
        b"i: c@h\r\n"
        b"CSeq: 0017 INVITE\r\n"
        b"Reason: Q.850;cause=17\r\n"
        b"Content-Length: 0\r\n\r\n"
    )


def test_write_response_100_copies_timestamp_and_body_sets_length() -> None:
    assert b"\r\nTimestamp: 54\r\n" in write_response(request(), 100)
    out = write_response(request(), 200, b"Fine", headers=[(b"Content-Type", b"a/b")], body=b"\x00\r\n")
    assert out.startswith(b"SIP/2.0 200 Fine\r\n")
    assert out.endswith(b"Content-Type: a/b\r\nContent-Length: 3\r\n\r\n\x00\r\n")
    assert b"Timestamp" not in out


def test_write_response_to_with_tag_keeps_it() -> None:
    out = write_response(request(INVITE.replace(b"t: sip:b@example.com", b"t: sip:b@example.com;tag=old")), 200, to_tag=b"new")
    assert b"t: sip:b@example.com;tag=old\r\n" in out
    assert b"new" not in out


def test_write_response_of_stamped_request_has_the_top_via_stamped() -> None:
    message = request()
    message.stamp("198.51.100.7", 1234)
    assert b"v: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1;received=198.51.100.7,\r\n SIP/2.0/UDP" in write_response(message, 404)


def test_write_response_to_a_request_without_the_needed_lines_invents_none() -> None:
    """RFC 4475 §3.3.1."""
    out = write_response(request(b"INVITE sip:b@h SIP/2.0\r\nCSeq: 1 INVITE\r\n\r\n"), 400, to_tag=b"x")
    assert out == b"SIP/2.0 400 Bad Request\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"


def test_write_response_with_unreadable_to_copies_it() -> None:
    out = write_response(request(INVITE.replace(b"t: sip:b@example.com", b't: "open <sip:b>')), 400, to_tag=b"x")
    assert b'\r\nt: "open <sip:b>\r\n' in out


def test_write_response_unregistered_status_has_the_phrase_of_its_class() -> None:
    assert write_response(request(), 499).startswith(b"SIP/2.0 499 Request Failure\r\n")


@pytest.mark.parametrize(("reason", "value"), [(b"a\r\nX: y", b"1"), (b"", b"1\r\nX: y")])
def test_write_response_line_end_in_our_text_is_our_fault(reason: bytes, value: bytes) -> None:
    with pytest.raises(ValueError, match="line end"):
        write_response(request(), 400, reason, headers=[(b"Reason", value)])


@given(models(), st.sampled_from(sorted(REASONS)))
def test_write_response_parses_back_with_the_same_identity(model: Model, status: int) -> None:
    message = parse_message(model.write())
    assert isinstance(message, Request)
    message.stamp("192.0.2.200", 5099)
    response = parse_message(write_response(message, status, to_tag=b"ours", body=b"xyz"))
    assert isinstance(response, Response)
    check_message(response)
    assert (response.status, response.reason, response.body) == (status, REASONS[status], b"xyz")
    assert (response.from_, response.call_id, response.cseq) == (message.from_, message.call_id, message.cseq)
    assert response.to.tag == (message.to.tag or b"ours")
    assert response.to.uri == message.to.uri
    assert response.vias[1:] == message.vias[1:]
    assert response.via.branch == message.via.branch
    assert response.via.param(b"received") == b"192.0.2.200"  # no generated sent-by is that address
    if message.via.param(b"rport") is not None:
        assert response.via.param(b"rport") == b"5099"


def test_write_ack_is_built_as_section_17_1_1_3_says() -> None:
    response = parse_message(write_response(request(), 486, to_tag=b"remote"))
    assert isinstance(response, Response)
    assert write_ack(request(), response) == (
        b"ACK sip:b@192.0.2.3;x=1 SIP/2.0\r\n"
        b"Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\n"
        b"Route: <sip:p1;lr>, <sip:p2;lr>\r\n"
        b"Route: <sip:p3;lr>\r\n"
        b"Max-Forwards: 70\r\n"
        b'f: "A" <sip:a@example.com>;tag=1\r\n'
        b"t: sip:b@example.com;tag=remote\r\n"
        b"i: c@h\r\n"
        b"CSeq: 17 ACK\r\n"
        b"Content-Length: 0\r\n\r\n"
    )


def test_write_cancel_is_built_as_section_9_1_says() -> None:
    cancel = parse_message(write_cancel(request()))
    assert isinstance(cancel, Request)
    check_message(cancel)
    assert (cancel.method, cancel.uri, cancel.cseq) == (b"CANCEL", b"sip:b@192.0.2.3;x=1", CSeq(17, b"CANCEL"))
    assert [via.raw for via in cancel.vias] == [b"SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1"]
    assert (cancel.to.tag, cancel.from_.tag, cancel.call_id) == (None, b"1", b"c@h")
    assert [route.uri.host for route in cancel.routes] == [b"p1", b"p2", b"p3"]
    assert not cancel.has(b"require")  # §9.1: MUST NOT contain Require or Proxy-Require


def test_write_request_parses_back() -> None:
    headers = [(b"Via", b"SIP/2.0/UDP h;branch=z9hG4bK1"), (b"X-A", b"1")]
    message = parse_message(write_request(b"OPTIONS", b"sip:a@h", headers, b"body"))
    assert isinstance(message, Request)
    assert (message.method, message.uri, message.body, message.first(b"x-a")) == (b"OPTIONS", b"sip:a@h", b"body", b"1")
    assert message.content_length == 4


@pytest.mark.parametrize(("method", "uri"), [(b"", b"sip:a"), (b"A B", b"sip:a"), (b"A", b"sip:a\r\nX: y"), (b"A", b"")])
def test_write_request_broken_request_line_is_our_fault(method: bytes, uri: bytes) -> None:
    with pytest.raises(ValueError, match="request line"):
        write_request(method, uri, [])


def test_salvage_of_a_refused_request_answers_it_without_its_faults() -> None:
    data = INVITE.replace(b"Content-Length: 2", b"Content-Length: 2\r\nl: 9\r\nX: \x01\r\nCSeq: 9 X")
    found = salvage(b"\r\n" + data)
    assert found is not None
    found.stamp("192.0.2.1", 5060)
    out = write_response(found, 400, to_tag=b"s")
    assert out.startswith(b"SIP/2.0 400 Bad Request\r\nv: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1,\r\n SIP")
    assert out.count(b"CSeq") == 1
    assert b"t: sip:b@example.com;tag=s\r\ni: c@h\r\nCSeq: 0017 INVITE\r\nContent-Length: 0\r\n\r\n" in out


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nVia: x\r\n\r\n",
        b"ACK  sip:b@h SIP/2.0\r\nVia: SIP/2.0/UDP h\r\n\r\n",
        b"SIP/2.0 9999 x\r\nVia: SIP/2.0/UDP h\r\n\r\n",
        b"INVITE  sip:b@h SIP/2.0\r\nTo: sip:b@h\r\n\r\n",
        b"INVITE  sip:b@h SIP/2.0\r\nVia: SIP/2.0/UDP h\rX\r\n\r\n",
        b"A" * 65 + b"  sip:b@h SIP/2.0\r\nVia: SIP/2.0/UDP h\r\n\r\n",
    ],
)
def test_salvage_where_nothing_can_be_answered_is_none(data: bytes) -> None:
    assert salvage(data) is None
