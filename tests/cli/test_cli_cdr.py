"""`sipproxy cdr export|purge|hold|invoiced|quality|access` on a real store; most in this process, two as processes."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import program
import pytest
import redis

from cdr import codec
from cdr.export import read
from cdr.facts import Admit, End, Record
from cdr.journal import Journal
from cdr.stream import mark_key
from loadtest.valkey import Valkey

ROOT = Path(__file__).resolve().parent.parent.parent
NOW_MS = time.time_ns() // 1_000_000
HOUR_MS = 3_600_000


def draft(call: str, **fields: Any) -> Record:
    return Record(id=call, node="n1", direction="outgoing", **fields)


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    with asyncio.Runner() as runner:
        store = Valkey()
        runner.run(store.__aenter__())
        made = redis.Redis.from_url(store.url)
        yield made
        made.close()
        runner.run(store.__aexit__())


@pytest.fixture
def config(client: redis.Redis, tmp_path: Path) -> Path:
    file = tmp_path / "node.toml"
    file.write_text(f'[node]\nid = "n1"\n[store]\nurl = "unix://{client.connection_pool.connection_kwargs["path"]}"\n')
    return file


def run(config: Path, *arguments: str | Path, code: int = 0) -> program.Done:
    return program.run("cdr", *arguments, "-c", config, code=code)


def run_process(config: Path, *arguments: str | Path, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "sipproxy", "cdr", *map(str, arguments), "-c", str(config)],
        cwd=ROOT,
        env={**os.environ, **environment},
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


def fill(client: redis.Redis) -> None:
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
        client.xadd("sp:cdr", fields)


def test_export_writes_acknowledges_and_goes_on(client: redis.Redis, config: Path, tmp_path: Path) -> None:
    fill(client)
    out = tmp_path / "out"
    done = answer(config, "export", "-o", out, "--format", "csv", "--rows-per-file", "25")
    assert (done["records"], done["files"], done["rejected"]) == (61, 3, 0)
    rows = [record for file in sorted(out.glob("*.csv")) for record in read([file.read_bytes()], "csv")]
    assert [record.seq for record in rows] == list(range(1, 62))
    assert rows[1].user_agent == "=1+1"
    assert not any(b",=1+1" in file.read_bytes() for file in out.glob("*.csv"))
    assert (client.xpending("sp:cdr", "export"))["pending"] == 0
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


def test_export_where_no_server_listens_acknowledges_nothing(client: redis.Redis, config: Path, tmp_path: Path) -> None:
    fill(client)
    done = run(config, "export", "-o", tmp_path / "out", "--sftp", "sftp://u@127.0.0.1:1/in", code=1)
    assert "sftp://u@127.0.0.1:1/in" in done.stderr
    assert client.xinfo_groups("sp:cdr") == []


def test_purge_reports_and_spares_what_nobody_has_fetched(client: redis.Redis, config: Path, tmp_path: Path) -> None:
    fill(client)
    client.xgroup_create("sp:cdr", "export", id="0")
    before = answer(config, "quality", "--by", "route")
    refused = answer(config, "purge", code=1)
    assert refused["gone"] == []
    assert [(row["reason"], row["count"]) for row in refused["left"]] == [("refused, not acknowledged by every group", 6)]
    answer(config, "export", "-o", tmp_path / "out")
    dry = [(row["place"], row["count"]) for row in answer(config, "purge", "--dry-run")["gone"]]
    assert dry == [("export files", 6), ("stream", 6)]
    assert client.xlen("sp:cdr") == 61
    done = answer(config, "purge")
    assert [(row["place"], row["reason"], row["count"]) for row in done["gone"]] == [
        ("export files", f"refused, from files in {tmp_path / 'out'}", 6),
        ("stream", "refused", 6),
    ]
    assert (done["left"], done["not_invoiced"]["count"], client.xlen("sp:cdr")) == ([], 30, 55)
    assert answer(config, "quality", "--by", "route") == before
    assert "in no invoice yet: 30 billed records" in run_process(config, "purge").stdout


def test_invoiced_is_noted_and_wrong_dates_are_told(client: redis.Redis, config: Path) -> None:
    fill(client)
    assert answer(config, "invoiced") == []
    (noted,) = answer(config, "invoiced", "2026-02-01T00:00:00Z", "--sent", "2026-02-05T00:00:00Z")
    assert noted == {"until_ms": 1_769_904_000_000, "sent_ms": 1_770_249_600_000}
    assert "not sent before" in run(config, "invoiced", "2026-02-01", "--sent", "2026-01-05", code=2).stderr
    assert "future" in run(config, "invoiced", "2026-02-01", "--sent", "2099-01-05", code=2).stderr
    assert "no time" in run(config, "invoiced", "soon", code=2).stderr


def test_quality_tells_figures_and_draws_them(client: redis.Redis, config: Path, tmp_path: Path) -> None:
    fill(client)
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


def test_quality_picture_without_matplotlib_names_the_command(client: redis.Redis, config: Path, tmp_path: Path) -> None:
    fill(client)
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "matplotlib.py").write_text("raise ImportError('none here')")
    done = run_process(config, "quality", "--plot", tmp_path / "q.png", code=1, PYTHONPATH=f"{tmp_path / 'without'}:{ROOT}")
    assert "pip install 'sipproxy[plot]'" in done.stderr


def journal(config: Path, calls: int, *, confirmed: int, age_h: int = 30) -> Path:
    """The journal of the configuration's node, as it lies there when the node is stopped."""
    directory = config.parent / "data" / "journal"
    made = Journal(directory, node="n1")
    made.recover()
    ended = NOW_MS - age_h * HOUR_MS
    for seq in range(made.last_seq + 1, made.last_seq + calls + 1):
        record = draft(f"j{seq}", seq=seq, setup_at_ms=ended - 5, end_at_ms=ended, verdict="deny", end_reason="refused")
        made.append(Admit(record))
        made.append(End(record))
    made.confirm(confirmed)
    made.close()
    return directory


