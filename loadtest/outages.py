"""What happens to calls when something dies: the node (kill -9) or the store (SIGSTOP). Each returns a report to judge.

The short forms are tests, the long ones `python -m loadtest kill` and `stall`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.agents import next_call
from loadtest.generate import Load, Outcome, percentile, place_calls
from loadtest.reconcile import Reconciliation, compare
from loadtest.ua import SDP_TYPE, CallError, NoAnswerError, sdp_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdr.facts import Record
    from loadtest.agents import Router
    from loadtest.network import Network
    from loadtest.ua import Call

__all__ = ["KillReport", "StallReport", "kill_during_calls", "stall_store"]

EMERGENCY_EVERY_S = 0.25
LATER_S = 15.0


@dataclass(slots=True)
class KillReport:
    """The node was killed while `live` calls were answered and started again `away_s` later; `left` hung up meanwhile."""

    live: int
    left: int
    away_s: float
    bindings_before: int
    bindings_after: int
    slots_at_kill: int
    slots_right: int  # after the restart: as many as calls live on
    slots_right_s: float  # after the restart was begun
    slots_left: int  # when all calls have ended
    restart_s: float  # until OPTIONS was answered
    broken: list[str]  # what did not work in a dialog that lived on
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


async def kill_during_calls(network: Network, routers: Sequence[Router], calls: int, *, away_s: float) -> KillReport:
    """Answer `calls` calls, kill the node with SIGKILL, have every second call hung up, start the node again `away_s` seconds
    after the kill, then use and end the others. Every fourth BYE comes from the callee."""
    users = [router.user for router in routers]
    live = [await (await routers[n % len(routers)].call("03023125001")).answered() for n in range(calls)]
    callees = {call.call_id: call for call in [await next_call(network.trunk) for _ in live]}
    slots = await network.slots_of_all(calls)
    before = await count_bindings(network, users)
    await network.node.kill()
    leaving = [call if n % 4 else callees[call.call_id] for n, call in enumerate(live) if n % 2]
    byes = [asyncio.ensure_future(call.hang_up()) for call in leaving]
    await asyncio.sleep(away_s)
    began = time.monotonic()
    await network.node.start()
    restart_s = time.monotonic() - began
    staying = [call for n, call in enumerate(live) if not n % 2]
    right = await network.slots_of_all(len(staying), timeout_s=LATER_S)
    right_s = time.monotonic() - began
    statuses = await asyncio.gather(*byes, return_exceptions=True)
    broken = [f"BYE of the node's absence: {status}" for status in statuses if status != 200]
    for number, call in enumerate(staying):
        broken += await _use_and_end(call if number % 2 else callees[call.call_id])
    left = await network.slots_of_all(0, timeout_s=LATER_S)
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
    return KillReport(
        live=len(live),
        left=len(leaving),
        away_s=away_s,
        bindings_before=before,
        bindings_after=after,
        slots_at_kill=slots,
        slots_right=right,
        slots_right_s=right_s,
        slots_left=left,
        restart_s=restart_s,
        broken=broken,
        reached=reached,
        records=records,
        result=result,
    )


async def _use_and_end(call: Call) -> list[str]:
    """Hold the call with a re-INVITE, and hang up; what did not work."""
    try:
        held = await call.request(b"INVITE", [SDP_TYPE], sdp_of(call.agent.host))
        call.agent.send(call.write(b"ACK", cseq=call.cseq), call.next_hop)
        status = await call.hang_up()
    except NoAnswerError as error:
        return [str(error)]
    return [] if held.status == status == 200 else [f"{call.call_id}: re-INVITE {held.status}, BYE {status}"]


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
