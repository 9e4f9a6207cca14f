"""The search for the highest rate that goes well: which rate is tried next, and when that is known closely enough.

Pure: who uses it measures. It begins at a guess, goes up or down in steps that grow until one rate went well and a higher one
did not, and then halves what is between them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Bracket", "Trial"]

CLOSE = 1.15  # between the lowest rate that failed and the highest that did not
FIRST_STEP, MAX_STEP = 1.25, 2.0
LEAST = 1.0  # calls a second: below it nothing is looked for
MAX_TRIALS = 20


@dataclass(frozen=True, slots=True)
class Trial:
    """A rate, and why it is too high: "" where it is not."""

    rate: float
    why: str = ""


@dataclass(slots=True)
class Bracket:
    """`guess` is the rate that is tried first."""

    guess: float
    trials: list[Trial] = field(default_factory=list)
    _step: float = FIRST_STEP

    @property
    def good(self) -> float:
        """The highest rate that went well below all that failed; 0 when none did."""
        return max((trial.rate for trial in self.trials if not trial.why and trial.rate < self.bad), default=0.0)

    @property
    def bad(self) -> float:
        """The lowest rate that failed; infinite when none did."""
        return min((trial.rate for trial in self.trials if trial.why), default=math.inf)

    @property
    def why(self) -> str:
        """Why it is not higher; "" when that was not seen."""
        return next((trial.why for trial in self.trials if trial.rate == self.bad), "")

    def next_rate(self) -> float | None:
        """What to try next; None when it is known, or is not to be found."""
        if not self.trials:
            return self.guess
        good, bad = self.good, self.bad
        if bad <= good * CLOSE or bad <= LEAST or len(self.trials) >= MAX_TRIALS:
            return None
        if good and bad < math.inf:
            return math.sqrt(good * bad)
        step, self._step = self._step, min(MAX_STEP, self._step**2)
        return good * step if good else max(LEAST, bad / step)

    def tried(self, rate: float, why: str) -> None:
        """What came of it."""
        self.trials.append(Trial(rate, why))
