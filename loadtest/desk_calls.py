"""The datagrams of whole calls and registrations, written step by step from what a node sent: routers and a carrier without
sockets, tasks or retransmissions, for measuring what a node does with each datagram.

Header lines are like those of common home routers and of a carrier's border element. An INVITE stays short enough for UDP
on its way out (RFC 3261 §18.1.1).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sipproxy.sip.build import write_request, write_response
from sipproxy.sip.digest import parse_challenge, write_credentials
from sipproxy.sip.message import Request, Response, parse_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.node import LineSpec
    from sipproxy.sip.flow import Flow

__all__ = ["CALL_STEPS", "REGISTER_STEPS", "Place", "Scripted", "Step"]

DIALLED = b"03023125001"
_TOKENS = itertools.count(1)
_OWN = (
    (b"User-Agent", b"Home Router 7590 154.07.57 TAL (Jul 12 2026)"),
    (b"Supported", b"100rel, replaces, timer"),
    (b"Allow", b"INVITE, ACK, OPTIONS, CANCEL, BYE, UPDATE, PRACK, INFO, SUBSCRIBE, NOTIFY, REFER, MESSAGE"),
)
_CARRIERS = (
    (b"Server", b"Carrier Border 9.1"),
    (b"Allow", b"INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, PRACK"),
)
_SDP_LINES = (
    "v=0",
    "o=user 4211 4211 IN IP4 {host}",
    "s=call",
    "c=IN IP4 {host}",
    "t=0 0",
    "m=audio {port} RTP/AVP 8 0 101",
    "a=rtpmap:101 telephone-event/8000",
    "a=fmtp:101 0-15",
    "a=sendrecv",
    "",
)


def _token() -> bytes:
    return b"%016x" % (next(_TOKENS) * 0x9E3779B97F4A7C15 % 2**64)


def _sdp(flow: Flow) -> bytes:
    return "\r\n".join(_SDP_LINES).format(host=flow.host, port=flow.port + 2000).encode()


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parties are, and the domain they write."""

    router: Flow
    carrier: Flow
    domain: bytes


