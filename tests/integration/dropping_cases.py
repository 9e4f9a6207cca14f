"""Run by test_dropping.py in a network of their own: a real node whose kernel drops a scanner, and nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.network import many_lines
from tests.networks import INSIDE, datagram_socket, exchange, ip, rules

if TYPE_CHECKING:
    from loadtest.network import Network

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="run by test_dropping.py")
ROOT = Path(__file__).resolve().parents[2]
SCANNER, STRANGER = "198.51.100.7", "198.51.100.8"
KERNEL = {"drop": "on", "drop_offences": 20, "drop_window_s": 60}
WAIT_S = 60.0
POWERLESS = """
import os, sys
os.execvp("setpriv", ["setpriv", "--bounding-set=-all", sys.executable, "-m", "sipproxy", *sys.argv[1:]])
"""


def options(number: int, *, agent: str = "Router 1") -> bytes:
    return (
        f"OPTIONS sip:sip.example SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.99;rport;branch=z9hG4bK{agent[0]}{number}\r\n"
        f"From: <sip:x@sip.example>;tag=a\r\nTo: <sip:sip.example>\r\nCall-ID: {agent[0]}{number}\r\nCSeq: {number} OPTIONS\r\n"
        f"Max-Forwards: 70\r\nUser-Agent: {agent}\r\nContact: <sip:x@192.0.2.99>\r\nContent-Length: 0\r\n\r\n"
    ).encode()


async def answers(network: Network, host: str, number: int, *, heard: bool = True) -> bool:
    """Whether the node answers an OPTIONS from this address."""
    with datagram_socket(host) as sock:
        return bool(await asyncio.to_thread(exchange, sock, options(number), network.node.address, tries=40 if heard else 1))


async def scan(network: Network) -> None:
    """Scan until the node has put the scanner on its list."""
    with datagram_socket(SCANNER) as sock:
        until = time.monotonic() + WAIT_S
        for number in range(1, 100_000):
            sock.sendto(options(number, agent="friendly-scanner"), network.node.address)
            await asyncio.sleep(0.05)
            if number % 20 == 0 and (await network.node.metrics()).get("sipproxy_drop_entries"):
                return
            assert time.monotonic() < until, network.node.log()


async def drops(network: Network, *arguments: str) -> Any:
    command = [sys.executable, "-m", "sipproxy", "drops", *arguments, "--json", "-c", str(network.node.config)]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    return json.loads(done.stdout)


async def test_a_scanner_is_dropped_by_the_kernel_and_nobody_else_is(start_network: Callable[..., Any]) -> None:
    ip("link", "set", "lo", "up")
    for address in (SCANNER, STRANGER):
        ip("addr", "add", f"{address}/32", "dev", "lo")
    network: Network = await start_network(many_lines(1), settings={"kernel": KERNEL})
    await network.router("u000000")
    assert await answers(network, SCANNER, 1)
    await scan(network)
    await network.followed(network.node, 'sipproxy_drop_kernel_total{what="written"}', 1.0)
    assert SCANNER in rules()
    assert not await answers(network, SCANNER, 2, heard=False)
    assert await answers(network, STRANGER, 3)
    await router_calls(network)

    listed = await drops(network, "list")
    assert [(row["source"], row["why"], row["by"]) for row in listed["drops"]] == [(SCANNER, "scan", "node")]
    assert "never dropped" in (await drops(network, "add", "127.0.0.1", "--why", "test"))["error"]
    assert "--why" in (await drops(network, "remove", SCANNER))["error"]
    assert len((await drops(network, "add", STRANGER, "--for", "60", "--why", "test"))["drops"]) == 2
    await network.followed(network.node, 'sipproxy_drop_kernel_total{what="written"}', 2.0)
    assert not await answers(network, STRANGER, 4, heard=False)
    assert len((await drops(network, "remove", SCANNER, "--why", "test"))["drops"]) == 1
    await network.followed(network.node, 'sipproxy_drop_kernel_total{what="removed"}', 1.0)
    assert await answers(network, SCANNER, 5)

    command = [sys.executable, "-m", "sipproxy", "cdr", "access", "--json", "-c", str(network.node.config)]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    commands = [row["command"] for row in json.loads(done.stdout)]
    assert sorted(set(commands)) == ["drops add", "drops list", "drops remove"]
    assert '"event": "source_dropped"' in network.node.log()
    await network.stop_node()
    assert "sipproxy" not in rules(), "a node that has left drops nobody"

    await without_the_right(network)


async def without_the_right(network: Network) -> None:
    """The same node as a unit without AmbientCapabilities starts it: it says so once, and serves."""
    network.node.program = ("-c", POWERLESS)
    await network.node.start()
    await network.followed(network.node, "sipproxy_drop_unavailable", 1.0)
    await router_calls(network)
    assert network.node.log().count("drop_list_unavailable") == 1
    assert "the kernel drops nothing" in (await drops(network, "add", STRANGER, "--why", "test"))["error"]


async def router_calls(network: Network) -> None:
    router = network.routers[0]
    await router.register()
    for number in ("03023125001", "112"):
        call = await (await router.call(number)).answered(30)
        assert await call.hang_up() == 200
