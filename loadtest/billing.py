"""Billing under adverse conditions: several consumers that are killed between their insert and their acknowledgement, a
database that goes away, and records that nobody can take. The table must equal the truth.

The consumers run docs/examples/postgresql.py. The short form is a test, the long one `python -m loadtest billing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cdr import codec, dead
from cdr.consumer import Consumer, Delivery
from cdr.facts import Record
from cdr.wire import Link

if TYPE_CHECKING:
    import redis.asyncio as redis

    from loadtest.postgres import Postgres

__all__ = ["BillingReport", "Rate", "bill_through_trouble", "consume_rate", "make_record", "put"]

STREAM, GROUP = "sp:cdr", "billing"
ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "examples" / "postgresql.py"
SETTLE_S = 180.0
PAGE = 500
# A consumer that dies between its insert and its acknowledgement, at every `argv[1]`-th batch.
DYING = """
import os, runpy, signal, sys
from cdr import steps
every, batches = int(sys.argv[1]), 0
def hook(step):
    global batches
    if step == "consumer.written":
        batches += 1
        if batches == every:
            os.kill(os.getpid(), signal.SIGKILL)
steps.hook = hook
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(slots=True)
class BillingReport:
    """What came of it. `different` are ids whose row is not what was recorded."""

    records: int
    rows: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    kills: int = 0
    letters: list[dead.Letter] = field(default_factory=list)
    pending: int = 0
    seconds: float = 0.0
    statuses: list[int | None] = field(default_factory=list)  # exit status of each consumer at the end
    log: str = ""


@dataclass(slots=True)
class Rate:
    """Records consumed: how many a second, and microseconds of our processor time for each."""

    records: int
    per_second: float
    cpu_us: float


def make_record(seq: int, **fields: Any) -> Record:
    """A record as calls leave it, the same for the same number."""
    record = Record(
        id=f"node1-{seq:012d}",
        node="node1",
        seq=seq,
        direction="outgoing",
        line=f"L{seq % 97:04}",
        account=f"u{seq % 97:04}",
        calling=f"+4960322{seq % 97:06}",
        dialled="sip:03023125001@sip.example",
        canonical="+493023125001",
        call_id=f"{seq:x}@router",
        source="127.0.0.1:5060",
        transport="UDP",
        user_agent="router 1.0",
        setup_at_ms=1_790_000_000_000 + 50 * seq,
        answer_at_ms=1_790_000_002_000 + 50 * seq,
        end_at_ms=1_790_000_062_000 + 50 * seq,
        duration_ms=62_000,
        billable_ms=60_000 + seq,
        status=200,
        cause=16,
        released_by="caller",
        end_reason="normal",
        verdict="allow",
        rule="default",
        media=["audio"],
    )
    return msgspec.structs.replace(record, **fields)


async def put(client: redis.Redis, records: Sequence[Record]) -> None:
    """Append as the publisher does."""
    for start in range(0, len(records), PAGE):
        async with client.pipeline(transaction=False) as pipe:
            for record in records[start : start + PAGE]:
                head: dict[Any, Any] = {"id": record.id, "v": record.schema, "type": record.type, "node": record.node}
                pipe.xadd(STREAM, {**head, "seq": record.seq, "d": codec.encode(record)})
            await pipe.execute()


class Fleet:
    """Consumers as processes; one that was killed is started again under its name until `close`."""

    def __init__(self, count: int, *arguments: str, log: Path) -> None:
        self.kills = 0
        self.statuses: list[int | None] = []
        self._names = [f"billing-{number}" for number in range(count)]
        self._arguments = arguments
        self._log = log
        self._closing = False
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def run(self, *, dies_at: int, deaths: int) -> None:
        """Each consumer dies `deaths` times, behind every `dies_at`-th insert of a process; returns when all have ended."""
        async with asyncio.TaskGroup() as group:
            for name in self._names:
                group.create_task(self._keep(name, dies_at, deaths))

    async def _keep(self, name: str, dies_at: int, deaths: int) -> None:
        while not self._closing:
            with self._log.open("ab") as output:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", DYING, str(dies_at if deaths else 0), str(EXAMPLE), *self._arguments, name),
                    cwd=ROOT,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            self._running[name] = process
            try:
                status = await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            if status == -signal.SIGKILL:
                self.kills += 1
                deaths -= 1
                continue
            self.statuses.append(status)
            return

    def close(self) -> None:
        self._closing = True
        for process in self._running.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()


