"""Customers whose flow, or whose REGISTER, one worker has and whose calls another: what each knows of the others' in time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from loadtest.agents import Answering, Trunk, next_call
from loadtest.network import many_lines

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.network import Network

LINES = many_lines(8, channels=20)  # so that both workers have calls, and connections
ROUNDS = 3
CALLS = 6  # of each device that has gone, for as long as the store's log may be behind
APART_S = 0.03


@pytest.mark.parametrize("tcp", [False, True])
async def test_device_that_unregistered_rings_no_more_whichever_worker_is_asked(
    tcp: bool, start_network: Callable[..., Any]
) -> None:
    """Its REGISTER has just reached the store's log, where the others would read it after its end: 480, as from one process."""
    network: Network = await start_network(LINES, workers=2)
    for line in LINES * ROUNDS:
        router = await network.router(line.user, tcp=tcp)
        router.answering = Answering(status=486)
        assert await network.bindings(line.user, 1) == 1
        assert (await router.register(expires_s=0)).status == 200
        if tcp:
            router.close()
        calls = []
        for _ in range(CALLS):
            calls.append(await network.trunk.call(line.number, network.node.address))
            await asyncio.sleep(APART_S)
        assert [await call.final() for call in calls] == [480] * CALLS
        router.close()
    assert await network.slots_of_all(0) == 0


async def test_carrier_that_proves_itself_by_a_certificate_is_known_to_the_worker_that_gets_its_call(
    start_network: Callable[..., Any], tmp_path: Path
) -> None:
    """RFC 5922 §7.3. It has one connection, which one worker has; its calls are all workers'."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(tmp_path / "node.pem")
    context = ssl.create_default_context()
    authority.configure_trust(context)
    authority.issue_cert("carrier.example").configure_cert(context)
    network: Network = await start_network(
        LINES,
        workers=2,
        certificate=tmp_path / "node.pem",
        settings={"tls": {"ca": str(tmp_path / "ca.pem"), "clients": "optional"}},
        route={"names": ["carrier.example"]},
    )
    place = (network.node.host, network.node.tls_port)
    carrier = Trunk("proven", network.ledger, host="127.0.0.4", tcp_to=place, tls=context)
    await carrier.open()
    try:
        for number, line in enumerate(LINES * 3):
            router = await network.router(line.user) if number < len(LINES) else network.routers[number % len(LINES)]
            call = await (await carrier.call(line.number, place)).answered()
            rung = await next_call(router)
            assert await call.hang_up() == 200
            await rung.wait_ended()
        records, result = await network.reconciled()
        assert result.ok, result
        assert {(record.trunk, record.node) for record in records} == {("carrier", "node1"), ("carrier", "node1-2")}
    finally:
        carrier.close()
