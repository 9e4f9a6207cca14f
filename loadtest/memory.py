"""What a real node's memory holds: for a registration, for a call that lives, and for what is over but may still be repeated;
and what Kamailio holds for the same, where it is installed.

Resident memory is read behind pauses after which no transaction is left (64*T1, RFC 3261 §17). An allocator gives little back
to the system: what a process took once it keeps, and uses again. So each kind comes in two halves. The first one also takes
what transactions take for as long as they last, and what fills caches; the second finds that free again and uses it, and what
the process has grown by after it is what stays. What stays only for a while is read where it is new: calls that end come at a
process of their own, whose growth over the later half of the first 32 s is theirs.

Left out: what lines and accounts take before anybody registers, which is shown as the idle node.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from loadtest.desk_calls import CALL_STEPS, REGISTER_STEPS
from loadtest.ending import INTERRUPTED
from loadtest.mixed import LOAD_SETTINGS
from loadtest.net import free_udp_port
from loadtest.network import DOMAIN, TRUNK_HOST, Network, many_lines, md5_only
from loadtest.node import TrunkSpec
from loadtest.parties import DEVICES, Parties
from loadtest.peer import KamailioProxy, missing
from loadtest.planned import add_planned
from loadtest.report import Report
from loadtest.usage import tree_memory_bytes
from loadtest.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from loadtest.desk_calls import Scripted, Step
    from loadtest.node import LineSpec

__all__ = ["Held", "Plan", "add_memory", "hold", "measure", "report_of"]

KEPT_S = 32.0  # 64*T1, for which a transaction that is over is kept
CHANNELS = 2
KIB = 1024
SET_UP = next(number for number, step in enumerate(CALL_STEPS) if step.name == "BYE")  # the steps before it
KAMAILIO_CHILDREN = 2
NOT_MEASURED = "not measured"
CALLERS = 1000  # lines whose calls end: how many one of them may start within a minute is limited
STRANGERS = 4096  # first messages that are challenged and leave nothing but what caches keep of their lines
# Many more of each than a node is sized for by itself.
SETTINGS = {**LOAD_SETTINGS, "limits": {**LOAD_SETTINGS["limits"], "transactions": 1_000_000, "calls": 1_000_000}}


@dataclass(frozen=True, slots=True)
class Plan:
    """How many lines, with two registrations each, how many calls, and how many of both are under way at a time."""

    lines: int = 50_000
    calls: int = 20_000
    together: int = 24
    pause_s: float = 36.0
    kamailio: bool = True


@dataclass(slots=True)
class Held:
    """Resident bytes of a process: idle, when the first half of the registrations was there, and behind the pause after each
    half; `begun` is how many of the first half were younger than 32 s at its end."""

    title: str
    idle: int = 0
    registering: int = 0
    begun: int = 1
    registered: list[int] = field(default_factory=list)
    live: list[int] = field(default_factory=list)
    ended_bytes: float | None = None  # a call; None where that was not measured
    failed: int = 0  # registrations and calls
    interrupted: bool = False


@dataclass(slots=True)
class _Peer:
    """One process that is measured, and its parties."""

    title: str
    parties: Parties
    memory_bytes: Callable[[], int]


@asynccontextmanager
async def _node(lines: Sequence[LineSpec]) -> AsyncIterator[_Peer]:
    carrier = (TRUNK_HOST, free_udp_port(TRUNK_HOST))
    trunks = [TrunkSpec("carrier", carrier, (TRUNK_HOST,), settings={"ping_s": 0})]
    async with Network([md5_only(line) for line in lines], settings=SETTINGS, trunks=trunks) as network:
        with Parties(network.node.address, carrier, DOMAIN) as parties:
            yield _Peer("node", parties, network.node.memory_bytes)


@asynccontextmanager
async def _kamailio(lines: Sequence[LineSpec]) -> AsyncIterator[_Peer]:
    carrier = (TRUNK_HOST, free_udp_port(TRUNK_HOST))
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(Valkey())
        proxy = KamailioProxy(lines, ["008800"], realm=DOMAIN, trunk=carrier, store=store, children=KAMAILIO_CHILDREN)
        await stack.enter_async_context(proxy)
        parties = stack.enter_context(Parties(proxy.address, carrier, DOMAIN))
        yield _Peer("kamailio", parties, partial(tree_memory_bytes, proxy.pid))  # its children share most of it


class _Run:
    """What is asked of one process, and what was found."""

    def __init__(self, peer: _Peer, plan: Plan, tell: Callable[[str], None]) -> None:
        self._peer, self._plan, self._tell = peer, plan, tell
        self.found = Held(peer.title, idle=peer.memory_bytes())

    async def all(self, what: str, calls: Sequence[Scripted], steps: Sequence[Step]) -> float:
        """Take all of them through the steps; seconds that it took."""
        count, began = 0, time.monotonic()

        def done() -> None:
            nonlocal count
            count += 1
            self._tell(f"{self._peer.title}: {what}, {count} of {len(calls)}")

        self.found.failed += await self._peer.parties.all(calls, steps, together=self._plan.together, done=done)
        return time.monotonic() - began

    async def pause(self) -> int:
        """Let what is over be forgotten; the bytes after that."""
        self._tell(f"{self._peer.title}: pause")
        await asyncio.sleep(self._plan.pause_s)
        return self._peer.memory_bytes()

    async def register(self, lines: Sequence[LineSpec], first: int) -> None:
        """Each line's devices; `first` is the number of the first line."""
        calls = [self._peer.parties.call(line, first + n, device) for n, line in enumerate(lines) for device in range(DEVICES)]
        seconds = await self.all("registrations", calls, REGISTER_STEPS)
        if not self.found.registered:
            self.found.registering = self._peer.memory_bytes()
            self.found.begun = _within(len(calls), seconds)
        self.found.registered.append(await self.pause())

    async def live(self, lines: Sequence[LineSpec]) -> None:
        """Calls in two halves, which are hung up when both are there; one that did not come to be has failed, and no more."""
        calls = [self._peer.parties.call(lines[n // CHANNELS], n // CHANNELS) for n in range(self._plan.calls)]
        for half in _halves(calls):
            await self.all("calls", half, CALL_STEPS[:SET_UP])
            self.found.live.append(await self.pause())
        await self.all("hanging up", [call for call in calls if call.answer is not None], CALL_STEPS[SET_UP:])

    async def ended(self, lines: Sequence[LineSpec]) -> None:
        """Calls that end at once, for as long as none of them is forgotten, in two halves of the time."""
        await self.all("first messages", [self._peer.parties.call(lines[0], n) for n in range(STRANGERS)], REGISTER_STEPS[:1])
        spent, sizes = 0, list[tuple[int, int]]()
        began, half_s = time.monotonic(), min(KEPT_S, self._plan.pause_s) / 2
        for number in (1, 2):
            while time.monotonic() - began < number * half_s:
                batch = range(spent, spent + self._plan.together)
                calls = [self._peer.parties.call(lines[n % len(lines)], n % len(lines)) for n in batch]
                await self.all("calls that end", calls, CALL_STEPS)
                spent += len(batch)
            sizes.append((spent, self._peer.memory_bytes()))
        (before, first), (after, second) = sizes
        self.found.ended_bytes = (second - first) / max(1, after - before)


def _halves(found: Sequence[Scripted]) -> Iterable[Sequence[Scripted]]:
    return found[: len(found) // 2], found[len(found) // 2 :]


def _within(count: int, seconds: float) -> int:
    """How many of so many, that took so long, are not older than what is kept for a while."""
    return max(1, round(count * min(1.0, KEPT_S / max(seconds, 0.001))))


async def hold(plan: Plan, tell: Callable[[str], None]) -> list[Held]:
    """What the node held, and Kamailio where it is wanted and installed. Raises what their start raises. When interrupted: what
    was measured until then; the cancellation goes on where that is nothing."""
    lines = many_lines(max(plan.lines, -(-plan.calls // CHANNELS)), channels=CHANNELS)
    callers = many_lines(CALLERS, channels=CHANNELS)
    found: list[Held] = []
    try:
        for start in (_node, *((_kamailio,) if plan.kamailio and not missing() else ())):
            async with start(lines) as peer:
                run = _Run(peer, plan, tell)
                half = plan.lines // 2
                await run.register(lines[:half], 0)
                await run.register(lines[half : plan.lines], half)
                found.append(run.found)
                await run.live(lines)
            async with start(callers) as peer:
                short = _Run(peer, plan, tell)
                await short.ended(callers)
            run.found.ended_bytes = short.found.ended_bytes
            run.found.failed += short.found.failed
    except asyncio.CancelledError:
        if not found:
            raise
        found[-1].interrupted = True
    return found


def report_of(plan: Plan, found: Held) -> Report:
    """Bytes of each kind."""
    half = plan.lines // 2
    stays = (found.registered[1] - found.registered[0]) / (DEVICES * (plan.lines - half))
    transactions = found.registering - found.idle - DEVICES * half * stays
    report = Report(f"{found.title}: {DEVICES * plan.lines} registrations of {plan.lines} lines, and {plan.calls} live calls")
    report.add("idle_kib", "idle", found.idle / KIB, "KiB")
    report.add("registration_bytes", "a registration", stays, "bytes")
    report.add("register_transaction_bytes", "a REGISTER, for 32 s", max(0.0, transactions / found.begun), "bytes")
    has_live, ended = len(found.live) > 1, found.ended_bytes
    live = (found.live[1] - found.live[0]) / (plan.calls - plan.calls // 2) if has_live else NOT_MEASURED
    report.add("live_call_bytes", "a live call", live, "bytes")
    report.add("ended_call_bytes", "a call that ended, for 32 s", NOT_MEASURED if ended is None else ended, "bytes")
    report.add("registered_kib", "with all registrations", found.registered[1] / KIB, "KiB")
    report.add("peak_kib", "with all calls", found.live[1] / KIB if has_live else NOT_MEASURED, "KiB")
    report.expect(found.failed == 0, f"{found.failed} registrations or calls failed")
    report.expect(not found.interrupted, INTERRUPTED)
    return report


async def measure(plan: Plan, tell: Callable[[str], None]) -> list[Report]:
    """A report of each process."""
    return [report_of(plan, found) for found in await hold(plan, tell)]


def add_memory(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """The command `memory`."""
    add_planned(
        commands,
        common,
        "memory",
        Plan(),
        measure,
        text="what a registration, a live and an ended call take, at a node and at Kamailio",
        options={
            "lines": "with two registrations each",
            "calls": "held",
            "together": "registrations or calls that are being set up at a time",
            "pause_s": "seconds until no transaction is left",
            "kamailio": "measure Kamailio, too, where it is installed",
        },
    )