async def bill_through_trouble(
    client: redis.Redis,
    url: str,
    database: Postgres,
    *,
    records: int,
    consumers: int = 3,
    outage_s: float = 3.0,
    dies_at: int = 2,
    deaths: int = 2,
) -> BillingReport:
    """Record while consumers work and die, with the database away for `outage_s` from a third of the records on."""
    truth = [make_record(seq) for seq in range(1, records + 1)]
    refused = make_record(records + 1, user_agent="a\0b")  # which PostgreSQL cannot hold
    report = BillingReport(records)
    log = database.directory / "consumers"
    log.touch()
    fleet = Fleet(consumers, url, database.dsn, log=log)
    began = time.monotonic()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(fleet.run(dies_at=dies_at, deaths=deaths))
        third = records // 3
        await put(client, truth[:third])
        await client.xadd(STREAM, {"id": "poison", "d": b"\xc1"})
        await put(client, [refused])
        await _until(client, lambda state: state["lag"] == 0)
        await asyncio.to_thread(database.stop)
        feeding = group.create_task(put(client, truth[third : 2 * third]))
        await asyncio.sleep(outage_s)
        await feeding
        await asyncio.to_thread(database.start)
        await put(client, [msgspec.structs.replace(record, type="interim", seq=0, duration_ms=10) for record in truth[:10]])
        await put(client, truth[2 * third :])
        await _until_killed(client, fleet, consumers * deaths, truth[0])
        state = await _until(client, lambda state: state["lag"] == 0 and state["pending"] == 0)
        report.pending = state["pending"] + (state["lag"] or 0)
        fleet.close()
        await running
    report.seconds = time.monotonic() - began
    report.kills, report.statuses = fleet.kills, fleet.statuses
    report.letters = await _letters(client)
    report.log = log.read_text("utf-8", "replace")[-4000:]
    await asyncio.to_thread(_compare, report, database.dsn, {record.id: record for record in truth})
    return report


async def _until_killed(client: redis.Redis, fleet: Fleet, kills: int, record: Record) -> None:
    """Copies of a call's interim record, which no final one gives way to, until each consumer had something to die behind."""
    deadline = time.monotonic() + SETTLE_S
    while fleet.kills < kills and time.monotonic() < deadline:
        await put(client, [msgspec.structs.replace(record, type="interim", seq=0, duration_ms=10)])
        await asyncio.sleep(0.05)


async def consume_rate(client: redis.Redis, *, records: int, group: str = "rate") -> Rate:
    """Consume what `put` brought with a `write` that costs nothing."""
    seen = 0

    async def write(batch: list[Delivery]) -> None:
        nonlocal seen
        seen += len(batch)

    await put(client, [make_record(seq) for seq in range(1, records + 1)])
    began, cpu = time.monotonic(), time.process_time()
    async with Consumer(client, group=group, stream=STREAM) as consumer:
        await consumer.run(write, follow=False)
    seconds, used = time.monotonic() - began, time.process_time() - cpu
    return Rate(seen, seen / seconds, 1e6 * used / max(1, seen))


async def _until(client: redis.Redis, enough: Any) -> dict[str, Any]:
    """The group's state once `enough` says so of it, or what it is after SETTLE_S."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        found = [group for group in await client.xinfo_groups(STREAM) if group["name"] == GROUP.encode()]
        if (found and enough(found[0])) or time.monotonic() > deadline:
            return found[0] if found else {"pending": 0, "lag": None}
        await asyncio.sleep(0.1)


async def _letters(client: redis.Redis) -> list[dead.Letter]:
    link = Link(client, timeout_s=5)
    try:
        return [letter async for letter in dead.letters(link.call, STREAM)]
    finally:
        await link.drop()


def _compare(report: BillingReport, dsn: str, truth: dict[str, Record]) -> None:
    import psycopg  # noqa: PLC0415  # a development dependency

    with psycopg.connect(dsn) as connection:
        rows = connection.execute("SELECT id, seq, type, billable_ms, record FROM calls").fetchall()
    report.rows = len(rows)
    found = {row[0]: row for row in rows}
    report.missing = sorted(truth.keys() - found.keys())
    report.unexpected = sorted(found.keys() - truth.keys())
    for call, row in found.items():
        record = truth.get(call)
        if record is not None and row[1:] != (record.seq, "final", record.billable_ms, codec.encode(record)):
            report.different.append(call)
