from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio
import uvloop
from store_server import PATIENT, Connect, Relay, Server

from sipproxy.store.connection import Bounds, Store


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.remove()


@pytest.fixture
def server(shared_server: Server) -> Server:
    """An empty server that the test must leave as healthy as it was."""
    shared_server.ask("FLUSHALL")
    return shared_server


@pytest.fixture
def doomed() -> Iterator[Server]:
    """A server of the test's own, to be killed, frozen or reconfigured."""
    server = Server()
    yield server
    server.remove()


@pytest_asyncio.fixture
async def relay(server: Server) -> AsyncIterator[Relay]:
    relay = Relay(server.path)
    await relay.start()
    yield relay
    await relay.stop()


@pytest_asyncio.fixture
async def connect() -> AsyncIterator[Connect]:
    """Make stores that run, with bounds that no server on a busy machine reaches; `impatient` has a fault noticed."""
    stores: list[tuple[Store, asyncio.Task[None]]] = []

    async def make(url: str, deadline_ms: int = 60_000, bounds: Bounds = PATIENT) -> Store:
        store = Store(url, deadline_ms, bounds=bounds)
        await store.start()
        stores.append((store, asyncio.create_task(store.run())))
        return store

    yield make
    for store, task in stores:
        await store.close()
        await task
