"""One call as a simulated party sees it: its transactions, its dialog (RFC 3261 §12), and what is asked of it.

Leaves out: the wire and the retransmissions, which are the user agent's (ua.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.net import PATIENCE_S
from sipproxy.sip.build import write_cancel, write_request
from sipproxy.sip.headers import parse_name_addr

if TYPE_CHECKING:
    from loadtest.truth import CallTruth
    from loadtest.ua import UserAgent
    from sipproxy.sip.message import Request, Response

__all__ = [
    "LIFETIME_S",
    "SDP_TYPE",
    "T1",
    "T2",
    "Address",
    "Call",
    "CallError",
    "Client",
    "Headers",
    "NoAnswerError",
    "Server",
    "sdp_of",
]

Address = tuple[str, int]
Headers = Sequence[tuple[bytes, bytes]]

T1 = 0.5  # RFC 3261 §17.1.1.1
T2 = 4.0
LIFETIME_S = 64 * T1
SDP_TYPE = (b"Content-Type", b"application/sdp")


class NoAnswerError(Exception):
    """A request had no final response within 64*T1, or within the time that the caller of the method gave."""


class CallError(Exception):
    """A call did not come about; `status` is its final response, 0 when there was none."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def sdp_of(host: str, port: int = 40_000) -> bytes:
    """An audio offer or answer (PCMA, PCMU)."""
    address = f"IN IP{6 if ':' in host else 4} {host}"
    lines = ("v=0", f"o=- 1 1 {address}", "s=-", f"c={address}", "t=0 0", f"m=audio {port} RTP/AVP 8 0", "")
    return "\r\n".join(lines).encode()


@dataclass(slots=True)
class Client:
    """A client transaction: what was sent, and the responses that came."""

    request: Request
    to: Address
    responses: asyncio.Queue[Response] = field(default_factory=asyncio.Queue)
    interval: float = T1
    timer: asyncio.TimerHandle | None = None
    done: bool = False
    ack: bytes | None = None  # for a 2xx: the dialog's ACK, sent again for every retransmitted 2xx
    ack_to: Address = ("", 0)


@dataclass(slots=True)
class Server:
    """A server transaction: the last response, retransmitted for an INVITE until the ACK comes."""

    request: Request
    to: Address
    response: bytes = b""
    interval: float = T1
    timer: asyncio.TimerHandle | None = None
    status: int = 0
    call: Call | None = None


