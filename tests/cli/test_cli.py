"""The commands as an operator runs them: as processes, with their exit codes, output and faults."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from answering import answering

from sipproxy import cli
from sipproxy.admin.control import ControlError, Handler

ROOT = Path(__file__).resolve().parent.parent.parent
LINES = "line,profile,status,channels,location,area_code,account,kind,password,number\n"
COMMANDS = (
    ["up"],
    ["serve"],
    ["check"],
    ["calls"],
    ["calls", "end"],
    ["registrations"],
    ["nodes"],
    ["trunks"],
    ["demo"],
    ["explain"],
    ["reseed"],
    *(["line", name] for name in ("import", "export", "list", "show", "add", "set", "password", "bar", "unbar", "remove")),
    *(["psap", name] for name in ("import", "export", "list", "set", "check")),
    *(["block", name] for name in ("import", "export", "list", "add", "remove", "history", "rollback", "lint", "replay")),
    *(["drops", name] for name in ("list", "add", "remove")),
    *(["trace", name] for name in ("follow", "list", "accesses")),
    *(["cdr", name] for name in ("tail", "export", "purge", "invoiced", "hold", "held", "release", "access", "quality")),
    *(["cdr", name] for name in ("pull", "ack", "groups", "verify")),
    *(["cdr", "dead", name] for name in ("list", "show", "requeue", "drop")),
)


def run(*arguments: str | Path, cwd: Path = ROOT, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SIPPROXY_CONFIG"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [sys.executable, "-m", "sipproxy", *map(str, arguments)],
        cwd=cwd,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def answer(*arguments: str | Path, cwd: Path = ROOT) -> Any:
    done = run(*arguments, "--json", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def sigint() -> Iterator[None]:
    """Children hear SIGINT. A shell without job control starts what it puts into the background, and all that comes from it,
    with SIGINT ignored, and Python then leaves it so; a signal that is caught is back to its default after exec."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration with the example's policy files, on an embedded store that nothing has used yet."""
    file = tmp_path / "node.toml"
    examples = ROOT / "examples"
    file.write_text(
        f"[policy]\nlines = ['{examples / 'lines.csv'}']\npsap = ['{examples / 'psap.csv'}']\n"
        f"blocks = ['{examples / 'blocks.csv'}']\n"
    )
    return file


@pytest.fixture
def node(config: Path) -> Iterator[dict[str, Handler]]:
    """Something that answers on the control socket of `config`'s data directory; handlers can be put into the dict."""
    (config.parent / "data").mkdir()
    handlers: dict[str, Handler] = {}
    with answering(config.parent / "data", handlers):
        yield handlers


def test_every_command_that_there_is_stands_in_the_list() -> None:
    def names(group: Any) -> Iterator[list[str]]:
        for name, command in group.commands.items():
            found = [*names(command)] if hasattr(command, "commands") else []
            if not found or command.invoke_without_command:
                yield [name]
            yield from ([name, *rest] for rest in found)

    assert sorted(names(typer.main.get_command(cli.app))) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_every_command_tells_its_options(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert f"Usage: sipproxy {' '.join(command)}" in done.stdout
    assert "--json" in done.stdout


def test_help_names_every_command_in_the_readme_or_operation_guide() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "operation.md").read_text()
    for command in COMMANDS:
        assert f"sipproxy {' '.join(command)}" in text


