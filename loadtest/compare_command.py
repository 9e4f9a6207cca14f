"""`python -m loadtest compare`: its options, and its report, a column for each of the two and one for their ratio."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from loadtest.comparison import Compared, Plan, Round, compare_peers, median
from loadtest.mix_command import add_node_settings, node_settings
from loadtest.node import NodeError
from loadtest.peer import missing
from loadtest.report import Report, progress_of

__all__ = ["add_compare", "reports_of"]


def add_compare(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parsers of `python -m loadtest`."""
    plan = Plan()
    compare = commands.add_parser(
        "compare", parents=[common], help="the same calls by SIPp against a node and Kamailio, in turn"
    )
    compare.add_argument("--rate", type=float, action="append", help="calls a second; again for several (default: 50, 200)")
    compare.add_argument("--seconds", type=float, default=plan.seconds, help="of each round (default %(default)s)")
    compare.add_argument("--rounds", type=int, default=plan.rounds, help="of each, in turn (default %(default)s)")
    compare.add_argument("--accounts", type=int, default=plan.accounts, help="both know (default %(default)s)")
    compare.add_argument("--registers", type=int, default=plan.registers, help="of a round, 0 for none (default %(default)s)")
    compare.add_argument("--register-rate", type=float, default=plan.register_rate, help="a second (default %(default)s)")
    compare.add_argument("--children", type=int, default=plan.children, help="of Kamailio (default %(default)s)")
    text = "where the highest rate is looked for from, 0 for not at all (default %(default)s)"
    compare.add_argument("--search-from", type=float, default=plan.search_from, help=text)
    compare.add_argument("--search-seconds", type=float, default=plan.search_s, help="of each trial (default %(default)s)")
    compare.add_argument("--node-alone", action="store_true", help="without Kamailio")
    add_node_settings(compare)
    compare.set_defaults(run=_run)


async def _run(options: argparse.Namespace) -> list[Report]:
    if shutil.which("sipp") is None:
        raise NodeError("nothing was compared: sipp is not installed (Debian: apt-get install sip-tester)")
    if not options.node_alone and (what := missing()):
        raise NodeError(f"nothing was compared: {what}; --node-alone measures the node alone")
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
        peers=("node",) if options.node_alone else Plan().peers,
        settings=node_settings(options.set),
    )
    try:
        return reports_of(await compare_peers(plan, progress_of("compare")), plan)
    except RuntimeError as error:
        raise NodeError(str(error)) from error


Figures = list[tuple[str, str, float | str, str]]  # key, text, value, unit


def reports_of(found: Sequence[Compared], plan: Plan) -> list[Report]:
    """A report of each, and of the first divided by the second; they have the same figures."""
    figures = [_figures_of(one, plan) for one in found]
    reports = [Report(one.title) for one in found]
    for report, values, one in zip(reports, figures, found, strict=True):
        for figure in values:
            report.add(*figure)
        report.add("highest_why", "and not higher, as", one.highest_why or "not looked for")
        report.faults += one.faults
    if len(found) == 2:
        ratio = Report("ratio")
        for (key, text, first, unit), (_, _, second, _) in zip(*figures, strict=True):
            if isinstance(first, str) or isinstance(second, str):
                ratio.add(key, text, "", unit)
            else:
                ratio.add(key, text, first / second if second else 0.0, unit)
        ratio.add("highest_why", "and not higher, as", "")
        reports.append(ratio)
    return reports


def _figures_of(one: Compared, plan: Plan) -> Figures:
    figures: Figures = [("idle_share", "CPU before the first message", 100 * one.idle_share, "% of a core")]
    for rate, rounds in one.calls.items():
        name, text = f"calls_{rate:g}", f"at {rate:g} calls a second"
        figures += _costs(name, text, "calls", rounds)
        figures.append((f"{name}_setup_p50_ms", f"{text}: INVITE until 200, p50", _of(rounds, lambda r: r.delays_ms[0]), "ms"))
        figures.append((f"{name}_setup_p99_ms", f"{text}: INVITE until 200, p99", _of(rounds, lambda r: r.delays_ms[1]), "ms"))
    if one.registers:
        text = f"at {plan.register_rate:g} REGISTERs a second"
        figures += _costs("registers", text, "REGISTERs", one.registers)
        figures.append(("binding_bytes", "memory for a binding", one.binding_bytes, "bytes"))
    figures.append(("highest", "highest rate with 0.1 % failed calls at most", one.highest, "calls a second"))
    return figures


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


def _of(rounds: Sequence[Round], value: Callable[[Round], float]) -> float:
    return median([value(one) for one in rounds])
