"""A node of several processes on one address: whichever of them the kernel gives a message to, it reaches its owner."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from loadtest.agents import Answering, Trunk, next_call
from loadtest.net import free_udp_port
from loadtest.network import TRUNK_HOST, many_lines
from loadtest.node import TrunkSpec
from loadtest.reconcile import becomes
from loadtest.truth import Ledger
from loadtest.ua import SDP_TYPE, sdp_of
from sipproxy.admin.control import ControlError, ask, socket_path

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.agents import Router
    from loadtest.network import Network
    from loadtest.node import LineSpec
    from loadtest.ua import Call

FIXED = "03023125001"
IPV6 = pytest.param(True, id="ipv6", marks=pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6"))
LINES = many_lines(8, channels=20)  # so that a worker without a call gets one, see `both_ends`


async def started(start_network: Callable[..., Any], **options: Any) -> Network:
    network: Network = await start_network(LINES, workers=2, **options)
    return network


async def asked(network: Network, command: str, **arguments: Any) -> dict[str, Any]:
    return await asyncio.to_thread(ask, socket_path(network.node.directory / "data"), command, **arguments)


async def refreshed(call: Call) -> int:
    """The status of a re-INVITE of its caller, acknowledged."""
    router = call.agent
    client = router.begin(call.write(b"INVITE", [SDP_TYPE], sdp_of(router.host)), call.next_hop)
    async with asyncio.timeout(30):
        while (response := await client.responses.get()).status < 200:
            pass
    router.send(call.write(b"ACK", cseq=call.cseq), call.next_hop)
    return response.status


async def both_ends(network: Network, routers: list[Router]) -> list[tuple[Call, Call]]:
    """An answered call of each router to the trunk, as each end has it, and more until every worker has one: whose a call is
    goes by its Call-ID, so that of eight all may be one worker's."""
    found = []
    for number, router in zip(range(15 * len(routers)), itertools.cycle(routers)):
        if number >= len(routers) and await owners(network) == set(network.node.worker_pids()):
            break
        call = await (await router.call(FIXED)).answered()
        found.append((call, await next_call(network.trunk)))
    return found


async def owners(network: Network) -> set[int]:
    """The workers that have calls."""
    return {row["worker"] for row in (await asked(network, "calls"))["calls"]}


@pytest.mark.parametrize("ipv6", [False, IPV6])
async def test_calls_in_all_directions_reach_their_owner_by_whichever_worker(
    ipv6: bool, start_network: Callable[..., Any]
) -> None:
    """Trunk and routers have one port each, and yet their messages go to both: the kernel knows whose each one is, and nothing
    is passed on."""
    # Without pings: one goes from each worker, and its answer by its Call-ID.
    network = await started(start_network, route={"ping_s": 0}, ipv6=ipv6)
    routers = [await network.router(line.user, ipv6=ipv6) for line in LINES]
    outgoing = await both_ends(network, routers)
    assert {await refreshed(call) for call, _ in outgoing} == {200}
    assert await owners(network) == {1, 2}
    for number, (call, at_trunk) in enumerate(outgoing):
        assert await (at_trunk if number % 2 else call).hang_up() == 200
        await (call if number % 2 else at_trunk).wait_ended()
    for line, router in zip(LINES, routers, strict=True):
        call = await (await network.trunk.call(line.number, network.node.address)).answered()
        await next_call(router)
        assert await call.hang_up() == 200
    network.trunk.answering = Answering(status=None)
    for router in routers:
        call = await router.call(FIXED)
        await next_call(network.trunk)
        call.cancel()
        assert await call.final() == 487
    records, result = await network.reconciled()
    assert result.ok, result
    assert {record.node for record in records} == {"node1", "node1-2"}
    metrics = await network.node.metrics()
    assert {metrics[f'sipproxy_worker_passed_total{{what="{what}"}}'] for what in ("responses", "requests", "lost")} == {0}
    assert await network.slots_of_all(0) == 0


