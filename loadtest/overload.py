"""A flood of messages of strangers or a customer, and the registrations of a town after a power cut, with customers in the
middle of it.

What the sources send comes from a process of its own (crowd); the customers (bystanders) are in this one. The node has default
limits. Recovery is from the end of the flood, or of the last registration, until a customer's REGISTER takes no longer
than twice its p99 of before. Leaves out: floods over TCP, and what a full uplink would do.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.bystanders import Bystanders, Noticed
from loadtest.generate import percentile
from loadtest.network import DOMAIN, Network, many_lines, md5_only
from loadtest.report import Report, counted

if TYPE_CHECKING:
    from loadtest.agents import Router

__all__ = [
    "SETTINGS",
    "Flood",
    "Measured",
    "Storm",
    "flood",
    "flood_report",
    "measured",
    "report_of",
    "routers_of",
    "storm",
    "storm_report",
]

CALM_S = 5.0  # of customers alone, before
RECOVERY_S = 20.0  # within which the node has to be as before
SILENT_S = 2.0  # without a REGISTER above the mark, until the node counts as recovered
NORMAL_MS = 100.0  # a REGISTER that takes no longer is normal on any machine
MEMORY_BYTES = 256 * 1024 * 1024  # by which the node may grow at most
SETTINGS: Mapping[str, Mapping[str, object]] = {"log": {"level": "info"}}
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Flood:
    """`rate` messages a second from `sources` addresses for `seconds`, and so many customers' calls; 0 sources: from one
    registered router, as if they were parts of calls."""

    rate: float = 5000.0
    seconds: float = 60.0
    sources: int = 1
    calls: int = 20
    asks_per_s: float = 20.0
    help_per_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Storm:
    """So many routers register anew within `over_s` seconds, after they did so once within `calm_s`."""

    routers: int = 20_000
    over_s: float = 10.0
    calm_s: float = 120.0
    calls: int = 20
    asks_per_s: float = 20.0
    help_per_s: float = 2.0
    limit_s: float = 900.0


@dataclass(slots=True)
class Measured:
    """What the customers noticed before and meanwhile, what the crowd did, and what it cost the node."""

    before: Noticed = field(default_factory=Noticed)
    during: Noticed = field(default_factory=Noticed)
    crowd: dict[str, Any] = field(default_factory=dict)
    cpu_share: float = 0.0
    growth_bytes: int = 0
    recovery_s: float = 0.0
    counts: dict[str, float] = field(default_factory=dict)


class _Crowd:
    """The generator's process."""

    def __init__(self, task: Mapping[str, object]) -> None:
        self._task = task
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> _Crowd:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loadtest.crowd",
            cwd=Path(__file__).parents[1],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=64 * 1024 * 1024,
        )
        self.say(json.dumps(self._task))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    async def told(self, timeout_s: float) -> dict[str, Any]:
        """The next result; raises TimeoutError, RuntimeError when the process ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout_s)
        if not line:
            raise RuntimeError("the generator ended without a result")
        result: dict[str, Any] = json.loads(line)
        return result


async def flood(plan: Flood, tell: Tell) -> Measured:
    """Strangers, or one customer, send as planned while customers go on."""
    lines = many_lines(plan.calls + 3, channels=20)
    [flooder] = many_lines(1, first=1_000_000)
    async with Network([*lines, md5_only(flooder)], settings=SETTINGS) as network:
        routers = [await network.router(line.user) for line in lines]
        people = Bystanders(routers, asks_per_s=plan.asks_per_s, help_per_s=plan.help_per_s)
        await people.start()
        host, port = network.node.address
        task = {
            "what": "spray",
            "host": host,
            "port": port,
            "rate": plan.rate,
            "seconds": plan.seconds,
            "sources": plan.sources,
        }
        if not plan.sources:
            task |= {"domain": DOMAIN, "accounts": [(flooder.user, flooder.password)]}

        async def run() -> dict[str, Any]:
            tell("flood")
            async with _Crowd(task) as crowd:
                return await crowd.told(plan.seconds + 60)

        return await measured(network, people, run, tell)


async def storm(plan: Storm, tell: Tell) -> Measured:
    """A town registers, loses its power, and registers again."""
    town = [md5_only(line) for line in many_lines(plan.routers)]
    callers = many_lines(plan.calls + 3, first=1_000_000, channels=20)
    async with Network([*town, *callers], settings=SETTINGS) as network:
        accounts = [(line.user, line.user.replace("u", "p", 1)) for line in town]
        host, port = network.node.address
        task = {
            "what": "town", "host": host, "port": port, "domain": "sip.example", "accounts": accounts, "calm_s": plan.calm_s,
            "over_s": plan.over_s, "limit_s": plan.limit_s,
        }  # fmt: skip
        async with _Crowd(task) as crowd:
            tell("the town registers")
            calm = await crowd.told(plan.limit_s + 60)
            if calm["registered"] != plan.routers:
                raise RuntimeError(f"{calm['registered']} of {plan.routers} registered before the storm: {calm['answers']}")
            routers = [await network.router(line.user) for line in callers]
            people = Bystanders(routers, asks_per_s=plan.asks_per_s, help_per_s=plan.help_per_s)
            await people.start()

            async def run() -> dict[str, Any]:
                tell("storm")
                crowd.say("go")
                return await crowd.told(plan.limit_s + 60)

            return await measured(network, people, run, tell)


async def routers_of(network: Network) -> list[Router]:
    """A registered router for each line."""
    return [await network.router(user) for user in network.lines]


async def measured(network: Network, people: Bystanders, run: Callable[[], Any], tell: Tell) -> Measured:
    """What customers notice before and during `run`, and how the node is afterwards."""
    found, node = Measured(), network.node
    await asyncio.sleep(CALM_S)
    found.before = people.turn()
    metrics = await node.metrics()
    cpu, memory, began = node.cpu_seconds(), node.memory_bytes(), time.monotonic()
    found.crowd = await run()
    ended = time.monotonic()
    found.cpu_share = (node.cpu_seconds() - cpu) / (ended - began)
    found.growth_bytes = node.memory_bytes() - memory
    tell("recovery")
    found.during = people.turn()
    mark = max(2 * found.before.register_ms(0.99), NORMAL_MS)
    found.recovery_s = await _recovery(people, ended, mark)
    await people.stop()
    after = await node.metrics()
    found.counts = {
        name: value - metrics.get(name, 0.0)
        for name, value in after.items()
        if name.startswith(("sipproxy_shed_total", "sipproxy_load_changes_total")) or "dropped_kernel" in name
        if value != metrics.get(name, 0.0)
    }
    return found


async def _recovery(people: Bystanders, ended: float, mark_ms: float) -> float:
    """Seconds from `ended` until REGISTER was normal for a while; infinite when it was not within the bound."""
    last_bad = ended
    while time.monotonic() - ended < RECOVERY_S:
        seen = people.seen
        last_bad = max([last_bad, *(at for at, ms in seen.registers if ms > mark_ms)])
        good = [at for at, ms in seen.registers if at > last_bad and ms <= mark_ms]
        if good and good[-1] - last_bad >= SILENT_S:
            return max(0.0, good[0] - ended)
        await asyncio.sleep(0.1)
    return float("inf")


def report_of(title: str, found: Measured) -> Report:
    """The figures that both have, and what has to hold: live calls, calls for help, memory, recovery."""
    report = Report(title)
    during, before = found.during, found.before
    share = 100 * during.answered / max(1, during.asked)
    report.add("asked", "requests within live calls", during.asked)
    report.add("answered_share", "answered", share, "%")
    report.add("in_dialog_p50_ms", "after, p50", percentile(during.in_dialog_ms, 0.5), "ms")
    report.add("in_dialog_p99_ms", "after, p99", percentile(during.in_dialog_ms, 0.99), "ms")
    report.add("helps", "calls to 112", during.helps)
    report.add("helped", "answered", during.helped)
    report.add("help_p50_ms", "after, p50", percentile(during.help_ms, 0.5), "ms")
    report.add("calls", "ordinary new calls", during.calls)
    report.add("called", "answered", during.called)
    report.add("refused", "refused with", counted(during.refused) or "none")
    report.add("register_before_ms", "a customer's REGISTER before, p50 and p99", _pair(before), "ms")
    report.add("register_during_ms", "meanwhile, p50 and p99", _pair(during), "ms")
    report.add("unregistered", "refused or not answered", during.unregistered)
    report.add("recovery_s", "recovery", found.recovery_s, "s")
    report.add("cpu_share", "CPU of the node", 100 * found.cpu_share, "% of a core")
    report.add("growth_bytes", "growth of the node's memory", found.growth_bytes, "bytes")
    for name, value in sorted(found.counts.items()):
        report.add(name, name, value)
    report.expect(share >= 99.9, f"{100 - share:.2f} % of the requests within live calls failed: {during.failures[:3]}")
    report.expect(during.helped == during.helps > 0, f"{during.helps - during.helped} calls to 112: {during.failures[:3]}")
    report.expect(found.growth_bytes <= MEMORY_BYTES, "the node grew without bound")
    report.expect(found.recovery_s <= RECOVERY_S, "the node did not recover in time")
    return report


def _pair(noticed: Noticed) -> str:
    return f"{noticed.register_ms(0.5):.1f}, {noticed.register_ms(0.99):.1f}"


def flood_report(plan: Flood, found: Measured) -> Report:
    """What a flood did."""
    who = f"{plan.sources} sources" if plan.sources else "a customer's router"
    report = report_of(f"{plan.rate:g} messages a second from {who} for {plan.seconds:g} s", found)
    crowd = found.crowd
    report.add("sent", "messages sent by these", crowd["sent"])
    report.add("per_second", "a second, as the generator could", crowd["per_second"])
    report.add("back", "bytes back for each that they sent", crowd["heard_bytes"] / max(1, crowd["sent_bytes"]))
    report.add("over", "answers with which a source had got more than it had sent", crowd["over"])
    report.expect(bool(crowd["sent"]), "nothing was sent")
    return report


def storm_report(plan: Storm, found: Measured) -> Report:
    """What a storm did."""
    report = report_of(f"{plan.routers} routers register again within {plan.over_s:g} s", found)
    crowd = found.crowd
    report.add("began_within_s", "the last one began after, as the generator could", crowd["began_within_s"], "s")
    report.add("registered", "registered", crowd["registered"])
    report.add("drained_s", "all of them after", crowd["seconds"], "s")
    for share, name in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
        report.add(f"took_{name}_s", f"a router had to wait, {name}", percentile(crowd["took_s"], share), "s")
    report.add("crowd_sent", "REGISTERs sent", crowd["sent"])
    report.add("crowd_repeats", "of them repetitions", crowd["repeats"])
    report.add("crowd_answers", "answers by status", counted(crowd["answers"]))
    report.expect(crowd["registered"] == plan.routers, f"{plan.routers - crowd['registered']} routers are not registered")
    return report
