"""Delays of seconds in which the generator itself stood still say nothing of the node."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from loadtest.mix import Load, Mix, Shares
from loadtest.mix_report import STILL_MS, report_of, steady_spans, within
from loadtest.mixed import Ran, Sample
from loadtest.seen import Seen, Series

IN_TIME, STILL = STILL_MS, STILL_MS + 1


def samples(*late_ms: float) -> list[Sample]:
    """One a second from second 1 on, with the generator's lateness."""
    nothing = {name: kind(0) for name, kind in get_type_hints(Sample).items()}
    return [Sample(**nothing | {"at": float(second), "own_late_ms": late}) for second, late in enumerate(late_ms, start=1)]


@pytest.mark.parametrize(
    ("late_ms", "spans"),
    [
        ((), []),
        ((IN_TIME, IN_TIME), [(0.0, 1.0), (1.0, 2.0)]),
        ((STILL, IN_TIME, IN_TIME), [(2.0, 3.0)]),
        ((IN_TIME, STILL, STILL, IN_TIME, IN_TIME), [(0.0, 1.0), (4.0, 5.0)]),
        ((IN_TIME, STILL), [(0.0, 1.0)]),
    ],
)
def test_second_in_which_the_generator_stood_still_and_the_next_are_not_steady(
    late_ms: tuple[float, ...], spans: list[tuple[float, float]]
) -> None:
    assert steady_spans(samples(*late_ms)) == spans


def test_delays_count_by_when_they_ended() -> None:
    series = Series()
    for at, ms in ((0.5, 1.0), (1.0, 2.0), (1.5, 300.0), (2.5, 400.0), (3.0, 500.0), (3.5, 3.0), (4.5, 600.0)):
        series.add(at, ms)
    assert within(series, [(0.0, 1.0), (3.0, 4.0)]) == [1.0, 2.0, 3.0]
    assert within(series, []) == []


def test_report_tells_both_what_all_calls_saw_and_what_those_did_that_were_sent_in_time() -> None:
    seen = Seen()
    seen.placed["answered"] = 4
    for name in ("invite", "answer"):
        for at, ms in ((0.5, 1.0), (1.5, 70.0), (2.5, 30.0), (3.5, 2.0)):
            seen.delays[name].add(at, ms)
    ran = Ran(
        Mix("test", Load(rate=1.0, seconds=4.0), Shares(answered=1.0)), seen, samples(IN_TIME, STILL, IN_TIME, IN_TIME, IN_TIME)
    )
    ran.seconds = 4.5
    told = report_of(ran).as_dict()
    assert told["steady_seconds"] == 2
    for name in ("invite", "answer"):
        assert (told[f"{name}_max_ms"], told[f"{name}_steady_max_ms"]) == (70.0, 2.0)
