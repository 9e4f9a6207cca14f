"""Run by test_droplist.py in a network of their own: the kernel's drop list, with real rules and real datagrams."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from sipproxy.net.droplist import LOOK_S, KernelDrops
from tests.networks import INSIDE, datagram_socket, ip, rules

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="run by test_droplist.py")
SCANNER, ROUTER = "198.51.100.7", "198.51.100.8"
SCANNER6, NEAR6, ROUTER6 = "2001:db8:1:2::7", "2001:db8:1:2::8", "2001:db8:1:3::7"
HERE, HERE6 = "192.0.2.1", "2001:db8::1"
WAIT_S = 20.0
Start = Callable[..., KernelDrops]


@pytest.fixture(scope="module", autouse=True)
def network() -> None:
    ip("link", "set", "lo", "up")
    for address in (SCANNER, ROUTER, HERE):
        ip("addr", "add", f"{address}/32", "dev", "lo")
    for address in (SCANNER6, NEAR6, ROUTER6, HERE6):
        ip("addr", "add", f"{address}/128", "dev", "lo", "nodad")


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Start]:
    running: list[KernelDrops] = []

    def begin(ports: list[int], *, node: str = "node-1", problems: list[str] | None = None) -> KernelDrops:
        told = (problems if problems is not None else []).append
        drops = KernelDrops(node, [(kind, port) for port in ports for kind in ("udp", "tcp")], entries=100, on_problem=told)
        drops.start()
        running.append(drops)
        return drops

    yield begin
    for drops in running:
        await drops.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110  a thread's counters, and the kernel's rules
            await asyncio.sleep(0.02)


def arrives(sender: str, receiver: socket.socket) -> bool:
    """Whether a datagram comes through; one that does not was dropped before `sendto` returned, as loopback has no queue."""
    with datagram_socket(sender) as sock:
        sock.sendto(b"hello", receiver.getsockname()[:2])
    receiver.settimeout(0.2)
    try:
        return receiver.recvfrom(100)[1][0] == sender
    except TimeoutError:
        return False


async def test_a_dropped_address_is_not_heard_and_others_are(start: Start) -> None:
    with datagram_socket(HERE) as sip, datagram_socket(HERE) as other, datagram_socket(HERE6, sip.getsockname()[1]) as sip6:
        drops = start([sip.getsockname()[1]])
        assert arrives(SCANNER, sip)
        drops.put(SCANNER, 100)
        drops.put("2001:db8:1:2::/64", 100)
        await until(lambda: drops.counters["written"] == 2)
        assert not arrives(SCANNER, sip)
        assert arrives(SCANNER, other), "other ports are not ours to close"
        assert arrives(ROUTER, sip)
        assert [arrives(sender, sip6) for sender in (SCANNER6, NEAR6, ROUTER6)] == [False, False, True]
        drops.put(SCANNER, 0)
        drops.put("2001:db8:1:2::/64", 0)
        await until(lambda: drops.counters["removed"] == 2)
        assert arrives(SCANNER, sip)
        assert arrives(NEAR6, sip6)
        assert drops.counters["errors"] == 0


async def test_a_dropped_address_cannot_connect_either(start: Start) -> None:
    with socket.create_server((HERE, 0)) as server:
        drops = start([server.getsockname()[1]])
        drops.put(SCANNER, 100)
        await until(lambda: drops.counters["written"] == 1)
        with pytest.raises(TimeoutError):
            socket.create_connection(server.getsockname(), timeout=0.5, source_address=(SCANNER, 0))
        socket.create_connection(server.getsockname(), timeout=WAIT_S, source_address=(ROUTER, 0)).close()


async def test_an_entry_ends_by_itself_and_putting_it_again_sets_its_time_anew(start: Start) -> None:
    with datagram_socket(HERE) as sip:
        drops = start([sip.getsockname()[1]])
        drops.put(SCANNER, 1000)
        drops.put(SCANNER, 1)
        await until(lambda: drops.counters["written"] == 2)
        await until(lambda: arrives(SCANNER, sip))


async def test_the_table_goes_with_the_node_and_two_nodes_have_one_each(start: Start) -> None:
    first, second = start([5060], node="a-b"), start([5062], node="a_b")
    await until(lambda: rules().count("table inet sipproxy_") == 2)
    await first.close()
    assert [first.table in rules(), second.table in rules()] == [False, True]


async def test_a_start_after_a_kill_finds_a_table_and_begins_empty(start: Start) -> None:
    first = start([5060])
    first.put(SCANNER, 100)
    await until(lambda: SCANNER in rules())
    second = start([5060])
    second.put(ROUTER, 100)
    await until(lambda: ROUTER in rules())
    assert SCANNER not in rules()


async def test_a_firewall_that_is_loaded_anew_is_met_by_the_next_entry(start: Start) -> None:
    drops = start([5060])
    drops.put(SCANNER, 100)
    await until(lambda: drops.counters["written"] == 1)
    rules("flush", "ruleset")
    drops.put(ROUTER, 100)
    await until(lambda: drops.counters["restored"] == 1)
    await until(lambda: SCANNER in rules() and ROUTER in rules())


@pytest.mark.parametrize("command", [("flush", "ruleset"), ("flush", "table", "inet"), ("delete", "table", "inet")])
async def test_rules_that_go_are_back_within_a_bounded_time_without_any_entry(start: Start, command: tuple[str, ...]) -> None:
    """And with what was dropped, for as long as it was to be."""
    with datagram_socket(HERE) as sip:
        drops = start([sip.getsockname()[1]])
        drops.put(SCANNER, 100)
        await until(lambda: drops.counters["written"] == 1)
        rules(*command, *([] if command[-1] == "ruleset" else [drops.table]))
        assert arrives(SCANNER, sip)
        gone = asyncio.get_running_loop().time()
        await until(lambda: drops.counters["restored"] == 1)
        print(f"rules are back after {asyncio.get_running_loop().time() - gone:.1f} s, looked at each {LOOK_S:g} s")
        await until(lambda: SCANNER in rules())
        assert not arrives(SCANNER, sip)
        assert arrives(ROUTER, sip)
        assert re.search(r"expires (1m[0-9]|[0-9])", rules()), "for as long as it was to be"
        assert drops.counters["errors"] == 0


async def test_without_nft_that_is_said_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[str] = []
    monkeypatch.setattr("sipproxy.net.droplist.shutil.which", lambda *_, **__: None)
    drops = start([5060], problems=problems)
    for _ in range(3):
        drops.put(SCANNER, 100)
    await until(lambda: bool(problems))
    await drops.close()
    assert problems == ["the program nft is not installed (package nftables)"]


async def test_without_the_right_that_is_said_once(start: Start) -> None:
    """In a process that gave its capabilities away, as a unit without AmbientCapabilities starts it."""
    program = (
        "import asyncio\nfrom sipproxy.net.droplist import LOOK_S, KernelDrops\nproblems = []\n"
        "async def main():\n"
        "    drops = KernelDrops('n', [('udp', 5060)], entries=10, on_problem=problems.append)\n"
        "    drops.start()\n    drops.put('192.0.2.9', 10)\n    drops.put('192.0.2.10', 10)\n"
        "    async with asyncio.timeout(20):\n        while not problems: await asyncio.sleep(0.02)\n"
        "    await drops.close()\n"
        "asyncio.run(main())\nprint(problems)\n"
    )
    command = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-c", program]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (problem,) = eval(done.stdout)
    assert "ermitted" in problem or "must be root" in problem, problem
