"""How workers end, together and one by one, while calls are live: nobody's call ends with them that need not."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import resource
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import next_call
from loadtest.network import many_lines
from loadtest.node import NodeError
from sipproxy.admin.control import ask, socket_path

if TYPE_CHECKING:
    from loadtest.network import Network
    from loadtest.ua import Call

FIXED = "03023125001"
LINES = many_lines(8, channels=20)
PAUSE_S = 12.0  # longer than `workers.HANG_S`
SOON_S = 15.0  # that a node may take to end which has nothing left to do; it gives up on its workers after 20 s more
# Loaded by the interpreter of the second worker at its start, which it holds up for as long as there is a file.
HOLDING = """
import fcntl, sys, time
from pathlib import Path
here = Path({here!r})
def held():
    while (here / "hold").exists():
        (here / "held").touch()
        time.sleep(0.01)
def flock(*arguments, real=fcntl.flock):
    held()
    return real(*arguments)
if sys.orig_argv[-2:] == ["sipproxy.worker", "2"]:
    if {at!r} == "importing":
        held()
    fcntl.flock = flock
"""


async def asked(network: Network, command: str) -> dict[str, Any]:
    return await asyncio.to_thread(ask, socket_path(network.node.directory / "data"), command)


async def logged(network: Network, event: str) -> None:
    async with asyncio.timeout(30):
        while f'"{event}"' not in network.node.log():  # noqa: ASYNC110  the log is a file
            await asyncio.sleep(0.02)


def all_pids(network: Network) -> list[int]:
    return [network.node.pid, *network.node.worker_pids().values()]


async def call_beside_its_connection(network: Network) -> tuple[Call, Call]:
    """The one live call, of a customer on TCP, as both ends have it: one worker has it, and the other one the connection."""
    by_user = {user: await network.router(user, tcp=True) for user in network.lines}
    node_of = {row["account"]: row["node"] for row in (await asked(network, "registrations"))["registrations"]}
    for user in itertools.islice(itertools.cycle(by_user), 200):
        call = await (await by_user[user].call(FIXED)).answered()
        at_trunk = await next_call(network.trunk)
        row = (await asked(network, "calls"))["calls"][0]
        if row["node"] != node_of[user]:
            return call, at_trunk
        assert await call.hang_up() == 200
        async with asyncio.timeout(30):
            while (await asked(network, "calls"))["calls"]:  # noqa: ASYNC110  another process has them
                await asyncio.sleep(0.01)
    raise AssertionError("no call is beside its connection")


async def test_worker_without_calls_stays_for_those_of_others_by_its_connections(start_network: Callable[..., Any]) -> None:
    """SIGTERM lets live calls end: also those whose customer is connected to a worker that has none itself."""
    network: Network = await start_network(LINES, workers=2, settings={"node": {"drain_s": 60}})
    call, at_trunk = await call_beside_its_connection(network)
    assert network.node.process is not None
    network.node.process.send_signal(signal.SIGTERM)
    await logged(network, "worker_drained")
    helped = await (await network.routers[0].call("112")).answered(30.0)
    assert await at_trunk.hang_up() == 200
    await call.wait_ended()
    assert network.node.running, "a call for help is live"
    assert await helped.hang_up() == 200
    assert await asyncio.wait_for(network.node.process.wait(), 20.0) == 0
    _, result = await network.reconciled()
    assert result.ok, result
    assert await network.slots_of_all(0) == 0


async def test_node_that_stood_still_as_a_whole_has_no_worker_that_hangs(start_network: Callable[..., Any]) -> None:
    """A frozen control group, or a virtual machine that is moved: nobody was there to show himself, or to look."""
    network: Network = await start_network(LINES, workers=2)
    call = await (await (await network.router("u000000")).call(FIXED)).answered()
    pids = network.node.worker_pids()
    for pid in all_pids(network):
        os.kill(pid, signal.SIGSTOP)
    await asyncio.sleep(PAUSE_S)
    for pid in (network.node.pid, pids[1], pids[2]):
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.7)  # the supervisor has looked before they have shown themselves
    assert await call.hang_up() == 200
    assert network.node.worker_pids() == pids
    assert "worker_hangs" not in network.node.log()


async def test_worker_that_cannot_be_started_is_tried_again_and_the_others_serve(start_network: Callable[..., Any]) -> None:
    """No process or descriptor may be left on the machine when a worker dies: that is no reason for the node to go."""
    network: Network = await start_network(LINES, workers=2)
    routers = [await network.router(user) for user in network.lines]
    supervisor = network.node.pid
    soft, hard = resource.prlimit(supervisor, resource.RLIMIT_NOFILE)
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (3, hard))
    os.kill(network.node.worker_pids()[2], signal.SIGKILL)
    await logged(network, "worker_not_started")
    for router in routers:
        for number in (FIXED, "112"):
            assert await (await (await router.call(number)).answered(30.0)).hang_up() == 200
    resource.prlimit(supervisor, resource.RLIMIT_NOFILE, (soft, hard))
    await network.followed(network.node, "sipproxy_worker_up", 2.0, timeout_s=60)
    _, result = await network.reconciled()
    assert result.ok, result


async def test_supervisor_that_is_killed_leaves_no_worker_behind_that_hung(start_network: Callable[..., Any]) -> None:
    """It would hold the node's lock and sockets, and keep the next start from them."""
    network: Network = await start_network(LINES, workers=2)
    pids = network.node.worker_pids()
    os.kill(pids[2], signal.SIGSTOP)
    hung = os.pidfd_open(pids[2])
    try:
        await network.node.kill()
        assert await asyncio.to_thread(select.select, [hung], [], [], 10.0) == ([hung], [], []), "it is still there"
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(hung, signal.SIGKILL)
        os.close(hung)
    await network.node.start()
    assert await (await (await (await network.router("u000000")).call("112")).answered()).hang_up() == 200


