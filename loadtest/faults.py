"""What calls notice when their store is in trouble: one fault at a time under live calls at two nodes (design §8).

Each fault has a before, a during and an after. Calls of many lines come at a rate and are held; some lines get more calls than
they have channels all the time, at both nodes; emergency calls go on beside. What the parties did is the truth: how many calls
a line had at once, and which calls there were. Records are read by a consumer whose group is a sink of the nodes: what it has
not acknowledged comes again, from a store that was emptied or fell back too.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cdr.consumer import Consumer
from loadtest.generate import at_rate, percentile
from loadtest.lateness import OwnLateness, worst_bucket_ms
from loadtest.network import Network, many_lines
from loadtest.reconcile import TOLERANCE_MS, Reconciliation, compare, live_slots, wait_until
from loadtest.report import Report, counted
from loadtest.store_faults import FAULTS, RelayedValkey
from loadtest.ua import CallError, NoAnswerError

if TYPE_CHECKING:
    from cdr.consumer import Delivery
    from cdr.facts import Record
    from loadtest.agents import Router
    from loadtest.node import Node
    from loadtest.ua import Address, Call

__all__ = ["CHANNELS", "PHASES", "FaultReport", "Timing", "fault_report", "run_fault"]

DIALLED = "03023125001"
CHANNELS = 2
FULL = frozenset({"403 line.channels", "486 line.channels"})  # how a full line refuses, by the call's way
TIGHT_LINES = 4  # lines that always have more calls than channels
TIGHT_SHARE = 0.8  # of the rate: set-ups of these lines, at the nodes in turn
EMERGENCY_EVERY_S = 0.25
ANSWER_S = 40.0
STILL_S = 0.5  # a line whose calls changed within this is not compared with its slots
SETTLE_S = 60.0
OWED_S = 5.0  # a node that is back later than the other one owes the store releases for so long
SINK = "billing"
UNDECIDED = 'sipproxy_slots_undecided_total{way="local"}'
PUBLISHER_ERROR = re.compile(r'sipproxy_cdr_errors_total\{error="(\w+)"\}')
LATE_MS = 1_500  # from a call's end to its record in the stream; it takes 60 ms while nothing is in the way
PHASES = ("before", "during", "after")
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "log": {"level": "warning"},
    "store": {"lease_s": 15, "refresh_s": 5},  # leases end within a fault
    "cdr": {"sinks": [SINK]},
}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each phase, and calls a second beside those of the tight lines."""

    before_s: float = 15.0
    during_s: float = 20.0
    after_s: float = 20.0
    rate: float = 15.0
    hold_s: float = 3.0
    registered_s: int = 7200  # after two thirds of it a router registers again

    @property
    def whole_s(self) -> float:
        return self.before_s + self.during_s + self.after_s


@dataclass(slots=True)
class Phase:
    """What calls placed within it saw."""

    setup_ms: list[float] = field(default_factory=list)
    emergency_ms: list[float] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)  # of lines with free channels
    refused_full: Counter[int] = field(default_factory=Counter)  # of lines that had as many calls as channels
    rules: Counter[str] = field(default_factory=Counter)  # what their records say, "403 line.channels" and so on
    over: int = 0  # how many calls a line had beyond its channels, at most
    undecided: int = 0  # slots that a node decided on without the store
    nodes_late_ms: float = 0.0  # a bound on how late the nodes' event loops ran
    own_late_ms: float = 0.0  # how late this program's own did, at the 99th percentile: delays that are not the nodes'


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that was refused, and how many calls its line had beside it, or had had at the other node as that could not say
    that they had ended (design §8)."""

    call_id: str
    phase: Phase
    status: int
    others: int


@dataclass(slots=True)
class FaultReport:
    """One fault. `slots_right_s` counts from the fault's end, None when slots and calls never were equal again."""

    name: str
    phases: dict[str, Phase] = field(default_factory=lambda: {name: Phase() for name in PHASES})
    registered: int = 0  # registrations that were renewed
    failures: list[str] = field(default_factory=list)  # no final response, or no answer to the BYE
    emergency_failures: list[str] = field(default_factory=list)
    slots_right_s: float | None = None
    slots_left: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # what the publishers of both nodes met, by its name
    late: int = 0  # records that the fault kept in the journals
    resumed_s: float = 0.0  # from the fault's end until the first of them was published
    drain_s: float = 0.0  # from then until the last one was
    drained: int = 0  # records that were published meanwhile, of calls that went on too
    records_again: int = 0  # records that were published a second time, under the same id
    result: Reconciliation = field(default_factory=Reconciliation)


