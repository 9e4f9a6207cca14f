"""A real node under retention: its journal forgets, and how its calls went is told by its metrics."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdr.pruning import survey
from cdr.retention import Rules
from loadtest.agents import next_call
from loadtest.node import LineSpec
from loadtest.reconcile import wait_until
from tests.programs import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.network import Network

ROOT = Path(__file__).resolve().parents[2]
LINES = [LineSpec("B2001", "b2001", "secret-b", "+49603255501", channels=2)]
RULES = Rules(0, 3, 0, frozenset())
TALK_S = 0.02  # records count milliseconds, and a call can be over within one


def left(network: Network) -> int:
    return len(survey(network.node.directory / "data" / "journal", RULES, time.time_ns() // 1_000_000 + 1000).overdue)


async def calls(network: Network) -> None:
    """One that is answered, one that policy refuses, and one to 112 that goes on."""
    router = await network.router("b2001")
    call = await (await router.call("03023125001")).answered()
    await next_call(network.trunk)
    await asyncio.sleep(TALK_S)
    await call.hang_up()
    await (await router.call("09001234567")).final()
    await (await router.call("112")).answered()
    await network.records(2)


async def test_purge_has_the_running_node_forget_and_its_metrics_stay(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(LINES, settings={"cdr": {"keep_unbilled_h": 1}})
    await calls(network)
    await network.followed(network.node, "sipproxy_cdr_dead_letters", 0)
    metrics = await network.node.metrics()
    names = {name: value for name, value in metrics.items() if name.startswith("sipproxy_quality_")}
    of = {name.partition("{")[0]: 0.0 for name in names}
    for name, value in names.items():
        of[name.partition("{")[0]] += value
    assert of["sipproxy_quality_calls_total"] == 2, names
    assert of["sipproxy_quality_ringing_total"] == 1, names
    assert of["sipproxy_quality_talk_seconds_total"] >= TALK_S - 0.001, names
    outcomes = {re.findall('outcome="([a-z]+)"', name)[0]: value for name, value in names.items() if "outcome" in name}
    assert {name: value for name, value in outcomes.items() if value} == {"answered": 1.0, "refused": 1.0}
    assert 'profile="badnauheim"' in "".join(names)

    assert left(network) == 2
    config = network.node.config
    config.write_text(config.read_text().replace("keep_unbilled_h = 1", "keep_unbilled_h = 0"))  # as the command reads it
    command = [sys.executable, "-m", "sipproxy", "cdr", "purge", "--json", "-c", str(config)]
    status, output, _ = await run(*command, cwd=ROOT)
    report = json.loads(output)
    assert (status, report["left"]) == (0, [])
    assert sum(row["count"] for row in report["gone"] if row["place"] == "journal") == 2, report
    assert left(network) == 0


async def test_node_forgets_by_itself_and_keeps_the_call_that_lives(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(LINES, settings={"cdr": {"keep_unbilled_h": 0}})
    await calls(network)
    assert left(network) == 2, "it looked when it started, and looks again in ten minutes"
    await network.node.kill()
    await network.node.start()
    assert await wait_until(lambda: left(network) == 0)
