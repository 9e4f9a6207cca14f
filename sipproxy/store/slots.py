"""Slots: the channels of lines and limited trunk routes, as leases in the store, exact over all nodes (design, invariant 2).

`sp:{line:<id>}:slots` is a sorted set of members, one for each slot, by lease expiry in ms of the server's clock; so no two
nodes' clocks need agree. `sp:{line:<id>}:holders` says who has each: the account, whose own limit is counted by it, the node,
since when, and the call's direction. One script drops what has expired, counts, and takes; it also refreshes and releases, so
that both keys hold the same members. All of it may be repeated: taking what one holds refreshes it, releasing what is gone does
nothing, and refreshing re-asserts a live call whether or not the store still knows of it (after a flush, a fail-over or an
admission without the store); the limits are not asked then.

What the caller of `take` has to know: exactly one result comes, at the latest at the deadline. `taken=None` says that the
store did not answer, not that the slot is free: it may be granted later, by the very command that is still on its way.
So after None as after True the caller owes a `release` in the end, also when it refuses the call at once. Commands leave
in order, and what a dropped connection may still hold is fenced off (store.connection): the release comes after the take.
`late_grants` counts these. A release that cannot be sent is kept and sent when the store is back; those of the last lease are
sent again then, as a store that comes back may be an old copy, in which ended calls still have their slots. A take that is
refused while releases of its owner still wait is asked for once more behind them: the store counted calls that had ended.
`waited_s` is the store's part of the time that a take took, without that in which this loop was busy with other things.

Leaves out: which call wants a slot, the decision without the store, when to refresh, and reading (`store.live_slots`).
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.store import keys
from sipproxy.store.backlog import Backlog
from sipproxy.store.connection import State
from sipproxy.store.errors import StoreError
from sipproxy.store.live_slots import write_holder

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from sipproxy.engine.actions import Holder, Slot, TakeSlot
    from sipproxy.store.connection import Store

__all__ = ["BEAT_S", "MAX_OWED", "MAX_REPEATED", "SlotResult", "Slots"]

# Leases and releases that wait for the store: four times the calls that a node holds by default.
MAX_OWED = 200_000
# Releases that are kept to be repeated: at 100 calls a second those of three leases.
MAX_REPEATED = 30_000

# KEYS the members by lease expiry, and their holders; ARGV member, limit (-1: re-assert, no limit), lease in ms (0: release),
# holder (the account in its first line), limit of the account or "". Returns {taken, used, used by the account}.
# The keys live as long as the last lease: nodes may differ in lease time, so the expiry is taken from the set itself.
# The first write frees, so that a server whose memory is full lets the rest pass.
_SCRIPT = b"""
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
for _, member in ipairs(gone) do redis.call('HDEL', KEYS[2], member) end
if ARGV[3] == '0' then
  redis.call('HDEL', KEYS[2], ARGV[1])
  return {redis.call('ZREM', KEYS[1], ARGV[1]), redis.call('ZCARD', KEYS[1]), 0}
