"""The order of the rules, the refusals, and the cases that the sources leave open."""

from __future__ import annotations

import dataclasses

import pytest
from policy_samples import OWN, PROFILES, ROUTES, account_of, incoming, line_of, outgoing, snapshot_with, spellings

from policy import evaluate, rule_family
from policy.build import snapshot_of
from policy.model import Account, AccountKind, BlockRule, CallAttempt, Direction, Line, LineStatus, PsapRoute, Verdict

ALLOW, DENY, EMERGENCY = Verdict.ALLOW, Verdict.DENY, Verdict.EMERGENCY

DECIDED = [  # profile, dialled, verdict, status, cause
    ("badnauheim", "115", ALLOW, 0, 0),
    ("badnauheim", "0234115", ALLOW, 0, 0),
    ("badnauheim", "11869", ALLOW, 0, 0),
    ("badnauheim", "+4911869", ALLOW, 0, 0),
    ("badnauheim", "11833", DENY, 403, 21),
    ("badnauheim", "01888123456", DENY, 403, 21),
    ("badnauheim", "0185123456", DENY, 403, 21),
    ("badnauheim", "0188123456", DENY, 403, 21),
    ("badnauheim", "01806123456", ALLOW, 0, 0),
    ("badnauheim", "01807123456", ALLOW, 0, 0),
    ("badnauheim", "01381234", ALLOW, 0, 0),
    ("badnauheim", "01641234567", ALLOW, 0, 0),
    ("badnauheim", "0080812345678", ALLOW, 0, 0),
    ("badnauheim", "116116", ALLOW, 0, 0),
    ("badnauheim", "0198933", DENY, 403, 21),
    ("velbert", "01381234", ALLOW, 0, 0),
    ("velbert", "01641234567", DENY, 403, 21),
    ("velbert", "0080812345678", DENY, 403, 21),
    ("velbert", "0080012345678", ALLOW, 0, 0),
    ("velbert", "11869", DENY, 403, 21),
    ("velbert", "115", ALLOW, 0, 0),
    ("velbert", "+97900123456", DENY, 403, 21),
    ("badnauheim", "+97900123456", DENY, 403, 21),
    ("badnauheim", "0088161234567", DENY, 403, 21),
    ("velbert", "+43900123456", ALLOW, 0, 0),
    ("velbert", "+112", EMERGENCY, 0, 0),
    ("velbert", "01033112", EMERGENCY, 0, 0),
    ("velbert", "*31%23112", EMERGENCY, 0, 0),
    ("velbert", "*31%2303023125001", ALLOW, 0, 0),
    ("velbert", "sip:sos@sip.velbert.example", EMERGENCY, 0, 0),
    ("velbert", "urn:service:sos.physician", EMERGENCY, 0, 0),
    ("velbert", "urn:service:sos.marine", EMERGENCY, 0, 0),
    ("velbert", "tel:112;phone-context=+49234", EMERGENCY, 0, 0),
    ("velbert", "%EF%BC%91%EF%BC%91%EF%BC%92", EMERGENCY, 0, 0),
    ("velbert", "492051988111", DENY, 404, 1),
    ("velbert", "+49(0)3023125001", ALLOW, 0, 0),
    ("velbert", "+49%2030%2023125001", ALLOW, 0, 0),
    ("velbert", "020519881111234", ALLOW, 0, 0),
    ("velbert", "124124", DENY, 404, 1),
    ("badnauheim", "031012345", DENY, 404, 1),
    ("badnauheim", "01611234567", DENY, 404, 1),
    ("badnauheim", "sip:03023125001:09001123456@sip.swbn.example", DENY, 400, 28),
    *(
        (profile, dialled, DENY, 403, 21)
        for profile in PROFILES
        for dialled in ("09001123456", "09009", "118000", "01033", "01212345")
    ),
    *((profile, f"018{digit}123456", DENY, 403, 21) for profile in PROFILES for digit in range(1, 10)),
    *((profile, "010012", DENY, 403, 21) for profile in PROFILES),
    *((profile, "02342", DENY, 484, 28) for profile in PROFILES),
    *((profile, "0234112", DENY, 404, 1) for profile in PROFILES),
]