class _Run:
    """A network with two nodes while one fault happens."""

    def __init__(self, network: Network, nodes: list[Node], report: FaultReport) -> None:
        self.network, self.nodes, self.report = network, nodes, report
        assert isinstance(network.store, RelayedValkey)
        self.store = network.store
        self.phase = "before"
        self.live: dict[str, set[str]] = defaultdict(set)  # Call-IDs of answered calls, by line
        self.busy: Counter[str] = Counter()  # calls from their INVITE until the answer to their BYE, by line
        self.ended: list[tuple[float, str, Address]] = []  # calls of which the store may have heard late, by line and node
        self.trouble = (math.inf, math.inf)  # from when until when such calls end
        self.refusals: list[Refusal] = []
        self.told: list[dict[str, float]] = [{}, {}]  # the nodes' metrics when the phase began
        self.changed_at: dict[str, float] = defaultdict(float)
        self.records: dict[str, Record] = {}
        self.entries: dict[str, tuple[int, int]] = {}  # when records came into the stream, and how late after their calls, ms
        self.ended_ms = 0  # when the fault ended

    # -- calls

    async def one(self, line: str, node: Address, place: Callable[[], Awaitable[Call]], hold_s: float) -> None:
        """One call of a line at a node, held and ended by its caller."""
        others = self.busy[line] + self._owed_by_others(line, node)
        self.busy[line] += 1
        try:
            await self._call(line, others, place, hold_s)
        finally:
            self.busy[line] -= 1
            self.ended.append((time.monotonic(), line, node))

    def _owed_by_others(self, line: str, node: Address) -> int:
        """How many slots of calls that ended the store may still count for a line, as another node has not told it yet."""
        since, until = self.trouble
        if not since <= time.monotonic() < until + OWED_S:
            return 0
        return sum(owner == line and at != node and since <= ended < until for ended, owner, at in self.ended)

    async def _call(self, line: str, others: int, place: Callable[[], Awaitable[Call]], hold_s: float) -> None:
        phase = self.report.phases[self.phase]
        call = await place()
        try:
            await call.answered(ANSWER_S)
        except CallError as error:
            self.refusals.append(Refusal(call.call_id, phase, error.status, others))
            return
        except NoAnswerError as error:
            self.report.failures.append(str(error))
            return
        self._set(line, call, live=True)
        if call.truth.setup_ms is not None:
            phase.setup_ms.append(call.truth.setup_ms)
        await asyncio.sleep(hold_s)
        self._set(line, call, live=False)
        try:
            status = await call.hang_up()
        except NoAnswerError as error:
            self.report.failures.append(str(error))
            return
        if status != 200:
            self.report.failures.append(f"{call.call_id}: BYE was answered {status}")

    def _set(self, line: str, call: Call, *, live: bool) -> None:
        calls = self.live[line]
        (calls.add if live else calls.discard)(call.call_id)
        self.changed_at[line] = time.monotonic()
        phase = self.report.phases[self.phase]
        phase.over = max(phase.over, len(calls) - CHANNELS)

    async def emergency(self, router: Router) -> None:
        phase = self.report.phases[self.phase]
        try:
            call = await (await router.call("112")).answered(ANSWER_S)
            phase.emergency_ms.append(call.truth.setup_ms or 0.0)
            await call.hang_up()
        except (CallError, NoAnswerError) as error:
            self.report.emergency_failures.append(str(error))

    async def renew(self, router: Router, timing: Timing, share: float) -> None:
        """Register again and again; the first time earlier by a `share`, so that not all do so at once."""
        until = time.monotonic() + timing.whole_s
        wait_s = timing.registered_s * 2 / 3
        first_s = wait_s * (1 - share)
        while time.monotonic() + (first_s or wait_s) < until:
            await asyncio.sleep(first_s or wait_s)
            first_s = 0.0
            try:
                response = await router.register(expires_s=timing.registered_s)
            except NoAnswerError as error:
                self.report.failures.append(str(error))
                continue
            self.report.registered += 1
            if response.status != 200:
                self.report.failures.append(f"{router.user}: REGISTER was answered {response.status}")

    # -- slots and records

    async def slots_equal_calls(self) -> bool:
        """Whether every line whose calls did not change lately has as many slots as calls."""
        counts = {line: len(calls) for line, calls in self.live.items()}
        asked_at = time.monotonic()
        slots = await live_slots(self.store.client)
        still = [line for line in counts if self.changed_at[line] < asked_at - STILL_S and len(self.live[line]) == counts[line]]
        return bool(still) and all(len(slots.get(line, ())) == counts[line] for line in still)

    async def watch_slots(self, since: float) -> None:
        """Note when slots equal calls again, three times in a row."""
        in_a_row, first = 0, 0.0
        while in_a_row < 3:
            if time.monotonic() - since > SETTLE_S:
                return
            if await self.slots_equal_calls():
                first = first if in_a_row else time.monotonic()
                in_a_row += 1
            else:
                in_a_row = 0
            await asyncio.sleep(0.1)
        self.report.slots_right_s = first - since

    async def take(self, batch: list[Delivery]) -> None:
        """The records of a batch into the table of final ones, by id."""
        for one in batch:
            if one.record.type == "final":
                self.report.records_again += one.record.id in self.records
                self.records[one.record.id] = one.record
                at_ms = int(one.entry_id.partition("-")[0])
                self.entries[one.entry_id] = (at_ms, at_ms - one.record.end_at_ms)

    def explain_refusals(self) -> None:
        """Tell refusals of full lines from others, and what the records say of each."""
        rules = {record.call_id: record.rule for record in self.records.values()}
        for refusal in self.refusals:
            phase = refusal.phase
            (phase.refused_full if refusal.others >= CHANNELS else phase.refused)[refusal.status] += 1
            phase.rules[f"{refusal.status} {rules.get(refusal.call_id, 'without a record')}"] += 1

    async def end_phase(self, own: OwnLateness) -> None:
        """Note what the nodes and this program itself tell of the phase that ends."""
        phase, now = self.report.phases[self.phase], [await node.metrics() for node in self.nodes]
        told = list(zip(self.told, now, strict=True))
        phase.undecided = sum(int(after.get(UNDECIDED, 0) - before.get(UNDECIDED, 0)) for before, after in told)
        phase.nodes_late_ms = max(worst_bucket_ms(*each) for each in told)
        phase.own_late_ms = percentile(own.samples_ms, 0.99)
        own.samples_ms.clear()
        self.told = now

    async def note_errors(self) -> None:
        """What the nodes' publishers have met."""
        for node in self.nodes:
            for name, value in (await node.metrics()).items():
                match = PUBLISHER_ERROR.fullmatch(name)
                if match is not None:
                    self.report.errors[match[1]] += round(value)

    def note_drain(self) -> None:
        """What came late into the stream after the fault's end, and the others among it."""
        entries = sorted(entry for entry in self.entries.values() if entry[0] >= self.ended_ms)
        late = [at_ms for at_ms, late_ms in entries if late_ms >= LATE_MS]
        if late:
            self.report.late = len(late)
            self.report.resumed_s = (late[0] - self.ended_ms) / 1000
            self.report.drained = sum(late[0] <= at_ms <= late[-1] for at_ms, _ in entries)
            self.report.drain_s = (late[-1] - late[0]) / 1000


