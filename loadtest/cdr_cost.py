"""What records cost: the journal for a call, the ways to the disk, into the stream and out of it, a backlog under live calls.

The journal and both ends of the stream are measured in this process, whose processor time is theirs; the backlog is drained by
a real node. Leaves out: what a database takes, which is in billing.py.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdr.facts import Admit, Answer, End
from cdr.journal import Journal
from cdr.publisher import Publisher
from cdr.wire import cancel_all
from loadtest.billing import consume_rate, make_record
from loadtest.generate import Load, at_rate, callers_needed, percentile, place_calls
from loadtest.network import Network, many_lines
from loadtest.reconcile import STREAM
from loadtest.report import Report
from loadtest.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdr.facts import Fact

__all__ = ["backlog_report", "consume_report", "journal_report", "publish_report"]

CHANNELS = 2
SETTLE_S = 120.0
SEGMENT_BYTES = 16 * 1024 * 1024  # as configured by default
UNSYNCED_CALLS = 200  # calls between two looks at the event loop where nobody waits for the disk


@dataclass(slots=True)
class Stretch:
    """Wall and processor time of a stretch of work in this process, with all of its threads."""

    wall_at: float = field(default_factory=time.monotonic)
    cpu_at: float = field(default_factory=time.process_time)

    def each_us(self, count: int) -> tuple[float, float]:
        """Microseconds of both for one of `count`."""
        wall, cpu = time.monotonic() - self.wall_at, time.process_time() - self.cpu_at
        return 1e6 * wall / max(1, count), 1e6 * cpu / max(1, count)


def facts_of(seq: int) -> list[Fact]:
    """The three facts of an answered call."""
    record = make_record(seq)
    answered_at_ms = record.answer_at_ms or 0
    answer = Answer(record.id, answered_at_ms, 2000, answered_at_ms - 900, 200, "tag", "carrier", "", "", ["audio"])
    return [Admit(record, "boot", seq), answer, End(record)]


def fill(journal: Journal, count: int) -> None:
    """Append the records of `count` calls behind those that are there."""
    for seq in range(journal.last_seq + 1, journal.last_seq + count + 1):
        journal.append(End(make_record(seq)))


async def journal_report(*, calls: int, waiting: int, rate: float) -> Report:
    """What `calls` calls cost in the journal, `waiting` that wait for the disk each time, and how long `rate` ones a second
    take until they are on disk."""
    report = Report("the journal")
    with tempfile.TemporaryDirectory(prefix="cdr-") as directory:
        journal = Journal(directory, node="node1", segment_bytes=SEGMENT_BYTES)
        journal.recover()
        try:
            work = Stretch()
            for seq in range(1, calls + 1):
                for fact in facts_of(seq):
                    position = journal.append(fact)
                if seq % UNSYNCED_CALLS == 0:
                    await asyncio.sleep(0)
            _add(report, "group", "a call, sync = group", work.each_us(calls))
            await journal.wait_synced(position)
            work = Stretch()
            for seq in range(calls + 1, calls + waiting + 1):
                for fact in facts_of(seq):
                    await journal.wait_synced(journal.append(fact))
            _add(report, "wait", "a call, sync = wait", work.each_us(waiting))
            synced_ms = await _until_on_disk(journal, calls + waiting + 1, waiting, rate)
        finally:
            journal.close()
    for share, name in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
        report.add(
            f"on_disk_{name}_ms", f"append until on disk at {rate:g} calls a second, {name}", percentile(synced_ms, share), "ms"
        )
    report.expect(len(synced_ms) == 3 * waiting, f"{len(synced_ms)} of {3 * waiting} facts came to the disk")
    return report


async def _until_on_disk(journal: Journal, first: int, calls: int, rate: float) -> list[float]:
    """Milliseconds from each append until it was on disk, of calls at a rate with fsync in groups."""
    took_ms: list[float] = []

    in_order = asyncio.Lock()  # as numbers are

    async def one(number: int) -> None:
        for fact in facts_of(first + number):
            async with in_order:
                began, position = time.monotonic(), journal.append(fact)
            await journal.wait_synced(position)
            took_ms.append(1000 * (time.monotonic() - began))

    await at_rate(rate, calls, one)
    return took_ms


async def publish_report(*, records: int) -> Report:
    """A backlog of `records` that the publisher brings into an idle store."""
    report = Report(f"{records} records published")
    with tempfile.TemporaryDirectory(prefix="cdr-") as directory:
        journal = Journal(directory, node="node1", segment_bytes=SEGMENT_BYTES)
        journal.recover()
        fill(journal, records)
        await journal.wait_synced(journal.position)
        async with Valkey() as store:
            publisher = Publisher(store.client, journal, stream=STREAM, node="node1")
            work = Stretch()
            task = asyncio.create_task(publisher.run())
            done = await publisher.flush(SETTLE_S)
            wall_us, cpu_us = work.each_us(records)
            await cancel_all([task])
            held = await store.client.xlen(STREAM)
        journal.close()
    report.add("per_second", "records a second", 1e6 / wall_us)
    report.add("cpu_us", "processor time for one", cpu_us, "us")
    report.expect(done and held == records, f"{held} of {records} are in the stream")
    return report


async def consume_report(*, records: int) -> Report:
    """Records consumed by `cdr.consumer` with a `write` that costs nothing."""
    report = Report(f"{records} records consumed, and written nowhere")
    async with Valkey() as store:
        rate = await consume_rate(store.client, records=records)
    report.add("per_second", "records a second", rate.per_second)
    report.add("cpu_us", "processor time for one", rate.cpu_us, "us")
    report.expect(rate.records == records, f"{rate.records} came")
    return report


async def backlog_report(*, records: int, load: Load, before_s: float, progress: Callable[[str], None]) -> Report:
    """A real node with `records` in its journal that the store has not, which stands still until calls have come for
    `before_s` seconds: the backlog then drains while calls go on."""
    report = Report(f"a backlog of {records} drains under {load.rate:g} calls a second")
    lines = many_lines(callers_needed(load, CHANNELS), channels=CHANNELS)
    with tempfile.TemporaryDirectory(prefix="cdr-") as directory:
        async with Network(lines, settings={"log": {"level": "warning"}}, directory=Path(directory)) as network:
            routers = [await network.router(line.user) for line in lines]
            await network.stop_node()
            progress("backlog")
            journal = Journal(Path(directory) / "data" / "journal", node=network.node.node_id, segment_bytes=SEGMENT_BYTES)
            journal.recover()
            fill(journal, records)
            journal.close()
            network.store.stop()
            await network.node.start()
            cpu = network.node.cpu_seconds()
            progress("calls")
            async with asyncio.TaskGroup() as group:
                calls = group.create_task(place_calls(routers, load))
                await asyncio.sleep(before_s)
                network.store.resume()
                resumed_ms = time.time_ns() // 1_000_000
            cpu = network.node.cpu_seconds() - cpu
            outcome = calls.result()
            found = await network.records(records + outcome.placed, timeout_s=SETTLE_S)
            old_ms, live_ms = await _arrivals(network, records)
    drain_s = max(1, old_ms[-1] - old_ms[0]) / 1000 if old_ms else 0.0
    while_ms = [at_ms for at_ms in live_ms if old_ms and at_ms <= old_ms[-1]]
    report.add(
        "resumed_s", "store there until the first was published", (old_ms[0] - resumed_ms) / 1000 if old_ms else -1.0, "s"
    )
    report.add("drain_s", "from then until the last one was", drain_s, "s")
    report.add("drain_per_s", "records of the backlog a second", len(old_ms) / max(drain_s, 0.001))
    report.add("live_while", "records of live calls that were published meanwhile", len(while_ms))
    report.add("times_live", "the drain rate is so many times the rate of calls", len(old_ms) / max(drain_s, 0.001) / load.rate)
    report.add("setup_p50_ms", "set-up delay of all calls, p50", percentile(outcome.setup_ms, 0.5), "ms")
    report.add("setup_p99_ms", "set-up delay of all calls, p99", percentile(outcome.setup_ms, 0.99), "ms")
    report.add("cpu_s", "CPU of the node", cpu, "s")
    wanted = records + outcome.placed
    report.expect(len(found) == len({record.id for record in found}) == wanted, f"{len(found)} records of {wanted}")
    report.expect(outcome.ok, f"calls failed: {dict(outcome.refused)} {outcome.failures[:3]}")
    return report


async def _arrivals(network: Network, records: int) -> tuple[list[int], list[int]]:
    """When the records of the backlog came into the stream, and those of live calls, in milliseconds of the store's clock."""
    old: list[int] = []
    live: list[int] = []
    start = b"-"
    while True:
        page: Any = await network.store.client.xrange(STREAM, min=start, count=1000)
        for entry_id, fields in page:
            (old if int(fields[b"seq"]) <= records else live).append(int(entry_id.partition(b"-")[0]))
            start = b"(" + entry_id
        if not page:
            return old, live


def _add(report: Report, key: str, text: str, each_us: tuple[float, float]) -> None:
    report.add(f"{key}_wall_us", f"{text}: time", each_us[0], "us")
    report.add(f"{key}_cpu_us", f"{text}: processor time", each_us[1], "us")
