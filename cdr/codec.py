"""Records and facts as MessagePack maps, with fields of newer schemas carried through.

Pure. A record is a map of field names; a field at its default is left out, so a default is part of the schema and never
changes. Names that `Record` does not know are kept in `Record.unknown` and written back as they came. A fact is a map
with `type` (admit, answer, alive, end); the record inside it is such a map, so that what the journal holds and what the
stream delivers are the same bytes. Framing and checksums are in `segment`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from cdr.facts import Admit, Alive, Answer, End, Fact, LineSlot, Record

__all__ = [
    "END_HEAD",
    "CodecError",
    "Head",
    "Scanned",
    "decode",
    "decode_fact",
    "encode",
    "encode_confirmed",
    "encode_fact",
    "head",
    "kind_of",
    "scan",
]


class CodecError(ValueError):
    """Bytes that are no record or fact, or values that cannot be written as one."""


class Head(msgspec.Struct, frozen=True):
    """What delivery needs to know of a record, readable from any schema."""

    id: str
    node: str
    seq: int = 0
    schema: int = 1
    type: str = "final"
    end_at_ms: int = 0


class Scanned(msgspec.Struct, frozen=True):
    """The outside of a journal entry: its kind, the call, the number, and the record's own bytes (empty where it has none)."""

    kind: str
    id: str = ""
    seq: int = 0
    record: bytes = b""
    end_at_ms: int = 0


class _AdmitEntry(msgspec.Struct, tag="admit", omit_defaults=True):
    record: msgspec.Raw
    boot: str = ""
    mono_ms: int = 0
    lines: tuple[str, ...] = ()
    slots: tuple[LineSlot, ...] = ()


class _AnyEntry(msgspec.Struct):
    type: str
    id: str = ""
    seq: int = 0
    record: msgspec.Raw = msgspec.Raw()


END_HEAD = b"\x82\xa4type\xa3end\xa6record"  # of an END's map of two fields; behind it stand its record's own bytes

_FIELDS = frozenset(Record.__struct_fields__) - {"unknown"}
_ENCODER = msgspec.msgpack.Encoder()
_RECORDS = msgspec.msgpack.Decoder(Record)
_MAPS = msgspec.msgpack.Decoder(dict[str, Any])
_ENTRIES = msgspec.msgpack.Decoder(_AnyEntry)
_HEADS = msgspec.msgpack.Decoder(Head)
_ADMITS = msgspec.msgpack.Decoder(_AdmitEntry)
_PARTS: msgspec.msgpack.Decoder[Answer | Alive] = msgspec.msgpack.Decoder(Answer | Alive)
_FAULTS = (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError)


def encode(record: Record) -> bytes:
    """The record as a MessagePack map. Raises CodecError for a text or number that MessagePack cannot hold."""
    try:
        if not record.unknown:
            return _ENCODER.encode(record)
        known: dict[str, Any] = _MAPS.decode(_ENCODER.encode(msgspec.structs.replace(record, unknown={})))
        return _ENCODER.encode({**record.unknown, **known})
    except _FAULTS as error:
        raise CodecError(f"record cannot be encoded: {error}") from error


def decode(data: bytes | memoryview) -> Record:
    """The record in `data`, of this schema or a newer one. Raises CodecError."""
    try:
        record = _RECORDS.decode(data)
        if not record.unknown and _ENCODER.encode(record) == data:
            return record  # Byte for byte what we would write: there is nothing in it that we do not know.
    except _FAULTS:
        pass  # It may be a field of a newer schema that is named like our own `unknown`; the way below tells.
    try:
        fields = _MAPS.decode(data)
        record = msgspec.convert({name: value for name, value in fields.items() if name in _FIELDS}, Record)
        record.unknown = {name: value for name, value in fields.items() if name not in _FIELDS}
    except _FAULTS as error:
        raise CodecError(f"no record: {error}") from error
    return record


def encode_fact(fact: Fact) -> bytes:
    """The fact as a MessagePack map. Raises CodecError like `encode`."""
    if isinstance(fact, End):
        return END_HEAD + encode(fact.record)
    try:
        if isinstance(fact, Admit) and fact.record.unknown:
            record = msgspec.Raw(encode(fact.record))
            return _ENCODER.encode(_AdmitEntry(record, fact.boot, fact.mono_ms, fact.lines, fact.slots))
        return _ENCODER.encode(fact)
    except _FAULTS as error:
        raise CodecError(f"fact cannot be encoded: {error}") from error


def encode_confirmed(seq: int) -> bytes:
    """The journal's own entry: all records up to `seq` are in the stream."""
    return _ENCODER.encode({"type": "confirmed", "seq": seq})


def kind_of(fact: Fact) -> str:
    """The `type` that a fact is written with."""
    return str(type(fact).__struct_config__.tag)


def decode_fact(data: bytes | memoryview) -> Fact:
    """The fact in `data`. Raises CodecError, also for a kind of fact that this version does not know."""
    try:
        entry = _ENTRIES.decode(data)
        if entry.type == "admit":
            admit = _ADMITS.decode(data)
            return Admit(decode(bytes(admit.record)), admit.boot, admit.mono_ms, admit.lines, admit.slots)
        if entry.type == "end":
            return End(decode(bytes(entry.record)))
        return _PARTS.decode(data)
    except _FAULTS as error:
        raise CodecError(f"no fact: {error}") from error


def scan(data: bytes | memoryview) -> Scanned:
    """The outside of a journal entry of any version, without building its record. Raises CodecError."""
    try:
        entry = _ENTRIES.decode(data)
        record = bytes(entry.record)
        if not record:
            return Scanned(entry.type, entry.id, entry.seq)
        head = _HEADS.decode(record)
        return Scanned(entry.type, head.id, head.seq, record, head.end_at_ms)
    except _FAULTS as error:
        raise CodecError(f"no journal entry: {error}") from error


def head(record: bytes) -> Head:
    """The head of an encoded record of any schema. Raises CodecError."""
    try:
        return _HEADS.decode(record)
    except _FAULTS as error:
        raise CodecError(f"no record: {error}") from error
