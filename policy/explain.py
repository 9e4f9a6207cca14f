"""Why a call would be allowed, refused or routed: the live decision, in words.

Pure. The decision comes from the same `evaluate`, with the same snapshot, as that of a real call; nothing here decides. The
block rules that match are listed from the same tables, in the order in which they count.
Left out: reading and printing files, which the command line does.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from policy.blocklist import candidates, is_active
from policy.evaluate import evaluate
from policy.model import (
    Account,
    AccountKind,
    BlockRule,
    CallAttempt,
    Decision,
    Direction,
    Line,
    LineStatus,
    RuleDirection,
    RuleLevel,
    Snapshot,
    Verdict,
)
from policy.numbers import classify_incoming
from policy.table import Table, quoted
from policy.windows import ZONE, write_windows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

__all__ = ["BATCH_IN", "BATCH_OUT", "Explanation", "RuleSaid", "batch", "batch_csv", "explain", "explain_attempt"]

BATCH_IN = ("id", "profile", "caller_area_code", "caller_e164", "dialled")
BATCH_OUT = ("id", "canonical", "class", "decision", "status", "rule", "reason")

_ASSUMED = "-"  # id of the line that a batch assumes; no real line can have it
_AREA_CODE = re.compile(r"0?([2-9][0-9]{1,4})\Z")
MAX_CALLERS = 10_000  # lines that a batch keeps for its next rows

_WORDS = {Verdict.ALLOW: "allow", Verdict.DENY: "block", Verdict.EMERGENCY: "emergency"}
_ORDER = {
    Direction.OUTGOING: ("line.status", "caller", "block.class", "block.rule", "line.rate", "line.channels"),
    Direction.INCOMING: ("number", "line.status", "caller", "block.rule", "line.channels"),
}
_GROUPS = {"plan": "block.rule", "number": "number", "caller": "caller", "profile": "caller"}


class RuleSaid(NamedTuple):
    """A block rule that matches the number, and what became of it."""

    rule: BlockRule
    said: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, the same in one sentence per line, and the block rules that match, in the order in which they count."""

    decision: Decision
    words: tuple[str, ...]
    rules: tuple[RuleSaid, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.words)


def explain(  # noqa: PLR0917 - the question, in its own order
    snapshot: Snapshot,
    line: Line | None,
    account: Account | None,
    dialled: bytes | str,
    slots_used: int | None = None,
    now_at_ms: int = 0,
) -> Explanation:
    """What a call from `line` to `dialled` (a user part or a URI) would get with `slots_used` channels in use."""
    target = dialled.encode("utf-8", "surrogateescape") if isinstance(dialled, str) else dialled
    return explain_attempt(CallAttempt(Direction.OUTGOING, target, line, account, slots_used=slots_used), snapshot, now_at_ms)


def explain_attempt(
    attempt: CallAttempt,
    snapshot: Snapshot,
    now_at_ms: int,
    *,
    decide: Callable[[CallAttempt, Snapshot, int], Decision] = evaluate,
) -> Explanation:
    """What any attempt would get, in either direction, at a UTC time in milliseconds.

    `decide` is what the live path decides such a call with, where that is more than its policy.
    """
    decision = decide(attempt, snapshot, now_at_ms)
    rules = tuple(_rules(attempt, decision, snapshot, now_at_ms))
    return Explanation(decision, tuple(_sentences(attempt, decision, rules)), rules)