async def test_worker_that_dies_at_each_start_keeps_neither_calls_nor_the_end_of_the_node_waiting(
    start_network: Callable[..., Any],
) -> None:
    network: Network = await start_network(LINES, workers=2)
    routers = [await network.router(user) for user in network.lines]
    journal = network.node.directory / "data" / "worker-2" / "journal"
    aside = journal.with_name("aside")
    journal.rename(aside)
    journal.write_text("")
    os.kill(network.node.worker_pids()[2], signal.SIGKILL)
    for router in routers:
        for number in (FIXED, "112"):
            assert await (await (await router.call(number)).answered(30.0)).hang_up() == 200
    await logged(network, "worker_died")
    journal.unlink()
    aside.rename(journal)
    await network.followed(network.node, "sipproxy_worker_up", 2.0, timeout_s=60)
    _, result = await network.reconciled()
    assert result.ok, result


async def begun(path: Path) -> None:
    async with asyncio.timeout(60):
        while not path.exists():  # noqa: ASYNC110, ASYNC240  another process makes it
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("at", ["importing", "recovering"])
@pytest.mark.parametrize("which", ["first", "again"])
async def test_node_that_is_told_to_stop_while_a_worker_starts_ends_soon_and_leaves_nothing(
    at: str, which: str, tmp_path: Path, start_network: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it heeds signals it is ended by one; later it comes to its start's end first, for calls may be in its journal."""
    (tmp_path / "sitecustomize.py").write_text(HOLDING.format(here=str(tmp_path), at=at))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    network: Network = await start_network(LINES, workers=2, settings={"node": {"drain_s": 60}})
    node, starting = network.node, None
    if which == "first":
        await network.stop_node()
        (tmp_path / "hold").touch()
        starting = asyncio.create_task(node.start())
    else:
        (tmp_path / "hold").touch()
        os.kill(node.worker_pids()[2], signal.SIGKILL)
    await begun(tmp_path / "held")
    before = node.log_path.read_text().count('"stopping"')
    node.process.send_signal(signal.SIGTERM)
    if at == "recovering":
        async with asyncio.timeout(30):
            while node.log_path.read_text().count('"stopping"') == before:  # noqa: ASYNC110  the log is a file
                await asyncio.sleep(0.02)
        assert node.running, "its second worker has not heard of it"
        (tmp_path / "hold").unlink()
    assert await asyncio.wait_for(node.process.wait(), SOON_S) == 0
    if starting is not None:
        with pytest.raises(NodeError, match="ended with status 0"):
            await starting
    with (node.directory / "data" / "workers.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # all processes of the node hold it
    assert "worker_hangs" not in node.log()
