"""Recorded calls against a changed list."""

from __future__ import annotations

import dataclasses

import pytest
from policy_samples import OWN, account_of, line_of, snapshot_with

from policy.build import snapshot_of
from policy.model import Account, AccountKind, BlockRule, Line, LineStatus, RuleAction, RuleDirection, RuleLevel, Snapshot
from policy.profiles import load
from policy.replay import Recorded, Replay
from policy.windows import parse_windows

MONDAY_MS = 1_790_000_000_000 // 86_400_000 * 86_400_000  # 2026-09-21, 02:00 in Berlin


def call(dialled: str, verdict: str = "allow", **fields: object) -> Recorded:
    given: dict[str, object] = {
        "id": "c1",
        "direction": "outgoing",
        "line": "L1",
        "account": "a1",
        "dialled": f"sip:{dialled}@sip.example",
        "calling": OWN["velbert"],
        "presented": "a1",
        "setup_at_ms": MONDAY_MS,
        "verdict": verdict,
        **fields,
    }
    return Recorded(**given)  # type: ignore[arg-type]


def replayed(before: Snapshot, rules: list[BlockRule], *calls: Recorded) -> Replay:
    found = Replay(before, dataclasses.replace(before, blocks=tuple(rules)))
    for item in calls:
        found.take(item)
    return found


def test_replay_counts_calls_lines_and_destinations_that_would_have_been_refused() -> None:
    lines = [line_of(), Line("L2", "velbert", LineStatus.ACTIVE, None, "town", "02052", ("a2",))]
    accounts = [account_of(), Account("a2", "L2", AccountKind.SINGLE, {}, ("+492052988111",))]
    before = snapshot_of(1, lines, accounts, load(), (), ())
    found = replayed(
        before,
        [BlockRule("r", "+43", "fraud"), BlockRule("s", "+4419", "fraud")],
        call("0043664123456"),
        call("+43664123456", line="L2", account="a2"),
        call("+431234567"),
        call("004419001234"),
        call("+44207001234"),
        call("03023125001"),
    )
    assert (found.calls, found.refused.calls, found.allowed.calls) == (6, 4, 0)
    assert dict(found.refused.lines) == {"L1": 3, "L2": 1}
    assert dict(found.refused.destinations) == {"+43664123456": 2, "+431234567": 1, "+4419001234": 1}
    assert dict(found.refused.rules) == {"block.rule.r": 3, "block.rule.s": 1}
    assert [item.dialled for item in found.refused.examples][:1] == ["sip:0043664123456@sip.example"]


def test_replay_newly_allowed_calls_are_those_that_were_refused_and_still_would_be() -> None:
    before = snapshot_with(BlockRule("r", "+43", "fraud"))
    after = [BlockRule("r", "+43", "fraud"), BlockRule("x", "+43664", "a customer", action=RuleAction.ALLOW)]
    found = replayed(before, after, call("0043664123456", "deny"), call("00431234567", "deny"), call("03023125001", "deny"))
    assert (found.refused.calls, found.allowed.calls) == (0, 1)
    assert dict(found.allowed.rules) == {"block.rule.r": 1}


def test_replay_leaves_out_what_the_change_does_not_bring_about() -> None:
    blocked = BlockRule("r", "+43", "fraud")
    same = replayed(snapshot_with(blocked), [blocked], call("+43664123456"), call("+43664123456", "deny"))
    assert (same.refused.calls, same.allowed.calls) == (0, 0)
    barred = snapshot_with(line=line_of(status=LineStatus.BARRED_OUT))
    assert replayed(barred, [blocked], call("+43664123456")).refused.calls == 0
    was_full = replayed(snapshot_with(), [blocked], call("+43664123456", "deny"))  # refused then, for want of a channel
    assert was_full.refused.calls == 0
    gone = replayed(snapshot_with(), [blocked], call("+43664123456", line="L9"), call("+499", direction="incoming"))
    assert (gone.unknown, gone.refused.calls) == (2, 0)


def test_replay_decides_at_the_time_of_the_call() -> None:
    rule = BlockRule("r", "+43", "at work", windows=parse_windows("mo-fr 08:00-17:00"))
    hours = [call("+43664123456", setup_at_ms=MONDAY_MS + hour * 3_600_000) for hour in range(24)]
    assert replayed(snapshot_with(), [rule], *hours).refused.calls == 9


def test_replay_incoming_calls_go_by_the_callers_number() -> None:
    rule = BlockRule("r", "+493023125", "nuisance", line="L1", level=RuleLevel.CUSTOMER, direction=RuleDirection.INCOMING)
    own = OWN["velbert"]
    calls = [
        call(own, direction="incoming", calling="+493023125001", presented="+493023125001"),
        call(own, direction="incoming", calling="+493099999001", presented="+493099999001"),
        call(own, direction="incoming", calling="", presented=""),
        call(own, direction="internal", calling="+493023125001"),
    ]
    found = replayed(snapshot_with(), [rule], *calls)
    assert dict(found.refused.rules) == {"block.rule.r": found.refused.calls}
    assert found.refused.calls >= 1
    assert found.refused.examples[0] == calls[0]


@pytest.mark.parametrize("dialled", ["112", "110", "112233", "01033112", "urn:service:sos", "%31%31%32", "+112"])
@pytest.mark.parametrize("verdict", ["emergency", "allow", "deny"])
def test_replay_never_touches_an_emergency_call(dialled: str, verdict: str) -> None:
    rules = [BlockRule(f"r{value}", value, "x") for value in ("service:", "service:112", "+", "+1", "carrier:", "s")]
    found = replayed(snapshot_with(), rules, call(dialled, verdict)._replace(dialled=dialled))
    assert (found.calls, found.emergencies, found.refused.calls, found.allowed.calls) == (1, 1, 0, 0)