@pytest.mark.parametrize(("profile", "dialled", "verdict", "status", "cause"), DECIDED)
def test_evaluate_decided_case_has_its_verdict(profile: str, dialled: str, verdict: Verdict, status: int, cause: int) -> None:
    line = line_of(profile)
    found = evaluate(outgoing(dialled, line), snapshot_with(line=line), 0)
    assert (found.verdict, found.status, found.cause) == (verdict, status, cause), found


SMUGGLED = [
    "tel:9001123456;phone-context=+49",
    "+4909001123456",
    "+49(0)9001123456",
    "+00499001123456",
    "0009001123456",
    "tel:123456;phone-context=+499001",
    "tel:0900112;phone-context=+49;rn=+493023125001",
    "0103309001123456",
    "010330049900112345",
    "0103301371123456",
    "01033988111",
    "019899001",
    "+4919833",
    "+4911833",
    "D00109001123456",
    "*31#09001123456",
    "*21*09001123456#",
    "0900",
    "09001",
    "0900112345678901",
    "sip:09001123456@elsewhere.example",
    "\u0660\u0669\u0660\u0660\u0661\u0661\u0662\u0663\u0664\u0665\u0666",
    "09001123456%00",
    "%30%39%30%30%31123456",
    "0-9-0-0-1-1-2-3-4-5-6",
    "sip:03023125001:09001123456@x",
    "tel:33;phone-context=+49118",
    "tel:11833;phone-context=+492051",
    "tel:11833;phone-context=+49",
]


@pytest.mark.parametrize("profile", sorted(PROFILES))
@pytest.mark.parametrize("dialled", SMUGGLED)
def test_evaluate_smuggled_blocked_number_is_refused(profile: str, dialled: str) -> None:
    line = line_of(profile)
    assert evaluate(outgoing(dialled, line), snapshot_with(line=line), 0).verdict is DENY


@pytest.mark.parametrize("national", ["3023125001", "9001123456", "18812345678", "1641234567", "1611234567"])
def test_evaluate_every_spelling_gets_one_decision(national: str) -> None:
    snapshot = snapshot_with(BlockRule("r", "+4930231", "on request"))
    found = {
        (decision.verdict, decision.rule, decision.status, decision.cause, decision.destination.canonical)
        for decision in (evaluate(outgoing(target), snapshot, 0) for target in spellings(national))
    }
    assert len(found) == 1
    assert next(iter(found))[0] is DENY


STATUSES = [  # status, outgoing, incoming, emergency: (verdict, status, cause)
    (LineStatus.ACTIVE, (ALLOW, 0, 0), (ALLOW, 0, 0), EMERGENCY),
    (LineStatus.SELECTIVE, (ALLOW, 0, 0), (ALLOW, 0, 0), EMERGENCY),
    (LineStatus.BARRED_OUT, (DENY, 403, 21), (ALLOW, 0, 0), EMERGENCY),
    (LineStatus.FRAUD_HOLD, (DENY, 403, 21), (ALLOW, 0, 0), EMERGENCY),
    (LineStatus.BARRED_FULL, (DENY, 403, 21), (DENY, 403, 21), EMERGENCY),
    (LineStatus.TERMINATED, (DENY, 403, 21), (DENY, 404, 1), DENY),
]


@pytest.mark.parametrize(("status", "out", "into", "emergency"), STATUSES)
def test_evaluate_line_status_decides_by_direction(
    status: LineStatus, out: tuple[Verdict, int, int], into: tuple[Verdict, int, int], emergency: Verdict
) -> None:
    """TKG § 61(3)-(7), NotrufV § 4(3) s. 2."""
    line = line_of(status=status)
    snapshot = snapshot_with(line=line)
    for attempt, expected in ((outgoing("03023125001", line), out), (incoming(OWN["velbert"]), into)):
        found = evaluate(attempt, snapshot, 0)
        assert (found.verdict, found.status, found.cause) == expected
        if found.verdict is DENY:
            assert found.rule == f"line.status.{status.value}"
    assert evaluate(outgoing("112", line), snapshot, 0).verdict is emergency


