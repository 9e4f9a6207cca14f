"""What is told of a message by its bytes alone is what the parser tells of it, in every way to write it (`engine.kinds`).

Where the two differ the message is taken for the more urgent one: a call for help is never shed, nor what is part of a call.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from policy.emergency import service_of
from sipproxy.engine.kinds import (
    INVITE,
    MAX_NAME,
    PART,
    REGISTER,
    SCANNER,
    copy_of,
    has_credentials,
    is_new_call,
    kind_of,
    may_be_emergency,
    nonce_in,
)
from sipproxy.sip.brief import parse_brief
from sipproxy.sip.errors import ParseError
from sipproxy.sip.matching import is_rfc3261_branch, server_key
from sipproxy.sip.message import Request, check_message, parse_message
from tests.engine.desk import ROUTER

USERS = [
    *(
        b"110",
        b"112",
        b"+112",
        b"1-1-2",
        b"%31%31%32",
        b"*31#112",
        b"0108811",
        b"010881120",
        b"11201",
        b"sos",
        b"SOS",
        b"s%6fs",
    ),
    *(b"0301234", b"+49301234", b"1(1)2", b"112;phone-context=+49", b"112:pw", b"\xd9\xa1\xd9\xa1\xd9\xa2", b"%d9%a1%31%32"),
    *(b"#31#110", b"01033112", b"alice", b"112%20", b"%20112", b"11.0", b"1%2d12"),
]
TARGETS = [
    *(b"sip:%b@h.example", b"sips:%b@h.example", b"tel:%b", b"SIP:%b@h", b"sip:%b@h;user=phone", b"sip:%b@[::1]:5060;lr"),
    *(
        b"urn:service:%b",
        b"URN:SERVICE:%b.fire",
        b"sip:%b",
        b"TEL:%b;phone-context=+49",
        b"sip:%b@h?Subject=x",
        b"sip:%b@h;tag=1",
    ),
]
NAMES = [
    b"",
    b'"x" ',
    b'"x;tag=1" ',
    b'"a\\";tag=q" ',
    b'"a\\\\" ',
    b"Bob ",
    b'"\xc3\xa4;x" ',
    b'"\\\x01" ',
    b'"a\r\n ;tag=3" ',
]
ADDRESSES = [b"<sip:a@b>", b"<sip:a@b;tag=1>", b"<sip:a;tag=1@b>", b"<tel:112>", b"<urn:service:sos>", b"<sip:a@b?tag=1>"]
PARAMS = [
    *(
        b";x=y",
        b";tag=t1",
        b"; tag=t1",
        b";tag =t1",
        b";TAG=t1",
        b';x=";tag=1"',
        b";tag",
        b";tagx=1",
        b";xtag=1",
        b";\r\n tag=1",
    ),
    *(b"\r\n ;tag=1", b";tag\r\n =\r\n 1", b";\ttag=\r\n\t1", b";tag=a=b", b";tag=\xc3\xa4", b" ", b"\r\n "),
]
VIAS = [b"SIP/2.0/UDP h:5060", b"SIP/2.0/UDP H:0", b"SIP / 2.0 / UDP h : 5070", b"SIP/2.0/TLS h", b"SIP/2.0/udp [::1]:5060"]
BRANCHES = [
    *(
        b";branch=z9hG4bK7",
        b";rport",
        b";rport;branch=z9hG4bK7",
        b";Branch=z9hG4bKa",
        b"; branch = z9hG4bKb",
        b";branch=1",
        b";branch",
    ),
    *(
        b";branch=z9hG4bK",
        b';x=";branch=z9hG4bKq"',
        b"\r\n ;branch=z9hG4bKf",
        b";\r\n branch=z9hG4bKf",
        b';branch="z9hG4bK q"',
        b" ",
    ),
    b";branch=z9hG4bK" + b"l" * MAX_NAME,
]
SPACES = st.sampled_from([b"", b"", b"", b" ", b"\t ", b"\r\n ", b" \r\n\t"])
METHODS = [*[b"INVITE"] * 4, b"BYE", b"ACK", b"CANCEL", b"REGISTER", b"OPTIONS", b"invite"]
OTHERS = [
    *((b"Proxy-Authorization", b'Digest nonce="n"'), (b"Authorization", b'Digest username="a", nonce = "n"')),
    *((b"Subject", b"a\r\n To: <x>;tag=1"), (b"Content-Length", b"0"), (b"X", b"t:;tag=1"), (b"User-Agent", b"sipcli")),
    (b"Via", b"SIP/2.0/UDP p;branch=z9hG4bKother"),
]
BODIES = [b"", b"v=0\r\n", b"SIP/2.0 200\r\nTo: <a>;tag=1\r\nVia: x;branch=z9hG4bKbody\r\n", b"\nt: x;tag=1", b"\nTo: x\n"]


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A message as nobody forbids it to be written; some have faults."""

    def one(choices: list[bytes]) -> bytes:
        return draw(st.sampled_from(choices))

    def line(names: list[bytes], value: bytes) -> bytes:
        name = one(names)
        return one([name, name.lower(), name.upper()]) + one([b"", b" ", b"\t"]) + b":" + draw(SPACES) + value + draw(SPACES)

    method, version = one(METHODS), one([b"SIP/2.0", b"SIP/2.0", b"sip/2.0", b"Sip/2.0"])
    first = one([*[b"%b %b %b" % (method, one(TARGETS) % one(USERS), version)] * 5, version + b" 200 OK"])
    lines = [
        line([b"Via", b"v"], one(VIAS) + draw(SPACES) + b"".join(draw(st.lists(st.sampled_from(BRANCHES), max_size=2)))),
        line([b"From", b"f"], b"<sip:a@b>;tag=f1"),
        line([b"To", b"t"], one(NAMES) + one(ADDRESSES) + b"".join(draw(st.lists(st.sampled_from(PARAMS), max_size=2)))),
        line([b"Call-ID", b"i"], b"x@y"),
        line([b"CSeq"], b"7 " + method),
        *(line([name], value) for name, value in draw(st.lists(st.sampled_from(OTHERS), max_size=2))),
    ]
    return b"\r\n".join([first, *draw(st.permutations(lines)), b"", one(BODIES)])


