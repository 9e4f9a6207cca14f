"""Runs a mix against a node of its own, watches both, and compares every call with its record and the slots with the calls.

Leaves out: how the outcome is shown, which is in mix_report.py.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import redis.asyncio as redis

from cdr.consumer import Consumer
from cdr.wire import cancel_all
from loadtest.ending import stoppable
from loadtest.generator import Generator
from loadtest.lateness import OwnLateness, no_sweeps, worst_bucket_ms
from loadtest.network import DOMAIN, Network, many_lines, md5_only
from loadtest.node import NodeError, TrunkSpec
from loadtest.reconcile import Matching, Reconciliation, becomes, read_page
from loadtest.usage import CpuMeter, descriptors_of, threads_of, tree_memory_bytes

if TYPE_CHECKING:
    from cdr.consumer import Delivery
    from loadtest.mix import Mix
    from loadtest.node import LineSpec
    from loadtest.seen import Seen
    from loadtest.valkey import Valkey

__all__ = ["LOAD_SETTINGS", "Around", "Progress", "Ran", "Sample", "run_mix"]

SAMPLE_S = 1.0
READ_S = 0.25
SETTLE_S = 90.0  # for what the node still owes when all calls are over: a question to who vanished, its lifetime, and some
FIRST_S = 60.0  # beyond the time that the rate gives, until all are registered
FULL_LINES = 4
FURTHER_LINES = 6  # for those who make trouble
PLENTY = 1_000_000
# All simulated routers share one address, and come faster than customers do: here the node's limits are not what is measured.
LOAD_SETTINGS: Mapping[str, Mapping[str, object]] = {
    "log": {"level": "warning"},
    "limits": {
        f"{whose}_{what}": PLENTY for whose in ("source", "line", "strangers", "registers") for what in ("per_s", "burst")
    },
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One second of the run. CPU is a share of one core; `at` is the second of the run's clock at its end."""

    at: float
    node_cpu: float
    own_cpu: float
    store_cpu: float
    node_bytes: int
    node_late_ms: float
    own_late_ms: float
    live: int
    descriptors: int
    transactions: float  # as the node tells; NaN where it did not answer
    calls_known: float
    tasks: float
    threads: int
    journal_bytes: float
    life: int  # of the node, counted from 0


