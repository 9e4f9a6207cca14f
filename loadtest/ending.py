"""How a run is ended by Ctrl-C or SIGTERM: nodes and stores that it started end with it, and what it has found so far is told.

Work that can report what it has is asked for that by the first signal and ended by the next; all other work is ended at once.
Of measurements one after the other those are told that are done, since half of one says nothing.
Further signals change nothing: what was started is being ended already.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from loadtest.report import Report

__all__ = ["INTERRUPTED", "each_done", "stoppable", "until_ended"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = "interrupted: figures are of what was measured until then"

T = TypeVar("T")


async def until_ended(work: Coroutine[object, object, T]) -> T:
    """Work until it is done, or a signal cancels it."""
    working = asyncio.ensure_future(work)
    _on_signals(_once(working.cancel))
    return await working


async def each_done(names: Sequence[str], measure: Callable[[str], Awaitable[Report]]) -> list[Report]:
    """The report of each measurement, one after the other. When one is interrupted: those of before, the last of which tells
    what was not measured; the cancellation goes on where there is none."""
    reports: list[Report] = []
    for number, name in enumerate(names):
        try:
            reports.append(await measure(name))
        except asyncio.CancelledError:
            if not reports:
                raise
            reports[-1].faults.append(f"interrupted: not measured: {', '.join(names[number:])}")
            break
    return reports


@contextmanager
def stoppable(stop: asyncio.Event) -> Iterator[None]:
    """Within it the first signal sets `stop`, and the next one cancels the task; behind it the first one cancels it."""
    working = asyncio.current_task()
    assert working is not None
    cancel = _once(working.cancel)

    def ask() -> None:
        if stop.is_set():
            cancel()
            return
        stop.set()
        sys.stderr.write("\nending, to report what there is; once more to end at once\n")

    _on_signals(ask)
    try:
        yield
    finally:
        _on_signals(cancel)


def _on_signals(act: Callable[[], object]) -> None:
    for sign in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(sign, act)


def _once(cancel: Callable[[], object]) -> Callable[[], None]:
    """A second cancellation would leave what the first one is about to end."""
    ended = False

    def act() -> None:
        nonlocal ended
        if not ended:
            ended = True
            cancel()

    return act
