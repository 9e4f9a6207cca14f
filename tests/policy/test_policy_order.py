"""The order of the rules: line states, the product, lists of the operator and the customer, rate, channels; never help."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_rules import START_MS, is_open, kind_of, naive_rule, rule_sets
from policy_samples import OWN, PROFILES, ROUTES, account_of, line_of

from policy import evaluate, rule_family
from policy.build import snapshot_of
from policy.explain import explain_attempt
from policy.model import (
    WEEK_MS,
    Account,
    AccountKind,
    BlockRule,
    CallAttempt,
    Direction,
    Line,
    LineStatus,
    Profile,
    RuleAction,
    RuleDirection,
    RuleKind,
    RuleLevel,
    Screening,
    Snapshot,
    Verdict,
)
from policy.windows import parse_windows

ALLOW, DENY, EMERGENCY = Verdict.ALLOW, Verdict.DENY, Verdict.EMERGENCY
HOTLINE = "06032807807"
CUSTOMER = RuleLevel.CUSTOMER


def rule(key: str, value: str, **fields: object) -> BlockRule:
    return BlockRule(key, value, "x", **fields)  # type: ignore[arg-type]


def world(*rules: BlockRule, line: Line | None = None, **profile: object) -> tuple[Snapshot, Line]:
    found = line or line_of()
    known = {name: dataclasses.replace(item, **profile) for name, item in PROFILES.items()}  # type: ignore[arg-type]
    return snapshot_of(7, [found], [account_of(found.profile)], known, ROUTES, rules), found


def said(
    target: str, *rules: BlockRule, line: Line | None = None, at_ms: int = START_MS, **fields: object
) -> tuple[Verdict, str]:
    snapshot, found = world(*rules, line=line)
    attempt = CallAttempt(Direction.OUTGOING, target.encode(), found, account_of(found.profile), **fields)  # type: ignore[arg-type]
    decision = evaluate(attempt, snapshot, at_ms)
    return decision.verdict, decision.rule


def said_in(
    caller: str, *rules: BlockRule, line: Line | None = None, at_ms: int = START_MS, shown: str = ""
) -> tuple[Verdict, str]:
    snapshot, found = world(*rules, line=line)
    own = OWN[found.profile].encode()
    decision = evaluate(CallAttempt(Direction.INCOMING, own, network=caller, caller=shown or caller), snapshot, at_ms)
    return decision.verdict, decision.rule


@pytest.mark.parametrize("status", [LineStatus.BARRED_OUT, LineStatus.BARRED_FULL, LineStatus.FRAUD_HOLD])
def test_barred_line_reaches_help_and_the_carriers_hotline(status: LineStatus) -> None:
    line = line_of("badnauheim", status)
    assert said("112", line=line) == (EMERGENCY, "emergency.target")
    assert said("807807", line=line) == (ALLOW, "allow")
    assert said(HOTLINE, line=line) == (ALLOW, "allow")
    assert said("06032807808", line=line) == (DENY, f"line.status.{status}")
    assert said(HOTLINE, line=line, slots_used=2) == (DENY, "line.channels")  # no channel is made for it
    assert said(HOTLINE, line=line_of("velbert", status)) == (DENY, f"line.status.{status}")  # another carrier's


def test_terminated_line_reaches_nobody() -> None:
    line = line_of("badnauheim", LineStatus.TERMINATED)
    for target in ("112", HOTLINE):
        assert said(target, line=line) == (DENY, "line.status.terminated")


def test_barred_line_says_why() -> None:
    line = dataclasses.replace(line_of(status=LineStatus.BARRED_OUT), status_reason="payment, warned on 3 March")
    snapshot, _ = world(line=line)
    decision = evaluate(CallAttempt(Direction.OUTGOING, b"030231", line), snapshot, 0)
    assert decision.reason == "line is barred_out: payment, warned on 3 March"


@pytest.mark.parametrize(
    ("status_at_ms", "since_ms", "first_ms"),
    [
        (0, 0, 0),
        (START_MS, 0, START_MS),
        (START_MS, START_MS - 3 * WEEK_MS, START_MS),
        (START_MS, START_MS - 1000, START_MS - 1000 + WEEK_MS),  # TKG § 61(4): a week after outgoing at the earliest
        (0, START_MS, START_MS + WEEK_MS),
    ],
)
def test_barred_full_line_is_called_until_its_day(status_at_ms: int, since_ms: int, first_ms: int) -> None:
    barred = line_of(status=LineStatus.BARRED_FULL)
    line = dataclasses.replace(barred, status_at_ms=status_at_ms, barred_since_ms=since_ms)
    assert said_in("+4930123456", line=line, at_ms=first_ms) == (DENY, "line.status.barred_full")
    assert said_in("+4930123456", line=line, at_ms=first_ms - 1) == (ALLOW, "allow")
    for at_ms in (0, first_ms - 1, first_ms, first_ms + WEEK_MS):  # outgoing from the first moment
        assert said("03023125001", line=line, at_ms=at_ms) == (DENY, "line.status.barred_full")


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("0043664123456", (DENY, "block.rule.austria")),
        ("+43720123456", (ALLOW, "allow.rule.but-720")),
        ("+43720999999", (DENY, "block.rule.not-this")),
        ("+44207123456", (ALLOW, "allow")),
        ("01721234567", (DENY, "block.rule.no-mobile")),
        ("01721234000", (ALLOW, "allow.rule.my-friend")),
        ("03023125001", (ALLOW, "allow")),
    ],
)
def test_lists_longest_match_decides_and_is_named(target: str, expected: tuple[Verdict, str]) -> None:
    rules = (
        rule("austria", "+43", kind=RuleKind.COUNTRY),
        rule("but-720", "+43720", action=RuleAction.ALLOW),
        rule("not-this", "+43720999999", kind=RuleKind.NUMBER),
        rule("no-mobile", "mobile", kind=RuleKind.CLASS, level=CUSTOMER, line="L1"),
        rule("my-friend", "+491721234000", kind=RuleKind.NUMBER, action=RuleAction.ALLOW, level=CUSTOMER, line="L1"),
        rule("other", "+44", line="L2"),
    )
    assert said(target, *rules) == expected


def test_lists_admin_is_above_customer() -> None:
    """A customer's exception lifts no block of the operator's, nor the operator's exception one of the customer's."""
    block, allow = rule("a", "+43"), rule("b", "+43664", action=RuleAction.ALLOW)
    mine = {"level": CUSTOMER, "line": "L1"}
    assert said("+43664123456", block, dataclasses.replace(allow, **mine)) == (DENY, "block.rule.a")
    assert said("+43664123456", dataclasses.replace(block, **mine), allow) == (DENY, "block.rule.a")
    assert said("+43664123456", block, allow) == (ALLOW, "allow.rule.b")
    assert said("+43664123456", block, dataclasses.replace(rule("c", "+4366"), **mine)) == (DENY, "block.rule.a")


def test_product_opens_only_by_an_exception_for_that_class() -> None:
    opened = {"action": RuleAction.ALLOW, "line": "L1"}
    assert said("09001123456", rule("a", "+49", **opened)) == (DENY, "block.class.premium")
    assert said("09001123456", rule("a", "+49", kind=RuleKind.COUNTRY, **opened)) == (DENY, "block.class.premium")
    assert said("09001123456", rule("a", "+499001", **opened)) == (ALLOW, "allow.rule.a")
    assert said("09001123456", rule("a", "premium", kind=RuleKind.CLASS, **opened)) == (ALLOW, "allow.rule.a")
    assert said("09001123456", rule("a", "+499001123456", kind=RuleKind.NUMBER, **opened)) == (ALLOW, "allow.rule.a")
    assert said("11869", rule("a", "service:118", **opened)) == (ALLOW, "allow.rule.a")
    assert said("11869", rule("a", "service:118", **opened), line=line_of("badnauheim")) == (ALLOW, "allow.rule.a")
    assert said("09003123456", rule("a", "+499001", **opened)) == (DENY, "block.class.premium")
    assert said("09001", rule("a", "+49900", **opened)) == (DENY, "plan.incomplete")  # nor does it invent numbers
    own = rule("a", "+499001", action=RuleAction.ALLOW, line="L1", level=CUSTOMER)
    assert said("09001123456", own) == (DENY, "block.class.premium")


def test_incoming_rules_look_at_both_of_the_callers_numbers() -> None:
    nuisance = rule("r", "+493023125", direction=RuleDirection.INCOMING, level=CUSTOMER, line="L1")
    assert said_in("+493023125001", nuisance) == (DENY, "block.rule.r")
    assert said_in("+4930999999", nuisance) == (ALLOW, "allow")
    assert said_in("+4930999999", nuisance, shown="+493023125001") == (DENY, "block.rule.r")
    assert said_in("03023125001", nuisance) == (DENY, "block.rule.r")  # as a trunk may write it
    assert said_in("", nuisance) == (ALLOW, "allow")
    friend = rule("f", "+493023125001", direction=RuleDirection.BOTH, action=RuleAction.ALLOW, level=CUSTOMER, line="L1")
    assert said_in("+493023125001", nuisance, friend) == (ALLOW, "allow.rule.f")
    assert said("+493023125001", nuisance) == (ALLOW, "allow")  # the line may call back
    assert said_in("+493023125001", rule("r", "+4930", direction=RuleDirection.OUTGOING)) == (ALLOW, "allow")


def test_incoming_refusal_by_a_rule_has_status_403() -> None:
    snapshot, _ = world(rule("r", "+43", direction=RuleDirection.INCOMING))
    attempt = CallAttempt(Direction.INCOMING, OWN["velbert"].encode(), network="+431234567")
    decision = evaluate(attempt, snapshot, 0)
    assert (decision.status, decision.cause, decision.rule) == (403, 21, "block.rule.r")


def test_rate_is_refused_behind_the_lists_and_before_the_channels() -> None:
    assert PROFILES["velbert"].setup_calls == 60
    assert said("03023125001", setups=59, slots_used=2) == (ALLOW, "allow")
    assert said("03023125001", setups=60, slots_used=3) == (DENY, "line.rate")
    assert said("09001123456", setups=60) == (DENY, "block.class.premium")
    snapshot, line = world()
    decision = evaluate(CallAttempt(Direction.OUTGOING, b"030231250", line, setups=60), snapshot, 0)
    assert (decision.status, decision.cause) == (403, 42)
    assert decision.reason == "60 of 60 calls started within 60 s"
    wide = dataclasses.replace(line_of(), channels=30)  # a trunk with ten times the channels
    assert said("03023125001", setups=599, line=wide) == (ALLOW, "allow")
    assert said("03023125001", setups=600, line=wide) == (DENY, "line.rate")
    assert said("112", setups=10_000, slots_used=10_000) == (EMERGENCY, "emergency.target")


def test_rule_families_are_bounded() -> None:
    assert {rule_family(name) for name in ("block.rule.a", "block.rule.b", "allow.rule.c", "allow", "line.rate")} == {
        "block.rule",
        "allow.rule",
        "allow",
        "line.rate",
    }


NUMBERS = {
    "+43664123456": "+43664123456",
    "+431": "+431",
    "03023125001": "+493023125001",
    "09001123456": "+499001123456",
    "11869": "service:11869",
}


@settings(max_examples=300)
@given(rule_sets(), st.sampled_from(sorted(NUMBERS)), st.integers(0, 15 * 96).map(lambda quarter: START_MS + quarter * 900_000))
def test_evaluate_follows_the_lists_as_the_naive_model_does(rules: list[BlockRule], dialled: str, at_ms: int) -> None:
    """A product that blocks nothing: what is left are the operator's list, then the customer's."""
    snapshot, line = world(*rules, blocked=())
    decision = evaluate(CallAttempt(Direction.OUTGOING, dialled.encode(), line), snapshot, at_ms)
    number = NUMBERS[dialled]
    found = [
        naive_rule(rules, level, RuleDirection.OUTGOING, "L1", "velbert", number, kind_of(number), at_ms) for level in RuleLevel
    ]
    block = next((item for item in found if item is not None and item.action is RuleAction.BLOCK), None)
    if block is not None:
        assert decision.rule == f"block.rule.{block.id}"
    elif decision.destination.status:
        assert decision.rule.startswith("plan.")
    else:
        exception = found[0] or found[1]
        assert decision.rule == (f"allow.rule.{exception.id}" if exception is not None else "allow")


def test_windows_of_a_rule_follow_the_clock_on_the_wall() -> None:
    night = parse_windows("su 02:00-03:00")
    for minute in range(0, 30 * 24 * 60, 13):
        at_ms = START_MS + minute * 60_000
        expected = "block.rule.r" if is_open(night, at_ms) else "allow"
        assert said("+431234567", rule("r", "+43", windows=night), at_ms=at_ms)[1] == expected


EMERGENCIES = st.sampled_from(
    ["110", "112", "112233", "1-1-2", "%31%31%32", "sip:112@x;user=phone", "tel:112;phone-context=+49", "urn:service:sos",
     "urn:service:sos.police", "01033112", "+112", "*31%23110", "sip:sos@sip.example"]
)  # fmt: skip
EVIL = st.lists(
    st.builds(
        BlockRule,
        id=st.uuids().map(str),
        value=st.sampled_from(
            ["", "+", "s", "service:", "service:1", "service:110", "service:112", "emergency", "1", "112", "-"]
        ),
        reason=st.just("x"),
        line=st.sampled_from(["", "L1"]),
        kind=st.sampled_from(RuleKind),
        action=st.sampled_from(RuleAction),
        direction=st.sampled_from(RuleDirection),
        level=st.sampled_from(RuleLevel),
    ),
    max_size=6,
)
EVIL_PROFILES = st.builds(
    dataclasses.replace,
    st.just(PROFILES["velbert"]),
    channels=st.integers(0, 3),
    blocked=st.sampled_from([(), tuple(sorted({kind for profile in PROFILES.values() for kind in profile.blocked}))]),
    screening=st.sampled_from(Screening),
    setup_calls=st.integers(0, 2),
    refusal=st.just((486, 17)),
)


@settings(max_examples=400)
@given(
    EMERGENCIES,
    EVIL,
    rule_sets(),
    EVIL_PROFILES,
    st.sampled_from([status for status in LineStatus if status is not LineStatus.TERMINATED]),
    st.one_of(st.none(), st.integers(0, 10_000)),
    st.one_of(st.none(), st.integers(0, 10_000)),
    st.integers(0, START_MS * 2),
    st.sampled_from(["", "+43664", "110", "anonymous", "\x00"]),
)
def test_emergency_call_is_refused_by_nothing_that_can_be_entered(
    target: str,
    evil: list[BlockRule],
    rules: list[BlockRule],
    profile: Profile,
    status: LineStatus,
    slots: int | None,
    setups: int | None,
    at_ms: int,
    caller: str,
) -> None:
    """design.md, invariant 1."""
    line = dataclasses.replace(line_of(status=status), status_at_ms=at_ms, clir=True)
    account = Account("a1", "L1", AccountKind.TRUNK, {}, (OWN["velbert"],))
    snapshot = snapshot_of(1, [line], [account], {"velbert": profile}, ROUTES, [*evil, *rules])
    attempt = CallAttempt(
        Direction.OUTGOING, target.encode(), line, account, caller, slots, setups, privacy=True, anonymous=True
    )  # fmt: skip
    explained = explain_attempt(attempt, snapshot, at_ms)
    decision = explained.decision
    assert decision.verdict is EMERGENCY
    assert decision.psap
    assert (decision.restricted, decision.presented, decision.channels) == (False, OWN["velbert"], None)
    assert all(item.said != "decides" for item in explained.rules)
