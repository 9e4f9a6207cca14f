"""Run by test_scanners_dropped.py in a network of their own: svwar and svcrack from addresses of every kind."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import Router, RouterAccount
from loadtest.network import DOMAIN, md5_only
from loadtest.node import LineSpec, TrunkSpec
from loadtest.reconcile import becomes
from tests.interop.sipvicious_driver import begun, output_of
from tests.networks import INSIDE, Host, another_host, ip, rules

if TYPE_CHECKING:
    from loadtest.network import Network

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="run by test_scanners_dropped.py")
# The tools send from the address that the route to their target has: the node has an address for each of them.
SCANNER, CRACKER, TRUNK, ALLOWED, CUSTOMER = "198.51.100.7", "198.51.100.8", "198.51.100.20", "203.0.113.5", "203.0.114.9"
HERE = {SCANNER: "192.0.2.1", CRACKER: "192.0.2.2", TRUNK: "192.0.2.3", ALLOWED: "192.0.2.4", CUSTOMER: "192.0.2.5"}
OWN = "192.0.2.1"
SPARED = {TRUNK: "", ALLOWED: "allowed", CUSTOMER: "binding", OWN: "own"}  # a trunk is not even counted
LINE = LineSpec("S17", "117", "right-17", "+496032550017")
DROP_S = 10
LIMITS = {"source_per_s": 10, "source_burst": 20}  # who gets no answer goes on after a pause only
KERNEL = {"drop": "on", "drop_offences": 20, "drop_window_s": 60, "drop_s": DROP_S, "drop_allow": ["203.0.113.0/24"]}
WAIT_S = 60.0
SPARED_METRIC = "sipproxy_drops_spared_total"


async def scan(network: Network, source: str, there: Host, tool: str = "svwar") -> str:
    """Some eight seconds of it where nobody stops it: 400 names or passwords, 50 a second."""
    common = ["-P", "0", "--domain", DOMAIN, "-t", "0.02", "--maximumtime", "4"]
    what = ["-m", "OPTIONS", "--force", "-e", "200-600"] if tool == "svwar" else ["-u", LINE.user, "-r", "200-600"]
    target = f"udp://{HERE.get(source, OWN)}:{network.node.port}"
    with nullcontext() if source == OWN else there.entered():
        process = begun(tool, *common, *what, target)
    return await output_of(process)


def connect(there: Host) -> None:
    """Addresses of both sides, and ways between them."""
    for source, here in HERE.items():
        ip("addr", "add", f"{here}/32", "dev", "near")
        ip("route", "add", f"{source}/32", "dev", "near")
    with there.entered():
        for source, here in HERE.items():
            ip("addr", "add", f"{source}/32", "dev", "far")
            ip("route", "add", f"{here}/32", "dev", "far", "src", source)


async def test_scanners_are_dropped_for_a_while_and_whoever_belongs_to_us_is_not(start_network: Callable[..., Any]) -> None:
    ip("link", "set", "lo", "up")
    with another_host("near", "far") as there:
        connect(there)
        network: Network = await start_network(
            [md5_only(LINE)],
            settings={"kernel": KERNEL, "limits": LIMITS},
            trunks=[TrunkSpec("carrier", (TRUNK, 5060), (TRUNK,))],
            addresses=tuple(HERE.values()),
        )
        account = RouterAccount(LINE.user, LINE.password, DOMAIN)
        router = Router("home", network.ledger, account, (HERE[CUSTOMER], network.node.port), host=CUSTOMER)
        network.routers.append(router)
        with there.entered():
            await router.open()
        assert (await router.register()).status == 200
        tools = dict.fromkeys(SPARED, "svwar") | {SCANNER: "svwar", CRACKER: "svcrack"}
        scans = [asyncio.ensure_future(scan(network, source, there, tool)) for source, tool in tools.items()]
        await seen_in_kernel({SCANNER, CRACKER}, network)
        assert (await router.register()).status == 200
        print(await asyncio.gather(*scans))  # who is dropped gives up: nobody answers any more
        found = await network.node.metrics()
        dropped = {row["source"] for row in map(json.loads, network.node.log(tail=10**7).splitlines()) if "for_s" in row}
        assert dropped == {SCANNER, CRACKER}
        assert not any(source in rules() for source in SPARED)
        for source, why in SPARED.items():
            assert not why or found.get(f'{SPARED_METRIC}{{why="{why}"}}', 0.0) >= 1.0, (source, network.node.log())
        assert found.get('sipproxy_requests_total{method="OPTIONS"}', 0.0) > 400, "the trunk's were all looked at"
        for source in (SCANNER, CRACKER):
            assert await becomes(partial(_in_kernel, source), False, timeout_s=WAIT_S) is False, "the kernel's own timer"
        await network.followed(network.node, "sipproxy_drop_entries", 0.0)
        assert (await router.register()).status == 200


async def seen_in_kernel(sources: set[str], network: Network) -> None:
    """Each of these has been in the kernel's set, at one time or another."""
    left = set(sources)
    with suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while left:
                shown = await asyncio.to_thread(rules)
                left -= {source for source in left if source in shown}
                await asyncio.sleep(0.1)
    assert not left, network.node.log()


async def _in_kernel(host: str) -> bool:
    return host in await asyncio.to_thread(rules)
