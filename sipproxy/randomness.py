"""Random bytes for tokens, drawn from the kernel in blocks: a call needs some, and asking for each costs more than using it.

Not for a process that forks, whose children would draw the same.
"""

from __future__ import annotations

import os

__all__ = ["RandomBytes"]

BLOCK = 1024  # bytes: what some thirty calls need


class RandomBytes:
    """Called with a number of bytes, as `os.urandom` is; none is given twice."""

    __slots__ = ("_at", "_block")

    def __init__(self) -> None:
        self._block, self._at = b"", 0

    def __call__(self, count: int) -> bytes:
        at, end = self._at, self._at + count
        if end > len(self._block):
            self._block = os.urandom(max(BLOCK, count))
            at, end = 0, count
        self._at = end
        return self._block[at:end]