def test_purge_journal_of_a_stopped_node_goes_but_for_what_is_not_confirmed(
    client: redis.Redis, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = journal(config, 3, confirmed=3)
    dry = answer(config, "purge", "--dry-run")
    assert [(row["place"], row["reason"], row["count"]) for row in dry["gone"]] == [("journal", "refused", 3)]
    monkeypatch.setattr("os.geteuid", lambda: directory.stat().st_uid + 1)
    (kept,) = answer(config, "purge", code=1)["left"]
    assert (kept["place"], kept["count"]) == ("journal", 3)
    assert "run this as that user" in kept["reason"]
    monkeypatch.undo()
    done = answer(config, "purge")
    assert (done["gone"], done["left"]) == (dry["gone"], [])
    assert answer(config, "purge")["gone"] == []
    journal(config, 2, confirmed=4)
    journal(config, 1, confirmed=4, age_h=1)
    done = answer(config, "purge", code=1)
    assert done["gone"] == []
    assert [(row["reason"], row["count"]) for row in done["left"]] == [
        ("refused, in a file with records that are not confirmed", 1),
        ("refused, not confirmed", 1),
    ]
    journal(config, 0, confirmed=6)
    assert answer(config, "purge")["left"] == []


def test_purge_names_the_nodes_whose_journals_it_has_not_seen(client: redis.Redis, config: Path) -> None:
    client.hset(mark_key("sp:cdr", "n1"), "seq", 1)
    client.hset(mark_key("sp:cdr", "n2"), "seq", 1)
    client.hset(mark_key("sp:other", "n9"), "seq", 1)
    missing = [{"node": name, "purged_at_ms": None} for name in ("n1", "n2")]
    assert answer(config, "purge")["journals_not_looked_at"] == missing, "there is no journal on this machine at all"
    journal(config, 1, confirmed=1)
    assert answer(config, "purge", "--dry-run")["journals_not_looked_at"] == missing[1:]
    assert client.hgetall("{sp:cdr}:journals") == {}, "a trial run is none"
    assert "the journal of n2 is not on this machine (never purged by this command)" in run(config, "purge").stdout
    text = config.read_text()
    config.write_text(text.replace('id = "n1"', 'id = "n2"').replace("data", "data2"))
    (of_first,) = [row for row in answer(config, "purge")["journals_not_looked_at"] if row["node"] == "n1"]
    assert of_first["purged_at_ms"] == int(client.hget("{sp:cdr}:journals", "n1"))
    assert "the journal of n1 is not on this machine (last purged 20" in run(config, "purge").stdout


def test_purge_leaves_no_gap_for_verify(client: redis.Redis, config: Path, tmp_path: Path) -> None:
    fill(client)
    answer(config, "export", "-o", tmp_path / "out", "--format", "csv")
    (written,) = (tmp_path / "out").glob("*.csv")
    file = written.rename(tmp_path / "fetched.csv")  # a purge takes what is overdue out of files that still lie there
    assert answer(config, "verify", file, "--no-journal")["status"] == "fine"
    assert [row["count"] for row in answer(config, "purge")["gone"] if row["place"] == "stream"] == [6]
    assert answer(config, "verify", file, "--no-journal")["findings"] == []
    client.xdel("sp:cdr", *(entry for entry, _ in client.xrange("sp:cdr", count=3)[1:]))
    (gap,) = answer(config, "verify", file, "--no-journal", code=1)["findings"]
    assert (gap["kind"], gap["where"]) == ("gap", "stream")


def test_hold_keeps_a_line_and_is_released_with_a_reason(client: redis.Redis, config: Path) -> None:
    record = draft("o", seq=1, verdict="deny", line="V1001", setup_at_ms=NOW_MS - 40 * HOUR_MS, end_at_ms=NOW_MS - 40 * HOUR_MS)
    client.xadd("sp:cdr", {"id": "o", "v": 1, "type": "final", "node": "n1", "seq": 1, "d": codec.encode(record)})
    assert "no records are on hold" in run(config, "hold").stdout
    for words in (("V1001",), ("V1001", "--from", "2020-01-01", "--to", "2099-01-01"), ("--reason", "r")):
        assert "a hold needs" in run(config, "hold", *words, code=2).stderr
    period = ("--from", "2020-01-01", "--to", "2099-01-01", "--reason", "file 7")
    assert "no line 'V1O01' and no record of it" in run(config, "hold", "V1O01", *period, code=1).stderr
    assert answer(config, "hold") == []
    placed = answer(config, "hold", "V1001", *period)
    assert (placed["line"], placed["reason"], placed["records"]) == ("V1001", "file 7", 1)
    assert [one["hold"] for one in answer(config, "hold")] == [placed["hold"]]
    assert " 2020-01-01 00:00:00  2099-01-01 00:00:00  file 7 " in run(config, "hold").stdout, "as it was given: German time"
    (kept,) = answer(config, "held", "V1001")
    assert (kept["place"], kept["reason"], kept["due_at_ms"], kept["record"]["id"]) == ("stream", "objection", None, "o")
    assert answer(config, "held", "V1002") == []
    done = answer(config, "purge")
    assert [(row["place"], row["reason"]) for row in done["gone"]] == [("stream", "objection, set apart")]
    assert done["on_hold"]["count"] == 1
    assert [(one["place"], one["record"]["line"]) for one in answer(config, "held")] == [("held", "V1001")]
    (row,) = run(config, "held").stdout.splitlines()[1:]
    assert row.split()[:5] == ["held", "objection", "not", "yet", "known"]
    assert "--reason" in run(config, "release", placed["hold"], code=2).stderr
    assert "there is no hold" in run(config, "release", "h", "--reason", "none", code=1).stderr
    answer(config, "release", placed["hold"], "--reason", "paid")
    (kept,) = answer(config, "held")
    assert (kept["reason"], kept["due_at_ms"]) == ("refused", record.end_at_ms + 24 * HOUR_MS)
    assert [(row["place"], row["reason"]) for row in answer(config, "purge")["gone"]] == [("held", "refused")]
    assert "no records are kept apart" in run(config, "held").stdout
    seen = [(one["command"], one["filter"]) for one in answer(config, "access")]
    assert seen[1:3] == [("cdr hold", "V1001 2020-01-01 to 2099-01-01: file 7"), ("cdr held", "V1001")]
    assert [one["records"] for one in answer(config, "access") if one["command"] == "cdr held"] == [1, 0, 1, 1, 1, 0]
    assert ("cdr release", f"{placed['hold']}: paid") in seen


def test_purge_with_a_misspelt_class_takes_nothing(client: redis.Redis, config: Path) -> None:
    fill(client)
    text = config.read_text()
    for entry, says in (("geografic", "'geografic' is no destination class"), ("velbet:mobile", "'velbet' is no profile")):
        config.write_text(f'{text}[cdr]\nunbilled = ["{entry}"]\n')
        fault = run(config, "purge", code=1).stderr
        assert says in fault
        assert f"{config}:{text.count(chr(10)) + 2}: cdr.unbilled[1]: " in fault
    config.write_text(f'{text}[cdr]\nunbilled = ["velbert:mobile"]\n')
    gone = [(row["reason"], row["count"]) for row in answer(config, "purge")["gone"]]
    assert gone == [("free", 6), ("refused", 6)]


def test_purge_sets_calls_of_a_line_on_fraud_hold_apart(client: redis.Redis, config: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.csv"
    row = "{},velbert,{},3,velbert,02051,{},single,secret,+4920515551{}\n"
    head = "line,profile,status,channels,location,area_code,account,kind,password,number\n"
    lines.write_text(head + row.format("V1", "fraud_hold", "v1", "01") + row.format("V2", "active", "v2", "02"))
    for kind, file in (("psap", ROOT / "examples" / "psap.csv"), ("line", lines)):
        program.run(kind, "import", file, "-c", config)
    for line in ("V1", "V2"):
        record = draft(line, line=line, seq=int(line[1]), verdict="deny", setup_at_ms=NOW_MS, end_at_ms=NOW_MS)
        client.xadd("sp:cdr", {"id": line, "v": 1, "type": "final", "node": "n1", "seq": 1, "d": codec.encode(record)})
    (gone,) = answer(config, "purge")["gone"]
    assert (gone["reason"], gone["count"], client.xlen("{sp:cdr}:held")) == ("fraud, set apart", 1, 1)


def test_export_progress_tells_how_much_is_left(
    client: redis.Redis, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sipproxy.commands.exports.PROGRESS_S", 0.0)
    for _ in range(10):
        fill(client)
    lines = run(config, "export", "-o", tmp_path / "out").stderr.splitlines()
    left = [int(line.partition(", about ")[2].removesuffix(" left")) for line in lines]
    assert len(left) > 1
    assert left == sorted(left, reverse=True)
    assert left[-1] == 0
    fill(client)
    assert "61 records, 0 files" in (text := run(config, "export", "-o", tmp_path / "out").stderr)
    assert text.rstrip().endswith("about 0 left")


@pytest.mark.parametrize("words", [("tail",), ("pull",), ("quality",), ("export", "-o", "out")])
def test_records_are_not_shown_where_that_cannot_be_written_down(
    client: redis.Redis, config: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    fill(client)
    client.set("{sp:cdr}:access", "no stream")
    words = tuple(str(tmp_path / word) if word == "out" else word for word in words)
    done = run(config, *words, code=3)
    assert done.stdout == ""
    assert "WRONGTYPE" in done.stderr
    assert list(tmp_path.glob("out/cdr-*")) == []
