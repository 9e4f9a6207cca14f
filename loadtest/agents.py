"""The parties of a simulated network: customer routers, the carrier's trunk, an emergency centre.

Each is a user agent on its own loopback address (ua.py) with the habits of its kind: a router registers and authenticates
(RFC 3261 §10, §22; RFC 7616), a trunk is known by its address, a PSAP answers. Everything they do is kept as truth.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.net import PATIENCE_S
from loadtest.ua import SDP_TYPE, Address, Call, Headers, NoAnswerError, UserAgent, new_tag, sdp_of
from sipproxy.sip.build import write_request
from sipproxy.sip.digest import Challenge, parse_challenge, write_credentials
from sipproxy.sip.errors import ParseError

if TYPE_CHECKING:
    import ssl

    from loadtest.truth import Ledger
    from sipproxy.sip.message import Request, Response

__all__ = ["Answering", "Party", "Psap", "Router", "RouterAccount", "Trunk", "next_call", "open_all"]

MAX_CHALLENGES = 2  # a second one is a stale nonce; a third means that the credentials are wrong


@dataclass(frozen=True, slots=True)
class Answering:
    """What a party does with a call.

    `ring_s` seconds of ringing (0: none is signalled when `status` is a refusal), then the final `status` (None: rings
    until the caller gives up); after an answer it hangs up after `talk_s` seconds (None: waits for the other side).
    """

    ring_s: float = 0.0
    status: int | None = 200
    talk_s: float | None = None


@dataclass(frozen=True, slots=True)
class RouterAccount:
    """A digest identity. `algorithms` are those that the router knows."""

    user: str
    password: str = field(repr=False)
    domain: str
    algorithms: tuple[str, ...] = ("SHA-256", "MD5")


class Party(UserAgent):
    """A user agent that answers calls as told and places calls without credentials."""

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        tcp_to: Address | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(name, ledger, host=host, port=port, tcp_to=tcp_to, tls=tls)
        self.answering = Answering()
        self.answering_by: dict[str, Answering] = {}  # for calls to one number, by the user part of their URI
        self.incoming: asyncio.Queue[Call] = asyncio.Queue()

    def on_invite(self, call: Call, request: Request) -> None:  # noqa: ARG002  # the call holds what is needed
        self.incoming.put_nowait(call)
        user = call.truth.dialled.partition(":")[2].partition("@")[0]
        self.keep(asyncio.ensure_future(self._treat(call, self.answering_by.get(user, self.answering))))

    async def _treat(self, call: Call, answering: Answering) -> None:
        if answering.status is None or answering.status < 300 or answering.ring_s:
            call.ring()
        if answering.status is None:
            return
        if answering.ring_s:
            await asyncio.sleep(answering.ring_s)
        if call.outcome.done():
            return  # cancelled meanwhile
        if answering.status >= 300:
            call.reject(answering.status)
            return
        call.answer()
        if answering.talk_s is not None:
            await asyncio.sleep(answering.talk_s)
            if not call.ended.is_set():
                await call.hang_up()

    async def place(self, dialled: str, proxy: Address, *, caller: str, headers: Headers = ()) -> Call:
        """Send an INVITE and return at once; `dialled` is a user part or a full URI."""
        call, uri = self._new_attempt(dialled, proxy, caller)
        self._invite(call, uri, proxy, [*headers, SDP_TYPE])
        return call

    def _new_attempt(self, dialled: str, proxy: Address, caller: str) -> tuple[Call, bytes]:
        call_id = f"{self.name}-{secrets.token_hex(8)}"
        truth = self.ledger.open(self.name, "caller", call_id, dialled)
        domain = self.domain(proxy)
        uri = dialled.encode() if ":" in dialled else f"sip:{dialled}@{domain}".encode()
        tag = new_tag()
        truth.tags = (tag.decode(), "")
        local = f"<sip:{caller}@{domain}>;tag=".encode() + tag
        call = Call(self, truth, local_tag=tag, local=local, remote=b"<" + uri + b">")
        self.calls[call_id, tag] = call
        return call, uri

    def domain(self, proxy: Address) -> str:
        """The host part of the URIs that this party writes."""
        return f"{proxy[0]}:{proxy[1]}"

    def _invite(self, call: Call, uri: bytes, proxy: Address, headers: Headers) -> None:
        call.cseq += 1
        lines = [(b"Via", self.new_via()), (b"Max-Forwards", b"70"), (b"From", call.local), (b"To", call.remote)]
        lines += [(b"Call-ID", call.call_id.encode()), (b"CSeq", b"%d INVITE" % call.cseq), (b"Contact", self.contact)]
        lines += [(b"User-Agent", self.name.encode()), (b"Allow", b"INVITE, ACK, CANCEL, BYE, OPTIONS"), *headers]
        data = write_request(b"INVITE", uri, lines, sdp_of(self.host))
        call.truth.started_at = time.monotonic()
        call.client = self.begin(data, proxy)
        self.ledger.note(self.name, "invites", call.call_id, uri.decode("utf-8", "replace"))
        self.keep(asyncio.ensure_future(self._follow(call, uri, proxy)))

    async def _follow(self, call: Call, uri: bytes, proxy: Address) -> None:
        """Take the responses of one INVITE until a final one."""
        client = call.client
        assert client is not None
        while True:
            response = await client.responses.get()
            status = response.status
            self.ledger.note(self.name, "got", call.call_id, str(status))
            if 100 < status < 200 and call.truth.ringing_at is None:
                call.truth.ringing_at = time.monotonic()
            if status >= 200:
                break
        if status in (401, 407) and self.challenged(call, uri, proxy, response):
            return
        call.truth.status = status
        if status >= 300:
            call.end(call.truth.released_by or "callee")
            call.settle(status)
            return
        self._establish(call, response)

    def _establish(self, call: Call, response: Response) -> None:
        client = call.client
        assert client is not None
        call.remote = response.first(b"to") or call.remote
        call.truth.tags = (call.truth.tags[0], (response.to.tag or b"").decode("utf-8", "replace"))
        call.learn(response, route_set=response.values(b"record-route")[::-1])  # §12.1.2: in reverse order
        client.ack, client.ack_to = call.write(b"ACK", cseq=call.cseq), call.next_hop
        self.send(client.ack, client.ack_to)
        call.truth.answered_at = time.monotonic()
        call.settle(response.status)

    def challenged(self, call: Call, uri: bytes, proxy: Address, response: Response) -> bool:  # noqa: ARG002
        """Whether a challenge was answered with a new INVITE; this party has no credentials."""
        return False


class Trunk(Party):
    """The carrier's side of a trunk: takes calls, answers OPTIONS, places calls known by its source address."""

    async def call(self, dialled: str, proxy: Address, *, caller: str = "+493023125001", headers: Headers = ()) -> Call:
        """Place a call into the proxy's network, from the (network-asserted) number `caller`."""
        asserted = (b"P-Asserted-Identity", f"<sip:{caller}@{self.host}>".encode())
        return await self.place(dialled, proxy, caller=caller, headers=[asserted, *headers])


