"""What stands between nodes and their store, on a Unix socket, and can be slow or lose a reply after it was earned."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from types import TracebackType

__all__ = ["Relay"]

CHUNK = 65_536


class Relay:
    """Passes bytes from `path` to the server's socket. `delay_s` holds each reply back for so long; `lose_replies` has the next
    reply to the command `loses` swallowed and its connection cut, that often."""

    def __init__(self, server: Path, path: Path, *, loses: bytes = b"EVALSHA") -> None:
        self.url = f"unix://{path}"
        self._loses = loses
        self.delay_s = 0.0
        self.lose_replies = 0
        self.lost = 0
        self._server_path, self._path = server, path
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_unix_server(self._accept, self._path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._server_path)
        except OSError:
            writer.transport.abort()
            return
        link = _Link()
        for work in (self._ask(link, reader, server_writer), self._reply(link, server_reader), self._deliver(link, writer)):
            task = asyncio.ensure_future(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, RuntimeError):  # the latter where uvloop writes to what was closed
                while data := await reader.read(CHUNK):
                    if self.lose_replies and self._loses in data:
                        self.lose_replies -= 1
                        self.lost += 1
                        link.doomed = True
                    writer.write(data)
        finally:
            writer.transport.abort()

    async def _reply(self, link: _Link, reader: asyncio.StreamReader) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if link.doomed:
                    break
                link.late.put_nowait((loop.time() + self.delay_s, data))
        link.late.put_nowait((0.0, b""))

    async def _deliver(self, link: _Link, writer: asyncio.StreamWriter) -> None:
        """Write what was read, in its order, each when it is due."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                due_at, data = await link.late.get()
                if not data:
                    break
                await asyncio.sleep(max(0.0, due_at - loop.time()))
                with contextlib.suppress(RuntimeError):  # as above
                    writer.write(data)
        finally:
            writer.transport.abort()


class _Link:
    """One connection."""

    def __init__(self) -> None:
        self.doomed = False
        self.late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
