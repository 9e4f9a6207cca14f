"""One call of a load generator with both of its parties, and the messages of its dialog as bytes (RFC 3261 §12, §13, §15).

Leaves out: when what is sent, which is in generator.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.mix import LOST_BYE_S, PATIENCE_S, SPARE
from loadtest.repeating import LIFETIME_S
from loadtest.wire import Head, hop_of, response_to, tag_of

if TYPE_CHECKING:
    from loadtest.boxes import Box
    from loadtest.mix import Kind
    from loadtest.truth import CallTruth
    from loadtest.wire import Address, Wire

__all__ = ["Attempt", "Side"]

ENDS_WITH = {"busy": 486, "cancelled": 487}
NOT_BY_POLICY = (401, 407, 408, 500, 503)
SDP = b"Content-Type: application/sdp\r\n"


@dataclass(slots=True)
class Side:
    """A party of a call. What it still repeats is of its present `step`; `gone` says that it has forgotten the dialog,
    `silent` that nothing is there any more."""

    wire: Wire
    letter: bytes  # of its requests' branches
    tag: bytes
    hop: Address
    local: bytes = b""  # From value of its requests, with tag
    remote: bytes = b""
    target: bytes = b""
    routes: bytes = b""  # Route lines
    cseq: int = 0
    step: int = 0
    gone: bool = False
    silent: bool = False

    def learn(self, head: Head, *, reverse: bool) -> None:
        """The dialog as a response (`reverse`: its route set stands in reverse order, §12.1.2) or a request made it."""
        routes = head.routes[::-1] if reverse else head.routes
        self.target = head.contact
        self.routes = b"".join(b"Route: " + route + b"\r\n" for route in routes)
        self.hop = hop_of(routes[0] if routes else head.contact, self.hop)


@dataclass(slots=True)
class Attempt:
    """One call. `stage` is calling, talking, ending, lost (nobody answered: something may still come) or over."""

    number: int
    kind: Kind
    truth: CallTruth
    box: Box
    caller: Side
    callee: Side
    call_id: bytes
    uri: bytes
    hold_s: float
    by_callee: bool  # who hangs up
    stage: str = "calling"
    began: float = 0.0  # monotonic seconds of the stage
    tries: int = 0  # challenges answered
    provisional: bool = False  # the last INVITE was taken by the node
    invite: bytes = field(default=b"", repr=False)  # the lines that CANCEL and ACK of a refusal repeat
    ack: bytes = field(default=b"", repr=False)
    first_ns: int = 0
    invite_ns: int = 0  # the INVITE with credentials, or the only one
    ok_ns: int = 0  # the callee's 200
    setup_ms: float = 0.0  # from the first INVITE to the 200
    slack_ms: float = 0.0
    head: Head | None = None  # of the INVITE that the callee got
    branch: bytes = b""  # of the same
    response: bytes = field(default=b"", repr=False)  # the callee's last response to it

    def is_stuck(self, now: float, ring_s: float) -> bool:
        """Whether it neither went on nor ended for longer than its stage can last."""
        lost_s = 2 * LIFETIME_S + ring_s
        bye_s = LIFETIME_S + (LOST_BYE_S if self.kind == "lost_bye" else SPARE)
        bounds = {"calling": lost_s, "lost": lost_s, "talking": self.hold_s + LIFETIME_S, "ending": bye_s}
        return now - self.began > bounds.get(self.stage, float("inf"))

    def write_invite(self, more: bytes, body: bytes) -> bytes:
        """The next INVITE; `more` are further header lines."""
        side = self.caller
        side.cseq += 1
        self.invite = b"Max-Forwards: 70\r\nFrom: %b\r\n" % side.local
        return (
            b"INVITE %b SIP/2.0\r\nVia: SIP/2.0/UDP %b;branch=z9hG4bKc%d.%dI;rport\r\n%bTo: <%b>\r\nCall-ID: %b\r\n"
            b"CSeq: %d INVITE\r\nContact: <sip:x@%b>\r\n%b%bContent-Length: %d\r\n\r\n%b"
        ) % (
            self.uri, side.wire.place, self.number, side.cseq, self.invite, self.uri, self.call_id,
            side.cseq, side.wire.place, more, SDP, len(body), body,
        )  # fmt: skip

    def of_invite(self, method: bytes, receiver: bytes) -> bytes:
        """CANCEL (§9.1), or the ACK of a refusal (§17.1.1.3): in the INVITE's transaction."""
        side = self.caller
        return (
            b"%b %b SIP/2.0\r\nVia: SIP/2.0/UDP %b;branch=z9hG4bKc%d.%dI;rport\r\n%bTo: %b\r\nCall-ID: %b\r\n"
            b"CSeq: %d %b\r\nContent-Length: 0\r\n\r\n"
        ) % (
            method, self.uri, side.wire.place, self.number, side.cseq, self.invite, receiver, self.call_id, side.cseq, method,
        )  # fmt: skip

    def write_ack(self) -> bytes:
        """The ACK of the 200; one that is repeated is the same (§13.2.2.4)."""
        self.ack = self.ack or self.in_dialog(self.caller, b"ACK")
        return self.ack

    def in_dialog(self, side: Side, method: bytes) -> bytes:
        """A request of one side within the dialog; an ACK has the CSeq of the INVITE (§13.2.2.4)."""
        if method != b"ACK":
            side.cseq += 1
        return (
            b"%b %b SIP/2.0\r\nVia: SIP/2.0/UDP %b;branch=z9hG4bKc%d.%d%b%b;rport\r\nMax-Forwards: 70\r\n%bFrom: %b\r\n"
            b"To: %b\r\nCall-ID: %b\r\nCSeq: %d %b\r\nContent-Length: 0\r\n\r\n"
        ) % (
            method, side.target, side.wire.place, self.number, side.cseq, side.letter, method[:1], side.routes, side.local,
            side.remote, self.call_id, side.cseq, method,
        )  # fmt: skip

    def answers(self, head: Head, branch: bytes) -> None:
        """The INVITE reached the callee."""
        self.head, self.branch = head, branch
        side = self.callee
        side.local = head.receiver + b";tag=" + side.tag
        side.remote = head.sender
        side.learn(head, reverse=False)

    def write_response(self, status: bytes, body: bytes) -> bytes:
        """The callee's response to the INVITE, with `body` where it is the answer."""
        assert self.head is not None
        side, answer = self.callee, status.startswith(b"2")
        contact = b"Contact: <sip:y@%b>\r\n" % side.wire.place if status < b"3" else b""
        more = contact + b"Content-Type: application/sdp\r\n" if answer else contact
        return response_to(self.head, status, tag=side.tag, more=more, body=body if answer else b"")

    def side_of(self, head: Head) -> Side:
        """Whom a request within the dialog is for."""
        return self.caller if tag_of(head.receiver) == self.caller.tag else self.callee

    @property
    def in_time(self) -> bool:
        """Whether a caller would have waited for it."""
        return self.setup_ms <= 1000 * PATIENCE_S

    @property
    def as_expected(self) -> bool:
        """Whether a call of its kind ends like this; what policy refuses never comes to a callee."""
        status, kind = self.truth.status, self.kind
        if kind in ("blocked", "over_limit"):
            return 400 <= status < 700 and status not in NOT_BY_POLICY and self.head is None
        return status == ENDS_WITH.get(kind, 200)
