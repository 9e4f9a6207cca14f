"""What a real node's memory holds: for a registration, for a call that lives, and for what is over but may still be repeated.

Its resident memory is read before and after registrations and calls of SIPp's. Each kind comes twice, with a pause in between
after which no transaction is left (64*T1, RFC 3261 §17): the first time also fills what is free again in the pause, so that the
second growth is what stays, and the difference of the two what was held for the pause. An allocator gives little back to the
system: what a node took once it keeps, and uses again.

Left out: what lines and accounts take before anybody registers, which is shown as the idle node.
"""

from __future__ import annotations

import argparse
import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loadtest.mixed import LOAD_SETTINGS
from loadtest.network import Network, many_lines, md5_only
from loadtest.report import Report, progress_of
from loadtest.sipp_runner import Credentials, run_sipp, start_sipp

__all__ = ["Held", "Plan", "add_memory", "hold", "report_of"]

KEPT_S = 32.0  # 64*T1, for which a transaction that is over is kept
OVER_S = 36.0  # after which none of before is left
CHANNELS = 2
DIALLED = "03023125001"
LIMIT = 60_000  # calls at once of one SIPp
KIB = 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """How many there are of each, and how many of them begin a second."""

    lines: int = 50_000  # with two registrations each
    calls: int = 20_000
    register_rate: float = 300.0
    call_rate: float = 50.0
    pause_s: float = OVER_S

    @property
    def short(self) -> int:
        """Calls that end at once: for as long as one that ended is kept."""
        return min(self.calls, math.ceil(self.call_rate * self.pause_s))


@dataclass(slots=True)
class Held:
    """Resident bytes: of the idle node, and what it grew by with each half of the registrations and each kind of calls."""

    idle: int = 0
    registered: list[int] = field(default_factory=list)
    ended: int = 0
    live: int = 0
    peak: int = 0
    failed: int = 0  # registrations and calls


class _Run:
    """The node, the SIPp that answers, and what was found so far."""

    def __init__(self, network: Network, plan: Plan, found: Held) -> None:
        self._network, self._plan, self._found = network, plan, found
        self._before = found.idle = network.node.memory_bytes()

    def growth(self) -> int:
        """By how much the node grew since the last pause."""
        return self._network.node.memory_bytes() - self._before

    async def pause(self) -> None:
        """Let what is over be forgotten."""
        await asyncio.sleep(self._plan.pause_s)
        self._before = self._network.node.memory_bytes()

    async def register(self, accounts: Sequence[Credentials]) -> None:
        """Two contacts of each account: as many bindings."""
        count, rate = len(accounts), self._plan.register_rate
        for port in ("5098", "5099"):
            result = await run_sipp(
                "register",
                timeout_s=120 + 4 * count / rate,
                target=self._network.node.address,
                accounts=accounts,
                keys={"expires": "7200", "contact_port": port},
                calls=count,
                rate=rate,
                trace=False,
            )
            self._found.failed += count - result.successful

    async def call(self, accounts: Sequence[Credentials], calls: int, hold_s: float) -> None:
        """So many calls, each held for so long."""
        rate = self._plan.call_rate
        result = await run_sipp(
            "call",
            timeout_s=120 + 4 * calls / rate + hold_s,
            target=self._network.node.address,
            accounts=accounts,
            keys={"dialled": DIALLED},
            calls=calls,
            rate=rate,
            hold_ms=round(1000 * hold_s),
            limit=LIMIT,
            trace=False,
        )
        self._found.failed += calls - result.successful


async def hold(plan: Plan, tell: Callable[[str], None]) -> Held:
    """Register in two halves, place short calls, then hold calls; what the node grew by each time."""
    lines = many_lines(plan.lines, channels=CHANNELS)
    callers = many_lines(-(-plan.calls // CHANNELS), first=1_000_000, channels=CHANNELS)
    users, found = [Credentials(line.user, line.password) for line in callers], Held()
    async with Network([md5_only(line) for line in (*lines, *callers)], settings=LOAD_SETTINGS) as network:
        network.trunk.close()  # whose place an answering SIPp takes
        await asyncio.sleep(0)
        host, port = network.trunk.host, network.trunk.port
        answering = await start_sipp("answer", calls=None, host=host, port=port, trace=False, extra=["-l", str(LIMIT)])
        run = _Run(network, plan, found)
        for half in (lines[: plan.lines // 2], lines[plan.lines // 2 :]):
            tell(f"{2 * len(half)} registrations")
            await run.register([Credentials(line.user, line.password) for line in half])
            found.registered.append(run.growth())
            await run.pause()
        tell("calls that end")
        await run.call(users, plan.short, 0.1)
        found.ended = run.growth()
        await run.pause()
        tell(f"{plan.calls} calls that are held")
        set_up_s = 2 * plan.calls / plan.call_rate  # a machine that is busy with other things may take twice as long
        task = asyncio.create_task(run.call(users, plan.calls, set_up_s + 2 * plan.pause_s))
        found.failed += plan.calls - await network.slots_of_all(plan.calls, timeout_s=set_up_s)
        await asyncio.sleep(plan.pause_s)
        found.live = run.growth()
        tell("hanging up")
        await task
        found.peak = network.node.memory_bytes()
        await answering.stop()
    return found


def report_of(plan: Plan, found: Held) -> Report:
    """Bytes of each kind."""
    first, second = found.registered
    held = min(plan.lines, plan.register_rate * KEPT_S)
    report = Report(f"{2 * plan.lines} registrations of {plan.lines} lines, and {plan.calls} live calls")
    report.add("idle_kib", "the idle node", found.idle / KIB, "KiB")
    report.add("registration_bytes", "a registration", second / plan.lines, "bytes")
    report.add("register_transaction_bytes", "a REGISTER, for 32 s", max(0, first - second) / held, "bytes")
    report.add("live_call_bytes", "a live call", found.live / plan.calls, "bytes")
    report.add(
        "ended_call_bytes", "a call that ended, for 32 s", found.ended / min(plan.short, plan.call_rate * KEPT_S), "bytes"
    )
    report.add("peak_kib", "the node at the end", found.peak / KIB, "KiB")
    report.expect(found.failed == 0, f"{found.failed} registrations or calls failed")
    return report


def add_memory(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """The command `memory`."""
    plan = Plan()
    found = commands.add_parser("memory", parents=[common], help="what a registration, a live and an ended call take")
    found.add_argument("--lines", type=int, default=plan.lines, help="with two registrations each (default %(default)s)")
    found.add_argument("--calls", type=int, default=plan.calls, help="held (default %(default)s)")
    found.add_argument(
        "--register-rate", type=float, default=plan.register_rate, help="REGISTERs a second (default %(default)s)"
    )
    found.add_argument("--rate", type=float, default=plan.call_rate, help="calls a second (default %(default)s)")
    found.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> list[Report]:
    plan = Plan(options.lines, options.calls, options.register_rate, options.rate)
    return [report_of(plan, await hold(plan, progress_of("memory")))]
