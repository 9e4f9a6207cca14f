"""Which people looked at call detail records: a stream beside the records, written before a record is shown.

An access is two entries: one before the first record leaves, with who, command and filter, and one behind, with the number of
records; an access without the second was cut short or goes on. Entries are only ever appended; `forget` trims old ones. Left
out: who somebody is, which `sipproxy.commands.accesses` asks the machine, and programs of billing,
which read as consumer groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from cdr.entries import pairs
from cdr.place import beside

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Call = Callable[..., Awaitable[Any]]  # what `cdr.wire.Link.call` is

__all__ = ["Access", "Seen", "begin", "end", "forget", "recent"]

KEPT = 1_000_000  # entries
TEXT = 500  # characters of a filter

_encode = msgspec.msgpack.Encoder().encode


class Access(msgspec.Struct, frozen=True):
    """Who looks, from where, and at what. `login` is who logged in, before any `su`; `sudo_user` is what sudo says."""

    user: str
    uid: int
    login: str
    sudo_user: str
    host: str
    command: str
    filter: str


class Seen(NamedTuple):
    """An access as the log has it: when it began, by the store's clock, and how many records it saw; None while it goes on."""

    at_ms: int
    access: Access
    records: int | None


async def begin(call: Call, stream: str, access: Access) -> str:
    """Write down that somebody begins to look; its id. Raises what `call` raises: then nothing may be shown."""
    known = msgspec.structs.replace(access, filter=access.filter[:TEXT])
    reply = await call("XADD", beside(stream, "access"), "MAXLEN", "~", KEPT, "*", "d", _encode(known))
    return bytes(reply).decode("ascii") if isinstance(reply, bytes) else str(reply)


async def end(call: Call, stream: str, access_id: str, records: int) -> None:
    """Write down how many records were seen."""
    await call("XADD", beside(stream, "access"), "MAXLEN", "~", KEPT, "*", "of", access_id, "records", records)


async def recent(call: Call, stream: str, count: int) -> list[Seen]:
    """The last `count` accesses, oldest first. What no version wrote is left out."""
    found: list[Seen] = []
    counts: dict[str, int] = {}
    last = "+"
    while len(found) < count and (page := pairs(await call("XREVRANGE", beside(stream, "access"), last, "-", "COUNT", 500))):
        for entry_id, fields in page:
            if b"of" in fields:
                counts[fields[b"of"].decode("ascii", "replace")] = int(fields.get(b"records", b"0"))
            elif len(found) < count and (access := _access(fields.get(b"d", b""))) is not None:
                name = entry_id.decode("ascii")
                found.append(Seen(int(name.partition("-")[0]), access, counts.get(name)))
        last = "(" + page[-1][0].decode("ascii")
    return found[::-1]


async def forget(call: Call, stream: str, before_ms: int) -> int:
    """Delete what is older than `before_ms`; how many entries went."""
    return int(await call("XTRIM", beside(stream, "access"), "MINID", before_ms))


def _access(data: bytes) -> Access | None:
    try:
        return msgspec.msgpack.decode(data, type=Access)
    except (msgspec.MsgspecError, ValueError):
        return None