@settings(max_examples=600)
@given(messages())
def test_what_the_bytes_tell_is_what_the_parser_tells(data: bytes) -> None:
    """Design: invariants 1 and 8."""
    try:
        message = parse_message(data)
        check_message(message)
    except ParseError:
        for read in (kind_of, is_new_call, may_be_emergency, nonce_in, parse_brief):
            read(data)  # which never raises
        return
    kind, is_new = kind_of(data), is_new_call(data)
    if not isinstance(message, Request) or message.method in (b"ACK", b"CANCEL"):
        assert (kind, is_new) == (PART, False)
        return
    if message.method == b"INVITE" and service_of(message.uri):
        assert (kind, is_new, may_be_emergency(data)) == (PART, False, True)
    if message.method == b"REGISTER":
        assert kind is REGISTER or (kind is SCANNER and message.has(b"user-agent"))
    elif message.to.tag is not None:
        assert (kind, is_new) == (PART, False)
    if message.has(b"proxy-authorization"):
        assert (has_credentials(data), is_new) == (True, False)
    if is_new:
        assert (message.method, kind) in ((b"INVITE", INVITE), (b"INVITE", SCANNER))
    if message.has(b"authorization"):
        assert nonce_in(data) == b"n"
    brief = parse_brief(data)
    assert brief is None or brief.key == server_key(message)


@settings(max_examples=300)
@given(messages())
def test_name_of_copies_is_the_branch_of_the_first_via_where_that_is_unique(data: bytes) -> None:
    """RFC 3261 §17.2.3. Every other message is known by all that it says."""
    try:
        message = parse_message(data)
        check_message(message)
    except ParseError:
        return
    name = copy_of(data, ROUTER)[2]
    branch = message.via.branch
    assert len(name) <= MAX_NAME
    if branch is not None and name != branch:
        is_quoted = b'"' in message.lines_of(b"via")[0]
        assert not is_rfc3261_branch(branch) or len(branch) > MAX_NAME or is_quoted


def test_nonce_is_found_in_a_folded_line_and_in_no_other_header() -> None:
    """RFC 3261 §7.3.1. A router that answers its challenge goes before first tries, however it writes that."""
    assert nonce_in(b'\r\nAuthorization:\r\n Digest username="a",\r\n\tnonce = "n", x="y"\r\n\r\n') == b"n"
    assert nonce_in(b'\r\nAuthorization: Digest username="a"\r\nX: nonce="n"\r\n\r\n') is None