@dataclass(slots=True)
class Scripted:
    """One call, or one registration, of a line's account. `got` is what the node sent for it since the last step."""

    place: Place
    line: LineSpec
    call_id: bytes = field(default_factory=_token)
    tag: bytes = field(default_factory=_token)
    cseq: int = 0
    invite: bytes = b""
    branch: bytes = b""
    refusal: Request | Response | None = None  # with the challenge
    far_tag: bytes = field(default_factory=_token)
    far_invite: Request | None = None
    answer: Response | None = None
    got: list[tuple[int, bytes]] = field(default_factory=list)  # port it went to, datagram

    def sent(self, port: int, begins: bytes) -> Request | Response | None:
        """The first message with this beginning that went to the port."""
        for to, data in self.got:
            if to == port and data.startswith(begins):
                return parse_message(data)
        return None

    # What its parties write

    def _via(self, branch: bytes) -> tuple[bytes, bytes]:
        flow = self.place.router
        return b"Via", b"SIP/2.0/UDP %s:%d;rport;branch=z9hG4bK%s" % (flow.host.encode(), flow.port, branch)

    def _contact(self) -> tuple[bytes, bytes]:
        flow = self.place.router
        parts = (self.line.user.encode(), flow.host.encode(), flow.port)
        return b"Contact", b"<sip:%s@%s:%d;transport=udp>;+sip.ice" % parts

    def _credentials(self, method: bytes, uri: bytes) -> list[tuple[bytes, bytes]]:
        """An answer to the first challenge that was got, or nothing."""
        refusal = self.refusal or self.sent(self.place.router.port, b"SIP/2.0 401")
        if refusal is None:
            return []
        challenge = (refusal.lines(b"www-authenticate") or refusal.lines(b"proxy-authenticate"))[0]
        value = write_credentials(
            parse_challenge(challenge),
            method=method,
            uri=uri,
            user=self.line.user,
            password=self.line.password,
            cnonce=_token(),
            nc=1,
        )
        return [(b"Authorization" if method == b"REGISTER" else b"Proxy-Authorization", value)]

    def register(self) -> bytes:
        self.cseq += 1
        self.branch = _token()
        uri = b"sip:" + self.place.domain
        me = b"<sip:%s@%s>" % (self.line.user.encode(), self.place.domain)
        lines = [
            self._via(self.branch),
            (b"From", b"%s;tag=%s" % (me, self.tag)),
            (b"To", me),
            (b"Call-ID", self.call_id),
            (b"CSeq", b"%d REGISTER" % self.cseq),
            self._contact(),
            (b"Max-Forwards", b"70"),
            (b"Expires", b"600"),
            *self._credentials(b"REGISTER", uri),
            *_OWN,
        ]
        return write_request(b"REGISTER", uri, lines)

    def call(self) -> bytes:
        self.cseq += 1
        self.branch = _token()
        uri = b"sip:%s@%s" % (DIALLED, self.place.domain)
        lines = [
            self._via(self.branch),
            (b"From", b'"Line" <sip:%s@%s>;tag=%s' % (self.line.user.encode(), self.place.domain, self.tag)),
            (b"To", b"<%s>" % uri),
            (b"Call-ID", self.call_id),
            (b"CSeq", b"%d INVITE" % self.cseq),
            self._contact(),
            *self._credentials(b"INVITE", uri),
            (b"Max-Forwards", b"70"),
            (b"Expires", b"120"),
            *_OWN,
            (b"Content-Type", b"application/sdp"),
        ]
        self.invite = write_request(b"INVITE", uri, lines, _sdp(self.place.router))
        return self.invite

    def refused_ack(self) -> bytes:
        """The ACK for the challenge (RFC 3261 §17.1.1.3)."""
        self.refusal = self.sent(self.place.router.port, b"SIP/2.0 407")
        invite = parse_message(self.invite)
        assert self.refusal is not None
        assert isinstance(invite, Request)
        lines = [
            self._via(self.branch),
            (b"From", invite.from_.raw),
            (b"To", self.refusal.to.raw),
            (b"Call-ID", self.call_id),
            (b"CSeq", b"%d ACK" % self.cseq),
            (b"Max-Forwards", b"70"),
            _OWN[0],
        ]
        return write_request(b"ACK", invite.uri, lines)

    def within(self, method: bytes) -> bytes:
        """The caller's request within the dialog."""
        assert self.answer is not None
        self.branch = _token()
        self.cseq += method != b"ACK"
        answer = self.answer
        lines = [
            self._via(self.branch),
            *((b"Route", route.raw) for route in answer.record_routes[::-1]),
            (b"From", answer.from_.raw),
            (b"To", answer.to.raw),
            (b"Call-ID", self.call_id),
            (b"CSeq", b"%d %s" % (self.cseq, method)),
            self._contact(),
            (b"Max-Forwards", b"70"),
            *_OWN[:2],
        ]
        return write_request(method, answer.contacts[0].uri.raw, lines)

    def carrier(self, status: int) -> bytes:
        """The carrier's response to the INVITE that it was sent."""
        if self.far_invite is None:
            found = self.sent(self.place.carrier.port, b"INVITE ")
            assert isinstance(found, Request)
            self.far_invite = found
        if status == 100:
            return write_response(self.far_invite, 100)
        flow = self.place.carrier
        lines = [(b"Record-Route", route.raw) for route in self.far_invite.record_routes]
        lines += [(b"Contact", b"<sip:%s@%s:%d>" % (DIALLED, flow.host.encode(), flow.port)), *_CARRIERS]
        if status != 200:
            return write_response(self.far_invite, status, to_tag=self.far_tag, headers=lines)
        lines.append((b"Content-Type", b"application/sdp"))
        return write_response(self.far_invite, status, to_tag=self.far_tag, headers=lines, body=_sdp(flow))

    def take_answer(self) -> bytes:
        """The ACK for the 200, which is kept for the dialog."""
        found = self.sent(self.place.router.port, b"SIP/2.0 200")
        assert isinstance(found, Response)
        self.answer = found
        return self.within(b"ACK")

    def carrier_bye(self) -> bytes:
        """The carrier's 200 to the BYE."""
        bye = self.sent(self.place.carrier.port, b"BYE ")
        assert isinstance(bye, Request)
        return write_response(bye, 200, headers=_CARRIERS[:1])


@dataclass(frozen=True, slots=True)
class Step:
    """One datagram of each call: how it is written, from whom it comes, and what the node has to send for it."""

    name: str
    write: Callable[[Scripted], bytes]
    from_carrier: bool = False
    to_carrier: bool = False  # where what is waited for goes
    wanted: bytes = b""  # how what is waited for begins; nothing is waited for without


CALL_STEPS = (
    Step("INVITE", Scripted.call, wanted=b"SIP/2.0 407"),
    Step("ACK of the 407", Scripted.refused_ack),
    Step("INVITE with digest", Scripted.call, to_carrier=True, wanted=b"INVITE "),
    Step("100", lambda call: call.carrier(100), from_carrier=True),
    Step("180", lambda call: call.carrier(180), from_carrier=True, wanted=b"SIP/2.0 180"),
    Step("200", lambda call: call.carrier(200), from_carrier=True, wanted=b"SIP/2.0 200"),
    Step("ACK", Scripted.take_answer, to_carrier=True, wanted=b"ACK "),
    Step("BYE", lambda call: call.within(b"BYE"), to_carrier=True, wanted=b"BYE "),
    Step("200 of the BYE", Scripted.carrier_bye, from_carrier=True, wanted=b"SIP/2.0 200"),
)
REGISTER_STEPS = (
    Step("REGISTER", Scripted.register, wanted=b"SIP/2.0 401"),
    Step("REGISTER with digest", Scripted.register, wanted=b"SIP/2.0 200"),
)
