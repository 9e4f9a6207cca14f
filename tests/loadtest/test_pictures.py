"""Whether a picture can be written is known before the run; that it cannot be any more does not cost the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.mix import read
from loadtest.mix_plot import calls_panel, check_picture, picture, plotting
from loadtest.mixed import Ran
from loadtest.node import NodeError
from loadtest.report import Report
from loadtest.run import main
from loadtest.seen import Seen


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("plot.doc", "its name says no format that can be written; call it .svg or .png"),
        ("plot", "its name says no format that can be written; call it .svg or .png"),
        ("nowhere/plot.svg", "cannot be written (No such file or directory); name a file in a folder of yours"),
        ("folder.svg", "cannot be written (Is a directory); name a file in a folder of yours"),
    ],
)
@pytest.mark.parametrize("command", [["mix", "yardstick"], ["soak"], ["goodput"]])
def test_picture_that_cannot_be_written_is_told_before_the_run(
    tmp_path: Path, command: list[str], name: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.svg").mkdir()
    assert main([*command, "--plot", str(tmp_path / name)]) == 2
    assert capsys.readouterr() == ("", f"--plot {tmp_path / name}: {told}\n")


def test_check_of_a_picture_leaves_nothing_and_an_older_one_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "old.PNG").write_bytes(b"old")
    for name in ("old.PNG", "new.svg"):
        check_picture(tmp_path / name)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("old.PNG", b"old")]


def test_calls_of_a_slice_in_which_there_was_none_are_drawn_as_none() -> None:
    ran = Ran(read(Path("yardstick")), Seen(), seconds=5.5)
    for at in (0.1, 0.2, 4.5):
        ran.seen.late.add(at, 0.0)
        ran.seen.ended.add(at + 1, 0.0)
    figure, axes = plotting().subplots()
    calls_panel(axes, ran, 1.0)
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    plotting().close(figure)
    assert drawn == {
        "began": [(0, 2), (1, 0), (2, 0), (3, 0), (4, 1), (5, 0)],
        "ended as they should": [(0, 0), (1, 2), (2, 0), (3, 0), (4, 0), (5, 1)],
        "failed": [(number, 0) for number in range(6)],
    }


def test_picture_that_cannot_be_written_after_the_run_is_a_fault_of_its_report(tmp_path: Path) -> None:
    def fail(file: Path) -> None:
        raise NodeError(f"{file}: No space left on device")

    report = Report("run")
    picture(report, None, fail)
    assert report.ok
    picture(report, tmp_path / "plot.svg", fail)
    assert report.faults == [f"--plot {tmp_path}/plot.svg: No space left on device"]
