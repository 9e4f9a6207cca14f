"""SIGTERM of a real node: no new calls but emergencies, live ones go on up to the bound, and what is left is taken up again."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.net import PATIENCE_S
from loadtest.network import many_lines
from loadtest.ua import CallError
from sipproxy.admin.control import ask, socket_path

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.network import Network
    from loadtest.ua import Call


def drain_for(seconds: int) -> dict[str, dict[str, object]]:
    return {"node": {"drain_s": seconds}}


async def with_a_call(start_network: Callable[..., Any], drain_s: int) -> tuple[Network, Call]:
    network: Network = await start_network(many_lines(2), settings=drain_for(drain_s))
    router = await network.router("u000000")
    return network, await (await router.call("03023125001")).answered()


def terminate(network: Network, sign: signal.Signals = signal.SIGTERM) -> None:
    assert network.node.process is not None
    network.node.process.send_signal(sign)


async def left(network: Network, timeout_s: float = PATIENCE_S) -> int:
    assert network.node.process is not None
    return await asyncio.wait_for(network.node.process.wait(), timeout_s)


async def draining(network: Network) -> None:
    async with asyncio.timeout(30):
        while '"stopping"' not in network.node.log():  # noqa: ASYNC110  the log is a file
            await asyncio.sleep(0.02)


async def test_sigterm_lets_live_calls_end_and_takes_no_new_ones_but_emergencies(start_network: Callable[..., Any]) -> None:
    network, call = await with_a_call(start_network, 60)
    other = await network.router("u000001")
    terminate(network)
    await draining(network)
    with pytest.raises(CallError) as refused:
        await (await other.call("03023125001")).answered()
    assert refused.value.status == 503
    assert b"\r\nRetry-After: " in next(data for way, _, data in reversed(other.wire) if way == "<" and b" 503 " in data)
    help_ = await (await other.call("112")).answered()
    asked = await asyncio.to_thread(ask, socket_path(network.node.directory / "data"), "nodes")
    assert [row["closed"] for row in asked["nodes"]] == [["draining"]]
    assert await call.hang_up() == 200
    assert network.node.running, "an emergency call is live"
    assert await help_.hang_up() == 200
    assert await left(network) == 0
    said = [json.loads(line) for line in network.node.log().splitlines() if '"event": "store"' in line]
    assert [(one["reason"], one["level"]) for one in said] == [("STOPPED", "info")], "nothing is wrong when a node leaves"
    records = await network.records(3)
    assert sorted((record.end_reason, record.duration_certain) for record in records) == [("normal", True)] * 2 + [
        ("refused", True)
    ]
    refusal = next(record for record in records if record.end_reason == "refused")
    assert (refusal.status, refusal.rule, refusal.verdict, refusal.line) == (503, "node.draining", "deny", "L000001")
    assert await network.slots_of_all(0) == 0


async def test_sigterm_leaves_what_outlasts_the_bound_to_the_next_start(start_network: Callable[..., Any]) -> None:
    network, call = await with_a_call(start_network, 1)
    terminate(network)
    assert await left(network) == 0
    assert await network.records(1, timeout_s=0.3) == []
    await network.node.start()
    assert await call.hang_up() == 200
    records, result = await network.reconciled()
    assert result.ok, result
    assert [record.end_reason for record in records] == ["normal"]


@pytest.mark.parametrize("signs", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,)])
async def test_second_signal_or_sigint_ends_at_once(
    start_network: Callable[..., Any], signs: tuple[signal.Signals, ...]
) -> None:
    network, _ = await with_a_call(start_network, 3600)
    for number, sign in enumerate(signs):
        terminate(network, sign)
        if number + 1 < len(signs):
            await draining(network)
            assert network.node.running
    assert await left(network) == 0


async def test_node_tells_systemd_that_it_is_ready_lives_and_stops(
    start_network: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as words:
        words.bind(str(tmp_path / "notify"))
        words.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        network: Network = await start_network(many_lines(1), settings=drain_for(1))

        async def heard(word: bytes) -> bytes:
            async with asyncio.timeout(30):
                while True:
                    data = await asyncio.get_running_loop().sock_recv(words, 1000)
                    if word in data:
                        return data

        await heard(b"READY=1")
        for _ in range(2):
            assert b"STATUS=0 calls" in await heard(b"WATCHDOG=1")
        terminate(network)
        assert b"EXTEND_TIMEOUT_USEC=21000000" in await heard(b"STOPPING=1")
        assert await left(network) == 0
