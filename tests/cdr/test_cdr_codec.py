"""cdr.codec: round trips, fields of newer schemas, and an independent MessagePack as judge."""

from __future__ import annotations

import contextlib

import msgpack
import msgspec
import pytest
from cdr_samples import FIELDS, UNKNOWN, draft, ended, facts, records
from hypothesis import given
from hypothesis import strategies as st

from cdr import codec
from cdr.facts import Admit, Answer, End, Fact, Record


@given(records())
def test_record_round_trip_keeps_every_field(record: Record) -> None:
    assert codec.decode(codec.encode(record)) == record


@given(records())
def test_record_read_by_an_independent_decoder_is_a_flat_map(record: Record) -> None:
    got = msgpack.unpackb(codec.encode(record), strict_map_key=False)
    empty = Record(id="", node="", direction="incoming")
    expected = {
        name: getattr(record, name)
        for name in FIELDS
        if name in ("id", "node", "direction") or getattr(record, name) != getattr(empty, name)
    }
    assert got == {**expected, **record.unknown}


@given(records().map(lambda record: msgspec.structs.replace(record, unknown={})), UNKNOWN)
def test_record_of_a_newer_schema_survives_decode_and_encode(record: Record, news: dict[str, object]) -> None:
    """Written by somebody else, in another order and with every default spelled out."""
    fields = {**news, **{name: getattr(record, name) for name in sorted(FIELDS)}}
    got = codec.decode(msgpack.packb(fields))
    assert got.unknown == news
    assert msgspec.structs.replace(got, unknown={}) == record
    assert codec.decode(codec.encode(got)) == got
    again = msgpack.unpackb(codec.encode(got), strict_map_key=False)
    assert {name: value for name, value in again.items() if name not in FIELDS} == news


def test_record_field_named_unknown_in_a_newer_schema_is_carried() -> None:
    data = msgpack.packb({"id": "a", "node": "n", "direction": "outgoing", "unknown": 5})
    record = codec.decode(data)
    assert record.unknown == {"unknown": 5}
    assert msgpack.unpackb(codec.encode(record))["unknown"] == 5


@given(facts())
def test_fact_round_trip_keeps_every_field(fact: Fact) -> None:
    data = codec.encode_fact(fact)
    assert codec.decode_fact(data) == fact
    seen = codec.scan(data)
    assert seen.kind == codec.kind_of(fact)
    record = fact.record if isinstance(fact, Admit | End) else None
    assert seen.id == (record.id if record is not None else fact.id)  # type: ignore[union-attr]
    assert seen.record == (codec.encode(record) if record is not None else b"")


def test_fact_admit_of_a_newer_schema_keeps_unknown_fields() -> None:
    data = msgpack.packb({"type": "admit", "record": {"id": "a", "node": "n", "direction": "outgoing", "news": [1]}})
    fact = codec.decode_fact(data)
    assert isinstance(fact, Admit)
    assert fact.record.unknown == {"news": [1]}


def test_fact_answer_with_unknown_field_is_read() -> None:
    fields = {**msgspec.to_builtins(Answer("a", 1, 2, None, 200, "t", "", "", "", [])), "news": {"x": 1}}
    assert codec.decode_fact(msgpack.packb(fields)) == Answer("a", 1, 2, None, 200, "t", "", "", "", [])


@pytest.mark.parametrize("function", [codec.decode, codec.decode_fact, codec.scan, codec.head])
@given(data=st.binary(max_size=60))
def test_decode_of_any_bytes_raises_only_codec_error(function: object, data: bytes) -> None:
    with contextlib.suppress(codec.CodecError):
        function(data)  # type: ignore[operator]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        codec.encode(draft())[:-1],
        codec.encode(draft()) + b"\x00",
        msgpack.packb({"id": "a", "node": "n", "direction": "sideways"}),
        msgpack.packb({"id": "a", "node": "n", "direction": "outgoing", "seq": "1"}),
        msgpack.packb({"id": "a", "node": "n", "direction": "outgoing", "duration_ms": 1.5}),
        b"\x83\xa2id\xa1\xff\xa4node\xa1n\xa9direction\xa8outgoing",
        b"\x84\xa2id\xa1a\xa4node\xa1n\xa9direction\xa8outgoing\x90\x01",
    ],
)
def test_decode_of_what_is_no_record_raises_codec_error(data: bytes) -> None:
    with pytest.raises(codec.CodecError):
        codec.decode(data)


def test_decode_fact_of_an_unknown_kind_raises_codec_error() -> None:
    with pytest.raises(codec.CodecError):
        codec.decode_fact(msgpack.packb({"type": "interim", "id": "a"}))
    assert codec.scan(msgpack.packb({"type": "interim", "id": "a"})).kind == "interim"


@pytest.mark.parametrize("record", [draft(dialled="\ud800"), draft(cause=2**64), draft(unknown={"x": object()})])
def test_encode_of_what_messagepack_cannot_hold_raises_codec_error(record: Record) -> None:
    for encode in (lambda: codec.encode(record), lambda: codec.encode_fact(End(record))):
        with pytest.raises(codec.CodecError):
            encode()


def test_head_of_a_newer_schema_is_read_without_its_record() -> None:
    data = msgpack.packb({"id": "a", "node": "n", "seq": 9, "schema": 2, "direction": "sideways"})
    assert codec.head(data) == codec.Head("a", "n", 9, 2, "final")
    with pytest.raises(codec.CodecError):
        codec.decode(data)


def test_scan_of_an_end_gives_the_bytes_that_the_stream_gets() -> None:
    fact = ended(3)
    assert codec.scan(codec.encode_fact(fact)) == codec.Scanned(
        "end", "call-3", 3, codec.encode(fact.record), fact.record.end_at_ms
    )
