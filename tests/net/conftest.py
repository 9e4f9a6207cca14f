"""Every asynchronous test of the network shell runs on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest_asyncio
import uvloop
from streams import Client, Node

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from streams import Dial, Make


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def nodes() -> AsyncIterator[Make]:
    made: list[Node] = []

    async def make(*args: Any, **limits: Any) -> Node:
        made.append(Node(*args, **limits))
        await made[-1].listener.start()
        return made[-1]

    yield make
    await asyncio.gather(*(node.listener.close() for node in made))


@pytest_asyncio.fixture
async def dial() -> AsyncIterator[Dial]:
    made: list[Client] = []

    async def connect(node: Node) -> Client:
        made.append(Client(*await asyncio.open_connection(*node.listener.address)))
        return made[-1]

    yield connect
    for client in made:
        client.writer.close()
        with contextlib.suppress(OSError):
            await client.writer.wait_closed()
