"""The supervisor of a node with several workers: it has the sockets, starts the workers, and starts again who dies.

It holds no SIP state and handles no message. All workers inherit all sockets from it, so that the kernel's choice between them
stays the same whoever lives, and so that another worker can read what the kernel has for one that is not there. A worker that
hangs is ended. SIGTERM and SIGINT are passed on; a worker that has drained stays until all have, since calls of others may go
by its connections. When the supervisor dies its workers end at once, as in a crash of the node.

A worker of before `node.workers` was lowered runs beside the others until its calls have ended and its records are confirmed.
It gets no new call.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import structlog

from sipproxy import policy_cache
from sipproxy.admin.control import ControlServer, socket_path
from sipproxy.config_file import split_address
from sipproxy.crewing import folder_of, folders, name_of, number_of, worker_config
from sipproxy.engine.steering import HASHED, modulus_of
from sipproxy.gathering import Gathering
from sipproxy.lifecycle import cancel_all
from sipproxy.log import configure, set_level
from sipproxy.metrics import MetricsServer
from sipproxy.net.handover import pair
from sipproxy.net.spread import spread
from sipproxy.net.stream import BACKLOG, bind_stream
from sipproxy.net.taken import shared_file
from sipproxy.net.udp import bind_udp
from sipproxy.orders import Live, Orders, Spec, State
from sipproxy.process import LEAVE_S, StartError, Stop, loop_factory
from sipproxy.reloading import Reloader
from sipproxy.store.connection import Store
from sipproxy.store.embedded import EmbeddedError, EmbeddedStore
from sipproxy.store.secret import kept_secret
from sipproxy.systemd import Notifier
from sipproxy.welcome import Bound, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from redis.asyncio import Redis

    from sipproxy.config import Config

__all__ = ["main"]

QUIET_S = 2.0  # without a sign of life another worker reads its datagrams too: some are of calls for help that others have
HANG_S = 10.0  # without a sign of life a worker is ended; its event loop shows two each second
START_S = 300.0  # until a worker that starts has to be there: as long as a large store takes to be read, and longer
LOCK_S = 10.0  # for the workers of a supervisor that was killed to be gone
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 5.0
STEADY_S = 30.0  # after which a death is no longer one of a row
LOOK_S = 0.5
MAX_PORT_TRIES = 20
LINK_BYTES = 64


class Worker:
    """One worker as the supervisor sees it. `is_there` from when messages may be passed to it, `is_ready` when it serves;
    `is_leaving` until it has ended what it had, and ends itself."""

    def __init__(self, number: int, *, is_leaving: bool = False) -> None:
        self.number, self.is_leaving = number, is_leaving
        self.process: asyncio.subprocess.Process | None = None
        self.link: socket.socket | None = None
        self.is_there = self.is_ready = self.is_drained = False
        self.heard_at = self.started_at = 0.0
        self.starts = self.deaths = self.in_a_row = 0
        self.changed = asyncio.Event()


def main(config: Config, leaving: Sequence[int], *, config_path: Path, embedded: bool, greet: bool = False) -> int:
    """Run the workers of a node until SIGTERM or SIGINT; the exit code. `leaving` are those of before that have calls left."""
    writer = configure(config.log.level, config.log.format)
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_run(config, leaving, config_path, embedded=embedded, greet=greet))
    except (StartError, EmbeddedError) as error:
        print(f"sipproxy: {error}", file=sys.stderr)  # noqa: T201  the log may be JSON; a person reads this
        return 1
    finally:
        writer.close()


async def _run(config: Config, leaving: Sequence[int], config_path: Path, *, embedded: bool, greet: bool) -> int:
    stop = Stop()
    stop.listen()
    data_dir = Path(config.node.data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  nothing is served yet
    for number in range(1, config.node.workers + 1):
        folder_of(config, number).mkdir(exist_ok=True)
    for name in ("secret.key", "shared.key"):
        kept_secret(data_dir / name)  # made once, before the workers look for it
    async with contextlib.AsyncExitStack() as stack:
        lock = stack.enter_context(await _locked(data_dir / "workers.lock"))
        server = EmbeddedStore(data_dir) if embedded else None
        if server is not None:
            await server.start()
            stack.push_async_callback(server.stop)
        url = server.url if server is not None else config.store.url
        supervisor = Supervisor(config, leaving, config_path, url, lock=lock, next_free=embedded, greet=greet)
        stack.callback(supervisor.close)
        gathering = Gathering(config, supervisor.present, supervisor.counters)
        control = ControlServer(socket_path(data_dir), gathering.handlers(), streamers=gathering.streamers())
        await control.start()
        stack.push_async_callback(control.close)
        reloader = Reloader(
            config,
            config_path,
            connect=supervisor.connect,
            known_version=supervisor.known_version,
            use=supervisor.use,
        )
        reloader.listen(stop.terminate)
        if config.metrics.address:
            await _serve_metrics(stack, config, gathering, supervisor.log)
        tasks = [asyncio.create_task(reloader.run()), *([asyncio.create_task(server.run())] if server is not None else [])]
        try:
            return await supervisor.run(stop)
        finally:
            await cancel_all(tasks)


async def _serve_metrics(
    stack: contextlib.AsyncExitStack, config: Config, gathering: Gathering, log: structlog.stdlib.BoundLogger
) -> None:
    metrics = MetricsServer(gathering)
    try:
        await metrics.start(config.metrics.address)
    except OSError as error:
        log.warning("metrics_not_started", address=config.metrics.address, error=str(error))
    stack.push_async_callback(metrics.close)


async def _locked(path: Path) -> BinaryIO:
    """The node's lock, which its workers hold too. Raises StartError while others have it."""
    lock = path.open("ab")
    until = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                lock.close()
                raise StartError(f"{path}: another node is running on this data directory") from None
            await asyncio.sleep(LOOK_S / 10)
        else:
            return lock


