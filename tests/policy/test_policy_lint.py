"""What lint finds, and that a rule which it calls without effect has none."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_rules import START_MS, rule_sets
from policy_samples import PROFILES, account_of, line_of

from policy import evaluate
from policy.build import snapshot_of
from policy.lint import Finding, Severity, check, check_rules
from policy.model import BlockRule, CallAttempt, Direction, Line, LineStatus, RuleAction, RuleDirection, RuleKind, RuleLevel
from policy.windows import parse_windows

NUMBER, CLASS, COUNTRY = RuleKind.NUMBER, RuleKind.CLASS, RuleKind.COUNTRY
ALLOW = RuleAction.ALLOW
CUSTOMER = RuleLevel.CUSTOMER
HOTLINE = "+496032807807"
DAY_MS = 24 * 3600 * 1000


def rule(value: str, *, id: str = "r", reason: str = "x", **fields: object) -> BlockRule:  # noqa: A002 - the field's name
    return BlockRule(id, value, reason, **fields)  # type: ignore[arg-type]


INTERNATIONAL = rule("international", kind=CLASS)


def found(*rules: BlockRule) -> list[tuple[str, str, str]]:
    return [(item.code, item.rule, item.number) for item in check_rules(rules, PROFILES, {"L1": line_of()}, START_MS)]


@pytest.mark.parametrize(
    ("value", "kind", "number"),
    [
        ("service:110", RuleKind.PREFIX, "110"),
        ("service:112", NUMBER, "112"),
        ("service:11", RuleKind.PREFIX, "112"),
        ("service:", RuleKind.PREFIX, "112"),
        ("s", RuleKind.PREFIX, "112"),
        ("", RuleKind.PREFIX, "112"),
        ("emergency", CLASS, "112"),
    ],
)
def test_lint_rule_that_would_catch_an_emergency_call_is_an_error(value: str, kind: RuleKind, number: str) -> None:
    item = check_rules([rule(value, kind=kind)], PROFILES, None, 0)[0]
    assert (item.severity, item.code, item.number) == (Severity.ERROR, "emergency", number)
    assert number in str(item)
    # Nor does an exception make it better: the calls never come to the rules.
    assert "emergency" in [code for code, _, _ in found(rule(value, kind=kind), rule("service:112", id="x", action=ALLOW))]


@pytest.mark.parametrize(
    ("given_rule", "number"),
    [
        (rule("service:116"), "116117"),
        (rule("service:116111", kind=NUMBER), "116111"),
        (rule("service:116999", kind=NUMBER), "116999"),
        (rule("social", kind=CLASS), "116117"),
        (rule("+496032"), HOTLINE),
        (rule("+49", kind=COUNTRY, profile="badnauheim"), HOTLINE),
        (rule("geographic", kind=CLASS), HOTLINE),
        (rule(HOTLINE, kind=NUMBER, line="L1"), HOTLINE),
    ],
)
def test_lint_rule_that_catches_help_or_the_hotline_is_an_error_with_its_proof(given_rule: BlockRule, number: str) -> None:
    assert ("protected", "r", number) in found(given_rule)
    assert check_rules([given_rule], PROFILES, None, 0)[0].severity is Severity.ERROR
    own = dataclasses.replace(given_rule, level=CUSTOMER, line="L1", profile="")
    assert {item.severity for item in check_rules([own], PROFILES, None, 0)} == {Severity.WARNING}


def test_lint_exception_takes_the_hotline_out_of_what_is_caught() -> None:
    blocked = rule("+496032")
    assert not [code for code, _, _ in found(blocked, rule(HOTLINE, id="h", kind=NUMBER, action=ALLOW)) if code == "protected"]
    for other in (
        rule(HOTLINE, id="h", kind=NUMBER, action=ALLOW, valid_until_ms=5),
        rule(HOTLINE, id="h", kind=NUMBER, action=ALLOW, line="L1"),
        rule(HOTLINE, id="h", kind=NUMBER, action=ALLOW, level=CUSTOMER, line="L1"),
        rule("+49603", id="h", action=ALLOW),
    ):
        assert ("protected", "r", HOTLINE) in found(blocked, other)


@pytest.mark.parametrize(
    "given_rule",
    [
        rule("+490"),
        rule("+4900123"),
        rule("0900"),
        rule("service:119"),
        rule("service:118"[:8] + "1180001"),
        rule("carrier:02"),
        rule("+49x"),
        rule("premum", kind=CLASS),
        rule("+999", kind=COUNTRY),
        rule("43", kind=COUNTRY),
        rule("+49118", kind=NUMBER),
        rule("+43", line="gone"),
        rule("+43", profile="gone"),
        rule("+43", line="L1", profile="badnauheim"),
        rule("+43", level=CUSTOMER),
        rule("+43", valid_from_ms=5, valid_until_ms=5),
        # Two days of validity, from a Sunday: no Friday in them.
        rule("+43", valid_from_ms=START_MS, valid_until_ms=START_MS + 2 * DAY_MS, windows=parse_windows("fr 08:00-09:00")),
        rule("+43", action=ALLOW),
        rule("+43", action=ALLOW, level=CUSTOMER, line="L1"),
    ],
)
def test_lint_rule_that_no_call_meets_is_told(given_rule: BlockRule) -> None:
    assert [code for code, _, _ in found(given_rule)] == ["never"], found(given_rule)


@pytest.mark.parametrize(
    "rules",
    [
        [rule("+43")],
        [rule("service:11869", action=ALLOW)],
        [rule("+49900", action=ALLOW, line="L1")],
        [rule("+43", line="L1"), rule("+431", id="s", action=ALLOW)],
        [rule("+43"), rule("+431", id="s", action=ALLOW), rule("+4312", id="t")],
        [rule("+43", valid_until_ms=START_MS + 1), rule("+431", id="s")],
        [rule("+43", profile="velbert"), rule("+43", id="s", profile="badnauheim")],
        [rule("+49137", direction=RuleDirection.BOTH), rule("+49172", id="s", direction=RuleDirection.INCOMING)],
        [rule("+43", level=CUSTOMER, line="L1"), rule("+43", id="s")],
        [rule("+43", windows=parse_windows("mo 08:00-09:00")), rule("+43", id="s", windows=parse_windows("mo 10:00-11:00"))],
        [rule("premium", kind=CLASS, line="L1"), rule("premium", id="s", kind=CLASS, action=ALLOW)],
        [rule("+49900", level=CUSTOMER, line="L1"), rule("+499001", id="s", action=ALLOW)],
    ],
)
def test_lint_rules_that_do_something_are_let_be(rules: list[BlockRule]) -> None:
    assert found(*rules) == []


@pytest.mark.parametrize(
    ("rules", "code", "named", "other"),
    [
        ([rule("+43"), rule("+43", id="s")], "duplicate", "s", "r"),
        ([rule("+43"), rule("+43", id="s", kind=COUNTRY)], "duplicate", "s", "r"),
        ([rule("+43"), rule("+43", id="s", action=ALLOW)], "shadowed", "s", "r"),
        ([rule("+43"), rule("+43", id="s", valid_until_ms=START_MS + 9)], "shadowed", "s", "r"),
        ([rule("+43"), rule("+431", id="s")], "shadowed", "s", "r"),
        ([rule("+43"), rule("+43123456", id="s", kind=NUMBER, line="L1")], "shadowed", "s", "r"),
        ([INTERNATIONAL, rule("+43", id="s")], "shadowed", "s", "r"),
        ([rule("+43", id="s", action=ALLOW), INTERNATIONAL, rule("+431", id="t", action=ALLOW)], "shadowed", "t", "s"),
        ([rule("+499001", id="s")], "shadowed", "s", ""),
        ([rule("premium", id="s", kind=CLASS)], "shadowed", "s", ""),
        ([rule("+4316", id="s", profile="velbert", line="L1"), rule("+43", id="r", line="L1")], "shadowed", "s", "r"),
    ],
)
def test_lint_rule_that_others_make_needless_is_told(rules: list[BlockRule], code: str, named: str, other: str) -> None:
    items = check_rules(rules, PROFILES, None, START_MS)
    assert [(item.code, item.rule, item.other) for item in items] == [(code, named, other)]


def test_lint_rule_that_no_call_meets_does_not_make_another_one_needless() -> None:
    rules = [rule("+43", id="own", level=CUSTOMER, line="L1"), rule("+43", id="nobodys", level=CUSTOMER)]
    assert found(*rules) == [("never", "nobodys", "")]


def test_lint_expired_rules_and_rules_without_reason() -> None:
    assert found(rule("+43", valid_until_ms=START_MS)) == [("expired", "r", "")]
    assert found(rule("+43", reason=" ")) == [("reason", "r", "")]


def test_lint_selective_line_without_a_rule_bars_nothing() -> None:
    line = line_of(status=LineStatus.SELECTIVE)
    empty = snapshot_of(1, [line], [account_of()], PROFILES, (), ())
    assert [item.code for item in check(empty, 0)] == ["selective"]
    assert not check(snapshot_of(1, [line], [account_of()], PROFILES, (), [rule("+43", line="L1")]), 0)


TARGETS = tuple(
    target.encode()
    for target in (
        "09001123456", "+499001", "090055", "03023125001", "030", "+431234567", "+43900123456", "+43900123457", "11869",
        "11833",
        "115", "01033", "017112345678", "+4", "+441234567",
    )
)  # fmt: skip


def verdicts(rules: list[BlockRule], line: Line) -> list[object]:
    snapshot = snapshot_of(1, [line], [account_of(line.profile)], PROFILES, (), rules)
    attempts = [CallAttempt(Direction.OUTGOING, target, line) for target in TARGETS]
    number = account_of(line.profile).numbers[0].encode()
    attempts += [CallAttempt(Direction.INCOMING, number, caller=target.decode()) for target in TARGETS]
    times = [START_MS + step * 7 * 3600 * 1000 for step in range(40)]
    return [evaluate(attempt, snapshot, at).verdict for attempt in attempts for at in times[::4]]


@settings(max_examples=120)
@given(rule_sets(), st.sampled_from(["velbert", "badnauheim"]))
def test_lint_rule_without_effect_has_none(rules: list[BlockRule], profile: str) -> None:
    line = line_of(profile)
    idle: list[Finding] = [
        item
        for item in check_rules(rules, PROFILES, {"L1": line}, START_MS - 30 * DAY_MS)
        if item.code in ("never", "duplicate", "shadowed")
    ]
    before = verdicts(rules, line) if idle else []
    for item in idle:
        assert verdicts([kept for kept in rules if kept.id != item.rule], line) == before, item


def test_lint_takes_a_second_for_twenty_thousand_rules() -> None:
    rules = [rule(f"+43{number:05d}", id=f"r{number}", line=f"L{number % 50}") for number in range(20_000)]
    assert check_rules(rules, PROFILES, None, START_MS) == ()
