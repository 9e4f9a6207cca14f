"""Entries of the stream: what one says of itself, and the record inside. One that is no record is a value with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cdr import codec

if TYPE_CHECKING:
    from cdr.facts import Record

__all__ = ["ADDRESSEE", "Fields", "Poison", "entry_of", "pairs", "pairs_of_streams"]

Fields = dict[bytes, bytes]
ADDRESSEE = b"for"  # the one group that a repeated entry is meant for, see `cdr.dead`


class Poison(NamedTuple):
    """An entry of the stream that is no record: its id in the stream, why, and what stood there."""

    entry_id: str
    reason: str
    fields: Fields


def entry_of(entry_id: bytes, fields: Fields) -> Record | Poison:
    """The record of one entry. What the entry says of itself has to agree with the record inside."""
    name = entry_id.decode("ascii", "replace")
    data = fields.get(b"d")
    if data is None:
        return Poison(name, "no field d", fields)
    try:
        record = codec.decode(data)
    except codec.CodecError as error:
        return Poison(name, str(error), fields)
    inside = {b"id": record.id, b"node": record.node, b"seq": str(record.seq), b"v": str(record.schema), b"type": record.type}
    for field, value in inside.items():
        if fields.get(field) != value.encode():
            return Poison(name, f"field {field.decode()} does not agree with the record", fields)
    return record


def pairs(entries: Any) -> list[tuple[bytes, Fields]]:
    """Ids and fields of a reply with entries. Those that a group still knows and the stream has no more are left out."""
    return [(entry[0], dict(zip(entry[1][::2], entry[1][1::2], strict=True))) for entry in entries or [] if entry and entry[1]]


def pairs_of_streams(reply: Any) -> list[tuple[bytes, Fields]]:
    """The entries of a reply that names streams, as XREAD and XREADGROUP give them for one stream."""
    if not reply:
        return []
    return pairs((list(reply.values()) if isinstance(reply, dict) else [found[1] for found in reply])[0])  # RESP3, RESP2