class Supervisor:
    """See the module."""

    def __init__(
        self,
        config: Config,
        leaving: Sequence[int],
        config_path: Path,
        store_url: str,
        *,
        lock: BinaryIO,
        next_free: bool,
        greet: bool,
    ) -> None:
        """Bind every listener's sockets. Raises StartError."""
        self._config, self._config_path, self._store_url, self._greet = config, config_path, store_url, greet
        self.log = structlog.get_logger("node")
        self._lock = lock
        self._count = config.node.workers
        self._modulus = modulus_of(kept_secret(Path(config.node.data_dir) / "secret.key"))
        self._workers = [Worker(number) for number in range(1, self._count + 1)]
        self._workers += [Worker(number, is_leaving=True) for number in leaving]
        known = max(self._count, *(number_of(folder) for _, folder in folders(config)))
        self._names = [name_of(config, number) for number in range(1, known + 1)]
        self._notifier = Notifier()
        self._udp: list[list[socket.socket]] = []
        self._streams: list[socket.socket | None] = []
        self._bound: list[Bound] = []
        self._bind(next_free=next_free)
        self._boxes = [pair() for _ in self._names]
        self._taken = shared_file()
        self._ending = asyncio.Event()
        self._failed = ""  # why the node cannot start at all
        self._was_ready = False
        self._quiet: set[int] = set()  # workers that are there, and that nothing was heard of lately

    def close(self) -> None:
        """Let the sockets go."""
        held = [sock for sockets in self._udp for sock in sockets] + [sock for both in self._boxes for sock in both]
        for sock in [*held, *(stream for stream in self._streams if stream is not None)]:
            sock.close()
        if self._taken >= 0:
            os.close(self._taken)

    def present(self) -> list[int]:
        """The workers that serve, those that leave included."""
        return [worker.number for worker in self._workers if worker.is_ready]

    def counters(self) -> dict[int, tuple[bool, int]]:
        """By worker whether it serves, and how often it was started again."""
        return {worker.number: (worker.is_ready, max(0, worker.starts - 1)) for worker in self._workers}

    # Reloading

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Redis]:
        """The store's client, for a while: the supervisor needs none otherwise."""
        client = Store(self._store_url, self._config.store.deadline_ms, name=f"sipproxy-{self._config.node.id}-reload").client
        try:
            yield client
        finally:
            await client.aclose()

    def known_version(self) -> int:
        """Of the policy that the workers keep."""
        cached = policy_cache.load(Path(self._config.node.data_dir) / "policy.snapshot")
        return cached.version if cached is not None else 0

    def use(self, config: Config) -> None:
        """Tell all workers what changes without a restart; who starts later begins with it."""
        self._config = config
        set_level(config.log.level)
        for worker in self._workers:
            self._tell_live(worker)

    def _tell_live(self, worker: Worker) -> None:
        if worker.is_there and worker.link is not None:
            with contextlib.suppress(OSError):  # it dies, and is started with it
                worker.link.send(msgspec.json.encode(Live.of(self._config)))

    async def run(self, stop: Stop) -> int:
        """Keep the workers running until `stop`, then have them drain; the exit code. Raises StartError."""
        async with asyncio.TaskGroup() as group:
            hangs = group.create_task(self._watch_hangs())
            pats = group.create_task(self._notifier.run(lambda: bool(self.present()), self._status))
            stopping = group.create_task(self._pass_on(stop))
            keeping = [group.create_task(self._keep(worker)) for worker in self._workers]
            for worker in self._workers[: self._count]:
                await self._ready(worker)
            if not self._ending.is_set():
                self._was_ready = True
                self._notifier.tell("READY=1", status=self._status())
                self.log.info("ready", node=self._config.node.id, workers=self._count, listen=shown(self._bound))
                sys.stdout.write(json.dumps({"event": "ready", "listen": shown(self._bound)}) + "\n")
                sys.stdout.flush()
            await asyncio.gather(*keeping)
            for task in (hangs, pats, stopping):
                task.cancel()
        if self._failed:
            raise StartError(self._failed)
        return 0

    def _status(self) -> str:
        return f"{len(self.present())} of {len(self._workers)} workers"

    # Sockets

    def _bind(self, *, next_free: bool) -> None:
        moved: dict[int, int] = {}
        for listen in self._config.listen:
            host, wanted = split_address(listen.address)
            tries = range(MAX_PORT_TRIES if next_free and wanted else 1)
            for step in tries:
                port = moved.get(wanted, wanted) + step
                try:
                    bound = self._bind_one(listen.transport, host, port)
                    break
                except OSError as error:
                    if step == tries[-1]:
                        reason = error.strerror or str(error)
                        raise StartError(f"{self._config_path}: listen: {reason}; does another node have it?") from error
            moved[wanted] = bound
            self._bound.append((listen.transport.upper(), host, bound))

    def _bind_one(self, transport: str, host: str, port: int) -> int:
        """Bind one listener; its port. Raises OSError."""
        if transport != "udp":
            stream = bind_stream(host, port, ahead=True)
            stream.listen(BACKLOG)  # one for all: who is free accepts, and nothing waits for a worker that is not there
            self._udp.append([])
            self._streams.append(stream)
            return int(stream.getsockname()[1])
        alone = bind_udp(host, port, ahead=True)  # fails while anybody has the address, whom SO_REUSEPORT would let share it
        port = alone.getsockname()[1]
        alone.close()
        shared = [bind_udp(host, port, ahead=True, shared=True) for _ in range(self._count)]
        if not spread(shared[0], self._count, self._modulus, HASHED):
            self.log.warning("datagrams_not_spread", listen=f"{host}:{port}", consequence="workers pass more on to each other")
        self._udp.append(shared)
        self._streams.append(None)
        return port

    # Workers

    async def _ready(self, worker: Worker) -> None:
        """Wait until the worker serves, or the node is to stop."""
        while not (worker.is_ready or self._ending.is_set()):
            worker.changed.clear()
            await worker.changed.wait()

    async def _keep(self, worker: Worker) -> None:
        """Have the worker running until the node stops."""
        while not self._ending.is_set():
            try:
                status = await self._live(worker)
            except OSError as error:  # no process or descriptor is to be had; there may be later
                self.log.warning("worker_not_started", worker=worker.number, error=str(error))
                status = 1
            if self._ending.is_set():
                return
            if worker.is_leaving and status == 0:
                self.log.info("worker_left", worker=worker.number)
                worker.is_leaving = False
                self._tell_all()
                return
            if not self._was_ready and not worker.deaths and status == 1:
                self._fail(worker)  # it said why itself
                return
            worker.deaths += 1
            worker.in_a_row = 1 if time.monotonic() - worker.started_at > STEADY_S else worker.in_a_row + 1
            wait_s = min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(worker.in_a_row - 1, 10))
            self.log.error("worker_died", worker=worker.number, status=status, again_in_s=wait_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._ending.wait()

    def _fail(self, worker: Worker) -> None:
        self._failed = f"worker {worker.number} cannot start; see above"
        self._stop_all(signal.SIGTERM)

    async def _live(self, worker: Worker) -> int:
        """One life of a worker; its exit status. Raises OSError when it cannot be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(0)
        loop = asyncio.get_running_loop()
        worker.starts += 1
        worker.started_at = worker.heard_at = time.monotonic()
        worker.link = ours
        try:
            orders = Orders(worker_config(self._config, worker.number, store_url=self._store_url), self._spec(worker, theirs))
            worker.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "sipproxy.worker", str(worker.number)),  # for who reads a list of processes
                stdin=asyncio.subprocess.PIPE,
                pass_fds=self._descriptors(theirs),
                env={name: value for name, value in os.environ.items() if name not in Notifier.VARIABLES},
            )
            theirs.close()
            if self._ending.is_set():
                worker.process.terminate()  # the others were told while this one was being started
            loop.add_reader(ours.fileno(), self._hear, worker)
            with contextlib.suppress(ConnectionError):  # it has died already
                await worker.process.communicate(msgspec.json.encode(orders))
            return await worker.process.wait()
        finally:
            loop.remove_reader(ours.fileno())
            ours.close()
            theirs.close()
            worker.link = None
            worker.is_there = worker.is_ready = worker.is_drained = False
            self._tell_all()
            self._end_drained()
            worker.changed.set()

    def _spec(self, worker: Worker, link: socket.socket) -> Spec:
        return Spec(
            worker=worker.number,
            count=self._count,
            names=self._names,
            shared_dir=self._config.node.data_dir,
            bound=self._bound,
            udp=[[sock.fileno() for sock in sockets] for sockets in self._udp],
            streams=[stream.fileno() if stream is not None else -1 for stream in self._streams],
            inboxes=[inbox.fileno() for inbox, _ in self._boxes],
            outboxes=[outbox.fileno() for _, outbox in self._boxes],
            link=link.fileno(),
            supervisor=os.getpid(),
            lock=self._lock.fileno(),
            config_path=str(self._config_path),
            welcome=self._greet and worker.number == 1 and worker.starts == 1,
            taken=self._taken,
        )

    def _descriptors(self, link: socket.socket) -> list[int]:
        sockets = [sock for listener in self._udp for sock in listener] + [sock for both in self._boxes for sock in both]
        streams = [stream for stream in self._streams if stream is not None]
        found = [sock.fileno() for sock in (*sockets, *streams, link)] + [self._lock.fileno()]
        return [*found, self._taken] if self._taken >= 0 else found

    def _hear(self, worker: Worker) -> None:
        assert worker.link is not None
        try:
            word = worker.link.recv(LINK_BYTES)
        except OSError:
            return
        if not word:  # its end is near; what became of it is told by its exit
            asyncio.get_running_loop().remove_reader(worker.link.fileno())
            return
        worker.heard_at = time.monotonic()
        if word == b"alive":
            return
        if word in (b"drained", b"busy"):
            worker.is_drained = word == b"drained"
            self.log.info("worker_drained" if worker.is_drained else "worker_busy", worker=worker.number)
            self._end_drained()
            return
        worker.is_there = True
        worker.is_ready = word == b"ready"
        self._tell_live(worker)  # there may be news since it was started
        self._tell_all()
        worker.changed.set()

    def _tell_all(self) -> None:
        """Tell every worker who is there, and the first one that serves for whom it reads."""
        there = [worker.number for worker in self._workers if worker.is_there]
        away = [worker.number for worker in self._workers[: self._count] if not worker.is_there or worker.number in self._quiet]
        leaving = [worker.number for worker in self._workers if worker.is_leaving]
        first = next((number for number in self.present() if number <= self._count and number not in self._quiet), 0)
        for worker in self._workers:
            if worker.is_there and worker.link is not None:
                state = State(there, away if worker.number == first else [], leaving)
                with contextlib.suppress(OSError):
                    worker.link.send(msgspec.json.encode(state))

    async def _watch_hangs(self) -> None:
        looked_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            now = time.monotonic()
            # While this process did not run, the others may have stood still with it: that says nothing about them.
            missed_s, looked_at = max(0.0, now - looked_at - 2 * LOOK_S), now
            quiet = set()
            for worker in self._workers:
                worker.heard_at += missed_s
                silent_s, process = now - worker.heard_at, worker.process
                if worker.is_there and silent_s > QUIET_S:
                    quiet.add(worker.number)
                if process is None or process.returncode is not None or silent_s < (HANG_S if worker.is_there else START_S):
                    continue
                self.log.error("worker_hangs", worker=worker.number, silent_s=round(silent_s, 1))
                worker.heard_at = now
                process.kill()
            if quiet != self._quiet:
                self._quiet = quiet
                self._tell_all()

    # The end

    async def _pass_on(self, stop: Stop) -> None:
        """Pass the signals on; whoever does not end in time is ended."""
        await stop.wanted.wait()
        self.log.info("stopping", workers=len(self.present()))
        drain_s = self._config.node.drain_s
        extend = f"EXTEND_TIMEOUT_USEC={round(1e6 * (drain_s + LEAVE_S))}"
        self._notifier.tell("STOPPING=1", extend, status=f"draining, {self._status()}")
        self._stop_all(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await stop.at_once.wait()
                self._stop_all(signal.SIGINT)
        await asyncio.sleep(LEAVE_S)
        self._stop_all(signal.SIGKILL)

    def _end_drained(self) -> None:
        """End the workers that have drained, once none has anything left: a call may come by the connection of any of them."""
        running = [worker for worker in self._workers if worker.process is not None and worker.process.returncode is None]
        drained = [worker for worker in running if worker.is_drained]
        if self._ending.is_set() and len(drained) < len(running):
            return
        for worker in drained:  # where the node does not end, one that was told to by somebody else
            assert worker.process is not None
            worker.process.send_signal(signal.SIGINT)

    def _stop_all(self, sign: signal.Signals) -> None:
        self._ending.set()
        for worker in self._workers:
            worker.changed.set()
            if worker.process is not None and worker.process.returncode is None:
                worker.process.send_signal(sign)
