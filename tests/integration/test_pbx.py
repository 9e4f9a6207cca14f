"""A PBX with a fixed address over real sockets: called by all of its numbers without ever registering, and calling out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import Router, RouterAccount, next_call
from loadtest.net import free_udp_port
from loadtest.network import DOMAIN
from loadtest.node import LineSpec
from loadtest.ua import CallError
from sipproxy.admin import control

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.network import Network

LINE = LineSpec("P1", "pbx1", "secret-p", "+496032988*", kind="trunk", channels=5)


async def test_pbx_with_a_fixed_address_is_called_and_calls_without_a_registration(start_network: Callable[..., Any]) -> None:
    port = free_udp_port()
    # It comes after the node here, and nobody asks whether it is there.
    settings = {"registrar": {"static": [f"pbx1 sip:127.0.0.1:{port}"], "static_ping_s": 0}}
    network: Network = await start_network([LINE], settings=settings)
    account = RouterAccount("pbx1", LINE.password, DOMAIN)
    pbx = Router("pbx1", network.ledger, account, network.node.address)
    pbx.port = port
    await pbx.open()
    network.routers.append(pbx)
    for number in ("+4960329880", "+49603298842"):
        call = await network.trunk.call(number, network.node.address)
        at_pbx = await next_call(pbx)
        assert at_pbx.truth.dialled == f"sip:{number}@127.0.0.1:{port}"
        await call.answered()
        assert await call.hang_up() == 200
    out = await (await pbx.call("03023125001")).answered()
    assert await out.hang_up() == 200
    records = await network.records(3)
    assert sorted((r.direction, r.line, r.status) for r in records) == [
        ("incoming", "P1", 200), ("incoming", "P1", 200), ("outgoing", "P1", 200),
    ]  # fmt: skip
    assert await network.bindings("pbx1", 0) == 0, "no business of the store's"


async def test_calls_to_a_pbx_that_is_down_fail_at_once_and_reach_it_when_it_is_back(start_network: Callable[..., Any]) -> None:
    port = free_udp_port()
    settings = {"registrar": {"static": [f"pbx1 sip:127.0.0.1:{port}"], "static_ping_s": 1}}
    network: Network = await start_network([LINE], settings=settings)

    async def becomes(state: str) -> dict[str, Any]:
        socket = control.socket_path(network.node.directory / "data")
        async with asyncio.timeout(30):
            while True:
                (row,) = (await asyncio.to_thread(control.ask, socket, "registrations"))["registrations"]
                if row["state"] == state:
                    return dict(row)
                await asyncio.sleep(0.1)

    down = await becomes("down")
    assert (down["configured"], down["last_failure"]) == (True, "transport"), "nobody has the port"
    call = await network.trunk.call("+4960329880", network.node.address)
    with pytest.raises(CallError) as caught:
        await call.answered()
    assert caught.value.status == 480
    account = RouterAccount("pbx1", LINE.password, DOMAIN)
    pbx = Router("pbx1", network.ledger, account, network.node.address)
    pbx.port = port
    await pbx.open()
    network.routers.append(pbx)
    await becomes("up")
    again = await (await network.trunk.call("+4960329880", network.node.address)).answered()
    assert await again.hang_up() == 200