@pytest.mark.parametrize(("profile", "limit"), [("velbert", 3), ("badnauheim", 2)])
def test_evaluate_channels_in_use_refuse_both_directions(profile: str, limit: int) -> None:
    line = line_of(profile)
    snapshot = snapshot_with(line=line)
    for used in range(limit + 2):
        out = evaluate(outgoing("03023125001", line, slots_used=used), snapshot, 0)
        into = evaluate(incoming(OWN[profile], slots_used=used), snapshot, 0)
        if used < limit:
            assert (out.verdict, into.verdict, out.channels, into.channels) == (ALLOW, ALLOW, limit, limit)
        else:
            assert (out.rule, out.status, out.cause) == ("line.channels", 403, 34)
            assert (into.rule, into.status, into.cause) == ("line.channels", 486, 17)


def test_evaluate_channels_of_line_beat_the_profiles() -> None:
    line = line_of(channels=1)
    found = evaluate(outgoing("03023125001", line, slots_used=1), snapshot_with(line=line), 0)
    assert (found.rule, found.channels) == ("line.channels", 1)


def test_evaluate_channels_unknown_are_left_to_the_take() -> None:
    found = evaluate(outgoing("03023125001", slots_used=None), snapshot_with(), 0)
    assert (found.verdict, found.rule, found.channels) == (ALLOW, "allow", 3)


def test_evaluate_emergency_takes_the_locations_routes_in_order() -> None:
    found = evaluate(outgoing("112", slots_used=99), snapshot_with(), 0)
    assert (found.rule, found.channels, found.status) == ("emergency.target", None, 0)
    assert [route.uri for route in found.psap] == ["sip:112@first.example", "sip:112@second.example"]
    assert found.asserted == OWN["velbert"]
    assert [route.uri for route in evaluate(outgoing("110"), snapshot_with(), 0).psap] == ["sip:110@police.example"]


def test_evaluate_emergency_without_route_uses_any_locations_then_none() -> None:
    anywhere = PsapRoute("*", "112", 1, "sip:112@any.example")
    elsewhere = PsapRoute("other", "112", 1, "sip:112@other.example")
    assert evaluate(outgoing("112"), snapshot_with(psap=(elsewhere, anywhere)), 0).psap == (anywhere,)
    found = evaluate(outgoing("112"), snapshot_with(psap=(elsewhere,)), 0)
    assert (found.verdict, found.psap) == (EMERGENCY, ())


def test_evaluate_emergency_of_unknown_line_is_routed_anywhere() -> None:
    anywhere = PsapRoute("*", "112", 1, "sip:112@any.example")
    found = evaluate(CallAttempt(Direction.OUTGOING, b"112"), snapshot_with(psap=(*ROUTES, anywhere)), 0)
    assert (found.verdict, found.psap, found.asserted) == (EMERGENCY, (anywhere,), "")


def test_evaluate_outgoing_without_line_is_refused() -> None:
    found = evaluate(CallAttempt(Direction.OUTGOING, b"03023125001"), snapshot_with(), 0)
    assert (found.rule, found.status, found.cause) == ("line.unknown", 403, 21)


def test_evaluate_unknown_profile_is_refused_but_for_emergencies() -> None:
    line = dataclasses.replace(line_of(), profile="gone")
    snapshot = snapshot_with(line=line, account=account_of())
    for attempt in (outgoing_of(line, b"03023125001"), incoming(OWN["velbert"])):
        found = evaluate(attempt, snapshot, 0)
        assert (found.rule, found.status) == ("profile.unknown", 403)
    assert evaluate(outgoing_of(line, b"112"), snapshot, 0).verdict is EMERGENCY


def outgoing_of(line: Line, target: bytes) -> CallAttempt:
    return CallAttempt(Direction.OUTGOING, target, line, account_of(), slots_used=0)


def test_evaluate_block_rule_with_longest_prefix_is_named() -> None:
    rules = (
        BlockRule("all", "+43", "fraud"),
        BlockRule("mine", "+43900", "on request", line="L1"),
        BlockRule("other-line", "+439001", "on request", line="L2"),
        BlockRule("product", "+4390", "not priced", profile="velbert"),
        BlockRule("other-product", "+439001", "not priced", profile="badnauheim"),
        BlockRule("both", "+4367", "x", profile="velbert", line="L1"),
    )
    snapshot = snapshot_with(*rules)
    for dialled, rule in [
        ("0043900123456", "mine"),
        ("0043901123456", "product"),
        ("0043664123456", "all"),
        ("0043676123456", "both"),
    ]:
        found = evaluate(outgoing(dialled), snapshot, 0)
        assert (found.rule, found.status, found.cause) == (f"block.rule.{rule}", 403, 21)
        assert rule_family(found.rule) == "block.rule"
    assert evaluate(outgoing("0041441234567"), snapshot, 0).verdict is ALLOW


