"""Why a call would be allowed, refused or routed: the live decision, in words.

Pure. The decision comes from the same `evaluate`, with the same snapshot, as that of a real call; nothing here decides.
Left out: reading and printing files, which the command line does.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from policy.evaluate import evaluate
from policy.model import Account, AccountKind, CallAttempt, Decision, Direction, Line, LineStatus, Snapshot, Verdict
from policy.table import Table, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["BATCH_IN", "BATCH_OUT", "Explanation", "batch", "batch_csv", "explain"]

BATCH_IN = ("id", "profile", "caller_area_code", "caller_e164", "dialled")
BATCH_OUT = ("id", "canonical", "class", "decision", "status", "rule", "reason")

_ASSUMED = "-"  # id of the line that a batch assumes; no real line can have it
_AREA_CODE = re.compile(r"0?([2-9][0-9]{1,4})\Z")
_WORDS = {Verdict.ALLOW: "allow", Verdict.DENY: "block", Verdict.EMERGENCY: "emergency"}


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision, and the same in one sentence per line."""

    decision: Decision
    words: tuple[str, ...]

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
    attempt = CallAttempt(Direction.OUTGOING, target, line, account, slots_used=slots_used)
    decision = evaluate(attempt, snapshot, now_at_ms)
    return Explanation(decision, tuple(_sentences(decision, snapshot)))


def _sentences(decision: Decision, snapshot: Snapshot) -> Iterator[str]:
    destination = decision.destination
    yield f"dialled {quoted(destination.dialled)}: {destination.canonical}, {destination.kind.value}"
    if destination.how:
        yield f"read as: {destination.how}"
    for rule, said in decision.steps[1:]:
        yield f"{rule}: {said}"
    if decision.asserted:
        hidden = ", hidden from the called party" if destination.clir else ""
        yield f"caller: {decision.asserted}{hidden}"
    if decision.verdict is Verdict.EMERGENCY:
        for position, route in enumerate(decision.psap, 1):
            yield f"route {position}: {route.uri} {route.name}".rstrip()
        if not decision.psap:
            yield "no PSAP route for this location: the trunks are tried"
        yield f"EMERGENCY by {decision.rule}, snapshot {snapshot.version}"
    elif decision.verdict is Verdict.ALLOW:
        to = f"account {decision.callee.user} of line {decision.callee.line}" if decision.callee else "the trunks"
        yield f"ALLOWED by {decision.rule} to {to}, snapshot {snapshot.version}"
    else:
        cause = f", cause {decision.cause}" if decision.cause else ""
        yield f"REFUSED with {decision.status}{cause} by {decision.rule}, snapshot {snapshot.version}"


def batch(rows: Iterable[Mapping[str, str]], snapshot: Snapshot, *, now_at_ms: int = 0) -> Iterator[dict[str, str]]:
    """For each row with the columns `BATCH_IN` one with the columns `BATCH_OUT`.

    A line of the row's profile is assumed, with one account and all channels free. Raises KeyError for a missing column.
    """
    for row in rows:
        area_code = row["caller_area_code"].strip()
        match = _AREA_CODE.match(area_code)
        number = row["caller_e164"].strip()
        account = Account(_ASSUMED, _ASSUMED, AccountKind.SINGLE, {}, (number,) if number else ())
        line = Line(_ASSUMED, row["profile"].strip(), LineStatus.ACTIVE, None, "", "0" + match[1] if match else "", (_ASSUMED,))
        explained = explain(snapshot, line, account, row["dialled"], slots_used=0, now_at_ms=now_at_ms)
        decision = explained.decision
        yield {
            "id": row["id"],
            "canonical": decision.destination.canonical,
            "class": decision.destination.kind.value,
            "decision": _WORDS[decision.verdict],
            "status": str(decision.status) if decision.status else "",
            "rule": decision.rule,
            "reason": decision.reason,
        }


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
