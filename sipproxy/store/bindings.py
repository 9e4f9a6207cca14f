"""The store's copy of the location service, for the next start and for the other nodes (design §6, §8).

One hash per account, binding key -> msgpack of `engine.location.Binding` with field names, so that fields may be added.
Written behind: a REGISTER is answered from memory, and its binding follows. While the store is away the latest state of
each binding waits, at most `limit` of them, and is written when it is back. A hash lives until its last binding is dead.

Several nodes write. The latest REGISTER stays, whoever's write comes last (the rule is `engine.location.supersedes`), and each
change is told in a log by the same script, which `store.following` reads.

Leaves out: expiry and the other rules of RFC 3261 §10.3, which are the engine's; bindings are read at the start, not per call.
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import msgspec

from sipproxy.engine.structs import Binding
from sipproxy.store import keys
from sipproxy.store.backlog import Backlog
from sipproxy.store.connection import State
from sipproxy.store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from sipproxy.store.connection import Command, Store

__all__ = ["Bindings"]

_PAGE = 1000  # keys per SCAN, and hashes per pipeline
_LINGER_S = 0.05  # at 100 REGISTERs a second five leave together, for which node and store are woken once
_GRACE_MS = 60_000  # a hash outlives its last binding by this, for clocks that differ

_LOGGED = 20_000  # entries of the log: minutes of a network whose 200,000 contacts are refreshed twice an hour

# KEYS the account's bindings, the log; ARGV binding key, writing node, account, log length, UTC ms of the change, and for a
# binding itself, its Call-ID, its CSeq, ms from now until it is dead. The hash never dies earlier. 0: what is there, of another
# node, is newer.
_WRITE = b"""
local held, at = redis.call('HGET', KEYS[1], ARGV[1]), tonumber(ARGV[5])
if held then
  local read, was = pcall(cmsgpack.unpack, held)
  if read and type(was) == 'table' and was.node ~= ARGV[2] then
    local since = tonumber(was.at_ms) or 0
    local newer = since > at or (since == at and tostring(was.node) > ARGV[2])
    if ARGV[6] and was.call_id == ARGV[7] and was.cseq ~= tonumber(ARGV[8]) then newer = was.cseq > tonumber(ARGV[8]) end
    if newer then return 0 end
  end
end
local told = {'node', ARGV[2], 'user', ARGV[3], 'key', ARGV[1]}
if ARGV[6] then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[6])
  if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[9]) then redis.call('PEXPIRE', KEYS[1], ARGV[9]) end
  if held == ARGV[6] then return 1 end
  told[7], told[8] = 'b', ARGV[6]
else
  if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 1 end
  told[7], told[8] = 'gone', ARGV[5]
