"""engine.reduced: what is kept of a message is what its dialog and transaction are made of (RFC 3261 §12.1, §17.1.3)."""

from __future__ import annotations

from sipproxy.engine.reduced import packed, reduced, request_of, unpacked
from sipproxy.sip.dialog import from_invite_2xx
from sipproxy.sip.matching import server_key
from sipproxy.sip.message import Request, Response, parse_message

ROUTES = b"".join(b"Record-Route: <sip:%b.example;lr>\r\n" % name for name in (b"down2", b"down1", b"we", b"up1"))
INVITE = b"".join((
    b"INVITE sip:bob@biloxi.example SIP/2.0\r\n",
    b"Via: SIP/2.0/UDP we.example;branch=z9hG4bKours\r\n",
    b"v: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKtheirs;rport, SIP/2.0/TCP pc33.example;branch=z9hG4bKfirst\r\n",
    b"Max-Forwards: 68\r\nSubject: no dialog needs this\r\n",
    b"f: Alice <sip:alice@atlanta.example>;tag=1928301774\r\n",
    b"To: Bob\r\n <sip:bob@biloxi.example>\r\n",
    b"i: a84b4c76e66710\r\nCSeq: 314159 INVITE\r\n",
    b"m: <sip:alice@pc33.atlanta.example>\r\n",
    b"Record-Route: <sip:we.example;lr>, <sip:up1.example;lr>\r\n",
    b"Content-Type: application/sdp\r\nContent-Length: 5\r\n\r\nv=0\r\n",
))  # fmt: skip
ANSWER = b"".join((
    b"SIP/2.0 200 OK\r\n",
    b"Via: SIP/2.0/UDP we.example;branch=z9hG4bKours\r\n",
    ROUTES,
    b"From: Alice <sip:alice@atlanta.example>;tag=1928301774\r\n",
    b"t: Bob <sip:bob@biloxi.example>;tag=a6c85cf\r\n",
    b"Call-ID: a84b4c76e66710\r\nCSeq: 314159 INVITE\r\n",
    b"Contact: <sip:bob@192.0.2.4:5070>\r\nServer: x\r\nContent-Length: 0\r\n\r\n",
))  # fmt: skip


def test_dialog_of_the_reduced_messages_is_that_of_the_whole_ones() -> None:
    invite, answer = parse_message(INVITE), parse_message(ANSWER)
    assert isinstance(invite, Request)
    assert isinstance(answer, Response)
    again = parse_message(reduced(answer))
    assert isinstance(again, Response)
    whole = from_invite_2xx(invite, answer)
    assert from_invite_2xx(request_of(reduced(invite)), again) == whole
    assert [len(side.route_set) for side in whole] == [1, 2]


def test_transaction_of_the_reduced_request_is_that_of_the_whole_one() -> None:
    invite = parse_message(INVITE)
    assert isinstance(invite, Request)
    kept = reduced(invite)
    assert server_key(request_of(kept)) == server_key(invite)
    assert request_of(kept).values(b"via") == invite.values(b"via")
    assert b"no dialog" not in kept
    assert len(kept) < len(INVITE)


def test_reduced_request_says_where_it_came_from() -> None:
    """RFC 3261 §18.2.1, RFC 3581 §4: its responses go by that."""
    invite = parse_message(INVITE.replace(b"Via: SIP/2.0/UDP we.example;", b"Via: SIP/2.0/UDP we.example;rport;"))
    assert isinstance(invite, Request)
    invite.stamp("198.51.100.9", 40_000)
    via = request_of(reduced(invite)).via
    assert (via.param(b"received"), via.param(b"rport"), via.branch) == (b"198.51.100.9", b"40000", b"z9hG4bKours")


def test_packed_messages_come_back_as_they_were_in_less_room() -> None:
    invite, answer = (reduced(parse_message(data)) for data in (INVITE, ANSWER))
    for pair in ((invite, answer), (b"", answer), (invite, b""), (b"7 \0\r\n\r\n" + invite, b"12 " + answer)):
        assert unpacked(packed(*pair, invite), invite) == pair
    assert len(packed(invite, answer, invite)) < (len(invite) + len(answer)) / 2
