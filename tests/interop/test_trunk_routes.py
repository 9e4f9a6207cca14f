"""Trunk routes against programs of others: carriers that ask for credentials, that fail over, that die and come back."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.kamailio import Kamailio
from loadtest.net import free_udp_port
from loadtest.node import LineSpec, TrunkSpec
from loadtest.sipp_runner import start_sipp
from loadtest.ua import CallError
from tests.programs import run

if TYPE_CHECKING:
    from loadtest.network import Network

pytestmark = [pytest.mark.program("kamailio"), pytest.mark.program("sipp")]

HOSTS = ("127.0.0.4", "127.0.0.5")
LINE = LineSpec("B2001", "b2001", "secret-b", "+49603255501")
FIXED = "03023125001"
USER, PASSWORD = "trunk-7", "carriers-own-word"
CREDENTIALS = {"user": USER, "password": PASSWORD, "ping_s": 0}


async def trunks_of(network: Network) -> list[dict[str, Any]]:
    """What `sipproxy trunks --json` says."""
    command = [sys.executable, "-m", "sipproxy", "trunks", "--json", "-c", str(network.node.config)]
    status, output, errors = await run(*command, cwd=Path(__file__).parents[2])
    assert status == 0, errors.decode()
    assert PASSWORD.encode() not in output + errors
    rows: list[dict[str, Any]] = json.loads(output)
    return rows


async def becomes(network: Network, wanted: Callable[[list[dict[str, Any]]], bool], *, timeout_s: float = 40.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not wanted(rows := await trunks_of(network)):
        assert asyncio.get_running_loop().time() < deadline, rows
        await asyncio.sleep(0.2)


async def one_call(network: Network, router: Any) -> None:
    call = await router.call(FIXED)
    await call.answered()
    assert await call.hang_up() == 200


async def test_sipp_that_challenges_invite_and_bye_is_answered(start_network: Callable[..., Any]) -> None:
    keys = {"realm": "carrier", "carrier_user": USER, "carrier_password": PASSWORD}
    carrier = await start_sipp("carrier_auth", host=HOSTS[0], calls=3, keys=keys)
    route = TrunkSpec("carrier", (carrier.host, carrier.port), settings=CREDENTIALS)
    network: Network = await start_network([LINE], trunks=[route])
    router = await network.router("b2001")
    for _ in range(3):
        await one_call(network, router)
    (await carrier.wait(60)).check(3)
    _, result = await network.reconciled()
    assert result.ok, result
    assert PASSWORD not in network.node.log(tail=1_000_000)


async def test_sipp_that_challenges_with_a_wrong_password_gets_no_call(start_network: Callable[..., Any]) -> None:
    keys = {"realm": "carrier", "carrier_user": USER, "carrier_password": "another"}
    carrier = await start_sipp("carrier_auth", host=HOSTS[0], calls=1, keys=keys)
    route = TrunkSpec("carrier", (carrier.host, carrier.port), settings=CREDENTIALS)
    network: Network = await start_network([LINE], trunks=[route])
    router = await network.router("b2001")
    call = await router.call(FIXED)
    with pytest.raises(CallError) as caught:
        await call.answered()
    assert caught.value.status == 500
    assert (await carrier.wait(10)).successful == 0


async def test_kamailio_that_asks_for_credentials_takes_calls_and_the_registration(start_network: Callable[..., Any]) -> None:
    subscriber = await start_sipp("answer", calls=None)
    port = free_udp_port(HOSTS[0])
    settings = {**CREDENTIALS, "realm": "carrier", "register": True, "ping_s": 1}
    network: Network = await start_network(
        [LINE], trunks=[TrunkSpec("carrier", (HOSTS[0], port), (HOSTS[0],), settings=settings)]
    )
    where = {"proxy": network.node.address, "subscriber": (subscriber.host, subscriber.port), "host": HOSTS[0], "port": port}
    async with Kamailio(**where, password=PASSWORD) as carrier:
        await becomes(network, lambda rows: rows[0]["registration"] == "registered" and rows[0]["state"] == "up")
        router = await network.router("b2001")
        for _ in range(3):
            await one_call(network, router)
        _, result = await network.reconciled()
        log = carrier.log()
        metrics = await network.node.metrics()  # while the carrier is there: a second later its route is down
    assert result.ok, result
    assert "insane" not in log
    assert min(log.count("authenticated INVITE"), log.count("authenticated BYE")) >= 3, log  # one that is repeated counts twice
    assert "authenticated REGISTER" in log
    assert (await subscriber.stop(successful=3)).successful == 3
    assert metrics['sipproxy_trunk_registered{trunk="carrier"}'] == 1
    assert metrics['sipproxy_trunk_up{trunk="carrier"}'] == 1
    assert metrics['sipproxy_trunk_challenges_total{outcome="answered",trunk="carrier"}'] >= 7


async def test_kamailio_that_fails_over_to_its_spare_is_one_call_for_us(start_network: Callable[..., Any]) -> None:
    """The carrier's first subscriber is silent: its 100 keeps our call, and the spare answers."""
    spare = await start_sipp("answer", calls=None)
    port = free_udp_port(HOSTS[0])
    network: Network = await start_network([LINE], trunks=[TrunkSpec("carrier", (HOSTS[0], port), (HOSTS[0],))])
    where = {"proxy": network.node.address, "subscriber": ("127.0.0.1", free_udp_port()), "host": HOSTS[0], "port": port}
    async with Kamailio(**where, spare=(spare.host, spare.port)) as carrier:
        router = await network.router("b2001")
        await one_call(network, router)
        records, result = await network.reconciled()
        assert "to the spare" in carrier.log()
    assert result.ok, result
    assert [record.status for record in records] == [200]
    assert (await spare.stop(successful=1)).successful == 1


async def test_carrier_that_dies_is_passed_and_used_again_when_it_is_back(start_network: Callable[..., Any]) -> None:
    subscriber = await start_sipp("answer", calls=None)
    ports = [free_udp_port(host) for host in HOSTS]
    trunks = [
        TrunkSpec(name, (host, port), (host,), priority, {"ping_s": 1})
        for priority, (name, host, port) in enumerate(zip(("first", "second"), HOSTS, ports, strict=True))
    ]
    network: Network = await start_network([LINE], trunks=trunks, settings={"calls": {"route_s": 2}})

    def carrier(index: int) -> Kamailio:
        where = (subscriber.host, subscriber.port)
        return Kamailio(proxy=network.node.address, subscriber=where, host=HOSTS[index], port=ports[index])

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(carrier(1))
        router = await network.router("b2001")
        async with carrier(0):
            await becomes(network, lambda rows: [row["state"] for row in rows] == ["up", "up"])
            await one_call(network, router)
        await one_call(network, router)
        await becomes(network, lambda rows: [row["state"] for row in rows] == ["down", "up"])
        started = asyncio.get_running_loop().time()
        await one_call(network, router)
        assert asyncio.get_running_loop().time() - started < 1.5, "a route that is down costs the caller nothing"
        async with carrier(0):
            await becomes(network, lambda rows: [row["state"] for row in rows] == ["up", "up"])
            await one_call(network, router)
            records, result = await network.reconciled()
    assert result.ok, result
    assert [record.trunk for record in records] == ["first", "second", "second", "first"]
    assert (await subscriber.stop(successful=4)).successful == 4
