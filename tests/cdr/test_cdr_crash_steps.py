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
TIMES = int(os.environ.get("CDR_CRASH_TIMES", "2"))  # the first so many times that a step is passed; `make crashes` takes all
PASSED = re.compile(r'steps\.at\("((?:journal|publisher|consumer)\.[a-z_]+)"')
NAMES = {name for path in (ROOT / "cdr").glob("*.py") for name in PASSED.findall(path.read_text())}
ELSEWHERE = {"publisher.confirmed"}  # passed where there are no sinks: confirmed is what is published


class Zygote:
    """The program with everything imported, which forks for each run."""

    def __init__(self, valkey: Valkey, directory: Path) -> None:
        self._valkey, self.directory = valkey, directory
        command = [sys.executable, str(Path(__file__).with_name("crash_program.py"))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}
        )

    def run(self, name: str, step: str, count: int) -> int:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{directory} {self._valkey.socket} sp:{name} {step} {count}\n")
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


def test_crash_at_every_step_loses_nothing_and_doubles_nothing(valkey: Valkey, tmp_path: Path) -> None:
    zygote = Zygote(valkey, tmp_path)
    try:
        assert zygote.run("whole", "-", 0) == 0
        compare(tmp_path / "whole")
        lines = [line.split() for line in (tmp_path / "whole" / "steps").read_text().splitlines()]
        passed = {name: int(count) for name, count in lines}
        assert set(passed) == NAMES - ELSEWHERE
        died = set()
        for step, count in passed.items():
            for number in range(1, min(count, TIMES) + 1):
                name = f"{step}-{number}"
                status = zygote.run(name, step, number)
                if os.WIFSIGNALED(status):
                    assert os.WTERMSIG(status) == signal.SIGKILL, (name, status)
                    died.add(step)
                assert zygote.run(name, "-", 1) == 0, name
                assert zygote.run(name, "-", 0) == 0, name  # and calls go on
                compare(tmp_path / name)
        assert died == NAMES - ELSEWHERE
    finally:
        zygote.close()
