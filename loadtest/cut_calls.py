"""Calls under which the node died (kill -9): what their records may say, and what they must.

A call is *cut* when a time in which there was no node, or not the whole of it, lies within its own. Its INVITE may have been
taken by the node before and, repeated, by the one after: one record of each, at most one more than the node died. What the
caller was answered (a provisional response counts) is owed a record, an answer that he got a record with an answer; and none
charges for more than the call can have lasted. Calls beside are compared as always.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdr.facts import Record
    from loadtest.truth import CallTruth

__all__ = ["Away", "CutCall"]

AFTER_S = 5.0  # from the node's return until the parties have repeated what it did not hear: T2 (RFC 3261 §17.1.2.2), and some


@dataclass(slots=True)
class Away:
    """A time without the node, in monotonic seconds; it goes on while `until` is None."""

    since: float
    until: float | None = None

    def touches(self, first: float, last: float) -> bool:
        """Whether something between these moments may have met it."""
        return first <= (self.until + AFTER_S if self.until is not None else last) and last >= self.since

    def seconds(self, last: float) -> float:
        return (self.until if self.until is not None else last) - self.since + AFTER_S


@dataclass(slots=True)
class CutCall:
    """One of them, over at `over_at`; `owed` unless the node may never have heard of it."""

    truth: CallTruth
    over_at: float
    owed: bool
    tolerance_ms: float
    times: list[Away]
    records: list[Record] = field(default_factory=list)

    def faults(self) -> list[str]:
        """What its records must not say; "missing" first where there is none."""
        truth, out = self.truth, []
        if not self.records:
            return [f"{truth.call_id}: missing"] if self.owed else []
        if len(self.records) > 1 + len(self.times):
            out.append(f"{truth.call_id}: {len(self.records)} records, the node died {len(self.times)} times")
        if truth.answered_at is not None and all(record.answer_at_ms is None for record in self.records):
            out.append(f"{truth.call_id}: answered, and no record of it is")
        longest_ms = 1000 * (self.over_at - truth.started_at) + self.tolerance_ms
        if truth.talk_ms is not None:
            longest_ms = truth.talk_ms + self.tolerance_ms + 1000 * sum(away.seconds(self.over_at) for away in self.times)
        billed = [record.billable_ms for record in self.records if record.billable_ms > longest_ms]
        return out + [f"{truth.call_id}: billed {ms} ms, was {longest_ms:.0f} ms at most" for ms in billed]
