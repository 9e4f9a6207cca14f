"""One engine at a desk: raw requests in, what it sends back out, no network in between."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sipproxy.engine.actions import Action, Now, SendTo
from sipproxy.sip.build import write_request
from sipproxy.sip.digest import parse_challenge, write_credentials
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Request, Response, parse_message
from tests.sim.conftest import make_town
from tests.sim.world import REALM

if TYPE_CHECKING:
    from sipproxy.engine.core import Engine

ROUTER = Flow("UDP", 0, "203.0.113.1", 5060)
STRANGER = Flow("UDP", 0, "203.0.113.99", 5060)
DOMAIN = b"sip:" + REALM.encode()


@dataclass
class Desk:
    """`clock` is UTC ms; `tick` moves both clocks."""

    engine: Engine = field(default_factory=lambda: make_town().world.engine)
    mono: float = 5000.0
    utc_ms: int = 1_790_000_000_000
    actions: list[Action] = field(default_factory=list)
    counter: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def now(self) -> Now:
        return Now(self.mono, self.utc_ms)

    def tick(self, seconds: float) -> None:
        self.mono += seconds
        self.utc_ms += round(seconds * 1000)

    def receive(self, data: bytes, flow: Flow = ROUTER, *, waited_s: float = 0.0) -> list[Request | Response]:
        """What the engine sends on this message, which waited so long to be read."""
        self.actions = self.engine.receive(data, flow, self.now, waited_s)
        return self.sent()

    def sent(self) -> list[Request | Response]:
        return [parse_message(action.data) for action in self.actions if isinstance(action, SendTo)]

    def answer(self, data: bytes, flow: Flow = ROUTER, *, waited_s: float = 0.0) -> Response:
        """The one response that the message gets at once, 100 left out."""
        found = [m for m in self.receive(data, flow, waited_s=waited_s) if isinstance(m, Response) and m.status != 100]
        assert len(found) == 1, [m.raw for m in self.sent()]
        return found[0]

    def request(
        self,
        method: bytes = b"REGISTER",
        uri: bytes = DOMAIN,
        *,
        user: bytes = b"alice",
        call_id: bytes = b"call-1",
        cseq: int | None = None,
        to: bytes = b"",
        to_tag: bytes = b"",
        headers: tuple[tuple[bytes, bytes], ...] = (),
        via: bytes = b"SIP/2.0/UDP 203.0.113.1:5060;rport",
        branch: bytes = b"",
        body: bytes = b"",
    ) -> bytes:
        number = next(self.counter)
        address = b"<sip:%s@%s>" % (user, REALM.encode())
        target = to or (address if method == b"REGISTER" else b"<%s>" % uri)
        lines = [
            (b"Via", b"%s;branch=%s" % (via, branch or b"z9hG4bK%d" % number)),
            (b"Max-Forwards", b"70"),
            (b"From", b"%s;tag=f1" % address),
            (b"To", target + (b";tag=" + to_tag if to_tag else b"")),
            (b"Call-ID", call_id),
            (b"CSeq", b"%d %s" % (cseq if cseq is not None else number, method)),
        ]
        given = {name.lower() for name, _ in headers}
        return write_request(method, uri, [line for line in lines if line[0].lower() not in given] + list(headers), body)

    def credentials(
        self, method: bytes, uri: bytes, *, user: str = "alice", password: str = "", flow: Flow = ROUTER, pick: int = 0
    ) -> tuple[bytes, bytes]:
        """Credentials on a fresh challenge; the password defaults to the right one."""
        challenged = self.answer(self.request(method, uri, user=user.encode()), flow)
        assert challenged.status in (401, 407), challenged.raw
        name = b"WWW-Authenticate" if challenged.status == 401 else b"Proxy-Authenticate"
        challenge = parse_challenge(challenged.lines(name.lower())[pick])
        value = write_credentials(
            challenge, method=method, uri=uri, user=user, password=password or user[::-1], cnonce=b"0a4f113b", nc=1
        )
        return (b"Authorization" if challenged.status == 401 else b"Proxy-Authorization"), value

    def register(
        self, *contacts: bytes, expires: int | None = None, flow: Flow = ROUTER, user: str = "alice", **options: object
    ) -> Response:
        """An authenticated REGISTER."""
        headers = [self.credentials(b"REGISTER", DOMAIN, user=user, flow=flow)]
        headers += [(b"Contact", contact) for contact in contacts]
        if expires is not None:
            headers.append((b"Expires", b"%d" % expires))
        return self.answer(self.request(user=user.encode(), headers=tuple(headers), **options), flow)  # type: ignore[arg-type]
