"""A small SIP user agent core on one UDP address or TCP connection: transactions, dialogs, retransmission, ACK, CANCEL, BYE.

Simulated parties are built on it (agents.py). It shares the parser and the writers with the proxy but none of its
transaction or dialog code, so that a fault there is not repeated here. RFC 3261 §8, §12, §13, §15, §17.
Leaves out: several connections, forking at the UAC (the first 2xx wins, others are ended), strict routes, session timers.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from loadtest.dialog import (
    LIFETIME_S,
    SDP_TYPE,
    T1,
    T2,
    Address,
    Call,
    CallError,
    Client,
    Headers,
    NoAnswerError,
    Server,
    sdp_of,
)
from sipproxy.sip.build import write_ack, write_response
from sipproxy.sip.errors import ParseError
from sipproxy.sip.framing import StreamFramer
from sipproxy.sip.message import Request, Response, parse_message

if TYPE_CHECKING:
    import ssl

    from loadtest.truth import Ledger

__all__ = ["SDP_TYPE", "Address", "Call", "CallError", "Headers", "NoAnswerError", "UserAgent", "new_tag", "sdp_of"]

Result = TypeVar("Result")

WIRE_TRACE = 400  # messages that a failing test can print
RECEIVE_BUFFER = 4 * 1024 * 1024
MAX_MESSAGE = 65_535
CALL_ID = re.compile(rb"\r\n(?:Call-ID|i): *([^\r]+)", re.IGNORECASE)


class UserAgent(asyncio.DatagramProtocol):
    """One party's UDP address, or its TCP connection to `tcp_to`, with `tls` over TLS. Subclasses decide what to do with new
    calls by overriding `on_invite`."""

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
        self.name = name
        self.ledger = ledger
        self.host = host
        self.port = port
        self.user = name
        self.calls: dict[tuple[str, bytes], Call] = {}
        self.wire: deque[tuple[str, Address, bytes]] = deque(maxlen=WIRE_TRACE)
        self.silent = False  # vanished: sends nothing, and hears nothing
        self.spoke_at: dict[str, float] = {}  # by Call-ID, the monotonic time of the last message that this party sent
        self.unheard: list[tuple[float, Request]] = []  # what came since it vanished, with the monotonic time
        self._tcp_to, self._tls = tcp_to, tls
        self._stream: asyncio.StreamWriter | None = None
        self.received: dict[str, int] = {}
        self._transport: asyncio.DatagramTransport | None = None
        self._clients: dict[tuple[bytes, bytes], Client] = {}
        self._servers: dict[tuple[bytes, bytes], Server] = {}
        self._tasks: set[asyncio.Future[Any]] = set()

    # -- life

    async def open(self) -> None:
        """Bind the address, or connect."""
        if self._tcp_to is not None:
            place = (self.host, self.port)
            reader, self._stream = await asyncio.open_connection(*self._tcp_to, local_addr=place, ssl=self._tls)
            self.host, self.port = self._stream.get_extra_info("sockname")[:2]
            self.keep(asyncio.ensure_future(self._read(reader, self._tcp_to)))
            return
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(self.host, self.port))
        sock = self._transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.host, self.port = sock.getsockname()[:2]

    def close(self) -> None:
        """Leave at once: timers and tasks end, nothing more is sent."""
        self.silent = True
        for client in self._clients.values():
            _stop(client)
        for server in self._servers.values():
            _stop(server)
        for task in list(self._tasks):
            task.cancel()
        if self._transport is not None:
            self._transport.close()
        if self._stream is not None:
            self._stream.close()

    def vanish(self) -> None:
        """Like a router whose power was cut: the address stays bound, what comes is kept in `unheard`, nothing is said."""
        self.ledger.note(self.name, "vanishes")
        self.silent = True

    def keep(self, task: asyncio.Future[Result]) -> None:
        """Hold a reference to a task until it is done; its failure is noted as an event."""
        self._tasks.add(task)

        def done(finished: asyncio.Future[Result]) -> None:
            self._tasks.discard(finished)
            if not finished.cancelled() and finished.exception() is not None:
                self.ledger.note(self.name, "failed", "", repr(finished.exception()))

        task.add_done_callback(done)

    # -- values

    @property
    def descriptor(self) -> int | None:
        """Of its socket for datagrams."""
        return self._transport.get_extra_info("socket").fileno() if self._transport is not None else None

    @property
    def contact(self) -> bytes:
        transport = f";transport={self._transport_name.lower()}" if self._tcp_to is not None else ""
        return f"<sip:{self.user}@{self._place}{transport}>".encode()

    @property
    def _place(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def _transport_name(self) -> str:
        return "UDP" if self._tcp_to is None else "TCP" if self._tls is None else "TLS"

    def new_via(self) -> bytes:
        return f"SIP/2.0/{self._transport_name} {self._place};branch=z9hG4bK{secrets.token_hex(8)};rport".encode()

    def dialog_headers(self, request: Request) -> list[tuple[bytes, bytes]]:
        """What a response needs that forms a dialog: the Record-Route lines as they came, and our Contact (§12.1.1)."""
        return [*((b"Record-Route", line) for line in request.lines(b"record-route")), (b"Contact", self.contact)]

    def trace(self, count: int = 30) -> str:
        """The last messages as text, for an error message."""
        last = list(self.wire)[-count:]
        return "\n".join(f"{self.name} {way} {address}\n{data.decode('utf-8', 'replace')}" for way, address, data in last)

    # -- out

    def send(self, data: bytes, to: Address) -> None:
        """Put a message on the wire; a connection leads to the proxy whatever `to` says."""
        if self.silent:
            return
        self.wire.append((">", to, data))
        found = CALL_ID.search(data)
        if found is not None:
            self.spoke_at[found[1].decode("utf-8", "replace")] = time.monotonic()
        if self._stream is not None:
            self._stream.write(data)
        elif self._transport is not None:
            self._transport.sendto(data, to)

    async def transact(self, data: bytes, to: Address, *, timeout_s: float = LIFETIME_S) -> Response:
        """Send a non-INVITE request and return its final response; raises NoAnswerError."""
        client = self.begin(data, to)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    response = await client.responses.get()
                    if response.status >= 200:
                        return response
        except TimeoutError:
            first = data.split(b"\r\n", 1)[0].decode("utf-8", "replace")
            raise NoAnswerError(f"{self.name}: no final response to {first!r} within {timeout_s:g} s") from None
        finally:
            _stop(client)

    def begin(self, data: bytes, to: Address) -> Client:
        """Start a client transaction; its responses arrive in `responses`."""
        request = parse_message(data)
        assert isinstance(request, Request)
        client = Client(request, to)
        key = (request.via.branch or b"", request.cseq.method)
        self._clients[key] = client
        loop = asyncio.get_running_loop()
        loop.call_later(LIFETIME_S + 1, self._clients.pop, key, None)
        self.send(data, to)
        if self._stream is None:
            client.timer = loop.call_later(T1, self._again, client)
        return client

    def _again(self, client: Client) -> None:
        """Timer A or E (§17.1.1.2, §17.1.2.2)."""
        if client.done or self.silent:
            return
        invite = client.request.method == b"INVITE"
        client.interval = 2 * client.interval if invite else min(2 * client.interval, T2)
        if client.interval > LIFETIME_S:
            return
        self.ledger.note(self.name, "repeats", _call_id(client.request), client.request.method.decode())
        self.send(client.request.raw, client.to)
        client.timer = asyncio.get_running_loop().call_later(client.interval, self._again, client)

    def respond(self, server: Server, status: int, *, to_tag: bytes = b"", headers: Headers = (), body: bytes = b"") -> None:
        """Answer a request; a final response to an INVITE is repeated until its ACK (§13.3.1.4, §17.2.1)."""
        server.response = write_response(server.request, status, to_tag=to_tag, headers=headers, body=body)
        server.status = status
        self.send(server.response, server.to)
        if server.request.method == b"INVITE" and status >= 200:
            server.timer = asyncio.get_running_loop().call_later(T1, self._again_response, server)

    def _again_response(self, server: Server) -> None:
        if self.silent or server.interval > LIFETIME_S / 2:
            return
        server.interval *= 2
        self.ledger.note(self.name, "repeats", _call_id(server.request), str(server.status))
        self.send(server.response, server.to)
        server.timer = asyncio.get_running_loop().call_later(min(server.interval, T2), self._again_response, server)

    # -- in

    async def _read(self, reader: asyncio.StreamReader, source: Address) -> None:
        framer = StreamFramer(MAX_MESSAGE)
        while data := await reader.read(MAX_MESSAGE):
            for message in framer.feed(data):
                if isinstance(message, bytes):
                    self.datagram_received(message, source)

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        source = (str(addr[0]), addr[1])
        self.wire.append(("<", source, data))
        if not data.strip():
            return
        try:
            message = parse_message(data)
        except ParseError as error:
            self.ledger.note(self.name, "malformed", "", str(error))
            return
        if self.silent:
            if isinstance(message, Request):
                self.unheard.append((time.monotonic(), message))
        elif isinstance(message, Response):
            self._on_response(message)
        else:
            message.stamp(*source)
            self._on_request(message, source)

    def _on_response(self, response: Response) -> None:
        client = self._clients.get((response.via.branch or b"", response.cseq.method))
        if client is None:
            self.ledger.note(self.name, "stray", _call_id(response), str(response.status))
            return
        invite = response.cseq.method == b"INVITE"
        if not invite or response.status < 200:
            if response.status >= 200 or invite:
                _stop(client, done=response.status >= 200)
            client.responses.put_nowait(response)
            return
        repeated = client.done
        _stop(client)
        if response.status >= 300:
            self.send(write_ack(client.request, response), client.to)
        elif client.ack is not None:
            self.send(client.ack, client.ack_to)
        if not repeated:
            client.responses.put_nowait(response)

    def _on_request(self, request: Request, source: Address) -> None:
        method = request.method
        self.received[method.decode("utf-8", "replace")] = self.received.get(method.decode("utf-8", "replace"), 0) + 1
        key = (request.via.branch or b"", b"INVITE" if method == b"ACK" else method)
        known = self._servers.get(key)
        if known is not None and method != b"ACK":
            if known.response:
                self.send(known.response, known.to)
            return
        if method == b"ACK":
            self._on_ack(request, known)
            return
        server = Server(request, source)
        self._servers[key] = server
        asyncio.get_running_loop().call_later(LIFETIME_S, self._servers.pop, key, None)
        call = self.calls.get((_call_id(request), request.to.tag or b""))
        if method == b"CANCEL":
            self._on_cancel(server, key)
        elif request.to.tag:
            self._in_dialog(server, call)
        elif method == b"INVITE":
            self._new_call(server)
        elif method == b"OPTIONS":
            self.respond(server, 200, to_tag=new_tag(), headers=[(b"Allow", b"INVITE, ACK, CANCEL, BYE, OPTIONS")])
        else:
            self.respond(server, 405, to_tag=new_tag())

    def _on_ack(self, request: Request, known: Server | None) -> None:
        call = self.calls.get((_call_id(request), request.to.tag or b""))
        if known is not None:
            _stop(known)
        if call is not None:
            if call.server is not None:
                _stop(call.server)
            call.acked.set()

    def _on_cancel(self, server: Server, key: tuple[bytes, bytes]) -> None:
        invite = self._servers.get((key[0], b"INVITE"))
        if invite is None:
            self.respond(server, 481, to_tag=new_tag())
            return
        self.respond(server, 200, to_tag=new_tag())
        if invite.status >= 200:
            return
        call = invite.call
        if call is not None:
            call.truth.status = 487
            self.respond(invite, 487, to_tag=call.local_tag)
            call.end("caller")
            call.settle(487)

    def _in_dialog(self, server: Server, call: Call | None) -> None:
        method = server.request.method
        if call is None:
            self.respond(server, 481)
        elif method == b"BYE":
            self.respond(server, 200)
            call.heard_end(server.request.from_.tag if call.truth.role == "caller" else call.local_tag)
            call.end("callee" if call.truth.role == "caller" else "caller")
        elif call.ended.is_set():
            self.respond(server, 481)
        elif method == b"INVITE":
            call.server = server
            headers = [*self.dialog_headers(server.request), SDP_TYPE]
            self.respond(server, 200, headers=headers, body=sdp_of(self.host))
        else:
            self.respond(server, 200)

    def _new_call(self, server: Server) -> None:
        request = server.request
        tag = new_tag()
        truth = self.ledger.open(self.name, "callee", _call_id(request), request.uri.decode("utf-8", "replace"))
        truth.tags = (tag.decode(), (request.from_.tag or b"").decode("utf-8", "replace"))
        local = (request.first(b"to") or b"") + b";tag=" + tag
        call = Call(self, truth, local_tag=tag, local=local, remote=request.first(b"from") or b"")
        call.server, server.call = server, call
        call.learn(request, route_set=request.values(b"record-route"))
        self.calls[truth.call_id, tag] = call
        self.respond(server, 100)
        self.on_invite(call, request)

    def on_invite(self, call: Call, request: Request) -> None:  # noqa: ARG002  # for subclasses
        """A new call arrived; this party declines it."""
        call.reject(603)


def new_tag() -> bytes:
    """A From or To tag with 64 random bits (§19.3 asks for 32)."""
    return secrets.token_hex(8).encode()


def _stop(transaction: Client | Server, *, done: bool = True) -> None:
    if isinstance(transaction, Client):
        transaction.done = transaction.done or done
    if transaction.timer is not None:
        transaction.timer.cancel()
        transaction.timer = None


def _call_id(message: Request | Response) -> str:
    return message.call_id.decode("utf-8", "replace")
