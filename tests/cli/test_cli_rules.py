"""`block lint`, `block replay` and `explain` with its options, on an embedded store that holds the example's policy data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cdr import codec
from cdr.facts import Record
from policy.stamp import parse_stamp
from sipproxy.commands import accesses, block_rules, changing, explaining
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import CommandError, Output
from sipproxy.config import load

if TYPE_CHECKING:
    from redis.asyncio import Redis

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
JSON, TEXT = Output(as_json=True), Output(as_json=False)
ON_MONDAY, ON_TUESDAY = "2026-03-02T10:00", "2026-03-03T23:59"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "node.toml"
    file.write_text(
        f"[node]\ndata_dir = '{tmp_path / 'data'}'\n[policy]\nlines = ['{EXAMPLES / 'lines.csv'}']\n"
        f"psap = ['{EXAMPLES / 'psap.csv'}']\nblocks = ['{EXAMPLES / 'blocks.csv'}']\n"
    )
    return file


@pytest.fixture
def stored(config: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    for kind, name in (("psap", "psap"), ("lines", "lines"), ("blocks", "blocks")):
        changing.import_file(kind, EXAMPLES / f"{name}.csv", config, TEXT, why="test", dry_run=False)  # type: ignore[arg-type]
    capsys.readouterr()
    return config


def value(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def rules_file(tmp_path: Path, *rows: str) -> Path:
    file = tmp_path / "change.csv"
    file.write_text("id,kind,value,action,reason,line,level\n" + "".join(f"{row}\n" for row in rows))
    return file


def test_lint_of_the_rules_in_force_and_of_a_file_with_them(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert block_rules.lint(config, JSON) == 0
    before = value(capsys)
    assert before["ok"]
    change = rules_file(tmp_path, "hotline,prefix,06032,block,test,,admin", "austria,prefix,0043,block,fraud,,admin")
    assert block_rules.lint(config, JSON, file=change) == 1
    after = value(capsys)
    assert after["rules"] == before["rules"] + 2
    found = [item for item in after["findings"] if item["severity"] == "error"]
    assert [(item["code"], item["rule"], item["number"]) for item in found] == [("protected", "hotline", "+496032807807")]
    assert block_rules.lint(config, TEXT, file=change) == 1
    assert "error: rule hotline: prefix '+496032' would catch the hotline of badnauheim" in capsys.readouterr().out


def call(number: int, dialled: str, at: str, **fields: object) -> Record:
    given: dict[str, object] = {
        "id": f"c{number}", "node": "n1", "seq": number, "direction": "outgoing", "line": "V1001", "account": "v1001-1",
        "dialled": f"sip:{dialled}@sip.example", "setup_at_ms": parse_stamp(at), "verdict": "allow", **fields,
    }  # fmt: skip
    return Record(**given)  # type: ignore[arg-type]


def record_calls(config: Path, *records: Record) -> None:
    async def work(client: Redis) -> None:
        stream = load(config).cdr.stream
        for record in records:
            fields: dict[Any, Any] = {
                "id": record.id, "v": record.schema, "type": record.type, "node": record.node, "seq": record.seq,
                "d": codec.encode(record),
            }  # fmt: skip
            await client.xadd(stream, fields)
        await client.xadd(stream, {"d": b"\xff"})

    with_store(load(config), work, create=True)


def test_replay_tells_which_recorded_calls_a_change_would_touch(
    stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record_calls(
        stored,
        call(1, "0043664123456", ON_MONDAY),
        call(2, "+43664123456", ON_TUESDAY, line="B2001", account="b2001"),
        call(3, "+43664123456", "2026-03-04T00:00"),
        call(4, "112", ON_MONDAY, verdict="emergency"),
        call(5, "03023125001", ON_MONDAY),
        call(6, "0088212345678", ON_MONDAY, verdict="deny", rule="block.rule.satellite"),
    )
    change = rules_file(tmp_path, "austria,country,+43,block,fraud,,admin", "help,prefix,0110,block,useless,,admin")
    assert block_rules.replay(stored, JSON, change, "2026-03-02..2026-03-03") == 0
    found = value(capsys)
    assert (found["calls"], found["emergencies"], found["unknown"], found["unreadable"]) == (5, 1, 0, 1)
    assert {name: found["refused"][name] for name in ("calls", "lines", "destinations")} == {
        "calls": 2,
        "lines": 2,
        "destinations": 1,
    }
    assert found["refused"]["by_rule"] == {"block.rule.austria": 2}
    assert found["newly_allowed"]["calls"] == 0
    block_rules.replay(stored, TEXT, change, "2026-03-03..")
    told = capsys.readouterr().out
    assert "2 recorded calls, 0 of them emergency calls" in told
    assert "2 calls would have been refused, of 2 lines, to 1 destinations" in told
    accesses.show(stored, JSON, count=10)
    seen = [(one["command"], one["filter"], one["records"]) for one in value(capsys)]
    assert seen == [
        ("block replay", f"2026-03-02..2026-03-03 with {change}", 5),
        ("block replay", f"2026-03-03.. with {change}", 2),
    ]


@pytest.mark.parametrize(
    "period", ["", "2026-03-02", "monday..tuesday", "2026-03-03..2026-03-02", "2026-03-02T10:00..2026-03-02T10:00"]
)
def test_replay_refuses_a_period_that_is_none(stored: Path, tmp_path: Path, period: str) -> None:
    change = rules_file(tmp_path, "austria,country,+43,block,fraud,,admin")
    with pytest.raises(CommandError, match="--cdrs") as raised:
        block_rules.replay(stored, JSON, change, period)
    assert raised.value.code == 2


def test_replay_faulty_change_is_told_with_its_place(stored: Path, tmp_path: Path) -> None:
    change = rules_file(tmp_path, "austria,country,43x,block,fraud,,admin")
    with pytest.raises(CommandError, match=r"change\.csv:2: value"):
        block_rules.replay(stored, JSON, change, "..")


def test_explain_says_that_calls_started_lately_are_not_known_here(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def words(dialled: str, started: int | None) -> str:
        question = explaining.Question("V1001", dialled, started=started)
        assert explaining.explain(stored, TEXT, question, batch=None, at="") == 0
        return capsys.readouterr().out

    assert "as if the line had started no call lately" in words("03023125001", None)
    assert "lately" not in words("03023125001", 3)
    assert "lately" not in words("112", None), "nothing is counted of it"


def test_explain_call_from_outside_goes_by_the_callers_number(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(caller: str, dialled: str, **options: Any) -> Any:
        question = explaining.Question(caller, dialled, **options)
        assert explaining.explain(stored, JSON, question, batch=None, at="2026-03-02T10:00") == 0
        return value(capsys)

    found = asked("03023125001", "+492051555101", incoming=True)
    assert (found["verdict"], found["line"], found["slots_used"], found["slots_limit"]) == ("allow", "V1001", 0, 3)
    assert found["presented"] == "+493023125001"
    hidden = asked("anonymous", "+492051555101", incoming=True)
    assert (hidden["verdict"], hidden["restricted"]) == ("allow", True)
    full = asked("03023125001", "+492051555101", incoming=True, used=3)
    assert (full["rule"], full["status"], full["cause"]) == ("line.channels", 486, 17)
    fast = asked("V1001", "03023125001", started=60)
    assert (fast["rule"], fast["status"], fast["at"]) == ("line.rate", 403, "2026-03-02T10:00:00+01:00")
    blocked = asked("V1001", "0088212345678")
    assert [item["said"] for item in blocked["rules"]] != []


def forwarded(stored: Path, capsys: pytest.CaptureFixture[str], target: str, *earlier: str, **options: Any) -> Any:
    """What `explain` says of a call to V1001 that its router sends on."""
    question = explaining.Question("V1001", target, forwarded=True, earlier=earlier, **options)
    assert explaining.explain(stored, JSON, question, batch=None, at="2026-03-02T10:00") == 0
    return value(capsys)


@pytest.mark.parametrize(
    ("target", "earlier", "rule", "status"),
    [
        ("03023125001", (), "allow", None),
        ("02051555101", (), "forward.loop", 482),  # to itself
        ("03023125001", ("03023125001",), "forward.loop", 482),
        ("03023125001", ("+493023125002",) * 5, "forward.depth", 480),
        ("112", (), "forward.emergency", 480),
        ("sip:110@elsewhere.example", (), "forward.emergency", 480),
        ("sip:03023125001@elsewhere.example", (), "forward.target", 480),
        ("mailto:somebody@elsewhere.example", (), "forward.target", 480),
        ("0088212345678", (), "block.class", 480),
    ],
)
def test_explain_call_that_a_router_sends_on_tells_the_forward_rules(
    stored: Path, capsys: pytest.CaptureFixture[str], target: str, earlier: tuple[str, ...], rule: str, status: int | None
) -> None:
    found = forwarded(stored, capsys, target, *earlier)
    assert found["rule"].startswith(rule), found
    assert (found["status"], found["line"]) == (status, "V1001")
    assert found["forwarded"] == {
        "number": "+492051555101",
        "earlier": sorted({"+493023125001" if n[0] == "0" else n for n in earlier}),
    }
    if rule.startswith("forward."):
        assert found["steps"][-1] == {"rule": rule, "said": found["reason"]}
        assert any(found["reason"] in word for word in found["words"])
        assert not any(word.startswith("not asked any more") for word in found["words"]), "these rules are the last ones"


def test_explain_call_that_a_router_sends_on_counts_the_channel_that_it_has(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line has three channels, and its profile asks for one more for a forwarded call."""
    assert forwarded(stored, capsys, "03023125001", used=1)["verdict"] == "allow"
    full = forwarded(stored, capsys, "03023125001", used=2)
    assert (full["rule"], full["status"]) == ("line.channels", 480)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (explaining.Question("V1001", "0301", earlier=("03023125001",)), "--forwarded"),
        (explaining.Question("V1001", "0301", forwarded=True, incoming=True), "--incoming"),
        (explaining.Question("V1001", "0301", forwarded=True, earlier=("bob",)), "'bob' is no number"),
    ],
)
def test_explain_forwarded_asked_wrongly_says_what_to_do(stored: Path, question: explaining.Question, words: str) -> None:
    with pytest.raises(CommandError, match=words) as raised:
        explaining.explain(stored, JSON, question, batch=None, at="2026-03-02T10:00")
    assert raised.value.code == 2
