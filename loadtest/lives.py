"""What is owed to billing when the proxy dies again and again, and how its records compare with what the parties know.

The truth is what the simulated routers and the trunk did and saw, and when the proxy was killed: nothing is asked of the proxy.
A *life* is the time from one start of its process to its death, and until the parties have read all that it sent: only then the
next one is started, so that what they see is of the life in which they see it. A record's set-up stamp tells in which life it
began.

**What an attempt is.** A life has taken an INVITE when its caller heard a response of that life other than a challenge (401,
407), or when the INVITE arrived at a callee. It owes exactly one final record for it. An INVITE that reached no living proxy,
or died with it unanswered and unforwarded, is no attempt: its caller repeats it (RFC 3261 §17.1.1.2) and the next life takes
it. Where a life died after the journal's ADMIT and before its 100 was sent, nobody outside can know. Such a record is allowed,
once for a life in which the caller did send the INVITE, and counted as unseen.

*Lost* is a record that is owed and not there; *double* are two records of a Call-ID in one life, of an id, or of a number;
*invented* is a record of a life in which its caller sent no INVITE.

**What a duration has to be.** A call of one life, begun, answered and ended in it: certain. A certain one lies between what
brought it about and what it brought about: the answer between the callee's 2xx and the caller's getting it, the end between the
first BYE that anybody sent and the first that anybody heard of it, a BYE or the response to his own. Any other is never longer
than from the callee's answer to the first BYE that anybody sent.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from loadtest.fields import CLOCK_MS
from loadtest.generate import percentile
from loadtest.report import Report, counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cdr.facts import Record
    from loadtest.truth import CallTruth, Event, Ledger

__all__ = ["Killed", "Life", "compare_lives", "owed_but_missing", "report_of", "tell_ladders"]

LADDER_MS = 5000  # before and after a call, within which a ladder names the lives
CHALLENGES = ("401", "407")
BYE = "0"
TOLD_OF_END = (BYE, "200", "481", "408")  # the other side's BYE, and what is answered to a BYE once the call is over
MAX_SHOWN = 20
FAULTS = ("lost", "double", "invented", "gaps", "unfinished", "billing", "wrong", "slots_left", "failures", "not_reached")


@dataclass(frozen=True, slots=True)
class Life:
    """One run of the proxy, `begun_ms` UTC when its process was started. `step` is where it killed itself."""

    begun_ms: int
    ready: bool  # whether it answered before
    step: str = ""


@dataclass(slots=True)
class Killed:
    """What came of a run. Lists name what is wrong."""

    title: str
    seed: int
    lives: list[Life] = field(default_factory=list)
    not_reached: list[str] = field(default_factory=list)  # steps
    calls: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    not_taken: int = 0  # calls that no life took
    records: int = 0
    entries: int = 0  # in which these records stand in the stream
    lost: list[str] = field(default_factory=list)
    double: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)  # ids whose last record is not a final one
    billing: list[str] = field(default_factory=list)  # ids of which a reader has not what the stream has
    wrong: list[str] = field(default_factory=list)  # what a record says of its call
    failures: list[str] = field(default_factory=list)  # of the node
    readers: int = 0  # that died at a step of theirs
    unseen: int = 0
    end_reasons: Counter[str] = field(default_factory=Counter)
    certain: int = 0
    uncertain: int = 0
    resumed: int = 0  # answered in one life, ended in another
    off_ms: list[float] = field(default_factory=list)  # beyond what both parties' stamps allow, of calls of one life
    width_ms: list[float] = field(default_factory=list)  # how far apart these stamps are
    short_ms: list[float] = field(default_factory=list)  # by which uncertain durations are shorter than the truth
    slots_left: list[str] = field(default_factory=list)
    ladders: dict[str, list[str]] = field(default_factory=dict)  # by Call-ID: what was seen of a call with a fault
    seconds: float = 0.0


@dataclass(slots=True)
class _Seen:
    """What is known of one Call-ID outside of the proxy, by the number of the life."""

    sent: set[int] = field(default_factory=set)  # its INVITE, or a repetition of it
    owed: set[int] = field(default_factory=set)
    final: int | None = None  # a final response was heard: that life, or an earlier one, had taken it


class _Lives:
    """Which life a stamp falls into."""

    def __init__(self, lives: Sequence[Life]) -> None:
        self._begun = [life.begun_ms for life in lives]

    def of(self, at_ms: float) -> int:
        return max(0, bisect_right(self._begun, at_ms) - 1)


def owed_but_missing(
    lives: Sequence[Life], ledger: Ledger, truths: Iterable[CallTruth], records: Iterable[Record]
) -> list[str]:
    """The attempts that have no record."""
    by_life = _Lives(lives)
    seen = _seen(by_life, ledger.events)
    had = _had(by_life, records)
    lost = []
    for truth in truths:
        about, counts = seen[truth.call_id], had[truth.call_id]
        left = Counter(counts)
        for life in sorted(about.owed):
            if left[life] > 0:
                left[life] -= 1
            else:
                lost.append(f"{truth.call_id}: taken in life {life}")
        if about.final is not None and not any(counts[life] for life in range(about.final + 1)):
            lost.append(f"{truth.call_id}: answered {truth.status} in life {about.final}")
    return lost


def compare_lives(found: Killed, ledger: Ledger, truths: Sequence[CallTruth], records: Sequence[Record]) -> None:
    """Compare what the parties did with the final records."""
    by_life = _Lives(found.lives)
    seen, had = _seen(by_life, ledger.events), _had(by_life, records)
    known = {truth.call_id: truth for truth in truths}
    found.records = len(records)
    found.lost = owed_but_missing(found.lives, ledger, truths, records)
    found.invented = [f"{call_id}: nobody's call" for call_id in had.keys() - known.keys()]
    for call_id in known:
        about, counts = seen[call_id], had[call_id]
        taken = about.owed or about.final is not None
        found.attempts += max(len(about.owed), 1 if taken else 0)
        found.not_taken += not taken and not counts
        found.double += [f"{call_id}: {count} records of life {life}" for life, count in counts.items() if count > 1]
        found.invented += [f"{call_id}: no INVITE in life {life}" for life in counts.keys() - about.sent]
        found.unseen += max(0, len(counts) - max(len(about.owed), 1 if taken else 0))
    _numbers(found, records)
    callees: dict[str, list[CallTruth]] = defaultdict(list)
    for truth in ledger.calls.values():
        if truth.role == "callee":
            callees[truth.call_id].append(truth)
    heard = _heard_ends(ledger.events)
    latest = {call_id: max(counts) for call_id, counts in had.items() if counts}
    for record in records:
        found.end_reasons[record.end_reason] += 1
        life, caller = by_life.of(record.setup_at_ms), known.get(record.call_id)
        if caller is None:
            continue
        mine = [one for one in callees[record.call_id] if by_life.of(one.started_at_ms) == life]
        if life == latest[record.call_id]:
            _compare_outcome(found, caller, record)
        if record.answer_at_ms is not None:
            _compare_duration(found, by_life, caller, mine, record, heard=heard[record.call_id, record.to_tag])
        elif record.billable_ms:
            found.wrong.append(f"{record.call_id}: {record.billable_ms} ms without an answer")


def tell_ladders(found: Killed, ledger: Ledger, truths: Iterable[CallTruth], records: Sequence[Record]) -> None:
    """Gather what is known of each call with a fault: what its parties did and saw, the lives around it, its records."""
    named = {item.partition(":")[0] for name in FAULTS for item in getattr(found, name)}
    ids = {record.id: record.call_id for record in records}
    wanted = {ids.get(name, name) for name in named}
    rungs: dict[str, list[tuple[float, str]]] = {truth.call_id: [] for truth in truths if truth.call_id in wanted}
    for event in ledger.events:
        if event.call_id in rungs:
            rungs[event.call_id].append((event.at_ms, str(event)))
    for record in records:
        if record.call_id in rungs:
            rungs[record.call_id].append((record.setup_at_ms, f"record {record}"))
    for call_id, steps in rungs.items():
        first, last = (edge(at for at, _ in steps) for edge in (min, max))
        for number, life in enumerate(found.lives):
            if first - LADDER_MS <= life.begun_ms <= last + LADDER_MS:
                steps.append((life.begun_ms, f"life {number} begins, {'' if life.ready else 'not '}ready before its end"))
        found.ladders[call_id] = [f"{at:.0f} {text}" for at, text in sorted(steps)]


def _seen(by_life: _Lives, events: Iterable[Event]) -> dict[str, _Seen]:
    """By Call-ID. A provisional response, and an INVITE downstream, is of the life that took it, a final one no earlier."""
    seen: dict[str, _Seen] = defaultdict(_Seen)
    for event in events:
        about = seen[event.call_id]
        if event.what == "invites" or (event.what == "repeats" and event.text == "INVITE"):
            about.sent.add(by_life.of(event.at_ms))
        elif event.what == "begins" and event.text.startswith("callee"):
            about.owed.add(by_life.of(event.at_ms))
        elif event.what == "got" and event.text not in CHALLENGES:
            life = by_life.of(event.at_ms)
            if event.text[0] == "1":
                about.owed.add(life)
            elif about.final is None:
                about.final = life
    return seen


def _heard_ends(events: Iterable[Event]) -> dict[tuple[str, str], list[tuple[float, str]]]:
    """When the parties heard that a call was over, by Call-ID and the callee's tag; and by which status, "0" for a BYE."""
    heard: dict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for event in events:
        if event.what == "hears end":
            tag, _, status = event.text.partition(" ")
            if status in TOLD_OF_END:
                heard[event.call_id, tag].append((event.at, status))
    return heard


