"""What happens to calls when their node dies (kill -9). The short form is a test, the long one `python -m loadtest kill`.

Leaves out: the store in trouble, which is in faults.py.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.agents import next_call
from loadtest.reconcile import Reconciliation, compare
from loadtest.ua import SDP_TYPE, CallError, NoAnswerError, sdp_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdr.facts import Record
    from loadtest.agents import Router
    from loadtest.network import Network
    from loadtest.ua import Call

__all__ = ["KillReport", "kill_during_calls"]

LATER_S = 40.0


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
