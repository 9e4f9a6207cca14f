"""`python -m loadtest cdrkills`: its options, and what it runs (killing.py)."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    rate, seed = options.rate, options.seed
    if options.ladders is not None:
        check_writable("--ladders", options.ladders)
    if not options.steps:
        tell = progress_of("cdrkills")
        found = await kill_again_and_again(
            options.kills,
            rate=rate,
            seed=seed,
            within_s=options.within,
            on_progress=lambda made: tell(f"{made} of {options.kills} kills"),
        )
        _keep(options.ladders, found)
        return [report_of(found)]
    reports = []
    for steps in steps_of():
        tell = partial(_tell_deaths, progress_of("cdrkills"), len(steps) * options.times)
        times = range(1, options.times + 1)
        by_steps = await kill_at_steps(steps, times=times, rate=rate, seed=seed, on_progress=tell)
        _keep(options.ladders, by_steps)
        reports.append(report_of(by_steps))
    return reports


def _keep(path: Path | None, found: Killed) -> None:
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            for call_id, steps in found.ladders.items():
                file.write("\n".join([f"{found.title}: {call_id}", *steps, "", ""]))


def _tell_deaths(tell: Callable[[str], None], all_of_them: int, made: int) -> None:
    tell(f"{made} of {all_of_them} deaths")
