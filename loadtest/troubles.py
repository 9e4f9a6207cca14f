"""What happens to a node in hours of calls besides its store's troubles: it dies, parties vanish, connections break, operators
edit.

Each is done to its end before the next one begins; what it found wrong is returned as a sentence.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from loadtest.agents import next_call
from loadtest.cut_calls import Away
from loadtest.reconcile import becomes
from loadtest.ua import CallError, NoAnswerError
from policy import store as policy_store

if TYPE_CHECKING:
    from loadtest.mixed import Around

__all__ = ["OF_SEVERAL", "TROUBLES", "Trouble", "reseed"]

Trouble = Callable[["Around", random.Random], Awaitable[str]]

GONE_S = (0.0, 2.0)  # until a node that died is started again
TAKEN_S = 30.0  # for what was edited to be in use, or a worker to be back
MAX_VANISHED = 5
RULES = 50
ANSWER_S = 20.0
BLOCKS = "id,prefix,reason\n"


async def _node_killed(around: Around, rng: random.Random) -> str:
    """Kill -9, and a start at a random moment after that."""
    away = Away(time.monotonic())
    around.matching.away.append(away)
    await around.network.node.kill()
    await asyncio.sleep(rng.uniform(*GONE_S))
    await around.network.node.start()
    away.until = time.monotonic()
    return ""


async def _worker_killed(around: Around, rng: random.Random) -> str:
    """One of several workers dies, or hangs until it is ended."""
    node = around.network.node
    pids = node.worker_pids()
    away = Away(time.monotonic())
    around.matching.away.append(away)
    os.kill(pids[rng.choice(sorted(pids))], rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP)))

    async def back() -> bool:
        now = node.worker_pids()
        up = (await node.metrics()).get("sipproxy_worker_up", 0.0)
        return now.keys() == pids.keys() and now != pids and up == node.workers

    is_back = await becomes(back, True, timeout_s=TAKEN_S)  # noqa: FBT003
    away.until = time.monotonic()
    return "" if is_back else f"a worker was not back within {TAKEN_S:g} s"


async def _parties_vanished(around: Around, rng: random.Random) -> str:
    around.generator.vanish(rng.randint(1, MAX_VANISHED))
    return ""


async def _policy_edited(around: Around, rng: random.Random) -> str:
    """An operator's rule comes and goes: of a network that nobody calls."""
    number = rng.randrange(RULES)
    for edit in (("add", f"+887{number:04}", "--id", f"soak-{number}", "--reason", "a rule"), ("remove", f"soak-{number}")):
        if fault := await _operator(around, "block", *edit, "--why", "soak") or await _followed(around):
            return fault
    return ""


async def _operator(around: Around, *words: str) -> str:
    """Run a command of the program: what it said where it failed, else ""."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "sipproxy", *words, "-c", str(around.network.node.config)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return "" if process.returncode == 0 else f"{' '.join(words)}: {output.decode('utf-8', 'replace')[-300:]}"


async def _reloaded(around: Around, rng: random.Random) -> str:
    """The policy files change, and the node is told by SIGHUP."""
    node = around.network.node
    (node.directory / "blocks.csv").write_text(_rows(rng.sample(range(RULES, 3 * RULES), 3)))
    config = node.config.read_text()
    if "blocks.csv" not in config:
        node.config.write_text(config.replace("[policy]\n", '[policy]\nblocks = ["blocks.csv"]\n'))
    before = await policy_store.version_in(around.network.store.client)
    assert node.process is not None
    node.process.send_signal(signal.SIGHUP)

    async def risen() -> bool:
        return await policy_store.version_in(around.network.store.client) > before

    if not await becomes(risen, True, timeout_s=TAKEN_S):  # noqa: FBT003
        return "a reload made no version of the policy"
    return await _followed(around)


def _rows(numbers: list[int]) -> str:
    return BLOCKS + "".join(f"soak-{number},+887{number:04},a rule of the soak\n" for number in numbers)


async def _followed(around: Around) -> str:
    """Whether every process of the node has the policy that the store has."""
    node, client = around.network.node, around.network.store.client

    async def lag() -> float:
        told = (await node.metrics()).get("sipproxy_policy_version", -1.0)
        return node.workers * await policy_store.version_in(client) - told

    left = await becomes(lag, 0.0, timeout_s=TAKEN_S)
    return "" if left == 0 else f"the policy in use was {left:g} versions behind after {TAKEN_S:g} s"


async def _connections_broken(around: Around, rng: random.Random) -> str:
    """Routers on TCP call each other, and one connection breaks under each call; who is left hangs up."""
    network = around.network
    caller, called = [await network.router(line.user, tcp=True) for line in rng.sample(around.further, 2)]
    try:
        call = await (await caller.call(network.lines[called.user].number)).answered(ANSWER_S)
        at_called = await next_call(called)
        (broken, left) = (caller, at_called) if rng.random() < 0.5 else (called, call)
        broken.close()
        await left.hang_up()  # what is answered depends on whether the node has noticed
        truth = call.truth
        truth.ended_at, truth.released_by = truth.ended_at or time.monotonic(), ""
        around.matching.ended(truth, slack_ms=1000 * TAKEN_S)
    except (CallError, NoAnswerError) as error:
        return f"a call over TCP: {error}"
    finally:
        for router in (caller, called):
            router.close()
            network.routers.remove(router)
    return ""


async def reseed(around: Around) -> str:
    """What an operator does when the store has lost the policy; "" also where it has not."""
    node, client = around.network.node, around.network.store.client
    if node.workers * await policy_store.version_in(client) >= (await node.metrics()).get("sipproxy_policy_version", 0.0):
        return ""
    return await _operator(around, "reseed")


OF_SEVERAL = "worker killed"  # which a node of one process does not have
TROUBLES: Mapping[str, Trouble] = {
    "node killed": _node_killed,
    OF_SEVERAL: _worker_killed,
    "parties vanished": _parties_vanished,
    "connections broken": _connections_broken,
    "policy edited": _policy_edited,
    "reloaded": _reloaded,
}