async def run_fault(name: str, timing: Timing, progress: Callable[[str], None] = lambda _: None) -> FaultReport:
    """Set a network up, have the fault happen under calls, and compare. Raises KeyError for an unknown name."""
    fault, report = FAULTS[name], FaultReport(name)
    wide = max(2, -int(-timing.rate * (timing.hold_s + 8) // CHANNELS))
    lines = many_lines(TIGHT_LINES + wide + 1, channels=CHANNELS)
    async with Network(lines, settings=SETTINGS, store=RelayedValkey()) as network, network.another_node() as other:
        run = _Run(network, [network.node, other], report)
        users = list(network.lines)
        routers = []
        for number, user in enumerate(users):
            at = run.nodes[number % 2] if number >= TIGHT_LINES else None
            routers.append(await network.router(user, register=False, node=at))
            response = await routers[-1].register(expires_s=timing.registered_s)
            assert response.status == 200, f"{user} was answered {response.status}"
        tight, caller, wide_routers = routers[:TIGHT_LINES], routers[-1], routers[TIGHT_LINES:-1]
        await asyncio.gather(*(_known(run, user) for user in users[:TIGHT_LINES]))
        seconds = timing.whole_s
        async with (
            Consumer(network.store.client, group=SINK, idle_s=5) as consumer,
            OwnLateness() as own,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(_calls(run, wide_routers, timing, seconds))
            group.create_task(_tight_calls(run, tight, timing, seconds))
            group.create_task(at_rate(1 / EMERGENCY_EVERY_S, int(seconds / EMERGENCY_EVERY_S), lambda _: run.emergency(caller)))
            for number, router in enumerate(routers):
                group.create_task(run.renew(router, timing, number / len(routers)))
            group.create_task(consumer.run(run.take))
            progress("before")
            await asyncio.sleep(timing.before_s)
            await run.end_phase(own)
            run.phase, run.trouble = "during", (time.monotonic() - 1.0, math.inf)  # some releases were still on their way
            progress("during")
            await fault(run.store, timing.during_s)
            await run.end_phase(own)
            run.phase, run.ended_ms = "after", time.time_ns() // 1_000_000
            progress("after")
            await run.watch_slots(time.monotonic())
            run.trouble = (run.trouble[0], time.monotonic())
            await asyncio.sleep(timing.after_s)
            await run.end_phase(own)
            report.slots_left = await network.slots_of_all(0, timeout_s=SETTLE_S)
            await _compare(run)
            await run.note_errors()
            consumer.stop()
    return report


async def _known(run: _Run, user: str) -> None:
    """Wait until the second node knows of a registration at the first."""
    for _ in range(100):
        call = await run.network.trunk.call(run.network.lines[user].number, run.nodes[1].address)
        if await call.final(ANSWER_S) == 200:
            await call.hang_up()
            return
        await asyncio.sleep(0.1)


async def _calls(run: _Run, routers: list[Router], timing: Timing, seconds: float) -> None:
    async def one(number: int) -> None:
        router = routers[number % len(routers)]
        line = run.network.lines[router.user].line
        await run.one(line, router.proxy, lambda: router.call(DIALLED), timing.hold_s)

    await at_rate(timing.rate, round(timing.rate * seconds), one)


async def _tight_calls(run: _Run, routers: list[Router], timing: Timing, seconds: float) -> None:
    async def one(number: int) -> None:
        spec = run.network.lines[routers[number % len(routers)].user]
        node = run.nodes[number // len(routers) % 2]
        await run.one(spec.line, node.address, lambda: run.network.trunk.call(spec.number, node.address), timing.hold_s)

    rate = TIGHT_SHARE * timing.rate
    await at_rate(rate, round(rate * seconds), one)


async def _compare(run: _Run) -> None:
    placed = run.network.ledger.placed()
    await wait_until(lambda: len(run.records) >= len(placed), timeout_s=SETTLE_S)
    run.note_drain()
    run.explain_refusals()
    slowest = max((max(phase.setup_ms, default=0.0) for phase in run.report.phases.values()), default=0.0)
    run.report.result = compare(placed, run.records.values(), tolerance_ms=TOLERANCE_MS + round(slowest))


def fault_report(found: FaultReport) -> Report:
    """The figures of one fault, and what of them must not be."""
    report = Report(found.name)
    for phase in PHASES:
        seen = found.phases[phase]
        for share, which in ((0.5, "p50"), (0.99, "p99")):
            report.add(f"setup_{which}_{phase}_ms", f"set-up {phase}, {which}", percentile(seen.setup_ms, share), "ms")
            value = percentile(seen.emergency_ms, share)
            report.add(f"emergency_{which}_{phase}_ms", f"emergency set-up {phase}, {which}", value, "ms")
        report.add(f"refused_{phase}", f"refused {phase}, of lines with free channels", seen.refused.total())
        report.add(f"refused_full_{phase}", f"refused {phase}, of full lines", seen.refused_full.total())
        report.add(f"rules_{phase}", f"refused {phase}, by status and rule", counted(seen.rules))
        report.add(
            f"nodes_late_{phase}_ms", f"the nodes' event loops were late by less than, {phase}", seen.nodes_late_ms, "ms"
        )
        report.add(f"own_late_{phase}_ms", f"this program's own was late by, {phase}, p99", seen.own_late_ms, "ms")
        report.add(f"undecided_{phase}", f"slots decided without the store {phase}", seen.undecided)
        report.add(f"over_{phase}", f"calls of a line beyond its channels {phase}", seen.over)
    right = found.slots_right_s
    report.add("slots_right_s", "end of the fault until slots equalled calls", -1.0 if right is None else right, "s")
    report.add("slots_left", "slots left", found.slots_left)
    report.add("registered", "registrations renewed", found.registered)
    report.add("records", "records", found.result.records)
    report.add("lost", "records lost", len(found.result.missing))
    report.add("double", "calls with two records", len(found.result.repeated))
    report.add("errors", "what the publishers met", counted(found.errors))
    report.add("late", "records that waited for the fault's end", found.late)
    report.add("resumed_s", "end of the fault until the first of them was published", found.resumed_s, "s")
    report.add("drain_s", "from then until the last one was", found.drain_s, "s")
    report.add("drain_per_s", "records published in this time", found.drained / max(found.drain_s, 0.001), "a second")
    report.add("again", "records published again under their id", found.records_again)
    report.expect(not found.failures, f"{len(found.failures)} calls failed: {found.failures[:3]}")
    report.expect(not found.emergency_failures, f"emergency calls failed: {found.emergency_failures[:3]}")
    for phase in PHASES:
        seen = found.phases[phase]
        # Of two nodes each may go by its own calls once the store is in trouble, or late on a machine that is busy (design §8).
        bound = CHANNELS if phase != "before" or seen.undecided else 0
        report.expect(not seen.refused, f"refused {phase}: {counted(seen.refused)}, by rule {counted(seen.rules)}")
        report.expect(set(seen.rules) <= FULL, f"refused for other reasons {phase}: {counted(seen.rules)}")
        report.expect(seen.over <= bound, f"{seen.over} calls beyond a line's channels {phase}")
    report.expect(right is not None, "slots never equalled calls again")
    report.expect(found.slots_left == 0, "slots are left over")
    report.expect(found.result.ok, str(found.result))
    return report
