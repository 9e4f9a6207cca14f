"""The composition root: one node, from its configuration to its end (design §1, §4).

Starts what the node needs in the order of dependence (store, policy, journal, engine, listeners), runs their tasks in one
TaskGroup, and closes in the reverse order. What can be missing at start has a written way on or a clear error.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from cdr.journal import Journal, JournalError
from cdr.publisher import Publisher
from cdr.readers import Readers
from cdr.retention import HOUR_MS
from policy import profiles
from policy import store as policy_store
from policy.build import snapshot_of
from policy.table import PolicyError
from sipproxy import compiled, lifecycle, policy_cache, policy_files
from sipproxy.admin.control import ControlServer, socket_path
from sipproxy.certificates import renew, tls_of
from sipproxy.collecting import run_sweeps, settle_memory
from sipproxy.config_file import name_server, split_address
from sipproxy.engine.core import Engine
from sipproxy.engine.edge import with_token
from sipproxy.log import configure, set_level
from sipproxy.metrics import LoopLag, Metrics, MetricsServer
from sipproxy.neighbours import Neighbours
from sipproxy.net.addresses import follow_addresses
from sipproxy.net.droplist import KernelDrops
from sipproxy.net.resolver import Resolver
from sipproxy.net.tls import TlsError
from sipproxy.net.transports import Transports
from sipproxy.observe import handlers, register
from sipproxy.orders import Live
from sipproxy.process import LEAVE_S, StartError, Stop, loop_factory
from sipproxy.randomness import RandomBytes
from sipproxy.reloading import Reloader
from sipproxy.settings import engine_settings, rates_of
from sipproxy.shell import Shell, instant
from sipproxy.siblings import Siblings
from sipproxy.store.bindings import Bindings
from sipproxy.store.connection import STOPPED, State, Store
from sipproxy.store.embedded import EmbeddedError, EmbeddedStore
from sipproxy.store.errors import UNUSABLE
from sipproxy.store.nodes import Heartbeat
from sipproxy.store.secret import SharedSecret, kept_secret
from sipproxy.store.slots import Slots
from sipproxy.store.traces import Traces
from sipproxy.systemd import Notifier
from sipproxy.watching import Watching, copy_to
from sipproxy.welcome import Bound, shown, welcome

if TYPE_CHECKING:
    from collections.abc import Hashable

    from cdr.recovery import Recovered
    from policy.model import Snapshot
    from sipproxy.config import Config
    from sipproxy.orders import Spec
    from sipproxy.sip.errors import ParseError
    from sipproxy.sip.flow import Flow

__all__ = ["Node", "main"]

EXPIRE_S = 1.0  # between two looks at expired bindings
FLUSH_S = 2.0  # for the last records to reach the store before the node leaves


def main(config: Config, *, config_path: Path, embedded: bool, greet: bool = False, siblings: Spec | None = None) -> int:
    """Run a node until SIGTERM or SIGINT; the exit code. With `greet` stdout tells a person how to register and call.

    With `siblings` it is one worker of a node, started by `workers`.
    """
    writer = configure(config.log.level, config.log.format, node=config.node.id if siblings is not None else "")
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(_run(config, config_path, embedded=embedded, greet=greet, spec=siblings))
    except (StartError, EmbeddedError, JournalError, PolicyError, TlsError) as error:
        print(f"sipproxy: {error}", file=sys.stderr)  # noqa: T201  the log may be JSON; a person reads this
        return 1
    finally:
        writer.close()


async def _run(config: Config, config_path: Path, *, embedded: bool, greet: bool, spec: Spec | None) -> int:
    stop = Stop()
    stop.listen()
    if not await lifecycle.an_address_is_here([listen.address for listen in config.listen], stop, Notifier()):
        return 0
    data_dir = Path(config.node.data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  nothing is served yet
    async with contextlib.AsyncExitStack() as stack:
        journal = Journal(
            data_dir / "journal",
            node=config.node.id,
            segment_bytes=config.cdr.segment_bytes,
            fsync_interval_ms=config.cdr.fsync_interval_ms,
        )
        found = journal.recover()  # first of all: it holds the lock that keeps a second node off this folder
        stack.callback(journal.close)
        server = EmbeddedStore(data_dir) if embedded else None
        if server is not None:
            await server.start()
            stack.push_async_callback(server.stop)
        node = Node(config, config_path, journal, server, spec)
        for damage in found.damaged:
            node.log.error("journal_damaged", **damage._asdict())
        if found.torn:
            node.log.warning("journal_torn", bytes=found.torn)  # a write that was never finished, cut off
        bound = await node.start(stack, found)
        if greet:
            sys.stdout.write(welcome(config, bound, node.engine.desk.snapshot))
        if node.siblings is None:  # else the supervisor says so
            sys.stdout.write(json.dumps({"event": "ready", "listen": shown(bound)}) + "\n")
        sys.stdout.flush()
        settle_memory()
        await node.run(stop)
    return 0


class Node:
    """The parts of one node."""

    def __init__(
        self, config: Config, config_path: Path, journal: Journal, server: EmbeddedStore | None, spec: Spec | None = None
    ) -> None:
        self.config, self._config_path = config, config_path
        self.data_dir = Path(config.node.data_dir)
        self._shared_dir = Path(spec.shared_dir) if spec is not None else self.data_dir  # of what all workers have in common
        key = self._key = kept_secret(self._shared_dir / "secret.key")
        self._spec = spec
        self.siblings = Siblings(spec, key) if spec is not None else None
        self.log = structlog.get_logger("node")
        self._server = server
        self._journal = journal
        self.store = Store(
            server.url if server is not None else config.store.url,
            config.store.deadline_ms,
            name=f"sipproxy-{config.node.id}",
        )
        self._slots = Slots(self.store)
        self._traces = Traces(self.store)
        self._bindings = Bindings(
            self.store,
            node=config.node.id,
            limit=config.limits.bindings,
            finish=lambda user, binding: with_token(self.engine.desk.tokens, user, binding),
        )
        self._publisher = Publisher(
            self.store.client,
            journal,
            stream=config.cdr.stream,
            node=config.node.id,
            batch=config.cdr.batch,
            keep=config.cdr.stream_max,
            sinks=config.cdr.sinks,
            interim_s=config.cdr.interim_s,
            boot=lifecycle.boot_id(),
            on_state=lambda state, reason: self.log.info("cdr_publisher", state=state, reason=reason),
        )
        self._readers = Readers(self.store.client, config.cdr.stream)
        self._notifier = Notifier()

    # Starting

    async def start(self, stack: contextlib.AsyncExitStack, found: Recovered) -> list[Bound]:
        """Bring every part up; the addresses that were taken. Raises StartError, and what the parts raise."""
        config = self.config
        if not await self.store.start() and self.store.reason in UNUSABLE:
            raise StartError(f"{self._config_path}: store.url: {UNUSABLE[self.store.reason]}")
        stack.push_async_callback(self.store.close)
        snapshot = await self._first_snapshot()
        self._resolver = Resolver(nameservers=[name_server(text) for text in config.dns.servers])
        stack.push_async_callback(self._resolver.close)
        self._tls = tls_of(config)
        self._transports = Transports(
            self._resolver,
            lambda data, flow, waited_s, kind: None,  # noqa: ARG005  nothing comes before there is a shell
            self._on_failed,
            self._on_refused,
            self._on_closed,
            message_bytes=config.limits.message_bytes,
            tls=self._tls,
            take=self.siblings.socket_of if self.siblings is not None else None,
            worker=self.siblings.me if self.siblings is not None else 0,
        )
        bound_at, bound = instant(), self._bind(self._transports)
        stack.push_async_callback(self._transports.close)
        self.engine = Engine(
            engine_settings(config, bound, boot=lifecycle.boot_id(), siblings=self._spec),
            snapshot,
            new_token=RandomBytes(),
            key=self._key,
            next_seq=found.next_seq,
            nonce_lifetime_s=config.registrar.nonce_lifetime_s,
            max_nonces=config.limits.nonces,
        )
        self._transports.on_resolved = self.engine.resolved
        self._transports.customers_at = self.engine.desk.location.flows_at
        self._transports.may_end = lambda flow: not self.engine.calls.has_help_by(flow)
        self._transports.read_ahead(self.engine.shedder, awaited=self._slots.awaited)
        self.shell = Shell(
            self.engine,
            journal=self._journal,
            publisher=self._publisher,
            slots=self._slots,
            bindings=self._bindings,
            traces=self._traces,
            lease_ms=config.store.lease_s * 1000,
            wait_for_disk=config.cdr.sync == "wait",
        )
        self.shell.transports, self.shell.bound_at = self._transports, bound_at
        self._transports.on_message = (self.siblings or self.shell).message
        if self.siblings is not None:
            self.siblings.attach(self.shell, self._transports)
            self.siblings.on_live = self._use
        self.store.on_state(self._on_store_state)
        self.neighbours = Neighbours(self.store, self._bindings, self.shell, self._journal, [host for _, host, _ in bound])
        self._secret = SharedSecret(self.store, self._shared_dir / "shared.key", self.engine.auth.rekey)
        self.engine.auth.rekey(self._secret.current)
        has_bindings = await lifecycle.learn(self._secret, self.neighbours)
        metrics = await self._observe(stack)
        self._publisher.take_up(found.unfinished)
        lifecycle.resume(self.shell, self._journal, found, self._slots)
        if self.store.state is State.UP:
            await lifecycle.settle(self._slots)
        if self.siblings is not None:
            stack.callback(self.siblings.close)
            await self.siblings.take_over()
        if self._spec is None or not self._spec.is_leaving:  # which sends alone; others read what is its
            await self._transports.start()
        self.shell.start()
        if self.siblings is not None:
            self.siblings.serve()
            if not has_bindings:
                self.siblings.ask_bindings()
        self._drop_strangers(stack, bound)
        self._notifier.tell("READY=1", status=self._status())
        self._lag = LoopLag(metrics, on_sample=self.shell.late)
        self.log.info(
            "ready",
            node=config.node.id,
            engine=compiled.kind(),
            listen=shown(bound),
            metrics=self._metrics_address,
            lines=len(snapshot.lines),
            accounts=len(snapshot.accounts),
            policy_version=snapshot.version,
        )
        return bound

    def _bind(self, transports: Transports) -> list[Bound]:
        if self.siblings is not None:
            return transports.bind(self.siblings.spec.bound)
        listens = [(listen.transport.upper(), *split_address(listen.address)) for listen in self.config.listen]
        try:
            return transports.bind(listens, next_free=self._server is not None)
        except OSError as error:
            reason = error.strerror or str(error)
            raise StartError(f"{self._config_path}: listen: {reason}; does another node have it?") from error

    def _drop_strangers(self, stack: contextlib.AsyncExitStack, bound: list[Bound]) -> None:
        """Have the kernel drop who is on the drop list, where that is wanted."""
        kernel = self.config.kernel
        if kernel.drop != "on":
            return

        def problem(text: str) -> None:
            self.engine.desk.drops.problem = text
            self.log.warning("drop_list_unavailable", problem=text)

        ports = [("udp" if transport == "UDP" else "tcp", port) for transport, _, port in bound]
        drops = KernelDrops(self.config.node.id, ports, entries=kernel.drop_entries, on_problem=problem)
        drops.start()
        stack.push_async_callback(drops.close)
        self.shell.kernel = drops

    def _on_failed(self, key: Hashable) -> None:
        if self.siblings is None or not self.siblings.is_failure_of_another(key):
            self.shell.send_failed(key)

    def _on_refused(self, head: bytes, fault: ParseError, flow: Flow) -> None:
        self.shell.refused(head, fault, flow)

    def _on_closed(self, flow: Flow) -> None:
        self.shell.flow_closed(flow)
        if self.siblings is not None:
            self.siblings.flow_closed(flow)

    async def _first_snapshot(self) -> Snapshot:
        """The policy data to begin with: the store's, with the configured files taken in, else the last one seen."""
        change = policy_files.read(self.config)
        client = self.store.client
        cached = policy_cache.load(self._cache_path)
        try:
            version = await policy_store.version_in(client)
            if cached is not None and version < cached.version:
                # Flushed, or restored from an old copy: it is filled again by an operator's command alone.
                self.log.error("store_lost_policy", version=version, known=cached.version, remedy="sipproxy reseed")
                return cached
            why = f"files of {self._config_path.name}"
            # A restart with the same files changes nothing, and makes no version.
            await policy_store.apply(client, change, who=f"node {self.config.node.id}", why=why)
            return await policy_store.load(client)
        except (RedisError, OSError) as error:
            self.log.warning("store_away_at_start", error=str(error)[:200], cached=cached is not None)
            if cached is not None:
                return cached
            return snapshot_of(0, change.lines, change.accounts, profiles.load(), change.psap, change.blocks)

    @property
    def _cache_path(self) -> Path:
        return self._shared_dir / "policy.snapshot"

    async def _observe(self, stack: contextlib.AsyncExitStack) -> Metrics:
        metrics = Metrics()
        register(
            metrics,
            engine=self.engine,
            shell=self.shell,
            transports=self._transports,
            journal=self._journal,
            publisher=self._publisher,
            readers=self._readers,
            store=self.store,
            slots=self._slots,
            bindings=self._bindings,
            traces=self._traces,
            neighbours=self.neighbours,
        )
        if self.siblings is not None:
            self.siblings.register(metrics)
        self._metrics_address = ""
        if self.config.metrics.address:
            server = MetricsServer(metrics)
            try:
                host, port = await server.start(self.config.metrics.address)
                self._metrics_address = f"{host}:{port}"
            except OSError as error:
                # Whoever watches loses sight; whoever calls must not lose the call for it.
                self.log.warning("metrics_not_started", address=self.config.metrics.address, error=str(error))
            stack.push_async_callback(server.close)
        if self.config.hep.address:
            stack.callback(copy_to(self.config.hep, self._transports, metrics).close)
        watching = Watching(self.engine, self.log, self._transports.watchers, self.shell.watchers)
        if self.siblings is not None:
            self.siblings.follow_with(watching)
        control = ControlServer(
            socket_path(self.data_dir) if self.siblings is None else self.data_dir / "worker.sock",
            {
                **handlers(self.engine, self.shell, self.store, self._publisher, self.neighbours, journal=self._journal),
                "metrics": metrics.tell,
            },
            streamers={"watch": watching.watch},
            on_error=lambda command, error: self.log.error("control_failed", command=command, error=repr(error)),
        )
        await control.start()
        stack.push_async_callback(control.close)
        return metrics

    # Running

    async def run(self, stop: Stop) -> None:
        """Serve until `stop`, then let live calls finish; those that are left are for the next start."""
        async with asyncio.TaskGroup() as group:
            heartbeat = Heartbeat(
                self.store, self.config.node.id, tell=self.neighbours.told, on_forgotten=self._on_store_forgot
            )
            work = [
                self.store.run(),
                self._publisher.run(),
                self._readers.run(),
                self._watch_policy(),
                self._refresh_slots(),
                self._expire_bindings(),
                renew(self._tls, self.log),
                follow_addresses(self._transports, self.log),
                lifecycle.run_look_ahead(self.engine, self._transports),
                heartbeat.run(),
                *self.neighbours.tasks(),
                self._secret.run(lambda problem: self.log.warning("secret_not_kept", problem=problem)),
                self.shell.run_journal_watch(),
                lifecycle.run_pruning(self._journal, self.config.cdr.keep_unbilled_h * HOUR_MS),
                self._lag.run(),
                run_sweeps(lambda: self.engine.calls.live),
                self._notifier.run(lambda: lifecycle.is_healthy(self.engine), self._status),
            ]
            if self._server is not None:
                work.append(self._server.run())
            if self.siblings is not None:
                work += [self.siblings.run(lambda: lifecycle.is_healthy(self.engine)), self.siblings.tell_bindings()]
                if self.siblings.spec.is_leaving:
                    work.append(lifecycle.leave(self.engine, self._journal, stop))
            else:  # with workers the supervisor reloads
                reloader = Reloader(
                    self.config,
                    self._config_path,
                    connect=lambda: contextlib.nullcontext(self.store.client),
                    known_version=lambda: self.engine.desk.snapshot.version,
                    use=lambda config: self._use(Live.of(config)),
                )
                reloader.listen(stop.terminate)
                work.append(reloader.run())
            tasks = [group.create_task(coroutine) for coroutine in work]
            await stop.wanted.wait()
            self.log.info("stopping", calls=self.engine.calls.live)
            drain_s = self.config.node.drain_s
            extend = f"EXTEND_TIMEOUT_USEC={round(1e6 * (drain_s + LEAVE_S))}"
            self._notifier.tell("STOPPING=1", extend, status=f"draining, {self._status()}")
            tell = self.siblings.say if self.siblings is not None and not self.siblings.spec.is_leaving else None
            await lifecycle.drain(self.engine, stop, drain_s, tell)
            self.log.info("leaving", calls=self.engine.calls.live)
            await self._publisher.flush(FLUSH_S)
            await lifecycle.cancel_all(tasks)

    def _use(self, live: Live) -> None:
        """What changes without a restart is so from now on."""
        set_level(live.log.level)
        self.engine.shedder.use(rates_of(live.limits))

    def _status(self) -> str:
        location = self.engine.desk.location
        return f"{self.engine.calls.live} calls, {location.count - location.elsewhere} registrations"

    async def _watch_policy(self) -> None:
        settled = False

        def swap(snapshot: Snapshot) -> None:
            nonlocal settled
            self.shell.swap_snapshot(snapshot)
            if not settled:  # the store's own snapshot is here to stay; later ones change a little of it
                settled = True
                settle_memory()
            self.log.info("policy_snapshot", version=snapshot.version, lines=len(snapshot.lines))
            changed.set()

        def problem(text: str) -> None:
            if text:
                self.log.warning("policy_watch", problem=text)

        changed = asyncio.Event()
        keep = asyncio.create_task(self._keep_snapshots(changed))
        try:
            await policy_store.watch(
                self.store.client,
                swap,
                on_problem=problem,
                floor=self.engine.desk.snapshot.version,
            )
        finally:
            keep.cancel()

    async def _keep_snapshots(self, changed: asyncio.Event) -> None:
        while True:
            await changed.wait()
            changed.clear()
            try:
                await asyncio.to_thread(policy_cache.save, self._cache_path, self.engine.desk.snapshot)
            except OSError as error:
                self.log.warning("policy_not_kept", error=str(error))

    async def _refresh_slots(self) -> None:
        for part in itertools.cycle(range(parts := self.config.store.refresh_s)):
            await asyncio.sleep(1.0)  # all of them at once would be in the way of messages
            self.shell.refresh_leases(part, parts)

    async def _expire_bindings(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_S)
            self.engine.expire_bindings(instant())

    def _on_store_state(self, state: State, reason: str) -> None:
        self.log.log(20 if state is State.UP or reason == STOPPED else 30, "store", state=state.value, reason=reason)
        if state is State.UP:
            self.shell.refresh_leases()  # after an outage the node re-asserts its live calls (design §8)
            self.neighbours.follower.reread("outage")

    def _on_store_forgot(self) -> None:
        """The store was emptied or fell back to an old copy: what memory holds is written again."""
        self.log.warning("store_forgot")
        location = self.engine.desk.location
        self._bindings.save_all(location.stored())
        self.neighbours.follower.reread("flushed")
        self.shell.refresh_leases()
        self._slots.release_again()
