"""A party's transactions and its registration. What it does in calls is in party.py."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sipproxy.engine.actions import Action, SendTo
from sipproxy.engine.transactions import Transactions
from sipproxy.sip.build import write_request
from sipproxy.sip.digest import Challenge, parse_challenge, write_credentials
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Request, Response, parse_message
from sipproxy.sip.timers import TimerQueue, Timers
from tests.sim.world import PROXY, REALM, Address

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tests.sim.mix.world import MixWorld

__all__ = ["CALL_ID", "Endpoint", "call_id_of"]

CALL_ID = re.compile(rb"\r\nCall-ID: ([^\r]+)")


class Endpoint:
    """One address. `user` "" is a carrier or an emergency centre, which nobody asks for credentials."""

    def __init__(self, world: MixWorld, address: Address, user: str, host: str) -> None:
        self.world, self.address, self.user, self.host = world, address, user, host
        self.gone: set[bytes] = set()  # calls in which it is neither heard nor hears any more
        self.lost_byes: set[bytes] = set()
        self.registered = 0
        self._challenge: Challenge | None = None
        self._nc = 0
        self._out: list[Action] = []
        self._queue = TimerQueue()
        self._tx = Transactions(Timers(), limit=100_000, emit=self._out.append, queue=self._queue)
        self._armed: float | None = None
        self._users: dict[Hashable, Callable[[Response | None], None]] = {}
        self._sent_by = b"%s:%d" % (address[0].encode(), address[1])
        world.agents[address] = self._receive

    def _request(self, request: Request, source: Address) -> None:
        """A request that no transaction knows."""
        raise NotImplementedError

    # Plumbing

    def _token(self) -> bytes:
        return self.world.random.randbytes(6).hex().encode()

    def _flush(self) -> None:
        out, self._out[:] = list(self._out), []
        for action in out:
            assert isinstance(action, SendTo)
            self._send(action.data, (action.target.host, action.target.port))
        at = self._queue.next_at
        if at is not None and (self._armed is None or at < self._armed):
            self._armed = at
            self.world.at(max(at, self.world.now), lambda: self._fire(at))

    def _send(self, data: bytes, to: Address) -> None:
        call_id = call_id_of(data)
        if call_id not in self.gone and not (call_id in self.lost_byes and data.startswith(b"BYE ")):
            self.world.send(data, self.address, to)

    def _fire(self, at: float) -> None:
        if at != self._armed:
            return
        self._armed = None
        for timer in self._queue.due(self.world.now):
            self._tx.fire(timer, self.world.now)
        self._flush()

    def response(self, key: Hashable, response: Response, /) -> None:
        if key in self._users:
            self._users[key](response)

    def failed(self, key: Hashable, /, *, timed_out: bool) -> None:
        if key in self._users:
            self._users.pop(key)(None)

    def _receive(self, data: bytes, source: Address) -> None:
        if call_id_of(data) in self.gone:
            return
        message, now = parse_message(data), self.world.now
        if isinstance(message, Response):
            client = self._tx.find_client(message)
            if client is not None:
                self._tx.receive_response(client, message, now)
        else:
            message.stamp(*source)
            server = self._tx.find_server(message)
            passed = message if server is None else self._tx.receive_request(server, message, now)
            if passed is not None:
                self._request(passed, source)
        self._flush()

    def _via(self, branch: bytes) -> tuple[bytes, bytes]:
        return b"Via", b"SIP/2.0/UDP %s;branch=%s;rport" % (self._sent_by, branch)

    def _contact(self) -> tuple[bytes, bytes]:
        return b"Contact", b"<sip:%s@%s>" % (self.user.encode() or b"carrier", self._sent_by)

    def _client(self, data: bytes, to: Address, branch: bytes, on_response: Callable[[Response | None], None]) -> None:
        request = parse_message(data)
        assert isinstance(request, Request)
        key = self._tx.new_client(request, branch, Flow("UDP", 0, *to), self, self.world.now)
        self._users[key] = on_response
        self._flush()

    # Registering

    def register(self) -> None:
        """Until it is registered, challenge and all."""
        me = b"sip:%s@%s" % (self.user.encode(), REALM.encode())
        call_id, cseq = self._token(), [0]

        def send(value: bytes) -> None:
            cseq[0] += 1
            branch = b"z9hG4bK" + self._token()
            headers = [
                self._via(branch),
                (b"Max-Forwards", b"70"),
                (b"From", b"<%s>;tag=%s" % (me, self._token())),
                (b"To", b"<%s>" % me),
                (b"Call-ID", call_id),
                (b"CSeq", b"%d REGISTER" % cseq[0]),
                self._contact(),
                (b"Expires", b"7200"),
            ]
            if value:
                headers.append((b"Authorization", value))
            self._client(write_request(b"REGISTER", b"sip:" + REALM.encode(), headers), PROXY, branch, done)

        def done(response: Response | None) -> None:
            if response is not None and response.status == 401:
                self._challenge = parse_challenge(response.lines(b"www-authenticate")[0])
                self._nc = 0
                send(self._credentials(b"REGISTER", b"sip:" + REALM.encode()))
            elif response is not None and response.status >= 200:
                self.registered = response.status

        send(b"")

    def _credentials(self, method: bytes, uri: bytes) -> bytes:
        assert self._challenge is not None
        self._nc += 1
        return write_credentials(
            self._challenge,
            method=method,
            uri=uri,
            user=self.user,
            password=self.user[::-1],
            cnonce=self._token(),
            nc=self._nc,
        )


def call_id_of(data: bytes) -> bytes:
    found = CALL_ID.search(data)
    return found[1] if found is not None else b""
