"""How long a record may be kept (TDDDG § 9, § 10, § 12; the guide of BfDI and BNetzA).

Pure. What is not needed for billing goes after a short time: refused and unanswered attempts, incoming calls, emergency calls,
and calls that cost nothing by their class. What is billed goes so many months after the invoice with it was sent; what no
invoice was sent for is kept. Calls that a fraud hold ended or refused, and those of a line that is on such a hold now, are kept
apart, with a time of their own; records that an objection is about (TDDDG § 10(2)) are kept apart until it is settled.
Left out: where records are, and taking them away (`purging`).
"""

from __future__ import annotations

import calendar
import datetime as dt
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cdr.facts import Record

__all__ = ["DAY_MS", "HOUR_MS", "Hold", "Invoice", "Reason", "Rules", "due_at", "months_after", "reason_of"]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
Reason = Literal["live", "refused", "unanswered", "incoming", "emergency", "free", "billed", "fraud", "objection", "unreadable"]
HELD = "line.status.fraud_hold"


class Invoice(NamedTuple):
    """All calls that ended before `until_ms`, and were not in an earlier one, are in an invoice sent at `sent_ms`."""

    until_ms: int
    sent_ms: int


class Hold(NamedTuple):
    """Final records of a line whose calls were set up from `from_ms` to before `to_ms` stay, because an objection runs."""

    line: str
    from_ms: int
    to_ms: int
    reason: str = ""
    placed_ms: int = 0


class Rules(NamedTuple):
    """The times. `free` are destination classes that are not charged, "internal" for calls between our own lines, either for
    lines of one profile alone as in "velbert:geographic". `fraud_lines` are those that are on fraud hold now."""

    unbilled_ms: int
    billed_months: int
    fraud_ms: int
    free: frozenset[str]
    invoices: Sequence[Invoice] = ()
    holds: Sequence[Hold] = ()
    fraud_lines: frozenset[str] = frozenset()


def reason_of(record: Record, rules: Rules) -> Reason:
    """Why the record goes when it goes."""
    if record.type != "final":
        return "live"
    if any(hold.line == record.line and hold.from_ms <= record.setup_at_ms < hold.to_ms for hold in rules.holds):
        return "objection"
    if record.end_reason == "fraud_hold" or record.rule == HELD:
        return "fraud"
    if record.verdict == "emergency":
        return "emergency"
    if record.line in rules.fraud_lines and record.direction != "incoming":
        return "fraud"
    if record.verdict == "deny" or record.end_reason == "refused":
        return "refused"
    if record.answer_at_ms is None:
        return "unanswered"
    if record.direction == "incoming":
        return "incoming"
    kinds = {record.destination_class, "internal"} if record.direction == "internal" else {record.destination_class}
    free_call = not rules.free.isdisjoint(kinds | {f"{record.profile}:{kind}" for kind in kinds})
    return "free" if free_call or record.billable_ms <= 0 else "billed"


def due_at(record: Record, rules: Rules) -> tuple[Reason, int | None]:
    """The reason, and when the record has to be gone, in UTC ms; None while that is not known yet."""
    reason = reason_of(record, rules)
    ended = record.end_at_ms or record.last_seen_at_ms or record.setup_at_ms
    if reason == "objection":
        return reason, None
    if reason == "fraud":
        return reason, ended + rules.fraud_ms
    if reason == "billed":
        sent = sent_at(ended, rules.invoices)
        return reason, None if sent is None else months_after(sent, rules.billed_months)
    return reason, ended + rules.unbilled_ms


def sent_at(ended_ms: int, invoices: Sequence[Invoice]) -> int | None:
    """When the invoice with a call that ended then was sent; None while there is none."""
    later = [invoice for invoice in invoices if ended_ms < invoice.until_ms]
    return min(later).sent_ms if later else None


def months_after(at_ms: int, months: int) -> int:
    """The same day and time so many months later, or the last day of that month (BGB § 188(2), (3))."""
    at = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=at_ms)
    year, month = divmod(at.year * 12 + at.month - 1 + months, 12)
    day = min(at.day, calendar.monthrange(year, month + 1)[1])
    later = at.replace(year=year, month=month + 1, day=day)
    return (later - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(milliseconds=1)
