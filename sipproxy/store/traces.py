"""Records of malicious calls in the store, and the log of who read them (TDDDG § 14).

`sp:trace` is a stream of `engine.actions.MaliciousCall`, apart from the CDRs, whose readers must not learn a hidden number;
`sp:trace:access` a stream of every reading. A record that the store does not take waits in memory, and is lost with the node;
one whose confirmation was lost is appended again, so that readers see it once by call and line. Nothing is read before the
entry about the reading is written. `forget` deletes what is older than it may be kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from sipproxy.engine.structs import MaliciousCall
from sipproxy.store import keys
from sipproxy.store.backlog import Backlog

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from redis.asyncio import Redis

    from sipproxy.store.connection import Command, Store

__all__ = ["Access", "Traces", "accesses", "forget", "read"]

LIMIT = 10_000  # records that wait for the store; an order concerns one line
KEPT = 1_000_000  # entries of either stream
PAGE = 1000

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(MaliciousCall).decode


class Access(NamedTuple):
    """One reading: who read, why, and what was asked for."""

    at_ms: int  # UTC, of the reader's clock
    who: str
    why: str
    line: str  # "" for all
    reference: str  # "" for all


class Traces:
    """Writes records. To be used from the event loop's thread."""

    def __init__(self, store: Store, *, limit: int = LIMIT) -> None:
        self._backlog: Backlog[tuple[str, str], MaliciousCall] = Backlog(store, self._command, limit=limit)

    @property
    def unwritten(self) -> int:
        """Records that the store has not confirmed."""
        return len(self._backlog)

    @property
    def dropped(self) -> dict[str, int]:
        """Records that were not written, by reason."""
        return self._backlog.dropped

    def keep(self, record: MaliciousCall) -> None:
        """Append the record when the store allows."""
        self._backlog.put((record.call, record.line), record)

    def _command(self, ident: tuple[str, str], record: MaliciousCall) -> Command:
        del ident
        return (b"XADD", keys.TRACES, b"MAXLEN", b"~", KEPT, b"*", b"d", _encode(record))


async def read(client: Redis, access: Access) -> list[MaliciousCall]:
    """The records of a line and order, oldest first, after `access` was written down. Raises RedisError, then with no record
    read; a record that cannot be decoded raises msgspec.DecodeError."""
    await client.xadd(keys.TRACE_ACCESS, {"d": _encode(access._asdict())}, maxlen=KEPT, approximate=True)
    found: dict[tuple[str, str], MaliciousCall] = {}
    start = "-"
    while page := await _entries(client.xrange(keys.TRACES, min=start, count=PAGE)):
        for _, fields in page:
            record = _decode(fields[b"d"])
            if access.line in ("", record.line) and access.reference in ("", record.reference):
                found.setdefault((record.call, record.line), record)
        start = "(" + page[-1][0].decode()
    return list(found.values())


async def forget(client: Redis, before_ms: int, *, dry_run: bool = False) -> dict[str, list[int]]:
    """Delete records and readings of before `before_ms`, by the store's clock; the stamps of what went. Raises RedisError."""
    gone: dict[str, list[int]] = {}
    for place, key in (("malicious calls", keys.TRACES), ("readings of malicious calls", keys.TRACE_ACCESS)):
        start = "-"
        while page := await _entries(client.xrange(key, min=start, max=str(max(0, before_ms - 1)), count=PAGE)):
            gone.setdefault(place, []).extend(int(entry_id.partition(b"-")[0]) for entry_id, _ in page)
            start = "(" + page[-1][0].decode()
        if place in gone and not dry_run:
            await client.xtrim(key, minid=str(before_ms), approximate=False)
    return gone


async def _entries(reply: Awaitable[Any]) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """Entries of a stream as a client that returns bytes gives them: ids and fields."""
    return list(await reply)


async def accesses(client: Redis, count: int) -> list[Access]:
    """The last `count` readings, oldest first. Raises RedisError."""
    page = await _entries(client.xrevrange(keys.TRACE_ACCESS, count=count))
    return [Access(**msgspec.msgpack.decode(fields[b"d"])) for _, fields in reversed(page)]