def _had(by_life: _Lives, records: Iterable[Record]) -> dict[str, Counter[int]]:
    """How many records each Call-ID has of each life."""
    had: dict[str, Counter[int]] = defaultdict(Counter)
    for record in records:
        had[record.call_id][by_life.of(record.setup_at_ms)] += 1
    return had


def _numbers(found: Killed, records: Sequence[Record]) -> None:
    """Numbers run from 1 without a gap, and none is given twice."""
    numbers = Counter(record.seq for record in records)
    lacking = sorted(set(range(1, max(numbers, default=0) + 1)) - numbers.keys())
    if lacking:
        found.gaps.append(f"{len(lacking)} numbers, from {lacking[:5]} on")
    found.double += [f"number {number} {count} times" for number, count in numbers.items() if count > 1]
    if found.entries != len(records):
        found.double.append(f"{found.entries} entries for {len(records)} records")


def _compare_outcome(found: Killed, caller: CallTruth, record: Record) -> None:
    """The status that the caller got, and whether he was answered."""
    if record.end_reason == "node_restart":
        if record.answer_at_ms is not None:
            found.wrong.append(f"{record.call_id}: answered, and ended by a restart")
        if caller.answered_at is not None:
            found.wrong.append(f"{record.call_id}: its caller was answered, and the record does not know of it")
        return
    if caller.status and caller.status not in (record.status, 481):
        found.wrong.append(f"{record.call_id}: status {caller.status}, record {record.status} ({record.end_reason})")


