"""Named steps of journal, publisher and consumer, so that a test can let the process die at each of them.

`hook` is None but in such tests, and then a step costs the time of one comparison. It is called with the step's name, in the
thread that takes the step: between what the name says and what follows it, nothing else is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["at", "hook"]

hook: Callable[[str], None] | None = None


def at(step: str) -> None:
    """The process is at `step`, such as "journal.written" or "publisher.sent"."""
    if hook is not None:
        hook(step)
