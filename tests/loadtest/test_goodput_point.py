"""What a run says of the calls that went well (loadtest/goodput.py)."""

from __future__ import annotations

from pathlib import Path

from loadtest.goodput import Point, report_of
from loadtest.mix import PATIENCE_S, read
from loadtest.mixed import Ran
from loadtest.seen import Seen


def test_calls_that_are_answered_when_no_more_begin_are_told_apart() -> None:
    seen, late_ms = Seen(), 1000 * PATIENCE_S + 1
    for at, ms in [(1.0, 5.0), (2.0, 1000 * PATIENCE_S), (2.0, late_ms), (9.9, 5.0), (10.1, 5.0), (12.0, late_ms)]:
        seen.delays["setup"].add(at, ms)
    seen.good = 4
    seen.placed["answered"] = 20
    point = Point(10.0, Ran(read(Path("overload")), seen, arriving_s=10.0))
    assert (point.offered, point.goodput, point.meanwhile) == (2.0, 0.4, 0.3)


def test_run_in_which_nothing_was_answered_has_no_goodput() -> None:
    point = Point(10.0, Ran(read(Path("overload")), Seen(), arriving_s=10.0))
    assert (point.goodput, point.meanwhile) == (0.0, 0.0)


def test_load_that_is_answered_when_it_has_ended_keeps_up_nothing() -> None:
    """Beyond the capacity what counts is what is answered in time meanwhile, not what is taken up once it is over."""
    points = [_point(1.0, meanwhile=70, after=0), _point(5.0, meanwhile=49, after=40), _point(10.0, meanwhile=48, after=40)]
    kept, lost = (report_of(point, points) for point in points[1:])
    assert kept.faults == []
    assert lost.faults == ["69 % of the peak were answered in time while calls began"]


def _point(factor: float, *, meanwhile: int, after: int) -> Point:
    seen = Seen()
    for number in range(meanwhile + after):
        seen.delays["setup"].add(5.0 if number < meanwhile else 10.5, 5.0)
    seen.good = meanwhile + after
    seen.placed["answered"] = 100 * int(factor)
    return Point(factor, Ran(read(Path("overload")), seen, arriving_s=10.0))