def test_help_loads_the_options_alone_so_that_it_answers_at_once() -> None:
    """The bound is 150 ms, which a busy machine does not keep; what takes time are imports, and those can be counted."""
    program = (
        "import sys\nsys.argv = ['sipproxy', '--help']\nfrom sipproxy.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stderr.split()
    ours = {name for name in loaded if name.split(".")[0] in ("sipproxy", "policy", "cdr", "loadtest")}
    assert {name for name in ours if not name.startswith("sipproxy.cli")} == {"sipproxy"}
    assert not {"asyncio", "redis", "msgspec", "rich", "structlog", "prometheus_client", "dns", "uvloop"} & set(loaded)
    assert len(loaded) < 250, "it was 151"


def test_usage_unknown_command_or_option_exits_2() -> None:
    assert run("nonsense").returncode == 2
    assert run("line", "show").returncode == 2
    assert run("explain", "V1001").returncode == 2
    assert run("explain", "--batch", "x.csv", "V1001", "110").returncode == 2
    assert run("explain", "V1001", "110", "--at", "yesterday").returncode == 2


@pytest.mark.parametrize(
    "command", [["line", "list"], ["check"], ["calls"], ["up"], ["cdr", "tail"], ["explain", "V1", "110"]], ids=" ".join
)
def test_config_absent_file_is_named_with_what_to_do(tmp_path: Path, command: list[str]) -> None:
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("config.toml: cannot be read")
    assert "-c FILE" in done.stderr
    assert done.stdout == ""


def test_check_example_is_ok_and_counts_what_it_holds() -> None:
    found = answer("check", "-c", "config.example.toml")
    assert found["ok"] is True
    assert found["warnings"] == []
    assert (found["lines"], found["psap_routes"]) == (2, 4)
    assert run("check", "-c", "config.example.toml").stdout.startswith("config.example.toml: ok, 2 lines")


def test_check_faults_of_configuration_are_told_with_line_and_key(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("[node]\nidd = 1\n[store]\nslots = 'x'\n")
    done = run("check", "-c", "x.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "x.toml:2: node.idd: unknown key; did you mean 'id'?",
        "x.toml:4: store.slots: one of 'local', 'refuse', got 'x'",
    ]
    as_json = json.loads(run("check", "-c", "x.toml", "--json", cwd=tmp_path).stdout)
    assert [(fault["file"], fault["line"], fault["key"]) for fault in as_json["faults"]] == [
        ("x.toml", 2, "node.idd"),
        ("x.toml", 4, "store.slots"),
    ]


def test_check_faults_of_policy_files_are_told_with_file_row_and_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LINES + "V1,nowhere,active,,x,02051,a,single,pw,+492051555101\n")
    (tmp_path / "b.csv").write_text(LINES + "V2,velbert,active,none,x,02051,b,single,pw,+492051555102\n")
    (tmp_path / "x.toml").write_text("[policy]\nlines = ['a.csv', 'b.csv']\n")
    faults = json.loads(run("check", "-c", "x.toml", "--json", cwd=tmp_path).stdout)["faults"]
    assert [(Path(fault["file"]).name, fault["line"], fault["key"]) for fault in faults] == [
        ("a.csv", 2, "profile"),
        ("b.csv", 2, "channels"),
    ]


def test_check_same_number_in_two_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LINES + "V1,velbert,active,,x,02051,a,single,pw,+492051555101\n")
    (tmp_path / "b.csv").write_text(LINES + "V2,velbert,active,,x,02051,b,single,pw,+492051555101\n")
    (tmp_path / "x.toml").write_text("[policy]\nlines = ['a.csv', 'b.csv']\n")
    done = run("check", "-c", "x.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert "number +492051555101 stands in two of them" in done.stderr


def test_check_location_without_psap_route_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(LINES + "V1,velbert,active,,hill,02051,a,single,pw,+492051555101\n")
    (tmp_path / "x.toml").write_text("[policy]\nlines = ['a.csv']\n")
    found = answer("check", "-c", "x.toml", cwd=tmp_path)
    assert [re.findall(r"hill|110|112", warning) for warning in found["warnings"]] == [["hill", "110"], ["hill", "112"]]


def test_import_then_list_and_show_without_a_node_uses_the_embedded_store(config: Path) -> None:
    done = run("line", "list", "-c", config)
    assert done.returncode == 3
    assert "sipproxy up" in done.stderr
    assert not (config.parent / "data").exists()  # a question leaves nothing behind
    assert answer("psap", "import", "examples/psap.csv", "-c", config)["version"] == 1
    imported = answer("line", "import", "examples/lines.csv", "-c", config, "--why", "first lines")
    assert (imported["version"], imported["lines"], imported["accounts"]) == (2, 2, 3)
    assert answer("block", "import", "examples/blocks.csv", "-c", config)["version"] == 3
    assert [(row["line"], row["channels"]) for row in answer("line", "list", "-c", config)] == [("B2001", 2), ("V1001", 3)]
    shown = answer("line", "show", "02051555102", "-c", config)
    assert shown["line"] == "V1001"
    assert shown["psap"]["112"] == ["sip:112@127.0.0.1:5090"]
    assert answer("line", "show", "+49603255501", "-c", config)["line"] == "B2001"
    assert len(answer("psap", "list", "-c", config)) == 4
    assert {row["value"] for row in answer("block", "list", "-c", config)} == {"+882", "+883"}
    table = run("line", "list", "-c", config).stdout
    assert table.splitlines()[0].split()[:2] == ["line", "profile"]
    assert not re.search("try-v1001|ha1", table + json.dumps(shown), re.IGNORECASE)
    assert run("line", "show", "V9", "-c", config).returncode == 1
    assert run("cdr", "tail", "-c", config).stdout == "no call detail records\n"


def test_import_faulty_file_applies_nothing_and_tells_every_fault(config: Path) -> None:
    answer("psap", "import", "examples/psap.csv", "-c", config)
    answer("line", "import", "examples/lines.csv", "-c", config)
    faulty = config.parent / "faulty.csv"
    faulty.write_text(
        LINES + "V7,velbert,active,,velbert,02051,a,single,pw,+492051555107\nV8,velbert,odd,x,velbert,02051,b,single,pw,1\n"
    )
    done = run("line", "import", faulty, "-c", config)
    assert done.returncode == 1
    assert [line.split(": ")[:2] for line in done.stderr.splitlines()] == [
        [f"{faulty}:3", "status"],
        [f"{faulty}:3", "channels"],
        [f"{faulty}:3", "number"],
    ]
    assert [row["line"] for row in answer("line", "list", "-c", config)] == ["B2001", "V1001"]


def test_import_number_of_another_line_is_refused(config: Path) -> None:
    answer("psap", "import", "examples/psap.csv", "-c", config)
    answer("line", "import", "examples/lines.csv", "-c", config)
    taking = config.parent / "taking.csv"
    taking.write_text(LINES + "V7,velbert,active,,velbert,02051,a,single,pw,+492051555101\n")
    done = run("line", "import", taking, "-c", config)
    assert done.returncode == 1
    assert "V1001" in done.stderr
    assert [row["line"] for row in answer("line", "list", "-c", config)] == ["B2001", "V1001"]


def test_store_url_that_nobody_answers_on_exits_3_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f"[store]\nurl = 'unix://:hidden@{tmp_path}/absent.sock'\n")
    done = run("line", "list", "-c", "x.toml", cwd=tmp_path)
    assert done.returncode == 3
    assert "no store answers" in done.stderr
    assert "hidden" not in done.stderr