end
local used = redis.call('ZCARD', KEYS[1])
local of_account = 0
if ARGV[5] ~= '' then
  local account = string.match(ARGV[4], '^[^\\n]*\\n')
  for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    local holder = redis.call('HGET', KEYS[2], member)
    if holder and string.sub(holder, 1, #account) == account then of_account = of_account + 1 end
  end
end
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  local limit = tonumber(ARGV[2])
  if limit >= 0 then
    if used >= limit then return {0, used, of_account} end
    if ARGV[5] ~= '' and of_account >= tonumber(ARGV[5]) then return {0, used, of_account} end
  end
  used = used + 1
  if ARGV[5] ~= '' then of_account = of_account + 1 end
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[4])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
redis.call('PEXPIREAT', KEYS[1], last)
redis.call('PEXPIREAT', KEYS[2], last)
return {1, used, of_account}
"""
_SHA = hashlib.sha1(_SCRIPT, usedforsecurity=False).hexdigest().encode()
# The command as it goes over the wire: two of them go for each call, and a packer that looks at each part takes twice as long.
_BY_NAME = b"*10\r\n$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n2\r\n" % _SHA
_IN_FULL = b"*10\r\n$4\r\nEVAL\r\n$%d\r\n%b\r\n$1\r\n2\r\n" % (len(_SCRIPT), _SCRIPT)
_PARTS = 7 * b"$%d\r\n%b\r\n"
_NO_LIMIT = -1
BEAT_S = 0.01  # how often this loop's lateness is looked at while a take waits
_RELEASE = 0  # instead of a lease in ms


@dataclass(frozen=True, slots=True)
class SlotResult:
    """`taken` None: no answer within the deadline. `used` counts the owner's slots with this one, 0 where unknown, and
    `of_account` those of the account, where it has a limit of its own. `waited_s` is for how long the store was waited for."""

    taken: bool | None
    used: int
    of_account: int = 0
    waited_s: float = field(default=0.0, compare=False)


class _Wish(NamedTuple):
    """What the backlog sends for a slot; without a holder it is given back."""

    lease_ms: int
    holder: Holder | None


class _Take:
    __slots__ = ("action", "at", "done", "late", "lease_ms", "left_at", "on_result", "repeat")

    def __init__(self, action: TakeSlot, lease_ms: int, on_result: Callable[[SlotResult], None]) -> None:
        self.action = action
        self.lease_ms = lease_ms
        self.on_result = on_result
        self.left_at = 0.0  # when it was asked for
        self.late = 0.0  # and how late this loop had been until then
        self.at = 0.0  # when the answer is due
        self.done = False
        self.repeat = True  # whether it may be sent again: not once a release of it has gone out behind it

    def __lt__(self, other: _Take) -> bool:
        return self.at < other.at


class _Lateness:
    """For how long this loop was too busy to read what had come, in seconds, since the first call of `watch`.

    A timer that is set anew every BEAT_S, until `rest`, tells it to that precision. Most answers are there before it is due.
    """

    def __init__(self) -> None:
        self._total = 0.0
        self._due: float | None = None
        self._timer: asyncio.TimerHandle | None = None  # set together with `_due`

    def watch(self, loop: asyncio.AbstractEventLoop) -> float:
        """Go on watching, and return the sum so far."""
        if self._due is None:
            self._set(loop)
        return self.at(loop.time())

    def at(self, now: float) -> float:
        """The sum so far."""
        return self._total + (max(0.0, now - self._due) if self._due is not None else 0.0)

    def rest(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nobody waits any more: the loop is not woken for this until the next `watch`."""
        self._total, self._due = self.at(loop.time()), None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + BEAT_S
        self._timer = loop.call_at(self._due, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._total = self.at(loop.time())
        self._set(loop)


class Slots:
    """See the module. To be used from the event loop's thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._is_loaded = False  # the script was sent ahead on this connection
        self._is_lost = False  # and the server has forgotten it since
        self._takes: dict[Slot, _Take] = {}  # those whose reply is to come, the last of each slot
        self._leaving: list[_Take] = []  # submitted in this tick
        self._deadlines: list[_Take] = []  # a heap
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._lease_s = 0.0  # the longest that was asked for
        self._released: OrderedDict[Slot, float] = OrderedDict()  # when, the latest last
        self._was_away = False
        self._lateness = _Lateness()
        self._backlog: Backlog[Slot, _Wish] = Backlog(
            store, self._wish_command, limit=MAX_OWED, observe=self._wish_replied, group=_owner
        )
        self.timeouts = 0
        self.late = 0
        self.late_grants = 0
        self.unrepeatable = 0  # releases that were forgotten within their lease, for there were more than MAX_REPEATED
        store.on_state(self._on_state)

    @property
    def owed(self) -> int:
        """Releases and refreshes that the store has not confirmed."""
        return len(self._backlog)

    @property
    def awaited(self) -> Collection[Slot]:
        """The slots that the store was asked for and has not answered yet: as they are whenever it is looked at."""
        return self._takes

    @property
    def dropped(self) -> dict[str, int]:
        """Releases and refreshes given up, by reason; what is not released ends with its lease."""
        return self._backlog.dropped

    def take(self, action: TakeSlot, lease_ms: int, on_result: Callable[[SlotResult], None]) -> None:
        """Take a slot for `lease_ms` if fewer than the limits are in use.

        `on_result` is called exactly once and never before this returns: in the next tick when the store is away. It is called
        within the store's deadline, or within `action.wait_s` where that is shorter.
        """
        loop = asyncio.get_running_loop()
        slot = action.slot
        self._backlog.discard(slot)
        self._released.pop(slot, None)
        self._lease_s = max(self._lease_s, lease_ms / 1000)
        older = self._takes.get(slot)
        if older is not None:
            older.repeat = False  # this one is sent for both
        take = _Take(action, lease_ms, on_result)
        if self._store.state is State.AWAY:
            loop.call_soon(self._finish, take, SlotResult(None, 0))
            return
        self._takes[slot] = take
        self._send(take)
        if not self._leaving:
            loop.call_soon(self._left)
        self._leaving.append(take)

    def release(self, slot: Slot) -> None:
        """Give the slot back. Idempotent; also for one whose `take` had no answer."""
        take = self._takes.get(slot)
        if take is not None:
            take.repeat = False
        self._backlog.put(slot, _Wish(_RELEASE, None), at_once=True)
        now = asyncio.get_running_loop().time()
        self._released.pop(slot, None)
        self._released[slot] = now
        while (oldest := next(iter(self._released.values()))) < now - self._lease_s or len(self._released) > MAX_REPEATED:
            self._released.popitem(last=False)
            self.unrepeatable += oldest >= now - self._lease_s

    def release_again(self) -> None:
        """Repeat the releases of the last lease: the store may be an older copy of itself."""
        since = asyncio.get_running_loop().time() - self._lease_s
        for slot, at in self._released.items():
            if at >= since:
                self._backlog.put(slot, _Wish(_RELEASE, None))

    def refresh(self, leases: Iterable[tuple[Slot, Holder]], lease_ms: int) -> None:
        """Re-assert the slots of live calls for another `lease_ms`, in windows behind the takes."""
        self._lease_s = max(self._lease_s, lease_ms / 1000)
        for slot, holder in leases:
            self._released.pop(slot, None)
            self._backlog.put(slot, _Wish(lease_ms, holder))

    # -- takes ---------------------------------------------------------------------------------------------------------

    def _send(self, take: _Take) -> None:
        action = take.action
        command = self._script(action.slot, take.lease_ms, action.holder, max(action.limit, 0), action.account_limit)
        self._store.submit(command, lambda reply: self._replied(take, reply))

    def _replied(self, take: _Take, reply: object) -> None:
        self._learn(reply)
        if isinstance(reply, StoreError):
            if reply.name == "NOSCRIPT" and take.repeat and not take.done:
                self._send(take)
                return
            result = SlotResult(None, 0)
        else:
            result = _parsed(reply, self._waited_s(take))
            if result.taken is not None:
                self._backlog.resume()
            if result.taken is False and take.repeat and not take.done and self._backlog.hurry(_owner(take.action.slot)):
                take.repeat = False  # what was owed of the owner is on its way: calls that have ended were counted
                self._send(take)
                return
            if take.done:
                self.late += 1
                self.late_grants += bool(result.taken)
        if self._takes.get(take.action.slot) is take:
            del self._takes[take.action.slot]
            if not self._takes:
                self._lateness.rest(asyncio.get_running_loop())
        self._finish(take, result)

    def _waited_s(self, take: _Take) -> float:
        """For how long the store has been waited for: not the time in which its answer may have lain here unread."""
        now = asyncio.get_running_loop().time()
        return max(0.0, now - take.left_at - (self._lateness.at(now) - take.late)) if take.left_at else 0.0

    @staticmethod
    def _finish(take: _Take, result: SlotResult) -> None:
        if not take.done:
            take.done = True
            take.on_result(result)

    def _left(self) -> None:
        """The store has sent what was submitted in the last tick: from now on its answers are waited for.

        Not from the take on: a tick in which many calls arrive together may last longer than the deadline, and the store, not
        asked yet, would be held to be away.
        """
        loop = asyncio.get_running_loop()
        late = self._lateness.watch(loop)
        for take in self._leaving:
            take.left_at, take.late = loop.time(), late
            take.at = take.left_at + max(0.0, min(take.action.wait_s, self._store.deadline_s))
            heapq.heappush(self._deadlines, take)
        self._leaving.clear()
        self._arm(loop)

    def _on_deadline(self) -> None:
        """An answer is due. When this loop was busy it may be there and unread: everything that has come is read first, which
        takes the two ticks between a timer and the second callback after it, whichever loop this is.

        That is so of what is due now. A take that left since, and whose time has run out when this loop comes to it, has not
        had those two ticks: the store may have answered at once.
        """
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.call_soon, self._conclude, loop.time() + 0.001)  # the resolution of the loops' clocks

    def _conclude(self, due: float) -> None:
        """Answer for the store where it has not and was to by `due`, and arm the timer for the next take that waits."""
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._deadlines and (self._deadlines[0].done or self._deadlines[0].at <= due):
            take = heapq.heappop(self._deadlines)
            if not take.done:
                self.timeouts += 1
                self._finish(take, SlotResult(None, 0, waited_s=take.at - take.left_at))
        self._arm(loop)

    def _arm(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake at the earliest deadline."""
        if not self._deadlines or (self._timer is not None and self._timer_at <= self._deadlines[0].at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = self._deadlines[0].at
        self._timer = loop.call_at(self._timer_at, self._on_deadline)

    # -- the script ----------------------------------------------------------------------------------------------------

    def _script(
        self, slot: Slot, lease_ms: int, holder: Holder | None = None, limit: int = _NO_LIMIT, account_limit: int | None = None
    ) -> bytes:
        """The script is sent ahead of the first command of a connection, and with each one where the server has lost it."""
        if not self._is_loaded:
            self._is_loaded = True
            self._store.submit((b"SCRIPT", b"LOAD", _SCRIPT))
        kind, owner, member = slot
        slots, holders = keys.slot_keys(owner, kind)
        name, most, lease = keys.encoded(member), b"%d" % limit, b"%d" % lease_ms
        of_account = b"" if account_limit is None else b"%d" % max(account_limit, 0)
        who = write_holder(holder) if holder is not None else b""
        return (_IN_FULL if self._is_lost else _BY_NAME) + _PARTS % (
            len(slots), slots, len(holders), holders, len(name), name, len(most), most, len(lease), lease,
            len(who), who, len(of_account), of_account,
        )  # fmt: skip

    def _learn(self, reply: object) -> None:
        if not isinstance(reply, StoreError):
            self._is_lost = False
        elif reply.name == "NOSCRIPT":
            self._is_lost = True

    def _wish_command(self, slot: Slot, wish: _Wish) -> bytes:
        return self._script(slot, *wish)

    def _wish_replied(self, wish: _Wish, reply: object) -> None:
        del wish
        self._learn(reply)

    def _on_state(self, state: State, reason: str) -> None:
        del reason
        if state is State.AWAY:
            self._is_loaded = self._is_lost = False  # who comes back may be another server
            self._was_away = True
        elif self._was_away:
            self._was_away = False
            self.release_again()


def _owner(slot: Slot) -> tuple[str, str]:
    """Whose slot it is: the kind, and the line or route."""
    return slot[:2]


def _parsed(reply: object, waited_s: float) -> SlotResult:
    """What the script returns; anything else, of a server that is none of ours, is no answer."""
    if isinstance(reply, list) and len(reply) == 3:
        taken, used, of_account = reply
        if isinstance(taken, int) and isinstance(used, int) and isinstance(of_account, int):
            return SlotResult(bool(taken), used, of_account, waited_s)
    return SlotResult(None, 0, 0, waited_s)
