"""Options with which nothing can be measured are told in a line before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.run import main


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("cost --calls 0", "--calls: '0' is not above 0"),
        ("cost --together -3", "--together: '-3' is below 0"),
        ("channels --rounds 1.5", "--rounds: '1.5' is not a whole number"),
        ("compare --rate 0", "--rate: '0' is not above 0"),
        ("compare --registers -1", "--registers: '-1' is below 0"),
        ("compare --search-minutes -1", "--search-minutes: '-1' is below 0"),
        ("goodput --capacity -5", "--capacity: '-5' is below 0"),
        ("goodput --factor nan", "--factor: 'nan' is not a number"),
        ("goodput --from inf", "--from: 'inf' is not a number"),
        ("soak --every 0", "--every: '0' is not above 0"),
        ("soak --seconds 1h", "--seconds: '1h' is not a number"),
        ("mix evening --rate -1", "--rate: '-1' is below 0"),
        ("memory --lines 0", "--lines: '0' is not above 0"),
        ("memory --pause-s nan", "--pause-s: 'nan' is not a number"),
        ("storm --routers 0", "--routers: '0' is not above 0"),
    ],
)
def test_number_with_which_nothing_can_be_measured_is_refused(
    given: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f": error: argument {told}\n")


def test_file_of_ladders_that_cannot_be_written_is_told_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cdrkills", "--ladders", str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"--ladders {tmp_path}: cannot be written (Is a directory); name a file in a folder of yours\n"
    )
