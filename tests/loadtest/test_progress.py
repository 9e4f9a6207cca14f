"""How far a measurement is, where no terminal shows a bar."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING

from loadtest.mix_command import progress_bar
from loadtest.mixed import Progress
from loadtest.report import progress_of

if TYPE_CHECKING:
    import pytest


def lines_in(seconds: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What is written within so many seconds, where it is told ten times a second how far it is."""
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    tell = progress_of("soak")
    for tick in range(10 * seconds):
        now = 1000.0 + tick / 10
        tell(f"{tick / 10:g} of {seconds}")
    return capsys.readouterr().err.splitlines()


def test_progress_in_the_first_seconds_is_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lines_in(4, monkeypatch, capsys) == ["soak: 0 of 4", "soak: 1 of 4", "soak: 2 of 4", "soak: 3 of 4"]


def test_progress_of_two_hours_is_a_log_that_can_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a second were 7,200, and 80,000 of a day."""
    told = lines_in(7200, monkeypatch, capsys)
    assert 100 < len(told) < 250
    at = [float(line.split()[1]) for line in told]
    assert max(after - before for before, after in pairwise(at)) < 61


def test_progress_without_a_terminal_says_stage_count_and_what_became_of_calls(capsys: pytest.CaptureFixture[str]) -> None:
    for stage, line in (
        (
            Progress("calling", 27.4, 7200, "246 calls, 3 live, 0 failed"),
            "mix: calling 27 of 7200, 246 calls, 3 live, 0 failed",
        ),
        (Progress("registering", 12, 400), "mix: registering 12 of 400"),
        (Progress("records", 3, 0), "mix: records 3"),
    ):
        with progress_bar("mix") as tell:
            tell(stage)
        assert capsys.readouterr().err == f"{line}\n"
