"""`cdr.verify` and `sipproxy cdr verify`: every gap, double and difference is named; what cannot be known is not fine."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest_asyncio
from program import run_in_thread

from cdr import export
from cdr.facts import End
from cdr.journal import Journal
from cdr.parquet import ParquetRows
from cdr.verify import Held, Holding, Result, read_journal, verify
from loadtest.billing import make_record, put
from loadtest.valkey import Valkey
from tests.programs import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from cdr.facts import Record

ROOT = Path(__file__).resolve().parents[2]


def holding(name: str, seqs: Iterable[int], *, floor: int = 0, top: int = 0, **options: Any) -> Holding:
    made = Holding(name, floor={"node1": floor}, top={"node1": top}, **options)
    for seq in seqs:
        made.add(make_record(seq))
    return made


def seen(result: Result) -> list[tuple[str, str, int, int, str]]:
    return [(one.kind, one.where, one.first, one.last, one.detail) for one in result.findings]


def test_verify_whole_places_are_fine_and_proven_to_the_last_common_number() -> None:
    result = verify([holding("export", range(1, 8), reader=True), holding("stream", range(1, 10))], {})
    assert (result.status, seen(result), result.proven) == (0, [], {"node1": 7})
    assert result.behind == [("export", "node1", 2)]


def test_verify_gaps_are_named_with_place_numbers_and_stamps() -> None:
    export_ = holding("export", [1, 2, 5, 6, 9], reader=True)
    result = verify([export_, holding("stream", [*range(1, 6), *range(7, 10)])], {})
    assert result.status == 1
    assert seen(result) == [
        ("gap", "export", 3, 4, "in stream"),
        ("gap", "export", 7, 8, "in stream"),
        ("gap", "stream", 6, 6, "in export"),
    ]
    assert (result.findings[0].after_ms, result.findings[0].before_ms) == (
        make_record(2).setup_at_ms,
        make_record(5).setup_at_ms,
    )
    assert result.proven == {"node1": 2}


def test_verify_number_that_a_reader_has_twice_is_double_or_differs_as_far_as_it_is_known() -> None:
    record = make_record(1)
    bare = Held(record.id, b"", 0, "german.csv", 2)  # a row that is not the whole record
    for files in ((bare, None), (None, bare)):
        export_ = Holding("export")
        for held in files:
            export_.add(record, "native.csv", 2) if held is None else export_.put("node1", 1, held)
        assert [(one.kind, one.detail.partition(",")[0]) for one in export_.findings] == [("double", f"record {record.id}")]
        stream = Holding("stream")
        stream.add(msgspec.structs.replace(record, billable_ms=7))
        found = seen(verify([export_, stream], {}))
        assert ("conflict", "export and stream", 1, 1, f"record {record.id} differs") in found, "compared with the whole one"
    twice = holding("export", [1])
    twice.add(msgspec.structs.replace(record, billable_ms=7))
    twice.add(msgspec.structs.replace(record, id="other"))
    assert [(one.kind, one.detail) for one in twice.findings] == [
        ("conflict", f"record {record.id} differs"), ("conflict", f"{record.id} and other"),
    ]  # fmt: skip


def test_verify_numbers_that_the_mark_tells_of_and_nobody_has_are_a_gap() -> None:
    result = verify([holding("stream", [1, 2], top=4)], {})
    assert seen(result) == [("gap", "stream", 3, 4, "nowhere")]


def test_verify_what_was_trimmed_cannot_be_known_but_where_a_reader_has_it() -> None:
    result = verify([holding("stream", range(5, 8), floor=4)], {})
    assert (result.status, result.unknown) == (2, {"node1": 5})
    assert verify([holding("stream", range(5, 8), floor=4)], {"node1": 4}).status == 0
    whole = verify([holding("export", range(1, 8), reader=True), holding("stream", range(5, 8), floor=4)], {})
    assert (whole.status, whole.unknown) == (0, {})
    late = verify([holding("export", range(5, 8), floor=4, reader=True), holding("stream", range(1, 8))], {})
    assert (late.status, late.unknown) == (2, {"node1": 5}), "the reader lacks what the stream has"


def test_verify_doubles_and_differences_are_named() -> None:
    twice = holding("export", [1, 2, 2, 3], reader=True)
    assert seen(verify([twice], {})) == [("double", "export", 2, 2, f"record {make_record(2).id}")]
    other = holding("stream", [1, 3])
    other.add(make_record(2, billable_ms=1))
    result = verify([holding("export", [1, 2, 3], reader=True), other], {})
    assert seen(result) == [("conflict", "export and stream", 2, 2, f"record {make_record(2).id} differs")]
    again = holding("stream", [1])
    again.add(make_record(2, id=make_record(1).id))
    assert seen(verify([again], {})) == [("double", "stream", 2, 2, f"record {make_record(1).id} is number 1 too")]


def test_verify_nothing_at_all_is_not_fine() -> None:
    assert verify([Holding("stream")], {}).status == 2


def test_journal_is_read_beside_the_node_and_knows_what_went(tmp_path: Path) -> None:
    journal = Journal(tmp_path, node="node1", segment_bytes=4096)
    journal.recover()
    for seq in range(1, 41):
        journal.append(End(make_record(seq)))
        journal.confirm(seq - 5)
    until = time.monotonic() + 60
    while not (found := read_journal(tmp_path)).floor["node1"] and time.monotonic() < until:
        time.sleep(0.02)  # a thread deletes the segments
    assert found.findings == []
    assert found.top == {"node1": 40}
    floor = found.floor["node1"]
    assert 0 < floor <= 35
    assert sorted(found.nodes["node1"]) == list(range(floor + 1, 41))
    assert verify([found, holding("stream", range(1, 41))], {}).status == 0
    journal.close()
    segment = sorted(tmp_path.glob("*.cdrj"))[0]
    data = bytearray(segment.read_bytes())
    data[400] ^= 1
    segment.write_bytes(data)
    damaged = read_journal(tmp_path)
    assert [one.kind for one in damaged.findings] == ["damage"]
    result = verify([damaged, holding("stream", range(1, 41))], {})
    assert {"damage", "gap"} == {one.kind for one in result.findings}


async def test_command_tells_gaps_for_people_and_programs_and_keeps_its_state(tmp_path: Path) -> None:
    async with Valkey() as store:
        config, state = tmp_path / "config.toml", tmp_path / "state"
        config.write_text(f'[node]\ndata_dir = "{tmp_path}"\n[store]\nurl = "{store.url}"\n')

        def verified(*words: str | Path, code: int) -> str:
            return run_in_thread("cdr", "verify", "-c", config, *words, code=code).stdout

        records = [make_record(seq) for seq in range(1, 31)]
        await put(store.client, [*records, msgspec.structs.replace(records[0], type="interim", seq=0)])
        for form in ("jsonl", "csv", "msgpack"):
            writer = export.Writer(form)
            (tmp_path / f"all.{form}").write_bytes(writer.head() + b"".join(map(writer.row, records)))
            told = verified(tmp_path / f"all.{form}", "--state", state, code=0)
            assert told == "nothing is missing, double or different: 30 in export, 0 in journal, 30 in stream\n"
        assert json.loads(state.read_text()) == {"node1": 30}
        writer = export.Writer("jsonl")
        (tmp_path / "some.jsonl").write_bytes(b"".join(map(writer.row, records[:10] + records[12:])))
        told = verified(tmp_path / "some.jsonl", code=1)
        at = "2026-09-21T14:13:20+00:00"
        assert told == f"node1 11 to 12: missing in export: in stream, calls between {at} and {at}\n"
        answer = json.loads(verified(tmp_path / "some.jsonl", "--json", code=1))
        assert (answer["status"], answer["findings"][0]["first"], answer["proven_to"]) == ("wrong", 11, {"node1": 10})
        (tmp_path / "ids").write_text("\n".join(record.id for record in records if record.seq != 7))
        assert verified("--ids", tmp_path / "ids", code=1).startswith("node1 7: missing in ids: in stream")
        await store.client.xtrim("sp:cdr", maxlen=6, approximate=False)
        assert verified(code=2) == "node1: cannot be known below 26\n"
        verified("--since", "node1=26", code=0)
        verified("--since", "26", code=2)
        verified(tmp_path / "there-is-none.jsonl", code=2)
        command = (sys.executable, "-m", "sipproxy", "cdr", "verify", "-c", str(config))
        status, output, _ = await run(*command, cwd=ROOT)
        assert (status, output) == (2, b"node1: cannot be known below 26\n")


FORMS = [
    *(
        (profile, form)
        for profile in ("native", "asterisk", "kamailio", "cgrates")
        for form in ("csv", "jsonl", "msgpack", "parquet")
    ),
    ("german-csv", "csv"),
]


def written(folder: Path, profile: str, form: str, records: list[Record], packed: str = "") -> Path:
    rows = ParquetRows(profile) if form == "parquet" else export.Writer(form, profile)
    data = rows.head() + b"".join(map(rows.row, records)) + rows.foot()
    pack: Any = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[packed]
    file = folder / f"{profile}.{form}{packed}"
    file.write_bytes(pack(data))
    return file


class Books:
    """A store with 12 records of two nodes, and `cdr verify` on it."""

    def __init__(self, store: Valkey, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.config = folder / "config.toml"
        self.config.write_text(f'[node]\ndata_dir = "{folder}"\n[store]\nurl = "{store.url}"\n')
        made = [make_record(seq, call_id="@=1+1\r\n", to_tag=f"t{seq}") for seq in range(1, 9)]
        made += [make_record(seq, node="node2", id=f"other-{seq}", call_id=f"c{seq}") for seq in range(1, 4)]
        forwarded = msgspec.structs.replace(made[0], seq=9, id="forwarded")  # same Call-ID, same tags
        self.records = [*made, forwarded]

    def told(self, *words: str | Path, code: int) -> list[str]:
        return run_in_thread("cdr", "verify", "-c", self.config, *words, code=code).stdout.splitlines()

    def fault(self, *words: str | Path) -> str:
        """What is said where nothing can be checked."""
        done = run_in_thread("cdr", "verify", "-c", self.config, *words, code=2)
        assert done.stdout == ""
        return done.stderr


@pytest_asyncio.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    async with Valkey() as store:
        found = Books(store, tmp_path)
        await put(store.client, found.records)
        yield found


async def test_command_reads_every_profile_and_form_and_finds_what_each_lacks(books: Books, tmp_path: Path) -> None:
    fine = "nothing is missing, double or different: 12 in export, 0 in journal, 12 in stream"
    for number, (profile, form) in enumerate(FORMS):
        file = written(tmp_path, profile, form, books.records, ("", ".gz", ".bz2", ".xz")[number % 4])
        assert books.told(file, code=0) == [fine], file
        lacking = [record for record in books.records if record.id not in (make_record(5).id, "other-2")]
        lines = books.told(written(tmp_path, profile, form, lacking), code=1)
        assert [line.partition(",")[0] for line in lines] == [
            "node1 5: missing in export: in stream",
            "node2 2: missing in export: in stream",
        ], (profile, form)
        twice = written(tmp_path, profile, form, [*books.records, books.records[0]])
        lines = books.told(twice, code=1)
        assert len(lines) == 1, (profile, form, lines)
        line = 13 + (form == "csv" and profile != "asterisk")
        assert lines[0].startswith(f"{twice}:{line}: node1 "), (profile, form, lines)
        assert "double in export" in lines[0]
        assert f"also at {twice}:" in lines[0]


async def test_command_names_what_no_record_is_called(books: Books, tmp_path: Path) -> None:
    foreign = make_record(99, id="forged", call_id="forged")
    for profile, form in FORMS:
        if profile in ("native", "german-csv"):
            continue
        file = written(tmp_path, profile, form, [foreign, *books.records])
        name = "with the Call-ID forged" if profile == "kamailio" else "forged"
        line = 1 + (form == "csv" and profile != "asterisk")
        assert books.told(file, code=1) == [f"{file}:{line}: stranger in export: there is no record {name}"]
    ids = tmp_path / "ids"
    ids.write_text("\n".join(["x", *(record.id for record in books.records), "", "y", "x"]))
    assert sorted(books.told("--ids", ids, code=1)) == [
        f"{ids}:15: stranger in ids: there is no record y",
        f"{ids}:16: double in ids: record x, also at {ids}:1",
        f"{ids}:1: stranger in ids: there is no record x",
    ]


async def test_command_ids_of_records_that_went_lawfully_are_no_fault_but_no_more_of_them(books: Books, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    ids.write_text("\n".join(record.id for record in books.records))
    await books.store.client.xtrim("sp:cdr", maxlen=10, approximate=False)  # node1 keeps 3 and above
    lines = books.told("--ids", ids, "--since", "node1=3", code=0)
    gone = "no record node1-00000000000{} is here any more; as many have gone lawfully"
    assert lines[:2] == [f"{ids}:{number}: {gone.format(number)}" for number in (1, 2)]
    ids.write_text("\n".join(["forged", *(record.id for record in books.records)]))
    lines = books.told("--ids", ids, "--since", "node1=3", code=1)
    assert lines[0] == (
        f"{ids}:1: stranger in ids: there is no record forged, and no more than 2 can have gone from all places"
    )
    assert len(lines) == 3, "which of the three it is nobody can tell"
    answer = json.loads("".join(books.told("--ids", ids, "--since", "node1=3", "--json", code=1)))
    assert [(one["kind"], one["file"], one["line"]) for one in answer["findings"]] == [
        ("stranger", str(ids), number) for number in (1, 2, 3)
    ]


async def test_command_that_cannot_check_ends_with_2_and_names_file_and_line(books: Books, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    good = written(tmp_path, "native", "jsonl", books.records).read_bytes()
    bad.write_bytes(good + b'{"id":')
    assert books.fault(bad).startswith(f"{bad}: line 13: no record")
    bad.write_bytes(good + b'{"a": 1}\n')
    assert books.fault(bad).startswith(f"{bad}: row 13: no column of a known profile")
    packed = tmp_path / "cut.jsonl.gz"
    packed.write_bytes(gzip.compress(good)[:-9])
    assert books.fault(packed).startswith(f"{packed}: cannot be unpacked")
    table = tmp_path / "cut.parquet"
    table.write_bytes(written(tmp_path, "native", "parquet", books.records).read_bytes()[:-9])
    assert books.fault(table).startswith(f"{table}: row 1: no Parquet file of ours")
    sheet = tmp_path / "sheet.csv"
    sheet.write_bytes(b"Name;Preis\r\n")
    assert books.fault(sheet).startswith(f"{sheet}: row 1: the header of an export is missing")
    (tmp_path / "there.csv").mkdir()
    assert books.fault(tmp_path / "there.csv") == f"{tmp_path / 'there.csv'}: Is a directory\n"
    assert "the name must end in one of jsonl, csv, msgpack, parquet" in books.fault(tmp_path / "calls.txt")
    (tmp_path / "ids").write_bytes(b"a\nb\n\xff\n")
    assert books.fault("--ids", tmp_path / "ids") == f"{tmp_path / 'ids'}:3: not UTF-8\n"
    (tmp_path / "state").write_text("[]")
    assert books.fault("--state", tmp_path / "state").startswith(f"{tmp_path / 'state'}: no state of an earlier run")
    done = run_in_thread("cdr", "verify", "-c", books.config, "--state", tmp_path / "none" / "state", code=2)
    assert done.stderr == f"{tmp_path / 'none' / 'state'}: No such file or directory\n"
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "0.cdrj").mkdir()
    assert books.fault() == f"{tmp_path / 'journal' / '0.cdrj'}: Is a directory\n"
    (tmp_path / "journal" / "0.cdrj").rmdir()
    text = books.config.read_text()
    books.config.write_text(f"{text}deadline = 3\n")
    assert books.fault().startswith(f"{books.config}:5: store.deadline: unknown key")
    books.config.write_text(text.replace(books.store.url, "unix:///nowhere"))
    assert "no store answers on unix:///nowhere" in books.fault()
    books.config.unlink()
    assert books.fault().startswith(f"{books.config}: cannot be read")
    books.config.write_text(text)
    await books.store.client.delete("sp:cdr")
    await books.store.client.set("sp:cdr", "x")
    assert "WRONGTYPE" in books.fault()
