"""Guesses at passwords: how many wrong responses are looked at per account name, per source, and per pair of both.

Pure: times are monotonic seconds. Names are counted whether an account has them or not, so that nothing here tells which exist.
A source is an IPv4 address or the /64 of an IPv6 one, as `sip.flow.source_of` says. Only a response to a nonce that we gave
to that very source counts (`sip.digest.NonceSource`), so nobody uses up the guesses of others by writing their address.

Who is *known* has a budget of his own: the account's own device, and a source that proved its password within a day or that
holds a binding of it. Strangers' guesses at the name take nothing from it, and a neighbour's behind the same carrier-grade NAT
nothing from the device's. An address from which many proved theirs gets one more guess for each of them: many customers make
more mistakes. No success gives guesses back, or a neighbour would go on for as long as the router registers.

Counts are leaky: a budget comes back evenly over its window. Left out: requests without credentials, which guess nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from hashlib import sha256

__all__ = ["MAX_USER", "GuessLimits", "Guesses", "counted_as"]

PROVEN_S = 86400.0  # home connections keep an address for a day
MAX_USER = 200  # characters of a name that is counted as it is; no account's is so long, and a made-up one may have thousands
RETOLD_S = 3600.0  # after which a source that proves itself again is told to the other workers again


@dataclass(frozen=True, slots=True)
class GuessLimits:
    """Wrong responses within `window_s` seconds; `answered` bounds the answers to a source that is over its limit."""

    pair: int = 10
    user: int = 50
    source: int = 100
    answered: int = 1000
    window_s: int = 600
    entries: int = 50_000  # of each table


class _Table:
    """Leaky counts by key, at most `limit` of them: the one that was raised longest ago goes first."""

    def __init__(self, limit: int, window_s: float) -> None:
        self._limit, self._window_s = limit, window_s
        self._counts: dict[Hashable, tuple[float, float]] = {}  # key -> count, and when it was so

    def __len__(self) -> int:
        return len(self._counts)

    def count(self, key: Hashable, budget: int, now: float) -> float:
        """How much of `budget` is used."""
        count, at = self._counts.get(key, (0.0, now))
        return max(0.0, count - (now - at) * budget / self._window_s)

    def is_spent(self, key: Hashable, budget: int, now: float) -> bool:
        return (self.count(key, budget, now) if key in self._counts else 0) > budget - 1

    def add(self, key: Hashable, budget: int, now: float) -> bool:
        """Count one more; True when another key was forgotten for it."""
        count = self.count(key, budget, now)
        known = self._counts.pop(key, None) is not None
        full = not known and len(self._counts) >= self._limit
        if full:
            del self._counts[next(iter(self._counts))]
        self._counts[key] = (count + 1, now)
        return full


def counted_as(user: str) -> str:
    """What a name that somebody gives is counted by: itself, or its digest where it is longer than any account's."""
    return user if len(user) <= MAX_USER else sha256(user.encode()).hexdigest()


class Guesses:
    """See the module. `forgotten` counts what the tables had no room for."""

    def __init__(self, limits: GuessLimits) -> None:
        self._limits = limits
        self._tables = {name: _Table(limits.entries, limits.window_s) for name in ("pair", "user", "source", "own", "answered")}
        self._proven: dict[tuple[str, str], float] = {}  # (user, source) -> when; the latest last
        self._proven_at: dict[str, int] = {}  # source -> how many users
        self.forgotten = 0
        # Are told what the node's other workers have to know too: user, source, and of a wrong one what it was known as.
        self.tell_wrong: Callable[[str, str, str], None] = lambda *_: None
        self.tell_right: Callable[[str, str], None] = lambda *_: None

    def sizes(self) -> dict[str, int]:
        """Entries by table."""
        return {**{name: len(table) for name, table in self._tables.items()}, "proven": len(self._proven)}

    def has_proven(self, user: str, source: str, now: float) -> bool:
        """Whether this source proved the account's password within a day."""
        at = self._proven.get((user, source))
        return at is not None and now - at < PROVEN_S

    def protects(self, source: str) -> str:
        """Why the kernel is not to drop the source: a password was proven there lately; "" otherwise."""
        return "proven" if source in self._proven_at else ""

    def spent(self, user: str, source: str, now: float, known: str) -> str:
        """Which budget is used up: own, pair, source, user; "" for none. `known`: what as, "" for a stranger."""
        limits, tables = self._limits, self._tables
        if known:
            return "own" if tables["own"].is_spent((user, known), limits.pair, now) else ""
        if tables["pair"].is_spent((user, source), limits.pair, now):
            return "pair"
        if tables["source"].is_spent(source, self._of_source(source), now):
            return "source"
        return "user" if tables["user"].is_spent(user, limits.user, now) else ""

    def wrong(self, user: str, source: str, now: float, known: str) -> None:
        """A response was wrong."""
        self.wrong_elsewhere(user, source, now, known)
        self.tell_wrong(user, source, known)

    def wrong_elsewhere(self, user: str, source: str, now: float, known: str) -> None:
        """A response to another worker of this node was wrong: a guess counts wherever the kernel took it."""
        if known:
            self._add("own", (user, known), self._limits.pair, now)
            return
        self._add("pair", (user, source), self._limits.pair, now)
        self._add("source", source, self._of_source(source), now)
        self._add("user", user, self._limits.user, now)

    def right(self, user: str, source: str, now: float) -> None:
        """A response was right: the source is known from now on."""
        at = self._proven.get((user, source))
        self.right_elsewhere(user, source, now)
        if at is None or now - at > RETOLD_S:
            self.tell_right(user, source)

    def right_elsewhere(self, user: str, source: str, now: float) -> None:
        """A response to another worker of this node was right."""
        if self._proven.pop((user, source), None) is None:
            self._proven_at[source] = self._proven_at.get(source, 0) + 1
        self._proven[user, source] = now
        oldest = next(iter(self._proven))
        if len(self._proven) > self._limits.entries or now - self._proven[oldest] >= PROVEN_S:
            self.forgotten += len(self._proven) > self._limits.entries
            del self._proven[oldest]
            self._proven_at[oldest[1]] -= 1
            if not self._proven_at[oldest[1]]:
                del self._proven_at[oldest[1]]

    def may_answer(self, source: str, now: float) -> bool:
        """Whether a source that is over a limit still gets an answer; counts it."""
        if self._tables["answered"].is_spent(source, self._limits.answered, now):
            return False
        self._add("answered", source, self._limits.answered, now)
        return True

    def _of_source(self, source: str) -> int:
        return self._limits.source + self._proven_at.get(source, 0)

    def _add(self, table: str, key: Hashable, budget: int, now: float) -> None:
        self.forgotten += self._tables[table].add(key, budget, now)
