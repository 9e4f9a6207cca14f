"""The process dies at every step of journal, publisher and consumer: lost 0, double 0 after upsert (invariant 3)."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valkey_process import Valkey

ROOT = Path(__file__).resolve().parents[2]
TIMES = int(
    os.environ.get("CDR_CRASH_TIMES", "1")
)  # the first so many times that a step is passed; `make crashes` takes all, and goes on afterwards
PASSED = re.compile(r'steps\.at\("((?:journal|publisher|consumer)\.[a-z_]+)"')
NAMES = {name for path in (ROOT / "cdr").glob("*.py") for name in PASSED.findall(path.read_text())}
CONFIRMED = {"publisher.confirmed"}  # passed where there are no sinks: confirmed is what is published
ACKNOWLEDGED = {"publisher.acknowledged"}  # passed where there are


class Zygote:
    """The program with everything imported, which forks for each run."""

    def __init__(self, valkey: Valkey, directory: Path) -> None:
        self._valkey, self.directory = valkey, directory
        command = [sys.executable, str(Path(__file__).with_name("crash_program.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
        )

    def run(self, name: str, step: str, count: int, *, sink: str) -> int:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{directory} {self._valkey.socket} sp:{name} {step} {count} {sink}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate(timeout=60)


def compare(directory: Path) -> None:
    """Billing's table against the truth."""
    said = [line.split() for line in (directory / "truth").read_text().splitlines()]
    begun = {words[1] for words in said if words[0] == "B"}
    admitted = {words[1] for words in said if words[0] == "A"}
    over = {words[1]: int(words[2]) for words in said if words[0] == "E"}
    database = sqlite3.connect(directory / "billing.db")
    rows = {row[0]: row[1:] for row in database.execute("SELECT id, seq, type, reason FROM cdr")}
    database.close()
    finals = {call: row for call, row in rows.items() if row[1] == "final"}
    assert admitted <= set(finals) <= begun
    assert set(rows) == set(finals)
    assert sorted(row[0] for row in finals.values()) == list(range(1, len(finals) + 1))
    assert {call: finals[call][0] for call in over} == over
    assert {finals[call][2] for call in over} <= {"normal"}


def crash_at(zygote: Zygote, kind: str, sink: str, only: set[str]) -> tuple[set[str], set[str]]:
    """The steps that a run with this sink passes, and those of `only` (none: all) at which one died."""
    assert zygote.run(kind, "-", 0, sink=sink) == 0
    compare(zygote.directory / kind)
    lines = [line.split() for line in (zygote.directory / kind / "steps").read_text().splitlines()]
    passed, died = {name: int(count) for name, count in lines}, set()
    for step, count in passed.items():
        for number in range(1, min(count, TIMES) + 1 if not only or step in only else 0):
            name = f"{kind}-{step}-{number}"
            status = zygote.run(name, step, number, sink=sink)
            if os.WIFSIGNALED(status):
                assert os.WTERMSIG(status) == signal.SIGKILL, (name, status)
                died.add(step)
            if TIMES > 1:
                assert zygote.run(name, "-", 1, sink=sink) == 0, name
            assert zygote.run(name, "-", 0, sink=sink) == 0, name  # and calls go on
            compare(zygote.directory / name)
    return set(passed), died


def test_crash_at_every_step_loses_nothing_and_doubles_nothing(valkey: Valkey, tmp_path: Path) -> None:
    zygote = Zygote(valkey, tmp_path)
    try:
        assert crash_at(zygote, "sink", "billing", set()) == (NAMES - CONFIRMED, NAMES - CONFIRMED)
        passed, died = crash_at(zygote, "none", "-", CONFIRMED)
        assert (passed, died) == (NAMES - ACKNOWLEDGED, CONFIRMED)
    finally:
        zygote.close()
