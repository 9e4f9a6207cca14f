"""The program `sipproxy` run within this process: what a start adds is the same for all commands, and test_cli.py starts each.

Standard output and error are files, as after `> out 2> err`, for some commands look at what they write to.
"""

from __future__ import annotations

import contextlib
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

from sipproxy.cli import app

__all__ = ["Done", "run", "run_in_thread"]


class Done(NamedTuple):
    """What a command wrote; standard output as text and as it is."""

    stdout: str
    stderr: str
    output: bytes


def run(*words: str | Path, code: int = 0) -> Done:
    """Run a command line to its end, which has to be `code`. What the program itself would die of is raised."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            found = _main([*map(str, words)])
        output, errors = _written(out), _written(err)
    done = Done(output.decode(errors="replace"), errors.decode(), output)
    assert found == code, (words, found, done)
    return done


def run_in_thread(*words: str | Path, code: int = 0) -> Done:
    """`run` for a test whose event loop is running: a command has one of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run, *words, code=code).result()


def _main(words: list[str]) -> object:
    try:
        return app(words, prog_name="sipproxy")
    except SystemExit as end:
        return end.code


def _written(file: IO[str]) -> bytes:
    file.flush()
    file.seek(0)
    return bytes(file.buffer.read())