def _rules(attempt: CallAttempt, decision: Decision, snapshot: Snapshot, now_at_ms: int) -> Iterator[RuleSaid]:
    """Every rule that matches the destination, or of an incoming call the caller's number, at whatever time."""
    line = decision.line
    if line is None:
        return
    destination = decision.destination
    direction, numbers = RuleDirection.OUTGOING, [(destination.canonical, destination.kind)]
    if attempt.direction is Direction.INCOMING:
        direction = RuleDirection.INCOMING
        given = dict.fromkeys(number for number in (decision.asserted, decision.presented) if number)
        numbers = [(number, classify_incoming(number.encode()).kind) for number in given]
    deciding = decision.rule.removeprefix("block.rule.").removeprefix("allow.rule.")
    for level in RuleLevel:
        for number, kind in numbers:
            first = ""
            for rule in candidates(snapshot.block_index.of(level, direction), line.id, line.profile, number, kind):
                said = _inactive(rule, now_at_ms)
                if not said and first:
                    said = f"covered by rule {first}"
                elif not said:
                    first = rule.id
                    decides = rule.id == deciding and decision.rule != deciding
                    said = "decides" if decides else _idle(decision, rule)
                yield RuleSaid(rule, said)


def _inactive(rule: BlockRule, now_at_ms: int) -> str:
    """Why a rule does not hold at that time, or ""."""
    if is_active(rule, now_at_ms):
        return ""
    if rule.valid_from_ms is not None and now_at_ms < rule.valid_from_ms:
        return f"valid from {_clock(rule.valid_from_ms)}"
    if rule.valid_until_ms is not None and now_at_ms >= rule.valid_until_ms:
        return f"was valid until {_clock(rule.valid_until_ms)}"
    return f"outside its windows: {write_windows(rule.windows)}"


def _idle(decision: Decision, rule: BlockRule) -> str:
    """What became of a rule that holds and is covered by none, but did not decide."""
    if decision.verdict is Verdict.EMERGENCY:
        return "not asked: an emergency call"
    if decision.verdict is Verdict.ALLOW:
        return "lets it pass"
    return f"would {rule.action.value}, but {decision.rule} came before it"


