"""Goodput: how many calls a second go well when 0.5, 1, 2, 5 and 10 times as many arrive as the node can carry.

Each rate has a node of its own and the same kinds of calls, whose arrivals no slow node slows down. A call goes well when it
ends as its kind says and was answered within PATIENCE_S of its first INVITE. Capacity is the highest goodput on the way up.
Leaves out: routers that try again after a refusal.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadtest.ending import INTERRUPTED
from loadtest.mix import PATIENCE_S, read
from loadtest.mix_command import add_node_settings, node_settings, progress_bar
from loadtest.mix_plot import COLOURS, beside, check_picture, picture, plotting, saved
from loadtest.mix_report import limits_of
from loadtest.mixed import Progress, Ran, run_mix
from loadtest.options import amount
from loadtest.report import Report
from sipproxy.process import loop_factory

if TYPE_CHECKING:
    from loadtest.mix import Mix

__all__ = ["Point", "add_goodput", "report_of"]

FACTORS = (0.5, 1.0, 2.0, 5.0, 10.0)
STEP = 1.5  # from one rate to the next on the way up
ENOUGH = 0.9  # of the calls go well: below this the way up ends
MOST = 14  # rates on the way up
AT_TWICE, AT_TEN_TIMES = 0.9, 0.7  # of the peak, what the node should keep


@dataclass(frozen=True, slots=True)
class Point:
    """One rate, as a factor of the capacity (0: on the way up), and what became of it."""

    factor: float
    ran: Ran

    @property
    def offered(self) -> float:
        return self.ran.seen.placed.total() / max(self.ran.arriving_s, 0.001)

    @property
    def goodput(self) -> float:
        """Of the calls that began, also of those that were answered, in time, when no more of them began."""
        return self.ran.seen.good / max(self.ran.arriving_s, 0.001)

    @property
    def meanwhile(self) -> float:
        """Calls a second that were answered in time while calls began: what a load that does not end leaves of the goodput,
        without the busy ones, which nobody answers."""
        setup, end = self.ran.seen.delays["setup"], self.ran.arriving_s
        in_time = (at <= end and ms <= 1000 * PATIENCE_S for at, ms in zip(setup.at, setup.ms, strict=True))
        return sum(in_time) / max(end, 0.001)


def add_goodput(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parsers of `python -m loadtest`."""
    goodput = commands.add_parser("goodput", parents=[common], help="calls that go well at 0.5 to 10 times the capacity")
    goodput.add_argument("--mix", type=Path, default=Path("overload"), help="the mix (default %(default)s)")
    goodput.add_argument("--seconds", type=amount, default=10.0, help="of each rate (default %(default)s)")
    goodput.add_argument(
        "--from", dest="start", type=amount, default=40.0, help="calls a second to begin with (default %(default)s)"
    )
    goodput.add_argument("--capacity", type=amount, help="calls a second, instead of looking for it")
    goodput.add_argument(
        "--factor", type=amount, action="append", help="of the capacity; again for several (default: 0.5 to 10)"
    )
    goodput.add_argument("--plot", type=Path, metavar="FILE", help="a picture, .svg or .png (the extra plot)")
    add_node_settings(goodput)
    goodput.set_defaults(run=_run, loop_factory=loop_factory())


async def _run(options: argparse.Namespace) -> list[Report]:
    mix = read(options.mix, {("load", "seconds"): options.seconds, ("load", "calls"): None})
    settings = node_settings(options.set)
    check_picture(options.plot)
    with progress_bar("goodput") as tell:

        async def at(rate: float) -> Ran:
            load = msgspec.structs.replace(mix.load, rate=rate, steps=[])
            named: Mix = msgspec.structs.replace(mix, load=load, name=f"{rate:.0f} a second")
            return await run_mix(named, _saying(tell, named.name), settings=settings)

        found: list[Point] = []
        ended = not options.capacity and await _add_points(found, at, _up_from(options.start))
        capacity = options.capacity or max(point.goodput for point in found)
        factors = () if ended else options.factor or FACTORS
        ended = ended or await _add_points(found, at, ((factor, factor * capacity) for factor in factors))
    points = [point for point in found if point.factor]
    reports = [report_of(point, points) for point in found]
    reports[-1].expect(not ended, INTERRUPTED)
    picture(reports[-1], options.plot if points else None, partial(draw, points))
    return reports


