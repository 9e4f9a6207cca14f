"""What happens to calls when something dies: the node (kill -9) or the store (SIGSTOP). Each returns a report to judge.

The short forms are tests, the long ones `python -m loadtest kill` and `stall`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.generate import Load, Outcome, percentile, place_calls
from loadtest.reconcile import Reconciliation, compare
from loadtest.ua import CallError, NoAnswerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdr.facts import Record
    from loadtest.agents import Router
    from loadtest.network import Network

__all__ = ["KillReport", "StallReport", "kill_during_calls", "stall_store"]

EMERGENCY_EVERY_S = 0.25
LATER_S = 15.0


@dataclass(slots=True)
class KillReport:
    """The node was killed while `live` calls were answered and started again."""

    live: int
    bindings_before: int
    bindings_after: int
    slots_at_kill: int
    slots_left: int
    slots_gone_s: float  # after the restart
    restart_s: float  # until OPTIONS was answered
    reached: int  # how many routers an incoming call reached without another REGISTER
    records: list[Record] = field(repr=False)
    result: Reconciliation

    @property
    def interrupted(self) -> list[Record]:
        return [record for record in self.records if record.end_reason == "node_restart"]


@dataclass(slots=True)
class StallReport:
    """The store stood still for `stopped_s` seconds under load."""

    stopped_s: float
    calls: Outcome
    during: int  # calls placed while it stood still
    emergency_before_ms: list[float]
    emergency_during_ms: list[float]
    emergency_failures: list[str]
    slots_left: int
    result: Reconciliation

    def emergency(self, share: float) -> tuple[float, float]:
        """Set-up delays (ms) of emergency calls before and during the standstill that `share` of them do not exceed."""
        return percentile(self.emergency_before_ms, share), percentile(self.emergency_during_ms, share)


async def count_bindings(network: Network, users: Sequence[str]) -> int:
    """How many bindings these accounts have in the store."""
    client = network.store.client
    return sum([int(await client.hlen(f"sp:{{acct:{user}}}:bindings")) for user in users])


async def kill_during_calls(network: Network, routers: Sequence[Router], calls: int, *, lease_s: float) -> KillReport:
    """Answer `calls` calls, kill the node with SIGKILL, start it again, and wait for slots and records."""
    users = [router.user for router in routers]
    live = [await (await routers[n % len(routers)].call("03023125001")).answered() for n in range(calls)]
    slots = await network.slots_of_all(calls)
    before = await count_bindings(network, users)
    await network.node.kill()
    began = time.monotonic()
    await network.node.start()
    restart_s = time.monotonic() - began
    left = await network.slots_of_all(0, timeout_s=lease_s + 2)
    gone_s = time.monotonic() - began
    after = await count_bindings(network, users)
    records = await network.records(len(live), timeout_s=LATER_S)
    result = compare(network.ledger.placed(), records)
    reached = 0
    for router in routers[:5]:
        call = await network.trunk.call(network.lines[router.user].number, network.node.address)
        try:
            await call.answered(5)
        except (CallError, NoAnswerError):
            continue
        reached += 1
        await call.hang_up()
    return KillReport(len(live), before, after, slots, left, gone_s, restart_s, reached, records, result)


async def stall_store(network: Network, routers: Sequence[Router], load: Load, *, after_s: float, stop_s: float) -> StallReport:
    """Place `load` and freeze the store `after_s` seconds after its begin for `stop_s` seconds; emergency calls go on."""
    before: list[float] = []
    during: list[float] = []
    failures: list[str] = []
    frozen = asyncio.Event()
    done = asyncio.Event()
    caller = routers[0]

    async def emergencies() -> None:
        while not done.is_set():
            into = during if frozen.is_set() else before
            await asyncio.sleep(EMERGENCY_EVERY_S)
            if into is not (during if frozen.is_set() else before):
                continue  # the standstill began or ended meanwhile
            try:
                call = await (await caller.call("112")).answered(10)
                into.append(call.truth.setup_ms or 0.0)
                await call.hang_up()
            except (CallError, NoAnswerError) as error:
                failures.append(str(error))

    async def standstill() -> int:
        await asyncio.sleep(after_s)
        first = len(network.ledger.placed())
        network.store.stop()
        frozen.set()
        try:
            await asyncio.sleep(stop_s)
        finally:
            network.store.resume()
            frozen.clear()
        return len(network.ledger.placed()) - first

    async with asyncio.TaskGroup() as group:
        helper = group.create_task(emergencies())
        stopping = group.create_task(standstill())
        outcome = await place_calls(routers[1:], load)
        await stopping
        done.set()
        await helper
    left = await network.slots_of_all(0, timeout_s=LATER_S)
    _, result = await network.reconciled(timeout_s=LATER_S)
    return StallReport(stop_s, outcome, stopping.result(), before, during, failures, left, result)
