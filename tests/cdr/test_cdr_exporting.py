"""cdr.files and cdr.exporting: whole files, each record once, whatever ends an export."""

# ruff: noqa: ASYNC240, ASYNC221  files of a test are small, and nothing else runs
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from cdr_samples import SETUP_AT_MS, ended

from cdr import codec, dead, steps
from cdr.consumer import Consumer
from cdr.export import ExportError, Writer, read
from cdr.exporting import Exporter, Period, Totals, folders, know_folder
from cdr.files import Folder, FolderError, Intent, manifest
from cdr.parquet import ParquetRows
from cdr.wire import Link

if TYPE_CHECKING:
    import redis.asyncio

    from cdr.facts import Record
    from cdr.files import Rows

STREAM, GROUP = "sp:cdr", "export"
STEPS = ["written", "intended", "checksum", "renamed", "acknowledged", "noted"]


async def put(client: redis.asyncio.Redis, record: Record) -> None:
    fields = {"id": record.id, "v": record.schema, "type": record.type, "node": record.node, "seq": record.seq}
    await client.xadd(STREAM, {**fields, "d": codec.encode(record)})


async def fill(client: redis.asyncio.Redis, count: int, first: int = 1) -> list[str]:
    for seq in range(first, first + count):
        await put(client, ended(seq).record)
    return [f"call-{seq}" for seq in range(first, first + count)]


def exporter(client: redis.asyncio.Redis, folder: Folder, rows: Rows, **options: Any) -> Exporter:
    return Exporter(client, folder, rows, **{"stream": STREAM, "profile": "native", "rows_per_file": 4, **options})


async def run(client: redis.asyncio.Redis, path: Path, form: str = "jsonl", **options: Any) -> Totals:
    rows = ParquetRows() if form == "parquet" else Writer(form)
    with Folder(path, node="n1") as folder:
        async with Consumer(client, group=GROUP, stream=STREAM, name="export-n1") as consumer:
            return await exporter(client, folder, rows, **options).of_group(consumer)


def ids(path: Path, form: str = "jsonl") -> list[str]:
    found = []
    for file in sorted(path.glob(f"cdr-*.{form}")):
        found += [record.id for record in read([file.read_bytes()], form)]
    return found


async def unacknowledged(client: redis.asyncio.Redis) -> int:
    return int((await client.xpending(STREAM, GROUP))["pending"])


@pytest.fixture
def hook() -> Iterator[None]:
    yield
    steps.hook = None


async def test_export_writes_whole_files_with_checksum_count_and_manifest(client: redis.asyncio.Redis, tmp_path: Path) -> None:
    expected = await fill(client, 10)
    totals = await run(client, tmp_path)
    assert (totals.records, totals.files, totals.rejected) == (10, 3, 0)
    assert ids(tmp_path) == expected
    assert await unacknowledged(client) == 0
    files = sorted(tmp_path.glob("cdr-n1-*.jsonl"))
    assert [file.name[-12:] for file in files] == ["000001.jsonl", "000002.jsonl", "000003.jsonl"]
    lines = manifest(tmp_path)
    assert [(line.file, line.records) for line in lines] == [
        (file.name, count) for file, count in zip(files, (4, 4, 2), strict=True)
    ]
    assert [line.sha256 for line in lines] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert lines[0].entries == []
    for file in files:
        done = subprocess.run(
            ["sha256sum", "-c", f"{file.name}.sha256"], cwd=tmp_path, capture_output=True, check=True, text=True
        )
        assert done.stdout == f"{file.name}: OK\n"
        assert f"# {4 if file != files[2] else 2} records" in (tmp_path / f"{file.name}.sha256").read_text()
    assert [path.name for path in tmp_path.glob(".*") if path.name != ".lock"] == []


async def test_export_again_writes_what_is_new_and_never_a_name_twice(client: redis.asyncio.Redis, tmp_path: Path) -> None:
    await fill(client, 3)
    await run(client, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("cdr-*")}
    assert (await run(client, tmp_path)).files == 0
    for path in tmp_path.glob("cdr-*"):
        path.unlink()  # billing has fetched them
    await fill(client, 2, first=4)
    await run(client, tmp_path)
    assert ids(tmp_path) == ["call-4", "call-5"]
    assert not before.keys() & {path.name for path in tmp_path.glob("cdr-*")}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("name", STEPS)
