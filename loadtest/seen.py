"""What the parties of a load generator saw: calls and registrations by outcome, delays over the run's clock."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Seen", "Series"]

SHOWN = 20  # failures that are kept in words


@dataclass(slots=True)
class Series:
    """Delays in ms, with the second of the run's clock at which each ended."""

    at: array[float] = field(default_factory=lambda: array("d"))
    ms: array[float] = field(default_factory=lambda: array("d"))

    def add(self, at: float, ms: float) -> None:
        self.at.append(at)
        self.ms.append(ms)


@dataclass(slots=True)
class Seen:
    """What the parties saw. `outcomes` are counted by kind and final status (0: none came)."""

    placed: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, int]] = field(default_factory=Counter)
    good: int = 0  # ended as they should, and were answered in time
    failed: int = 0
    failures: list[str] = field(default_factory=list)  # the first of them
    late: Series = field(default_factory=Series)  # how late calls began
    late_starts: int = 0
    unstarted: int = 0  # no router was free: too few accounts in the mix
    registers: int = 0
    registered: int = 0
    register_refused: Counter[int] = field(default_factory=Counter)
    delays: dict[str, Series] = field(
        default_factory=lambda: {name: Series() for name in ("challenge", "invite", "answer", "setup", "register")}
    )
    ended: Series = field(default_factory=Series)  # per call: when, and 0.0 as expected or 1.0 failed

    def fail(self, text: str) -> None:
        self.failed += 1
        if len(self.failures) < SHOWN:
            self.failures.append(text)
