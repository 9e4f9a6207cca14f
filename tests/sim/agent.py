"""A user agent for the virtual network: registers, calls, is called, and keeps what it saw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sipproxy.engine.actions import Action, SendTo
from sipproxy.engine.transactions import Server, Transactions
from sipproxy.sip.build import write_cancel, write_request, write_response
from sipproxy.sip.digest import parse_challenge, write_credentials
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Request, Response, parse_message
from sipproxy.sip.timers import TimerQueue, Timers
from tests.sim.world import PROXY, REALM, Address, World

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

SDP = b"v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\nm=audio 4000 RTP/AVP 8\r\n"


@dataclass(eq=False)
class AgentCall:
    """One call as an agent sees it. `status` is the final status; `ended` says who hung up."""

    call_id: bytes
    outgoing: bool
    invite: Request | None = None
    server: Server | None = None
    peer: Address = PROXY
    local_tag: bytes = b""
    remote_tag: bytes = b""
    remote_target: bytes = b""
    routes: list[bytes] = field(default_factory=list)
    cseq: int = 1
    provisional: list[int] = field(default_factory=list)
    status: int = 0
    final: Response | None = None
    ended: str = ""
    answered_at: float = 0.0
    ended_at: float = 0.0
    acked: bool = False
    client_key: Hashable = None
    cancel_wanted: bool = False
    on_answer: Callable[[], None] | None = None


class Agent:
    """See the module. `behave` decides what to do with an incoming INVITE; the default answers after a second."""

    def __init__(self, world: World, address: Address, user: str = "", host: str = "") -> None:
        self.world, self.address, self.user = world, address, user or "carrier"
        self.host = host or REALM
        self.proxy = PROXY  # where it registers and calls
        self.calls: list[AgentCall] = []
        self.by_call_id: dict[tuple[bytes, bytes], AgentCall] = {}
        self.requests: list[Request] = []
        self.responses: list[Response] = []
        self.behave: Callable[[AgentCall], None] = lambda call: self.ring_then_answer(call, 0.1, 1.0)
        self.registered: int = 0
        self.chatter: list[tuple[bytes, bytes]] = []  # header lines of every request and response within a dialog
        self.contact_user = self.user
        self._out: list[Action] = []
        self._queue = TimerQueue()
        self._tx = Transactions(Timers(), limit=100_000, emit=self._out.append, queue=self._queue)
        self._armed: float | None = None
        self._register_cseq = 0
        self._users: dict[Hashable, Callable[[Response | None], None]] = {}
        world.agents[address] = self._receive

    # Plumbing

    def _token(self) -> bytes:
        return self.world.random.randbytes(8).hex().encode()

    @property
    def _sent_by(self) -> bytes:
        return b"%s:%d" % (self.address[0].encode(), self.address[1])

    def _flush(self) -> None:
        out, self._out[:] = list(self._out), []
        for action in out:
            assert isinstance(action, SendTo)
            self.world.send(action.data, self.address, (action.target.host, action.target.port))
        at = self._queue.next_at
        if at is not None and (self._armed is None or at < self._armed):
            self._armed = at
            self.world.at(max(at, self.world.now), lambda: self._fire(at))

    def _fire(self, at: float) -> None:
        if at != self._armed:
            return  # an earlier deadline came up since, and whoever ran for it armed anew
        self._armed = None
        for timer in self._queue.due(self.world.now):
            self._tx.fire(timer, self.world.now)
        self._flush()

    def _send_request(
        self, data: bytes, to: Address, on_response: Callable[[Response | None], None], branch: bytes
    ) -> Hashable:
        request = parse_message(data)
        assert isinstance(request, Request)
        key = self._tx.new_client(request, branch, Flow("UDP", 0, *to), self, self.world.now)
        self._users[key] = on_response
        self._flush()
        return key

    def response(self, key: Hashable, response: Response) -> None:
        self.responses.append(response)
        if key in self._users:
            self._users[key](response)

    def failed(self, key: Hashable, *, timed_out: bool) -> None:
        if key in self._users:
            self._users[key](None)

    def _receive(self, data: bytes, source: Address) -> None:
        message = parse_message(data)
        now = self.world.now
        if isinstance(message, Response):
            client = self._tx.find_client(message)
            if client is not None:
                self._tx.receive_response(client, message, now)
        else:
            message.stamp(*source)
            server = self._tx.find_server(message)
            if server is not None:
                passed = self._tx.receive_request(server, message, now)
                if passed is not None:
                    self._request(passed, source)
            else:
                self._request(message, source)
        self._flush()

    def _via(self, branch: bytes) -> tuple[bytes, bytes]:
        return b"Via", b"SIP/2.0/UDP %s;branch=%s;rport" % (self._sent_by, branch)

    # Registering

    def register(
        self, expires: int = 3600, *, contact: bytes | None = None, on_done: Callable[[int], None] | None = None
    ) -> None:
        call_id = self._token()
        me = b"sip:%s@%s" % (self.user.encode(), REALM.encode())

        def send(credentials: list[tuple[bytes, bytes]]) -> None:
            self._register_cseq += 1
            branch = b"z9hG4bK" + self._token()
            headers = [
                self._via(branch),
                (b"Max-Forwards", b"70"),
                (b"From", b"<%s>;tag=%s" % (me, self._token())),
                (b"To", b"<%s>" % me),
                (b"Call-ID", call_id),
                (b"CSeq", b"%d REGISTER" % self._register_cseq),
                (b"Contact", contact or b"<sip:%s@%s>" % (self.user.encode(), self._sent_by)),
                (b"Expires", b"%d" % expires),
                *credentials,
            ]
            data = write_request(b"REGISTER", b"sip:" + REALM.encode(), headers)
            self._send_request(data, self.proxy, lambda r: done(r, retried=bool(credentials)), branch)

        def done(response: Response | None, *, retried: bool) -> None:
            if response is None or response.status < 200:
                return
            if response.status == 401 and not retried:
                send([(b"Authorization", self._credentials(response, b"REGISTER", b"sip:" + REALM.encode()))])
                return
            self.registered = response.status
            if on_done is not None:
                on_done(response.status)

        send([])

    def _credentials(self, response: Response, method: bytes, uri: bytes) -> bytes:
        name = b"www-authenticate" if response.status == 401 else b"proxy-authenticate"
        challenge = parse_challenge(response.lines(name)[0])
        return write_credentials(
            challenge, method=method, uri=uri, user=self.user, password=self.user[::-1], cnonce=self._token(), nc=1
        )

    # Calling

    def call(self, target: bytes, *, headers: tuple[tuple[bytes, bytes], ...] = (), from_user: str = "") -> AgentCall:
        """INVITE `target` (a user part or a whole URI) by way of the proxy, with credentials when challenged."""
        uri = target if target.startswith((b"sip:", b"tel:", b"urn:")) else b"sip:%s@%s" % (target, self.host.encode())
        call = AgentCall(self._token(), outgoing=True, local_tag=self._token())
        self.calls.append(call)
        self.by_call_id[call.call_id, call.local_tag] = call
        self._invite(call, uri, (from_user or self.user).encode(), list(headers))
        return call

    def _invite(self, call: AgentCall, uri: bytes, user: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        branch = b"z9hG4bK" + self._token()
        lines = [
            self._via(branch),
            (b"Max-Forwards", b"70"),
            (b"From", b"<sip:%s@%s>;tag=%s" % (user, REALM.encode(), call.local_tag)),
            (b"To", b"<%s>" % uri),
            (b"Call-ID", call.call_id),
            (b"CSeq", b"%d INVITE" % call.cseq),
            (b"Contact", b"<sip:%s@%s>" % (user, self._sent_by)),
            (b"Content-Type", b"application/sdp"),
            *headers,
        ]
        call.invite = parse_message(write_request(b"INVITE", uri, lines, SDP))  # type: ignore[assignment]

        def on_response(response: Response | None) -> None:
            if response is None:
                call.status = call.status or 408
            elif response.status == 407 and not any(name == b"Proxy-Authorization" for name, _ in headers):
                call.cseq += 1
                value = self._credentials(response, b"INVITE", uri)
                self._invite(call, uri, user, [*headers, (b"Proxy-Authorization", value)])
            else:
                self._invite_response(call, response)

        assert call.invite is not None
        call.client_key = self._send_request(call.invite.raw, self.proxy, on_response, branch)

    def _invite_response(self, call: AgentCall, response: Response) -> None:
        if response.status < 200:
            call.provisional.append(response.status)
            if call.cancel_wanted:
                self.cancel(call)
            return
        first = not call.status
        if first or (response.status < 300 and not call.answered_at):
            call.status, call.final = response.status, response
        if response.status < 300:
            if not call.remote_tag:
                call.remote_tag = response.to.tag or b""
                call.remote_target = response.contacts[0].uri.raw if response.contacts else b""
                call.routes = [route.raw for route in reversed(response.record_routes)]
                call.answered_at = self.world.now
            self._in_dialog(call, b"ACK")
            if first and call.on_answer is not None:
                call.on_answer()

    def cancel(self, call: AgentCall) -> None:
        """CANCEL, once a provisional response allows it (§9.1)."""
        call.cancel_wanted = True
        if call.status or not call.provisional or call.invite is None:
            return
        call.cancel_wanted = False
        data = write_cancel(call.invite)
        branch = call.invite.via.branch or b""
        self._send_request(data, self.proxy, lambda _: None, branch)

    def _in_dialog(self, call: AgentCall, method: bytes, on_response: Callable[[Response | None], None] | None = None) -> None:
        branch = b"z9hG4bK" + self._token()
        if method not in (b"ACK", b"CANCEL"):
            call.cseq += 1
        assert call.invite is not None
        own, far = (call.invite.from_, call.invite.to) if call.outgoing else (call.invite.to, call.invite.from_)
        headers = [
            self._via(branch),
            (b"Max-Forwards", b"70"),
            (b"From", b"<%s>;tag=%s" % (own.uri.raw, call.local_tag)),
            (b"To", b"<%s>;tag=%s" % (far.uri.raw, call.remote_tag)),
            (b"Call-ID", call.call_id),
            (b"CSeq", b"%d %s" % (call.cseq, method)),
            *((b"Route", route) for route in call.routes),
        ]
        if method in (b"INVITE", b"UPDATE"):
            headers.append((b"Contact", b"<sip:%s@%s>" % (self.contact_user.encode(), self._sent_by)))
            headers += [(b"Supported", value) for value in call.invite.lines(b"supported") if call.outgoing]
        data = write_request(method, call.remote_target, headers + self.chatter)
        to = self.proxy if call.routes else call.peer
        if method == b"ACK":
            self.world.send(data, self.address, to)
        else:
            self._send_request(data, to, on_response or (lambda _: None), branch)

    def bye(self, call: AgentCall) -> None:
        if call.ended or call.status // 100 != 2:
            return
        call.ended, call.ended_at = "local", self.world.now
        self._in_dialog(call, b"BYE")

    def reinvite(self, call: AgentCall, on_response: Callable[[Response | None], None]) -> None:
        def answered(response: Response | None) -> None:
            if response is not None and 200 <= response.status < 300:
                self._in_dialog(call, b"ACK")
            on_response(response)

        self._in_dialog(call, b"INVITE", answered)

    # Being called

    def _request(self, request: Request, source: Address) -> None:
        self.requests.append(request)
        target = Flow("UDP", 0, *source)
        now = self.world.now
        if request.method == b"ACK":
            call = self._find(request)
            if call is not None:
                call.acked = True
            return
        server = self._tx.new_server(request, target, now)
        if request.method == b"INVITE" and request.to.tag is None:
            call = AgentCall(request.call_id, outgoing=False, invite=request, server=server, peer=source)
            call.local_tag, call.remote_tag = self._token(), request.from_.tag or b""
            call.remote_target = request.contacts[0].uri.raw
            call.routes = [route.raw for route in request.record_routes]
            self.calls.append(call)
            self.by_call_id[call.call_id, call.local_tag] = call
            self.behave(call)
        elif request.method == b"CANCEL":
            self._respond(server, 200)
            for call in self.calls:
                if call.call_id == request.call_id and call.server is not None and not call.outgoing and not call.status:
                    call.status = 487
                    self._respond(call.server, 487, call.local_tag)
        else:
            call = self._find(request)
            if request.method == b"BYE" and call is not None and not call.ended:
                call.ended, call.ended_at = "remote", now
            self._respond(server, 200 if call is not None else 481, contact=request.method == b"INVITE")

    def _find(self, request: Request) -> AgentCall | None:
        return self.by_call_id.get((request.call_id, request.to.tag or b""))

    def _respond(self, server: Server, status: int, tag: bytes = b"", *, contact: bool = False) -> None:
        headers: list[tuple[bytes, bytes]] = [(b"Record-Route", route.raw) for route in server.request.record_routes]
        if contact:
            headers.append((b"Contact", b"<sip:%s@%s>" % (self.contact_user.encode(), self._sent_by)))
        data = write_response(server.request, status, to_tag=tag, headers=headers + self.chatter)
        self._tx.respond(server, status, data, self.world.now)
        self._flush()

    def ring_then_answer(self, call: AgentCall, ring_after: float, answer_after: float) -> None:
        self.world.after(ring_after, lambda: self.progress(call, 180))
        self.world.after(answer_after, lambda: self.answer(call))

    def progress(self, call: AgentCall, status: int) -> None:
        if not call.status and call.server is not None:
            self._respond(call.server, status, call.local_tag, contact=True)

    def reject(self, call: AgentCall, status: int) -> None:
        if not call.status and call.server is not None:
            call.status = status
            self._respond(call.server, status, call.local_tag)

    def redirect(
        self, call: AgentCall, *contacts: bytes, status: int = 302, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """A 3xx with these Contact values (§21.3)."""
        assert call.server is not None
        call.status = status
        lines = [*headers, *((b"Contact", contact) for contact in contacts)]
        data = write_response(call.server.request, status, to_tag=call.local_tag, headers=lines)
        self._tx.respond(call.server, status, data, self.world.now)
        self._flush()

    def answer(self, call: AgentCall) -> None:
        """200, repeated until its ACK comes (§13.3.1.4)."""
        if call.status or call.server is None:
            return
        call.status, call.answered_at = 200, self.world.now
        self._repeat_200(call, 0.5, self.world.now + 32.0)

    def _repeat_200(self, call: AgentCall, interval: float, until: float) -> None:
        if call.acked or self.world.now >= until or call.server is None:
            return
        self._respond(call.server, 200, call.local_tag, contact=True)
        self.world.after(interval, lambda: self._repeat_200(call, min(2 * interval, 4.0), until))
