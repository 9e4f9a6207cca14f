"""What the workers of a node tell each other of budgets, so that a source's or a line's is one over all of them.

Each worker has the whole budget and takes off what the others took: whether a source's messages come to one worker or to all,
it gets the same. Others are told in steps of a tenth of the budget, so that there is no word for each message. By as much for
each other worker, and by what is on its way, more than the budget may be taken at once; that is paid back before more comes.
Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_UNTOLD", "STEPS", "Spending"]

STEPS = 10  # words for a whole budget
MAX_UNTOLD = 65_536  # sources and lines of which something is not told yet; beyond it all is forgotten: a step for each of them


class Spending:
    """See the module. `tell(kind, whose, count)` brings a word to the other workers; None where there are none."""

    def __init__(self) -> None:
        self.tell: Callable[[str, str, int], None] | None = None
        self._untold: dict[tuple[str, str], int] = {}
        self.forgotten = 0

    def took(self, kind: str, whose: str, burst: float, count: int = 1) -> None:
        """A message was taken off a budget of `burst` messages, or what counts as so many."""
        if self.tell is None:
            return
        untold = self._untold.pop((kind, whose), 0) + count
        if untold * STEPS >= burst:
            self.tell(kind, whose, untold)
            return
        if len(self._untold) >= MAX_UNTOLD:
            self.forgotten += len(self._untold)
            self._untold.clear()
        self._untold[kind, whose] = untold

    def __len__(self) -> int:
        """Of how many sources and lines something is not told yet."""
        return len(self._untold)
