"""Trunk and PSAP routes that are names: NAPTR, SRV and A records of dnsmasq, and machines of which some are dead (RFC 3263)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import Answering, Psap, Trunk
from loadtest.dns import NameServer
from loadtest.net import free_udp_port
from loadtest.node import LineSpec, TrunkSpec
from loadtest.truth import Ledger
from sipproxy.admin import control
from tests.programs import run

if TYPE_CHECKING:
    from loadtest.network import Network

pytestmark = pytest.mark.program("dnsmasq")

HOSTS = ("127.0.0.4", "127.0.0.5")
LINE = LineSpec("B2001", "b2001", "secret-b", "+49603255501")
FIXED = "03023125001"


def records(ports: list[int]) -> str:
    """A carrier by NAPTR and SRV: its first machine, then its second."""
    lines = ["local-ttl=2", "naptr-record=carrier.test,10,10,s,SIP+D2U,,_sip._udp.carrier.test"]
    for number, (host, port) in enumerate(zip(HOSTS, ports, strict=True)):
        lines += [f"srv-host=_sip._udp.carrier.test,m{number}.carrier.test,{port},{number},0"]
        lines += [f"host-record=m{number}.carrier.test,{host}"]
    return "\n".join(lines) + "\n"


def route(**settings: object) -> TrunkSpec:
    keys = {"uri": "sip:carrier.test", "addresses": list(HOSTS), **settings}
    return TrunkSpec("carrier", ("carrier.test", 5060), settings=keys)


def machines_of(network: Network, ports: list[int]) -> list[Trunk]:
    """The carrier's machines, not listening yet."""
    places = zip(HOSTS, ports, strict=True)
    return [Trunk(f"m{number}", network.ledger, host=host, port=port) for number, (host, port) in enumerate(places)]


async def addresses_of(network: Network) -> list[dict[str, Any]]:
    """The first route's addresses, as the node tells them."""
    socket = control.socket_path(network.node.directory / "data")
    rows = (await asyncio.to_thread(control.ask, socket, "trunks"))["trunks"]
    found: list[dict[str, Any]] = rows[0]["addresses"]
    return found


async def printed(network: Network) -> str:
    """What `sipproxy trunks` prints."""
    command = [sys.executable, "-m", "sipproxy", "trunks", "-c", str(network.node.config)]
    status, output, errors = await run(*command, cwd=Path(__file__).parents[2])
    assert status == 0, errors.decode()
    return output.decode()


async def become(network: Network, wanted: Callable[[list[dict[str, Any]]], bool], *, timeout_s: float = 30.0) -> None:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not wanted(rows := await addresses_of(network)):
        assert asyncio.get_running_loop().time() < deadline, rows
        await asyncio.sleep(0.2)


async def one_call(router: Any, dialled: str = FIXED) -> None:
    call = await router.call(dialled)
    await call.answered(timeout_s=30)
    assert await call.hang_up() == 200


@pytest.mark.parametrize(("how", "why"), [("dead", "transport"), ("refusing", "503"), ("silent", "timeout")])
async def test_the_second_machine_of_a_name_takes_the_call_when_the_first_does_not(
    start_network: Callable[..., Any], tmp_path: Path, how: str, why: str
) -> None:
    ports = [free_udp_port(host) for host in HOSTS]
    async with NameServer(tmp_path, records(ports)) as server:
        settings = {"dns": {"servers": ["{}:{}".format(*server.address)], "dead_s": 600}, "calls": {"route_s": 2}}
        network: Network = await start_network([LINE], trunks=[route(ping_s=0)], settings=settings)
        machines = machines_of(network, ports)
        for machine in machines[1 if how == "dead" else 0 :]:
            await machine.open()
        if how == "refusing":
            machines[0].answering = Answering(status=503)
        elif how == "silent":
            machines[0].vanish()
        await become(network, lambda rows: len(rows) == 2)
        router = await network.router("b2001")
        await one_call(router)
        first, second = await addresses_of(network)
        assert (first["dead"], first["why"], second["dead"]) == (True, why, False)
        assert first["address"] == f"{HOSTS[0]}:{ports[0]}"
        assert first["record"] == "NAPTR carrier.test, SRV _sip._udp.carrier.test, A m0.carrier.test"
        if how == "dead":
            (row,) = [line.split() for line in (await printed(network)).splitlines() if first["address"] in line]
            assert row[:4] == ["carrier", first["address"], "udp", "dead"]
            assert "transport" in row
        heard = len(machines[0].wire)
        await one_call(router)
        assert how == "silent" or len(machines[0].wire) == heard, "a dead one is not asked while another lives"
        metrics = await network.node.metrics()
        assert metrics['sipproxy_trunk_addresses_dead{trunk="carrier"}'] == 1
        assert metrics["sipproxy_addresses_failed_over_total"] == 1
        await server.stop()  # known names need no name server
        await one_call(router)
        found, _ = await network.reconciled()
        assert [(record.trunk, record.status) for record in found] == [("carrier", 200)] * 3
        for machine in machines:
            machine.close()


