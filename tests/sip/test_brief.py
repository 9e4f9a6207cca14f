"""An answer that is made of a request's bytes says what one made of the parsed request says (RFC 3261 §8.2.6)."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipproxy.sip.brief import parse_brief, write_unavailable
from sipproxy.sip.build import write_response
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import Flow
from sipproxy.sip.matching import server_key
from sipproxy.sip.message import Request, check_message, parse_message, salvage

FLOW = Flow("UDP", 0, "203.0.113.7", 40_001)
LINES = (
    b"Via: SIP/2.0/UDP 192.168.178.1:5060;rport;branch=z9hG4bKa.1-x",
    b"v: SIP/2.0/UDP Box.example;alias;branch=z9hG4bK9;rport;x=1",
    b"Via: SIP/2.0/UDP [2001:db8::1]:5070;branch=z9hG4bK9;rport",
    b"VIA : SIP/2.0/UDP a;rport;branch=z9hG4bK1",
    b"Via: SIP/2.0/UDP a;rport=5;branch=z9hG4bK1",
    b"Via: SIP/2.0/UDP a;rport;branch=z9hG4bK",
    b"Via: SIP/2.0/UDP a;branch=z9hG4bK1, SIP/2.0/UDP b;rport;branch=z9hG4bK2",
    b"Via: SIP/2.0/TCP a;branch=z9hG4bK1",
    b"Via: SIP/2.0/UDP a:99999;rport;branch=z9hG4bK1",
    b"f: Alice <sip:alice@sip.test>;tag=1",
    b"From: <sip:alice@sip.test>;tag=2",
    b"To: <sip:alice@sip.test>",
    b"To: <sip:alice@sip.test>;tag=3",
    b"t :\r\n <sip:alice@sip.test>",
    b"Call-ID: c1",
    b"i: c2",
    b"CSeq: 7 REGISTER",
    b"CSeq: 7 INVITE",
    b"Contact: <sip:alice@192.168.178.1>\r\n ;expires=60",
    b"Subject: To: <sip:x>",
    b"Content-Length: 0",
    b"X: a\rb",
    b"X: a\nTo: b",
)
PLAIN = b"\r\n".join((b"REGISTER sip:sip.test SIP/2.0", *(LINES[n] for n in (0, 9, 11, 14, 16)), b"", b""))


@settings(max_examples=400)
@given(st.lists(st.sampled_from(LINES), max_size=9), st.permutations((0, 9, 11, 14, 16)), st.booleans())
def test_brief_answer_is_the_same_message_as_the_one_made_of_the_parsed_request(
    others: list[bytes], needed: list[int], complete: bool
) -> None:
    lines = [LINES[number] for number in needed] * complete + others
    data = b"\r\n".join((b"REGISTER sip:sip.test SIP/2.0", *lines, b"", b""))
    brief, request = parse_brief(data), salvage(data)
    if brief is None:
        return
    assert isinstance(request, Request)
    request.stamp(FLOW.host, FLOW.port)
    with contextlib.suppress(ParseError):  # what the salvaged request has no more, its key would be made of
        assert brief.key == server_key(request)
    whole = parse_message(write_response(request, 503, to_tag=b"abc", headers=[(b"Retry-After", b"9")]))
    answer = parse_message(write_unavailable(brief, FLOW, tag=b"abc", retry_s=9))
    assert answer.lines_raw[0] == whole.lines_raw[0]
    assert sorted(answer.values(b"via")[1:]) == sorted(whole.values(b"via")[1:])
    params = [set(one.via.params) for one in (answer, whole)]
    assert (answer.via.raw.partition(b";")[0], params[0]) == (whole.via.raw.partition(b";")[0], params[1])
    for name in (b"from", b"to", b"call-id", b"cseq", b"retry-after", b"content-length"):
        assert answer.lines(name) == whole.lines(name)


def test_plain_request_is_answered_briefly_and_the_answer_is_whole() -> None:
    brief = parse_brief(PLAIN)
    assert brief is not None
    check_message(parse_message(write_unavailable(brief, FLOW, tag=b"abc", retry_s=9)))


@pytest.mark.parametrize("line", [LINES[n] for n in (1, 4, 5, 6, 7, 10, 12, 15, 17, 18, 21, 22)])
def test_what_is_out_of_the_ordinary_is_left_to_the_parser(line: bytes) -> None:
    """Another line of the kind, or a line that is not one."""
    data = PLAIN.replace(LINES[0], line) if b"Via" in line else PLAIN.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")
    assert (parse_brief(data) is None) == (line != LINES[1])


@pytest.mark.parametrize("to", [b"To: <sip:alice@sip.test>;tag=3", b"t: <sip:alice@sip.test> ; TAG=x"])
def test_request_with_a_to_tag_is_left_to_the_parser(to: bytes) -> None:
    """An answer has that tag and no other (RFC 3261 §8.2.6.2)."""
    assert parse_brief(PLAIN.replace(LINES[11], to)) is None


def test_key_of_a_via_with_port_0_is_that_of_its_transaction() -> None:
    """So that a copy of what was taken is known."""
    data = PLAIN.replace(b"192.168.178.1:5060", b"192.168.178.1:0")
    brief, request = parse_brief(data), parse_message(data)
    assert brief is not None
    assert isinstance(request, Request)
    assert brief.key == server_key(request)


@settings(max_examples=200)
@given(st.binary(max_size=60), st.integers(0, len(PLAIN)), st.integers(0, 20))
def test_no_bytes_break_it(piece: bytes, at: int, cut: int) -> None:
    brief = parse_brief(PLAIN[:at] + piece + PLAIN[at + cut :])
    if brief is not None:
        answer = write_unavailable(brief, FLOW, tag=b"abc", retry_s=9)
        assert answer.count(b"\r\n\r\n") == 1
        assert answer.endswith(b"\r\n\r\n")
