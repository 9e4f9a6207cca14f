"""Changes of policy data under way: two nodes on one store follow within a second, and calls are not lost over reloads."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.agents import Router, RouterAccount
from loadtest.generate import Load, at_rate, callers_needed, place_calls
from loadtest.network import DOMAIN, Network, many_lines
from loadtest.node import LineSpec
from policy import store
from policy.change import Change
from policy.model import BlockRule
from tests.programs import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from loadtest.ua import Call

ROOT = Path(__file__).resolve().parents[2]
LINE = LineSpec("B2001", "b2001", "secret-b", "+49603255501", channels=20)
DIALLED = "+43123456789"


async def command(config: Path, *words: str) -> tuple[int, Any]:
    """One command of the program, with a configuration; its exit code and answer."""
    status, output, _ = await run(
        *(sys.executable, "-m", "sipproxy", *words, "-c", str(config), "--json"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return status, json.loads(output)


async def finals(router: Router) -> AsyncIterator[tuple[float, int]]:
    """Calls one after the other, each ended at once: when it was begun, and its final status."""
    while True:
        began = time.time()
        call: Call = await router.call(DIALLED)
        status = await call.final()
        if status == 200:
            await call.hang_up()
        yield began, status


async def first(router: Router, status: int, *, within_s: float = 60.0) -> float:
    """When the first call began that ended with `status`."""
    limit = time.monotonic() + within_s
    async for began, found in finals(router):
        if found == status:
            return began
        assert time.monotonic() < limit, f"no call got {status} within {within_s} s"
    raise AssertionError


async def test_rule_set_on_one_node_refuses_a_call_on_the_other_soon(tmp_path: Path) -> None:
    async with (
        Network([LINE], directory=tmp_path / "one") as network,
        network.another_node(directory=tmp_path / "two") as other,
    ):
        router = Router("b2001", network.ledger, RouterAccount("b2001", LINE.password, DOMAIN), other.address)
        await router.open()
        network.routers.append(router)
        assert (await router.register()).status == 200
        await first(router, 200)
        code, added = await command(network.node.config, "block", "add", "+43", "--reason", "fraud", "--id", "r")
        assert code == 0
        await first(router, 403)
        code, _ = await command(other.config, "block", "rollback", str(added["version"] - 1))
        assert code == 0
        await first(router, 200)


async def test_reloads_under_calls_lose_none(tmp_path: Path) -> None:
    """The short form of a hundred reloads a minute under fifty calls a second: more of the one, fewer of the other."""
    load = Load(rate=20, seconds=4, hold_s=0.5)
    lines = many_lines(callers_needed(load, 20), channels=20)
    async with Network(lines, directory=tmp_path) as network:
        callers = [await network.router(line.user) for line in lines]

        async def change(number: int) -> None:
            rules = tuple(BlockRule(f"r{number}-{n}", f"+44{number:03}{n}", "fraud") for n in range(20))
            gone = tuple(f"r{number - 1}-{n}" for n in range(20))
            await store.apply(network.store.client, Change(blocks=rules, remove_blocks=gone), who="tests", why="reload")

        before = await store.version_in(network.store.client)
        outcome, _ = await asyncio.gather(place_calls(callers, load), at_rate(5, 20, change))
        assert outcome.ok, (outcome.refused, outcome.failures)
        assert await store.version_in(network.store.client) == before + 20
        _, result = await network.reconciled()
        assert result.ok, result
        assert await network.slots_of_all(0) == 0
