"""Hours of a mix with trouble at random moments, every call reconciled, and how memory and tables of the node grow meanwhile.

The store gets into trouble in each way of store_faults.py; the node dies, parties vanish, connections break, operators edit and
reload (troubles.py). Records are read as a sink of the node: what it has not confirmed comes again from a store that was
emptied or fell back. Slopes are by least squares within each life of the node, behind its first minutes, when it is warm.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from loadtest.mix import read
from loadtest.mix_command import add_node_settings, node_settings, progress_bar
from loadtest.mix_plot import check_picture, draw, picture
from loadtest.mix_report import report_of
from loadtest.mixed import Sample, run_mix
from loadtest.options import amount, count
from loadtest.report import Report, counted
from loadtest.store_faults import FAULTS, RelayedValkey
from loadtest.troubles import OF_SEVERAL, TROUBLES, reseed
from sipproxy.process import loop_factory

if TYPE_CHECKING:
    from loadtest.mixed import Around, Ran

__all__ = ["KINDS", "add_soak", "kinds_of", "slope_per_hour"]

KINDS = (*FAULTS, *TROUBLES)

LOSSES = ("flushed", "old copy")  # after which an operator brings the policy back
LASTS_S = (1.0, 8.0)
WARM_SHARE, WARM_S = 0.25, 300.0  # of each life of the node, at most
SINK = "soak"
MAX_FAULT = 500  # characters of what a trouble itself met
SLOPES: Sequence[tuple[str, str, Callable[[Sample], float], str]] = (
    ("memory_slope", "memory of the node", lambda sample: sample.node_bytes, "bytes an hour"),
    ("descriptors_slope", "its open files and sockets", lambda sample: sample.descriptors, "an hour"),
    ("tasks_slope", "its tasks", lambda sample: sample.tasks, "an hour"),
    ("transactions_slope", "its transactions", lambda sample: sample.transactions, "an hour"),
    ("calls_slope", "calls in its table", lambda sample: sample.calls_known, "an hour"),
    ("threads_slope", "its threads", lambda sample: sample.threads, "an hour"),
    ("journal_slope", "its journal", lambda sample: sample.journal_bytes, "bytes an hour"),
)


def slope_per_hour(*lives: Sequence[tuple[float, float]]) -> float:
    """The common slope of straight lines through the (second, value) points of each life by least squares, per hour; NaN values
    are left out."""
    above = below = 0.0
    for points in lives:
        known = [(at, value) for at, value in points if not math.isnan(value)]
        if len(known) < 2:
            continue
        mean_at, mean = (math.fsum(column) / len(known) for column in zip(*known, strict=True))
        below += math.fsum((at - mean_at) ** 2 for at, _ in known)
        above += math.fsum((at - mean_at) * (value - mean) for at, value in known)
    return 3600 * above / below if below else 0.0


def add_soak(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parsers of `python -m loadtest`."""
    soak = commands.add_parser("soak", parents=[common], help="hours of a mix with trouble again and again; slopes")
    soak.add_argument("--mix", type=Path, default=Path("soak"), help="the mix (default %(default)s)")
    soak.add_argument("--seconds", type=amount, help="for so long, instead of the mix's")
    soak.add_argument("--accounts", type=count, help="routers, instead of the mix's")
    soak.add_argument("--every", type=amount, default=120.0, help="seconds between two troubles, about (default %(default)s)")
    soak.add_argument("--seed", type=int, default=1, help="of the troubles (default %(default)s)")
    soak.add_argument("--plot", type=Path, metavar="FILE", help="a picture over time, .svg or .png (the extra plot)")
    soak.add_argument("--without", choices=KINDS, action="append", default=[], help="this trouble; again for several")
    add_node_settings(soak)
    soak.set_defaults(run=_run, loop_factory=loop_factory())


