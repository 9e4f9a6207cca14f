"""Two real nodes on one Valkey: routers are registered at `holder`, the trunk's calls arrive at `owner` (design §6)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from loadtest.agents import next_call
from loadtest.network import Network, many_lines
from loadtest.reconcile import becomes
from loadtest.ua import SDP_TYPE, Call, CallError, sdp_of
from tests.programs import run

if TYPE_CHECKING:
    from cdr.facts import Record
    from loadtest.agents import Router
    from loadtest.node import Node

ROOT = Path(__file__).resolve().parents[2]
BOUND_S = 20.0  # for what takes a second on a machine that has nothing else to do
USER = "u000000"


@dataclass
class Pair:
    network: Network
    owner: Node
    holder: Node
    router: Router

    async def call(self) -> tuple[Call, Call]:
        """A call from the trunk by way of the owner to the router: both ends, answered."""
        call = await self.network.trunk.call(self.network.lines[USER].number, self.owner.address)
        await call.answered(BOUND_S)
        return call, await next_call(self.router)

    async def record(self) -> Record:
        records = await self.network.records(1)
        assert len(records) == 1, records
        assert await self.network.slots(USER, 0) == 0
        return records[0]


async def know_each_other(pair: Pair) -> None:
    for node in (pair.owner, pair.holder):
        await pair.network.followed(node, "sipproxy_nodes", 2)
    await pair.network.followed(pair.owner, "sipproxy_registrations_elsewhere", 1)


@pytest_asyncio.fixture
async def pair(start_network: Callable[..., Awaitable[Any]]) -> AsyncIterator[Pair]:
    network: Network = await start_network(many_lines(2), settings={"store": {"lease_s": 6, "refresh_s": 2}})
    async with network.another_node() as holder:
        router = await network.router(USER, node=holder)
        pair = Pair(network, network.node, holder, router)
        await know_each_other(pair)
        yield pair


async def hold(call: Call) -> int:
    """A re-INVITE with its ACK; its final status."""
    response = await call.request(b"INVITE", [(b"Contact", call.agent.contact), SDP_TYPE], sdp_of(call.agent.host))
    call.agent.send(call.write(b"ACK", cseq=call.cseq), call.next_hop)
    return response.status


async def passed(node: Node, **wanted: int) -> bool:
    """Whether so many requests passed through the node, those that were repeated not counted, as soon as it says so."""

    async def enough() -> bool:
        metrics = await node.metrics()
        counts = [(metrics.get(f'sipproxy_edge_requests_total{{direction="{way}"}}', 0), n) for way, n in wanted.items()]
        return all(count >= n for count, n in counts)

    return await becomes(enough, True, timeout_s=BOUND_S)


async def test_calls_over_two_nodes_with_hold_are_calls_of_the_node_that_got_them(pair: Pair) -> None:
    for hung_up_by in ("caller", "callee"):
        caller, callee = await pair.call()
        assert await pair.network.slots(USER, 1) == 1
        assert [await hold(caller), await hold(callee)] == [200, 200]
        ends = (caller, callee) if hung_up_by == "caller" else (callee, caller)
        assert await ends[0].hang_up() == 200
        await ends[1].wait_ended()
        assert await pair.network.slots(USER, 0) == 0
    other = await pair.network.router("u000001")
    call = await other.call(pair.network.lines[USER].number)
    await call.answered(BOUND_S)
    assert (await next_call(pair.router)).call_id == call.call_id
    assert await call.hang_up() == 200
    records, result = await pair.network.reconciled()
    assert result.ok, result
    told = [(r.node, r.direction, r.end_reason, r.released_by) for r in records]
    assert told == [
        ("node1", "incoming", "normal", "caller"),
        ("node1", "incoming", "normal", "callee"),
        ("node1", "internal", "normal", "caller"),
    ]
    # INVITE, ACK, re-INVITE, ACK, BYE from the caller; re-INVITE, ACK, BYE from the customer
    assert await passed(pair.holder, to_customer=5 + 4 + 3, from_customer=2 + 3)
    await pair.network.followed(pair.holder, "sipproxy_calls_known", 0)
    await _shown(pair)


async def test_holder_killed_makes_the_router_unreachable_and_started_again_reachable(pair: Pair) -> None:
    caller, callee = await pair.call()
    await pair.holder.kill()
    lost = await pair.network.trunk.call(pair.network.lines[USER].number, pair.owner.address)
    with pytest.raises(CallError) as refused:
        await lost.answered(BOUND_S)
    assert refused.value.status == 480
    await pair.holder.start()
    assert await callee.hang_up() == 200  # its route leads through the holder, which knows nothing of the call but its token
    await caller.wait_ended()
    await know_each_other(pair)
    await pair.network.followed(pair.holder, "sipproxy_registrations", 1)
    again, _ = await pair.call()
    assert await again.hang_up() == 200
    records = await pair.network.records(3)
    assert sorted(r.end_reason for r in records) == ["normal", "normal", "unreachable"]
    assert {r.node for r in records} == {"node1"}
    assert await pair.network.slots(USER, 0) == 0


async def test_owner_killed_in_a_call_has_it_back_through_the_holder(pair: Pair) -> None:
    caller, callee = await pair.call()
    await pair.owner.kill()
    await pair.owner.start()
    assert await pair.network.slots(USER, 1, timeout_s=BOUND_S) == 1
    assert await hold(callee) == 200
    assert await callee.hang_up() == 200
    await caller.wait_ended()
    record = await pair.record()
    assert (record.node, record.end_reason, record.released_by) == ("node1", "normal", "callee")


async def test_store_stopped_or_flushed_leaves_known_bindings_in_reach(pair: Pair) -> None:
    pair.network.store.stop()
    try:
        caller, callee = await pair.call()
        assert await callee.hang_up() == 200
        await caller.wait_ended()
        [said] = await _answers(["nodes"], [pair.owner])
        assert said["store"]["state"] != "up"
    finally:
        pair.network.store.resume()
    record = await pair.record()
    assert record.end_reason == "normal"
    await pair.network.store.client.flushall()
    caller, _ = await pair.call()
    assert await caller.hang_up() == 200
    assert await pair.network.bindings(USER, 1, timeout_s=BOUND_S) == 1  # at the holder's next heartbeat
    assert await pair.network.slots(USER, 0) == 0


async def test_router_that_moves_to_the_other_node_is_called_there_until_it_leaves(pair: Pair) -> None:
    pair.router.proxy = pair.owner.address
    assert (await pair.router.register()).status == 200  # with a nonce of the first node: one challenge more
    await pair.network.followed(pair.holder, "sipproxy_registrations_elsewhere", 1)
    await pair.network.followed(pair.holder, "sipproxy_registrations", 0)
    caller, _ = await pair.call()
    assert await caller.hang_up() == 200
    assert not [m for way, to, m in pair.router.wire if way == ">" and to == pair.holder.address and b"INVITE" in m[:40]]
    assert await pair.network.bindings(USER, 1) == 1
    assert (await pair.router.register(expires_s=0)).status == 200
    await pair.network.followed(pair.holder, "sipproxy_registrations_elsewhere", 0)
    assert await pair.network.bindings(USER, 0) == 0


async def _shown(pair: Pair) -> None:
    """What the commands say of both nodes."""
    seen, listed = await _answers(["nodes"], [pair.owner]), await _answers(["registrations"], [pair.owner, pair.holder])
    rows = {row["node"]: row for row in seen[0]["nodes"]}
    assert {name: row["state"] for name, row in rows.items()} == {"node1": "here", "node2": "up"}
    assert rows["node2"]["listen"][0] == "udp {}:{}".format(*pair.holder.address)
    assert rows["node2"]["registrations"] in (0, 1)  # as of its last heartbeat
    assert rows["node1"]["heartbeat_age_ms"] == 0
    assert [[(row["account"], row["node"]) for row in rows] for rows in listed] == [[(USER, "node2"), ("u000001", "node1")]] * 2


async def _answers(command: list[str], nodes: list[Node]) -> list[Any]:
    answers = []
    for node in nodes:
        status, output, faults = await run(
            *(sys.executable, "-m", "sipproxy", *command, "-c", str(node.config), "--json"),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert status == 0, faults
        answers.append(json.loads(output))
    return answers
