"""cdr.export: records in every form and profile, and back from the native one."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgpack
import msgspec
import pytest
from cdr_samples import draft, records
from hypothesis import given, settings
from hypothesis import strategies as st

from cdr import codec, neutral
from cdr.columns import PROFILES
from cdr.export import ExportError, Writer, read
from cdr.skip import end_of

if TYPE_CHECKING:
    from cdr.facts import Record

PAIRS = [
    (form, name) for name in PROFILES for form in ("csv", "jsonl", "msgpack") if not (PROFILES[name].csv_only and form != "csv")
]
SUMMER_MS = 1_782_864_000_000  # 2026-07-01 00:00:00 UTC, 02:00 in Germany

ANSWERED = draft(
    "n1-0001",
    seq=7,
    line="V1001",
    account="v1001-1",
    profile="velbert",
    trunk="carrier",
    calling="+492051555101",
    presented="sip:02051555101@sip.example",
    dialled="sip:03023125001@sip.example;user=phone",
    canonical="+493023125001",
    destination_class="geographic",
    tariff_prefix="4930",
    call_id="abc@10.0.0.1",
    from_tag="ft",
    to_tag="tt",
    source="192.0.2.7:5060",
    user_agent="=cmd|'/c calc'!A1",
    setup_at_ms=SUMMER_MS,
    ringing_at_ms=SUMMER_MS + 1500,
    answer_at_ms=SUMMER_MS + 4000,
    end_at_ms=SUMMER_MS + 65_234,
    duration_ms=65_234,
    billable_ms=61_234,
    status=200,
    cause=16,
    released_by="caller",
    end_reason="normal",
    verdict="allow",
    rule="default",
    media=["audio"],
)


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def written(form: str, profile: str, *rows: Record) -> bytes:
    writer = Writer(form, profile)
    return writer.head() + b"".join(map(writer.row, rows))


def rows_of(profile: str, *rows: Record, separator: str = ",") -> list[list[str]]:
    return list(csv.reader(io.StringIO(written("csv", profile, *rows).decode("utf-8-sig"), newline=""), delimiter=separator))


def comparable(record: Record) -> Record:
    """What a text form can hold: the fields of this schema."""
    return msgspec.structs.replace(record, unknown={})


@pytest.mark.parametrize("form", ["csv", "jsonl", "msgpack"])
@settings(max_examples=40)
@given(st.lists(records(), max_size=4), st.integers(1, 400))
def test_read_gives_native_records_back(form: str, given_records: list[Record], size: int) -> None:
    data = written(form, "native", *given_records)
    back = list(read(pieces(data, size), form))
    if form == "msgpack":
        assert back == given_records
    else:
        assert list(map(comparable, back)) == list(map(comparable, given_records))


@pytest.mark.parametrize(("form", "profile"), PAIRS)
@settings(max_examples=20)
@given(records())
def test_row_of_any_record_is_one_row_without_formulas(form: str, profile: str, record: Record) -> None:
    data = written(form, profile, record)
    if form == "csv":
        found = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=PROFILES[profile].separator))
        assert len(found) == 1 + PROFILES[profile].header
        assert {len(row) for row in found} == {len(PROFILES[profile].columns)}
        texts = {column.name for column in PROFILES[profile].columns if isinstance(column.value(record), str)}
        for column, cell in zip(PROFILES[profile].columns, found[-1], strict=True):
            assert column.name not in texts or neutral.restore(cell) == column.value(record)
            assert column.name not in texts or cell[:1] not in {"=", "@", "\t", "\r"}
    elif form == "jsonl":
        assert data.count(b"\n") == 1
        assert set(json.loads(data)) == {column.name for column in PROFILES[profile].columns}
    else:
        unpacker = msgpack.Unpacker(strict_map_key=False, timestamp=3)
        unpacker.feed(data)
        assert len(list(unpacker)) == 1


def test_row_text_forms_neutralise_and_msgpack_does_not() -> None:
    evil = msgspec.structs.replace(ANSWERED, user_agent="=1+1\r\n\x1b[2J", diversions=["=2"], unknown={"=k": ["@x"]})
    assert msgpack.unpackb(written("msgpack", "native", evil))["user_agent"] == "=1+1\r\n\x1b[2J"
    line = json.loads(written("jsonl", "native", evil))
    assert line["user_agent"] == "'=1+1\\u000d\\u000a\\u001b[2J"
    assert (line["diversions"], line["unknown"]) == (["'=2"], {"'=k": ["'@x"]})
    assert b"\x1b" not in written("csv", "native", evil)
    assert list(read([written("jsonl", "native", evil)], "jsonl")) == [evil]
    assert list(read([written("csv", "native", evil)], "csv")) == [evil]


def test_row_asterisk_is_a_line_of_master_csv() -> None:
    assert written("csv", "asterisk", ANSWERED).decode() == (
        '"V1001","+492051555101","+493023125001","outgoing","sip:02051555101@sip.example","SIP/v1001-1-n1-0001",'
        '"SIP/carrier-n1-0001","Dial","sip:03023125001@sip.example;user=phone","2026-07-01 00:00:00","2026-07-01 00:00:04",'
        '"2026-07-01 00:01:05",65,61,"ANSWERED","DOCUMENTATION","n1-0001","normal"\r\n'
    )


@pytest.mark.parametrize(
    ("changes", "disposition"),
    [
        ({"status": 486, "end_reason": "rejected"}, "BUSY"),
        ({"status": 480, "cause": 34, "end_reason": "refused"}, "CONGESTION"),
        ({"status": 503, "end_reason": "unreachable"}, "CONGESTION"),
        ({"status": 487, "end_reason": "cancelled"}, "NO ANSWER"),
        ({"status": 403, "end_reason": "refused"}, "FAILED"),
    ],
)
def test_row_asterisk_disposition_of_unanswered(changes: dict[str, object], disposition: str) -> None:
    record = msgspec.structs.replace(ANSWERED, answer_at_ms=None, **changes)
    assert rows_of("asterisk", record)[0][14] == disposition


def test_row_kamailio_and_cgrates_name_their_fields() -> None:
    kamailio = dict(zip(*rows_of("kamailio", ANSWERED), strict=True))
    assert {
        name: kamailio[name] for name in ("method", "callid", "sip_code", "sip_reason", "time", "duration", "dst_ouser")
    } == {
        "method": "INVITE",
        "callid": "abc@10.0.0.1",
        "sip_code": "200",
        "sip_reason": "OK",
        "time": "2026-07-01 00:00:04",
        "duration": "61.234",
        "dst_ouser": "03023125001",
    }
    cgrates = dict(zip(*rows_of("cgrates", ANSWERED), strict=True))
    assert (cgrates["OriginID"], cgrates["Account"], cgrates["Usage"], cgrates["AnswerTime"], cgrates["Cost"]) == (
        "n1-0001",
        "V1001",
        "61.234s",
        "2026-07-01T00:00:04Z",
        "-1",
    )


def test_row_german_has_mark_semicolon_comma_and_wall_clock() -> None:
    assert written("csv", "german-csv", ANSWERED).startswith(b"\xef\xbb\xbfKennung;Knoten;")
    row = dict(zip(*rows_of("german-csv", ANSWERED, separator=";"), strict=True))
    assert (row["Beginn"], row["Zeitzone"], row["Gesprächsdauer (s)"], row["Rufnummer A"]) == (
        "01.07.2026 02:00:00",
        "MESZ",
        "61,234",
        "+492051555101",
    )
    hour_twice = [msgspec.structs.replace(ANSWERED, setup_at_ms=at) for at in (1_792_888_200_000, 1_792_891_800_000)]
    rows = rows_of("german-csv", *hour_twice, separator=";")
    assert [(row[13], row[14]) for row in rows[1:]] == [("25.10.2026 02:30:00", "MESZ"), ("25.10.2026 02:30:00", "MEZ")]


@pytest.mark.parametrize(
    ("form", "profile", "says"),
    [
        ("xml", "native", "known are jsonl, csv, msgpack"),
        ("csv", "excel", "known are native"),
        ("jsonl", "german-csv", "--format csv"),
    ],
)
def test_writer_of_what_there_is_not_says_what_there_is(form: str, profile: str, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        Writer(form, profile)


@pytest.mark.parametrize(
    ("form", "data", "says"),
    [
        ("jsonl", b'{"id":"a"}\n', "row 1"),
        ("jsonl", b"[]\n", "line 1"),
        ("csv", b"a,b\r\n", "header"),
        ("csv", b"id,node,direction\r\nx,n1\r\n", "row 2: 2 cells"),
        ("csv", b"id,node,direction,seq\r\nx,n1,outgoing,many\r\n", "row 2: 'many' is no number"),
        ("csv", b"id,node,direction,media\r\nx,n1,outgoing,[\r\n", "row 2: '\\[' is no JSON"),
        ("csv", b"\xff\n", "UTF-8"),
        ("msgpack", codec.encode(ANSWERED)[:-1], "record 1: cut off"),
        ("msgpack", b"\xc1", "record 1: byte 0xc1"),
        ("xml", b"", "no format"),
    ],
)
def test_read_of_what_is_no_export_says_where(form: str, data: bytes, says: str) -> None:
    with pytest.raises(ExportError, match=says):
        list(read([data], form))


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(max_size=9), inner, max_size=20),
)


@settings(max_examples=40)
@given(st.lists(TREES, min_size=1, max_size=3))
def test_end_of_finds_the_end_of_every_value(values: list[object]) -> None:
    parts = [msgpack.packb(value) for value in values]
    data, ends, position = b"".join(parts), [], 0
    while position < len(data):
        end = end_of(data, position)
        assert end is not None
        ends.append(end)
        assert end_of(data[: end - 1], position) is None
        position = end
    assert ends == [sum(map(len, parts[: index + 1])) for index in range(len(parts))]


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65535, 65536])
def test_end_of_lengths_of_every_width(size: int) -> None:
    for value in ("x" * size, b"x" * size, [1] * size, dict.fromkeys(range(size)), msgpack.ExtType(5, b"x" * size)):
        data = msgpack.packb(value)
        assert end_of(data, 0) == len(data)
        assert end_of(data[:-1], 0) is None
