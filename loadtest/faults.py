"""What calls notice when their store is in trouble: one fault at a time under live calls at two nodes (design §8).

Each fault has a before, a during and an after. Calls of many lines come at a rate and are held; some lines get more calls than
they have channels all the time, at both nodes; emergency calls go on beside. What the parties did is the truth: how many calls
a line had at once, and which calls there were. Records are read by a consumer whose group is a sink of the nodes: what it has
not acknowledged comes again, from a store that was emptied or fell back too.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cdr.consumer import Consumer
from loadtest.generate import at_rate, percentile
from loadtest.network import Network, many_lines
from loadtest.reconcile import TOLERANCE_MS, Reconciliation, compare, live_slots, wait_until
from loadtest.relay import Relay
from loadtest.report import Report, counted
from loadtest.ua import CallError, NoAnswerError
from loadtest.valkey import Valkey

if TYPE_CHECKING:
    from cdr.consumer import Delivery
    from cdr.facts import Record
    from loadtest.agents import Router
    from loadtest.node import Node
    from loadtest.ua import Call

__all__ = ["CHANNELS", "FAULTS", "PHASES", "FaultReport", "Timing", "fault_report", "run_fault"]

DIALLED = "03023125001"
CHANNELS = 2
TIGHT_LINES = 4  # lines that always have more calls than channels
TIGHT_SHARE = 0.8  # of the rate: set-ups of these lines, at the nodes in turn
EMERGENCY_EVERY_S = 0.25
ANSWER_S = 40.0
LATENCY_S = 0.75
LOSE_EVERY_S = 0.5
STILL_S = 0.5  # a line whose calls changed within this is not compared with its slots
SETTLE_S = 60.0
REGISTERED_S = 7200  # nobody registers again during a fault
SINK = "billing"
PUBLISHER_ERROR = re.compile(r'sipproxy_cdr_errors_total\{error="(\w+)"\}')
LATE_MS = 1_500  # from a call's end to its record in the stream; it takes 60 ms while nothing is in the way
LOADED = 16_384  # commands that the store loads slowly: it answers others behind each 1,024 of them
PHASES = ("before", "during", "after")
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "log": {"level": "warning"},
    "store": {"lease_s": 15, "refresh_s": 5},  # leases end within a fault
    "cdr": {"sinks": [SINK]},
}


class RelayedValkey(Valkey):
    """A store that nodes reach through a relay; `client` goes past it."""

    relay: Relay

    async def __aenter__(self) -> RelayedValkey:
        await super().__aenter__()
        self.relay = Relay(self.directory / "s", self.directory / "r")
        await self.relay.__aenter__()
        self.url = self.relay.url
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.relay.__aexit__(None, None, None)
        await super().__aexit__(*error)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each phase, and calls a second beside those of the tight lines."""

    before_s: float = 15.0
    during_s: float = 20.0
    after_s: float = 20.0
    rate: float = 15.0
    hold_s: float = 3.0


@dataclass(slots=True)
class Phase:
    """What calls placed within it saw."""

    setup_ms: list[float] = field(default_factory=list)
    emergency_ms: list[float] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)  # of lines with free channels
    refused_full: Counter[int] = field(default_factory=Counter)  # of the tight lines
    over: int = 0  # how many calls a line had beyond its channels, at most


@dataclass(slots=True)
class FaultReport:
    """One fault. `slots_right_s` counts from the fault's end, None when slots and calls never were equal again."""

    name: str
    phases: dict[str, Phase] = field(default_factory=lambda: {name: Phase() for name in PHASES})
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
        self.changed_at: dict[str, float] = defaultdict(float)
        self.records: dict[str, Record] = {}
        self.entries: dict[str, tuple[int, int]] = {}  # when records came into the stream, and how late after their calls, ms
        self.ended_ms = 0  # when the fault ended

    # -- calls

    async def one(self, line: str, place: Callable[[], Awaitable[Call]], hold_s: float, *, tight: bool) -> None:
        """One call of a line, held and ended by its caller."""
        phase = self.report.phases[self.phase]
        call = await place()
        try:
            await call.answered(ANSWER_S)
        except CallError as error:
            (phase.refused_full if tight else phase.refused)[error.status] += 1
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


Fault = Callable[[_Run, float], Awaitable[None]]


async def _stop(run: _Run, seconds: float) -> None:
    run.store.stop()
    try:
        await asyncio.sleep(seconds)
    finally:
        run.store.resume()


async def _kill(run: _Run, seconds: float) -> None:
    await run.store.kill()
    await asyncio.sleep(seconds)
    await run.store.start_again()


async def _flush(run: _Run, seconds: float) -> None:
    await run.store.client.flushall()
    await asyncio.sleep(seconds)


async def _latency(run: _Run, seconds: float) -> None:
    run.store.relay.delay_s = LATENCY_S
    await asyncio.sleep(seconds)
    run.store.relay.delay_s = 0.0


async def _read_only(run: _Run, seconds: float) -> None:
    await run.store.client.replicaof("127.0.0.1", 1)  # nobody listens there
    await asyncio.sleep(seconds)
    await run.store.client.replicaof("NO", "ONE")


async def _full(run: _Run, seconds: float) -> None:
    await run.store.client.config_set("maxmemory", "1")
    await asyncio.sleep(seconds)
    await run.store.client.config_set("maxmemory", "0")


