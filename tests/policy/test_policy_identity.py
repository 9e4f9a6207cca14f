"""policy.identity, policy.caller: which number is vouched for, shown, hidden or refused (§ 120 TKG, § 15 TDDDG, RFC 3325)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_samples import PROFILES, spellings

from policy import evaluate
from policy.build import snapshot_of
from policy.identity import (
    Screened,
    forbidden_caller,
    german_from_abroad,
    is_anonymous,
    privacy_values,
    reads_as_number,
    restricts,
    same_number,
    screen,
)
from policy.model import (
    Account,
    AccountKind,
    CallAttempt,
    Decision,
    Direction,
    Line,
    LineStatus,
    Screening,
    Snapshot,
    Trace,
    Verdict,
)

SINGLE = Account("v1", "L1", AccountKind.SINGLE, {}, ("+492051555101",))
SECOND = Account("v2", "L1", AccountKind.SINGLE, {}, ("+492051555102",))
TRUNK = Account("t1", "T1", AccountKind.TRUNK, {}, ("+492051988*", "+492051777"))
OTHER = Account("x1", "X1", AccountKind.SINGLE, {}, ("+492052111222",))


def line_of(name: str = "L1", *accounts: str, **fields: object) -> Line:
    given = {"status": LineStatus.ACTIVE, "channels": None, "location": "town", "area_code": "02051", **fields}
    return Line(id=name, profile="velbert", accounts=accounts or ("v1", "v2"), **given)  # type: ignore[arg-type]


LINE = line_of()
SOS = "an emergency number, which no caller may show"
TRUNK_LINE = line_of("T1", "t1")


def snapshot_with(line: Line = LINE, **profile: object) -> Snapshot:
    profiles = {**PROFILES, "velbert": replace(PROFILES["velbert"], **profile)}  # type: ignore[arg-type]
    lines = {one.id: one for one in (LINE, TRUNK_LINE, line_of("X1", "x1"), line)}
    return snapshot_of(7, lines.values(), [SINGLE, SECOND, TRUNK, OTHER], profiles, [], [])


@pytest.mark.parametrize(
    ("account", "given", "preferred", "asserted", "presented", "fault"),
    [
        # From names the account's own number, in any spelling.
        (SINGLE, "+492051555101", "", "+492051555101", "+492051555101", ""),
        (SINGLE, "02051555101", "", "+492051555101", "+492051555101", ""),
        (SINGLE, "492051555101", "", "+492051555101", "+492051555101", ""),
        (SINGLE, "555101", "", "+492051555101", "+492051555101", ""),
        (SINGLE, "tel:+49-2051-555-101", "", "+492051555101", "+492051555101", ""),
        # Another number of the same line may be shown, but is not the account's to be vouched for.
        (SINGLE, "+492051555102", "", "+492051555101", "+492051555102", ""),
        # No number at all.
        (SINGLE, "v1", "", "+492051555101", "+492051555101", ""),
        (SINGLE, "", "", "+492051555101", "+492051555101", ""),
        (SINGLE, "anonymous", "", "+492051555101", "+492051555101", ""),
        # Somebody else's, here or abroad; what no caller may show.
        (SINGLE, "+492052111222", "", "+492051555101", "+492051555101", "not a number of this line"),
        (SINGLE, "+33123456789", "", "+492051555101", "+492051555101", "not a number of this line"),
        (SINGLE, "110", "", "+492051555101", "+492051555101", SOS),
        (SINGLE, "09001123456", "", "+492051555101", "+492051555101", "a premium number, which no caller may show"),
        (SINGLE, "%EF%BC%91%EF%BC%91%EF%BC%90", "", "+492051555101", "+492051555101", SOS),
        # A trunk vouches for each of its numbers, and for its main one when it shows another.
        (TRUNK, "+4920519881234", "", "+4920519881234", "+4920519881234", ""),
        (TRUNK, "+492051777", "", "+492051777", "+492051777", ""),
        (TRUNK, "+492051988", "", "+492051777", "+492051777", "not a number of this line"),
        (TRUNK, "+4920519881234567890", "", "+492051777", "+492051777", "not a number of this line"),
        (TRUNK, "+492051555101", "", "+492051777", "+492051777", "not a number of this line"),
        # P-Preferred-Identity picks the one to be vouched for; alone it is the one that is shown.
        (TRUNK, "+4920519881", "+4920519882", "+4920519882", "+4920519881", ""),
        (TRUNK, "anonymous", "+4920519882", "+4920519882", "+4920519882", ""),
        (TRUNK, "+4920519881", "+49110", "+4920519881", "+4920519881", SOS),
    ],
)  # fmt: skip
def test_screen_given_number_has_its_outcome(
    account: Account, given: str, preferred: str, asserted: str, presented: str, fault: str
) -> None:
    snapshot = snapshot_with()
    found = screen(snapshot, snapshot.lines[account.line], account, given, preferred)
    assert (found.asserted, found.presented, found.fault) == (asserted, presented, fault)


def test_screen_without_account_takes_the_lines_first_one() -> None:
    snapshot = snapshot_with()
    assert screen(snapshot, LINE, None, "").asserted == "+492051555101"
    assert screen(snapshot, None, None, "+492051555101").asserted == ""
    assert screen(snapshot, line_of("L1", "gone"), None, "").presented == ""


def test_screen_account_without_numbers_shows_none() -> None:
    bare = Account("b", "L1", AccountKind.TRUNK, {}, ())
    assert screen(snapshot_with(), LINE, bare, "+492052111222") == Screened("", "", "not a number of this line")


NEVER = (
    "110 112 112233 +49110 0049112 0110 +112 1-1-0 115 +49115 116117 +49116117 118 11880 011880 +4911880 4911880 124124 "
    "09001123456 +499001123456 499001123456 +490900123456 0049900123456 09009123456 0137123456 +491371234567 "
    "tel:+49900123456 %2B49900123456 01033123456"
)


@pytest.mark.parametrize("number", NEVER.split())
def test_forbidden_caller_names_what_no_caller_may_show(number: str) -> None:
    """§ 120(1), (3) TKG."""
    assert forbidden_caller(number)


FINE = (
    "+492051555101 02051555101 0234115 +49234115 +43900123456 +390137123456 +11105551234 +498912345 anonymous alice v110 "
    "+33112 08001234567 0700123456 +4930110112 2051110"
)


@pytest.mark.parametrize("number", FINE.split())
def test_forbidden_caller_leaves_what_may_be_shown(number: str) -> None:
    assert forbidden_caller(number) == ""


@settings(max_examples=300)
@given(st.sampled_from(["900112345", "1371234567", "9003123456"]).flatmap(lambda n: st.sampled_from(spellings(n))))
def test_forbidden_caller_is_found_in_every_spelling(spelling: str) -> None:
    """Design, invariant 8, for callers."""
    assert forbidden_caller(spelling)


@pytest.mark.parametrize(
    ("given", "hidden"),
    [
        ("+492051555101", True), ("02051555101", True), ("492051555101", True), ("+49800123456", True),
        ("+4932123456789", True),
        ("+491701234567", False), ("01701234567", False), ("+43123456", False), ("+12125550123", False), ("", False),
        ("anonymous", False),
    ],
)  # fmt: skip
def test_german_number_from_abroad_is_hidden_mobile_ones_excepted(given: str, hidden: bool) -> None:
    """§ 120(4) TKG."""
    assert german_from_abroad(given) is hidden


@pytest.mark.parametrize(
    ("privacy", "hides"),
    [
        ("", False), ("none", False), ("None", False), ("id", True), ("ID", True), ("header", True), ("user", True),
        ("session", False), ("critical", False), ("history", False), ("id;critical", True), ("user ; id", True),
        ("none;id", True), ("session;critical", False), ("whatever", True), ("none, id", True), (";;", False),
    ],
)  # fmt: skip
def test_restricts_reads_priv_values(privacy: str, hides: bool) -> None:
    """RFC 3323 §4.2, RFC 3325 §9.3, RFC 7044 §7: what nobody knows is taken for a wish to hide."""
    assert restricts(privacy) is hides


def test_privacy_values_are_bounded() -> None:
    assert len(privacy_values(";".join(f"v{n}" for n in range(1000)))) <= 17


def test_is_anonymous_reads_from() -> None:
    assert is_anonymous("anonymous", "sip.test")
    assert is_anonymous("x", "Anonymous.Invalid.")
    assert is_anonymous("+492051555101", "sip.test", "Anonymous")
    assert not is_anonymous("+492051555101", "sip.test", "Ann")
    assert not is_anonymous("unavailable", "unknown.invalid"), "not available is not hidden"


def test_numbers_and_names_are_told_apart() -> None:
    assert reads_as_number("+49 (2051) 555")
    assert reads_as_number("%EF%BC%90900")
    assert not reads_as_number("Ann 3")
    assert not reads_as_number("")
    assert same_number("02051555101", "+492051555101")
    assert not same_number("02051555101", "")


NUMBERS = ["+492051555101", "2051555102", "4920519881", "492051988", "900123456", "110", "112", "118", "13712345", "2052111222"]
TEXTS = st.one_of(
    st.text(max_size=24),
    st.text("0123456789+*#%-(). ", max_size=20),
    st.sampled_from(NUMBERS).flatmap(
        lambda n: st.sampled_from([n, "+" + n, "0" + n, "+49" + n, "0049" + n, "tel:" + n, "%2B" + n])
    ),
)


@settings(max_examples=1000)
@given(st.sampled_from([SINGLE, SECOND, TRUNK]), TEXTS, TEXTS)
def test_screen_whatever_is_given_only_own_numbers_come_out(account: Account, given: str, preferred: str) -> None:
    """§ 120(1) TKG: a number that is assigned to the customer, and none that no caller may show."""
    snapshot = snapshot_with()
    found = screen(snapshot, snapshot.lines[account.line], account, given, preferred)
    for number in (found.asserted, found.presented):
        owner = snapshot.account_of(number)
        assert owner is not None
        assert owner.line == account.line
        assert forbidden_caller(number) == ""
    assert snapshot.account_of(found.asserted) == account


# The seam to the rules


def outgoing(target: str, line: Line = LINE, **fields: object) -> Decision:
    profile = {"screening": fields.pop("screening")} if "screening" in fields else {}
    given = {"line": line, "account": SINGLE, "caller": "+492051555101", **fields}
    attempt = CallAttempt(Direction.OUTGOING, target.encode(), **given)  # type: ignore[arg-type]
    return evaluate(attempt, snapshot_with(line, **profile), 1_790_000_000_000)


HIDING: list[dict[str, object]] = [{"privacy": True}, {"anonymous": True}, {"line": line_of(clir=True)}]


@pytest.mark.parametrize("fields", HIDING)
@pytest.mark.parametrize("target", ["030123456", "+4980012345678", "116123", "115"])
def test_hidden_number_is_restricted(fields: dict[str, object], target: str) -> None:
    decision = outgoing(target, **fields)  # type: ignore[arg-type]
    assert (decision.verdict, decision.restricted, decision.asserted) == (Verdict.ALLOW, True, "+492051555101")


@pytest.mark.parametrize("fields", [*HIDING, {}])
@pytest.mark.parametrize("target", ["110", "112", "116117", "124124", "*31#112", "*31#116117", "0116117", "urn:service:sos"])
def test_hidden_number_is_shown_where_the_law_says_so(fields: dict[str, object], target: str) -> None:
    """TDDDG § 15(1): CLIR has no effect on 110, 112, 116117 and 124124."""
    decision = outgoing(target, **fields)  # type: ignore[arg-type]
    assert (decision.restricted, decision.asserted) == (False, "+492051555101")


def test_star_31_hides_one_call() -> None:
    assert outgoing("*31#030123456").restricted
    assert not outgoing("030123456").restricted
    assert not outgoing("#31#030123456").restricted
    assert outgoing("#31#030123456", line_of(clir=True)).restricted, "always is always"


def test_number_of_somebody_else_is_replaced_or_refused_as_the_profile_says() -> None:
    replaced = outgoing("030123456", caller="+492052111222")
    assert (replaced.verdict, replaced.presented) == (Verdict.ALLOW, "+492051555101")
    refused = outgoing("030123456", caller="+492052111222", screening=Screening.REFUSE)
    assert (refused.verdict, refused.rule, refused.status, refused.cause) == (Verdict.DENY, "caller.not_allowed", 403, 21)
    assert outgoing("030123456", caller="v1", screening=Screening.REFUSE).verdict is Verdict.ALLOW, "a name is no number"
    assert outgoing("112", caller="+492052111222", screening=Screening.REFUSE).verdict is Verdict.EMERGENCY


def incoming(line: Line = LINE, now_at_ms: int = 1_790_000_000_000, **fields: object) -> Decision:
    given = {"caller": "+4989123456", "network": "+4989123456", **fields}
    attempt = CallAttempt(Direction.INCOMING, b"+492051555101", **given)  # type: ignore[arg-type]
    return evaluate(attempt, snapshot_with(line), now_at_ms)


@pytest.mark.parametrize("fields", [{"caller": "09001123456"}, {"network": "+49110"}, {"caller": "118"}])
def test_incoming_call_that_shows_a_forbidden_number_is_refused(fields: dict[str, object]) -> None:
    """§ 120(3) TKG."""
    decision = incoming(**fields)  # type: ignore[arg-type]
    assert (decision.verdict, decision.rule, decision.status, decision.cause) == (Verdict.DENY, "caller.forbidden", 403, 21)


def test_anonymous_call_is_refused_by_a_line_that_rejects_them() -> None:
    """RFC 5079; § 15 TDDDG."""
    strict = line_of(reject_anonymous=True)
    for fields in ({"privacy": True}, {"anonymous": True}, {"abroad": True}):
        decision = incoming(strict, **fields)
        assert (decision.verdict, decision.rule, decision.status, decision.cause) == (Verdict.DENY, "caller.anonymous", 433, 21)
        assert incoming(LINE, **fields).restricted
    assert incoming(strict).verdict is Verdict.ALLOW
    assert incoming(strict, caller="", network="").verdict is Verdict.ALLOW, "no number at all is not a hidden one"
    assert incoming(strict, abroad=True, caller="+431234567", network="+431234567").verdict is Verdict.ALLOW


@pytest.mark.parametrize(("at_ms", "order"), [(999, ""), (1000, "A1"), (1999, "A1"), (2000, "A2"), (2999, "A2"), (3000, "")])
def test_call_is_traced_while_an_order_is_valid(at_ms: int, order: str) -> None:
    """TDDDG § 14: only calls and attempts after the application, and within its limits; refused ones too."""
    line = line_of(traces=(Trace(1000, 2000, "A1"), Trace(2000, 3000, "A2")), reject_anonymous=True)
    assert incoming(line, at_ms).trace == order
    assert incoming(line, at_ms, privacy=True).trace == order
