"""How the facts of a call become its one final record (design: invariants 3 and 4).

Pure: stamps and durations come in as arguments. Durations are differences of `after_ms` values, which the engine takes from
a monotonic clock; stamps are never subtracted from each other, because a wall clock may be set while a call lives.
What is left out: fields that are known at admission are put into the draft by the engine; rating is not done here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

if TYPE_CHECKING:
    from cdr.facts import Admit, Alive, Answer, EndReason, Record, ReleasedBy

__all__ = ["answered", "final", "recovered", "running"]


def answered(draft: Record, answer: Answer) -> Record:
    """The draft with what the answer added. Texts that the answer leaves empty stay as the draft has them."""
    record = replace(draft)
    if answer.ringing_at_ms is not None:
        record.ringing_at_ms = answer.ringing_at_ms
    record.answer_at_ms, record.status = answer.at_ms, answer.status
    record.to_tag, record.trunk = answer.to_tag or draft.to_tag, answer.trunk or draft.trunk
    record.psap, record.callee_account = answer.psap or draft.psap, answer.callee_account or draft.callee_account
    if answer.media != draft.media:
        record.media = _in_order(draft.media, answer.media)
    return record


def final(
    draft: Record,
    *,
    answer: Answer | None,
    seq: int,
    end_at_ms: int,
    after_ms: int,
    status: int,
    cause: int,
    released_by: ReleasedBy,
    end_reason: EndReason,
    certain: bool = True,
    last_seen_at_ms: int | None = None,
) -> Record:
    """The final record of a call or a refused attempt.

    `draft` is the record as far as it was known, `end_at_ms` the UTC stamp of the end and `after_ms` the monotonic time since
    set-up in ms. `status` is what the caller got: for an answered call the status of the answer stands. With `certain` False
    the end is the last proof of life. `last_seen_at_ms` defaults to the end. Never raises: a record is better than none, so
    a negative duration, which only a fault of our own could cause, becomes 0.
    """
    record = replace(draft) if answer is None else answered(draft, answer)
    # One by one: a field given by name costs three times as much.
    record.type, record.seq = "final", seq
    record.end_at_ms, record.duration_ms = end_at_ms, max(0, after_ms)
    record.billable_ms = 0
    if answer is None:
        record.status = status
    else:
        record.billable_ms = max(0, after_ms - answer.after_ms)
    record.duration_certain = certain
    record.last_seen_at_ms = end_at_ms if last_seen_at_ms is None else last_seen_at_ms
    record.cause, record.released_by, record.end_reason = cause, released_by, end_reason
    return record


def running(draft: Record, answer: Answer, alive: Alive | None, *, kind: Literal["start", "interim"], after_ms: int) -> Record:
    """The record of an answered call that goes on, `after_ms` (monotonic) after its set-up.

    It has no number and no end: `end_at_ms` is 0, the durations are those so far, and released_by and end_reason mean nothing.
    """
    return replace(
        answered(draft, answer),
        type=kind,
        seq=0,
        duration_ms=max(0, after_ms),
        billable_ms=max(0, after_ms - answer.after_ms),
        last_seen_at_ms=answer.at_ms if alive is None else alive.at_ms,
    )


def recovered(admit: Admit, answer: Answer | None, alive: Alive | None, seq: int) -> Record:
    """The final record of a call that lived when its node died.

    Nobody saw the end: it is the last proof of life, the latest of set-up, answer and the last `Alive` by the monotonic clock,
    and the record says so. An answered call without an `Alive` is thereby free of charge. A call that was not answered has
    the status 0: no final response left this node.
    """
    proofs = [(0, admit.record.setup_at_ms)]
    if answer is not None:
        proofs.append((answer.after_ms, answer.at_ms))
    if alive is not None:
        proofs.append((alive.after_ms, alive.at_ms))
    after_ms, end_at_ms = max(reversed(proofs), key=lambda proof: proof[0])  # Of equal ones the later fact.
    return final(
        admit.record,
        answer=answer,
        seq=seq,
        end_at_ms=end_at_ms,
        after_ms=after_ms,
        status=0,
        cause=0,
        released_by="unknown",
        end_reason="node_restart",
        certain=False,
    )


def _in_order(first: list[str], second: list[str]) -> list[str]:
    """Both lists as one, without repetitions, in order of appearance."""
    return list(dict.fromkeys((*first, *second)))
