"""SIGHUP: policy files, budgets and the log's level are taken over while calls go on, whole or not at all, in every worker."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.network import many_lines
from loadtest.reconcile import becomes, wait_until
from policy import store as policy_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.network import Network

FIXED = "03023125001"
LINES = many_lines(6)
MOST = 4.0  # REGISTERs a second of a worker at registers_per_s = 4; at 400 it takes 20 at least, however late it is
BLOCKS = "id,prefix,reason\nno-berlin,+4930,a rule of the test\n"


def events(network: Network, name: str) -> list[dict[str, Any]]:
    whole, _, _ = network.node.log(tail=1_000_000).rpartition("\n")  # the last line may be on its way
    rows = (json.loads(row) for row in whole.splitlines() if row.startswith("{"))
    return [row for row in rows if row.get("event") == name]


def hang_up(network: Network) -> None:
    assert network.node.process is not None
    network.node.process.send_signal(signal.SIGHUP)


async def refused(network: Network, times: int) -> str:
    """Reload, which is refused for the so-many-th time, and say why."""
    hang_up(network)
    assert await wait_until(lambda: len(events(network, "reload_refused")) >= times, timeout_s=60), network.node.log()
    (fault,) = events(network, "reload_refused")[times - 1]["faults"]
    assert len(events(network, "reload_refused")) == times  # by one process, and not by each worker
    assert not events(network, "reloaded")
    return str(fault)


async def slower(network: Network, workers: int) -> None:
    """Wait until every worker takes no more REGISTERs than the lower rate allows."""

    async def is_slower() -> bool:
        return await pace(network) <= MOST * workers

    assert await becomes(is_slower, True, timeout_s=60)


async def pace(network: Network) -> float:
    return (await network.node.metrics())["sipproxy_registers_per_second"]


def edit(network: Network, old: str, new: str) -> None:
    config = network.node.config
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup_takes_all_over_or_nothing_and_calls_go_on(start_network: Callable[..., Any], workers: int) -> None:
    network: Network = await start_network(
        LINES,
        workers=workers,
        settings={"policy": {"blocks": [], "lines": ["lines.csv"], "psap": ["psap.csv"]}, "limits": {"registers_per_s": 400}},
    )
    routers = [await network.router(line.user) for line in LINES]
    calls = [await (await router.call(FIXED)).answered() for router in routers]
    blocks = network.node.directory / "blocks.csv"
    version = await policy_store.version_in(network.store.client)

    edit(network, "registers_per_s = 400", "registers_per_s = 4")
    edit(network, "blocks = []", 'blocks = ["blocks.csv"]')
    blocks.write_text(BLOCKS + "another,no number,a rule of the test\n")
    assert "blocks.csv:3" in await refused(network, 1)
    blocks.write_text(BLOCKS)
    edit(network, "drain_s = 1", "drain_s = 2")
    assert "node.drain_s: changes with a restart alone" in await refused(network, 2)
    edit(network, "drain_s = 2", "drain_s = none")
    assert "config.toml" in await refused(network, 3)
    edit(network, "drain_s = none", "drain_s = 1")
    await network.store.kill()
    assert await refused(network, 4)
    await network.store.start_again()
    assert await policy_store.version_in(network.store.client) == version
    assert await pace(network) > MOST * workers
    calls.append(await (await routers[0].call("112")).answered())

    hang_up(network)
    await slower(network, workers)
    await network.followed(network.node, "sipproxy_policy_version", float(workers * (version + 1)))
    assert await wait_until(lambda: len(events(network, "reloaded")) == 1)
    (told,) = events(network, "reloaded")
    assert (told["changed"], told["policy_version"]) == (["policy.blocks", "limits.registers_per_s"], version + 1)
    assert [await (await router.call(FIXED)).final() for router in routers] == [403] * len(routers)
    for call in [*calls, await (await routers[0].call("112")).answered()]:
        assert await call.hang_up() == 200
    _, result = await network.reconciled()
    assert result.ok, result


async def test_log_level_is_reloaded_and_a_worker_that_starts_later_has_what_was(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(
        LINES, workers=2, settings={"log": {"level": "info"}, "limits": {"registers_per_s": 400}}
    )
    edit(network, 'level = "info"', 'level = "warning"')
    edit(network, "registers_per_s = 400", "registers_per_s = 4")
    hang_up(network)
    await slower(network, 2)
    os.kill(network.node.worker_pids()[2], signal.SIGKILL)
    await network.followed(network.node, "sipproxy_worker_restarts_total", 1.0)
    await network.followed(network.node, "sipproxy_worker_up", 2.0)
    await slower(network, 2)
    assert len(events(network, "ready")) == 4  # of the node in log and output, and of its workers: all before
