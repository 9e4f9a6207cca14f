"""Compares what the simulated parties did with what the node recorded: Call-IDs as sets, outcomes, durations, slots.

Reads the CDR stream and the slots from the store itself. Leaves out: pricing, and calls that nobody here made.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cdr import codec
from loadtest.cut_calls import Away, CutCall
from loadtest.net import PATIENCE_S

if TYPE_CHECKING:
    import redis.asyncio as redis

    from cdr.facts import Record
    from loadtest.truth import CallTruth

__all__ = [
    "TOLERANCE_MS",
    "Matching",
    "Reconciliation",
    "Wait",
    "becomes",
    "compare",
    "live_slots",
    "read_page",
    "read_records",
    "records_when",
    "wait_until",
]

Value = TypeVar("Value")

STREAM = "sp:cdr"
PAGE = 1_000
SLOTS = "sp:{line:*}:slots"
TOLERANCE_MS = 400  # between a duration as the caller and as the proxy measured it, on a busy machine


@dataclass(slots=True)
class Reconciliation:
    """The result of a comparison. `ok` when every attempt has exactly one final record that says what happened."""

    attempts: int = 0
    records: int = 0
    missing: list[str] = field(default_factory=list)  # Call-IDs without a record
    unexpected: list[str] = field(default_factory=list)  # Call-IDs of records that nobody's call had
    repeated: list[str] = field(default_factory=list)  # Call-IDs with several final records
    different: list[str] = field(default_factory=list)  # what a record says otherwise than the caller
    gaps: list[str] = field(default_factory=list)  # holes in a node's numbering
    cut: int = 0  # attempts under which the node died: compared with what is promised of those (cut_calls.py)

    @property
    def ok(self) -> bool:
        return not (self.missing or self.unexpected or self.repeated or self.different or self.gaps)

    def __str__(self) -> str:
        text = f"{self.attempts} attempts, {self.records} records"
        for name in ("missing", "unexpected", "repeated", "different", "gaps"):
            found = getattr(self, name)
            if found:
                text += f"; {len(found)} {name}: {', '.join(found[:5])}"
        return text


async def read_page(client: redis.Redis, after: bytes, stream: str = STREAM) -> tuple[list[Record], bytes]:
    """The final records of the next entries behind `after` ("" for the first), and the id of the last entry that was read."""
    page: Any = await client.xrange(stream, min=b"(" + after if after else "-", count=PAGE)
    records = [codec.decode(fields[b"d"]) for _, fields in page if fields.get(b"type", b"final") == b"final"]
    return records, page[-1][0] if page else after


async def read_records(client: redis.Redis, stream: str = STREAM) -> list[Record]:
    """All final records of the stream in order."""
    records: list[Record] = []
    last = b""
    while True:
        before = last
        found, last = await read_page(client, last, stream)
        records += found
        if last == before:
            return records


Wait = Callable[["list[Record]"], bool]


async def records_when(client: redis.Redis, enough: Wait, *, timeout_s: float = PATIENCE_S) -> list[Record]:
    """The final records once `enough` says so of them, or those that are there after `timeout_s` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        records = await read_records(client)
        if enough(records) or asyncio.get_running_loop().time() > deadline:
            return records
        await asyncio.sleep(0.1)


async def live_slots(client: redis.Redis) -> dict[str, set[str]]:
    """The slots held, by line: call ids."""
    found: dict[str, set[str]] = {}
    async for key in client.scan_iter(match=SLOTS, count=PAGE):
        held: Any = await client.zrange(key, 0, -1)
        if held:
            line = key.decode().removeprefix("sp:{line:").removesuffix("}:slots")
            found[line] = {call.decode() for call in held}
    return found


async def becomes(read: Callable[[], Awaitable[Value]], wanted: Value, *, timeout_s: float = PATIENCE_S) -> Value:
    """What `read` gives: `wanted` as soon as it does, else what it gives after `timeout_s` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        value = await read()
        if value == wanted or asyncio.get_running_loop().time() > deadline:
            return value
        await asyncio.sleep(0.02)


async def wait_until(condition: Callable[[], bool], *, timeout_s: float = PATIENCE_S, step_s: float = 0.02) -> bool:
    """Whether the condition became true within `timeout_s` seconds."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(step_s)
    return True


def compare(
    placed: Mapping[str, CallTruth] | Iterable[str], records: Iterable[Record], *, tolerance_ms: int = TOLERANCE_MS
) -> Reconciliation:
    """Compare calls as their callers saw them (or their Call-IDs alone) with the records."""
    found = list(records)
    truths: Mapping[str, CallTruth] = placed if isinstance(placed, Mapping) else {}
    wanted = set(placed)
    result = Reconciliation(attempts=len(wanted), records=len(found))
    counts = Counter(record.call_id for record in found)
    result.missing = sorted(wanted - counts.keys())
    result.unexpected = sorted(counts.keys() - wanted)
    result.repeated = sorted(call_id for call_id, count in counts.items() if count > 1)
    for record in found:
        truth = truths.get(record.call_id)
        if truth is not None:
            result.different += _differences(truth, record, tolerance_ms)
    result.gaps = _gaps(found)
    return result