class Call:
    """One dialog (or the attempt at one) as one party sees it."""

    def __init__(self, agent: UserAgent, truth: CallTruth, *, local_tag: bytes, local: bytes, remote: bytes) -> None:
        self.agent = agent
        self.truth = truth
        self.local_tag = local_tag
        self.local = local  # From value of our requests, with tag
        self.remote = remote  # To value, with tag once it is known
        self.target = b""
        self.routes: list[bytes] = []
        self.next_hop: Address = ("", 0)
        self.cseq = 0
        self.ended = asyncio.Event()
        self.outcome: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.client: Client | None = None
        self.server: Server | None = None
        self.acked = asyncio.Event()

    @property
    def call_id(self) -> str:
        return self.truth.call_id

    async def final(self, timeout_s: float = PATIENCE_S) -> int:
        """The status of the INVITE's final response; raises NoAnswerError after `timeout_s` seconds."""
        try:
            return await asyncio.wait_for(asyncio.shield(self.outcome), timeout_s)
        except TimeoutError:
            raise NoAnswerError(f"{self.agent.name}: no final response for {self.call_id} within {timeout_s:g} s") from None

    async def answered(self, timeout_s: float = PATIENCE_S) -> Call:
        """Self, once the call is answered; raises CallError when it is refused, NoAnswerError when nothing comes."""
        status = await self.final(timeout_s)
        if not 200 <= status < 300:
            raise CallError(status, f"{self.agent.name}: {self.truth.dialled} was answered {status}")
        return self

    async def wait_ended(self, timeout_s: float = PATIENCE_S) -> None:
        """Return once either party ended the call; raises NoAnswerError after `timeout_s` seconds."""
        try:
            await asyncio.wait_for(self.ended.wait(), timeout_s)
        except TimeoutError:
            raise NoAnswerError(f"{self.agent.name}: {self.call_id} did not end within {timeout_s:g} s") from None

    async def hang_up(self) -> int:
        """Send a BYE; returns the status of its response."""
        self.end("caller" if self.truth.role == "caller" else "callee")
        response = await self.request(b"BYE")
        self.heard_end(response.to.tag if self.truth.role == "caller" else self.local_tag, response.status)
        return response.status

    async def request(self, method: bytes, headers: Headers = (), body: bytes = b"") -> Response:
        """Send a request inside the dialog and return its final response."""
        data = self.write(method, headers, body)
        return await self.agent.transact(data, self.next_hop)

    def write(self, method: bytes, headers: Headers = (), body: bytes = b"", *, cseq: int | None = None) -> bytes:
        """The bytes of a request inside the dialog (§12.2.1.1)."""
        if cseq is None:
            self.cseq += 1
            cseq = self.cseq
        lines = [(b"Via", self.agent.new_via()), (b"Max-Forwards", b"70")]
        lines += [(b"Route", route) for route in self.routes]
        lines += [(b"From", self.local), (b"To", self.remote), (b"Call-ID", self.call_id.encode())]
        lines += [(b"CSeq", b"%d %s" % (cseq, method)), (b"Contact", self.agent.contact), *headers]
        return write_request(method, self.target, lines, body)

    def learn(self, message: Request | Response, *, route_set: Sequence[bytes]) -> None:
        """Take the remote target and the route set from a dialog-forming message (§12.1)."""
        contacts = message.contacts
        if contacts:
            self.target = contacts[0].uri.raw
        self.routes = list(route_set)
        uri = parse_name_addr(self.routes[0]).uri if self.routes else contacts[0].uri if contacts else None
        if uri is not None:
            self.next_hop = (uri.host_text, uri.port or 5060)

    def end(self, released_by: str) -> None:
        """Record the end, the first time."""
        truth = self.truth
        if truth.ended_at is None:
            truth.ended_at = time.monotonic()
            truth.released_by = released_by  # type: ignore[assignment]  # one of Role or ""
            self.agent.ledger.note(self.agent.name, "ended", self.call_id, released_by)
        self.ended.set()

    def heard_end(self, callee_tag: bytes | None, status: int = 0) -> None:
        """Record that the other side's BYE, or the final response to ours, arrived: what it tells of was over by then."""
        text = f"{(callee_tag or b'').decode('utf-8', 'replace')} {status}"
        self.agent.ledger.note(self.agent.name, "hears end", self.call_id, text)

    def cancel(self) -> None:
        """Give up before the answer (§9.1)."""
        assert self.client is not None
        self.truth.released_by = "caller"
        self.agent.ledger.note(self.agent.name, "cancels", self.call_id)
        client = self.client
        task = asyncio.ensure_future(self.agent.transact(write_cancel(client.request), client.to))
        self.agent.keep(task)

    def stop_repeating(self) -> None:
        """Send the INVITE no more, whether or not it was answered; what comes for it is still taken."""
        if self.client is not None and self.client.timer is not None:
            self.client.timer.cancel()

    # -- as the one who is called

    def ring(self, status: int = 180) -> None:
        """Send a provisional response that forms an early dialog."""
        assert self.server is not None
        self.truth.ringing_at = self.truth.ringing_at or time.monotonic()
        self.agent.respond(self.server, status, to_tag=self.local_tag, headers=self.agent.dialog_headers(self.server.request))

    def answer(self) -> None:
        """Send the 200 with an answer; it is repeated until the ACK comes."""
        assert self.server is not None
        self.truth.answered_at = time.monotonic()
        self.truth.status = 200
        headers = [*self.agent.dialog_headers(self.server.request), SDP_TYPE]
        self.agent.respond(self.server, 200, to_tag=self.local_tag, headers=headers, body=sdp_of(self.agent.host))
        self.settle(200)

    def reject(self, status: int) -> None:
        """Send a final response other than 2xx."""
        assert self.server is not None
        self.truth.status = status
        self.end("callee")
        self.agent.respond(self.server, status, to_tag=self.local_tag)
        self.settle(status)

    def settle(self, status: int) -> None:
        """The INVITE has its final response."""
        if not self.outcome.done():
            self.outcome.set_result(status)