class Psap(Party):
    """An emergency centre: answers each call at once."""


class Router(Party):
    """A customer's router with one account at one proxy."""

    def __init__(
        self,
        name: str,
        ledger: Ledger,
        account: RouterAccount,
        proxy: Address,
        *,
        host: str = "127.0.0.1",
        tcp: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(name, ledger, host=host, tcp_to=proxy if tcp or tls is not None else None, tls=tls)
        self.account = account
        self.user = account.user
        self.proxy = proxy
        self._register_call_id = f"{name}-{secrets.token_hex(8)}"
        self._register_cseq = 0
        self._challenge: Challenge | None = None
        self._nonce_count = 0
        self._pending: dict[str, Headers] = {}

    def domain(self, proxy: Address) -> str:  # noqa: ARG002
        return self.account.domain

    async def register(self, *, expires_s: int = 600, timeout_s: float = PATIENCE_S) -> Response:
        """Register (0 seconds: remove) and return the final response, after answering its challenge."""
        uri = f"sip:{self.account.domain}".encode()
        aor = f"<sip:{self.account.user}@{self.account.domain}>".encode()
        for _ in range(MAX_CHALLENGES + 1):
            self._register_cseq += 1
            lines = [(b"Via", self.new_via()), (b"Max-Forwards", b"70"), (b"From", aor + b";tag=" + new_tag()), (b"To", aor)]
            lines += [(b"Call-ID", self._register_call_id.encode()), (b"CSeq", b"%d REGISTER" % self._register_cseq)]
            lines += [(b"Contact", self.contact), (b"Expires", b"%d" % expires_s), (b"User-Agent", self.name.encode())]
            lines += self._credentials(b"Authorization", b"REGISTER", uri)
            response = await self.transact(write_request(b"REGISTER", uri, lines), self.proxy, timeout_s=timeout_s)
            self.ledger.note(self.name, "register", self._register_call_id, str(response.status))
            if response.status not in (401, 407) or not self._take_challenge(response):
                break
        return response

    async def call(self, dialled: str, *, headers: Headers = ()) -> Call:
        """Place a call through the proxy; `dialled` is a user part or a full URI. The challenge is answered on the way."""
        call, uri = self._new_attempt(dialled, self.proxy, self.account.user)
        self._pending[call.call_id] = headers
        own = self._credentials(b"Proxy-Authorization", b"INVITE", uri)
        self._invite(call, uri, self.proxy, [*headers, *own, SDP_TYPE])
        return call

    def challenged(self, call: Call, uri: bytes, proxy: Address, response: Response) -> bool:
        if call.truth.challenged >= MAX_CHALLENGES or not self._take_challenge(response):
            return False
        call.truth.challenged += 1
        name = b"Authorization" if response.status == 401 else b"Proxy-Authorization"
        headers = self._pending.get(call.call_id, ())
        self._invite(call, uri, proxy, [*headers, *self._credentials(name, b"INVITE", uri), SDP_TYPE])
        return True

    def _take_challenge(self, response: Response) -> bool:
        """Remember the first challenge with an algorithm that this router knows (RFC 8760 §2.4: topmost wins)."""
        name = b"www-authenticate" if response.status == 401 else b"proxy-authenticate"
        for value in response.lines(name):
            try:
                challenge = parse_challenge(value)
            except ParseError:
                continue  # an algorithm or scheme that nobody here knows
            if challenge.algorithm in self.account.algorithms:
                self._challenge, self._nonce_count = challenge, 0
                return True
        return False

    def _credentials(self, name: bytes, method: bytes, uri: bytes) -> list[tuple[bytes, bytes]]:
        """The credentials for a request, from the last challenge; nothing before the first one."""
        if self._challenge is None:
            return []
        self._nonce_count += 1
        account = self.account
        cnonce, count = secrets.token_hex(8).encode(), self._nonce_count
        challenge = self._challenge
        value = write_credentials(
            challenge, method=method, uri=uri, user=account.user, password=account.password, cnonce=cnonce, nc=count
        )
        return [(name, value)]


async def open_all(parties: Sequence[UserAgent]) -> None:
    """Bind the addresses of all parties."""
    for party in parties:
        await party.open()


async def next_call(party: Party, timeout_s: float = PATIENCE_S) -> Call:
    """The next call that arrives at a party; raises NoAnswerError after `timeout_s` seconds."""
    try:
        return await asyncio.wait_for(party.incoming.get(), timeout_s)
    except TimeoutError:
        raise NoAnswerError(f"{party.name}: no call arrived within {timeout_s:g} s\n{party.trace()}") from None
