"""baresip against a real node: register with each digest algorithm, a call with media between two of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from baresip_driver import BaresipParty

from loadtest.network import Network, md5_only
from loadtest.node import LineSpec

pytest.importorskip("baresip", reason="baresip-python is not installed: pip install --pre baresip-python")

CALLER = LineSpec("B2001", "b2001", "secret-b", "+49603255501")
CALLEE = LineSpec("V1001", "v1001", "secret-v", "+492051555101", "velbert", "02051", "velbert")


@pytest_asyncio.fixture
async def network(start_network: Callable[..., Any]) -> Network:
    """The caller's account has hashes of every algorithm, the callee's one of MD5 alone."""
    network: Network = await start_network([CALLER, md5_only(CALLEE)])
    return network


def party(network: Network, line: LineSpec) -> BaresipParty:
    host, port = network.node.address
    return BaresipParty(line.user, line.password, f"{host}:{port}")


@pytest_asyncio.fixture
async def caller(network: Network) -> AsyncIterator[BaresipParty]:
    async with party(network, CALLER) as agent:
        yield agent


@pytest_asyncio.fixture
async def callee(network: Network) -> AsyncIterator[BaresipParty]:
    async with party(network, CALLEE) as agent:
        yield agent


async def test_register_with_sha256_is_accepted(network: Network, caller: BaresipParty) -> None:
    assert (await caller.do("register"))["event"] == "ok", caller.log()
    await caller.traces("algorithm=SHA-256")
    assert await network.bindings("b2001", 1) == 1


async def test_register_with_md5_is_accepted(network: Network, callee: BaresipParty) -> None:
    assert (await callee.do("register"))["event"] == "ok", callee.log()
    assert "SHA-256" not in await callee.traces("algorithm=MD5")
    assert await network.bindings("v1001", 1) == 1


async def test_unregister_removes_the_binding(network: Network, caller: BaresipParty) -> None:
    assert (await caller.do("register"))["event"] == "ok", caller.log()
    assert (await caller.do("unregister"))["event"] == "ok", caller.log()
    assert await network.bindings("b2001", 0) == 0


async def test_register_with_a_wrong_password_fails(network: Network) -> None:
    host, port = network.node.address
    async with BaresipParty(CALLER.user, "not-it", f"{host}:{port}") as agent:
        answer = await agent.do("register")
    assert answer["event"] == "error"
    assert await network.store.client.exists("sp:{acct:b2001}:bindings") == 0


async def dialled(network: Network, caller: BaresipParty, callee: BaresipParty) -> None:
    """Both register, and the caller calls the callee."""
    for agent in (caller, callee):
        assert (await agent.do("register"))["event"] == "ok", agent.log()
    host, port = network.node.address
    answer = await caller.do("dial", uri=f"sip:{CALLEE.number}@{host}:{port}")
    assert answer["event"] == "ok", f"{answer}\n{caller.log()}"


async def test_call_between_two_parties_carries_media_both_ways(
    network: Network, caller: BaresipParty, callee: BaresipParty
) -> None:
    await dialled(network, caller, callee)
    incoming = await callee.expect("incoming")
    assert (await network.slots("b2001", 1), await network.slots("v1001", 1)) == (1, 1)
    await _talk(caller, callee)
    assert (await caller.do("hangup"))["event"] == "ok"
    heard = {agent.user: await agent.expect("closed") for agent in (caller, callee)}
    for user, event in heard.items():
        assert event["rx_packets"] >= 50, f"{user}: {event}"  # a second of 20 ms packets
        assert event["loud"] > 1000, f"{user} heard no tone: {event}"
    records = await network.records(1)
    assert [(r.direction, r.line, r.callee_line, r.status, r.released_by) for r in records] == [
        ("internal", "B2001", "V1001", 200, "caller")
    ]
    assert records[0].call_id == incoming["call_id"]
    assert 1000 <= records[0].billable_ms <= 10_000
    assert records[0].media == ["audio"]
    assert (await network.slots("b2001", 0), await network.slots("v1001", 0)) == (0, 0)


async def test_call_held_and_resumed_by_either_side_stays_one_call(
    network: Network, caller: BaresipParty, callee: BaresipParty
) -> None:
    """A re-INVITE is no other call (invariant 2), and reaches the other side in both directions."""
    await dialled(network, caller, callee)
    for agent in (caller, callee):
        await agent.expect("established")
    for holding, other in ((caller, callee), (callee, caller)):
        for command, seen in (("hold", "held"), ("resume", "resumed")):
            answer = await holding.do(command)
            assert answer["event"] == "ok", f"{answer}\n{holding.log()}"
            await other.expect(seen)
            await holding.acknowledges()
            assert (await network.slots("b2001", 1), await network.slots("v1001", 1)) == (1, 1)
    assert (await callee.do("hangup"))["event"] == "ok"
    for agent in (caller, callee):
        await agent.expect("closed")
    records = await network.records(1)
    assert [(r.direction, r.status, r.released_by, r.media) for r in records] == [("internal", 200, "callee", ["audio"])]
    assert (await network.slots("b2001", 0), await network.slots("v1001", 0)) == (0, 0)


async def test_call_to_the_trunk_is_authenticated_with_sha256(network: Network, caller: BaresipParty) -> None:
    host, port = network.node.address
    answer = await caller.do("dial", uri=f"sip:03023125001@{host}:{port}")
    assert answer["event"] == "ok", f"{answer}\n{caller.log()}"
    assert (await caller.do("hangup"))["event"] == "ok"
    records = await network.records(1)
    assert [(r.direction, r.canonical, r.status, r.trunk) for r in records] == [("outgoing", "+493023125001", 200, "carrier")]


async def test_blocked_call_fails_with_403(network: Network, caller: BaresipParty) -> None:
    host, port = network.node.address
    answer = await caller.do("dial", uri=f"sip:09001234567@{host}:{port}")
    assert (answer["event"], answer["status"]) == ("error", 403), f"{answer}\n{caller.log()}"


async def _talk(*parties: BaresipParty) -> None:
    """Return once both have had media for a second and more; the counters are compared after the call."""
    import asyncio

    for agent in parties:
        await agent.expect("established")
    await asyncio.sleep(1.6)