async def test_export_that_dies_at_a_step_is_gone_on_with_and_each_record_is_there_once(
    client: redis.asyncio.Redis, tmp_path: Path, name: str, number: int, hook: None
) -> None:
    """The process dies where the hook raises: nothing of ours runs behind it but what closes descriptors."""

    class DiedError(BaseException):
        pass

    expected = await fill(client, 10)
    seen = 0

    def die(step: str) -> None:
        nonlocal seen
        seen += step == f"export.{name}"
        if step == f"export.{name}" and seen == number:
            raise DiedError

    steps.hook = die
    folder = Folder(tmp_path, node="n1").__enter__()
    consumer = Consumer(client, group=GROUP, stream=STREAM, name="export-n1")
    with pytest.raises(DiedError):
        await exporter(client, folder, Writer("jsonl")).of_group(consumer)
    folder.__exit__()
    await consumer._link.drop()
    assert seen == number
    for file in tmp_path.glob("cdr-*.jsonl"):  # What has its name is whole.
        assert list(read([file.read_bytes()], "jsonl"))
    steps.hook = None
    totals = await run(client, tmp_path)
    assert sorted(ids(tmp_path)) == sorted(expected)
    assert await unacknowledged(client) == 0
    assert sum(line.records for line in manifest(tmp_path)) == 10
    assert totals.finished == (name in ("renamed", "acknowledged"))
    assert [path.name for path in tmp_path.glob(".cdr-*")] == []


