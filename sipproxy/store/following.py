"""Follows what the other nodes register: the log of `store.bindings`, read behind every SIP message's back (design §6, §8).

A node reads the log ten times a second through the connection that it has, and once a second while no other one shows a sign
of life; one read brings the changes of the meantime. When it cannot know that it has seen every entry (at the start, after an
outage, when the log was cut or emptied) it reads all bindings again, and goes on from where the log was before that. Nothing
waits for it: calls are routed by what is in memory.

Leaves out: which of two bindings holds, which is the engine's to say.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from sipproxy.engine.structs import Binding
from sipproxy.store import keys
from sipproxy.store.errors import StoreError, next_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sipproxy.store.bindings import Bindings
    from sipproxy.store.connection import Command, Store

__all__ = ["Follower", "Taker"]

POLL_S = 0.1
LONE_S = 1.0  # without other nodes; a new one's customers can be called once its sign of life was seen, which takes as long
RETRY_S = 0.5  # after an error
CONFIRM_S = 15.0  # until all is read again to see whether what was lacking is gone: three heartbeats, time to write it again
BATCH = 500  # entries of one read, some 200 kB
CHUNK = 200  # bindings taken in one go, some milliseconds
START = b"0-0"

_decode = msgspec.msgpack.Decoder(Binding).decode


class Taker(Protocol):
    """Who is told of the bindings; called on the event loop."""

    def bindings_read(self, bindings: Sequence[tuple[str, Binding]], /) -> Iterable[tuple[str, str]]:
        """Some of the bindings of the store, of all of them. Returns account and key of those that are another node's here."""

    def all_read(self, count: int, elsewhere: set[tuple[str, str]], /) -> bool:
        """There were so many, and no others of other nodes than these accounts and keys. True when known ones are lacking, so
        that all is read again."""

    def binding_seen(self, user: str, binding: Binding, /) -> None: ...

    def binding_gone(self, user: str, key: str, at_ms: int, /) -> None: ...

    def unheard(self, since_ms: int | None, /) -> None:
        """Nothing can be read since then (UTC ms); None: again it can."""


class Follower:
    """`run` belongs to a TaskGroup. Times in seconds."""

    def __init__(
        self,
        store: Store,
        bindings: Bindings,
        node: str,
        taker: Taker,
        *,
        is_alone: Callable[[], bool] = lambda: False,
        utc_ms: Callable[[], int] | None = None,
    ) -> None:
        """`is_alone` tells whether no other node shows a sign of life."""
        self._store, self._bindings, self._taker = store, bindings, taker
        self._node = keys.encoded(node)
        self._is_alone = is_alone
        self._has_more = False  # the last read brought as much as one may
        self._utc_ms = utc_ms or (lambda: time.time_ns() // 1_000_000)
        self._last = START
        self._wanted = "start"  # why all has to be read; "" while the log is followed
        self._confirm_at: float | None = None
        self.rereads: Counter[str] = Counter()
        self.applied = 0
        self.undecodable = 0
        self.lag_ms = 0  # of the last entry applied, from its writing to its reading, by the writer's clock and ours
        self._read_at: float | None = None
        self._read_at_ms: int | None = None  # the same in UTC, before the read
        self._is_heard = True

    @property
    def is_following(self) -> bool:
        """Whether memory has what the store has."""
        return not self._wanted

    @property
    def behind_s(self) -> float:
        """Since the last read that succeeded; 0 before the first one."""
        return 0.0 if self._read_at is None else time.monotonic() - self._read_at

    @property
    def pause_s(self) -> float:
        """Until the next read."""
        return LONE_S if self._is_alone() and not self._has_more and not self._wanted else POLL_S

    def reread(self, reason: str) -> None:
        """Read all bindings again, at the next occasion."""
        self._wanted = self._wanted or reason

    async def run(self) -> None:
        while not self._store.closed:
            try:
                await self.step()
            except StoreError:
                self.reread("outage")
                self._hear(is_heard=False)
                await asyncio.sleep(RETRY_S)
            else:
                await asyncio.sleep(self.pause_s)

    async def step(self) -> None:
        """One read of the log, or of everything. Raises StoreError, after which everything has to be read."""
        if self._confirm_at is not None and time.monotonic() >= self._confirm_at:
            self.reread("lacking")
        began_ms = self._utc_ms()
        if self._wanted:
            await self._read_all()
        else:
            await self._read_log()
        self._read_at, self._read_at_ms = time.monotonic(), began_ms
        self._hear(is_heard=True)

    def _hear(self, *, is_heard: bool) -> None:
        if is_heard is not self._is_heard and self._read_at_ms is not None:
            self._is_heard = is_heard
            self._taker.unheard(None if is_heard else self._read_at_ms)

    async def _read_all(self) -> None:
        reason = self._wanted
        [newest] = await self._ask([("XREVRANGE", keys.BINDINGS_LOG, "+", "-", "COUNT", 1)])
        count, elsewhere = 0, set[tuple[str, str]]()
        async for page in self._bindings.pages():
            for start in range(0, len(page), CHUNK):
                elsewhere.update(self._taker.bindings_read(page[start : start + CHUNK]))
                await asyncio.sleep(0)  # messages come first
            count += len(page)
        lacking = self._taker.all_read(count, elsewhere)
        self._last = newest[0][0] if newest else START
        self._confirm_at = time.monotonic() + CONFIRM_S if lacking else None
        self.rereads[reason] += 1
        if self._wanted == reason:
            self._wanted = ""

    async def _read_log(self) -> None:
        log = keys.BINDINGS_LOG
        streams, oldest, newest = await self._ask(
            [
                ("XREAD", "COUNT", BATCH, "STREAMS", log, self._last),
                ("XRANGE", log, "-", "+", "COUNT", 1),
                ("XREVRANGE", log, "+", "-", "COUNT", 1),
            ]
        )
        if self._last != START and (not newest or _order(newest[0][0]) < _order(self._last)):
            self.reread("flushed")
            return
        entries = streams[0][1] if streams else []
        self._has_more = len(entries) >= BATCH
        if entries and self._last != START and oldest and _order(oldest[0][0]) > _order(self._last):
            self.reread("gap")  # what was cut off may have been more than the entry that was read last
            return
        for ident, fields in entries:
            self._last = ident
            self._apply(ident, dict(zip(fields[::2], fields[1::2], strict=True)))

    def _apply(self, ident: bytes, entry: dict[bytes, bytes]) -> None:
        if entry.get(b"node") == self._node:
            return
        try:
            user = keys.decoded(entry[b"user"])
            if b"b" in entry:
                self._taker.binding_seen(user, _decode(entry[b"b"]))
            else:
                self._taker.binding_gone(user, keys.decoded(entry[b"key"]), int(entry[b"gone"]))
        except (msgspec.MsgspecError, KeyError, ValueError):
            self.undecodable += 1
            return
        self.applied += 1
        self.lag_ms = max(0, self._utc_ms() - _order(ident)[0])

    async def _ask(self, commands: Sequence[Command]) -> list[list[Any]]:
        replies: list[list[Any]] = []
        found = await self._store.execute_all(commands)
        while found:
            reply = next_of(found)
            assert reply is None or isinstance(reply, list)
            replies.append(reply or [])
        return replies


def _order(ident: bytes) -> tuple[int, int]:
    """An entry's id as it is ordered: ms of the store's clock, and a number."""
    ms, _, number = ident.partition(b"-")
    return int(ms), int(number)
