"""Who pulls a group's records: one at a time, by a lease in the store that ends by itself.

Pulls of one group share a name and a cursor, so that the next one begins with what the last one had not acknowledged. Two at
once would give the same records to both, and one's acknowledgement would stand for what the other has not written. The lease
lives for `LEASE_S` and is renewed while its holder does: of a pull that was killed nothing is left after that. A pull that
stood still for longer finds it taken, and ends without acknowledging anything more. Left out: consumers of `cdr.consumer`,
which share a group's work by names of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from typing import TYPE_CHECKING

import msgspec
from redis.exceptions import RedisError

from cdr import steps
from cdr.place import beside
from cdr.wire import Link, Script, cancel_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from redis.asyncio import Redis

__all__ = ["LEASE_S", "HeldError", "Holder", "Lease", "pulls_key"]

LEASE_S = 15.0  # of a killed pull this is left at most
RENEW_S = LEASE_S / 5  # four renewals may fail
TIMEOUT_S = 5.0

# Each returns what stands there afterwards, or false. KEYS[1] is the lease, ARGV its owner's value and its life in ms.
_TAKE = Script("""
redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2])
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return redis.call('GET', KEYS[1])
""")
# ARGV[2] is the group, ARGV[3] the time if the pull is complete, else ''. KEYS[2] notes when a group's pull was complete.
_GIVE_BACK = Script("""
if ARGV[3] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
end
if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
return 1
""")


def pulls_key(stream: str) -> str:
    """The key of when each group's last complete pull was. Raises ValueError for braces that are no hash tag."""
    return beside(stream, "pulls")


class Holder(msgspec.Struct, frozen=True):
    """Who has a lease: the account, machine and process, what runs there, since when (UTC ms), and a token of its own."""

    user: str
    host: str
    pid: int
    command: str
    since_ms: int
    token: str

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.since_ms / 1000))
        return f"`{self.command}` of {self.user} on {self.host}, process {self.pid}, since {since} UTC"


class HeldError(Exception):
    """Another has the lease: the text says who, and since when."""


class Lease:
    """The lease of one group, an asynchronous context manager: taken on entry, renewed beside the body, given back on exit."""

    def __init__(self, client: Redis, stream: str, group: str, *, user: str, host: str, pid: int, command: str) -> None:
        self.group = group
        self.on_lost: Callable[[], None] | None = None  # somebody else has it
        self.complete = False  # whether the pull came to its end: the caller says so, and when is noted
        self._link = Link(client, timeout_s=TIMEOUT_S)
        self._keys = (beside(stream, f"pull:{group}"), pulls_key(stream))
        now_ms = time.time_ns() // 1_000_000
        self._own = msgspec.msgpack.encode(Holder(user, host, pid, command, now_ms, secrets.token_hex(8)))
        self._held_until = 0.0
        self._lost: Holder | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()  # on the connection

    async def __aenter__(self) -> Lease:
        """Raises HeldError, RedisError or OSError."""
        try:
            await self._take()
            await self.check()
        except BaseException:
            await self._link.drop()
            raise
        self._renewing = asyncio.create_task(self._renew())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._renewing is not None:
            await cancel_all([self._renewing])
        done_ms = str(time.time_ns() // 1_000_000) if self.complete and kind is None else ""
        with contextlib.suppress(RedisError, OSError):  # it ends by itself
            await _GIVE_BACK.run(self._link, self._keys, self._own, self.group, done_ms)
        steps.at("pull.given_back")
        await self._link.drop()

    async def check(self) -> None:
        """Before anything is acknowledged, and in time before the lease would end. Raises HeldError when somebody else has it,
        RedisError or OSError when the store does not tell."""
        if self._lost is None and time.monotonic() >= self._held_until - RENEW_S:
            await self._take()
        if self._lost is not None:
            raise HeldError(f"group {self.group} is being pulled by {self._lost}; wait until it has ended, or {LEASE_S:g} s")

    async def _take(self) -> None:
        """Take the lease, or make it last from now on."""
        async with self._one_at_a_time:
            asked_at = time.monotonic()
            reply = await _TAKE.run(self._link, self._keys[:1], self._own, round(1000 * LEASE_S))
        if reply == self._own:
            self._held_until = asked_at + LEASE_S
            return
        try:
            self._lost = msgspec.msgpack.decode(reply, type=Holder)
        except (msgspec.MsgspecError, TypeError, ValueError):
            self._lost = Holder("unknown", "unknown", 0, "unknown", 0, "")
        if self.on_lost is not None:
            self.on_lost()

    async def _renew(self) -> None:
        while self._lost is None:
            await asyncio.sleep(RENEW_S)
            with contextlib.suppress(RedisError, OSError):  # the next one may succeed, and `check` tells if none did
                await self._take()
