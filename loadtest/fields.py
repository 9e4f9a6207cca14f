"""Mixed calls of every kind, and each field of each record compared with what the parties themselves did and saw.

What a record has to say follows from the kind of call, which is written down here by hand, and from the parties' own stamps and
tags; nothing is asked of the node or of its policy. A node that has too much to do answers an INVITE 503, and its record says
so: such calls are counted apart, and no more of them may be than the node says it shed.
Leaves out: outages (outages.py), durations over hours.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from loadtest.agents import Answering, Router, Trunk
from loadtest.generate import at_rate, percentile
from loadtest.network import Network, many_lines
from loadtest.node import LineSpec
from loadtest.report import Report
from loadtest.ua import NoAnswerError

if TYPE_CHECKING:
    from cdr.facts import Record
    from loadtest.dialog import Call
    from loadtest.truth import CallTruth
    from loadtest.ua import Address, Headers

__all__ = ["AWAY", "CALLED", "FULL", "KINDS", "Compared", "Kind", "mixed_calls", "report_of"]

STAMP_MS = 50  # how closely the parties' own stamps should enclose the proxy's, on a machine that has the time
CLOCK_MS = 3  # stamps are whole milliseconds of the wall clock, the parties' own of the monotonic one
ANSWER_S = 35.0
MAX_SHOWN = 50  # differences that are named
SHED, SHED_RULES = 503, ("node.overload", "line.messages")
SHED_METRIC = re.compile(r'sipproxy_shed_total\{.*kind="invite".*\}')
CALLED = LineSpec("V7001", "v7001", "called", "+492051555700", "velbert", "02051", "velbert", channels=2)
FULL = LineSpec("V7002", "v7002", "full", "+492051555701", "velbert", "02051", "velbert", channels=1)
AWAY = LineSpec("V7003", "v7003", "away", "+492051555702", "velbert", "02051", "velbert")
HOLD_S = 0.5
FIRST_CALLER = 500_000
PRIVATE: Headers = ((b"Privacy", b"id"),)

Fields = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of call: who calls whom, what both do, and what the record says of that.

    `then` is what the caller does once the callee has answered, or rings when it is to be cancelled.
    """

    name: str
    weight: int
    dialled: str
    says: Fields
    callee: Answering = field(default_factory=Answering)
    then: Literal["hang_up", "wait", "cancel"] = "hang_up"
    by: Literal["router", "trunk", "full"] = "router"
    headers: Headers = ()


_OUT: Fields = {"direction": "outgoing", "verdict": "allow", "rule": "allow", "slots_limit": 2, "privacy": "", "psap": ""}
_BERLIN: Fields = {**_OUT, "canonical": "+493023125001", "destination_class": "geographic", "trunk": "carrier"}
_NORMAL: Fields = {"status": 200, "cause": 16, "end_reason": "normal"}
_REJECTED: Fields = {"end_reason": "rejected", "released_by": "callee"}
_DENIED: Fields = {**_OUT, "verdict": "deny", "trunk": "", "end_reason": "refused", "released_by": "proxy", "slots_used": None}
_HELP: Fields = {
    **_OUT, "verdict": "emergency", "rule": "emergency.target", "destination_class": "emergency", "trunk": "",
    "slots_limit": None, "slots_used": None,
}  # fmt: skip
_IN: Fields = {
    "direction": "incoming", "line": CALLED.line, "account": CALLED.user, "profile": "velbert", "calling": "+493023125001",
    "presented": "+493023125001", "canonical": CALLED.number, "destination_class": "geographic", "trunk": "carrier",
    "verdict": "allow", "rule": "allow", "slots_limit": 2, "psap": "",
}  # fmt: skip
_RINGS = Answering(ring_s=0.2, status=200)

