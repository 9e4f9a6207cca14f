"""TCP and TLS of the node: one listening socket, the connections it accepted, and those it opens (RFC 3261 §18, RFC 5626
§3.5.1, RFC 5923).

Messages in by callback, whole and in order; messages out on the connection they belong to, or on one to (host, port) that is
opened when there is none and used again while it lives. Every buffer, count and waiting time has a bound. A message that is
known not to have gone out is reported with the key it was sent with, and always after `send` has returned. With TLS a
connection that we open goes only to whom its certificate proves (RFC 5922). What is not here: look-ups of names, and what a
message means.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from typing import TYPE_CHECKING

from sipproxy.net.connection import Connection, StreamLimits
from sipproxy.net.tls import name_matches
from sipproxy.net.udp import bind_ahead, bound_or_away
from sipproxy.sip.flow import CONNECTION_STEP, is_literal, source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

    from sipproxy.net.tls import Tls
    from sipproxy.sip.errors import ParseError

__all__ = ["StreamLimits", "StreamListener", "bind_stream"]

BACKLOG = 1024
ACCEPT_PAUSE_S = 0.1  # after an accept that failed


class StreamListener:
    """A bound TCP socket with its connections.

    `on_message(data, host, port, connection)` gets each message; `on_failed(key, reason)` each one sent that is known not to
    have gone out; `on_closed(connection, host, port, reason)` the end of a connection, where what was written last may or may
    not have arrived; `on_refused(head, error, host, port, connection)` the head of a message that broke a stream, which may be
    answered on that connection during the call. `counters`, `closed` and `failed` hold plain integers, the last two by reason.
    """

    def __init__(
        self,
        address: str,
        port: int,
        on_message: Callable[[bytes, str, int, int], None],
        *,
        on_failed: Callable[[Hashable, str], None] | None = None,
        on_closed: Callable[[int, str, int, str], None] | None = None,
        on_refused: Callable[[bytes, ParseError, str, int, int], None] | None = None,
        limits: StreamLimits | None = None,
        tls: Tls | None = None,
        may_wait: bool = False,
        take: Callable[[], socket.socket] | None = None,
        worker: int = 0,
    ) -> None:
        """Bind to an IP literal; port 0 takes a free one. Raises OSError when that is not possible, ValueError for a name.

        With `may_wait` an address that is not on this machine yet makes a closed listener, which `reopen` opens. With `take`
        the socket is what it gives, each time that one is needed. The numbers of the connections say to which `worker` of the
        node they belong (`engine.steering`).
        """
        self.limits = limits or StreamLimits()
        self.tls = tls
        self.counters = {
            "accepted": 0, "connected": 0, "messages": 0, "received_bytes": 0, "sent": 0, "sent_bytes": 0, "pings": 0,
            "accept_errors": 0,
        }  # fmt: skip
        self.closed = {
            "peer": 0, "error": 0, "framing": 0, "too_many": 0, "too_many_from_source": 0, "first_message": 0,
            "incomplete": 0, "idle": 0, "stalled": 0, "connect": 0, "shutdown": 0, "handshake": 0, "name": 0,
            "address": 0, "silent": 0,
        }  # fmt: skip
        self.failed = {
            "connect": 0, "slow_connect": 0, "gone": 0, "write_buffer_full": 0, "too_many": 0, "shutdown": 0,
            "bad_address": 0, "handshake": 0, "name": 0,
        }  # fmt: skip
        self.on_message, self.on_closed, self.on_refused = on_message, on_closed, on_refused
        self._on_failed = on_failed
        self._connections: dict[int, Connection] = {}
        self._outgoing: dict[tuple[str, int], Connection] = {}
        self._per_source: dict[str, int] = {}
        # How many customers are known at an address: behind a carrier-grade NAT that are many, and each has a connection.
        self.customers_at: Callable[[str], int] = lambda host: 0  # noqa: ARG005
        self.may_end: Callable[[str, int, int], bool] = lambda host, port, connection: True  # noqa: ARG005  # when it is silent
        self._last_id, self._step = worker, CONNECTION_STEP if worker else 1
        self._connecting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._all_closed = asyncio.Event()
        self._take_socket = take
        self._local = (address, 0)  # A trunk knows us by the address we listen on.
        bind = take or functools.partial(bind_stream, address, port)
        self._socket, self.address = bound_or_away(bind, address, port, may_wait=may_wait)
        self._closing = self._socket.fileno() < 0

    def __len__(self) -> int:
        return len(self._connections)

    async def start(self) -> None:
        """Accept connections on the running event loop from now on, where the listener is open."""
        if self._closing:
            return
        loop = asyncio.get_running_loop()
        if self.tls is not None:
            self._socket.listen(BACKLOG)
            self._accepting = loop.create_task(self._accept())
            return
        self._server = await loop.create_server(lambda: Connection(self, accepted=True), sock=self._socket, backlog=BACKLOG)

    @property
    def is_open(self) -> bool:
        return not self._closing

    async def close(self, reason: str = "shutdown") -> None:
        """Stop accepting, write what is left within `close_s`, and close everything; harmless when repeated. For the `reason`
        "address", which is gone from this machine, nothing more is written."""
        self._closing = True
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = [*self._connecting, *([self._accepting] if self._accepting is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in list(self._connections.values()):
            if reason == "address":
                connection.abort(reason)
            else:
                connection.finish(reason)
        if self._connections:
            self._all_closed.clear()
            await self._all_closed.wait()  # `finish` bounds the time.
        self._socket.close()

    async def reopen(self) -> None:
        """Bind to the same address again after `close`, and accept connections. Raises OSError when it cannot be had."""
        self._socket = self._take_socket() if self._take_socket is not None else bind_stream(*self.address)
        self._closing = False
        await self.start()

    def names(self, connection: int) -> tuple[str, ...]:
        """The SIP domains that the peer has proved by its certificate."""
        found = self._connections.get(connection)
        return () if found is None else found.names

    def end_silent(self, connection: int, silent_s: float) -> None:
        """End a connection when nothing comes by it for so many seconds; 0: no more. Harmless for one that is gone."""
        found = self._connections.get(connection)
        if found is not None:
            found.end_silent(silent_s)

    def send(
        self,
        data: bytes,
        host: str,
        port: int,
        connection: int = 0,
        *,
        domain: str = "",
        key: Hashable | None = None,
        connect_s: float = 0.0,
    ) -> int:
        """Send on `connection`, or with 0 on the one to (host, port), and return its number; 0 when it failed at once.

        With `connect_s` what waits for so many seconds for its connection to open has failed, and is not sent any more.
        With TLS, `domain` is whom the peer has to prove to be, by default `host` itself.
        A connection that is named and gone is not replaced: behind a NAT nobody listens at that port (RFC 5626 §5.3).
        Failures are reported to `on_failed` later, never from within.
        """
        if self._closing:
            return self.fail(key, "shutdown")
        if connection:
            found = self._connections.get(connection)
            if found is None or (found.host, found.port) != (host, port):
                return self.fail(key, "gone")  # numbers begin anew with the process: a kept one may be another peer's by now
            return found.send(data, key)
        target = self._outgoing.get((host, port))
        if target is None or not self._serves(target, domain):
            target = self._open(host, port, domain, key)
        return 0 if target is None else target.send(data, key, connect_s)

    def fail(self, key: Hashable | None, reason: str) -> int:
        """Count a message that did not go out, report it later, and return 0."""
        self.failed[reason] += 1
        if self._on_failed is not None and key is not None:
            asyncio.get_running_loop().call_soon(self._on_failed, key, reason)
        return 0

    def add(self, connection: Connection) -> str:
        """Take a connection in; the reason when a limit is against it."""
        if len(self._connections) >= self.limits.connections:
            return "too_many"
        source = source_of(connection.host)
        count = self._per_source.get(source, 0)
        if connection.accepted and count >= self.limits.connections_per_source + self.customers_at(connection.host):
            return "too_many_from_source"
        self._per_source[source] = count + 1
        self._last_id += self._step
        connection.number = self._last_id
        self._connections[connection.number] = connection
        return ""

    def remove(self, connection: Connection) -> None:
        """Forget a connection; harmless when repeated."""
        if self._connections.pop(connection.number, None) is None:
            return
        if self._outgoing.get((connection.host, connection.port)) is connection:
            del self._outgoing[connection.host, connection.port]
        source = source_of(connection.host)
        self._per_source[source] -= 1
        if not self._per_source[source]:
            del self._per_source[source]
        if not self._connections:
            self._all_closed.set()

    def _serves(self, connection: Connection, domain: str) -> bool:
        """Whether what is meant for `domain` may go on a connection to the same address (RFC 5922 §7.2)."""
        if self.tls is None or domain in ("", connection.host, connection.domain):
            return True
        return name_matches(domain, connection.names)

    def _open(self, host: str, port: int, domain: str, key: Hashable | None) -> Connection | None:
        if not is_literal(host) or not 0 < port < 65536:
            self.fail(key, "bad_address")
            return None
        connection = Connection(self, accepted=False, host=host, port=port, domain=domain)
        if self.add(connection):
            self.fail(key, "too_many")
            return None
        self._outgoing[host, port] = connection
        self.spawn(self._connect(connection), connection)
        return connection

    async def _connect(self, connection: Connection) -> None:
        reason = "connect"
        try:
            sock = _socket(connection.host)
        except OSError:  # no file descriptor is left
            connection.not_connected(reason)
            return
        try:
            async with asyncio.timeout(self.limits.connect_s):
                sock.bind(self._local)
                await asyncio.get_running_loop().sock_connect(sock, (connection.host, connection.port))
                reason = "connect" if self.tls is None else "handshake"
                await self._take(sock, connection)
        except OSError:  # TimeoutError and ssl.SSLError are some.
            sock.close()
            connection.not_connected(reason)
        except asyncio.CancelledError:
            sock.close()
            raise

    async def _take(self, sock: socket.socket, connection: Connection) -> None:
        """Make a connected socket the connection's, after its handshake when there is one. Raises OSError."""
        loop = asyncio.get_running_loop()
        if self.tls is None:
            await loop.create_connection(lambda: connection, sock=sock)
        elif connection.accepted:
            bound = self.limits.handshake_s
            await loop.connect_accepted_socket(lambda: connection, sock, ssl=self.tls.server, ssl_handshake_timeout=bound)
        else:
            name = connection.domain or connection.host
            await loop.create_connection(lambda: connection, sock=sock, ssl=self.tls.client, server_hostname=name)

    async def _accept(self) -> None:
        """Accept connections for TLS: counted against the limits before their handshakes, which anybody may drag out."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, (host, port, *_) = await loop.sock_accept(self._socket)
            except OSError:  # no file descriptor is left
                self.counters["accept_errors"] += 1
                await asyncio.sleep(ACCEPT_PAUSE_S)
                continue
            connection = Connection(self, accepted=True)
            refused = connection.arrived(host, port)
            if refused:
                sock.close()
                connection.not_connected(refused)
            else:
                self.spawn(self._shake_hands(sock, connection), connection)

    async def _shake_hands(self, sock: socket.socket, connection: Connection) -> None:
        try:
            await self._take(sock, connection)
        except OSError:
            sock.close()
            connection.not_connected("handshake")
        except asyncio.CancelledError:
            sock.close()
            raise

    def spawn(self, opening: Coroutine[object, object, None], connection: Connection) -> None:
        """Run what opens a connection."""
        # Bounded in number by `connections` and in time by `connect_s` or `handshake_s`; ended by `close`, maybe before its
        # first step.
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(opening)
        self._connecting.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._connecting.discard(task)
            if task.cancelled():
                connection.not_connected("shutdown")
            elif (fault := task.exception()) is not None:  # of ours: reported as from any callback, and nothing stays of it
                asyncio.get_running_loop().call_exception_handler({"message": "connection not opened", "exception": fault})
                connection.not_connected("connect")

        task.add_done_callback(done)


def _socket(address: str) -> socket.socket:
    """A non-blocking socket of the literal's family that notices a peer which is gone, also while something is unsent."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)  # in ms; about Timer B
    return sock


def bind_stream(address: str, port: int, *, ahead: bool = False) -> socket.socket:
    """A bound socket that does not listen yet, with `ahead` also to an address that is not there yet. Raises OSError, and
    ValueError for a name."""
    sock = _socket(address)  # What is set here, the accepted connections inherit.
    try:
        if ahead:
            bind_ahead(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has listeners of its own.
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock
