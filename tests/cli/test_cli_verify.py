"""`cdr.verify` and `sipproxy cdr verify`: every gap, double and difference is named; what cannot be known is not fine."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from program import run_in_thread

from cdr import export
from cdr.facts import End
from cdr.journal import Journal
from cdr.verify import Holding, Result, read_journal, verify
from loadtest.billing import make_record, put
from loadtest.valkey import Valkey

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
        assert (await process.communicate())[0] == b"node1: cannot be known below 26\n"
        assert process.returncode == 2
