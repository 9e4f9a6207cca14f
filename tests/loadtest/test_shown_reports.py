"""How reports are shown in a file: a line for each figure and each fault, nothing folded, nothing taken as markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loadtest.report import Report, show

if TYPE_CHECKING:
    import pytest


def report_of(title: str) -> Report:
    report = Report(title)
    text = "INVITE in until INVITE out, in seconds in which the generator sent in time: p50, p90, p99, p99.9, max"
    report.add("delay", text, "1.97, 3.32, 10.72, 10.72, 10.72", "ms")
    report.faults.append("m17: ended with 503 [/in] [red] " + "and so on, " * 12 + "to its end")
    return report


def test_report_in_a_file_has_a_line_for_each_figure_and_each_fault(capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of("evening [/x]")
    report.add("strange", "what [red] is", "not [/marked] up")
    show([report], as_json=False)
    title, figure, strange, fault, end = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    assert (title, strange.split()) == (report.title, ["what", "[red]", "is", "│", "not", "[/marked]", "up", "│"])
    assert figure.split() == f"{report.figures[0][1]} │ 1.97, 3.32, 10.72, 10.72, 10.72 │ ms".split()
    assert (fault, end) == (f"fault {report.faults[0]}", "not ok")


def test_reports_side_by_side_in_a_file_have_a_line_for_each_fault(capsys: pytest.CaptureFixture[str]) -> None:
    show([report_of("one [/x]"), report_of("two")], as_json=False)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert f"fault, two: {report_of('two').faults[0]}" in lines
    assert sum("10.72" in line for line in lines) == 1
