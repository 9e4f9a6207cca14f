"""cdr.quality: figures of small sets counted by hand, and that parts add up to the whole."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
from cdr_samples import SETUP_AT_MS, draft, records
from hypothesis import given, settings
from hypothesis import strategies as st

from cdr.quality import Figures, Key, RunningFigures, grouped, key_of, outcome, post_dial_delay, read, write

if TYPE_CHECKING:
    from cdr.facts import Record

SUMMER_MS = 1_782_856_800_000  # 2026-06-30 22:00 UTC: midnight of 1 July in Germany


def attempt(status: int, reason: str, *, rings: int | None = None, talks: int | None = None, **fields: object) -> Record:
    """`rings` ms after set-up, `talks` ms after an answer at 5 s."""
    answered = talks is not None
    return draft(
        "c",
        trunk="carrier",
        profile="velbert",
        verdict="allow",
        status=status,
        end_reason=reason,
        ringing_at_ms=None if rings is None else SETUP_AT_MS + rings,
        answer_at_ms=SETUP_AT_MS + 5000 if answered else None,
        billable_ms=talks or 0,
        **fields,
    )


BY_HAND = [
    attempt(200, "normal", rings=1000, talks=60_000),
    attempt(200, "normal", rings=2000, talks=30_000),
    attempt(200, "session_expired", talks=0, duration_certain=False),
    attempt(486, "rejected"),
    attempt(487, "cancelled", rings=1500),
    attempt(487, "cancelled"),
    attempt(404, "rejected"),
    attempt(503, "unreachable"),
    attempt(403, "refused", rule="line.channels"),
    attempt(403, "refused", rule="line.channels"),
    attempt(404, "refused", rule="plan.unknown"),
]


def test_figures_of_a_set_counted_by_hand() -> None:
    for record in BY_HAND[8:]:
        record.verdict = "deny"
    (figures,) = grouped(BY_HAND).values()
    assert (figures.attempts, figures.seizures, figures.answered, figures.effective, figures.failed) == (11, 8, 3, 2, 3)
    assert (figures.asr, figures.ner, figures.acd_ms) == (3 / 8, 5 / 8, 30_000.0)
    assert figures.rules == {"line.channels": 2, "plan.unknown": 1}
    assert figures.delays == {1000: 1, 2000: 1, 5000: 1, 1500: 1}
    assert (figures.delay_ms(50), figures.delay_ms(95), figures.delay_ms(25)) == (1500, 5000, 1000)
    assert figures.uncertain == 1


def test_figures_of_nothing_are_none() -> None:
    nothing = Figures()
    assert (nothing.asr, nothing.ner, nothing.acd_ms, nothing.delay_ms(50)) == (None, None, None, None)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (attempt(603, "rejected"), "effective"),
        (attempt(600, "rejected"), "effective"),
        (attempt(480, "rejected"), "effective"),
        (attempt(408, "no_answer", rings=900), "effective"),
        (attempt(408, "no_answer"), "failed"),
        (attempt(500, "error"), "failed"),
        (attempt(0, "node_restart"), "failed"),
        (attempt(484, "rejected"), "failed"),
        (attempt(200, "node_restart", talks=5), "answered"),
        (attempt(480, "unreachable"), "refused"),
    ],
)
def test_outcome_of_attempt(record: Record, expected: str) -> None:
    record.verdict = "deny" if expected == "refused" else "allow"
    assert outcome(record) == expected


def test_grouped_counts_final_records_alone_and_emergency_calls_apart() -> None:
    found = grouped(
        [
            attempt(200, "normal", talks=1),
            draft("i", type="interim", trunk="carrier", profile="velbert", verdict="allow"),
            draft("e", verdict="emergency", profile="velbert", status=200, answer_at_ms=SETUP_AT_MS + 1),
        ]
    )
    assert {(key.route, key.emergency): value.attempts for key, value in found.items()} == {
        ("carrier", False): 1,
        ("", True): 1,
    }


def test_key_day_is_the_one_of_the_wall_clock_in_germany() -> None:
    assert key_of(draft(setup_at_ms=SUMMER_MS)).day == "2026-07-01"
    assert key_of(draft(setup_at_ms=SUMMER_MS - 1)).day == "2026-06-30"
    assert key_of(draft(setup_at_ms=2**63)).day == "-"


@pytest.mark.parametrize(("ringing", "answer", "delay"), [(1, None, 1), (None, 7, 7), (-1, None, None), (300_001, 5, None)])
def test_post_dial_delay_is_left_out_where_a_clock_was_set(ringing: int | None, answer: int | None, delay: int | None) -> None:
    stamps = [None if offset is None else SETUP_AT_MS + offset for offset in (ringing, answer)]
    assert post_dial_delay(draft(ringing_at_ms=stamps[0], answer_at_ms=stamps[1])) == delay


@settings(max_examples=60)
@given(st.lists(records(), max_size=12), st.integers(0, 12))
def test_merge_of_parts_is_the_whole_also_when_written_and_read(given_records: list[Record], cut: int) -> None:
    whole = grouped(given_records)
    hashes: dict[str, dict[str, int]] = {}
    for part in (given_records[:cut], given_records[cut:]):
        for key, figures in grouped(part).items():
            day = hashes.setdefault(key.day, {})
            for name, number in write(key, figures).items():
                day[name] = day.get(name, 0) + number
    back: dict[Key, Figures] = {}
    for day_name, counts in hashes.items():
        back |= read(day_name, counts)
    named = {key: "".join((key.route, key.profile, *value.rules)) for key, value in whole.items()}  # a name has no separator
    clean = {key: value for key, value in whole.items() if "\x1f" not in named[key] and value.attempts}
    assert {key: back.get(key) for key in clean} == clean
    total = Figures()
    for value in whole.values():
        total.merge(value)
    assert total.attempts == sum(record.type == "final" for record in given_records)
    assert total.attempts == total.answered + total.effective + total.failed + total.refused
    assert total.rules.total() == total.refused


@settings(max_examples=100)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=60), st.integers(1, 100))
def test_delay_percentile_is_the_nearest_rank(delays: list[int], percent: int) -> None:
    figures = Figures()
    for delay in delays:
        figures.add(attempt(200, "normal", rings=delay, talks=1))
    steps = sorted(delay // 10 * 10 for delay in delays)
    assert figures.delay_ms(percent) == steps[math.ceil(len(steps) * percent / 100) - 1]


@settings(max_examples=40)
@given(st.lists(records(), max_size=8))
def test_running_figures_count_as_figures_do(given_records: list[Record]) -> None:
    running = RunningFigures()
    whole = Figures()
    for record in given_records:
        running.add(record)
        whole.add(record)
    for kind in ("answered", "effective", "failed", "refused"):
        assert sum(number for key, number in running.calls.items() if key[2] == kind) == getattr(whole, kind)
    assert running.delays.total() == whole.delays.total()
