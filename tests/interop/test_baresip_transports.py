"""baresip to baresip over each transport and over IPv6, with media; one of them with outbound flows (RFC 5626)."""

from __future__ import annotations

import re
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from baresip_driver import BaresipParty

from loadtest.node import LineSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from loadtest.network import Network

pytest.importorskip("baresip", reason="baresip-python is not installed: pip install --pre baresip-python")

CALLER = LineSpec("B2001", "b2001", "secret-b", "+49603255501")
CALLEE = LineSpec("V1001", "v1001", "secret-v", "+492051555101", "velbert", "02051", "velbert")
INSTANCE = "9f1c0c4e-8a5c-4d0d-9b5c-0a7d4b4a1b11"


async def call(network: Network, domain: str, **options: Any) -> tuple[str, str]:
    """Both register at `domain`, one calls the other and hangs up after both had media; their SIP traces."""
    transport = options.get("transport", "udp")
    async with AsyncExitStack() as stack:
        parties = []
        for line in (CALLER, CALLEE):
            party = BaresipParty(line.user, line.password, domain, **options)
            parties.append(await stack.enter_async_context(party))
            assert (await party.do("register"))["event"] == "ok", party.log()
        caller, callee = parties
        answer = await caller.do("dial", uri=f"sip:{CALLEE.number}@{domain};transport={transport}")
        assert answer["event"] == "ok", f"{answer}\n{caller.log()}"
        for party in parties:
            await party.expect("established")
        assert (await network.slots("b2001", 1), await network.slots("v1001", 1)) == (1, 1)
        for party in parties:
            assert (await party.do("listen"))["event"] == "ok", party.log()
        assert (await callee.do("hangup"))["event"] == "ok"
        for party in parties:
            await party.expect("closed")
        logs = caller.log(), callee.log()
    [record] = await network.records(1)
    assert (record.direction, record.status, record.released_by, record.transport, record.media) == (
        "internal", 200, "callee", transport.upper(), ["audio"],
    )  # fmt: skip
    assert await network.slots_of_all(0) == 0
    return logs


async def test_call_over_tcp(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network([CALLER, CALLEE])
    host, port = network.node.address
    await call(network, f"{host}:{port}", transport="tcp")


async def test_call_over_tls_whose_certificate_is_verified(start_network: Callable[..., Any], tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, ca = tmp_path / "node.pem", tmp_path / "ca.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
    authority.cert_pem.write_to_path(str(ca))
    network: Network = await start_network([CALLER, CALLEE], certificate=certificate)
    await call(network, f"{network.node.host}:{network.node.tls_port}", transport="tls", ca=str(ca))
    metrics = await network.node.metrics()
    assert metrics['sipproxy_transport_total{transport="TLS",what="accepted"}'] >= 2


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
async def test_call_over_ipv6(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network([CALLER, CALLEE], ipv6=True)
    log, _ = await call(network, f"[::1]:{network.node.port6}")
    assert re.search(r"Record-Route: <sip:\[::1\]:\d+;lr", log)


async def test_call_by_an_outbound_flow(start_network: Callable[..., Any]) -> None:
    """baresip registers with reg-id and takes our word that it is kept: a flow of its own in the store, and a call by it."""
    network: Network = await start_network([CALLER, CALLEE])
    host, port = network.node.address
    _, log = await call(network, f"{host}:{port}", transport="tcp", instance=INSTANCE)
    assert "reg-id=1" in log
    assert "Require: outbound" in log