async def test_a_machine_that_is_back_is_found_by_its_ping_and_a_changed_record_is_followed(
    start_network: Callable[..., Any], tmp_path: Path
) -> None:
    ports = [free_udp_port(host) for host in HOSTS]
    async with NameServer(tmp_path, records(ports)) as server:
        settings = {"dns": {"servers": ["{}:{}".format(*server.address)]}}
        network: Network = await start_network([LINE], trunks=[route(ping_s=1)], settings=settings)
        machines = machines_of(network, ports)
        await machines[1].open()
        await become(network, lambda rows: [row["dead"] for row in rows] == [True, False])
        await machines[0].open()
        await become(network, lambda rows: [row["dead"] for row in rows] == [False, False])
        moved = records(ports).replace(f"m0.carrier.test,{HOSTS[0]}", f"m0.carrier.test,{HOSTS[1]}")
        await server.serve(moved)
        await become(network, lambda rows: [row["address"].partition(":")[0] for row in rows] == [HOSTS[1]] * 2)
        for machine in machines:
            machine.close()


async def test_naptr_chooses_tcp_and_the_udp_machine_takes_the_call_when_the_connection_breaks(
    start_network: Callable[..., Any], tmp_path: Path
) -> None:
    ports = [free_udp_port(host) for host in HOSTS]
    came: list[bytes] = []

    async def breaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    zone = records(ports) + (
        "naptr-record=carrier.test,10,5,s,SIP+D2T,,_sip._tcp.carrier.test\n"
        f"srv-host=_sip._tcp.carrier.test,m0.carrier.test,{ports[0]},0,0\n"
    )
    listening = await asyncio.start_server(breaks, HOSTS[0], ports[0])
    async with NameServer(tmp_path, zone) as server, listening:
        settings = {"dns": {"servers": ["{}:{}".format(*server.address)]}}
        network: Network = await start_network([LINE], trunks=[route(ping_s=0)], settings=settings)
        machine = Trunk("m0", network.ledger, host=HOSTS[0], port=ports[0])
        await machine.open()
        await become(network, lambda rows: [row["transport"] for row in rows] == ["tcp", "udp", "udp"])
        router = await network.router("b2001")
        await one_call(router)
        (invite,) = came
        assert invite.startswith(b"INVITE sip:")
        assert b"\r\nVia: SIP/2.0/TCP " in invite
        assert [row["dead"] for row in await addresses_of(network)] == [True, False, False]
        machine.close()


async def test_a_call_for_help_reaches_the_machine_that_lives(start_network: Callable[..., Any], tmp_path: Path) -> None:
    port = free_udp_port(HOSTS[0])
    ledger = Ledger()
    centre = Psap("centre", ledger, host=HOSTS[1], port=port)
    silent = Psap("silent", ledger, host=HOSTS[0], port=port)
    zone = f"host-record=help.test,{HOSTS[0]}\nhost-record=help.test,{HOSTS[1]}\n"
    async with NameServer(tmp_path, zone) as server:
        settings = {"dns": {"servers": ["{}:{}".format(*server.address)]}, "calls": {"route_s": 2}}
        network: Network = await start_network([LINE], psap=("help.test", port), settings=settings)
        await centre.open()
        await silent.open()
        silent.vanish()
        router = await network.router("b2001")
        for _ in range(3):
            await one_call(router, "112")
        metrics = await network.node.metrics()
        assert metrics["sipproxy_addresses_dead"] <= 1
        assert len(centre.calls) == 3
        centre.close()
        silent.close()