@pytest.mark.parametrize("over", ["tcp", "tls", pytest.param("ipv6", marks=IPV6.marks)])
async def test_customers_on_connections_are_reached_by_whichever_worker_has_the_call(
    over: str, start_network: Callable[..., Any], tmp_path: Path
) -> None:
    """A connection belongs to who accepted it; calls come to all workers, and so do requests within them."""
    authority = trustme.CA()
    certificate = tmp_path / "node.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    network = await started(start_network, certificate=certificate, ipv6=over == "ipv6")
    how = {"tls": context} if over == "tls" else {"tcp": True, "ipv6": over == "ipv6"}
    routers = [await network.router(line.user, **how) for line in LINES]
    for line, router in zip(LINES, routers, strict=True):
        call = await (await network.trunk.call(line.number, network.node.address)).answered()
        at_router = await next_call(router)
        assert await at_router.hang_up() == 200
        await call.wait_ended()
    outgoing = await both_ends(network, routers)
    assert {await refreshed(call) for call, _ in outgoing} == {200}
    for call, at_trunk in outgoing:
        assert await at_trunk.hang_up() == 200
        await call.wait_ended()
    _, result = await network.reconciled()
    assert result.ok, result
    metrics = await network.node.metrics()
    assert min(metrics[f'sipproxy_worker_passed_total{{what="{what}"}}'] for what in ("sends", "requests", "responses")) > 0
    assert metrics['sipproxy_worker_passed_total{what="lost"}'] == 0


async def test_worker_that_hangs_is_ended_and_its_callers_are_served_meanwhile(start_network: Callable[..., Any]) -> None:
    """Stopped, it is no longer heard of; who has its sockets then answers what waited there."""
    network = await started(start_network)
    pids = network.node.worker_pids()
    routers = [await network.router(line.user) for line in LINES]
    os.kill(pids[2], signal.SIGSTOP)
    calls = await asyncio.gather(*(router.call("112") for router in routers))
    for call in calls:
        await call.answered(30.0)
    await network.followed(network.node, "sipproxy_worker_restarts_total", 1.0, timeout_s=60.0)
    await network.followed(network.node, "sipproxy_worker_up", 2.0, timeout_s=60.0)
    assert network.node.worker_pids()[1] == pids[1]
    assert network.node.worker_pids()[2] != pids[2]
    for call in calls:
        assert await call.hang_up() == 200


async def test_wrong_passwords_count_whichever_worker_they_come_to(start_network: Callable[..., Any]) -> None:
    """Each router has a port of its own, by which the kernel spreads them; each of them guesses twice."""
    network = await started(start_network, settings={"limits": {"guesses_pair": 6}})
    network.lines["u000001"] = replace(network.lines["u000001"], password="no")
    for _ in range(12):
        router = await network.router("u000001", register=False)
        assert (await router.register()).status == 401
    metrics = await network.node.metrics()
    looked_at = 24 - metrics['sipproxy_guesses_limited_total{budget="pair"}']
    assert 6 <= looked_at < 12  # some may have been on their way; each worker for itself would look at twelve


async def test_route_that_icmp_says_is_gone_fails_at_once_whichever_worker_hears_it(start_network: Callable[..., Any]) -> None:
    """RFC 3261 §18.4. The kernel tells one socket of the address, mostly not that of the worker that sent."""
    gone = TrunkSpec("gone", (TRUNK_HOST, free_udp_port(TRUNK_HOST)), settings={"ping_s": 0})
    carrier = Trunk("carrier", Ledger(), host=TRUNK_HOST)
    await carrier.open()
    try:
        trunks = [gone, TrunkSpec("carrier", (carrier.host, carrier.port), priority=1, settings={"ping_s": 0})]
        network = await started(start_network, trunks=trunks, settings={"calls": {"route_s": 60}})
        routers = [await network.router(line.user) for line in LINES]
        calls = [await router.call(FIXED) for _ in range(3) for router in routers]
        for call in calls:
            await call.answered()
            assert await call.hang_up() == 200
        records, _ = await network.reconciled()
        assert {record.node for record in records} == {"node1", "node1-2"}
    finally:
        carrier.close()


async def is_called(network: Network, line: LineSpec, router: Router) -> None:
    """A call from the trunk reaches this router of the line, and ends."""
    call = await (await network.trunk.call(line.number, network.node.address)).answered()
    await next_call(router)
    assert await call.hang_up() == 200


async def test_registration_is_known_to_all_workers_also_while_the_store_is_away(start_network: Callable[..., Any]) -> None:
    """Design: invariant 5. Who registers at one worker is called by whichever has the call, store or not."""
    network = await started(start_network)
    network.store.stop()
    try:
        for line in LINES:
            router = await network.router(line.user)
            for _ in range(3):
                await is_called(network, line, router)
    finally:
        network.store.resume()
    records, result = await network.reconciled()
    assert result.ok, result
    assert {record.node for record in records} == {"node1", "node1-2"}


