"""What was read of bytes that come again and again, kept by the bytes: a dictionary that reads what it lacks.

The messages of a call, of a device and of a carrier repeat most of their lines byte for byte, and finding one in a dictionary
is one step of the interpreter. Left out: what is read (lines.py, headers.py, uri.py, shape.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CACHED", "CACHED_LENGTH", "Remembered"]

CACHED = 2048
"""Values kept of each kind, of at most CACHED_LENGTH bytes each: the messages of a call repeat the same few addresses."""
CACHED_LENGTH = 200

T = TypeVar("T")


class Remembered(dict[bytes, T]):
    """`remembered[data]` is what `read` makes of `data`, which depends on nothing else and is never None or changed.

    It raises what `read` raises, each time. Long data are read anew each time. There are two generations of at most half of
    `most` each, so that what is asked for often outlives what came once.
    """

    __slots__ = ("_before", "_half", "_read", "forgotten", "most")

    def __init__(self, read: Callable[[bytes], T], most: int = CACHED) -> None:
        super().__init__()
        self._read = read
        self.most, self._half = most, most // 2
        self.forgotten = 0
        """How many values went for lack of room."""
        self._before: dict[bytes, T] = {}

    @property
    def kept(self) -> int:
        """How many values there are, in both generations."""
        return len(self) + len(self._before)

    def __missing__(self, data: bytes) -> T:
        found = self._before.pop(data, None)  # none is in both
        if found is None:
            found = self._read(data)
            if len(data) > CACHED_LENGTH:
                return found
        if len(self) >= self._half:
            self.forgotten += len(self._before)
            self._before = self.copy()
            self.clear()
        self[data] = found
        return found
