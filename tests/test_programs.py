"""What runs a program for a test: it ends with the test, and what it printed is told."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests import programs

SETTLED = "import signal, sys, time\n"
CLEANING = """
import pathlib
def leave(*_):
    pathlib.Path(sys.argv[1]).unlink()
    print("cleaned up", flush=True)
    raise SystemExit
signal.signal(signal.SIGTERM, leave)
"""
REPORTING = """
def leave(*_):
    print("well then", flush=True)
    raise SystemExit
def report(*_):
    signal.signal(signal.SIGTERM, leave)
    print("wait", flush=True)
signal.signal(signal.SIGTERM, report)
"""
HANGING = """
print("half of it", flush=True)
print("so far", file=sys.stderr, flush=True)
def hang():
    while True:
        time.sleep(60)
hang()
"""


def python(*code: str) -> tuple[str, str, str]:
    return sys.executable, "-c", SETTLED + "".join(code)


async def test_program_that_ends_tells_status_and_both_outputs() -> None:
    code = "print('out'); print('err', file=sys.stderr); sys.exit(3)"
    assert await programs.run(*python(code)) == (3, b"out\n", b"err\n")


async def test_program_that_is_late_cleans_up_and_the_failure_has_what_it_printed(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.touch()

    async def be_late() -> None:
        async with programs.running(*python(CLEANING, HANGING), str(left)) as program:
            await program.says(b"so far\n")
            await asyncio.wait_for(program.ended(), 0)

    with pytest.raises(AssertionError) as failure:
        await be_late()
    words = r"not done within 60.0 s: .*half of it\ncleaned up\n\non standard error:\nso far\n"
    assert re.search(words, str(failure.value), re.DOTALL)
    assert not left.exists()


async def test_program_that_has_a_bound_is_ended_there() -> None:
    with pytest.raises(AssertionError, match=r"not done within 0\.1 s"):
        await programs.run(*python(HANGING), bound_s=0.1)


async def test_program_that_writes_a_report_at_first_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LEAVE_S", 2)
    async with programs.running(*python(REPORTING, HANGING)) as program:
        await program.says(b"so far\n")
    assert (program.process.returncode, program.output) == (0, b"half of it\nwait\nwell then\n")


async def test_program_that_does_not_leave_tells_where_it_is_and_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LEAVE_S", 0.5)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    async with programs.running(*python(deaf, HANGING)) as program:
        await program.says(b"so far\n")
    assert program.process.returncode == -6
    assert re.search(r"Fatal Python error: Aborted.* in hang\n", program.told(""), re.DOTALL)


async def test_program_that_nothing_but_the_kernel_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "LEAVE_S", 0.5)
    deaf = "for sign in (signal.SIGTERM, signal.SIGABRT): signal.signal(sign, signal.SIG_IGN)\n"
    async with programs.running(*python(deaf, HANGING)) as program:
        await program.says(b"so far\n")
    assert program.process.returncode == -9


async def test_program_that_ends_before_its_words_fails_the_test_with_others() -> None:
    with pytest.raises(AssertionError, match=r"ended without b'ready'\n(.|\n)*quite another thing"):
        async with programs.running(*python("print('quite another thing', file=sys.stderr)")) as program:
            await program.says(b"ready")


async def test_program_is_ended_by_a_test_that_fails_for_another_reason() -> None:
    async def fail() -> None:
        async with programs.running(*python(HANGING)) as started:
            kept.append(started)
            await started.says(b"so far\n")
            raise KeyError

    kept: list[programs.Program] = []
    with pytest.raises(KeyError):
        await fail()
    assert kept[0].process.returncode == -15
