"""Parties of the tests of connections: a listener that keeps what it calls back with, and a bare TCP peer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

from sipproxy.net.stream import StreamLimits, StreamListener

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sipproxy.sip.errors import ParseError

    Make = Callable[..., Awaitable["Node"]]
    Dial = Callable[..., Awaitable["Client"]]


def message(call_id: str = "1", body: bytes = b"") -> bytes:
    head = f"OPTIONS sip:a@b.example SIP/2.0\r\nCall-ID: {call_id}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Node:
    """A listener and all that it called back with."""

    def __init__(self, address: str = "127.0.0.1", **limits: Any) -> None:
        self.got: list[tuple[bytes, str, int, int]] = []
        self.failed: list[tuple[object, str]] = []
        self.closed: list[tuple[int, str, int, str]] = []
        self.refused: list[tuple[bytes, int, int]] = []
        self.answer_refused = b""
        self.listener = StreamListener(
            address,
            0,
            lambda *args: self.got.append(args),
            on_failed=lambda *args: self.failed.append(args),
            on_closed=lambda *args: self.closed.append(args),
            on_refused=self._refused,
            limits=StreamLimits(**{"close_s": 0.5, **limits}),
        )

    def _refused(self, head: bytes, error: ParseError, host: str, port: int, connection: int) -> None:
        self.refused.append((head, error.status, connection))
        if self.answer_refused:
            self.listener.send(self.answer_refused, host, port, connection)

    @property
    def reasons(self) -> list[str]:
        return [reason for _, _, _, reason in self.closed]


class Client:
    """A bare TCP peer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @property
    def name(self) -> tuple[str, int]:
        host, port = self.writer.get_extra_info("sockname")[:2]
        return host, port

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(40):
            return await self.reader.readexactly(size)

    async def read_to_end(self) -> bytes:
        async with asyncio.timeout(40):
            try:
                return await self.reader.read(-1)
            except ConnectionError:
                return b""


@contextlib.contextmanager
def silent_server(*, backlog: int = 1) -> Any:
    """A bound port that accepts into its backlog and never reads."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(backlog)
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