def _compare_duration(
    found: Killed,
    by_life: _Lives,
    caller: CallTruth,
    callees: Sequence[CallTruth],
    record: Record,
    *,
    heard: Sequence[tuple[float, str]],
) -> None:
    """See the module."""
    name, billed = record.call_id, record.billable_ms
    answers = [one.answered_at for one in callees if one.answered_at is not None]
    ends = sorted(one.ended_at for one in (caller, *callees) if one.ended_at is not None)
    if not answers or not ends:
        found.wrong.append(f"{name}: the record has an answer, {'nobody answered' if not answers else 'nobody hung up'}")
        return

    over_at = min((at for at, _ in heard if at >= ends[0]), default=None)
    # A BYE is passed on before the END is journalled, and its answer after that: a life may have died between the two.
    kept_at = min((at for at, status in heard if at >= ends[0] and status != BYE), default=None)
    marks = [by_life.of(_utc_ms(at)) for at in (*answers, ends[0])]
    marks += [by_life.of(_utc_ms(at)) for at in (over_at, kept_at) if at is not None]
    one_life = len(set(marks)) == 1 and kept_at is not None
    longest = max(0.0, 1e3 * (ends[0] - answers[0]))
    found.resumed += len(set(marks)) > 1
    if record.duration_certain:
        found.certain += 1
        low = 1e3 * (ends[0] - caller.answered_at) if caller.answered_at is not None else 0.0
        high = 1e3 * (over_at - min(answers)) if over_at is not None else inf  # the node died before it could tell anybody
        off = max(0.0, low - billed, billed - high)
        found.off_ms.append(off)
        if over_at is not None:
            found.width_ms.append(high - low)
        if off > CLOCK_MS:
            found.wrong.append(f"{name}: {billed} ms, was {low:.0f} to {high:.0f} ms")
        released = {one.released_by for one in (caller, *callees)} - {""}  # two BYEs may cross
        if released and record.released_by not in released:
            found.wrong.append(f"{name}: released by {record.released_by}, was {' or '.join(sorted(released))}")
        return
    found.uncertain += 1
    found.short_ms.append(longest - billed)
    if one_life:
        found.wrong.append(f"{name}: of one life, and not certain")
    if billed > longest + CLOCK_MS:
        found.wrong.append(f"{name}: not certain, {billed} ms, was {longest:.0f} ms at most")


