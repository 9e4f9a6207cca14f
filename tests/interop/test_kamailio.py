"""Kamailio as the carrier behind the trunk: it relays calls from the node to a subscriber, and a subscriber's to the node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from loadtest.agents import Answering, next_call
from loadtest.kamailio import Kamailio
from loadtest.net import free_udp_port
from loadtest.node import LineSpec, TrunkSpec
from loadtest.reconcile import compare
from loadtest.sipp_runner import SippRun, run_sipp, start_sipp

if TYPE_CHECKING:
    from loadtest.network import Network

pytestmark = [pytest.mark.program("kamailio"), pytest.mark.program("sipp")]

HOST = "127.0.0.4"
LINE = LineSpec("B2001", "b2001", "secret-b", "+49603255501")
FIXED = "03023125001"


@pytest_asyncio.fixture
async def subscriber() -> AsyncIterator[SippRun]:
    """Who is behind the carrier and answers."""
    run = await start_sipp("answer", calls=None)
    yield run
    if run.process.returncode is None:
        await run.stop()


@pytest_asyncio.fixture
async def network(start_network: Callable[..., Any], subscriber: SippRun) -> AsyncIterator[Network]:
    port = free_udp_port(HOST)
    network: Network = await start_network([LINE], trunks=[TrunkSpec("carrier", (HOST, port), (HOST,))])
    carrier = Kamailio(proxy=network.node.address, subscriber=(subscriber.host, subscriber.port), host=HOST, port=port)
    async with carrier:
        yield network
        log = carrier.log()
    print(log)
    assert "insane" not in log
    assert "no route" not in log


def carrier_port(network: Network) -> int:
    return network.trunks[0].address[1]


async def test_call_through_the_carrier_is_answered_and_ended_by_the_caller(network: Network, subscriber: SippRun) -> None:
    router = await network.router("b2001")
    for _ in range(3):
        call = await router.call(FIXED)
        await call.answered()
        assert await call.hang_up() == 200
    records, result = await network.reconciled()
    assert result.ok, result
    assert [r.trunk for r in records] == ["carrier"] * 3
    (await subscriber.stop(successful=3)).check(3)
    assert await network.slots("b2001", 0) == 0


async def test_call_from_the_carrier_rings_and_is_answered_by_the_router(network: Network) -> None:
    router = await network.router("b2001")
    router.answering = Answering(ring_s=0.2)
    keys = {"dialled": LINE.number, "caller": "+492214710004"}
    result = (await run_sipp("trunk_call", target=(HOST, carrier_port(network)), calls=2, rate=2, keys=keys)).check(2)
    records = await network.records(2)
    assert compare(result.call_ids, records).ok
    assert {(r.direction, r.line, r.status) for r in records} == {("incoming", "B2001", 200)}
    assert all(r.ringing_at_ms is not None for r in records)


async def test_call_from_the_carrier_ended_by_the_router_reaches_the_caller(network: Network) -> None:
    """The router's BYE passes the node and the carrier on the recorded route."""
    router = await network.router("b2001")
    call = await network.trunk.call(LINE.number, (HOST, carrier_port(network)))
    await call.answered()
    at_router = await next_call(router)
    assert await at_router.hang_up() == 200
    await call.wait_ended()
    assert call.truth.released_by == "callee"
    _, result = await network.reconciled()
    assert result.ok, result
