"""docs/design.md, invariants 3 and 4: one final record, with honest durations."""

from __future__ import annotations

import msgspec
import pytest
from cdr_samples import SETUP_AT_MS, answer, draft
from hypothesis import given
from hypothesis import strategies as st

from cdr.assemble import answered, final, recovered
from cdr.facts import Admit, Alive, Record


def test_final_answered_call_counts_from_answer_by_the_monotonic_clock() -> None:
    """The wall clock was set back by an hour during the call: stamps show it, durations do not."""
    record = final(
        draft(),
        answer=answer(after_ms=5000),
        seq=7,
        end_at_ms=SETUP_AT_MS - 3_600_000,
        after_ms=65_000,
        status=0,
        cause=16,
        released_by="callee",
        end_reason="normal",
        last_seen_at_ms=SETUP_AT_MS + 1,
    )
    assert (record.duration_ms, record.billable_ms) == (65_000, 60_000)
    assert (record.end_at_ms, record.last_seen_at_ms) == (SETUP_AT_MS - 3_600_000, SETUP_AT_MS + 1)
    assert (record.seq, record.type, record.status, record.cause) == (7, "final", 200, 16)
    assert (record.released_by, record.end_reason, record.duration_certain) == ("callee", "normal", True)
    assert (record.answer_at_ms, record.ringing_at_ms) == (SETUP_AT_MS + 5000, SETUP_AT_MS + 1000)
    assert (record.to_tag, record.trunk, record.media) == ("tt", "trunk1", ["audio"])


def test_final_unanswered_call_is_not_billable() -> None:
    record = final(
        draft(ringing_at_ms=5),
        answer=None,
        seq=1,
        end_at_ms=SETUP_AT_MS + 9000,
        after_ms=9000,
        status=487,
        cause=16,
        released_by="caller",
        end_reason="cancelled",
    )
    assert (record.duration_ms, record.billable_ms, record.answer_at_ms) == (9000, 0, None)
    assert (record.status, record.ringing_at_ms) == (487, 5)
    assert record.last_seen_at_ms == SETUP_AT_MS + 9000


def test_final_leaves_the_draft_as_it_was() -> None:
    before = draft(media=["audio"], unknown={"new": 1})
    copy = msgspec.structs.replace(before, media=list(before.media))
    after = answered(before, answer(media=["image", "audio"], trunk=""))
    assert before == copy
    assert after.media == ["audio", "image"]
    assert (after.trunk, after.unknown) == ("", {"new": 1})


def test_final_answer_without_texts_keeps_those_of_the_draft() -> None:
    known = draft(trunk="t", psap="p", to_tag="x", callee_account="a", ringing_at_ms=3)
    after = answered(known, answer(trunk="", psap="", to_tag="", callee_account="", ringing_at_ms=None))
    assert (after.trunk, after.psap, after.to_tag, after.callee_account, after.ringing_at_ms) == ("t", "p", "x", "a", 3)


@pytest.mark.parametrize(
    ("answer_after", "alive_after", "end", "duration", "billable"),
    [
        (None, None, SETUP_AT_MS, 0, 0),
        (5000, None, SETUP_AT_MS + 5000, 5000, 0),
        (5000, 65_000, SETUP_AT_MS + 65_000, 65_000, 60_000),
        (None, 2000, SETUP_AT_MS + 2000, 2000, 0),
        (5000, 4000, SETUP_AT_MS + 5000, 5000, 0),
    ],
)
def test_recovered_end_is_the_last_proof_of_life(
    answer_after: int | None, alive_after: int | None, end: int, duration: int, billable: int
) -> None:
    got = None if answer_after is None else answer(at_ms=SETUP_AT_MS + answer_after, after_ms=answer_after)
    alive = None if alive_after is None else Alive("c1", SETUP_AT_MS + alive_after, alive_after)
    record = recovered(Admit(draft(verdict="allow")), got, alive, 42)
    assert (record.end_at_ms, record.last_seen_at_ms) == (end, end)
    assert (record.duration_ms, record.billable_ms) == (duration, billable)
    assert (record.end_reason, record.released_by, record.duration_certain) == ("node_restart", "unknown", False)
    assert (record.id, record.seq, record.type, record.verdict) == ("c1", 42, "final", "allow")
    assert record.status == (0 if got is None else 200)


@given(st.integers(0, 10**8), st.integers(0, 10**8), st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_recovered_durations_do_not_depend_on_stamps(answer_after: int, alive_after: int, drift: int, jump: int) -> None:
    """Invariant 4: whatever the wall clock did, durations are those of the monotonic clock."""
    got = answer(at_ms=SETUP_AT_MS + drift, after_ms=answer_after)
    record = recovered(Admit(draft()), got, Alive("c1", SETUP_AT_MS + jump, alive_after), 1)
    assert record.duration_ms == max(answer_after, alive_after)
    assert record.billable_ms == max(0, alive_after - answer_after)
    assert record.end_at_ms == SETUP_AT_MS + (jump if alive_after >= answer_after else drift)


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_final_durations_are_never_negative(after_ms: int, answer_after: int) -> None:
    record: Record = final(
        draft(),
        answer=answer(after_ms=answer_after),
        seq=1,
        end_at_ms=0,
        after_ms=after_ms,
        status=200,
        cause=16,
        released_by="proxy",
        end_reason="error",
    )
    assert record.duration_ms >= 0
    assert record.billable_ms >= 0