def _clock(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms // 1000, ZONE).strftime("%Y-%m-%d %H:%M")


def _sentences(attempt: CallAttempt, decision: Decision, rules: tuple[RuleSaid, ...]) -> Iterator[str]:
    destination = decision.destination
    yield f"dialled {quoted(destination.dialled)}: {destination.canonical}, {destination.kind.value}"
    if destination.how:
        yield f"read as: {destination.how}"
    for rule, said in decision.steps[1:]:
        yield f"{rule}: {said}"
    left = _not_asked(attempt, decision)
    if left:
        yield f"not asked any more: {', '.join(left)}"
    for item in rules:
        yield f"matching rule {item.rule.id}: {_rule_words(item.rule)}: {item.said}"
    yield from _caller_words(attempt, decision)
    yield from _verdict_words(decision)


def _not_asked(attempt: CallAttempt, decision: Decision) -> tuple[str, ...]:
    """The rules behind the one that decided."""
    order = _ORDER[attempt.direction]
    if decision.account is not None and decision.account.channels is not None:
        order = (*order, "account.channels")
    if decision.verdict is Verdict.EMERGENCY:
        return order
    if decision.verdict is Verdict.ALLOW or decision.rule.startswith("forward."):  # which is asked last
        return ()
    head, _, _ = decision.rule.partition(".")
    name = _GROUPS.get(head) or ".".join(decision.rule.split(".")[:2])
    return order[order.index(name) + 1 :] if name in order else order


def _rule_words(rule: BlockRule) -> str:
    scope = " ".join(
        part for part in (f"line {rule.line}" * bool(rule.line), f"profile {rule.profile}" * bool(rule.profile)) if part
    )
    whose = "the customer's, " if rule.level is RuleLevel.CUSTOMER else ""
    return f"{whose}{rule.action.value} {rule.kind.value} {rule.value} for {scope or 'all'} ({rule.reason})"


def _caller_words(attempt: CallAttempt, decision: Decision) -> Iterator[str]:
    if attempt.direction is Direction.OUTGOING and decision.asserted:
        shown = "hidden from the called party" if decision.restricted else f"shown as {decision.presented}"
        same = not decision.restricted and decision.presented == decision.asserted
        yield f"caller: {decision.asserted}" + ("" if same else f", {shown}")
    elif attempt.direction is Direction.INCOMING and (decision.presented or decision.restricted):
        yield "caller: " + ("hidden from the line" if decision.restricted else decision.presented)
    if attempt.slots_used is not None and decision.channels is not None:
        yield f"channels: {attempt.slots_used}/{decision.channels} in use before this call"


def _verdict_words(decision: Decision) -> Iterator[str]:
    version = decision.snapshot
    if decision.verdict is Verdict.EMERGENCY:
        for position, route in enumerate(decision.psap, 1):
            yield f"route {position}: {route.uri} {route.name}".rstrip()
        if not decision.psap:
            yield "no PSAP route for this location: the trunks are tried"
        yield f"EMERGENCY by {decision.rule}, snapshot {version}"
    elif decision.verdict is Verdict.ALLOW:
        to = f"account {decision.callee.user} of line {decision.callee.line}" if decision.callee else "the trunks"
        yield f"ALLOWED by {decision.rule} to {to}, snapshot {version}"
    else:
        cause = f", cause {decision.cause}" if decision.cause else ""
        yield f"REFUSED with {decision.status}{cause} by {decision.rule}, snapshot {version}"


def batch(rows: Iterable[Mapping[str, str]], snapshot: Snapshot, *, now_at_ms: int = 0) -> Iterator[dict[str, str]]:
    """For each row with the columns `BATCH_IN` one with the columns `BATCH_OUT`.

    A line of the row's profile is assumed, with one account and all channels free. Raises KeyError for a missing column.
    """
    callers: dict[tuple[str, str, str], tuple[Line, Account]] = {}
    for row in rows:
        key = (row["profile"], row["caller_area_code"], row["caller_e164"])
        found = callers.get(key)
        if found is None:
            if len(callers) >= MAX_CALLERS:
                callers.clear()
            found = callers[key] = _assumed(*(cell.strip() for cell in key))
        line, account = found
        target = row["dialled"].encode("utf-8", "surrogateescape")
        decision = evaluate(CallAttempt(Direction.OUTGOING, target, line, account, slots_used=0), snapshot, now_at_ms)
        yield {
            "id": row["id"],
            "canonical": decision.destination.canonical,
            "class": decision.destination.kind.value,
            "decision": _WORDS[decision.verdict],
            "status": str(decision.status) if decision.status else "",
            "rule": decision.rule,
            "reason": decision.reason,
        }


def _assumed(profile: str, area_code: str, number: str) -> tuple[Line, Account]:
    match = _AREA_CODE.match(area_code)
    account = Account(_ASSUMED, _ASSUMED, AccountKind.SINGLE, {}, (number,) if number else ())
    return Line(_ASSUMED, profile, LineStatus.ACTIVE, None, "", "0" + match[1] if match else "", (_ASSUMED,)), account


def batch_csv(text: str, *, file: str, snapshot: Snapshot, now_at_ms: int = 0) -> str:
    """The same from CSV to CSV. `dialled` is taken as it stands, down to its spaces.

    Raises PolicyError with all faults of the file: a missing column, an unknown profile, an area code that is none.
    """
    table = Table(file)
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), restval="", restkey="")
    rows: list[dict[str, str]] = []
    try:
        for name in BATCH_IN:
            if name not in (reader.fieldnames or ()):
                table.fault(1, name, "column is missing")
        table.finish()
        for row in reader:
            if "" in row:
                table.fault(reader.line_num, "", "more cells than columns: is there a comma in `dialled` without quotes?")
            profile, area_code = row["profile"].strip(), row["caller_area_code"].strip()
            if profile not in snapshot.profiles:
                table.fault(reader.line_num, "profile", f"unknown profile {quoted(profile)}")
            if _AREA_CODE.match(area_code) is None:
                table.fault(reader.line_num, "caller_area_code", f"not an area code: {quoted(area_code)}")
            rows.append(row)
    except csv.Error as error:
        table.fault(reader.line_num, "", f"not CSV: {error}")
    table.finish()
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, BATCH_OUT, lineterminator="\n")
    writer.writeheader()
    writer.writerows(batch(rows, snapshot, now_at_ms=now_at_ms))
    return out.getvalue()
