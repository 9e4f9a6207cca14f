"""Budgets that come back at a rate, one for each source or line, in a table that is bounded. Pure."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["Bucket", "Buckets"]


class Bucket:
    """Tokens that come back at a rate. `credit` is what a source may still be sent, in bytes; `trusted` says that it is no
    stranger's."""

    __slots__ = ("at", "credit", "tokens", "trusted")

    def __init__(self, tokens: float, at: float) -> None:
        self.tokens, self.at, self.credit, self.trusted = tokens, at, 0, False

    def take(self, now: float, rate: float, burst: float, floor: float = 0.0, count: int = 1) -> bool:
        """Take so many of the tokens above `floor`; False when there are not as many."""
        tokens = self.tokens
        if now > self.at:
            tokens += (now - self.at) * rate
            tokens, self.at = tokens if tokens < burst else burst, now  # the builtin takes as long as all the rest
        taken = tokens >= floor + count
        self.tokens = tokens - count if taken else tokens
        return taken

    def owe(self, now: float, rate: float, burst: float, count: int) -> None:
        """Others took so many of the tokens. What is taken beyond them is owed, as many as there can be at most."""
        if now > self.at:
            self.tokens, self.at = min(max(burst, self.tokens), self.tokens + (now - self.at) * rate), now
        self.tokens = max(-burst, self.tokens - count)


class Buckets:
    """Buckets by key, at most `limit`: the one that was used least recently goes first, which is counted."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._table: OrderedDict[Hashable, Bucket] = OrderedDict()
        self.evicted = 0
        self.is_empty = True

    def __len__(self) -> int:
        return len(self._table)

    def find(self, key: Hashable) -> Bucket | None:
        found = self._table.get(key)
        if found is not None:
            self._table.move_to_end(key)
        return found

    def forget(self, key: Hashable) -> None:
        """Harmless when there is none."""
        self._table.pop(key, None)
        self.is_empty = not self._table

    def add(self, key: Hashable, bucket: Bucket) -> Bucket:
        self._table[key] = bucket
        self.is_empty = False
        if len(self._table) > self._limit:
            self._table.popitem(last=False)
            self.evicted += 1
        return bucket