def test_explain_before_anything_ran_takes_the_files_and_says_so(config: Path) -> None:
    found = answer("explain", "V1001", "09001234567", "-c", config)
    assert (found["verdict"], found["status"], found["source"]) == ("deny", 403, "files named by [policy]")
    assert not (config.parent / "data").exists()
    answer("psap", "import", "examples/psap.csv", "-c", config)
    answer("line", "import", "examples/lines.csv", "-c", config)
    found = answer("explain", "+492051555102", "02051555101", "-c", config)
    assert (found["verdict"], found["callee"], found["source"]) == ("allow", "v1001-1", "store, version 2")
    words = run("explain", "B2001", "112", "-c", config)
    assert words.returncode == 0
    assert "EMERGENCY by emergency.target" in words.stdout


def test_explain_batch_without_a_configuration_uses_the_shipped_profiles(tmp_path: Path) -> None:
    rows = (
        "id,profile,caller_area_code,caller_e164,dialled\n1,velbert,02051,+492051555101,0900123456\n2,badnauheim,06032,,112\n"
    )
    (tmp_path / "b.csv").write_text(rows)
    done = run("explain", "--batch", "b.csv", cwd=tmp_path)
    assert done.returncode == 0
    found = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["id"], row["canonical"], row["decision"]) for row in found] == [
        ("1", "+49900123456", "block"),
        ("2", "service:112", "emergency"),
    ]
    assert list(found[0]) == ["id", "canonical", "class", "decision", "status", "rule", "reason"]
    assert run("explain", "--batch", "-", cwd=tmp_path, text=rows).stdout == done.stdout
    assert json.loads(run("explain", "--batch", "-", "--json", cwd=tmp_path, text=rows).stdout) == found


