"""What a run says of the calls that went well (loadtest/goodput.py)."""

from __future__ import annotations

from pathlib import Path

from loadtest.goodput import Point
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
