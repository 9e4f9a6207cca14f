"""A node's journal, publisher and billing in one process, which kills itself at a named step; run by a test, a fork at a time.

Each line on standard input is a run: directory, socket and stream, then the step and at which time of passing it to die, or
`-` and 0 to work to the end, with 1 to take up what an earlier run left; last the sink, or `-` for none. The answer is a line
with the wait status. The truth is written to `truth` in the directory as it happens: B before a call's ADMIT, A and E after its
ADMIT and END were taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import sys
import time
from collections import Counter
from pathlib import Path

import redis.asyncio

from cdr import assemble, consumer, publisher, steps
from cdr.consumer import Consumer, Delivery
from cdr.facts import Admit, Answer, End, Record
from cdr.journal import Journal
from cdr.publisher import Publisher

CALLS = 12
TABLE = "CREATE TABLE IF NOT EXISTS cdr (id TEXT PRIMARY KEY, seq INTEGER, type TEXT, reason TEXT)"
UPSERT = """INSERT INTO cdr VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE
SET seq = excluded.seq, type = excluded.type, reason = excluded.reason WHERE cdr.type <> 'final'"""


class Sink:
    """Billing's own database, written before anything is acknowledged."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "billing.db"
        with contextlib.closing(sqlite3.connect(self._path)) as database:
            database.execute(TABLE)

    def write(self, batch: list[Delivery]) -> None:
        with contextlib.closing(sqlite3.connect(self._path)) as database, database:
            rows = [(one.record.id, one.record.seq, one.record.type, one.record.end_reason) for one in batch]
            database.executemany(UPSERT, rows)


def end(journal: Journal, published: Publisher, record: Record) -> None:
    published.ended(record.id)
    fact = End(record)
    journal.append(fact)
    published.appended(fact)


async def place_calls(journal: Journal, published: Publisher, truth: int, run: str) -> None:
    """Some are answered, most end at once, two go on while others come."""
    open_calls: list[Record] = []
    for number in range(CALLS):
        record = Record(id=f"{run}-{number}", node="n1", direction="outgoing", setup_at_ms=1, user_agent="u" * 500)
        os.write(truth, f"B {record.id}\n".encode())
        admit = Admit(record, "boot", time.monotonic_ns() // 1_000_000)
        journal.append(admit)
        os.write(truth, f"A {record.id}\n".encode())
        if number % 3 == 0:
            answer = Answer(record.id, 1, 1, None, 200, "t", "", "", "", [])
            journal.append(answer)
            published.appended(answer)
        open_calls.append(record)
        if number % 3 == 0:
            shown = published.stats.interims
            async with asyncio.timeout(30):
                while number % 6 == 0 and published.stats.interims == shown:  # noqa: ASYNC110  a counter of the code under test
                    await asyncio.sleep(0.005)
        if len(open_calls) > 2 or number == CALLS - 1:
            for done in open_calls[: None if number == CALLS - 1 else 1]:
                done.seq, done.end_reason = journal.last_seq + 1, "normal"
                end(journal, published, done)
                os.write(truth, f"E {done.id} {done.seq}\n".encode())
            del open_calls[:1]


async def unread(client: redis.asyncio.Redis, stream: str) -> int:
    """Entries that billing has not acknowledged."""
    groups = await client.xinfo_groups(stream) if await client.exists(stream) else []
    return sum(int(group["lag"] or 0) + int(group["pending"]) for group in groups)


async def run_node(directory: Path, socket: str, stream: str, sinks: tuple[str, ...], *, work: bool) -> None:
    publisher.LOOK_S = publisher.LINGER_S = 0.01
    consumer.BLOCK_MS = 20
    journal = Journal(directory / "journal", node="n1", segment_bytes=4096, fsync_interval_ms=1)
    found = journal.recover()
    async with redis.asyncio.Redis(unix_socket_path=socket) as client:
        published = Publisher(
            client, journal, stream=stream, node="n1", batch=3, keep=10, sinks=sinks, interim_s=0.03, boot="boot"
        )
        published.take_up(found.unfinished)
        for admit, answer, alive in found.unfinished:
            end(journal, published, assemble.recovered(admit, answer, alive, journal.last_seq + 1))
        reader = Consumer(client, group="billing", stream=stream, name="c", batch=5)
        tasks = [asyncio.create_task(published.run()), asyncio.create_task(reader.run(Sink(directory).write))]
        if work:
            truth = os.open(directory / "truth", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            await place_calls(journal, published, truth, f"{os.getpid()}")
        async with asyncio.timeout(30):
            while journal.confirmed_seq < journal.last_seq:  # noqa: ASYNC110  a counter of the code under test
                await asyncio.sleep(0.005)
            while await unread(client, stream):  # noqa: ASYNC110  the store does not tell
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.03)  # for the segments that are let go to be removed: steps of their own
        reader.stop()
        while pending := [task for task in tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=0.2)
    journal.close()


def child(line: str) -> None:
    directory, socket, stream, step, count, sink = line.split()
    passed: Counter[str] = Counter()

    def hook(name: str) -> None:
        passed[name] += 1
        if name == step and passed[name] == int(count):
            os.kill(os.getpid(), signal.SIGKILL)

    steps.hook = hook
    sinks = () if sink == "-" else (sink,)
    asyncio.run(run_node(Path(directory), socket, stream, sinks, work=step != "-" or count == "0"))
    Path(directory, "steps").write_text("\n".join(f"{name} {number}" for name, number in passed.items()))


def main() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(line)
            os._exit(0)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()
