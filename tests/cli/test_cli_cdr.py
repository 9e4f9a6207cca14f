"""`sipproxy cdr export|purge|invoiced|quality|access` as processes, on a real store."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from cdr import codec
from cdr.export import read
from cdr.facts import Record
from sipproxy.store.embedded import EmbeddedStore

ROOT = Path(__file__).resolve().parent.parent.parent
NOW_MS = time.time_ns() // 1_000_000
HOUR_MS = 3_600_000


def draft(call: str, **fields: Any) -> Record:
    return Record(id=call, node="n1", direction="outgoing", **fields)


@pytest.fixture
async def client() -> AsyncIterator[redis.asyncio.Redis]:
    with tempfile.TemporaryDirectory(prefix="cdr-") as folder:  # pytest's own may be too long for a socket's path
        store = EmbeddedStore(folder)
        await store.start()
        made = redis.asyncio.Redis.from_url(store.url)
        yield made
        await made.aclose()
        await store.stop()


@pytest.fixture
def config(client: redis.asyncio.Redis, tmp_path: Path) -> Path:
    file = tmp_path / "node.toml"
    file.write_text(f'[store]\nurl = "unix://{client.connection_pool.connection_kwargs["path"]}"\n')
    return file


def run(config: Path, *arguments: str | Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sipproxy", "cdr", *map(str, arguments), "-c", str(config)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def answer(config: Path, *arguments: str | Path, code: int = 0) -> Any:
    return json.loads(run(config, *arguments, "--json", code=code).stdout)


async def fill(client: redis.asyncio.Redis) -> None:
    """Of each hour an answered call of 60 s and a refused attempt, 30 hours back; and one call to 112."""
    calls = []
    for number in range(30):
        at = NOW_MS - number * HOUR_MS - 120_000
        stamps = {"setup_at_ms": at, "end_at_ms": at + 65_000, "profile": "velbert", "trunk": "carrier"}
        talk = {"answer_at_ms": at + 5000, "billable_ms": 60_000, "ringing_at_ms": at + 1000, "destination_class": "mobile"}
        calls.append(
            draft(f"a{number}", seq=2 * number + 1, verdict="allow", status=200, end_reason="normal", **stamps, **talk)
        )
        stamps |= {"status": 403, "end_reason": "refused", "rule": "line.channels", "trunk": ""}
        calls.append(draft(f"r{number}", seq=2 * number + 2, verdict="deny", user_agent="=1+1", **stamps))
    calls.append(draft("e", seq=61, verdict="emergency", profile="velbert", setup_at_ms=NOW_MS, end_at_ms=NOW_MS, status=480))
    for record in calls:
        fields = {"id": record.id, "v": 1, "type": "final", "node": "n1", "seq": record.seq, "d": codec.encode(record)}
        await client.xadd("sp:cdr", fields)


async def test_export_writes_acknowledges_and_goes_on(client: redis.asyncio.Redis, config: Path, tmp_path: Path) -> None:
    await fill(client)
    out = tmp_path / "out"
    done = answer(config, "export", "-o", out, "--format", "csv", "--rows-per-file", "25")
    assert (done["records"], done["files"], done["rejected"]) == (61, 3, 0)
    rows = [record for file in sorted(out.glob("*.csv")) for record in read([file.read_bytes()], "csv")]
    assert [record.seq for record in rows] == list(range(1, 62))
    assert rows[1].user_agent == "=1+1"
    assert not any(b",=1+1" in file.read_bytes() for file in out.glob("*.csv"))
    assert (await client.xpending("sp:cdr", "export"))["pending"] == 0
    assert answer(config, "export", "-o", out)["files"] == 0
    assert answer(config, "export", "-o", tmp_path / "other", "--group", "second", "--profile", "german-csv")["records"] == 61
    assert (tmp_path / "other").glob("*.csv")
    start = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime((NOW_MS - 3 * HOUR_MS) / 1000))
    assert answer(config, "export", "-o", tmp_path / "again", "--from", start, "--format", "parquet")["records"] == 7
    seen = answer(config, "access")
    assert [(one["command"], one["records"]) for one in seen] == [("cdr export", count) for count in (61, 0, 61, 7)]
    assert seen[0]["user"] == pwd.getpwuid(os.getuid()).pw_name
    assert "out" in seen[0]["filter"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--format", "xml"), "known are jsonl, csv, msgpack, parquet"),
        (("--profile", "excel"), "known are native"),
        (("--profile", "german-csv", "--format", "jsonl"), "--format csv"),
        (("--from", "yesterday"), "--from: 'yesterday' is no time"),
        (("--from", "2026-02-01", "--to", "2026-01-01"), "--from is not before --to"),
        (("--from", "2026-02-01", "--group", "g"), "use one"),
    ],
)
def test_export_wrong_use_is_told_and_writes_nothing(
    config: Path, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    assert says in run(config, "export", "-o", tmp_path / "out", *arguments, code=2).stderr
    assert not (tmp_path / "out").exists()


async def test_export_where_no_server_listens_acknowledges_nothing(
    client: redis.asyncio.Redis, config: Path, tmp_path: Path
) -> None:
    await fill(client)
    done = run(config, "export", "-o", tmp_path / "out", "--sftp", "sftp://u@127.0.0.1:1/in", code=1)
    assert "sftp://u@127.0.0.1:1/in" in done.stderr
    assert await client.xinfo_groups("sp:cdr") == []


async def test_purge_reports_and_spares_what_nobody_has_fetched(
    client: redis.asyncio.Redis, config: Path, tmp_path: Path
) -> None:
    await fill(client)
    await client.xgroup_create("sp:cdr", "export", id="0")
    before = answer(config, "quality", "--by", "route")
    refused = answer(config, "purge", code=1)
    assert refused["gone"] == []
    assert [(row["reason"], row["count"]) for row in refused["left"]] == [("refused, not acknowledged by every group", 6)]
    answer(config, "export", "-o", tmp_path / "out")
    assert [row["count"] for row in answer(config, "purge", "--dry-run")["gone"]] == [6]
    assert await client.xlen("sp:cdr") == 61
    done = answer(config, "purge")
    assert [(row["place"], row["reason"], row["count"]) for row in done["gone"]] == [("stream", "refused", 6)]
    assert (done["left"], done["not_invoiced"]["count"], await client.xlen("sp:cdr")) == ([], 30, 55)
    assert answer(config, "quality", "--by", "route") == before
    assert "30 billed records are in no invoice yet" in run(config, "purge").stdout


async def test_invoiced_is_noted_and_wrong_dates_are_told(client: redis.asyncio.Redis, config: Path) -> None:
    await fill(client)
    assert answer(config, "invoiced") == []
    (noted,) = answer(config, "invoiced", "2026-02-01T00:00:00Z", "--sent", "2026-02-05T00:00:00Z")
    assert noted == {"until_ms": 1_769_904_000_000, "sent_ms": 1_770_249_600_000}
    assert "not sent before" in run(config, "invoiced", "2026-02-01", "--sent", "2026-01-05", code=2).stderr
    assert "future" in run(config, "invoiced", "2026-02-01", "--sent", "2099-01-05", code=2).stderr
    assert "no time" in run(config, "invoiced", "soon", code=2).stderr


async def test_quality_tells_figures_and_draws_them(client: redis.asyncio.Redis, config: Path, tmp_path: Path) -> None:
    await fill(client)
    rows = {row["group"]: row for row in answer(config, "quality")}
    assert list(rows) == ["velbert", "110/112 velbert", "all but 110/112"]
    ours = rows["velbert"]
    assert (ours["attempts"], ours["seizures"], ours["answered"], ours["refused"]) == (60, 30, 30, 30)
    assert (ours["asr"], ours["ner"], ours["acd_ms"], ours["promised_percent"]) == (1.0, 1.0, 60_000, 97)
    assert (ours["pdd_p50_ms"], ours["pdd_p95_ms"], ours["refusals"]) == (1000, 1000, {"line.channels": 30})
    assert "97 % kept" in run(config, "quality").stdout
    png, svg = tmp_path / "q.png", tmp_path / "q.svg"
    run(config, "quality", "--plot", png)
    run(config, "quality", "--plot", svg, "--by", "day")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "promised" not in svg.read_text()[:200]
    assert svg.read_text().rstrip().endswith("</svg>")
    assert "--plot" in run(config, "quality", "--plot", tmp_path / "q.gif", code=2).stderr
    assert "--by" in run(config, "quality", "--by", "line", code=2).stderr
    assert "no such file" in run(config, "quality", "--plot", tmp_path / "none" / "q.png", code=1).stderr.lower()


async def test_quality_picture_without_matplotlib_names_the_command(
    client: redis.asyncio.Redis, config: Path, tmp_path: Path
) -> None:
    await fill(client)
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "matplotlib.py").write_text("raise ImportError('none here')")
    done = run(config, "quality", "--plot", tmp_path / "q.png", code=1, PYTHONPATH=f"{tmp_path / 'without'}:{ROOT}")
    assert "pip install 'sipproxy[plot]'" in done.stderr
