"""Readers of a live node's records that die at a named step of theirs (cdr.steps), and what they have in the end.

Each is a process of its own with a group of its own: a consumer that upserts into a table (SQLite), a pull into a file, and a
pull to standard output. It kills itself when it passes the step; later it is run again as usual until nothing is left for it.
Then it has to have each final record that the stream has, once after upsert, and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cdr import codec
from cdr.export import read

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cdr.facts import Record

__all__ = ["AS_USUAL", "KILL_HOOK", "Reader", "readers_at"]

HELD_S = 30.0  # within which a pull gets what another one that was killed had
PAUSE_S = 0.5
OVERDUE = -1  # in place of an exit status
KINDS = ("table", "file", "output")
PASSED_BY = {  # the steps that not every reader passes
    "consumer.written": ("table",),
    "pull.named": ("file",),
    "pull.written": ("output",),
    "pull.given_back": ("file", "output"),
}

# What a program begins with that kills itself when it passes the step `argv[1]` for the `argv[2]`-th time.
KILL_HOOK = """
import os, runpy, signal, sys
from cdr import steps
name, left = sys.argv[1], int(sys.argv[2])
def hook(step):
    global left
    if step == name:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
steps.hook = hook
"""
AS_USUAL = 'sys.argv = ["sipproxy", *sys.argv[3:]]\nrunpy.run_module("sipproxy", run_name="__main__")\n'
PULL = "import cdr.lease\ncdr.lease.LEASE_S, cdr.lease.RENEW_S = 3.0, 0.5\n" + AS_USUAL  # else each death costs 15 s
TABLE = """
import sqlite3
from cdr.consumer import consume
url, group, path = sys.argv[3:]
database = sqlite3.connect(path, check_same_thread=False)
database.execute("CREATE TABLE IF NOT EXISTS cdr (id TEXT PRIMARY KEY, type TEXT, data BLOB)")
UPSERT = '''INSERT INTO cdr VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE
SET type = excluded.type, data = excluded.data WHERE cdr.type <> 'final' '''
def write(batch):
    with database:
        database.executemany(UPSERT, [(one.record.id, one.record.type, one.data) for one in batch])
consume(url, write, group=group, name=group, batch=5, follow=False)
"""


class Reader:
    """One of them, which keeps what it reads in `directory`."""

    def __init__(self, kind: str, step: str, count: int, *, directory: Path, config: Path, url: str) -> None:
        self.name = f"{kind} {step} ({count})"
        self._kind, self._step, self._count = kind, step, count
        self._group = f"{kind}-{step}-{count}"
        self._directory, self._config, self._url = directory / self._group, config, url
        self._directory.mkdir(parents=True)
        self._runs = 0

    async def die(self, timeout_s: float) -> bool:
        """Run it until it dies at its step; whether it did."""
        return await self._run(self._step, self._count if self._kind == "table" else 1, timeout_s) == -9

    async def finish(self, timeout_s: float) -> list[str]:
        """Run it as usual until nothing is left for it; what it said when that did not succeed."""
        until = asyncio.get_running_loop().time() + HELD_S
        while (status := await self._run("-", 0, timeout_s)) != 0:
            if status != 1 or asyncio.get_running_loop().time() > until:
                said = (self._directory / "log").read_text("utf-8", "replace")
                return [f"{self.name}: exit status {status}: {said[-200:]}"]
            await asyncio.sleep(PAUSE_S)  # the lease of the pull that died ends by itself
        return []

    def faults(self, records: Iterable[Record]) -> list[str]:
        """In what it differs from `records`, the final ones of the stream."""
        wanted = {record.id: record for record in records}
        has = {record.id: record for record in self._has() if record.type == "final"}
        wrong = sorted(call for call in wanted.keys() | has.keys() if wanted.get(call) != has.get(call))
        return [f"{self.name}: {call}: {'missing' if call not in has else 'another'}" for call in wrong]

    def _has(self) -> list[Record]:
        if self._kind == "table":
            with contextlib.closing(sqlite3.connect(self._directory / "table")) as database:
                return [codec.decode(data) for (data,) in database.execute("SELECT data FROM cdr")]
        paths = sorted(self._directory.glob("*.jsonl"))
        return [record for path in paths for record in read([path.read_bytes()], "jsonl")]

    async def _run(self, step: str, count: int, timeout_s: float) -> int:
        self._runs += 1
        result = self._directory / f"{self._runs}.jsonl"
        arguments: Sequence[str] = (self._url, self._group, str(self._directory / "table"))
        if self._kind != "table":
            to_file = ("-o", str(result)) if self._kind == "file" else ()
            arguments = ("cdr", "pull", "-c", str(self._config), "--group", self._group, *to_file)
        program = KILL_HOOK + (TABLE if self._kind == "table" else PULL)
        with contextlib.ExitStack() as stack:
            log = stack.enter_context((self._directory / "log").open("ab"))
            output = stack.enter_context(result.open("wb")) if self._kind == "output" else log
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", program, step, str(count), *arguments),
                cwd=Path(__file__).parents[1],
                env=dict(os.environ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=log,
            )
            try:
                return await asyncio.wait_for(process.wait(), timeout_s)
            except TimeoutError:
                return OVERDUE
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


def readers_at(step: str, count: int, *, directory: Path, config: Path, url: str) -> list[Reader]:
    """One of each kind that passes the step, to die at its `count`-th passing; a pull at its first, since it may pass once."""
    return [Reader(kind, step, count, directory=directory, config=config, url=url) for kind in PASSED_BY.get(step, KINDS)]
