"""TCP of the node: one listening socket, the connections it accepted, and those it opens (RFC 3261 §18, RFC 5626 §3.5.1).

Messages in by callback, whole and in order; messages out on the connection they belong to, or on one to (host, port) that is
opened when there is none and used again while it lives. Every buffer, count and waiting time has a bound. A message that is
known not to have gone out is reported with the key it was sent with, and always after `send` has returned. What is not
here: TLS, names, and what a message means.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sipproxy.sip.errors import ParseError
from sipproxy.sip.framing import Keepalive, StreamFramer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["StreamLimits", "StreamListener"]

PONG = b"\r\n"  # RFC 5626 §3.5.1
BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of one listener: bytes, counts and seconds."""

    message_bytes: int = 65535
    write_bytes: int = 256 * 1024  # held for one connection that does not read, or is not open yet
    connections: int = 20_000
    connections_per_source: int = 200  # an IPv4 address or an IPv6 /64; a carrier-grade NAT holds many routers
    connect_s: float = 5.0
    first_message_s: float = 30.0  # until an accepted connection has brought a whole message or a keep-alive
    incomplete_s: float = 10.0  # from the first byte of a message to its last
    idle_s: float = 7200.0  # without a byte in either direction; above the longest registration
    stalled_s: float = 10.0  # with a full write buffer
    close_s: float = 2.0  # for what is still to be written when the listener closes


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
    ) -> None:
        """Bind to an IP literal; port 0 takes a free one. Raises OSError when that is not possible, ValueError for a name."""
        self.limits = limits or StreamLimits()
        self.counters = {
            "accepted": 0, "connected": 0, "messages": 0, "received_bytes": 0, "sent": 0, "sent_bytes": 0, "pings": 0,
        }  # fmt: skip
        self.closed = {
            "peer": 0, "error": 0, "framing": 0, "too_many": 0, "too_many_from_source": 0, "first_message": 0,
            "incomplete": 0, "idle": 0, "stalled": 0, "connect": 0, "shutdown": 0,
        }  # fmt: skip
        self.failed = {"connect": 0, "gone": 0, "write_buffer_full": 0, "too_many": 0, "shutdown": 0, "bad_address": 0}
        self.on_message, self.on_closed, self.on_refused = on_message, on_closed, on_refused
        self._on_failed = on_failed
        self._connections: dict[int, _Connection] = {}
        self._outgoing: dict[tuple[str, int], _Connection] = {}
        self._per_source: dict[str, int] = {}
        self._last_id = 0
        self._connecting: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._closing = False
        self._all_closed = asyncio.Event()
        self._socket = _bind(address, port)
        self._local = (address, 0)  # A trunk knows us by the address we listen on.
        self.address: tuple[str, int] = self._socket.getsockname()[:2]

    def __len__(self) -> int:
        return len(self._connections)

    async def start(self) -> None:
        """Accept connections on the running event loop from now on."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self, accepted=True), sock=self._socket, backlog=BACKLOG)

    async def close(self) -> None:
        """Stop accepting, write what is left within `close_s`, and close everything; harmless when repeated."""
        self._closing = True
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._connecting):
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for connection in list(self._connections.values()):
            connection.finish("shutdown")
        if self._connections:
            self._all_closed.clear()
            await self._all_closed.wait()  # `finish` bounds the time.
        self._socket.close()

    def send(self, data: bytes, host: str, port: int, connection: int = 0, *, key: Hashable | None = None) -> int:
        """Send on `connection`, or with 0 on the one to (host, port), and return its number; 0 when it failed at once.

        A connection that is named and gone is not replaced: behind a NAT nobody listens at that port (RFC 5626 §5.3).
        Failures are reported to `on_failed` later, never from within.
        """
        if self._closing:
            return self.fail(key, "shutdown")
        if connection:
            found = self._connections.get(connection)
            return self.fail(key, "gone") if found is None else found.send(data, key)
        target = self._outgoing.get((host, port)) or self._open(host, port, key)
        return 0 if target is None else target.send(data, key)

    def fail(self, key: Hashable | None, reason: str) -> int:
        """Count a message that did not go out, report it later, and return 0."""
        self.failed[reason] += 1
        if self._on_failed is not None and key is not None:
            asyncio.get_running_loop().call_soon(self._on_failed, key, reason)
        return 0

    def add(self, connection: _Connection) -> str:
        """Take a connection in; the reason when a limit is against it."""
        if len(self._connections) >= self.limits.connections:
            return "too_many"
        source = _source(connection.host)
        count = self._per_source.get(source, 0)
        if connection.accepted and count >= self.limits.connections_per_source:
            return "too_many_from_source"
        self._per_source[source] = count + 1
        self._last_id += 1
        connection.number = self._last_id
        self._connections[connection.number] = connection
        return ""

    def remove(self, connection: _Connection) -> None:
        """Forget a connection; harmless when repeated."""
        if self._connections.pop(connection.number, None) is None:
            return
        if self._outgoing.get((connection.host, connection.port)) is connection:
            del self._outgoing[connection.host, connection.port]
        source = _source(connection.host)
        self._per_source[source] -= 1
        if not self._per_source[source]:
            del self._per_source[source]
        if not self._connections:
            self._all_closed.set()

    def _open(self, host: str, port: int, key: Hashable | None) -> _Connection | None:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            self.fail(key, "bad_address")
            return None
        if not 0 < port < 65536:
            self.fail(key, "bad_address")
            return None
        connection = _Connection(self, accepted=False, host=host, port=port)
        if self.add(connection):
            self.fail(key, "too_many")
            return None
        self._outgoing[host, port] = connection
        self._spawn_connect(connection)
        return connection

    async def _connect(self, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        sock = _socket(connection.host)
        try:
            async with asyncio.timeout(self.limits.connect_s):
                sock.bind(self._local)
                await loop.sock_connect(sock, (connection.host, connection.port))
                await loop.create_connection(lambda: connection, sock=sock)
        except OSError:  # TimeoutError is one.
            sock.close()
            connection.not_connected("connect")
        except asyncio.CancelledError:
            sock.close()
            raise

    def _spawn_connect(self, connection: _Connection) -> None:
        # Bounded in number by `connections` and in time by `connect_s`; ended by `close`, maybe before its first step.
        task = asyncio.get_running_loop().create_task(self._connect(connection))
        self._connecting.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._connecting.discard(task)
            if task.cancelled():
                connection.not_connected("shutdown")

        task.add_done_callback(done)


class _Connection(asyncio.Protocol):
    """One connection: frames what comes, bounds what goes, and ends itself when nothing or not enough happens."""

    def __init__(self, listener: StreamListener, *, accepted: bool, host: str = "", port: int = 0) -> None:
        self.number = 0
        self.host, self.port, self.accepted = host, port, accepted
        self._listener = listener
        self._framer = StreamFramer(listener.limits.message_bytes)
        self._transport: asyncio.Transport | None = None
        self._waiting: list[tuple[bytes, Hashable | None]] = []  # until the connection is open
        self._waiting_bytes = 0
        self._reason = ""
        self._timer: asyncio.TimerHandle | None = None
        now = asyncio.get_running_loop().time()
        self._active_at = now
        self._deadlines = {"first_message": now + listener.limits.first_message_s} if accepted else {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self.accepted:
            peer = transport.get_extra_info("peername") or ("", 0)
            self.host, self.port = peer[0], peer[1]
            self._listener.counters["accepted"] += 1
            refused = self._listener.add(self)
            if refused:
                self.abort(refused)
                return
        else:
            self._listener.counters["connected"] += 1
        limit = self._listener.limits.write_bytes
        self._transport.set_write_buffer_limits(high=limit // 2, low=limit // 8)
        waiting, self._waiting = self._waiting, []
        for data, _ in waiting:
            self._write(data)
        self._arm()

    def data_received(self, data: bytes) -> None:
        listener = self._listener
        listener.counters["received_bytes"] += len(data)
        self._active_at = asyncio.get_running_loop().time()
        try:
            items = self._framer.feed(data)
        except ParseError as error:
            self._refuse(error)
            return
        for item in items:
            if isinstance(item, Keepalive):
                self._pong()
                continue
            listener.counters["messages"] += 1
            self._deliver(item)
            if self._transport is None or self._reason:
                return  # Closed by what the message brought about.
        if self._framer.failed is not None:
            self._refuse(self._framer.failed)
            return
        self._expect(got_item=bool(items))

    def eof_received(self) -> bool:
        self.finish("peer")
        return True  # `finish` closes the transport, within a bound.

    def connection_lost(self, exc: Exception | None) -> None:
        listener, reason = self._listener, self._reason or ("error" if exc else "peer")
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        listener.closed[reason] += 1
        if listener.on_closed is not None and self.number:
            listener.on_closed(self.number, self.host, self.port, reason)
        listener.remove(self)

    def pause_writing(self) -> None:
        self._deadlines["stalled"] = asyncio.get_running_loop().time() + self._listener.limits.stalled_s
        self._arm()

    def resume_writing(self) -> None:
        self._deadlines.pop("stalled", None)

    def send(self, data: bytes, key: Hashable | None) -> int:
        """Write `data`, or hold it until the connection is open; the connection's number, 0 when it failed."""
        listener = self._listener
        if self._reason:
            return listener.fail(key, "gone")
        held = self._waiting_bytes if self._transport is None else self._transport.get_write_buffer_size()
        if held + len(data) > listener.limits.write_bytes:
            return listener.fail(key, "write_buffer_full")
        if self._transport is None:
            self._waiting.append((data, key))
            self._waiting_bytes += len(data)
        else:
            self._write(data)
        return self.number

    def not_connected(self, reason: str) -> None:
        """Take note that the connection could not be opened."""
        waiting, self._waiting = self._waiting, []
        self._reason = self._reason or reason
        if self._transport is None:
            self._listener.closed[reason] += 1
            self._listener.remove(self)
        for _, key in waiting:
            self._listener.fail(key, reason)

    def finish(self, reason: str) -> None:
        """Close once everything is written, at the latest after `close_s`."""
        if self._reason:
            return
        self._reason = reason
        if self._transport is not None:
            self._transport.close()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = asyncio.get_running_loop().call_later(self._listener.limits.close_s, self._transport.abort)

    def abort(self, reason: str) -> None:
        """Close at once."""
        self._reason = self._reason or reason
        if self._transport is not None:
            self._transport.abort()

    def _deliver(self, data: bytes) -> None:
        try:
            self._listener.on_message(data, self.host, self.port, self.number)
        except Exception as error:  # Our own fault: reported as from any callback, but the stream goes on.
            context = {"message": "message could not be handled", "exception": error, "protocol": self}
            asyncio.get_running_loop().call_exception_handler(context)

    def _write(self, data: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(data)
        self._active_at = asyncio.get_running_loop().time()
        self._listener.counters["sent"] += 1
        self._listener.counters["sent_bytes"] += len(data)

    def _pong(self) -> None:
        self._listener.counters["pings"] += 1
        # RFC 5626 §3.5.1: the side that accepted answers. One who pings without reading gets nothing more to read.
        if self.accepted and self._transport is not None and "stalled" not in self._deadlines:
            self._transport.write(PONG)

    def _refuse(self, error: ParseError) -> None:
        """Close a stream whose next message cannot be found; who listens may answer its head before (§21.4.1, §21.5.7)."""
        listener = self._listener
        if listener.on_refused is not None and self._framer.refused:
            listener.on_refused(self._framer.refused, error, self.host, self.port, self.number)
        self.finish("framing")

    def _expect(self, *, got_item: bool) -> None:
        """Set the time limits that follow from what has been read."""
        if got_item:
            self._deadlines.pop("first_message", None)
        if self._framer.buffered <= len(b"\r\n\r\n"):  # Half a keep-alive is no message begun.
            self._deadlines.pop("incomplete", None)
        elif got_item or "incomplete" not in self._deadlines:
            self._deadlines["incomplete"] = self._active_at + self._listener.limits.incomplete_s
            self._arm()

    def _arm(self) -> None:
        """See to it that the timer comes no later than the earliest deadline; one that comes early is armed again."""
        if self._reason:
            return
        loop = asyncio.get_running_loop()
        at = min(self._deadlines.values(), default=self._active_at + self._listener.limits.idle_s)
        at = min(at, self._active_at + self._listener.limits.idle_s)
        if self._timer is not None:
            if self._timer.when() <= at and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer = loop.call_at(at, self._expire)

    def _expire(self) -> None:
        self._timer = None
        if self._transport is None or self._reason:
            return
        now = asyncio.get_running_loop().time()
        for reason, at in self._deadlines.items():
            if at <= now:
                self.abort(reason)
                return
        if self._active_at + self._listener.limits.idle_s <= now:
            self.finish("idle")
            return
        self._arm()


@functools.lru_cache(maxsize=4096)
def _source(host: str) -> str:
    """What connections are counted by: the address, or an IPv6 address's /64, which one customer has whole."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 4:
        return host
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


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


def _bind(address: str, port: int) -> socket.socket:
    sock = _socket(address)  # What is set here, the accepted connections inherit.
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has listeners of its own.
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock
