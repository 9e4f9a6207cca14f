"""A user agent of the mix: it does what the plan of each call says, retransmits, and remembers when it left.

Its memory is the truth about the call. Transactions are those of `sip.transaction`; everything above them is here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from sipproxy.sip.build import write_cancel, write_request, write_response
from sipproxy.sip.digest import parse_challenge
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Request, Response, parse_message
from tests.sim.agent import SDP
from tests.sim.mix.endpoint import Endpoint
from tests.sim.world import PROXY, REALM, Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from sipproxy.engine.transactions import Server
    from tests.sim.mix.plan import Callee, Plan
    from tests.sim.mix.world import MixWorld

__all__ = ["Part", "Party"]

GIVE_UP_S = 32.0  # 64*T1: a 200 that is not acknowledged (RFC 3261 §13.3.1.4), a cancelled INVITE (§9.1)
RING_S = 100.0  # a callee's own patience
PATIENCE_S = 130.0  # a caller's


@dataclass(slots=True, eq=False)
class Part:
    """A party's part in one dialog, or in the attempt at one. `left_at` is when it left the call, by its own will or not."""

    plan: Plan
    call_id: bytes
    outgoing: bool
    local_tag: bytes
    invite: Request | None = None
    server: Server | None = None
    peer: Address = PROXY
    remote_tag: bytes = b""
    remote_target: bytes = b""
    routes: list[bytes] = field(default_factory=list)
    cseq: int = 1
    tries: int = 0
    provisional: bool = False
    cancelled: bool = False
    cancel_owed: bool = False
    status: int = 0
    started_at: float = 0.0
    answered_at: float = 0.0
    left_at: float = inf
    ended: str = ""  # local, remote, gone
    acked: set[int] = field(default_factory=set)
    renewing: bool = False
    early: dict[bytes, Part] = field(default_factory=dict)  # its early dialogs, by the callee's tag
    acknowledged: set[bytes] = field(default_factory=set)  # the RSeq numbers that have got their PRACK