def test_explain_batch_faulty_file_names_row_and_column(tmp_path: Path) -> None:
    done = run(
        "explain", "--batch", "-", cwd=tmp_path, text="id,profile,caller_area_code,caller_e164,dialled\n1,x,02051,,110\n"
    )
    assert done.returncode == 1
    assert re.match(r"-:2: profile: ", done.stderr)
    assert run("explain", "--batch", "absent.csv", cwd=tmp_path).returncode == 1


def test_calls_without_a_node_says_how_to_start_one(config: Path) -> None:
    for command in ("calls", "nodes", "registrations", "trunks"):
        done = run(command, "-c", config)
        assert done.returncode == 3
        assert "no node answers" in done.stderr
        assert "sipproxy up" in done.stderr


def test_calls_and_registrations_of_a_running_node_are_shown(config: Path, node: dict[str, Handler]) -> None:
    call = {"id": "c1", "state": "answered", "line": "V1001", "dialled": "[bold]0611"}
    node["calls"] = lambda _: {"calls": [call]}
    node["registrations"] = lambda _: {
        "registrations": [{"account": "v1001-1", "contact": "sip:a@127.0.0.1", "node": "n2", "expires_at_ms": 1}],
        "store": {"state": "away", "reason": "refused"},
    }
    assert answer("calls", "-c", config) == [call]
    assert "[bold]0611" in run("calls", "-c", config).stdout  # what a peer sent is no markup
    table = run("registrations", "-c", config).stdout.splitlines()
    assert re.split(r"\s{2,}", table[1].strip())[:1] == ["v1001-1"]
    node["calls"] = lambda _: {"calls": []}
    assert run("calls", "-c", config).stdout == "no calls\n"


def test_nodes_are_shown_and_that_the_store_is_away(config: Path, node: dict[str, Handler]) -> None:
    row = {"node": "n2", "state": "silent", "listen": ["udp 192.0.2.2:5060", "tcp 192.0.2.2:5060"], "heartbeat_age_ms": 90_000}
    row |= {"version": "0.1.0", "uptime_s": 9, "calls": 0, "closed": []}
    reply = {
        "nodes": [row, {**row, "node": "n3", "closed": ["draining"]}],
        "store": {"state": "away", "reason": "timeout", "read_at_ms": 5},
    }
    node["nodes"] = lambda _: reply
    done = run("nodes", "-c", config)
    assert done.stdout.splitlines()[1].split()[:5] == ["n2", "silent", "udp", "192.0.2.2:5060,", "tcp"]
    assert [re.split(r"\s{2,}", line)[6] for line in done.stdout.splitlines()] == ["new calls", "yes", "no: draining"]
    assert done.stderr == "the store is away (timeout): what is said of other nodes is as of then\n"
    assert answer("nodes", "-c", config) == reply
    shown = run("registrations", "-c", config)
    assert shown.returncode == 1, "a handler that is not there is a fault that is told"
    node["registrations"] = lambda _: {"registrations": [], "store": reply["store"]}
    shown = run("registrations", "-c", config, "--json")
    assert (shown.stdout, shown.stderr.partition(":")[0]) == ("[]\n", "the store is away (timeout)")