@pytest.mark.parametrize(
    ("scopes", "named"),
    [
        ([("a", "", ""), ("b", "velbert", "")], "b"),
        ([("b", "velbert", ""), ("c", "", "L1")], "c"),
        ([("z", "", ""), ("y", "", "")], "y"),
    ],
)
def test_evaluate_block_rules_of_one_prefix_name_the_nearest(scopes: list[tuple[str, str, str]], named: str) -> None:
    rules = (BlockRule(key, "+43", "x", profile=profile, line=line) for key, profile, line in scopes)
    assert evaluate(outgoing("0043664123456"), snapshot_with(*rules), 0).rule == f"block.rule.{named}"


@pytest.mark.parametrize("prefix", ["", "+", "service:", "service:1", "service:11", "service:112", "service:110", "s"])
def test_evaluate_block_rule_never_reaches_emergency(prefix: str) -> None:
    assert evaluate(outgoing("112"), snapshot_with(BlockRule("r", prefix, "x")), 0).verdict is EMERGENCY


def test_evaluate_block_rule_without_prefix_blocks_nothing() -> None:
    assert evaluate(outgoing("03023125001"), snapshot_with(BlockRule("r", "", "x")), 0).verdict is ALLOW


def test_evaluate_outgoing_to_own_number_names_the_callee() -> None:
    found = evaluate(outgoing("988111"), snapshot_with(), 0)
    assert found.verdict is ALLOW
    assert found.callee is not None
    assert found.callee.user == "a1"
    assert evaluate(outgoing("988112"), snapshot_with(), 0).callee is None


def test_evaluate_incoming_finds_the_line_by_number() -> None:
    found = evaluate(incoming(f"sip:{OWN['velbert']}@sip.example"), snapshot_with(), 0)
    assert (found.verdict, found.rule, found.channels) == (ALLOW, "allow", 3)
    assert found.line is not None
    assert found.callee is found.account is not None
    assert (found.line.id, found.account.user) == ("L1", "a1")


@pytest.mark.parametrize("target", ["+493023125001", "112", "urn:service:sos", "988111", "alice", ""])
def test_evaluate_incoming_to_nobodys_number_is_refused(target: str) -> None:
    found = evaluate(incoming(target), snapshot_with(), 0)
    assert (found.verdict, found.rule, found.status, found.cause) == (DENY, "number.unassigned", 404, 1)


def test_evaluate_incoming_with_broken_target_is_refused_as_syntax() -> None:
    found = evaluate(incoming("sip:+492051988111:x@y"), snapshot_with(), 0)
    assert (found.rule, found.status) == ("plan.malformed", 400)


def test_evaluate_incoming_to_range_takes_the_longest() -> None:
    lines = [Line(key, "velbert", LineStatus.ACTIVE, None, "town", "02051", (f"t{key}",)) for key in ("A", "B", "C")]
    accounts = [
        Account("tA", "A", AccountKind.TRUNK, {}, ("+4920519*",)),
        Account("tB", "B", AccountKind.TRUNK, {}, ("+49205198*", "+492051777")),
        Account("tC", "C", AccountKind.TRUNK, {}, ("+4920519811",)),
    ]
    snapshot = snapshot_of(1, lines, accounts, PROFILES, (), ())
    for number, line in [("+49205191", "A"), ("+492051981", "B"), ("+4920519811", "C"), ("+49205198112", "B")]:
        found = evaluate(incoming(number), snapshot, 0)
        assert found.line is not None
        assert found.line.id == line