KILLED = """
import asyncio, os, sys
from pathlib import Path
import redis.asyncio
from cdr import steps
from cdr.consumer import Consumer
from cdr.export import Writer
from cdr.exporting import Exporter
from cdr.files import Folder

async def main(url, path, step):
    def die(name):
        if name == step:
            os.kill(os.getpid(), 9)
    steps.hook = die
    client = redis.asyncio.Redis.from_url(url)
    with Folder(Path(path), node="n1") as folder:
        async with Consumer(client, group="export", stream="sp:cdr", name="export-n1") as consumer:
            await Exporter(client, folder, Writer("csv"), stream="sp:cdr", profile="native", rows_per_file=4).of_group(consumer)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["export.intended", "export.renamed", "export.acknowledged"])
async def test_export_killed_at_a_step_is_gone_on_with(
    client: redis.asyncio.Redis, valkey: Any, tmp_path: Path, name: str
) -> None:
    expected = await fill(client, 6)
    url = f"unix://{client.connection_pool.connection_kwargs['path']}"
    command = [sys.executable, "-c", KILLED, url, str(tmp_path), name]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    await run(client, tmp_path, "csv")
    assert sorted(ids(tmp_path, "csv")) == sorted(expected)
    assert await unacknowledged(client) == 0


async def test_export_acknowledges_nothing_before_the_file_was_sent(client: redis.asyncio.Redis, tmp_path: Path) -> None:
    await fill(client, 3)
    sent: list[tuple[str, int]] = []

    async def fails(intent: Intent) -> None:
        raise OSError("server is away")

    async def send(intent: Intent) -> None:
        sent.append((intent.file, await unacknowledged(client)))

    with pytest.raises(OSError, match="away"):
        await run(client, tmp_path, send=fails)
    assert await unacknowledged(client) == 3
    totals = await run(client, tmp_path, send=send)
    assert (totals.finished, totals.files, [count for _, count in sent]) == (1, 0, [3])
    assert await unacknowledged(client) == 0
    assert ids(tmp_path) == ["call-1", "call-2", "call-3"]


async def test_export_leaves_live_records_out_and_buries_what_the_form_cannot_hold(
    client: redis.asyncio.Redis, tmp_path: Path
) -> None:
    await put(client, msgspec.structs.replace(ended(1).record, type="interim", seq=0))
    await put(client, msgspec.structs.replace(ended(2).record, setup_at_ms=2**63 + 5))
    await put(client, ended(3).record)
    totals = await run(client, tmp_path, "parquet")
    assert (totals.records, totals.skipped, totals.rejected) == (1, 1, 1)
    assert await unacknowledged(client) == 0
    link = Link(client, timeout_s=5)
    letters = [letter async for letter in dead.letters(link.call, STREAM)]
    assert [("export as parquet" in letter.reason, letter.group) for letter in letters] == [(True, GROUP)]
    await link.drop()


async def test_export_of_a_period_acknowledges_nothing(client: redis.asyncio.Redis, tmp_path: Path) -> None:
    for seq, offset in enumerate((-1, 0, 5, 9, 10), 1):
        await put(client, ended(seq, setup_at_ms=SETUP_AT_MS + offset).record)
    with Folder(tmp_path, node="n1") as folder:
        # The store's own clock stamps the entries, far from SETUP_AT_MS: what comes later than the period is looked at too.
        totals = await exporter(client, folder, Writer("msgpack")).of_period(Period(0, SETUP_AT_MS + 10))
    assert (totals.records, totals.skipped) == (4, 1)
    assert ids(tmp_path, "msgpack") == ["call-1", "call-2", "call-3", "call-4"]
    assert await client.xinfo_groups(STREAM) == []


async def test_export_into_a_folder_in_use_or_without_rights_is_refused(tmp_path: Path) -> None:
    with Folder(tmp_path, node="n1"), pytest.raises(FolderError, match="another export"), Folder(tmp_path, node="n1"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="file"), Folder(tmp_path / "file", node="n1"):
        pass


def test_folder_disk_that_is_full_leaves_no_file_under_a_name(tmp_path: Path) -> None:
    with Folder(tmp_path, node="n1") as folder:
        part = folder.begin(Writer("jsonl"), at_ms=1, stamp="20260101T000000Z")
        os.dup2(os.open("/dev/full", os.O_WRONLY), part._file.fileno())
        part.add(ended(1).record)
        with pytest.raises(FolderError, match="No space"):
            part.close(profile="native")
    assert list(tmp_path.glob("cdr-*")) == []


def test_manifest_line_that_a_crash_cut_off_is_mended_and_a_broken_one_is_told(tmp_path: Path) -> None:
    with Folder(tmp_path, node="n1") as folder:
        part = folder.begin(Writer("jsonl"), at_ms=1, stamp="20260101T000000Z")
        part.add(ended(1).record, "1-1")
        folder.finish(part.close(profile="native"))
    path = tmp_path / "manifest.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert len(manifest(tmp_path)) == 1
    with Folder(tmp_path, node="n1"):
        assert path.read_bytes() == whole
    path.write_bytes(b"{}\n" + whole)
    with pytest.raises(FolderError, match=r"manifest\.jsonl:1"):
        manifest(tmp_path)


def test_parquet_holds_every_field_with_its_type(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    record = msgspec.structs.replace(ended(1).record, media=["audio"], user_agent="=1+1\r\n", unknown={"x": 1})
    with Folder(tmp_path, node="n1") as folder:
        part = folder.begin(ParquetRows(), at_ms=1, stamp="20260101T000000Z")
        part.add(record)
        intent = part.close(profile="native")
    (row,) = pq.read_table(tmp_path / intent.file).to_pylist()
    assert row.pop("unknown") == '{"x":1}'
    assert row == {name: value for name, value in msgspec.structs.asdict(record).items() if name != "unknown"}


def test_parquet_without_pyarrow_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportError, match=r"pip install 'sipproxy\[parquet\]'"):
        ParquetRows()


async def test_folders_are_known_by_node(client: redis.asyncio.Redis) -> None:
    link = Link(client, timeout_s=5)
    await know_folder(link.call, STREAM, "/b", "n1")
    await know_folder(link.call, STREAM, "/a", "n1")
    await know_folder(link.call, STREAM, "/c", "n2")
    assert await folders(link.call, STREAM, "n1") == ["/a", "/b"]
    await link.drop()