KINDS: Sequence[Kind] = (
    Kind("answered, caller ends", 30, "03023125001", {**_BERLIN, **_NORMAL, "released_by": "caller"}),
    Kind(
        "answered, callee ends", 15, "+493023125002",
        {**_BERLIN, **_NORMAL, "canonical": "+493023125002", "released_by": "callee"},
        Answering(ring_s=0.1, status=200, talk_s=HOLD_S), "wait",
    ),
    Kind(
        "busy", 8, "03023125003",
        {**_BERLIN, **_REJECTED, "canonical": "+493023125003", "status": 486, "cause": 17},
        Answering(status=486), "wait",
    ),
    Kind(
        "declined after ringing", 5, "00493023125004",
        {**_BERLIN, **_REJECTED, "canonical": "+493023125004", "status": 603, "cause": 21},
        Answering(ring_s=0.1, status=603), "wait",
    ),
    Kind(
        "cancelled", 8, "03023125005",
        {
            **_BERLIN, "canonical": "+493023125005", "status": 487, "cause": 16, "end_reason": "cancelled",
            "released_by": "caller",
        },
        Answering(ring_s=0.1, status=None), "cancel",
    ),
    Kind(
        "hidden", 4, "03023125006",
        {**_BERLIN, **_NORMAL, "canonical": "+493023125006", "released_by": "caller", "privacy": "id"},
        headers=PRIVATE,
    ),
    Kind(
        "premium", 4, "09001234567",
        {
            **_DENIED, "canonical": "+499001234567", "destination_class": "premium", "rule": "block.class.premium",
            "status": 403, "cause": 21,
        },
        then="wait",
    ),
    Kind(
        "other carrier", 3, "0103303023125001",
        {
            **_DENIED, "canonical": "carrier:01033", "destination_class": "carrier_selection",
            "rule": "block.class.carrier_selection", "status": 403, "cause": 21,
        },
        then="wait",
    ),
    Kind("emergency", 4, "112", {**_HELP, **_NORMAL, "canonical": "service:112", "released_by": "caller"}),
    Kind("internal", 8, "02051555700", {
        **_OUT, **_NORMAL, "direction": "internal", "canonical": CALLED.number, "destination_class": "geographic", "trunk": "",
        "callee_line": CALLED.line, "callee_account": CALLED.user, "released_by": "caller",
    }, _RINGS),
    Kind("incoming", 8, CALLED.number, {**_IN, **_NORMAL, "released_by": "caller"}, _RINGS, by="trunk"),
    Kind("incoming to nobody", 3, "+492051555999", {
        **_IN, "line": "", "account": "", "profile": "", "canonical": "+492051555999", "verdict": "deny",
        "rule": "number.unassigned", "status": 404, "cause": 1, "end_reason": "refused", "released_by": "proxy",
        "slots_limit": None, "slots_used": None,
    }, then="wait", by="trunk"),
    Kind("incoming, not registered", 3, AWAY.number, {
        **_IN, "line": AWAY.line, "account": AWAY.user, "canonical": AWAY.number, "status": 480, "cause": 20,
        "end_reason": "unreachable", "released_by": "proxy", "slots_limit": 3,
    }, then="wait", by="trunk"),
    Kind("line full", 4, "03023125001", {
        **_DENIED, "canonical": "+493023125001", "destination_class": "geographic", "rule": "line.channels", "status": 403,
        "cause": 34, "slots_limit": 1, "slots_used": 1,
    }, then="wait", by="full"),
)  # fmt: skip


@dataclass(slots=True)
class Compared:
    """What a comparison of mixed calls found. `different` says field by field what a record says otherwise."""

    calls: Counter[str] = field(default_factory=Counter)
    records: int = 0
    shed: int = 0  # calls that the node had no time for, without a record
    shed_told: int = 0  # INVITEs that it says it did not look at, repeated ones too
    fields: int = 0
    different: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    off_ms: list[float] = field(default_factory=list)  # between the proxy's stamps and the callers'
    width_ms: list[float] = field(default_factory=list)  # between the callers' and the callees' own stamps


@dataclass(slots=True)
class Placed:
    """One call that was made; `line` is the caller's, None for the carrier's calls."""

    kind: Kind
    call: Call
    caller: Router | Trunk
    line: LineSpec | None
    psap: Address

    @property
    def cancelled(self) -> bool:
        return self.kind.then == "cancel"


