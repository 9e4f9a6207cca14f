"""One connection to the server: bytes out, replies in, in order. RESP2 by hiredis.

Knows the addresses that `redis://`, `rediss://`, `valkey://` and `unix://` URLs name and how to greet a server. Leaves out
what a reply belongs to, reconnecting, and every bound but the one on connecting; those are the Store's.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

from sipproxy.store.errors import ReplyError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Address", "Wire", "address_of", "dial", "redis_url", "run_id_of"]

_NOT_YET = object()


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens and how it is greeted."""

    path: str = ""  # of a unix socket; "" = TCP
    host: str = "127.0.0.1"
    port: int = 6379
    username: str = ""
    password: str = ""
    database: int = 0
    tls: ssl.SSLContext | None = None

    def greeting(self, name: str) -> list[tuple[str | int, ...]]:
        """Return the commands that open a connection, before anything else is sent on it."""
        commands: list[tuple[str | int, ...]] = []
        if self.password:
            commands.append(("AUTH", self.username, self.password) if self.username else ("AUTH", self.password))
        if self.database:
            commands.append(("SELECT", self.database))
        commands.append(("CLIENT", "SETNAME", name))
        return commands


def redis_url(url: str) -> str:
    """Return `url` with the scheme that redis-py knows."""
    for ours, theirs in (("valkey://", "redis://"), ("valkeys://", "rediss://")):
        if url.startswith(ours):
            return theirs + url[len(ours) :]
    return url


def address_of(url: str) -> Address:
    """Read a store URL. Raises ValueError for a scheme or option that is not known."""
    parts: dict[str, Any] = dict(parse_url(redis_url(url)))
    return Address(
        path=parts.get("path", ""),
        host=parts.get("host", "127.0.0.1"),
        port=int(parts.get("port", 6379)),
        username=parts.get("username", ""),
        password=parts.get("password", ""),
        database=int(parts.get("db", 0)),
        tls=_tls_context(parts) if parts.get("connection_class") is SSLConnection else None,
    )


def _tls_context(parts: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=parts.get("ssl_ca_certs"))
    if parts.get("ssl_certfile"):
        context.load_cert_chain(parts["ssl_certfile"], parts.get("ssl_keyfile"))
    if parts.get("ssl_cert_reqs") == "none":  # the operator wrote so in the URL
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Wire(asyncio.Protocol):
    """The protocol side: replies to `on_reply` one by one, the end to `on_lost` once."""

    def __init__(
        self,
        on_replies: Callable[[Wire, list[object]], None],
        on_lost: Callable[[Wire, str], None],
        on_writable: Callable[[Wire], None],
    ) -> None:
        self._on_replies = on_replies
        self._on_lost = on_lost
        self._on_writable = on_writable
        self._reader = hiredis.Reader(protocolError=_protocol_error, replyError=ReplyError, notEnoughData=_NOT_YET)
        self._transport: asyncio.Transport | None = None
        self.writable = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by class
        self.writable = True

    def data_received(self, data: bytes) -> None:
        replies: list[object] = []
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _NOT_YET:
                replies.append(reply)
        except (StoreError, TypeError):  # TypeError: hiredis, of a map whose key is no plain value
            self.abort()
            self._on_lost(self, "PROTOCOL")
            return
        if replies:
            self._on_replies(self, replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable = False
        self._on_lost(self, "CLOSED" if exc is None else type(exc).__name__)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._on_writable(self)

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended, or is about to: then `on_lost` is still to come."""
        return self._transport is None or self._transport.is_closing()

    def send(self, data: bytes) -> None:
        """Send, or do nothing on a connection that is lost: its end says to whom the data belonged that nothing came of it."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)  # on uvloop an error after the end, where asyncio ignores it

    def abort(self) -> None:
        """Drop the connection without waiting for anything; safe to repeat."""
        self.writable = False
        if self._transport is not None:
            self._transport.abort()


def _protocol_error(text: str) -> StoreError:
    return StoreError("PROTOCOL", text)


async def dial(address: Address, make: Callable[[], Wire]) -> Wire:
    """Connect. Raises OSError (which includes ssl.SSLError)."""
    loop = asyncio.get_running_loop()
    if address.path:
        _, wire = await loop.create_unix_connection(make, address.path)
    else:
        _, wire = await loop.create_connection(
            make, address.host, address.port, ssl=address.tls, server_hostname=address.host if address.tls else None
        )
    return wire


def run_id_of(info: object) -> str:
    """Return what tells one server process from another, "" when the server does not say."""
    if isinstance(info, bytes):
        for line in info.split(b"\r\n"):
            if line.startswith(b"run_id:"):
                return line[7:].decode("ascii", "replace")
    return ""
