"""How a measurement is shown: a table for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

__all__ = ["Report", "show"]


@dataclass(slots=True)
class Report:
    """Named figures in order, and what was found wrong."""

    title: str
    figures: list[tuple[str, str, float | int | str, str]] = field(default_factory=list)  # key, text, value, unit
    faults: list[str] = field(default_factory=list)

    def add(self, key: str, text: str, value: float | str, unit: str = "") -> None:
        self.figures.append((key, text, round(value, 3) if isinstance(value, float) else value, unit))

    def expect(self, holds: bool, fault: str) -> None:  # noqa: FBT001  # reads as a sentence
        """Note a fault when something does not hold."""
        if not holds:
            self.faults.append(fault)

    @property
    def ok(self) -> bool:
        return not self.faults

    def as_dict(self) -> dict[str, object]:
        values: dict[str, object] = {key: value for key, _, value, _ in self.figures}
        return {"title": self.title, "ok": self.ok, "faults": self.faults, **values}


def show(reports: list[Report], *, as_json: bool) -> None:
    """Write the reports to standard output."""
    if as_json:
        sys.stdout.write(json.dumps([report.as_dict() for report in reports], indent=2) + "\n")
        return
    console = Console()
    for report in reports:
        table = Table(title=report.title, title_justify="left", show_header=False, show_edge=False)
        for _, text, value, unit in report.figures:
            shown = f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
            table.add_row(text, shown, unit)
        console.print(table, highlight=False)
        for fault in report.faults:
            console.print(f"[red]fault[/red] {fault}", highlight=False)
        console.print("[green]ok[/green]" if report.ok else "[red]not ok[/red]", highlight=False)