def _utc_ms(at: float) -> float:
    """A monotonic time as UTC, while nobody sets the clock."""
    return time.time_ns() / 1e6 + 1e3 * (at - time.monotonic())


def report_of(found: Killed) -> Report:
    """The figures of a run, and what of them must not be."""
    report = Report(f"{found.title}, seed {found.seed}")
    lives = found.lives[:-1]
    report.add("kills", "kills", len(lives))
    report.add("kills_early", "of them before it was ready", sum(not life.ready for life in lives))
    steps = Counter(life.step for life in lives if life.step)
    if steps:
        report.add("steps", "of them at a step", counted(steps))
    if found.readers:
        report.add("readers", "readers that died at a step of theirs", found.readers)
    report.add("seconds", "took", found.seconds, "s")
    report.add("calls", "calls", sum(found.calls.values()))
    report.add("kinds", "of kinds", counted(found.calls))
    report.add("not_taken", "of them taken by no life", found.not_taken)
    report.add("attempts", "attempts that a life had taken", found.attempts)
    report.add("records", "records", found.records)
    report.add("unseen", "of them admitted in a life that nobody heard of", found.unseen)
    report.add("end_reasons", "ended by", counted(found.end_reasons))
    for name in FAULTS:
        items: list[str] = getattr(found, name)
        report.add(name, name.replace("_", " "), len(items))
        report.faults += [f"{name}: {item}" for item in items[:MAX_SHOWN]]
    report.add("certain", "answered calls with a certain duration", found.certain)
    report.add("uncertain", "answered calls with an uncertain one", found.uncertain)
    report.add("resumed", "calls that lived through a restart", found.resumed)
    for share, which in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
        report.add(f"off_{which}_ms", f"certain: beyond both parties' stamps, {which}", percentile(found.off_ms, share), "ms")
    report.add("width_p99_ms", "certain: these stamps are apart, p99", percentile(found.width_ms, 0.99), "ms")
    for share, which in ((0.5, "p50"), (1.0, "max")):
        report.add(f"short_{which}_ms", f"uncertain: shorter than the truth, {which}", percentile(found.short_ms, share), "ms")
    report.expect(found.attempts > 0, "nothing was measured")
    return report