class Party(Endpoint):
    """One user agent at one address, and what it does in each of its calls."""

    def __init__(self, world: MixWorld, address: Address, user: str = "", host: str = REALM) -> None:
        super().__init__(world, address, user, host)
        self.parts: dict[tuple[bytes, bytes], Part] = {}  # by Call-ID and own tag
        self.pending: dict[tuple[bytes, bytes, int], Part] = {}  # INVITEs taken, by Call-ID, caller's tag, CSeq

    # Calling

    def call(self, plan: Plan, call_id: bytes) -> Part:
        part = Part(plan, call_id, True, self._token(), started_at=self.world.now)
        self.parts[call_id, part.local_tag] = part
        self._invite(part)
        if plan.cancel_at is not None:
            self.world.after(plan.cancel_at, lambda: self.cancel(part))
        self.world.after(PATIENCE_S, lambda: self.cancel(part))
        return part

    def _invite(self, part: Part) -> None:
        plan = part.plan
        branch = b"z9hG4bK" + self._token()
        uri = b"sip:%s@%s" % (plan.target, self.host.encode())
        user = self.user.encode() or b"+4989123456"
        part.tries += 1
        lines = [
            self._via(branch),
            (b"Max-Forwards", b"70"),
            (b"From", b"<sip:%s@%s>;tag=%s" % (user, REALM.encode(), part.local_tag)),
            (b"To", b"<%s>" % uri),
            (b"Call-ID", part.call_id),
            (b"CSeq", b"%d INVITE" % part.cseq),
            self._contact(),
            (b"Content-Type", b"application/sdp"),
            *plan.headers,
        ]
        if self._challenge is not None:
            lines.append((b"Proxy-Authorization", self._credentials(b"INVITE", uri)))
        invite = parse_message(write_request(b"INVITE", uri, lines, SDP))
        assert isinstance(invite, Request)
        part.invite = invite
        self._client(invite.raw, PROXY, branch, lambda response: self._answered(part, response))

    def _answered(self, part: Part, response: Response | None) -> None:
        if response is None:
            part.status = part.status or 408
        elif response.status < 200:
            part.provisional = True
            if part.plan.is_copied and not part.plan.copied:
                self._copy(part)
            if response.has(b"rseq") and not part.cancelled:
                self._acknowledge(part, response)
            if part.cancel_owed or response.status == part.plan.cancel_on:
                self.cancel(part)
        elif response.status == 407 and self.user and part.tries < 4 and not part.status:
            self._challenge, self._nc = parse_challenge(response.lines(b"proxy-authenticate")[0]), 0
            part.cseq += 1
            part.provisional = False
            self._invite(part)
        elif response.status >= 300:
            part.status = part.status or response.status
        else:
            self._success(part, response)

    def _copy(self, part: Part) -> None:
        """The same INVITE by another path, which is refused as merged while the first one's call lives (§8.2.2.2)."""
        assert part.invite is not None
        part.plan.copied = b"z9hG4bK" + self._token()
        data = part.invite.raw.replace(part.invite.via.branch or b"", part.plan.copied, 1)

        def answered(response: Response | None) -> None:
            if response is not None and response.status >= 200 and response.status != 482:
                self._answered(part, response)

        self._client(data, PROXY, part.plan.copied, answered)

    def _acknowledge(self, part: Part, response: Response) -> None:
        """A PRACK in the early dialog, once (RFC 3262 §4), and what the plan wants to say there then."""
        tag, number = response.to.tag or b"", response.first(b"rseq") or b""
        early = part.early.get(tag)
        if early is None:
            early = part.early[tag] = Part(part.plan, part.call_id, True, part.local_tag, part.invite, cseq=part.cseq)
            early.remote_tag, early.remote_target = tag, response.contacts[0].uri.raw
            early.routes = [route.raw for route in reversed(response.record_routes)]
        if number in early.acknowledged:
            return
        early.acknowledged.add(number)

        def answered(response: Response | None) -> None:
            if response is not None and response.is_success and part.plan.update_early and not part.status:
                part.cseq = self._in_dialog(early, b"UPDATE")

        rack = b"%s %d INVITE" % (number, response.cseq.number)
        part.cseq = self._in_dialog(early, b"PRACK", answered, headers=((b"RAck", rack),))

    def _success(self, part: Part, response: Response) -> None:
        tag = response.to.tag or b""
        known = part.plan.caller_parts.get(tag)
        if known is not None and known.remote_tag == tag:
            self._ack(known, response.cseq.number)
            return
        first = not part.remote_tag
        if part.plan.no_ack:
            self.vanish(part)
            part.plan.caller_parts[tag] = part
            return
        if not first:  # a fork's further dialog
            part = Part(part.plan, part.call_id, True, part.local_tag, part.invite, cseq=part.cseq, cancelled=part.cancelled)
        part.status, part.answered_at, part.remote_tag = response.status, self.world.now, tag
        part.remote_target = response.contacts[0].uri.raw
        part.routes = [route.raw for route in reversed(response.record_routes)]
        part.plan.caller_parts[tag] = part
        self._ack(part, response.cseq.number)
        if not first or part.cancelled or part.cancel_owed:
            self.bye(part)
        else:
            self.world.established(part)

    def cancel(self, part: Part) -> None:
        """CANCEL, once a provisional response allows it (§9.1)."""
        if part.status or part.ended or part.cancelled or part.invite is None:
            return
        part.cancel_owed = not part.provisional
        if part.provisional:
            part.cancelled = True
            self._client(write_cancel(part.invite), PROXY, part.invite.via.branch or b"", lambda _: None)

    def _in_dialog(
        self,
        part: Part,
        method: bytes,
        on_response: Callable[[Response | None], None] | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> int:
        branch = b"z9hG4bK" + self._token()
        if method != b"ACK":
            part.cseq += 1
        assert part.invite is not None
        own, far = (part.invite.from_, part.invite.to) if part.outgoing else (part.invite.to, part.invite.from_)
        lines = [
            self._via(branch),
            (b"Max-Forwards", b"70"),
            (b"From", b"<%s>;tag=%s" % (own.uri.raw, part.local_tag)),
            (b"To", b"<%s>;tag=%s" % (far.uri.raw, part.remote_tag)),
            (b"Call-ID", part.call_id),
            (b"CSeq", b"%d %s" % (part.cseq, method)),
            *((b"Route", route) for route in part.routes),
            *headers,
        ]
        if method in (b"INVITE", b"UPDATE"):
            lines.append(self._contact())
            lines += [(b"Supported", value) for value in part.invite.lines(b"supported") if part.outgoing]
        data = write_request(method, part.remote_target, lines)
        to = PROXY if part.routes else part.peer
        if method == b"ACK":
            self._send(data, to)
        else:
            self._client(data, to, branch, on_response or (lambda _: None))
        return part.cseq

    def _ack(self, part: Part, number: int) -> None:
        """§13.2.2.4: with the number of its INVITE, as often as the 2xx comes."""
        newest, part.cseq = part.cseq, number
        self._in_dialog(part, b"ACK")
        part.cseq = newest

    def bye(self, part: Part) -> None:
        if part.ended or not part.remote_tag or part.status != 200:
            return
        part.ended, part.left_at = "local", self.world.now
        self._in_dialog(part, b"BYE")

    def lose_bye(self, part: Part) -> None:
        """Hang up, and nothing of it gets through."""
        if not part.ended and part.status == 200:
            self.lost_byes.add(part.call_id)
            self.bye(part)

    def vanish(self, part: Part) -> None:
        if not part.ended:
            part.ended, part.left_at = "gone", self.world.now
        self.gone.add(part.call_id)

    def renew(self, part: Part, method: bytes = b"INVITE") -> None:
        """A re-INVITE or an UPDATE; a party that is told that there is no such dialog hangs up (§12.2.1.2)."""
        if part.ended or part.status != 200 or part.renewing:
            return
        part.renewing = True
        sent = [0]

        def answered(response: Response | None) -> None:
            if response is None or response.status >= 200:
                part.renewing = False
            if response is not None and 200 <= response.status < 300:
                if method == b"INVITE":
                    self._ack(part, sent[0])
            elif response is None or response.status in (408, 481):
                self.bye(part)

        sent[0] = part.cseq + 1
        self._in_dialog(part, method, answered)

    # Being called

    def _request(self, request: Request, source: Address) -> None:
        method = request.method
        if method == b"ACK":
            part = self._find(request)
            if part is not None:
                part.acked.add(request.cseq.number)
            return
        server = self._tx.new_server(request, Flow("UDP", 0, *source), self.world.now)
        if method == b"INVITE" and request.to.tag is None:
            self._called(request, server, source)
        elif method == b"CANCEL":
            self._cancelled(request, server)
        elif method == b"BYE":
            part = self._find(request)
            if part is not None and not part.ended:
                part.ended, part.left_at = "remote", self.world.now
            self._respond(server, 200 if part is not None else 481)
        else:
            self._renewed(request, server)

    def _called(self, request: Request, server: Server, source: Address) -> None:
        tag = request.from_.tag or b""
        key = request.call_id, tag, request.cseq.number
        if key in self.pending:
            self._respond(server, 482, self._token())  # §8.2.2.2: a merged request
            return
        plan = self.world.plans[request.call_id]
        part = Part(plan, request.call_id, False, self._token(), request, server, source, tag)
        part.remote_target = request.contacts[0].uri.raw
        part.routes = [route.raw for route in request.record_routes]
        part.started_at = self.world.now
        part.cseq = 100
        self.parts[part.call_id, part.local_tag] = self.pending[key] = part
        if self.address in plan.forwards:
            world, target = self.world, plan.forwards[self.address]
            world.after(world.random.uniform(0.0, 1.0), lambda: self._forward(part, target))
        else:
            self._behave(part, plan.next_callee())

    def _behave(self, part: Part, wanted: Callee) -> None:
        world = self.world
        if wanted.act == "silent":
            self.vanish(part)
            return
        if wanted.reliable:
            world.after(wanted.ring_after, lambda: self._repeat_183(part, 0.5, world.now + GIVE_UP_S))
        elif wanted.ring_after > 0:
            world.after(wanted.ring_after, lambda: self._ring(part))
        if wanted.act == "answer":
            world.after(wanted.after, lambda: self._answer(part))
        elif wanted.act == "reject":
            world.after(wanted.after, lambda: self._reject(part, wanted.status))
        elif wanted.act == "ring_gone":
            world.after(wanted.after, lambda: self.vanish(part))
        world.after(RING_S, lambda: self._reject(part, 480))

    def _ring(self, part: Part) -> None:
        if not part.status and part.server is not None:
            self._respond(part.server, 180, part.local_tag)

    def _repeat_183(self, part: Part, interval: float, until: float) -> None:
        """RFC 3262 §3: until the PRACK comes."""
        if part.status or part.ended or part.acknowledged or part.server is None:
            return
        if self.world.now >= until:
            self._reject(part, 504)
            return
        reliable = ((b"Require", b"100rel"), (b"RSeq", b"1"))
        self._respond(part.server, 183, part.local_tag, headers=reliable)
        self.world.after(interval, lambda: self._repeat_183(part, 2 * interval, until))

    def _forward(self, part: Part, target: bytes) -> None:
        """A 302 to a number (§21.3.3)."""
        if not part.status and not part.ended and part.server is not None:
            part.status = 302
            contact = b"<sip:%s@%s>" % (target, REALM.encode())
            self._respond(part.server, 302, part.local_tag, headers=((b"Contact", contact),))

    def _reject(self, part: Part, status: int) -> None:
        if not part.status and not part.ended and part.server is not None:
            part.status = status
            self._respond(part.server, status, part.local_tag)

    def _answer(self, part: Part) -> None:
        if part.status or part.ended or part.server is None:
            return
        part.status, part.answered_at = 200, self.world.now
        part.plan.callee_parts[part.local_tag] = part
        assert part.invite is not None
        self._repeat_200(part, part.server, 0.5, self.world.now + GIVE_UP_S)

    def _repeat_200(self, part: Part, server: Server, interval: float, until: float) -> None:
        """§13.3.1.4: until the ACK comes; without one the session ends."""
        if server.request.cseq.number in part.acked or part.ended:
            return
        if self.world.now >= until:
            self.bye(part)
            return
        self._respond(server, 200, part.local_tag)
        self.world.after(interval, lambda: self._repeat_200(part, server, min(2 * interval, 4.0), until))

    def _cancelled(self, request: Request, server: Server) -> None:
        part = self.pending.get((request.call_id, request.from_.tag or b"", request.cseq.number))
        self._respond(server, 200 if part is not None else 481, part.local_tag if part is not None else self._token())
        if part is not None:
            self._reject(part, 487)

    def _renewed(self, request: Request, server: Server) -> None:
        part = self._find(request)
        if part is None or part.ended:
            self._respond(server, 481)
        elif request.method == b"INVITE" and part.renewing:
            self._respond(server, 491)  # §14.2
        elif request.method == b"INVITE":
            self._repeat_200(part, server, 0.5, self.world.now + GIVE_UP_S)
        else:
            if request.method == b"PRACK":
                part.acknowledged.add(b"1")
            self._respond(server, 200)

    def _find(self, request: Request) -> Part | None:
        part = self.parts.get((request.call_id, request.to.tag or b""))
        if part is not None and part.outgoing:
            return part.plan.caller_parts.get(request.from_.tag or b"")  # one of a fork's dialogs
        return part

    def _respond(self, server: Server, status: int, tag: bytes = b"", headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        lines = [(b"Record-Route", route.raw) for route in server.request.record_routes]
        if server.request.method in (b"INVITE", b"UPDATE") and status // 100 != 3:
            lines.append(self._contact())
        data = write_response(server.request, status, to_tag=tag, headers=[*lines, *headers])
        self._tx.respond(server, status, data, self.world.now)
        self._flush()
