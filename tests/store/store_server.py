"""A real Valkey for tests, whose faults the tests choose; and a relay in front of it that holds, swallows or cuts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from sipproxy.store.connection import Bounds, Store
from sipproxy.store.embedded import _LAUNCH, find_server

if TYPE_CHECKING:
    from sipproxy.engine.structs import Binding
    from sipproxy.store.bindings import Bindings

BOUND_S = 60.0
PATIENT = Bounds(stall_ms=60_000, connect_ms=30_000, backoff_first_ms=10, backoff_max_ms=50, probe_ms=100)
Connect = Callable[..., Awaitable[Store]]  # the fixture of that name


def dying_with_us() -> list[str]:
    """Return what to put before a server's command line, so that it does not outlive killed tests."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid())] if sys.platform == "linux" else []


@contextlib.contextmanager
def impatient(store: Store) -> Iterator[None]:
    """Meanwhile a connection is given up soon: what a test does to it shows at once, and what the machine does never."""
    patient = store.bounds
    store.bounds = replace(patient, stall_ms=100, connect_ms=100)
    yield
    store.bounds = patient


class Server:
    """A Valkey with append-only file on a unix socket in a short directory of its own."""

    def __init__(self, *arguments: str) -> None:
        """`arguments` are further ones of the server."""
        self._arguments = arguments
        self.directory = Path(tempfile.mkdtemp(prefix="st"))
        self.path = str(self.directory / "s")
        self.url = f"unix://{self.path}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        arguments = ["--port", "0", "--unixsocket", self.path, "--dir", str(self.directory), "--save", ""]
        arguments += ["--appendonly", "yes", "--loglevel", "warning", "--enable-debug-command", "local", *self._arguments]
        self.process = subprocess.Popen([*dying_with_us(), find_server(), *arguments], stdout=subprocess.DEVNULL)
        until = time.monotonic() + BOUND_S
        while True:
            try:
                self.ask("PING")
            except (redis.ConnectionError, redis.BusyLoadingError):
                assert time.monotonic() < until, "the server did not start"
                time.sleep(0.005)
            else:
                return

    def ask(self, *command: object) -> object:
        """One command on a connection of its own."""
        client = redis.Redis.from_url(self.url, socket_timeout=BOUND_S)
        try:
            return client.execute_command(*command)
        finally:
            client.close()

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory)


class Relay:
    """Between client and server, on a unix socket. `hold` keeps replies back; `swallowing` drops them; `cut` ends connections.

    A connection of which a reply was dropped passes no later one either: a stream has no gaps, and the client would take each
    reply for the one before.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._directory = Path(tempfile.mkdtemp(prefix="sr"))
        self.path = str(self._directory / "s")
        self.url = f"unix://{self.path}"
        self._passing = asyncio.Event()
        self._passing.set()
        self.swallowing = False
        self.refusing = False
        self.connections = 0
        self._delayed: dict[asyncio.StreamWriter, list[bytes]] = {}
        self._writers: set[asyncio.StreamWriter] = set()
        self._upstreams: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._pumps):
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        shutil.rmtree(self._directory, ignore_errors=True)

    def hold(self) -> None:
        self._passing.clear()

    def let_go(self) -> None:
        self._passing.set()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def delay_requests(self) -> None:
        """Keep what the present connections ask, even beyond their end, until `deliver_requests`; later ones pass."""
        self._delayed = {upstream: [] for upstream in self._upstreams}

    async def deliver_requests(self) -> None:
        for upstream, requests in self._delayed.items():
            upstream.write(b"".join(requests))
            with contextlib.suppress(OSError):
                await upstream.drain()
            upstream.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        self.connections += 1
        upstream_reader, upstream = await asyncio.open_unix_connection(self._target)
        self._upstreams.add(upstream)
        for side in (writer, upstream):
            self._writers.add(side)
        for source, sink, is_reply in ((reader, upstream, False), (upstream_reader, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, is_reply=is_reply))
            self._pumps.add(task)
            task.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_reply: bool) -> None:
        is_mute = False
        try:
            while data := await source.read(65536):
                if is_reply:
                    await self._passing.wait()
                    is_mute = is_mute or self.swallowing
                if is_mute:
                    continue
                if sink in self._delayed:
                    self._delayed[sink].append(data)
                else:
                    sink.write(data)
        except (OSError, RuntimeError):  # the latter is uvloop's way to say that the other side is closed
            pass
        finally:
            if sink not in self._delayed:
                sink.transport.abort()
                self._writers.discard(sink)
                self._upstreams.discard(sink)


async def eventually(condition: Callable[[], object], what: str = "", seconds: float = BOUND_S) -> None:
    """Wait until the condition holds; fail after the bound."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what or condition}"
        await asyncio.sleep(0.002)


async def eventually_async(condition: Callable[[], Awaitable[object]], what: str = "", seconds: float = BOUND_S) -> None:
    until = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.005)


async def load_all(bindings: Bindings) -> list[tuple[str, Binding]]:
    """All bindings that the store has, each once."""
    found = {(user, one.key): one async for page in bindings.pages() for user, one in page}
    return [(user, one) for (user, _), one in found.items()]


def is_running(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