end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', unpack(told))
return 1
"""
_WRITE_SHA = hashlib.sha1(_WRITE, usedforsecurity=False).hexdigest().encode()
# Removes a dead binding unless somebody has written another in its place meanwhile.
_PRUNE = b"if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end return 0"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Binding).decode


class Bindings:
    """See the module. To be used from the event loop's thread."""

    def __init__(
        self,
        store: Store,
        *,
        node: str = "",
        limit: int = 200_000,
        logged: int = _LOGGED,
        linger_s: float = _LINGER_S,
        finish: Callable[[str, Binding], Binding] | None = None,
        utc_ms: Callable[[], int] | None = None,
    ) -> None:
        """`node` is who writes. `limit` bounds the bindings that wait for the store, `logged` the entries of the log; `finish`
        makes of an account's binding what the other nodes are to read, when it is sent; `utc_ms` is the clock that expiries are
        compared with."""
        self._store = store
        self._node = keys.encoded(node)
        self._logged = logged
        self._finish = finish or (lambda _, binding: binding)
        self._utc_ms = utc_ms or (lambda: time.time_ns() // 1_000_000)
        self._script_known = False
        self._backlog: Backlog[tuple[str, str], Binding | int] = Backlog(
            store, self._command, limit=limit, linger_s=linger_s, observe=self._observe
        )
        self.undecodable = 0
        store.on_state(self._on_state)

    @property
    def unwritten(self) -> int:
        """Bindings that the store has not confirmed."""
        return len(self._backlog)

    @property
    def dropped(self) -> dict[str, int]:
        """Bindings that were not written, by reason; they are in memory and come back with their next refresh."""
        return self._backlog.dropped

    def save(self, user: str, binding: Binding) -> None:
        """Write the binding when the store allows. A later `save` or `remove` of the same key replaces it."""
        self._backlog.put((user, binding.key), binding)

    def save_all(self, bindings: Iterable[tuple[str, Binding]]) -> None:
        """Write all that memory holds, after the store has lost its copy; what waits already is not overtaken."""
        for user, binding in bindings:
            if (user, binding.key) not in self._backlog:
                self._backlog.put((user, binding.key), binding)

    def remove(self, user: str, binding_key: str, at_ms: int) -> None:
        """Remove what was registered until `at_ms` (UTC) from the store when it allows."""
        self._backlog.put((user, binding_key), at_ms)

    async def pages(self) -> AsyncIterator[list[tuple[str, Binding]]]:
        """All unexpired bindings of all accounts, some at a time, so that never all of them are in memory twice; the others are
        cleaned up. One may come twice. Raises StoreError."""
        cursor: bytes = b"0"
        while True:
            page = await self._store.execute("SCAN", cursor, "MATCH", keys.BINDINGS_PATTERN, "COUNT", _PAGE)
            assert isinstance(page, list)
            cursor, names = page
            found: list[tuple[str, Binding]] = []
            for key, fields in zip(names, await self._store.execute_all([("HGETALL", name) for name in names]), strict=True):
                if isinstance(fields, StoreError):
                    raise fields
                user = keys.bindings_user(key)
                found += [(user, binding) for binding in self._alive(key, fields)]
            yield found
            if cursor == b"0":  # SCAN may return a key twice
                return

    def _alive(self, key: bytes, fields: object) -> list[Binding]:
        assert isinstance(fields, list)
        now_ms = self._utc_ms()
        alive: list[Binding] = []
        for name, value in zip(fields[::2], fields[1::2], strict=True):
            try:
                binding = _decode(value)
            except (msgspec.MsgspecError, ValueError):  # ValueError: text that is not UTF-8
                self.undecodable += 1  # left alone: a newer version may have written it
                continue
            if binding.expires_at_ms > now_ms:
                alive.append(binding)
            else:
                self._store.submit((b"EVAL", _PRUNE, 1, key, name, value))
        return alive

    def _command(self, ident: tuple[str, str], wish: Binding | int) -> Command:
        """Write the binding, or remove what was registered until then (UTC ms)."""
        user, field = keys.encoded(ident[0]), keys.encoded(ident[1])
        head: Command = (b"EVALSHA", _WRITE_SHA) if self._script_known else (b"EVAL", _WRITE)
        head = (*head, 2, keys.bindings(ident[0]), keys.BINDINGS_LOG, field, self._node, user, self._logged)
        if isinstance(wish, int):
            return (*head, wish)
        left_ms = wish.expires_at_ms - self._utc_ms()
        if left_ms <= 0:  # it died while it waited
            return (*head, wish.at_ms)
        written = _encode(self._finish(ident[0], wish))
        return (*head, wish.at_ms, written, keys.encoded(wish.call_id), wish.cseq, left_ms + _GRACE_MS)

    def _observe(self, _: Binding | int, reply: object) -> None:
        if isinstance(reply, StoreError):
            self._script_known = self._script_known and reply.name != "NOSCRIPT"
        else:
            self._script_known = True

    def _on_state(self, state: State, reason: str) -> None:
        del reason
        if state is State.AWAY:
            self._script_known = False  # who comes back may be another server
