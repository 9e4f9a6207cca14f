"""The commands that change policy data, as an operator runs them: line, psap, block, reseed."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import io
import json
import re
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from program import Done, run

from loadtest.valkey import Valkey

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"
SECRET = re.compile(r"ha1:|try-v1001|try-b2001|[0-9a-f]{32}", re.IGNORECASE)


class Operator:
    """Runs commands with one configuration."""

    def __init__(self, config: Path) -> None:
        self.config = config

    def run(self, *words: str | Path, code: int = 0) -> Done:
        done = run(*words, "-c", self.config, code=code)
        assert_no_secret(done.stdout + done.stderr)
        return done

    def ok(self, *words: str | Path) -> str:
        return self.run(*words).stdout

    def json(self, *words: str | Path) -> Any:
        return json.loads(self.ok(*words, "--json"))

    def refused(self, *words: str | Path, code: int = 1) -> str:
        done = self.run(*words, code=code)
        assert done.stdout == ""
        return done.stderr

    def version(self) -> int:
        entries = self.json("block", "history", "--all", "-n", "1")["entries"]
        return int(entries[-1]["version"]) if entries else 0


def assert_no_secret(text: str) -> None:
    assert not SECRET.search(re.sub(r'"hash": "[0-9a-f]{64}"', "", text))


@pytest.fixture
def server() -> Iterator[Server]:
    """A store that stays up between two commands."""
    with asyncio.Runner() as runner:
        store = Valkey()
        runner.run(store.__aenter__())
        yield Server(store.url, lambda: runner.run(store.client.flushall()))
        runner.run(store.__aexit__())


class Server(NamedTuple):
    url: str
    empty: Callable[[], object]


@pytest.fixture
def operator(tmp_path: Path, server: Server) -> Operator:
    """A configuration without files, in whose store two lines and their routes have been imported."""
    config = tmp_path / "config.toml"
    config.write_text(f'[store]\nurl = "{server.url}"\n[registrar]\nrealm = "sip.example"\n[policy]\n')
    found = Operator(config)
    found.ok("psap", "import", EXAMPLES / "psap.csv")
    found.ok("line", "import", EXAMPLES / "lines.csv")
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("line", "set", "V1001", "--channels", "5"),
        ("line", "bar", "V1001", "--reason", "unpaid"),
        ("line", "password", "v1001-1"),
        ("line", "remove", "B2001"),
        ("line", "export"),
        ("psap", "set", "hill", "110", "sip:110@127.0.0.1"),
        ("psap", "check"),
        ("block", "add", "0137", "--reason", "televoting"),
        ("block", "history"),
        ("block", "rollback", "2"),
    ],
    ids=" ".join,
)
def test_command_does_its_work_as_a_process_too(operator: Operator, words: tuple[str, ...]) -> None:
    """One of each kind; the imports and lists are in test_cli.py."""
    command = [sys.executable, "-m", "sipproxy", *words, "-c", str(operator.config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert_no_secret(done.stdout)


def test_line_bar_unbar_and_set_say_what_they_did_and_keep_reason_and_date(operator: Operator) -> None:
    assert "barred_out; policy version 3" in operator.ok("line", "bar", "V1001", "--reason", "unpaid", "--at", "2026-03-01")
    shown = operator.json("line", "show", "V1001")
    assert (shown["status"], shown["status_reason"]) == ("barred_out", "unpaid")
    assert shown["status_at"] == shown["barred_since"] == "2026-02-28T23:00:00Z"
    told = operator.ok("line", "bar", "02051555101", "--reason", "still unpaid", "--full", "--at", "2026-03-02")
    assert "incoming calls are refused from 2026-03-07T23:00:00Z" in told  # a week after the first
    assert operator.json("line", "show", "V1001")["barred_since"] == "2026-02-28T23:00:00Z"
    operator.ok("line", "unbar", "V1001", "--reason", "paid")
    shown = operator.json("line", "show", "V1001")
    assert (shown["status"], shown["status_reason"], shown["barred_since"]) == ("active", "paid", "")
    options = ("--channels", "5", "--clir", "yes", "--reject-anonymous", "yes", "--trace", "2026-01-01/2026-02-01/A-1")
    dry = operator.json("line", "set", "V1001", *options, "--dry-run")
    assert dry["dry_run"] is True
    assert dry["changes"][0]["fields"]["channels"] == ["", "5"]
    assert operator.json("line", "show", "V1001")["channels"] == 3
    operator.ok("line", "set", "V1001", *options)
    shown = operator.json("line", "show", "V1001")
    assert (shown["channels"], shown["clir"], shown["reject_anonymous"]) == (5, "yes", "yes")
    assert operator.refused("line", "set", "V1001", "--channels", "none").startswith("line V1001: channels: not a number")
    assert "say what to set" in operator.refused("line", "set", "V1001", code=2)
    operator.ok("line", "set", "V1001", "--soft-channels", "2", "--account-channels", "v1001-2=1")
    shown = operator.json("line", "show", "V1001")
    assert (shown["soft_channels"], [account["channels"] for account in shown["accounts"]]) == ("2", [None, 1])
    operator.ok("line", "set", "V1001", "--account-channels", "v1001-2=")
    assert [account["channels"] for account in operator.json("line", "show", "V1001")["accounts"]] == [None, None]
    assert "no account of line" in operator.refused("line", "set", "V1001", "--account-channels", "x=1", code=2)
    assert "account_channels: not a number" in operator.refused("line", "set", "V1001", "--account-channels", "v1001-1=0")
    assert "--reason" in operator.refused("line", "bar", "V1001", code=2)
    assert "no line" in operator.refused("line", "bar", "V9", "--reason", "x")


def test_line_add_makes_a_line_then_an_account_then_numbers_and_tells_a_password_once(
    operator: Operator, tmp_path: Path
) -> None:
    new = ("--profile", "velbert", "--location", "velbert", "--area-code", "02051")
    operator.ok("line", "add", "V9", "--account", "v9", "--number", "02051555901", *new, "--dry-run")
    assert "no line" in operator.refused("line", "show", "V9")
    made = operator.json("line", "add", "V9", "--account", "v9", "--number", "02051555901", *new)
    assert len(made["password"]) == 20
    shown = operator.json("line", "show", "V9")
    assert (shown["status"], shown["channels"], shown["numbers"]) == ("active", 3, ["+492051555901"])
    assert made["password"] not in json.dumps(shown)
    secret = tmp_path / "password"
    secret.write_text("of-the-second-account\n")
    second = operator.ok("line", "add", "V9", "--account", "v9b", "--number", "02051555902", "--password-file", secret)
    assert "password" not in second
    exported = tmp_path / "lines.csv"
    operator.ok("line", "export", "V9", "--with-secrets", "-o", exported)
    before = {row["account"]: row["password"] for row in csv.DictReader(io.StringIO(exported.read_text()))}
    expected = hashlib.md5(b"v9b:sip.example:of-the-second-account").hexdigest()
    assert f"ha1:MD5:{expected}" in before["v9b"]

    operator.ok("line", "add", "T9", "--account", "t9", "--kind", "trunk", "--number", "02051666*", *new)
    operator.ok("line", "add", "T9", "--account", "t9", "--number", "02051667*", "--number", "02051668001")
    assert operator.json("line", "show", "T9")["numbers"] == ["+492051666*", "+492051667*", "+492051668001"]

    told = operator.ok("line", "password", "v9")
    assert "told this once: " in told
    operator.ok("line", "export", "V9", "--with-secrets", "-o", exported)
    after = {row["account"]: row["password"] for row in csv.DictReader(io.StringIO(exported.read_text()))}
    password = told.rsplit(": ", 1)[1].strip()
    assert hashlib.md5(f"v9:sip.example:{password}".encode()).hexdigest() in after["v9"]
    assert after["v9b"] == before["v9b"]


def test_line_add_that_cannot_be_changes_nothing_and_says_why(operator: Operator, tmp_path: Path) -> None:
    before = operator.version()
    new = ("--profile", "velbert", "--location", "velbert", "--area-code", "02051")
    add = ("line", "add", "V9", "--account", "v9", "--number")
    assert "profile: unknown profile" in operator.refused(*add, "02051555901")
    assert "V1001" in operator.refused(*add, "02051555101", *new)  # another line's number
    assert "V1001" in operator.refused("line", "add", "V9", "--account", "v1001-1", "--number", "02051555901", *new)
    assert "channels: '7' differs" in operator.refused(
        "line", "add", "V1001", "--account", "v9", "--number", "02051555901", "--channels", "7"
    )
    assert "a single account has one number" in operator.refused(
        "line", "add", "V1001", "--account", "v1001-1", "--number", "02051555901"
    )
    secret = tmp_path / "password"
    secret.write_text("\n")
    assert "no password" in operator.refused(*add, "02051555901", *new, "--password-file", secret, code=2)
    secret.write_text("ha1:zz\n")
    assert "32 hex digits" in operator.refused(*add, "02051555901", *new, "--password-file", secret)
    assert "32 hex digits" in operator.refused("line", "password", "v1001-1", "--password-file", secret)
    assert "line password v1001-1" in operator.refused(
        "line", "add", "V1001", "--account", "v1001-1", "--number", "02051555901", "--password-file", secret
    )
    assert "no account 'v9'" in operator.refused("line", "password", "v9")
    assert operator.version() == before


def test_line_is_not_activated_where_110_and_112_lead_nowhere(operator: Operator, tmp_path: Path) -> None:
    before = operator.version()
    assert "'hill' has no PSAP route for 110 and 112" in operator.refused("line", "set", "V1001", "--location", "hill")
    file = tmp_path / "more.csv"
    text = (EXAMPLES / "lines.csv").read_text()
    file.write_text(text + "V3,velbert,active,,hill,02051,v3,single,pw,+492051555103\n")
    assert operator.refused("line", "import", file).startswith(f"{file}:5: location: line V3: 'hill' has no PSAP route")
    assert operator.version() == before
    operator.ok("psap", "set", "hill", "110", "sip:110@127.0.0.1:5090")
    operator.ok("psap", "set", "hill", "112", "sip:112@127.0.0.1:5090", "sip:112@127.0.0.1:5091", "--name", "centre")
    operator.ok("line", "import", file)
    assert "1 lines would have no way to 112, V3 first" in operator.refused("psap", "set", "hill", "112", "--none")
    operator.ok("line", "remove", "V3")
    operator.ok("psap", "set", "hill", "112", "--none")
    assert "no line V3, V4; nothing was removed" in operator.refused("line", "remove", "V3", "V4", "V1001")


def test_line_export_and_import_again_change_nothing(operator: Operator, tmp_path: Path) -> None:
    before = operator.version()
    for name in ("lines.csv", "lines.toml"):
        operator.ok("line", "export", "-o", tmp_path / name)
        assert "nothing to change" in operator.ok("line", "import", tmp_path / name)
    for name in ("psap.csv", "psap.toml"):
        operator.ok("psap", "export", "-o", tmp_path / name)
        assert "nothing to change" in operator.ok("psap", "import", tmp_path / name)
    assert operator.version() == before
    assert "needs --output" in operator.refused("line", "export", "--with-secrets", code=2)
    private = tmp_path / "private.toml"
    operator.ok("line", "export", "--with-secrets", "-o", private)
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = Operator(elsewhere / "config.toml")
    other.config.write_text('[registrar]\nrealm = "sip.example"\n')  # the embedded store of another machine
    other.ok("psap", "import", tmp_path / "psap.toml")
    assert "no password" in other.refused("line", "import", tmp_path / "lines.csv")
    other.ok("line", "import", private)
    assert other.ok("line", "export") == operator.ok("line", "export")
    assert next(csv.DictReader(io.StringIO(operator.ok("line", "export", "B2001"))))["password"] == ""


def test_block_add_remove_history_and_rollback(operator: Operator) -> None:
    old = EXAMPLES / "blocks.csv"
    assert operator.json("block", "import", old, "--why", "fraud wave")["version"] == 3
    added = operator.json(
        *("block", "add", "0137", "--reason", "televoting", "--owner", "noc", "--ticket", "T-1", "--public"),
        *("--until", "2099-01-01", "--window", "mo-fr 08:00-17:00", "--window", "sa 00:00-24:00"),
    )  # fmt: skip
    assert (added["version"], added["changed"]) == (4, 1)
    rule = next(rule for rule in operator.json("block", "list") if rule["value"] == "+49137")
    assert rule["id"] == "block-0137"
    assert rule["windows"] == "mo,tu,we,th,fr 08:00-17:00; sa 00:00-24:00"
    assert "is there already" in operator.refused("block", "add", "0138", "--reason", "x", "--id", "block-0137")
    assert "no reason" in operator.refused("block", "add", "0138")
    assert operator.refused("block", "add", "112", "--reason", "x").startswith("rule block-112: value: 110 and 112")
    assert "116117" in operator.refused("block", "add", "116", "--reason", "x")
    public = operator.ok("block", "export", "--public")
    assert "+49137" in public
    assert not re.search("noc|T-1|block-0137|882", public)
    assert [rule["value"] for rule in tomllib.loads(operator.ok("block", "export", "--format", "toml"))["block"]] == [
        "+49137", "+882", "+883",
    ]  # fmt: skip
    assert operator.ok("block", "remove", "fraud-882", "--dry-run").startswith("- rule fraud-882: ")
    operator.ok("block", "remove", "fraud-882", "block-0137", "--why", "over")
    assert "no rule x; nothing" in operator.refused("block", "remove", "fraud-883", "x")
    history = operator.json("block", "history", "--diff")
    assert history["chain"] == "whole"
    assert [(entry["version"], entry["why"]) for entry in history["entries"]] == [
        (3, "fraud wave"), (4, "televoting"), (5, "over"),
    ]  # fmt: skip
    assert {change["id"] for change in history["entries"][-1]["changes"]} == {"fraud-882", "block-0137"}
    assert "2 changes, none of them made" in operator.ok("block", "rollback", "4", "--dry-run")
    operator.ok("block", "rollback", "4")
    assert {rule["id"] for rule in operator.json("block", "list")} == {"block-0137", "fraud-882", "fraud-883"}
    assert "there is no version 99; the newest is 6" in operator.refused("block", "rollback", "99")
    operator.ok("line", "remove", "B2001")
    assert "b2001" in operator.refused("block", "rollback", "4", "--all")
    operator.ok("block", "rollback", "3")
    assert {rule["id"] for rule in operator.json("block", "list")} == {"fraud-882", "fraud-883"}


def test_psap_check_tells_what_cron_must_know(operator: Operator) -> None:
    found = operator.json("psap", "check")
    assert {problem["code"] for problem in found["problems"]} == {"single_route"}
    operator.ok("psap", "set", "velbert", "112", "sips:112@127.0.0.1", "--from", "2098-01-01")
    done = operator.run("psap", "check", "--json", code=1)
    errors = [fault for fault in json.loads(done.stdout)["faults"] if fault["severity"] == "error"]
    assert [fault["code"] for fault in errors] == ["unreachable"]
    assert "TLS" in errors[0]["detail"]
    done = operator.run("psap", "check", code=1)
    assert "sips:112@127.0.0.1" in done.stdout
    assert "1 errors" in done.stderr
    assert "neither 110 nor 112" in operator.refused("psap", "set", "velbert", "113", "sip:113@127.0.0.1")
    assert "or --none" in operator.refused("psap", "set", "velbert", "112", code=2)


def test_reseed_without_a_snapshot_or_a_loss_is_refused(operator: Operator) -> None:
    assert "no snapshot of a node" in operator.refused("reseed")


def test_reseed_fills_an_emptied_store_from_the_nodes_last_snapshot(operator: Operator, server: Server) -> None:
    from policy import profiles
    from policy.build import snapshot_of
    from sipproxy import policy_cache, policy_files

    files = policy_files.Files(
        lines=(str(EXAMPLES / "lines.csv"),),
        psap=(str(EXAMPLES / "psap.csv"),),
        blocks=(str(EXAMPLES / "blocks.csv"),),
    )
    change = policy_files.read_change(files, realm="sip.example")
    parts = (change.lines, change.accounts, profiles.load(), change.psap, change.blocks)
    (operator.config.parent / "data").mkdir()
    policy_cache.save(operator.config.parent / "data" / "policy.snapshot", snapshot_of(9, *parts))
    server.empty()
    assert operator.json("reseed", "--dry-run")["changed"] == 11
    assert operator.json("line", "list") == []
    told = operator.json("reseed")
    assert (told["version"], told["from_version"]) == (10, 9)
    assert len(operator.json("line", "list")) == 2
    assert len(operator.json("block", "list")) == 2
    assert "nothing was lost" in operator.refused("reseed")


def test_configured_toml_files_are_checked_and_read(operator: Operator, tmp_path: Path) -> None:
    for kind in ("line", "psap"):
        extra = ("--with-secrets",) if kind == "line" else ()
        operator.ok(kind, "export", "-o", tmp_path / f"{kind}.toml", *extra)
    operator.config.write_text(operator.config.read_text() + 'lines = ["line.toml"]\npsap = ["psap.toml"]\n')
    assert operator.json("check")["lines"] == 2
    text = (tmp_path / "psap.toml").read_text()
    (tmp_path / "psap.toml").write_text(text.replace('service = "112"', 'service = "113"', 1))
    fault = json.loads(operator.run("check", "--json", code=1).stdout)["faults"][0]
    row = text.split("\n").index('service = "112"') + 1
    assert (Path(fault["file"]).name, fault["line"], fault["key"]) == ("psap.toml", row, "service")
