"""Programs that a test runs beside itself: ended with it whatever happens, and what they printed is told where they don't come
to an end in time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

__all__ = ["Done", "Program", "run", "running"]

BOUND_S = 60.0
LEAVE_S = 7.0  # all of WAYS together stay below the suite's own bound for a test, behind 90 s
# The second SIGTERM cuts a report short that the first one asked for, SIGABRT has Python tell where it hangs.
WAYS = (signal.SIGTERM, signal.SIGTERM, signal.SIGABRT, signal.SIGKILL)


class Done(NamedTuple):
    """How a program ended."""

    status: int
    output: bytes
    errors: bytes


class Program:
    """One that runs. What it has printed so far is `output` and `errors`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output, self.errors = bytearray(), bytearray()
        self._printed = asyncio.Event()
        pipes = ((process.stdout, self.output), (process.stderr, self.errors))
        self._reading = [asyncio.ensure_future(self._read(pipe, kept)) for pipe, kept in pipes]

    async def _read(self, pipe: asyncio.StreamReader | None, kept: bytearray) -> None:
        assert pipe is not None
        while piece := await pipe.read(65536):
            kept += piece
            self._printed.set()

    async def says(self, words: bytes) -> None:
        """Return once its standard error has these words; raises AssertionError when it ends without them."""
        while words not in self.errors:
            self._printed.clear()
            waiting = asyncio.ensure_future(self._printed.wait())
            await asyncio.wait([waiting, self._reading[1]], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            assert words in self.errors or not self._reading[1].done(), self.told(f"ended without {words!r}")

    async def ended(self) -> Done:
        """Return once it has ended by itself."""
        await asyncio.wait(self._reading)  # which, unlike gather, has them read on where the bound ends this wait
        return Done(await self.process.wait(), bytes(self.output), bytes(self.errors))

    async def end(self) -> None:
        """Have it clean up and leave, or at least leave. Harmless when it did."""
        for way in WAYS:
            if self.process.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(way)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), LEAVE_S)
        await asyncio.wait(self._reading, timeout=LEAVE_S)  # what it started may hold on to its pipes
        for reading in self._reading:
            reading.cancel()

    def told(self, what: str) -> str:
        """What became of it, and all that it printed."""
        return f"{what}\non standard output:\n{_text(self.output)}\non standard error:\n{_text(self.errors)}"


def _text(printed: bytearray) -> str:
    return printed.decode("utf-8", "backslashreplace")


@contextlib.asynccontextmanager
async def running(
    *command: str, bound_s: float = BOUND_S, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> AsyncIterator[Program]:
    """A program that is ended behind the block at the latest. Raises AssertionError with what it printed when the block is not
    done within the bound."""
    program = Program(
        await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env={**(os.environ if env is None else env), "PYTHONFAULTHANDLER": "1"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    )
    try:
        async with asyncio.timeout(bound_s):
            yield program
    except TimeoutError as error:
        await program.end()
        raise AssertionError(program.told(f"not done within {bound_s} s: {shlex.join(command)}")) from error
    finally:
        await program.end()


async def run(*command: str, bound_s: float = BOUND_S, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Done:
    """Run a program to its end; raises AssertionError as `running` does."""
    async with running(*command, bound_s=bound_s, cwd=cwd, env=env) as program:
        return await program.ended()
