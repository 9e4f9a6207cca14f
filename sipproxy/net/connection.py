"""One stream connection: frames what comes, bounds what goes, and ends itself when nothing or not enough happens.

What is not here: the socket that accepts and the table of connections (`stream`), certificates (`tls`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from sipproxy.net.tls import name_matches, names_of
from sipproxy.sip.errors import ParseError
from sipproxy.sip.framing import Keepalive, StreamFramer

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.net.stream import StreamListener

__all__ = ["Connection", "StreamLimits"]

PONG = b"\r\n"  # RFC 5626 §3.5.1


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Bounds of one listener: bytes, counts and seconds."""

    message_bytes: int = 65535
    write_bytes: int = 256 * 1024  # held for one connection that does not read, or is not open yet
    connections: int = 20_000
    connections_per_source: int = 200  # of an IPv4 address or an IPv6 /64, besides one for each customer there
    connect_s: float = 5.0  # TLS included
    handshake_s: float = 5.0  # of TLS, for an accepted connection
    first_message_s: float = 30.0  # until an accepted connection has brought a whole message or a keep-alive
    incomplete_s: float = 10.0  # from the first byte of a message to its last
    idle_s: float = 7200.0  # without a byte in either direction; above the longest registration
    stalled_s: float = 10.0  # with a full write buffer
    close_s: float = 2.0  # for what is still to be written when the listener closes


class Connection(asyncio.Protocol):
    """See the module. `domain` is whom the peer of a TLS connection that we open has to prove to be; `names` what it proved."""

    def __init__(self, listener: StreamListener, *, accepted: bool, host: str = "", port: int = 0, domain: str = "") -> None:
        self.number = 0
        self.host, self.port, self.accepted, self.domain = host, port, accepted, domain
        self.names: tuple[str, ...] = ()
        self._listener = listener
        self._framer = StreamFramer(listener.limits.message_bytes)
        self._transport: asyncio.Transport | None = None
        self._waiting: list[tuple[bytes, Hashable | None]] = []  # until the connection is open
        self._waiting_bytes = 0
        self._reason = ""
        self._was_open = self._gone = False
        self._timer: asyncio.TimerHandle | None = None
        now = asyncio.get_running_loop().time()
        self._active_at = self._heard_at = now
        self._silent_s = 0.0  # that nothing may come for; 0: for ever
        self._deadlines = {"first_message": now + listener.limits.first_message_s} if accepted else {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is open, with TLS after the handshake."""
        self._transport, self._was_open = cast(asyncio.Transport, transport), True
        listener = self._listener
        if self.accepted and listener.tls is None:
            peer = transport.get_extra_info("peername") or ("", 0)
            refused = self.arrived(peer[0], peer[1])
            if refused:
                self.abort(refused)
        elif listener.tls is not None:
            self.names = names_of(transport.get_extra_info("peercert"))
            if not self.accepted and not name_matches(self.domain or self.host, self.names):
                self.abort("name")  # RFC 5922 §7.2: it is not whom we wanted to speak with
        if self._reason:
            self._transport.abort()
            return
        if not self.accepted:
            listener.counters["connected"] += 1
        limit = listener.limits.write_bytes
        self._transport.set_write_buffer_limits(high=limit // 2, low=limit // 8)
        waiting, self._waiting = self._waiting, []
        for data, _ in waiting:
            self._write(data)
        self._arm()

    def arrived(self, host: str, port: int) -> str:
        """Take note of where an accepted connection comes from; the reason when a limit is against it."""
        self.host, self.port = host, port
        self._listener.counters["accepted"] += 1
        return self._listener.add(self)

    def data_received(self, data: bytes) -> None:
        listener = self._listener
        listener.counters["received_bytes"] += len(data)
        self._active_at = self._heard_at = asyncio.get_running_loop().time()
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
        return self._listener.tls is None  # `finish` closes the transport, within a bound; TLS closes it by itself

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(self._reason or ("error" if exc else "peer"))

    def _lost(self, reason: str) -> None:
        """Count the end of the connection and forget it, once."""
        listener = self._listener
        if self._gone:
            return
        self._gone = True
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        waiting, self._waiting = self._waiting, []
        for _, key in waiting:
            listener.fail(key, reason)
        listener.closed[reason] += 1
        if listener.on_closed is not None and self._was_open:
            listener.on_closed(self.number, self.host, self.port, reason)
        listener.remove(self)

    def pause_writing(self) -> None:
        self._deadlines["stalled"] = asyncio.get_running_loop().time() + self._listener.limits.stalled_s
        self._arm()

    def resume_writing(self) -> None:
        self._deadlines.pop("stalled", None)

    def send(self, data: bytes, key: Hashable | None, connect_s: float = 0.0) -> int:
        """Write `data`, or hold it until the connection is open, with `connect_s` so many seconds at most; the connection's
        number, 0 when it failed."""
        listener = self._listener
        if self._reason:
            return listener.fail(key, "gone")
        held = self._waiting_bytes if self._transport is None else self._transport.get_write_buffer_size()
        if held + len(data) > listener.limits.write_bytes:
            return listener.fail(key, "write_buffer_full")
        if self._transport is None:
            self._waiting.append((data, key))
            self._waiting_bytes += len(data)
            if connect_s:
                asyncio.get_running_loop().call_later(connect_s, self._give_up, data, key)
        else:
            self._write(data)
        return self.number

    def _give_up(self, data: bytes, key: Hashable | None) -> None:
        """What still waits for the connection has waited long enough; the connection may open yet, for what comes later."""
        if (data, key) in self._waiting:
            self._waiting.remove((data, key))
            self._waiting_bytes -= len(data)
            self._listener.fail(key, "slow_connect")

    def end_silent(self, silent_s: float) -> None:
        """End it when nothing comes for so many seconds from now on; 0: no more."""
        self._silent_s, self._heard_at = silent_s, asyncio.get_running_loop().time()
        self._arm()

    def not_connected(self, reason: str) -> None:
        """Take note that the connection could not be opened."""
        self._reason = self._reason or reason
        if self._transport is None:
            self._lost(self._reason)

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
        if self._silent_s:
            at = min(at, self._heard_at + self._silent_s)
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
        if self._silent_s and self._heard_at + self._silent_s <= now:
            if self._listener.may_end(self.host, self.port, self.number):
                self.finish("silent")
                return
            self._heard_at = now  # looked at again in as long a time
        self._arm()
