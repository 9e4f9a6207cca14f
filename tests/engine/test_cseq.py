"""Numbers towards a peer that saw more requests than the party sent (RFC 3261 §12.2.1.1)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sipproxy.engine.cseq import MAX_CSEQ, MAX_STEPS, Shift


def test_shift_without_steps_changes_nothing() -> None:
    assert Shift().of(7) == 7


def test_shift_older_numbers_keep_what_they_were_sent_as() -> None:
    shift = Shift()
    shift = shift.sent(1, 2)
    shift = shift.sent(5, 7)
    assert [shift.of(number) for number in (1, 2, 4, 5, 6)] == [2, 3, 5, 7, 8]


def test_shift_never_leaves_the_range_of_cseq() -> None:
    shift = Shift()
    shift = shift.sent(1, 10)
    assert shift.of(MAX_CSEQ) == MAX_CSEQ


@given(st.lists(st.integers(0, 3), min_size=1, max_size=200))
def test_shift_of_a_dialog_is_strictly_ascending_and_bounded(challenges: list[int]) -> None:
    """Each request is challenged so many times; what the peer sees never comes twice and never goes back."""
    shift, seen = Shift(), [0]
    for number, times in enumerate(challenges, start=1):
        first = shift.of(number)
        seen += range(first, first + times + 1)
        for extra in range(1, times + 1):
            shift = shift.sent(number, first + extra)
        assert shift.of(number) == first + times
    assert seen == sorted(set(seen))
    assert len(shift.steps) <= MAX_STEPS
