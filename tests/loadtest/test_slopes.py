"""Slopes and troubles of a long run, and the CPU time of processes with their children."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys

import pytest

from loadtest import usage
from loadtest.soak import KINDS, kinds_of, slope_per_hour
from loadtest.usage import CpuMeter, descriptors_of, tree_cpu_seconds, tree_memory_bytes, tree_of

BUSY = """
import os, time
os.fork()
while time.process_time() < 0.3:
    pass
print("done", flush=True)
time.sleep(100)
"""


def test_slope_of_a_straight_line_is_its_growth_in_an_hour_whatever_is_missing() -> None:
    points = [(float(second), 7.0 + 0.5 * second) for second in range(100)]
    points[10] = (10.0, math.nan)
    assert slope_per_hour(points) == pytest.approx(1800)
    assert slope_per_hour([(at, -value) for at, value in points]) == pytest.approx(-1800)


def test_node_of_one_process_dies_where_that_is_asked_for_and_not_as_one_of_several_workers() -> None:
    assert [kind for kind in KINDS if kind not in kinds_of(1, [])] == ["worker killed"]
    assert kinds_of(2, []) == list(KINDS)
    assert [kind for kind in KINDS if kind not in kinds_of(2, ["node killed"])] == ["node killed"]
    assert kinds_of(1, KINDS) == []


def test_slope_of_what_goes_up_and_comes_back_is_none() -> None:
    assert slope_per_hour([(float(at), abs(50.0 - at)) for at in range(101)]) == pytest.approx(0)
    assert slope_per_hour([(1.0, 5.0)]) == 0


def test_slope_over_several_lives_leaves_out_the_step_between_them() -> None:
    first = [(float(second), 1000.0 + second) for second in range(50)]
    second = [(float(second), 10.0 + second) for second in range(60, 200)]
    assert slope_per_hour(first, second) == pytest.approx(3600)
    assert slope_per_hour(first + second) < 0


def test_processes_of_others_are_not_looked_at_to_find_the_children_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be hundreds of them, and a generator of calls has no time for that."""
    looked_at: list[str] = []
    names = usage._names

    def note(folder: str) -> list[str]:
        looked_at.append(folder)
        return names(folder)

    monkeypatch.setattr(usage, "_names", note)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in tree_of(os.getpid())
        tree = looked_at[:]
        child.communicate(b"\n")
    assert tree[0] == f"/proc/{os.getpid()}/task"
    assert f"/proc/{os.getppid()}/task" not in tree
    assert f"/proc/{child.pid}/task" in tree


async def test_usage_of_a_process_counts_its_children_and_outlives_its_end() -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", BUSY, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    for _ in range(2):
        assert await process.stdout.readline() == b"done\n"
    meter = CpuMeter(lambda: process.pid)
    assert len(tree_of(process.pid)) == 2
    assert meter.used() == tree_cpu_seconds(process.pid) >= 0.5  # 0.3 s each, in ticks of 10 ms
    assert tree_memory_bytes(process.pid) > 1_000_000
    assert descriptors_of(process.pid) >= 4
    used = meter.used()
    os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    assert meter.used() >= used
    assert tree_cpu_seconds(process.pid) == 0
    assert tree_of(os.getpid())[0] == os.getpid()