async def _run(options: argparse.Namespace) -> list[Report]:
    instead: dict[tuple[str, str], object] = {}
    if options.seconds is not None:
        instead |= {("load", "seconds"): options.seconds, ("load", "calls"): None}
    if options.accounts is not None:
        instead["accounts", "count"] = options.accounts
    mix = read(options.mix, instead)
    check_picture(options.plot)
    plan = _Plan(options.every, random.Random(options.seed), options.without)
    store = RelayedValkey()
    with progress_bar(mix.name) as tell:
        ran = await run_mix(
            mix,
            tell,
            settings=node_settings(options.set),
            store=store,
            trouble=lambda around: plan.run(around, store, mix.load.seconds),
            sink=SINK,
        )
    report = soak_report(ran, plan)
    picture(report, options.plot, partial(draw, ran))
    return [report]


def kinds_of(workers: int, without: Sequence[str]) -> list[str]:
    """The troubles that a node of so many workers may have, but for those."""
    return [kind for kind in KINDS if kind not in without and (workers > 1 or kind != OF_SEVERAL)]


class _Plan:
    """One trouble after the other, about `every_s` seconds apart, each as often as any other."""

    def __init__(self, every_s: float, rng: random.Random, without: Sequence[str]) -> None:
        self._every_s, self._rng, self._without = every_s, rng, without
        self.made: Counter[str] = Counter()
        self.faults: list[str] = []

    async def run(self, around: Around, store: RelayedValkey, seconds: float) -> None:
        """Make trouble until the last calls begin, or the run is to end."""
        until, deck = time.monotonic() + seconds, list[str]()
        kinds = kinds_of(around.network.node.workers, self._without)
        while kinds:
            wait = self._rng.expovariate(1 / self._every_s)
            if not deck:
                deck = self._rng.sample(kinds, len(kinds))
            if time.monotonic() + wait + LASTS_S[1] > until or await _set_within(around.stop, wait):
                return
            kind = deck.pop()
            try:
                fault = await self._make(kind, around, store)
            except (OSError, AssertionError, RuntimeError, RedisError) as error:  # hours of calls are not thrown away for it
                fault = repr(error)[:MAX_FAULT]
            self.made[kind] += 1
            if fault:
                self.faults.append(f"{kind}: {fault}")

    async def _make(self, kind: str, around: Around, store: RelayedValkey) -> str:
        if kind in TROUBLES:
            return await TROUBLES[kind](around, self._rng)
        await FAULTS[kind](store, self._rng.uniform(*LASTS_S))
        return await reseed(around) if kind in LOSSES else ""


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


def soak_report(ran: Ran, plan: _Plan) -> Report:
    """The report of the mix, the troubles and the slopes."""
    report = report_of(ran)
    report.add("troubles", "troubles", counted(plan.made) or "none")
    report.add("cut", "calls under which the node, or a worker of it, died", ran.result.cut)
    lives: dict[int, list[Sample]] = {}
    for sample in ran.samples:
        if not math.isnan(sample.tasks) and sample.at <= ran.arriving_s:
            lives.setdefault(sample.life, []).append(sample)
    warm = [[one for one in life if one.at - life[0].at >= _warm_s(life)] for life in lives.values()]
    for key, text, value, unit in SLOPES:
        slope = slope_per_hour(*([(sample.at, value(sample)) for sample in life] for life in warm))
        report.add(key, f"slope of {text}", slope, unit)
    last = ran.samples[-1] if ran.samples else None
    report.add("calls_left", "calls that the node still counts as live", ran.calls_left)
    report.add("descriptors_last", "open files and sockets at the end", last.descriptors if last is not None else 0)
    report.faults += plan.faults
    report.expect(bool(plan.made), "there was no trouble: a longer run, or a smaller --every")
    report.expect(ran.calls_left == 0, f"the node counts {ran.calls_left:g} calls as live when all are over")
    return report


def _warm_s(life: Sequence[Sample]) -> float:
    return min(WARM_S, WARM_SHARE * (life[-1].at - life[0].at))
