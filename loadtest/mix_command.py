"""`python -m loadtest mix`: its options, and how far it is."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.mix import MIXES, read
from loadtest.mix_plot import check_picture, draw, picture
from loadtest.mix_report import report_of
from loadtest.mixed import Progress as Stage
from loadtest.mixed import run_mix
from loadtest.node import NodeError
from loadtest.options import amount, count
from loadtest.report import Report, progress_of
from sipproxy.config import Config
from sipproxy.config_file import Reader
from sipproxy.process import loop_factory

__all__ = ["add_mix", "node_settings", "progress_bar"]


def add_mix(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parsers of `python -m loadtest`."""
    shipped = ", ".join(sorted(path.stem for path in MIXES.glob("*.toml")))
    mix = commands.add_parser("mix", parents=[common], help="a mix of traffic from a TOML file, every call reconciled")
    mix.add_argument("file", type=Path, help=f"the file, or the name of one that is shipped: {shipped}")
    mix.add_argument("--rate", type=amount, help="calls a second, instead of the file's")
    mix.add_argument("--seconds", type=amount, help="for so long, instead of the file's")
    mix.add_argument("--calls", type=count, help="so many calls, instead of the file's")
    mix.add_argument("--accounts", type=count, help="routers, instead of the file's")
    mix.add_argument("--seed", type=int, help="of arrivals, kinds and lengths, instead of the file's")
    mix.add_argument("--plot", type=Path, metavar="FILE", help="a picture over time, .svg or .png (the extra plot)")
    add_node_settings(mix)
    mix.set_defaults(run=_run, loop_factory=loop_factory())


def add_node_settings(parser: argparse.ArgumentParser) -> None:
    """The option that puts keys into the node's configuration."""
    text = "a key of the node's configuration, such as calls.probe_s=10; again for several"
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help=text)


def node_settings(entries: list[str]) -> dict[str, dict[str, object]]:
    """The tables that `--set` gave; raises NodeError, and ConfigError for what no node takes."""
    tables: dict[str, dict[str, object]] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise NodeError(f"--set {entry}: write SECTION.KEY=VALUE, such as calls.probe_s=10")
        value: object = text
        with contextlib.suppress(msgspec.DecodeError):
            value = msgspec.json.decode(text)
        tables.setdefault(section, {})[name] = value
    reader = Reader(Path("--set"), {})
    reader.section(Config, tables, ())
    reader.raise_faults()
    return tables


def instead_of(options: argparse.Namespace) -> dict[tuple[str, str], object]:
    """What the command line gives in place of the file's values."""
    given: dict[tuple[str, str], object] = {}
    if options.rate is not None:
        given |= {("load", "rate"): options.rate, ("load", "steps"): None}
    if options.seconds is not None:
        given |= {("load", "seconds"): options.seconds, ("load", "calls"): None}
    if options.calls is not None:
        given |= {("load", "calls"): options.calls, ("load", "seconds"): None}
    if options.accounts is not None:
        given["accounts", "count"] = options.accounts
    if options.seed is not None:
        given["", "seed"] = options.seed
    return given


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[Stage], None]]:
    """Shows how far a run is on standard error: a bar on a terminal, else in lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        tell = progress_of(title)
        yield lambda stage: tell(_said(stage))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, text="")

        def show(stage: Stage) -> None:
            bar.update(
                task, description=f"{title}: {stage.stage}", completed=stage.done, total=stage.total or None, text=stage.text
            )

        yield show


def _said(stage: Stage) -> str:
    total = f" of {stage.total:g}" if stage.total else ""
    return f"{stage.stage} {stage.done:.0f}{total}{stage.text and f', {stage.text}'}"


async def _run(options: argparse.Namespace) -> list[Report]:
    mix = read(options.file, instead_of(options))
    settings: Mapping[str, Mapping[str, object]] = node_settings(options.set)
    check_picture(options.plot)
    with progress_bar(mix.name) as tell:
        ran = await run_mix(mix, tell, settings=settings)
    report = report_of(ran)
    picture(report, options.plot, partial(draw, ran))
    return [report]
