"""One worker's disk fails or is full, the others' are fine: that worker does what a node with such a disk does (design §8)."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from test_disk import FAILING, reconciled
from test_workers import asked

from loadtest.agents import next_call
from loadtest.network import many_lines
from loadtest.reconcile import becomes
from sipproxy.engine.steering import Steering
from tests.mounts import run_in_own_mounts

if TYPE_CHECKING:
    from loadtest.agents import Router
    from loadtest.network import Network
    from loadtest.ua import Call

FIXED = "03023125001"
LINES = many_lines(8, channels=20)
SPOILT = 2  # the worker whose disk it is
OF_WORKER = f"""
import sys
if sys.orig_argv[-2:] == ["sipproxy.worker", "{SPOILT}"]:
    exec({{code!r}})
"""
ROUNDS = 2  # calls of each router that show whose are taken


def worker_of(network: Network, call: Call) -> int:
    """The worker that a new call is steered to."""
    key = (network.node.directory / "data" / "secret.key").read_bytes()
    invite = b"INVITE sip:x SIP/2.0\r\nCall-ID: %s\r\n\r\n" % call.call_id.encode()
    steering = Steering(1, 2, key)
    steering.alive = frozenset({1, 2})
    return steering.owner(invite)


async def live_calls(network: Network, routers: list[Router]) -> dict[int, list[tuple[Call, Call]]]:
    """Answered calls to the trunk, as both ends have them, by worker; two at each."""
    found: dict[int, list[tuple[Call, Call]]] = {1: [], 2: []}
    for number in range(200):
        call = await (await routers[number % len(routers)].call(FIXED)).answered(30)
        at_trunk = await next_call(network.trunk)
        there = found[worker_of(network, call)]
        if len(there) < 2:
            there.append((call, at_trunk))
        else:
            assert await call.hang_up() == 200
        if all(len(calls) == 2 for calls in found.values()):
            return found
    raise AssertionError("all calls are one worker's")


async def spoilt(network: Network, routers: list[Router]) -> None:
    """New calls of the worker get 503, as soon as it has noticed; the other's are taken, and calls for help are by both."""
    async with asyncio.timeout(60):
        while not await is_refused(network, routers):  # noqa: ASYNC110  it notices by what it writes
            await asyncio.sleep(0.1)
    found: dict[int, set[int]] = {1: set(), 2: set()}
    for _ in range(ROUNDS):
        for router in routers:
            call = await router.call(FIXED)
            found[worker_of(network, call)].add(status := await call.final(30))
            if status == 200:
                assert await call.hang_up() == 200
            helped = await (await router.call("112")).answered(30)
            assert await helped.hang_up() == 200
    assert found == {1: {200}, 2: {503}}


async def is_refused(network: Network, routers: list[Router]) -> bool:
    """Whether one call of the worker is refused; the next one there is."""
    for router in routers * 4:
        call = await router.call(FIXED)
        status = await call.final(30)
        if status == 200:
            assert await call.hang_up() == 200
        if worker_of(network, call) == SPOILT:
            return status == 503
    return False


async def metric(network: Network, name: str) -> list[float]:
    """What a scrape says of each worker."""
    place = f"http://{network.node.host}:{network.node.metrics_port}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(place, timeout=30).read().decode())
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    name, brace, labels = name.partition("{")
    return [float(found[f'{name}{{worker="{worker}"{"," if brace else ""}{labels or "}"}']) for worker in (1, 2)]


async def closed(network: Network) -> dict[str, list[str]]:
    """Why each worker takes no new calls, as its signs of life tell."""
    return {row["node"]: row["closed"] for row in (await asked(network, "nodes"))["nodes"]}


async def mended(network: Network, routers: list[Router]) -> None:
    """The worker's new calls are taken again."""
    async with asyncio.timeout(60):
        while await is_refused(network, routers):  # noqa: ASYNC110  it looks at its disk now and then
            await asyncio.sleep(0.3)
    assert await metric(network, "sipproxy_journal_failing") == [0, 0]


@pytest.mark.parametrize("fault", ["fsync", "write"])
async def test_disk_of_one_worker_that_fails_refuses_its_new_calls_and_loses_no_record(
    fault: str, tmp_path: Path, start_network: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design: invariants 1 and 3."""
    flag = tmp_path / "fault"
    (tmp_path / "site").mkdir()
    code = OF_WORKER.format(code=FAILING.format(flag=str(flag)))
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    network: Network = await start_network(LINES, workers=2)
    routers = [await network.router(line.user) for line in LINES]
    live = await live_calls(network, routers)
    flag.write_text(fault)
    await spoilt(network, routers)
    for first, second in live.values():
        assert await first[0].hang_up() == 200
        assert await second[1].hang_up() == 200
    assert await metric(network, "sipproxy_journal_failing") == [0, 1]
    others, owed = await metric(network, "sipproxy_journal_owed")
    assert (others, owed > 0) == (0, fault == "write")
    assert await becomes(lambda: closed(network), {"node1": [], "node1-2": ["journal"]}) == {
        "node1": [],
        "node1-2": ["journal"],
    }
    flag.unlink()
    await mended(network, routers)
    records = await reconciled(network)
    ends = {record.call_id: record for record in records}
    for number, calls in live.items():
        assert {ends[call.call_id].node for call, _ in calls} == {"node1" if number == 1 else "node1-2"}
    assert {record.node for record in records if record.rule == "node.disk"} == {"node1-2"}
    for name in ("owed", "lost_total"):
        assert await metric(network, f"sipproxy_journal_{name}") == [0, 0]
    assert await network.slots_of_all(0) == 0


def test_one_worker_on_a_disk_that_is_full() -> None:
    run_in_own_mounts(Path(__file__).with_name("worker_disk_cases.py"))