def _differences(truth: CallTruth, record: Record, tolerance_ms: int) -> list[str]:
    out = []
    answered = truth.answered_at is not None
    if answered != (record.answer_at_ms is not None):
        out.append(f"{truth.call_id}: answered {answered}, record {record.answer_at_ms}")
    if truth.status and truth.status != record.status:
        out.append(f"{truth.call_id}: status {truth.status}, record {record.status}")
    talk = truth.talk_ms
    if talk is not None and record.duration_certain and abs(talk - record.billable_ms) > tolerance_ms:
        out.append(f"{truth.call_id}: talked {talk} ms, record {record.billable_ms} ms")
    if answered and truth.released_by and record.duration_certain and truth.released_by != record.released_by:
        out.append(f"{truth.call_id}: released by {truth.released_by}, record {record.released_by}")
    return out


def _gaps(records: Iterable[Record]) -> list[str]:
    numbers = _Numbers()
    for record in records:
        numbers.add(record)
    return numbers.faults()


class _Numbers:
    """The numbers of each node's records, in whatever order they come: what is missing between them, what is there twice."""

    def __init__(self) -> None:
        self._first: dict[str, int] = {}
        self._next: dict[str, int] = {}  # all from the first up to this one are there
        self._ahead: dict[str, set[int]] = {}
        self._twice: dict[str, list[int]] = {}

    def add(self, record: Record) -> None:
        node, seq = record.node, record.seq
        ahead = self._ahead.setdefault(node, set())
        first, following = self._first.setdefault(node, seq), self._next.setdefault(node, seq)
        if seq < first:
            ahead.update(range(first, following))
            self._first[node], following = seq, seq
        elif seq < following or seq in ahead:
            self._twice.setdefault(node, []).append(seq)
        ahead.add(seq)
        while following in ahead:
            ahead.discard(following)
            following += 1
        self._next[node] = following

    def faults(self) -> list[str]:
        out = []
        for node, ahead in self._ahead.items():
            lacking = sorted(set(range(self._next[node], max(ahead))) - ahead) if ahead else []
            if lacking:
                out.append(f"{node}: {lacking[:5]} of {len(lacking)}")
        return out + [f"{node}: twice {seqs[:5]}" for node, seqs in self._twice.items()]


class Matching:
    """Compares calls with their records as both come, and forgets what agrees, so that a run may have any number of calls.

    A second record of a call whose first one agreed counts as unexpected, as it is nobody's any more. `away` are the times
    without the node: calls within them are kept, and compared at the end.
    """

    def __init__(self) -> None:
        self._result = Reconciliation()
        self._truths: dict[str, tuple[CallTruth, int]] = {}  # with the tolerance in ms
        self._optional: set[str] = set()
        self._records: dict[str, list[Record]] = {}
        self._cut: dict[str, CutCall] = {}
        self._numbers = _Numbers()
        self.away: list[Away] = []

    @property
    def owed(self) -> int:
        """Calls that have ended, and whose records have not come."""
        cut = sum(call.owed and not call.records for call in self._cut.values())
        return len(self._truths) - len(self._optional) + cut

    def ended(self, truth: CallTruth, *, optional: bool = False, slack_ms: float = 0.0) -> None:
        """A call is over. With `optional` it may be without a record: the node did not look at it, or never had it. Its
        messages were under way for `slack_ms`, by which what the caller and the node measured may differ."""
        tolerance_ms, now = TOLERANCE_MS + round(slack_ms), time.monotonic()
        self._result.attempts += 1
        records = self._records.pop(truth.call_id, [])
        times = [away for away in self.away if away.touches(truth.started_at, now)]
        if times:
            self._result.cut += 1
            self._cut[truth.call_id] = CutCall(truth, now, not optional, tolerance_ms, times, records)
            return
        for record in records:
            self._result.different += _differences(truth, record, tolerance_ms)
        if len(records) > 1:
            self._result.repeated.append(truth.call_id)
        if records:
            return
        self._truths[truth.call_id] = truth, tolerance_ms
        if optional:
            self._optional.add(truth.call_id)

    def take(self, record: Record) -> None:
        """A final record came."""
        self._result.records += 1
        self._numbers.add(record)
        if record.call_id in self._cut:
            self._cut[record.call_id].records.append(record)
            return
        known = self._truths.pop(record.call_id, None)
        self._optional.discard(record.call_id)
        if known is not None:
            self._result.different += _differences(known[0], record, known[1])
        else:
            self._records.setdefault(record.call_id, []).append(record)

    def result(self) -> Reconciliation:
        """What is found once all calls have ended and nothing more comes."""
        found, judged = self._result, [fault for call in self._cut.values() for fault in call.faults()]
        found.missing = sorted(self._truths.keys() - self._optional)
        found.unexpected = sorted(self._records)
        found.gaps = self._numbers.faults()
        repeated = found.repeated + sorted(call_id for call_id, records in self._records.items() if len(records) > 1)
        return replace(found, different=[*found.different, *judged], repeated=repeated)

    @property
    def without(self) -> int:
        """Calls that may be without a record, and are."""
        return len(self._optional) + sum(not (call.owed or call.records) for call in self._cut.values())
