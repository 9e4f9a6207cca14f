"""Which rule counts: the index against a naive model, weekly windows against every minute, and what a call costs."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_rules import BERLIN, HOUR_MS, START_MS, WINDOWS, is_open, kind_of, naive_rule, rule_sets

from policy.blocklist import candidates, index_of, is_active, rule_for
from policy.model import BlockRule, DestinationClass, RuleDirection, RuleKind, RuleLevel, Window
from policy.windows import covers, parse_windows, write_windows

TARGETS = ("+49900123456", "+499001", "+4990055", "+493023125001", "+4930", "+431234567", "+43900123456", "service:11869", "-")
INSTANTS = st.integers(-5 * 24, 15 * 24 * 4).map(lambda quarter: START_MS + quarter * HOUR_MS // 4)


@settings(max_examples=400)
@given(
    rule_sets(),
    st.sampled_from(RuleLevel),
    st.sampled_from([RuleDirection.OUTGOING, RuleDirection.INCOMING]),
    st.sampled_from(["L1", "L2", "L3"]),
    st.sampled_from(["velbert", "badnauheim"]),
    st.sampled_from(TARGETS),
    INSTANTS,
)
def test_rule_that_counts_is_the_naive_models(
    found: list[BlockRule], level: RuleLevel, direction: RuleDirection, line: str, profile: str, number: str, at_ms: int
) -> None:
    scopes, kind = index_of(found).of(level, direction), DestinationClass(kind_of(number))
    expected = naive_rule(found, level, direction, line, profile, number, kind, at_ms)
    assert rule_for(scopes, line, profile, number, kind, at_ms) == expected
    # What an explanation lists is the same, in the same order.
    listed = candidates(scopes, line, profile, number, kind)
    assert next((rule for rule in listed if is_active(rule, at_ms)), None) == expected


def berlin_ms(*when: int, fold: int = 0) -> int:
    return int(dt.datetime(*when, tzinfo=BERLIN, fold=fold).timestamp() * 1000)  # type: ignore[misc, arg-type]


@settings(max_examples=60)
@given(st.lists(WINDOWS, min_size=1, max_size=3).map(tuple), st.sampled_from([(2026, 3, 29), (2026, 10, 25), (2026, 7, 5)]))
def test_windows_are_open_in_the_minutes_of_the_wall_clock(windows: tuple[Window, ...], day: tuple[int, int, int]) -> None:
    """Around both changes of the clock, from the evening before to the morning after, minute by minute."""
    begin = berlin_ms(*day) - 2 * HOUR_MS
    for minute in range(8 * 60):
        at_ms = begin + minute * 60_000 + 30_000
        assert covers(windows, at_ms) == is_open(windows, at_ms), (write_windows(windows), at_ms)


def test_windows_in_the_hour_that_the_clock_skips_and_in_that_which_comes_twice() -> None:
    night = parse_windows("su 02:00-03:00")
    skipped = [berlin_ms(2026, 3, 29) + minute * 60_000 for minute in range(5 * 60)]
    assert not any(covers(night, at) for at in skipped)
    assert covers(parse_windows("su 01:00-03:00"), berlin_ms(2026, 3, 29, 1, 59))
    twice = [berlin_ms(2026, 10, 25) + minute * 60_000 for minute in range(6 * 60)]
    assert sum(covers(night, at) for at in twice) == 120
    assert covers(night, berlin_ms(2026, 10, 25, 2, 30, fold=0))
    assert covers(night, berlin_ms(2026, 10, 25, 2, 30, fold=1))
    assert not covers(night, berlin_ms(2026, 10, 25, 3, 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("mo-fr 08:00-17:30", (Window((0, 1, 2, 3, 4), 480, 1050),)),
        ("Sa,So 00:00-24:00", (Window((5, 6), 0, 1440),)),
        ("fr-mo 22:00-06:00; we 12:00 - 12:30", (Window((0, 4, 5, 6), 1320, 360), Window((2,), 720, 750))),
        ("mi,do 00:00-00:01", (Window((2, 3), 0, 1),)),
    ],
)
def test_parse_windows_reads_what_write_windows_writes(text: str, expected: tuple[Window, ...]) -> None:
    assert parse_windows(text) == expected
    assert parse_windows(write_windows(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["always", "mo", "mo 8:00-17:00", "xx 08:00-09:00", "mo 08:00-08:00", "mo 24:00-08:00", "mo 08:60-09:00", "mo 08:00-24:01",
     "mo- 08:00-09:00", "mo 08:00-09:00;" * 21, "mo 08:00-09:00 or so"],
)  # fmt: skip
def test_parse_windows_refuses_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_windows(text)


def test_rule_times_hold_from_the_first_millisecond_to_before_the_last() -> None:
    rule = BlockRule("r", "+43", "x", valid_from_ms=1000, valid_until_ms=2000)
    assert [is_active(rule, at) for at in (999, 1000, 1999, 2000)] == [False, True, True, False]


def test_exceptions_count_by_the_longest_match() -> None:
    blocked = BlockRule("all", "service:118", "no directory services")
    allowed = BlockRule("one", "service:11869", "priced", kind=RuleKind.NUMBER, action="allow")  # type: ignore[arg-type]
    index = index_of([blocked, allowed])
    for number, expected in (("service:11869", allowed), ("service:11833", blocked)):
        found = rule_for(index.admin_outgoing, "L1", "velbert", number, DestinationClass.DIRECTORY, 0)
        assert found == expected


class Counting(dict[str, tuple[BlockRule, ...]]):
    """A table that counts what is asked of it."""

    asked = 0

    def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
        Counting.asked += 1
        return super().get(key, default)


@pytest.mark.parametrize("size", [10, 20_000])
def test_look_up_asks_as_often_however_many_rules_there_are(size: int) -> None:
    """A look-up per scope and length; of rules with times only those that match are looked at."""
    window = parse_windows("mo-fr 08:00-17:00")
    found = [
        BlockRule(f"r{number}", f"+43{number:05d}", "x", line="" if number % 2 else f"L{number}", windows=window)
        for number in range(size)
    ]
    counted = {
        scope: dataclasses.replace(table, prefixes=Counting(table.prefixes))
        for scope, table in index_of(found).admin_outgoing.items()
    }
    Counting.asked = 0
    rule_for(counted, "L4", "velbert", "+4300004555", DestinationClass.INTERNATIONAL, START_MS)
    assert Counting.asked == 2  # this line's prefixes, and those for all: all are of one length