@pytest.mark.usefixtures("sigint")
@pytest.mark.parametrize("command", ["calls", "registrations", "nodes"])
def test_watch_shows_it_again_and_again_until_interrupted(config: Path, node: dict[str, Handler], command: str) -> None:
    node[command] = lambda _: {command: [], "store": {"state": "up", "reason": ""}}
    words = [sys.executable, "-m", "sipproxy", command, "--watch", "-c", str(config)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        shown = [watching.stdout.readline() for _ in range(4)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130
    assert shown[1::2] == [f"no {command}\n"] * 2
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d\n", line) for line in shown[::2])


@pytest.mark.usefixtures("sigint")
def test_trunks_of_a_running_node_are_shown_once_or_again_and_again(config: Path, node: dict[str, Handler]) -> None:
    row = {
        "trunk": "carrier",
        "state": "down",
        "since_ms": 1_790_000_000_000,
        "calls": 3,
        "limit": 30,
        "ping_ms": 12,
        "last_failure": "no_ping",
        "last_failure_at_ms": 1_790_000_000_000,
        "registration": "refused 403",
        "expires_at_ms": None,
        "addresses": [
            {
                "address": "192.0.2.10:5060",
                "transport": "udp",
                "record": "SRV _sip._udp.carrier.example, A a.carrier.example",
                "reachable": True,
                "dead": True,
                "dead_since_ms": 1_790_000_000_000,
                "dead_for_s": 40,
                "why": "timeout",
            }
        ],
    }
    node["trunks"] = lambda _: {"trunks": [row]}
    known = {**row, "calls_all_nodes": None}
    assert answer("trunks", "-c", config) == [known]
    _, first, *_, last = run("trunks", "-c", config).stdout.splitlines()
    cells = re.split(r"\s{2,}", first.strip())
    assert (cells[0], cells[1], *cells[3:6], cells[7]) == ("carrier", "down", "3", "30", "12 ms", "refused 403")
    cells = re.split(r"\s{2,}", last.strip())
    assert (*cells[:4], *cells[5:7]) == ("carrier", "192.0.2.10:5060", "udp", "dead", "timeout", "40 s")
    assert cells[7] == "SRV _sip._udp.carrier.example, A a.carrier.example"
    command = [sys.executable, "-m", "sipproxy", "trunks", "--watch", "--json", "-c", str(config)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert [json.loads(watching.stdout.readline()) for _ in range(2)] == [[known], [known]]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 130
    node["trunks"] = lambda _: {"trunks": []}
    assert run("trunks", "-c", config).stdout == "no trunk routes\n"


def test_calls_end_tells_what_became_of_the_call(config: Path, node: dict[str, Handler]) -> None:
    asked: list[dict[str, Any]] = []

    def end(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        if request["call"] == "gone":
            raise ControlError("there is no live call 'gone' on this node")
        return {"id": request["call"], "state": "answered"}

    node["end"] = end
    assert answer("calls", "-c", config, "end", "c1") == {"id": "c1", "state": "answered"}
    assert run("calls", "end", "c2", "--emergency", "-c", config).stdout == "c2: ended: a BYE went to both parties\n"
    assert asked == [{"call": "c1", "emergency": False}, {"call": "c2", "emergency": True}]
    done = run("calls", "end", "gone", "-c", config)
    assert (done.returncode, done.stderr) == (1, "there is no live call 'gone' on this node\n")


def test_calls_node_that_refuses_exits_1(config: Path, node: dict[str, Handler]) -> None:
    done = run("calls", "-c", config)
    assert done.returncode == 1
    assert "unknown command 'calls'" in done.stderr


def test_serve_without_a_shared_store_is_refused(config: Path) -> None:
    done = run("serve", "-c", config)
    assert done.returncode == 1
    assert "store.url" in done.stderr


def test_output_closed_pipe_is_no_fault() -> None:
    done = subprocess.run(
        f"{sys.executable} -m sipproxy check -c config.example.toml --json | true",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