class _Mixed:
    """The parties of one run and the calls that they made."""

    def __init__(self, network: Network, found: Compared) -> None:
        self.network, self.found = network, found
        self.placed: list[Placed] = []
        self.held: list[Call] = []
        self._free: dict[str, asyncio.Queue[tuple[Router, LineSpec]]] = {"router": asyncio.Queue(), "full": asyncio.Queue()}
        self._called = asyncio.Semaphore(2)  # channels of the called line

    async def prepare(self, callers: Sequence[LineSpec], full: Sequence[LineSpec]) -> None:
        network = self.network
        for kind in KINDS:
            network.trunk.answering_by[str(kind.says["canonical"])] = kind.callee
        for line in callers:
            self._free["router"].put_nowait((await network.router(line.user), line))
        for line in full:
            router = await network.router(line.user)
            self.held.append(await (await router.call("03023125001")).answered())
            self._free["full"].put_nowait((router, line))
        called = await network.router(CALLED.user)
        called.answering = _RINGS

    async def place(self, kind: Kind) -> None:
        """Make one call of a kind, from its first message to its last."""
        async with self._called if kind.says["canonical"] == CALLED.number else contextlib.nullcontext():
            if kind.by == "trunk":
                trunk = self.network.trunk
                await self._one(
                    kind, await trunk.call(kind.dialled, self.network.node.address, headers=kind.headers), trunk, None
                )
                return
            free = self._free[kind.by]
            router, line = await free.get()
            try:
                await self._one(kind, await router.call(kind.dialled, headers=kind.headers), router, line)
            finally:
                free.put_nowait((router, line))

    async def _one(self, kind: Kind, call: Call, caller: Router | Trunk, line: LineSpec | None) -> None:
        psap = self.network.psap
        self.placed.append(Placed(kind, call, caller, line, (psap.host, psap.port)))
        self.found.calls[kind.name] += 1
        try:
            if kind.then == "cancel":
                while call.truth.ringing_at is None and not call.outcome.done():  # noqa: ASYNC110  a stamp has no event
                    await asyncio.sleep(0.01)
                call.cancel()
            status = await call.final(ANSWER_S)
            if status < 300 and kind.then == "hang_up":
                await asyncio.sleep(HOLD_S)
                await call.hang_up()
            elif status < 300:
                await call.wait_ended()
        except NoAnswerError as error:
            self.found.failures.append(f"{kind.name}: {error}")


