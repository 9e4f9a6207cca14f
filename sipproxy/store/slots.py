"""Slots: the channels of a line in use, as leases in the store, exact over all nodes (design, invariant 2).

`sp:{line:<id>}:slots` is a sorted set of call ids by lease expiry in ms of the server's clock; so no two nodes' clocks need
agree. One script drops what has expired, counts, and takes. All three operations may be repeated: taking what one holds
refreshes it, releasing what is gone does nothing, and refreshing re-asserts a live call whether or not the store still
knows of it (after a flush, a fail-over or an admission without the store); the limit is not asked then.

What the caller of `take` has to know: exactly one result comes, at the latest at the deadline. `taken=None` says that the
store did not answer, not that the slot is free: it may be granted later, by the very command that is still on its way.
So after None as after True the caller owes a `release` in the end, also when it refuses the call at once. Commands leave
in order, and what a dropped connection may still hold is fenced off (store.connection): the release comes after the take.
`late_grants` counts these. A release that cannot be sent is kept and sent when the store is back.

Leaves out: which call wants a slot, the decision without the store, and when to refresh.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.store import keys
from sipproxy.store.backlog import Backlog
from sipproxy.store.connection import State
from sipproxy.store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sipproxy.store.connection import Command, Store

__all__ = ["MAX_OWED", "SlotResult", "Slots"]

# Leases and releases that wait for the store: four times the calls that a node holds by default.
MAX_OWED = 200_000

# KEYS[1] the line's slots; ARGV call, limit (-1: re-assert, no limit), lease in ms. Returns {taken, used}.
# The key lives as long as its last lease: nodes may differ in lease time, so the expiry is taken from the set itself.
_SCRIPT = b"""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local used = redis.call('ZCARD', KEYS[1])
local held = redis.call('ZSCORE', KEYS[1], ARGV[1])
local limit = tonumber(ARGV[2])
if not held then
  if limit >= 0 and used >= limit then return {0, used} end
  used = used + 1
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('PEXPIREAT', KEYS[1], redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2])
return {1, used}
"""
_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
_NO_LIMIT = -1
_RELEASE = 0  # as a wish: instead of a lease in ms


class SlotResult(NamedTuple):
    """`taken` None: no answer within the deadline. `used` counts the line's slots with this call's, 0 where unknown."""

    taken: bool | None
    used: int


class _Take:
    __slots__ = ("at", "done", "ident", "lease_ms", "limit", "on_result", "repeat")

    def __init__(
        self, ident: tuple[str, str], limit: int, lease_ms: int, on_result: Callable[[SlotResult], None], at: float
    ) -> None:
        self.ident = ident
        self.limit = limit
        self.lease_ms = lease_ms
        self.on_result = on_result
        self.at = at
        self.done = False
        self.repeat = True  # whether it may be sent again after NOSCRIPT: not once a release has gone out behind it


class Slots:
    """See the module. To be used from the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._script_known = False
        self._takes: dict[tuple[str, str], _Take] = {}
        self._deadlines: deque[_Take] = deque()  # all have the same deadline, so the first is the earliest
        self._timer: asyncio.TimerHandle | None = None
        self._backlog: Backlog[tuple[str, str], int] = Backlog(
            store, self._wish_command, limit=MAX_OWED, observe=self._wish_replied
        )
        self.timeouts = 0
        self.unanswered = 0  # results without an answer, for whatever reason
        self.late = 0
        self.late_grants = 0
        store.on_state(self._on_state)

    @property
    def owed(self) -> int:
        """Releases and refreshes that the store has not confirmed."""
        return len(self._backlog)

    @property
    def dropped(self) -> dict[str, int]:
        """Releases and refreshes given up, by reason; what is not released ends with its lease."""
        return self._backlog.dropped

    def take(self, line: str, call: str, limit: int, lease_ms: int, on_result: Callable[[SlotResult], None]) -> None:
        """Take a slot of `line` for `call` if fewer than `limit` are in use, for `lease_ms`.

        `on_result` is called exactly once and never before this returns: in the next tick when the store is away.
        """
        loop = asyncio.get_running_loop()
        ident = (line, call)
        self._backlog.discard(ident)
        older = self._takes.get(ident)
        if older is not None:
            older.repeat = False  # this one is sent for both
        take = _Take(ident, max(limit, 0), lease_ms, on_result, loop.time() + self._store.deadline_s)
        if self._store.state is State.AWAY:
            loop.call_soon(self._finish, take, SlotResult(None, 0))
            return
        self._takes[ident] = take
        self._deadlines.append(take)
        if self._timer is None:
            self._timer = loop.call_at(self._deadlines[0].at, self._on_deadline)
        self._send(take)

    def release(self, line: str, call: str) -> None:
        """Give the slot back. Idempotent; also for calls whose `take` had no answer."""
        take = self._takes.get((line, call))
        if take is not None:
            take.repeat = False
        self._backlog.put((line, call), _RELEASE, at_once=True)

    def refresh(self, leases: Iterable[tuple[str, str]], lease_ms: int) -> None:
        """Re-assert the slots of live calls, (line, call) each, for another `lease_ms`, in windows behind the takes."""
        for ident in leases:
            self._backlog.put(ident, lease_ms)

    async def used(self, line: str) -> list[tuple[str, int]]:
        """Return the line's slots as (call, lease expiry in ms of the server's clock), earliest first. Raises StoreError."""
        now, found = await asyncio.gather(
            self._store.execute("TIME"), self._store.execute("ZRANGE", keys.slots(line), 0, -1, "WITHSCORES")
        )
        assert isinstance(now, list)
        assert isinstance(found, list)
        now_ms = int(now[0]) * 1000 + int(now[1]) // 1000
        slots = [(keys.decoded(call), int(at)) for call, at in zip(found[::2], found[1::2], strict=True)]
        return [slot for slot in slots if slot[1] > now_ms]

    # -- takes ---------------------------------------------------------------------------------------------------------

    def _send(self, take: _Take) -> None:
        command = self._script(take.ident, take.limit, take.lease_ms)
        self._store.submit(command, lambda reply: self._replied(take, reply))

    def _replied(self, take: _Take, reply: object) -> None:
        self._learn(reply)
        if isinstance(reply, StoreError):
            if reply.name == "NOSCRIPT" and take.repeat and not take.done:
                self._send(take)
            else:
                self._finish(take, SlotResult(None, 0))
            return
        taken, used = _parsed(reply)
        if take.done:
            self.late += 1
            self.late_grants += taken
        self._finish(take, SlotResult(taken, used))

    def _finish(self, take: _Take, result: SlotResult) -> None:
        if self._takes.get(take.ident) is take and (take.done or result.taken is not None):
            del self._takes[take.ident]
        if take.done:
            return
        take.done = True
        if result.taken is None:
            self.unanswered += 1
        take.on_result(result)

    def _on_deadline(self) -> None:
        """Answer for the store where it has not, and arm the timer for the next take that waits."""
        loop = asyncio.get_running_loop()
        self._timer = None
        soon = loop.time() + 0.001  # the resolution of the loops' clocks
        while self._deadlines and (self._deadlines[0].done or self._deadlines[0].at <= soon):
            take = self._deadlines.popleft()
            if not take.done:
                self.timeouts += 1
                self._finish(take, SlotResult(None, 0))
        if self._deadlines and self._timer is None:
            self._timer = loop.call_at(self._deadlines[0].at, self._on_deadline)

    # -- the script ----------------------------------------------------------------------------------------------------

    def _script(self, ident: tuple[str, str], limit: int, lease_ms: int) -> Command:
        """The first commands of a connection carry the script itself, which the server then keeps; the others its digest."""
        head: Command = (b"EVALSHA", _SHA) if self._script_known else (b"EVAL", _SCRIPT)
        return (*head, 1, keys.slots(ident[0]), keys.encoded(ident[1]), limit, lease_ms)

    def _learn(self, reply: object) -> None:
        if not isinstance(reply, StoreError):
            self._script_known = True
        elif reply.name == "NOSCRIPT":
            self._script_known = False

    def _wish_command(self, ident: tuple[str, str], lease_ms: int) -> Command:
        if lease_ms == _RELEASE:
            return (b"ZREM", keys.slots(ident[0]), keys.encoded(ident[1]))
        return self._script(ident, _NO_LIMIT, lease_ms)

    def _wish_replied(self, lease_ms: int, reply: object) -> None:
        if lease_ms != _RELEASE:
            self._learn(reply)

    def _on_state(self, state: State, reason: str) -> None:
        del reason
        if state is State.AWAY:
            self._script_known = False  # who comes back may be another server


def _parsed(reply: object) -> tuple[bool, int]:
    """Return the script's {taken, used}."""
    assert isinstance(reply, list)
    return bool(reply[0]), int(reply[1])
