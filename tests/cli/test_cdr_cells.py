"""What a row of `sipproxy cdr tail` says, and how times are shown."""

from __future__ import annotations

import time

import pytest

from cdr.facts import Record
from sipproxy.commands.cdrs import COLUMNS, _cells
from sipproxy.commands.output import clock, stamp


@pytest.mark.parametrize(("kind", "said"), [("start", "(start)"), ("interim", "(interim)"), ("final", "normal")])
def test_tail_record_of_a_live_call_is_not_shown_as_an_ended_one(kind: str, said: str) -> None:
    record = Record(id="r", node="n1", direction="outgoing", seq=1, type=kind, setup_at_ms=1, end_reason="normal")  # type: ignore[arg-type]
    assert _cells(record)[COLUMNS.index("end")] == said


@pytest.mark.parametrize(
    ("at_ms", "said"), [(1_767_222_000_000, "2026-01-01 00:00:00"), (1_782_864_000_000, "2026-07-01 02:00:00")]
)
def test_times_for_people_are_those_of_the_wall_in_germany_on_every_machine(
    at_ms: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for zone in ("UTC", "America/New_York"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        record = Record(id="r", node="n1", direction="outgoing", seq=1, setup_at_ms=at_ms)
        assert (_cells(record)[0], stamp(at_ms), clock(at_ms)) == (said,) * 3
    monkeypatch.undo()
    time.tzset()


def test_times_of_today_are_shown_without_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    midnight_ms = 1_767_222_000_000
    monkeypatch.setattr(time, "time_ns", lambda: (midnight_ms + 3_600_000) * 1_000_000)
    assert (clock(midnight_ms), clock(midnight_ms - 1000)) == ("00:00:00", "2025-12-31 23:59:59")
    assert stamp(10**17) == str(10**17), "a damaged record is no time, and still a row"