async def mixed_calls(count: int, *, rate: float, seed: int = 1, on_progress: Callable[[int], None] | None = None) -> Compared:
    """Make `count` calls of all kinds, `rate` of them a second, and compare all of their records."""
    found = Compared()
    callers = many_lines(max(20, round(3 * rate)), first=FIRST_CALLER)
    full = [replace(FULL, line=f"F{n}", user=f"f{n}", number=f"+4920515558{n:02}") for n in range(max(2, round(rate / 4)))]
    deck = [kind for kind in KINDS for _ in range(kind.weight)]
    work = (deck * (count // len(deck) + 1))[:count]
    random.Random(seed).shuffle(work)
    async with Network([*callers, *full, CALLED, AWAY], settings={"log": {"level": "warning"}}) as network:
        mixed = _Mixed(network, found)
        await mixed.prepare(callers, full)

        async def one(number: int) -> None:
            await mixed.place(work[number])
            if on_progress is not None:
                on_progress(len(mixed.placed))

        await at_rate(rate, count, one)
        for call in mixed.held:
            await call.hang_up()
        records = await network.records(count + len(full), timeout_s=60.0)
        metrics = await network.node.metrics()
        found.shed_told = round(sum(value for name, value in metrics.items() if SHED_METRIC.fullmatch(name)))
        compare_fields(found, mixed, records)
    return found


def compare_fields(found: Compared, mixed: _Mixed, records: Sequence[Record]) -> None:
    """Compare each call with its record, field by field."""
    offset_ms = time.time_ns() / 1e6 - time.monotonic() * 1e3
    by_call = {record.call_id: record for record in records}
    held = {call.call_id for call in mixed.held}
    found.records = len(records) - sum(record.call_id in held for record in records)
    if len(by_call) != len(records):
        found.different.append(f"{len(records) - len(by_call)} calls have several final records")
    known = {placed.call.call_id for placed in mixed.placed} | held
    callees = {truth.call_id: truth for truth in mixed.network.ledger.calls.values() if truth.role == "callee"}
    found.different += [f"{call_id}: a record of no call" for call_id in by_call.keys() - known]
    for placed in mixed.placed:
        record = by_call.get(placed.call.call_id)
        shed = record is not None and record.rule in SHED_RULES and record.status == placed.call.truth.status == SHED
        if shed and placed.kind.says["verdict"] != "emergency":
            found.shed += 1
            continue
        if record is None:
            found.different.append(f"{placed.kind.name}: {placed.call.call_id} has no record")
            continue
        callee = callees.get(record.call_id)
        for name, wanted in _says_of(placed, callee).items():
            found.fields += 1
            has = getattr(record, name)
            if has != wanted:
                found.different.append(f"{placed.kind.name}: {record.call_id}: {name} is {has!r}, was {wanted!r}")
        _compare_times(found, placed, callee, record, offset_ms)


def _says_of(placed: Placed, callee: CallTruth | None) -> dict[str, object]:
    """What the record has to say apart from times."""
    kind, caller, line, truth = placed.kind, placed.caller, placed.line, placed.call.truth
    domain = caller.domain(caller.proxy if isinstance(caller, Router) else ("", 0))
    says: dict[str, object] = {
        "node": "node1",
        "type": "final",
        "call_id": truth.call_id,
        "from_tag": truth.tags[0],
        "source": f"{caller.host}:{caller.port}",
        "transport": "UDP",
        "user_agent": caller.name,
        "media": ["audio"],
        "diversions": [],
        "duration_certain": True,
        "slots_used": 1,
    }
    if line is not None:
        says |= {
            "line": line.line,
            "account": line.user,
            "profile": line.profile,
            "calling": line.number,
            "presented": line.user,
        }
        says["dialled"] = f"sip:{kind.dialled}@{domain}"
    if callee is not None and truth.answered_at is not None:
        says["to_tag"] = callee.tags[0]
    says |= kind.says
    if kind.says["verdict"] == "emergency":
        centre = placed.psap
        says["psap"] = f"sip:112@{centre[0]}:{centre[1]}"
    if kind.by == "trunk" and says["slots_used"] is not None:
        del says["slots_used"]  # others call the same line
    return says


def _compare_times(found: Compared, placed: Placed, callee: CallTruth | None, record: Record, offset_ms: float) -> None:
    """Each stamp of the proxy lies between what brought it about and what it brought about, as the parties noted them."""
    caller, name = placed.call.truth, f"{placed.kind.name}: {record.call_id}"

    def between(what: str, value: float | None, *marks: float | None) -> None:
        known = [mark * 1e3 + offset_ms for mark in marks if mark is not None]
        found.fields += 1
        if value is None or len(known) < 2:
            if value is not None or known:
                found.different.append(f"{name}: {what} is {value}, was {known}")
            return
        low, high = min(known), max(known)
        found.width_ms.append(high - low)
        found.off_ms.append(abs(value - known[0]))
        if not low - CLOCK_MS <= value <= high + CLOCK_MS:
            found.different.append(f"{name}: {what} is {value:.0f}, was {low:.0f} to {high:.0f}")

    reached = caller if callee is None else callee
    between("setup_at_ms", record.setup_at_ms, caller.started_at, caller.ended_at if callee is None else callee.started_at)
    if caller.ringing_at is not None:
        between("ringing_at_ms", record.ringing_at_ms, caller.ringing_at, reached.ringing_at)
    between("answer_at_ms", record.answer_at_ms, caller.answered_at, None if callee is None else callee.answered_at)
    if callee is None:
        between("end_at_ms", record.end_at_ms, caller.ended_at, caller.started_at)
    else:
        between("end_at_ms", record.end_at_ms, caller.ended_at, caller.ringing_at if placed.cancelled else callee.ended_at)
    talked = 0 if record.answer_at_ms is None else record.end_at_ms - record.answer_at_ms
    for what, value, wanted in (
        ("billable", record.billable_ms, talked),
        ("duration", record.duration_ms, record.end_at_ms - record.setup_at_ms),
    ):
        found.fields += 1
        if abs(value - wanted) > STAMP_MS:  # durations are monotonic, and the wall clock may be set meanwhile
            found.different.append(f"{name}: {what}_ms is {value}, its stamps say {wanted}")


def report_of(found: Compared) -> Report:
    """What a run found, as a table."""
    report = Report("calls of every kind, each field of each record against the parties' own truth")
    for name, count in sorted(found.calls.items()):
        report.add(name.replace(" ", "_").replace(",", ""), name, count)
    report.add("calls", "calls", sum(found.calls.values()))
    report.add("records", "records", found.records)
    report.add("shed", "calls that the node had no time to look at (503)", found.shed)
    report.add("fields", "fields compared", found.fields)
    report.add("different", "fields that differ", len(found.different))
    for share, name in ((0.5, "p50"), (0.99, "p99"), (1.0, "longest")):
        report.add(f"off_ms_{name}", f"off the caller's own stamps, {name}", percentile(found.off_ms, share), "ms")
    wide = sum(width > STAMP_MS for width in found.width_ms)
    report.add("wide", f"of {len(found.width_ms)} stamps: known no better than to {STAMP_MS} ms", wide)
    report.faults += [*found.different[:MAX_SHOWN], *found.failures[:MAX_SHOWN]]
    attempts = found.calls.total() - found.shed
    report.expect(attempts > 0 and found.records == attempts, "not as many records as calls")
    report.expect(found.shed <= found.shed_told, f"{found.shed} calls without a record, {found.shed_told} INVITEs were shed")
    return report
