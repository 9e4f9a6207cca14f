"""Something that answers as a node does on a control socket, in a thread of its own: the tests wait for their commands."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sipproxy.admin.control import ControlServer, Handler, socket_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["answering"]

PATIENCE_S = 30.0


@contextmanager
def answering(data_dir: Path, handlers: dict[str, Handler]) -> Iterator[None]:
    """Answers in that data directory until the block ends; what is put into `handlers` meanwhile counts at once."""
    started, stopping, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()

    async def serve() -> None:
        server = ControlServer(socket_path(data_dir), {})
        server._handlers = handlers
        await server.start()
        started.set()
        await stopping.wait()
        await server.close()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(PATIENCE_S)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join(PATIENCE_S)
        loop.close()
