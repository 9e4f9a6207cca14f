"""`python -m loadtest compare`: its options, and its report, a column for each that was measured and for each ratio.

Interrupted (Ctrl-C, SIGTERM), it reports what it has.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadtest.bracket import Bracket
from loadtest.comparison import Compared, Plan, Round, compare_peers, median
from loadtest.ending import INTERRUPTED, stoppable
from loadtest.mix_command import add_node_settings, node_settings
from loadtest.node import NodeError
from loadtest.options import amount, amount_or_0, count, count_or_0
from loadtest.peer import missing
from loadtest.report import Report

__all__ = ["add_compare", "reports_of"]

NOT_MEASURED = "not measured"


def add_compare(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parsers of `python -m loadtest`."""
    plan = Plan()
    compare = commands.add_parser(
        "compare", parents=[common], help="the same calls by SIPp against nodes and Kamailio, in turn"
    )
    compare.add_argument("--rate", type=amount, action="append", help="calls a second; again for several (default: 50, 200)")
    compare.add_argument("--seconds", type=amount, default=plan.seconds, help="of each round (default %(default)s)")
    compare.add_argument("--rounds", type=count, default=plan.rounds, help="of each, in turn (default %(default)s)")
    compare.add_argument("--accounts", type=count, default=plan.accounts, help="both know (default %(default)s)")
    compare.add_argument(
        "--registers", type=count_or_0, default=plan.registers, help="of a round, 0 for none (default %(default)s)"
    )
    compare.add_argument("--register-rate", type=amount, default=plan.register_rate, help="a second (default %(default)s)")
    compare.add_argument("--children", type=count, default=plan.children, help="of Kamailio (default %(default)s)")
    text = "minutes for all searches of the highest rate, 0 for none (default %(default)s)"
    compare.add_argument("--search-minutes", type=amount_or_0, default=plan.search_minutes, help=text)
    text = "calls a second where it is looked for from (default: by what calls cost before)"
    compare.add_argument("--search-from", type=amount_or_0, default=plan.search_from, help=text)
    compare.add_argument("--search-seconds", type=amount, default=plan.search_s, help="of each trial (default %(default)s)")
    text = "processes of a node; again for several nodes (default: 1 and 2)"
    compare.add_argument("--workers", type=count, action="append", help=text)
    text = "another checkout, such as a compiled one, whose nodes are measured as well; again for several"
    compare.add_argument("--beside", type=Path, action="append", default=[], metavar="DIRECTORY", help=text)
    compare.add_argument("--node-alone", action="store_true", help="without Kamailio")
    add_node_settings(compare)
    compare.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> list[Report]:
    if shutil.which("sipp") is None:
        raise NodeError("nothing was compared: sipp is not installed (Debian: apt-get install sip-tester)")
    if not options.node_alone and (what := missing()):
        raise NodeError(f"nothing was compared: {what}; --node-alone measures the node alone")
    for directory in options.beside:
        if not (directory / "sipproxy" / "app.py").exists():
            raise NodeError(f"--beside {directory}: holds no checkout of this project")
    plan = Plan(
        rates=options.rate or Plan().rates,
        seconds=options.seconds,
        rounds=options.rounds,
        accounts=options.accounts,
        registers=min(options.registers, options.accounts),
        register_rate=options.register_rate,
        children=options.children,
        search_from=options.search_from,
        search_s=options.search_seconds,
        search_minutes=options.search_minutes,
        workers=options.workers or Plan().workers,
        beside=[directory.resolve() for directory in options.beside],
        kamailio=not options.node_alone,
        settings=node_settings(options.set),
    )
    stop = asyncio.Event()
    with stoppable(stop):
        reports = reports_of(await compare_peers(plan, _tell, stop), plan)
    reports[0].expect(not stop.is_set(), INTERRUPTED)
    return reports


def _tell(text: str) -> None:
    sys.stderr.write(f"compare: {text}\n")
    sys.stderr.flush()


Figures = list[tuple[str, str, float | str, str]]  # key, text, value, unit


def reports_of(found: Sequence[Compared], plan: Plan) -> list[Report]:
    """A report of each, and of each divided by the last, which is Kamailio where it takes part; they have the same figures."""
    figures = [_figures_of(one, plan) for one in found]
    reports = [Report(one.title) for one in found]
    for report, values, one in zip(reports, figures, found, strict=True):
        for figure in values:
            report.add(*figure)
        report.faults += one.faults
    for one, values in list(zip(found, figures, strict=True))[:-1]:
        ratio = Report(f"{one.title} / {found[-1].title.partition(' ')[0]}")
        for (key, text, first, unit), (_, _, second, _) in zip(values, figures[-1], strict=True):
            comparable = not isinstance(first, str) and not isinstance(second, str) and second
            ratio.add(key, text, first / second if comparable else "", unit)  # type: ignore[operator]
        reports.append(ratio)
    return reports


def _figures_of(one: Compared, plan: Plan) -> Figures:
    figures: Figures = [("idle_share", "CPU before the first message", 100 * one.idle_share, "% of a core")]
    for rate in plan.rates:
        name, text, rounds = f"calls_{rate:g}", f"at {rate:g} calls a second", one.calls.get(rate, [])
        figures += _costs(name, text, "calls", rounds)
        figures.append((f"{name}_setup_p50_ms", f"{text}: INVITE until 200, p50", _of(rounds, lambda r: r.delays_ms[0]), "ms"))
        figures.append((f"{name}_setup_p99_ms", f"{text}: INVITE until 200, p99", _of(rounds, lambda r: r.delays_ms[1]), "ms"))
    if plan.registers:
        text = f"at {plan.register_rate:g} REGISTERs a second"
        figures += _costs("registers", text, "REGISTERs", one.registers)
        figures.append(("binding_bytes", "memory for a binding", one.binding_bytes, "bytes"))
    search = one.search or Bracket(0.0)
    text = "highest rate with 0.1 % failed calls at most"
    figures.append(("highest", text, search.good if one.search is not None else NOT_MEASURED, "calls a second"))
    tried = ", ".join(f"{trial.rate:.0f}{' failed' if trial.why else ''}" for trial in search.trials)
    figures.append(("trials", "rates that were tried", tried or NOT_MEASURED, "calls a second"))
    return [*figures, ("highest_why", "and not higher, as", search.why or ("not seen" if tried else NOT_MEASURED), "")]


def _costs(name: str, text: str, what: str, rounds: Sequence[Round]) -> Figures:
    return [
        (f"{name}_cpu_s_per_1000", f"{text}: CPU for 1,000 {what}", _of(rounds, lambda r: 1000 * r.cpu_s / r.wanted), "s"),
        (
            f"{name}_cpu_each",
            f"{text}: in each round",
            ", ".join(f"{1000 * one.cpu_s / one.wanted:.3f}" for one in rounds),
            "s",
        ),
        (f"{name}_store_cpu_s_per_1000", f"{text}: of its store", _of(rounds, lambda r: 1000 * r.store_cpu_s / r.wanted), "s"),
        (f"{name}_sipp_cpu_s_per_1000", f"{text}: of SIPp", _of(rounds, lambda r: 1000 * r.sipp_cpu_s / r.wanted), "s"),
        (f"{name}_repeats", f"{text}: messages that SIPp repeated", _of(rounds, lambda r: float(r.repeats)), ""),
    ]


def _of(rounds: Sequence[Round], value: Callable[[Round], float]) -> float | str:
    return median([value(one) for one in rounds]) if rounds else NOT_MEASURED
