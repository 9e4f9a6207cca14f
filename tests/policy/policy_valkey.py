"""A Valkey that tests can stop and start, and the end of who watches it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import redis

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Server", "ended"]


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
        deadline = time.monotonic() + 60
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
            self.process.wait(60)
            self.process = None


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a watcher until it is gone: redis-py sends in wait_for, which before Python 3.12 may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=0.2)