def _saying(tell: Callable[[Progress], None], name: str) -> Callable[[Progress], None]:
    return lambda stage: tell(Progress(f"{name}, {stage.stage}", stage.done, stage.total, stage.text))


async def _add_points(points: list[Point], at: Callable[[float], Awaitable[Ran]], rates: Iterable[tuple[float, float]]) -> bool:
    """Add a point for each factor and rate; on the way up, which has no factors, up to the first rate that is too high. Returns
    whether that was interrupted."""
    for factor, rate in rates:
        try:
            points.append(Point(factor, await at(rate)))
        except asyncio.CancelledError:  # before its first call
            if not points:
                raise
            return True
        if points[-1].ran.interrupted:
            return True
        if not factor and points[-1].goodput < ENOUGH * points[-1].offered:
            break
    return False


def _up_from(start: float) -> Iterable[tuple[float, float]]:
    return ((0.0, start * STEP**number) for number in range(MOST))


def report_of(point: Point, points: Sequence[Point]) -> Report:
    """One rate; faults are what does not reconcile, calls for help that were not answered, and a goodput that breaks down."""
    ran, seen = point.ran, point.ran.seen
    peak = max((one.meanwhile for one in points), default=0.0)
    share = point.meanwhile / max(peak, 0.001)
    report = Report(f"{point.factor:g} times" if point.factor else f"way up, {point.ran.mix.load.rate:.0f}/s")
    report.add("offered", "calls a second that arrived", point.offered)
    report.add("goodput", f"of them went well, answered within {PATIENCE_S:g} s", point.goodput)
    report.add("meanwhile", "answered in time while calls began", point.meanwhile)
    report.add("share_of_peak", "of the most that were", 100 * share, "%")
    helped, helps = seen.outcomes["emergency", 200], seen.placed["emergency"]
    report.add("helps", "calls to 112", helps)
    report.add("helped", "answered", helped)
    report.add("shed", "refused with 503", sum(count for (_, status), count in seen.outcomes.items() if status == 503))
    report.add(
        "unanswered", "without a final response", sum(count for (_, status), count in seen.outcomes.items() if not status)
    )
    report.add_spread("setup", "first INVITE until 200", seen.delays["setup"].ms, "ms")
    report.add("repeats", "messages that the parties repeated", ran.repeats)
    report.add("cpu_share", "CPU of the node", 100 * ran.node_cpu_s / max(ran.seconds, 0.001), "% of a core")
    report.add("memory_peak_bytes", "memory of the node at most", ran.node_peak_bytes, "bytes")
    report.add("generator_limit", "the generator was the limit", "; ".join(limits_of(ran)) or "no")
    report.add("reconciled", "records", str(ran.result))
    wanted = AT_TEN_TIMES if point.factor > 2 else AT_TWICE if point.factor > 1 else 0.0
    report.expect(share >= wanted, f"{100 * share:.0f} % of the peak were answered in time while calls began")
    report.expect(helped == helps, f"{helps - helped} calls to 112 were not answered")
    report.expect(ran.slots_left == 0, f"{ran.slots_left} slots are left over")
    report.expect(ran.result.ok, str(ran.result))
    return report


def draw(points: Sequence[Point], file: Path) -> None:
    """Goodput over what arrived; raises NodeError."""
    figure, axes = plotting().subplots(1, 1, figsize=(12, 5), layout="constrained")
    offered = [point.offered for point in points]
    axes.plot(offered, [point.goodput for point in points], "o-", color=COLOURS[0], label="went well")
    axes.plot(offered, [point.meanwhile for point in points], ".--", color=COLOURS[2], label="answered while calls began")
    peak = max(point.meanwhile for point in points)
    for share, style in ((AT_TWICE, "--"), (AT_TEN_TIMES, ":")):
        axes.axhline(share * peak, linestyle=style, color=COLOURS[1], linewidth=1, label=f"{100 * share:g} % of the peak")
    axes.set_xscale("log")
    axes.set_xticks(offered, [f"{point.offered:.0f}\n({point.factor:g} times)" for point in points])
    axes.minorticks_off()  # whose labels would stand between these
    axes.set_ylim(bottom=0)
    axes.set_xlabel("calls a second that arrived")
    axes.set_ylabel("calls a second")
    axes.set_title("Goodput", loc="left", fontsize=10)
    axes.grid(visible=True, alpha=0.3)
    beside(axes)
    saved(figure, file)
