"""A worker that dies at random moments loses only what a node's death loses; the other one goes on as if nothing were."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from loadtest.cut_calls import Away, CutCall
from loadtest.network import many_lines
from loadtest.reconcile import TOLERANCE_MS, compare
from loadtest.ua import CallError, NoAnswerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cdr.facts import Record
    from loadtest.agents import Router
    from loadtest.network import Network

FIXED = "03023125001"
LINES = many_lines(8, channels=20)  # a call that nobody ends any more keeps its channel for a while
DEATHS = 3
ANSWER_S = 60.0
SETTINGS = {"store": {"lease_s": 15, "refresh_s": 5}, "calls": {"probe_s": 5}}


class Callers:
    """Who call all the time, and what went wrong with their calls."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.over = asyncio.Event()
        self.helped = 0
        self.broken: list[str] = []
        self.left_alone: list[str] = []  # of those who called for help

    async def go_on(self, router: Router) -> None:
        while not self.over.is_set():
            for_help = self.rng.random() < 0.2
            call = await router.call("112" if for_help else FIXED)
            try:
                await call.answered(ANSWER_S)
                self.helped += for_help
                await asyncio.sleep(self.rng.uniform(0, 0.5))
                await call.hang_up()
            except (CallError, NoAnswerError):
                self.broken.append(call.call_id)
                if for_help and call.truth.answered_at is None:
                    self.left_alone.append(call.call_id)


async def died(network: Network, number: int) -> Away:
    """Kill the second worker, and wait until it is back for the so-many-th time."""
    away = Away(time.monotonic())
    os.kill(network.node.worker_pids()[2], signal.SIGKILL)
    await network.followed(network.node, "sipproxy_worker_restarts_total", float(number), timeout_s=60)
    await network.followed(network.node, "sipproxy_worker_up", 2.0, timeout_s=60)
    away.until = time.monotonic()
    return away


async def test_worker_that_dies_at_random_moments_loses_what_a_node_does_and_the_other_nothing(
    start_network: Callable[..., Any],
) -> None:
    """Design: invariants 1 to 4."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    network: Network = await start_network(LINES, workers=2, settings=SETTINGS)
    routers = [await network.router(line.user) for line in LINES]
    callers, times = Callers(seed), []
    async with asyncio.TaskGroup() as group:
        for router in routers:
            group.create_task(callers.go_on(router))
        for number in range(1, DEATHS + 1):
            await asyncio.sleep(callers.rng.uniform(0.1, 0.8))
            times.append(await died(network, number))
        callers.over.set()
    assert (callers.left_alone, callers.helped > 0) == ([], True)
    placed, over_at = network.ledger.placed(), time.monotonic()
    assert await network.slots_of_all(0, timeout_s=60) == 0

    def all_there(records: list[Record]) -> bool:
        return {truth.call_id for truth in placed.values() if truth.answered_at is not None} <= {one.call_id for one in records}

    records = await network.records_when(all_there, timeout_s=60)
    by_call, by_node = defaultdict[str, list[Any]](list), defaultdict[str, list[int]](list)
    for record in records:
        by_call[record.call_id].append(record)
        by_node[record.node].append(record.seq)
    assert by_call.keys() <= placed.keys()
    assert {node: sorted(numbers) for node, numbers in by_node.items()} == {
        node: list(range(1, len(numbers) + 1)) for node, numbers in by_node.items()
    }
    untouched = {call for call, found in by_call.items() if {one.node for one in found} == {"node1"}} - set(callers.broken)
    assert untouched
    result = compare(
        {call: placed[call] for call in untouched}, [one for call in untouched for one in by_call[call]], tolerance_ms=5000
    )
    assert (result.missing, result.repeated, result.different) == ([], [], [])
    faults = []
    for call in placed.keys() - untouched:
        truth = placed[call]
        cut = [away for away in times if away.touches(truth.started_at, truth.ended_at or over_at)]
        found = CutCall(truth, over_at, truth.answered_at is not None, TOLERANCE_MS + 5000.0, cut, by_call[call])
        faults += found.faults()
    assert not faults
