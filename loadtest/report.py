"""How a measurement is shown: a table for people, JSON for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["Report", "counted", "progress_of", "show"]

FIRST_EVERY_S, LAST_EVERY_S, EVERY_SHARE = 1.0, 60.0, 0.05  # from one line to the next, by how long it goes on
COLUMNS, ENDLESS = 3, 1000  # of a table: more than three are squeezed on an ordinary terminal
SPREAD = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"), (1.0, "max"))


@dataclass(slots=True)
class Report:
    """Named figures in order, and what was found wrong."""

    title: str
    figures: list[tuple[str, str, float | int | str, str]] = field(default_factory=list)  # key, text, value, unit
    faults: list[str] = field(default_factory=list)
    further: dict[str, float] = field(default_factory=dict)  # for programs alone, by key

    def add(self, key: str, text: str, value: float | str, unit: str = "") -> None:
        self.figures.append((key, text, round(value, 3) if isinstance(value, float) else value, unit))

    def add_spread(self, key: str, text: str, values: Sequence[float], unit: str) -> None:
        """The percentiles of `values` in one row, and each by its own key, such as `invite_p99_ms`; nothing without values."""
        if not values:
            return
        ordered = sorted(values)
        spread = [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share, _ in SPREAD]
        self.add(key, f"{text}: {', '.join(name for _, name in SPREAD)}", ", ".join(f"{value:.2f}" for value in spread), unit)
        for (_, name), value in zip(SPREAD, spread, strict=True):
            self.further[f"{key}_{name}_{unit}"] = round(value, 3)

    def expect(self, holds: bool, fault: str) -> None:  # noqa: FBT001  # reads as a sentence
        """Note a fault when something does not hold."""
        if not holds:
            self.faults.append(fault)

    @property
    def ok(self) -> bool:
        return not self.faults

    def as_dict(self) -> dict[str, object]:
        values: dict[str, object] = {key: value for key, _, value, _ in self.figures}
        return {"title": self.title, "ok": self.ok, "faults": self.faults, **values, **self.further}


def counted(counts: Mapping[Any, int]) -> str:
    """Counts as text, the smallest key first."""
    return ", ".join(f"{key}: {count}" for key, count in sorted(counts.items()))


def progress_of(title: str) -> Callable[[str], None]:
    """Something that writes how far a measurement is to standard error: a line a second at most to begin with, and fewer the
    longer it goes on, so that the log of two hours has some 200 lines."""
    began, due = time.monotonic(), 0.0

    def tell(text: str) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            due = now + min(LAST_EVERY_S, max(FIRST_EVERY_S, EVERY_SHARE * (now - began)))
            sys.stderr.write(f"{title}: {text}\n")
            sys.stderr.flush()

    return tell


def _show_side_by_side(reports: Sequence[Report]) -> None:
    """Write reports of the same figures as tables, a column each, to standard output."""
    tables = [_table_of(reports[first : first + COLUMNS]) for first in range(0, len(reports), COLUMNS)]
    console = _console_for(tables)
    for table in tables:
        console.print(table)
        console.print()
    for report in reports:
        for fault in report.faults:
            console.print(f"fault, {report.title}: {fault}", soft_wrap=True)
    console.print("ok" if all(report.ok for report in reports) else "not ok")


def _console_for(tables: Sequence[Table]) -> Console:
    """Standard output, as wide as it is or, where that is no terminal, as they need."""
    console = Console(markup=False, highlight=False)  # what a peer wrote may look like markup
    if not console.is_terminal:
        console.width = ENDLESS
        console.width = max(80, *(console.measure(table).maximum for table in tables))
    return console


def _table_of(reports: Sequence[Report]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for report in reports:
        table.add_column(report.title, justify="right", overflow="fold")
    for index, (_, text, _, unit) in enumerate(reports[0].figures):
        table.add_row(f"{text} [{unit}]" if unit else text, *(_shown(report.figures[index][2]) for report in reports))
    return table


def _shown(value: float | str) -> str:
    return f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def show(reports: list[Report], *, as_json: bool) -> None:
    """Write the reports to standard output."""
    if as_json:
        sys.stdout.write(json.dumps([report.as_dict() for report in reports], indent=2) + "\n")
        return
    if len(reports) > 1 and len({tuple(key for key, *_ in report.figures) for report in reports}) == 1:
        _show_side_by_side(reports)
        return
    for report in reports:
        table = Table(title=report.title, title_justify="left", show_header=False, show_edge=False)
        for _, text, value, unit in report.figures:
            table.add_row(text, _shown(value), unit)
        console = _console_for([table])
        console.print(table)
        for fault in report.faults:
            console.print(Text.assemble(("fault", "red"), f" {fault}"), soft_wrap=True)
        console.print(Text("ok", "green") if report.ok else Text("not ok", "red"))
