"""The search for the highest rate ends close to it, from wherever it begins, and tells why it is not higher."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loadtest.bracket import CLOSE, MAX_TRIALS, Bracket


def searched(guess: float, true: float) -> Bracket:
    search = Bracket(guess)
    while (rate := search.next_rate()) is not None:
        search.tried(rate, f"{rate:g} is above {true:g}" if rate > true else "")
    return search


@given(st.floats(5, 5000), st.floats(0.1, 10))
def test_search_ends_close_below_the_highest_rate(true: float, off: float) -> None:
    search = searched(true * off, true)
    assert search.good <= true < search.bad <= search.good * CLOSE
    assert search.why == f"{search.bad:g} is above {true:g}"


@given(st.floats(20, 2000), st.floats(0.8, 1.2))
def test_good_guess_takes_few_trials(true: float, off: float) -> None:
    assert len(searched(true * off, true).trials) <= 5


def test_search_gives_up_where_nothing_goes_well_or_everything_does() -> None:
    assert searched(100, 0).good == 0
    endless = searched(100, 1e30)
    assert (endless.why, len(endless.trials)) == ("", MAX_TRIALS)


def test_rate_that_went_well_above_one_that_failed_does_not_count() -> None:
    search = Bracket(100)
    search.tried(100, "the machine was busy")
    search.tried(120, "")
    assert (search.good, search.bad) == (0.0, 100)