async def test_worker_that_comes_back_while_the_store_is_away_knows_all_registrations(
    start_network: Callable[..., Any],
) -> None:
    """Design: invariant 5. The others know them still, also those that were made at the one that died."""
    network = await started(start_network)
    routers = [await network.router(line.user) for line in LINES]
    for line in LINES:
        assert await network.bindings(line.user, 1) == 1
    network.store.stop()
    try:
        os.kill(network.node.worker_pids()[2], signal.SIGKILL)
        await network.followed(network.node, "sipproxy_worker_restarts_total", 1.0, timeout_s=60)
        await network.followed(network.node, "sipproxy_worker_up", 2.0, timeout_s=60)

        async def known() -> int:
            own = network.node.directory / "data" / "worker-2" / "worker.sock"
            return len((await asyncio.to_thread(ask, own, "registrations"))["registrations"])

        assert await becomes(known, len(LINES)) == len(LINES)
        for _ in range(3):
            for line, router in zip(LINES, routers, strict=True):
                await is_called(network, line, router)
    finally:
        network.store.resume()
    records, result = await network.reconciled()
    assert result.ok, result
    assert {record.node for record in records} == {"node1", "node1-2"}


async def test_calls_and_records_of_workers_that_there_are_no_more_come_to_their_end(start_network: Callable[..., Any]) -> None:
    """Design: invariants 2, 3. Three workers die with the node; one is wanted, and of those that leave one dies once more."""
    network: Network = await start_network(many_lines(12, channels=20), workers=3)
    routers = [await network.router(user) for user in network.lines]
    calls = await both_ends(network, routers)
    before = {row["id"]: row["worker"] for row in (await asked(network, "calls"))["calls"]}
    assert set(before.values()) == {1, 2, 3}
    node = network.node
    await node.kill()
    node.config.write_text(node.config.read_text().replace("workers = 3", "workers = 1"))
    await node.start()
    await network.followed(node, "sipproxy_worker_up", 3.0, timeout_s=60)
    os.kill(node.worker_pids()[3], signal.SIGKILL)
    helped = await (await routers[0].call("112")).answered(30.0)
    await network.followed(node, "sipproxy_worker_restarts_total", 1.0, timeout_s=60)
    await network.followed(node, "sipproxy_worker_up", 3.0, timeout_s=60)
    after = {row["id"]: row["worker"] for row in (await asked(network, "calls"))["calls"]}
    assert before.items() <= after.items()
    for number, (call, at_trunk) in enumerate(calls):
        assert await (at_trunk if number % 2 else call).hang_up() == 200
        await (call if number % 2 else at_trunk).wait_ended()
    assert await helped.hang_up() == 200
    await network.followed(node, "sipproxy_worker_up", 1.0, timeout_s=60)
    assert set(node.worker_pids()) == {1}
    for router in routers:
        assert await (await (await router.call(FIXED)).answered()).hang_up() == 200
    records, result = await network.reconciled()
    assert result.ok, result
    assert {record.node for record in records[: len(calls) + 1]} == {"node1", "node1-2", "node1-3"}
    assert {record.node for record in records[len(calls) + 1 :]} == {"node1"}
    assert await network.slots_of_all(0) == 0


async def test_source_that_one_worker_alone_drops_is_let_through_again_by_command(start_network: Callable[..., Any]) -> None:
    """Each worker has a drop list of its own; one that came later does not know of what was dropped before."""
    network = await started(start_network, settings={"kernel": {"drop": "dry_run"}})
    os.kill(network.node.worker_pids()[2], signal.SIGKILL)
    await network.followed(network.node, "sipproxy_worker_restarts_total", 1.0, timeout_s=60)
    await asked(network, "drop", address="192.0.2.7", for_s=600, who="somebody", why="test")
    await network.followed(network.node, "sipproxy_worker_up", 2.0, timeout_s=60)
    assert [row["source"] for row in (await asked(network, "drops"))["drops"]] == ["192.0.2.7"]
    await asked(network, "spare", address="192.0.2.7", who="somebody", why="test")
    assert (await asked(network, "drops"))["drops"] == []
    with pytest.raises(ControlError, match="is not on the list"):
        await asked(network, "spare", address="192.0.2.7", who="somebody", why="test")