@dataclass(slots=True)
class Ran:
    """A whole run. CPU seconds are from the first call until all were over."""

    mix: Mix
    seen: Seen
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    arriving_s: float = 0.0  # while calls began
    node_cpu_s: float = 0.0
    own_cpu_s: float = 0.0
    store_cpu_s: float = 0.0
    memory_before: int = 0
    memory_after: int = 0
    first_registered: int = 0
    accounts: int = 0
    slots_left: int = 0
    calls_left: float = 0.0  # that the node counts as live
    lost_sends: int = 0
    repeats: int = 0
    own_late_ms: list[float] = field(default_factory=list)
    interrupted: bool = False  # before all calls of the mix had begun and ended
    without_record: int = 0  # calls that the node did not look at
    node_log: str = ""
    result: Reconciliation = field(default_factory=Reconciliation)

    @property
    def node_peak_bytes(self) -> int:
        return max((sample.node_bytes for sample in self.samples), default=self.memory_before)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: `done` of `total` in the unit of the stage, and a sentence."""

    stage: str
    done: float
    total: float
    text: str = ""


Tell = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Around:
    """What is around a run, for those who make trouble in it."""

    network: Network
    generator: Generator
    matching: Matching  # its `away` are the times without the node, which they tell
    further: Sequence[LineSpec]  # that the mix does not use
    stop: asyncio.Event = field(default_factory=asyncio.Event)  # the run is to end: no more trouble


async def run_mix(
    mix: Mix,
    tell: Tell,
    *,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    store: Valkey | None = None,
    trouble: Callable[[Around], Awaitable[None]] | None = None,
    sink: str = "",
) -> Ran:
    """Run it on a node of its own, with a `store` that is given, and make `trouble` while calls begin; `settings` are further
    tables of the node's configuration. With `sink` records are read as this consumer group: what it has not confirmed comes
    again from a store that lost it. Raises NodeError."""
    full = many_lines(FULL_LINES if mix.shares.over_limit else 0, first=5_000_000, channels=1)
    lines = many_lines(mix.accounts.count, channels=mix.accounts.channels)
    further = many_lines(FURTHER_LINES if trouble is not None else 0, first=6_000_000)
    matching = Matching()
    generator = Generator(mix, lines, full, domain=DOMAIN, ended=matching.ended)
    trunk = (generator.trunk.host, generator.trunk.port)
    try:
        async with Network(
            [*(_stored(line, mix) for line in [*lines, *full]), *further],
            settings=_merged(LOAD_SETTINGS, mix.node, {"cdr": {"sinks": [sink]}} if sink else {}, settings or {}),
            trunks=[TrunkSpec("carrier", trunk, (generator.trunk.host,))],
            psap=(generator.psap.host, generator.psap.port),
            store=store,
        ) as network:
            generator.open(network.node.address)
            return await _Run(mix, Around(network, generator, matching, further), tell).all(trouble, sink)
    finally:
        generator.close()


def _stored(line: LineSpec, mix: Mix) -> LineSpec:
    return md5_only(line) if mix.accounts.algorithm == "MD5" else line


def _merged(*parts: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    merged: dict[str, dict[str, object]] = {}
    for tables in parts:
        for name, keys in tables.items():
            merged.setdefault(name, {}).update(keys)
    return merged


def sum_of(metrics: Mapping[str, float], name: str) -> float:
    """A metric over all its labels; NaN where it is not told."""
    return math.fsum(values) if (values := [v for key, v in metrics.items() if key.partition("{")[0] == name]) else math.nan


class _Run:
    def __init__(self, mix: Mix, around: Around, tell: Tell) -> None:
        self._around, network, generator, matching = around, around.network, around.generator, around.matching
        self.network, self.generator, self.matching = network, generator, matching
        self.tell = tell
        self.ran = Ran(mix, generator.seen)
        self._cursor = b""
        self._began = 0.0
        self._node, self._store = CpuMeter(lambda: network.node.pid), CpuMeter(lambda: network.store.pid)

    async def all(self, trouble: Callable[[Around], Awaitable[None]] | None, sink: str) -> Ran:
        generator = self.generator
        await self._register()
        generator.occupy()
        await self._while(lambda: generator.occupying and not generator.occupied, SETTLE_S, "occupying", 0)
        with no_sweeps(), stoppable(self._around.stop):
            return await self._measured(trouble, sink)

    async def _measured(self, trouble: Callable[[Around], Awaitable[None]] | None, sink: str) -> Ran:
        ran, generator = self.ran, self.generator
        node, store = self._node, self._store
        cpu = node.used(), store.used()
        own = time.process_time()
        ran.memory_before = tree_memory_bytes(self.network.node.pid)
        self._began = time.monotonic()
        generator.begin()
        ran.seen = generator.seen
        reading = asyncio.create_task(self._read_as(sink) if sink else self._read())
        sampling = asyncio.create_task(self._sample())
        troubling = asyncio.ensure_future(trouble(self._around) if trouble is not None else asyncio.sleep(0))
        try:
            async with OwnLateness() as lateness:
                await self._calls()
            ran.own_late_ms = lateness.samples_ms
            ran.seconds = time.monotonic() - self._began
            ran.node_cpu_s, ran.store_cpu_s = node.used() - cpu[0], store.used() - cpu[1]
            ran.own_cpu_s = time.process_time() - own
            await troubling
            await self._settle()
        finally:
            await cancel_all([reading, sampling, troubling])
            await asyncio.gather(reading, sampling, troubling, return_exceptions=True)
        ran.memory_after = tree_memory_bytes(self.network.node.pid)
        ran.lost_sends, ran.repeats = generator.lost_sends, generator.repeats
        ran.result, ran.without_record = self.matching.result(), self.matching.without
        ran.node_log = self.network.node.log(tail=2000)
        return ran

    async def _register(self) -> None:
        wanted = self.generator.register_all()
        seen = self.generator.seen
        await self._while(
            lambda: seen.registered < wanted,
            wanted / self.ran.mix.accounts.register_per_s + FIRST_S,
            "registering",
            wanted,
            lambda: seen.registered,
        )
        self.ran.accounts, self.ran.first_registered = wanted, seen.registered
        if seen.registered < wanted:
            raise NodeError(f"only {seen.registered} of {wanted} routers could register: {dict(seen.register_refused)}")

    async def _while(
        self, goes_on: Callable[[], bool], within_s: float, stage: str, total: float, done: Callable[[], float] = float
    ) -> None:
        """Wait as long as it goes on, and at most so long."""
        deadline = time.monotonic() + within_s
        while goes_on() and time.monotonic() < deadline:
            self.tell(Progress(stage, done(), total))
            await asyncio.sleep(0.05)

    async def _calls(self) -> None:
        """From the first call until all are over."""
        mix, generator, ran = self.ran.mix, self.generator, self.ran
        total = mix.load.seconds or mix.load.calls
        swept = time.monotonic()
        while True:
            seen = generator.seen
            done = min(total, generator.now()) if mix.load.seconds else float(seen.placed.total())
            if self._around.stop.is_set() and not ran.interrupted:
                ran.interrupted = True
                generator.leave()
            text = f"{seen.placed.total()} calls, {generator.live} live, {seen.failed} failed"
            self.tell(Progress("calling", done, total, text))
            if time.monotonic() - swept > 5.0:
                generator.sweep()
                swept = time.monotonic()
            if not generator.arriving and not ran.arriving_s:
                ran.arriving_s = generator.now()
            if not generator.arriving and not generator.live:
                if not generator.occupying:
                    return
                generator.release()
            await asyncio.sleep(0.1)

    async def _settle(self) -> None:
        """Wait for what the node still owes: records, and slots that are free again."""
        await self._while(lambda: self.matching.owed > 0, SETTLE_S, "records", 0, lambda: self.matching.owed)
        self.ran.slots_left = await self.network.slots_of_all(0, timeout_s=SETTLE_S)

        async def counted() -> float:
            return sum_of(await self.network.node.metrics(), "sipproxy_calls_live")

        self.ran.calls_left = await becomes(counted, 0.0, timeout_s=SETTLE_S)
        await asyncio.sleep(2 * READ_S)  # what was published too much would come now

    async def _read(self) -> None:
        while True:
            before = self._cursor
            try:
                records, self._cursor = await read_page(self.network.store.client, before)
            except (redis.RedisError, OSError):  # the store is in trouble, as it should be where trouble is made
                await asyncio.sleep(SAMPLE_S)
                continue
            for record in records:
                self.matching.take(record)
            if self._cursor == before:
                await asyncio.sleep(READ_S)

    async def _read_as(self, group: str) -> None:
        """What is published again has the id that it had."""
        seen: set[str] = set()

        def write(batch: list[Delivery]) -> None:
            for one in batch:
                if one.record.type == "final" and one.record.id not in seen:
                    seen.add(one.record.id)
                    self.matching.take(one.record)

        async with Consumer(self.network.store.client, group=group) as consumer:
            await consumer.run(write)

    async def _sample(self) -> None:
        at, metrics = time.monotonic(), await self.network.node.metrics()
        cpu = self._node.used(), time.process_time(), self._store.used()
        async with OwnLateness() as own:  # all the time: what happens between two looks belongs to the second one
            while True:
                await asyncio.sleep(SAMPLE_S)
                told = await self.network.node.metrics()
                now = time.monotonic()
                used, node = (self._node.used(), time.process_time(), self._store.used()), self.network.node.pid
                node_cpu, own_cpu, store_cpu = ((after - before) / (now - at) for after, before in zip(used, cpu, strict=True))
                sample = Sample(
                    now - self._began,
                    node_cpu,
                    own_cpu,
                    store_cpu,
                    node_bytes=await asyncio.to_thread(tree_memory_bytes, node),  # for which the kernel takes its time
                    node_late_ms=worst_bucket_ms(metrics, told),
                    own_late_ms=own.worst_ms,
                    live=self.generator.live,
                    descriptors=descriptors_of(node),
                    transactions=sum_of(told, "sipproxy_transactions_live"),
                    calls_known=sum_of(told, "sipproxy_calls_known"),
                    tasks=sum_of(told, "sipproxy_tasks"),
                    threads=threads_of(node),
                    journal_bytes=told.get('sipproxy_journal{what="bytes"}', math.nan),
                    life=len(self.matching.away),
                )
                self.ran.samples.append(sample)
                own.samples_ms.clear()
                at, metrics, cpu = now, told, used