def test_evaluate_decision_names_snapshot_and_every_step() -> None:
    found = evaluate(outgoing("03023125001"), snapshot_with(), 0)
    assert found.snapshot == 7
    assert [rule for rule, _ in found.steps] == [
        "destination", "line.status", "caller", "block.class", "block.rule", "line.channels"
    ]  # fmt: skip
    refused = evaluate(outgoing("09001123456"), snapshot_with(), 0)
    assert refused.steps[-1] == (refused.rule, refused.reason)


TRUNK = Account("t", "L1", AccountKind.TRUNK, {}, ("+492051777*", "+492051988111", "+492051988112"))


@pytest.mark.parametrize(
    ("numbers", "caller", "asserted"),
    [
        (TRUNK.numbers, "+492051988112", "+492051988112"),
        (TRUNK.numbers, "02051988112", "+492051988112"),
        (TRUNK.numbers, "988112", "+492051988112"),
        (TRUNK.numbers, "sip:988112@pbx.example", "+492051988112"),
        (TRUNK.numbers, "02051777123", "+492051777123"),
        (TRUNK.numbers, "02051777", "+492051988111"),
        (TRUNK.numbers, "03023125001", "+492051988111"),
        (TRUNK.numbers, "09001123456", "+492051988111"),
        (TRUNK.numbers, "110", "+492051988111"),
        (TRUNK.numbers, "anonymous", "+492051988111"),
        (TRUNK.numbers, "", "+492051988111"),
        (("+492051777*",), "anonymous", "+4920517770"),
        ((), "02051777123", ""),
    ],
)
def test_evaluate_trunk_caller_is_screened(numbers: tuple[str, ...], caller: str, asserted: str) -> None:
    """§ 120(1) TKG, RFC 3325."""
    account = dataclasses.replace(TRUNK, numbers=numbers)
    attempt = CallAttempt(Direction.OUTGOING, b"03023125001", line_of(), account, caller, 0)
    assert evaluate(attempt, snapshot_with(account=account), 0).asserted == asserted


def test_evaluate_single_account_asserts_its_own_number() -> None:
    assert evaluate(outgoing("03023125001", caller="+492051988999"), snapshot_with(), 0).asserted == OWN["velbert"]


def test_profiles_ship_both_products() -> None:
    assert {name: (found.channels, found.area_codes) for name, found in PROFILES.items()} == {
        "velbert": (3, ("02051", "02052", "02053")),
        "badnauheim": (2, ("06032",)),
    }


@pytest.mark.parametrize(("of_account", "refused"), [(0, False), (1, False), (2, True), (3, True), (None, False)])
def test_account_with_a_limit_of_its_own_is_refused_at_it_in_both_directions(of_account: int | None, refused: bool) -> None:
    before = snapshot_with()
    limited = dataclasses.replace(account_of(), channels=2)
    snapshot = dataclasses.replace(before, accounts={limited.user: limited})
    out = evaluate(
        dataclasses.replace(outgoing("03023125001", slots_used=0), account=limited, account_used=of_account), snapshot, 0
    )
    into = evaluate(dataclasses.replace(incoming(OWN["velbert"], slots_used=0), account_used=of_account), snapshot, 0)
    for found, answer in ((out, (403, 34)), (into, (486, 17))):
        assert (found.verdict is Verdict.DENY) is refused
        assert not refused or (found.rule, found.status, found.cause) == ("account.channels", *answer)
    emergency = evaluate(dataclasses.replace(outgoing("112"), account=limited, account_used=9), snapshot, 0)
    assert emergency.verdict is Verdict.EMERGENCY


@pytest.mark.parametrize(
    ("own", "profiles", "told"), [(None, 0, False), (None, 1, True), (0, 1, False), (1, 0, True), (2, 0, False)]
)
def test_soft_limit_is_a_step_and_never_a_refusal(own: int | None, profiles: int, told: bool) -> None:
    line = dataclasses.replace(line_of(), soft_channels=own)
    before = snapshot_with(line=line)
    profile = dataclasses.replace(before.profiles[line.profile], soft_channels=profiles)
    snapshot = dataclasses.replace(before, profiles={**before.profiles, line.profile: profile})
    found = evaluate(outgoing("03023125001", line, slots_used=1), snapshot, 0)
    assert found.verdict is Verdict.ALLOW
    assert ("line.soft_channels" in dict(found.steps)) is told
