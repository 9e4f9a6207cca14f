"""`python -m loadtest cdrkills`: its options, and what it runs (killing.py)."""

from __future__ import annotations

import argparse
import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.ending import INTERRUPTED, stoppable
from loadtest.killing import kill_again_and_again, kill_at_steps, steps_of
from loadtest.lives import Killed, report_of
from loadtest.options import amount, check_writable, count
from loadtest.report import Report, progress_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["add_cdrkills"]


def add_cdrkills(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parsers of `python -m loadtest`."""
    cdrkills = commands.add_parser("cdrkills", parents=[common], help="kill the node again and again under calls of every kind")
    cdrkills.add_argument("--kills", type=count, default=200, help="at random moments (default %(default)s)")
    cdrkills.add_argument("--rate", type=amount, default=20.0, help="calls a second (default %(default)s)")
    cdrkills.add_argument("--seed", type=int, default=1, help="of moments and calls (default %(default)s)")
    cdrkills.add_argument("--within", type=amount, default=float("inf"), help="seconds after which no more are made")
    cdrkills.add_argument("--steps", action="store_true", help="instead at each named step of journal, publisher and readers")
    cdrkills.add_argument("--times", type=count, default=3, help="the first so many times of each step (default %(default)s)")
    cdrkills.add_argument("--ladders", type=Path, help="file for what is known of each call with a fault")
    cdrkills.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> list[Report]:
    if options.ladders is not None:
        check_writable("--ladders", options.ladders)
    stop = asyncio.Event()
    with stoppable(stop):
        reports = await (_by_steps if options.steps else _at_random)(options, stop)
    reports[-1].expect(not stop.is_set(), INTERRUPTED)
    return reports


async def _at_random(options: argparse.Namespace, stop: asyncio.Event) -> list[Report]:
    tell = progress_of("cdrkills")
    found = await kill_again_and_again(
        options.kills,
        rate=options.rate,
        seed=options.seed,
        within_s=options.within,
        stop=stop,
        on_progress=lambda made: tell(f"{made} of {options.kills} kills"),
    )
    _keep(options.ladders, found)
    return [report_of(found)]


async def _by_steps(options: argparse.Namespace, stop: asyncio.Event) -> list[Report]:
    reports: list[Report] = []
    times = range(1, options.times + 1)
    for steps in steps_of():
        if reports and stop.is_set():
            break
        tell = partial(_tell_deaths, progress_of("cdrkills"), len(steps) * options.times)
        found = await kill_at_steps(steps, times=times, rate=options.rate, seed=options.seed, stop=stop, on_progress=tell)
        _keep(options.ladders, found)
        reports.append(report_of(found))
    return reports


def _keep(path: Path | None, found: Killed) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            for call_id, steps in found.ladders.items():
                file.write("\n".join([f"{found.title}: {call_id}", *steps, "", ""]))


def _tell_deaths(tell: Callable[[str], None], all_of_them: int, made: int) -> None:
    tell(f"{made} of {all_of_them} deaths")