async def _lost_reply(run: _Run, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        run.store.relay.lose_replies = 1
        await asyncio.sleep(LOSE_EVERY_S)
    run.store.relay.lose_replies = 0


async def _misconf(run: _Run, seconds: float) -> None:
    """A save to disk fails: a directory with something in it stands where the file is to go."""
    obstacle = run.store.directory / "dump.rdb" / "in the way"
    obstacle.mkdir(parents=True)
    await run.store.client.config_set("save", "3600 1")  # without any the store does not mind
    await _save(run, "err")
    await asyncio.sleep(seconds)
    shutil.rmtree(obstacle.parent)
    await _save(run, "ok")
    await run.store.client.config_set("save", "")


async def _save(run: _Run, outcome: str) -> None:
    """Have the store saved; raises AssertionError when that does not end as it should."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        state = await run.store.client.info("persistence")
        if not state["rdb_bgsave_in_progress"] and state["rdb_last_bgsave_status"] == outcome:
            return
        if not state["rdb_bgsave_in_progress"] and not state["aof_rewrite_in_progress"]:
            await run.store.client.bgsave()
        await asyncio.sleep(0.05)
    raise AssertionError(f"the store's save did not end with {outcome!r}")


async def _loading(run: _Run, seconds: float) -> None:
    """The store starts on much data: it is there, and answers that it is loading."""
    await run.store.client.rpush("filler", *([b"x"] * 16))
    async with run.store.client.pipeline(transaction=False) as pipe:
        for _ in range(LOADED):
            pipe.lset("filler", 0, "y")
        await pipe.execute()
    await run.store.kill()
    slow = ("--key-load-delay", str(round(1e6 * seconds / LOADED)))  # microseconds a command
    await run.store.start_again(*slow, timeout_s=10 * seconds + SETTLE_S)


async def _old_copy(run: _Run, seconds: float) -> None:
    """The store dies and comes back with what it had a while before, as from a backup or an asynchronous replica."""
    files, copy = run.store.directory / "appendonlydir", run.store.directory / "copy"
    shutil.copytree(files, copy)
    await asyncio.sleep(seconds / 2)
    await run.store.kill()
    shutil.rmtree(files)
    copy.rename(files)
    await run.store.start_again()
    await asyncio.sleep(seconds / 2)


FAULTS: Mapping[str, Fault] = {
    "stopped": _stop,
    "killed": _kill,
    "flushed": _flush,
    "slow": _latency,
    "read-only": _read_only,
    "full": _full,
    "misconf": _misconf,
    "loading": _loading,
    "old copy": _old_copy,
    "lost reply": _lost_reply,
}


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
            response = await routers[-1].register(expires_s=REGISTERED_S)
            assert response.status == 200, f"{user} was answered {response.status}"
        tight, caller, wide_routers = routers[:TIGHT_LINES], routers[-1], routers[TIGHT_LINES:-1]
        await asyncio.gather(*(_known(run, user) for user in users[:TIGHT_LINES]))
        seconds = timing.before_s + timing.during_s + timing.after_s
        async with Consumer(network.store.client, group=SINK, idle_s=5) as consumer, asyncio.TaskGroup() as group:
            group.create_task(_calls(run, wide_routers, timing, seconds))
            group.create_task(_tight_calls(run, tight, timing, seconds))
            group.create_task(at_rate(1 / EMERGENCY_EVERY_S, int(seconds / EMERGENCY_EVERY_S), lambda _: run.emergency(caller)))
            group.create_task(consumer.run(run.take))
            progress("before")
            await asyncio.sleep(timing.before_s)
            run.phase = "during"
            progress("during")
            await fault(run, timing.during_s)
            run.phase, run.ended_ms = "after", time.time_ns() // 1_000_000
            progress("after")
            await run.watch_slots(time.monotonic())
            await asyncio.sleep(timing.after_s)
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
        await run.one(line, lambda: router.call(DIALLED), timing.hold_s, tight=False)

    await at_rate(timing.rate, round(timing.rate * seconds), one)


async def _tight_calls(run: _Run, routers: list[Router], timing: Timing, seconds: float) -> None:
    async def one(number: int) -> None:
        spec = run.network.lines[routers[number % len(routers)].user]
        node = run.nodes[number // len(routers) % 2]
        await run.one(spec.line, lambda: run.network.trunk.call(spec.number, node.address), timing.hold_s, tight=True)

    rate = TIGHT_SHARE * timing.rate
    await at_rate(rate, round(rate * seconds), one)


async def _compare(run: _Run) -> None:
    placed = run.network.ledger.placed()
    await wait_until(lambda: len(run.records) >= len(placed), timeout_s=SETTLE_S)
    run.note_drain()
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
        report.add(f"over_{phase}", f"calls of a line beyond its channels {phase}", seen.over)
    right = found.slots_right_s
    report.add("slots_right_s", "end of the fault until slots equalled calls", -1.0 if right is None else right, "s")
    report.add("slots_left", "slots left", found.slots_left)
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
        # Of two nodes each may go by its own calls once the store is in trouble (design §8).
        bound = 0 if phase == "before" else CHANNELS
        report.expect(not seen.refused, f"refused {phase}: {counted(seen.refused)}")
        report.expect(set(seen.refused_full) <= {486}, f"full lines {phase}: {counted(seen.refused_full)}")
        report.expect(seen.over <= bound, f"{seen.over} calls beyond a line's channels {phase}")
    report.expect(right is not None, "slots never equalled calls again")
    report.expect(found.slots_left == 0, "slots are left over")
    report.expect(found.result.ok, str(found.result))
    return report
