"""Hours of a mix while the store gets into trouble at random moments, and how memory and tables of the node grow meanwhile.

Slopes are by least squares over the samples behind the first quarter, when the node has warmed up. The faults are those of
store_faults.py that lose nothing the store had confirmed: one that is flushed or gets an old copy back has records published
again, which `faults` and `cdrkills` look at, as they do at a node that dies. Parties that vanish are calls whose BYE is lost.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.mix import Mix, read
from loadtest.mix_command import add_node_settings, node_settings, progress_bar
from loadtest.mix_plot import draw, plotting
from loadtest.mix_report import report_of
from loadtest.mixed import Sample, run_mix
from loadtest.report import Report, counted
from loadtest.store_faults import FAULTS, RelayedValkey
from sipproxy.process import loop_factory

if TYPE_CHECKING:
    from loadtest.mixed import Ran

__all__ = ["TROUBLES", "add_soak", "slope_per_hour"]

TROUBLES = ("stopped", "killed", "slow", "read-only", "full", "misconf", "lost reply")
LASTS_S = (1.0, 8.0)
WARM = 0.25  # of the run
SLOPES: Sequence[tuple[str, str, Callable[[Sample], float], str]] = (
    ("memory_slope", "memory of the node", lambda sample: sample.node_bytes, "bytes an hour"),
    ("descriptors_slope", "its open files and sockets", lambda sample: sample.descriptors, "an hour"),
    ("tasks_slope", "its tasks", lambda sample: sample.tasks, "an hour"),
    ("transactions_slope", "its transactions", lambda sample: sample.transactions, "an hour"),
    ("calls_slope", "calls in its table", lambda sample: sample.calls_known, "an hour"),
)


def slope_per_hour(points: Sequence[tuple[float, float]]) -> float:
    """The slope of a straight line through (second, value) points by least squares, per hour; NaN values are left out."""
    known = [(at, value) for at, value in points if not math.isnan(value)]
    if len(known) < 2:
        return 0.0
    mean_at, mean = (math.fsum(column) / len(known) for column in zip(*known, strict=True))
    spread = math.fsum((at - mean_at) ** 2 for at, _ in known)
    return 3600 * math.fsum((at - mean_at) * (value - mean) for at, value in known) / spread if spread else 0.0


def add_soak(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parsers of `python -m loadtest`."""
    soak = commands.add_parser("soak", parents=[common], help="hours of a mix, the store in trouble again and again; slopes")
    soak.add_argument("--mix", type=Path, default=Path("soak"), help="the mix (default %(default)s)")
    soak.add_argument("--seconds", type=float, help="for so long, instead of the mix's")
    soak.add_argument("--accounts", type=int, help="routers, instead of the mix's")
    soak.add_argument("--every", type=float, default=120.0, help="seconds between two troubles, about (default %(default)s)")
    soak.add_argument("--seed", type=int, default=1, help="of the troubles (default %(default)s)")
    soak.add_argument("--plot", type=Path, metavar="FILE", help="a picture over time, .svg or .png (the extra plot)")
    add_node_settings(soak)
    soak.set_defaults(run=_run, loop_factory=loop_factory())


async def _run(options: argparse.Namespace) -> list[Report]:
    instead: dict[tuple[str, str], object] = {}
    if options.seconds is not None:
        instead |= {("load", "seconds"): options.seconds, ("load", "calls"): None}
    if options.accounts is not None:
        instead["accounts", "count"] = options.accounts
    mix = read(options.mix, instead)
    if options.plot is not None:
        plotting()
    store, made = RelayedValkey(), Counter[str]()
    with progress_bar(mix.name) as tell:
        ran = await run_mix(
            mix,
            tell,
            settings=node_settings(options.set),
            store=store,
            trouble=lambda: _trouble(store, mix, options.every, random.Random(options.seed), made),
        )
    if options.plot is not None:
        draw(ran, options.plot)
    return [soak_report(ran, made)]


async def _trouble(store: RelayedValkey, mix: Mix, every_s: float, rng: random.Random, made: Counter[str]) -> None:
    """One trouble after the other, at random moments, until the last calls begin."""
    until = time.monotonic() + mix.load.seconds
    while True:
        wait = rng.expovariate(1 / every_s)
        name, lasts = rng.choice(TROUBLES), rng.uniform(*LASTS_S)
        if time.monotonic() + wait + lasts > until:
            return
        await asyncio.sleep(wait)
        await FAULTS[name](store, lasts)
        made[name] += 1


def soak_report(ran: Ran, made: Counter[str]) -> Report:
    """The report of the mix, the troubles and the slopes."""
    report = report_of(ran)
    report.add("troubles", "troubles of the store", counted(made) or "none")
    warm = [sample for sample in ran.samples if WARM * ran.arriving_s <= sample.at <= ran.arriving_s]
    for key, text, value, unit in SLOPES:
        report.add(key, f"slope of {text}", slope_per_hour([(sample.at, value(sample)) for sample in warm]), unit)
    last = ran.samples[-1] if ran.samples else None
    report.add("calls_left", "calls that the node still counts as live", ran.calls_left)
    report.add("descriptors_last", "open files and sockets at the end", last.descriptors if last is not None else 0)
    report.expect(bool(made), "the store was never in trouble: a longer run, or a smaller --every")
    report.expect(ran.calls_left == 0, f"the node counts {ran.calls_left:g} calls as live when all are over")
    return report
