"""Budgets of what belongs to calls and transactions: requests with a To tag, ACK, CANCEL, responses. Decided on the bytes.

What is part of a call goes before all else, so that one customer could take all of a node's time with it, by a single call of
his own. Each line has a budget by its channels, of which no PBX needs half: what its set-ups bring, and for each channel twice
what it sends whose parties both hold keys down. Anybody can write a customer's address into a datagram, and use that up. Then
what names something that is under way has a budget of its own: a call by its Call-ID, a transaction of ours by its branch, a
call of another node by the token that we gave its customer. Who knows no more than an address knows none of these.

Pure. Left out: trunk routes and other nodes, which are not counted; and calls for help, which need no budget (`shed`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.engine.bucket import Bucket, Buckets
from sipproxy.engine.kinds import CALL_ID, branch_of
from sipproxy.engine.structs import Way

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.engine.calls import Calls
    from sipproxy.engine.settings import Rates
    from sipproxy.engine.spending import Spending
    from sipproxy.engine.state import Desk

__all__ = ["Parts"]

# Twice what a channel sends whose caller and callee both press keys ten times a second: an INFO for each, and its answer.
CHANNEL_PER_S = 40
BURST_S = 3  # of that at once, as after a pause of the network
SETUPS = 2  # parts for each message outside calls: a call that is challenged and answered has two of these, and three parts
REST_PER_S, REST_BURST = 2, 20  # of a call that has ended, which a line may have hundreds of, and of a transaction
PART_BYTES = 4096  # a longer part counts as several, since a transaction may keep it for half a minute; few have 2,000

_CSEQ = re.compile(rb"\ncseq[ \t]*:\s*[0-9]+\s+([A-Z]+)", re.IGNORECASE)
_WAY = re.compile(rb"\nroute[ \t]*:[^\r\n]*?;e=([^\s;>,]+)", re.IGNORECASE)


class _Budget(NamedTuple):
    """By what it is known, messages a second, and at once."""

    key: Hashable
    per_s: float
    burst: float


class Parts:
    """See the module. `budgets` are those of lines and, while theirs are used up, of what is under way."""

    def __init__(self, desk: Desk, calls: Calls, rates: Rates, spending: Spending) -> None:
        self._desk, self._calls, self._spending = desk, calls, spending
        self.rates = rates
        self.budgets = Buckets(rates.sources)

    def take(self, data: bytes, user: str, sharing: int) -> bool:
        """Whether there is room for this part by the flow of an account's binding, which so many accounts share."""
        line = self._line_of(user)
        per_s, burst = self._rate_of(line)
        count = _weight(data)
        if not self._take(line, sharing * per_s, sharing * burst, count):
            return self.take_named(data)
        self._spending.took("parts", line, sharing * burst, count)
        return True

    def is_too_much(self, data: bytes, user: str, sharing: int) -> bool:
        """Whether there would be no room for this part by now; takes nothing."""
        line = self._line_of(user)
        if not self._is_spent(line, sharing * self._rate_of(line)[0]):
            return False
        budget = self._named(data)
        return budget is None or self._is_spent(budget.key, budget.per_s)

    def take_named(self, data: bytes) -> bool:
        """Whether this part names something that is under way, and there is room for it."""
        budget = self._named(data)
        return budget is not None and self._take(*budget, _weight(data))

    def names_call(self, data: bytes) -> bool:
        """Whether it names a call that is known here."""
        return self._calls.has(_call_id(data))

    def spent_elsewhere(self, line: str, count: int) -> None:
        """Another worker of this node took so many off a line's budget."""
        per_s, burst = self._rate_of(line)
        now = self._desk.now.mono
        bucket = self.budgets.find(line) or self.budgets.add(line, Bucket(burst, now))
        bucket.owe(now, per_s, burst, count)

    def _take(self, key: Hashable, per_s: float, burst: float, count: int) -> bool:
        now = self._desk.now.mono
        bucket = self.budgets.find(key) or self.budgets.add(key, Bucket(burst, now))
        return bucket.take(now, per_s, burst, 0.0, count)

    def _is_spent(self, key: Hashable, per_s: float) -> bool:
        bucket = self.budgets.find(key)
        return bucket is not None and bucket.tokens + (self._desk.now.mono - bucket.at) * per_s < 1.0

    def _line_of(self, user: str) -> str:
        account = self._desk.snapshot.accounts.get(user)
        return account.line if account is not None else user

    def _rate_of(self, line: str) -> tuple[float, float]:
        snapshot, rates = self._desk.snapshot, self.rates
        found = snapshot.lines.get(line)
        per_s = CHANNEL_PER_S * (snapshot.channels_of(found) if found is not None else 1)
        return SETUPS * rates.line_per_s + per_s, SETUPS * rates.line_burst + BURST_S * per_s

    def _named(self, data: bytes) -> _Budget | None:
        """The budget of what a part names."""
        call_id = _call_id(data)
        calls = self._calls.of(call_id)
        if calls:
            key = ("call", calls[0].id)
            if any(call.is_live for call in calls):
                return _Budget(key, CHANNEL_PER_S, BURST_S * CHANNEL_PER_S)
            return _Budget(key, REST_PER_S, REST_BURST)
        if data[:8].upper() == b"SIP/2.0 ":
            branch, method = branch_of(data), _CSEQ.search(data)
            if branch is not None and method is not None and (branch, method[1]) in self._desk.transactions.clients:
                return _Budget(("branch", branch), REST_PER_S, REST_BURST)
        elif (token := _WAY.search(data)) is not None:
            way = self._desk.tokens.open(Way, token[1], call_id)
            if way is not None:
                return _Budget(("way", way.user), *self._rate_of(self._line_of(way.user)))
        return None


def _weight(data: bytes) -> int:
    """As how many parts it counts."""
    return 1 + len(data) // PART_BYTES


def _call_id(data: bytes) -> bytes:
    found = CALL_ID.search(data)
    return found[1] if found is not None else b""
