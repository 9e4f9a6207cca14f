"""What holds for every target, line and snapshot."""

from __future__ import annotations

import dataclasses
import re

from hypothesis import assume, example, given
from hypothesis import strategies as st
from policy_samples import OWN, PROFILES, account_of, spellings

from policy import dialled, evaluate
from policy.blocklist import index_of
from policy.build import snapshot_of
from policy.emergency import service_of
from policy.explain import explain
from policy.model import (
    BlockRule,
    CallAttempt,
    DestinationClass,
    Direction,
    Line,
    LineStatus,
    PsapRoute,
    Snapshot,
    Verdict,
)
from policy.numbers import canonical_prefix, classify

CANONICAL = re.compile(r"\+[1-9][0-9]{0,39}|service:[0-9]{3,6}|carrier:010[0-9]{0,3}|-")
DIGITS = "0123456789"

FRAGMENTS = [
    *(b"0", b"00", b"000", b"1", b"2", b"9", b"11", b"110", b"112", b"115", b"118", b"49", b"+", b"+49", b"900", b"010", b"33"),
    *(
        b"sip:",
        b"sips:",
        b"tel:",
        b"urn:",
        b"urn:service:",
        b"sos",
        b".police",
        b"@",
        b"@x",
        b":",
        b";",
        b"=",
        b"?",
        b"%",
        b"%3",
        b"%31",
    ),
    *(
        b"%2B",
        b"%00",
        b"%25",
        b"*31#",
        b"*31%23",
        b"#",
        b"*",
        b"-",
        b".",
        b"(0)",
        b" ",
        b";phone-context=",
        b";phone-context=+49",
    ),
    *(b";rn=", b";ext=1", b"\xef\xbc\x91", b"\xd9\xa1", b"\xff", b"\r\n", b"\x00", b"D001", b"alice", b"2051"),
]
TARGETS = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from(FRAGMENTS), max_size=10).map(b"".join),
    st.text(alphabet="0123456789+*#-.() ;:@%=", max_size=30).map(str.encode),
)
AREA_CODES = st.sampled_from(["", "02051", "030", "06032", "0234", "033053"])
SPELLED_NATIONALS = st.from_regex(r"[1-9][0-9]{2}[2-9][0-9]{1,8}", fullmatch=True).filter(
    # Not carrier selection, and of the short codes those that exist: the others have no form with a country code.
    lambda text: text[:2] not in ("10", "11") or text[:3] in ("115", "116", "118")
)

BLOCKS = st.builds(
    BlockRule,
    id=st.text("abc", min_size=1, max_size=2),
    value=st.one_of(
        st.sampled_from(
            ["", "+", "+4", "+49", "service:", "service:1", "service:11", "service:110", "service:112", "carrier:", "-"]
        ),
        st.text(DIGITS + "+", max_size=4),
    ),
    reason=st.just("x"),
    profile=st.sampled_from(["", *PROFILES]),
    line=st.sampled_from(["", "L1", "L2"]),
)
LINES = st.builds(
    Line,
    id=st.just("L1"),
    profile=st.sampled_from([*PROFILES, "gone"]),
    status=st.sampled_from(list(LineStatus)),
    channels=st.one_of(st.none(), st.integers(0, 3)),
    location=st.sampled_from(["town", "", "*"]),
    area_code=st.sampled_from(["02051", "06032", ""]),
    accounts=st.sampled_from([("a1",), ()]),
)
ROUTES = st.builds(
    PsapRoute,
    location=st.sampled_from(["town", "*", "other"]),
    service=st.sampled_from(["110", "112"]),
    priority=st.integers(0, 3),
    uri=st.sampled_from(["sip:a@x", "sip:b@x"]),
)


@st.composite
def snapshots(draw: st.DrawFn, line: st.SearchStrategy[Line] = LINES) -> tuple[Snapshot, Line]:
    found = draw(line)
    accounts = [account_of()] if draw(st.booleans()) else []
    routes = draw(st.lists(ROUTES, max_size=4))
    return snapshot_of(draw(st.integers(0, 9)), [found], accounts, PROFILES, routes, draw(st.lists(BLOCKS, max_size=6))), found


EMERGENCY_TARGETS = st.one_of(
    st.sampled_from(
        [b"urn:service:sos", b"urn:service:sos.police", b"sip:sos@x", b"+112", b"tel:112;phone-context=+49900", b"01033112"]
    ),
    st.builds(
        lambda scheme, feature, number, more, host: scheme + feature + number + more + host,
        st.sampled_from([b"", b"sip:", b"SIPS:", b"tel:"]),
        st.sampled_from([b"", b"*31#", b"*31%23", b"01033", b"0100%331"]),
        st.sampled_from([b"110", b"112", b"1-1-2", b"%31%31%32", b"1 1 0"]),
        st.sampled_from([b"", b"#", b"%23", b"0", b"2345678901234567890", b";phone-context=+49", b";ext=1"]),
        st.sampled_from([b"", b"@x", b"@[::1]:5060;user=phone"]),
    ).filter(lambda target: not (b":" in target[:5] and target[:3].lower() == b"sip" and b"@" not in target)),
)


@given(snapshots(), EMERGENCY_TARGETS, st.one_of(st.none(), st.integers(-1, 99)), st.text(max_size=8), st.booleans())
def test_evaluate_emergency_under_any_policy_is_routed(
    data: tuple[Snapshot, Line], target: bytes, slots_used: int | None, caller: str, with_account: bool
) -> None:
    """design, invariant 1: nothing an operator can enter stands between a caller and help."""
    snapshot, line = data
    assume(line.status is not LineStatus.TERMINATED)
    account = account_of() if with_account else None
    found = evaluate(CallAttempt(Direction.OUTGOING, target, line, account, caller, slots_used), snapshot, 0)
    assert found.verdict is Verdict.EMERGENCY
    assert found.channels is None
    here = [
        route for key, routes in snapshot.psap.items() if key == (line.location, found.destination.service) for route in routes
    ]
    anywhere = snapshot.psap.get(("*", found.destination.service), ())
    assert list(found.psap) == (here or list(anywhere))


@given(TARGETS, AREA_CODES)
@example(b"sip:", "")
@example(b"%", "")
def test_classify_any_bytes_gives_a_well_formed_destination(target: bytes, area_code: str) -> None:
    found = classify(target, area_code)
    assert CANONICAL.fullmatch(found.canonical), found
    assert (found.status, found.cause) in {(0, 0), (400, 28), (404, 1), (416, 28), (484, 28)}
    assert found.service == service_of(target)
    assert (found.kind is DestinationClass.EMERGENCY) is bool(found.service)
    if found.kind in (DestinationClass.INVALID, DestinationClass.RESERVED) or found.canonical == "-":
        assert found.status  # what the plan does not know is never allowed


@given(
    snapshots(),
    TARGETS,
    st.sampled_from(list(Direction)),
    st.one_of(st.none(), st.integers(0, 9)),
    st.text(max_size=12),
    st.booleans(),
)
def test_evaluate_any_bytes_gives_a_decision(
    data: tuple[Snapshot, Line], target: bytes, direction: Direction, slots_used: int | None, caller: str, with_line: bool
) -> None:
    snapshot, line = data
    attempt = CallAttempt(direction, target, line if with_line else None, None, caller, slots_used)
    found = evaluate(attempt, snapshot, 0)
    assert (found.verdict is Verdict.DENY) is (found.status >= 400) is (found.cause > 0)
    assert found.snapshot == snapshot.version
    if found.verdict is Verdict.ALLOW and direction is Direction.OUTGOING:
        assert found.line is line
        assert found.destination.status == 0
        assert not line.status.startswith(("barred", "fraud", "terminated"))
        assert not any(
            rule.value
            and found.destination.canonical.startswith(rule.value)
            and rule.line in ("", line.id)
            and rule.profile in ("", line.profile)
            for rule in snapshot.blocks
        )
    if found.verdict is Verdict.ALLOW and slots_used is not None:
        assert found.channels is not None
        assert slots_used < found.channels


@given(
    st.text("0123456789", min_size=1, max_size=32),
    st.sampled_from(["", "+"]),
    st.sampled_from(["{}", "sip:{}@x", "SipS:{}@[::1]:5;a=b?c"]),
)
def test_read_plain_form_agrees_with_the_long_way(digits: str, plus: str, shape: str) -> None:
    target = shape.format(plus + digits).encode()
    assert dialled.read(target) == dialled._read_slowly(target)


@given(TARGETS, AREA_CODES)
def test_classify_canonical_form_again_gives_the_same(target: bytes, area_code: str) -> None:
    found = classify(target, area_code)
    if found.canonical == "-" or found.service:
        return
    again = classify(found.canonical.removeprefix("service:").removeprefix("carrier:").encode(), area_code)
    assert (again.canonical, again.kind, again.status, again.service) == (found.canonical, found.kind, found.status, "")


@given(SPELLED_NATIONALS, st.sampled_from(sorted(PROFILES)))
def test_evaluate_every_spelling_of_a_number_gets_one_decision(national: str, profile: str) -> None:
    """design, invariant 8: one number, one verdict."""
    area = PROFILES[profile].area_codes[0]
    line = Line("L1", profile, LineStatus.ACTIVE, None, "town", area, ("a1",))
    snapshot = snapshot_of(
        1, [line], [account_of(profile)], PROFILES, (), [BlockRule("r", "+4930", "x"), BlockRule("q", "+49171", "x")]
    )
    found = {}
    for target in spellings(national):
        decision = evaluate(CallAttempt(Direction.OUTGOING, target.encode(), line, None, "", 0), snapshot, 0)
        found[decision.destination.canonical, decision.verdict, decision.rule, decision.status, decision.cause] = target
    assert len(found) == 1, found


BLOCKED = st.one_of(
    st.from_regex(r"900[0-9]{0,9}", fullmatch=True),
    st.from_regex(r"12[0-9]{0,9}", fullmatch=True),
    st.from_regex(r"18[1-9][0-9]{0,12}", fullmatch=True),
    st.from_regex(r"19[89][0-9]{0,9}", fullmatch=True),
    st.from_regex(r"118(?!69)[0-9]{2,6}", fullmatch=True),
)


@given(BLOCKED, st.sampled_from(sorted(PROFILES)), st.text(DIGITS, max_size=12))
def test_evaluate_no_spelling_of_a_blocked_number_is_allowed(national: str, profile: str, more: str) -> None:
    """However long, and whatever stands in front of it."""
    line = Line("L1", profile, LineStatus.ACTIVE, None, "town", "02051", ("a1",))
    snapshot = snapshot_of(1, [line], [account_of(profile)], PROFILES, (), ())
    number = (national + more)[:30]
    forms = [form for form in spellings(number.ljust(5, "3")) if "00900" not in form]
    forms += [
        f"01033{number}",
        f"010330{number}",
        f"0100330049{number}",
        f"*31#010330{number}",
        f"0198930{number}",
        f"+49{number}",
    ]
    for target in forms:
        decision = evaluate(CallAttempt(Direction.OUTGOING, target.encode(), line, None, "", 0), snapshot, 0)
        assert decision.verdict is not Verdict.ALLOW, (target, decision)


@given(
    st.text(DIGITS, min_size=1, max_size=8),
    st.sampled_from(["110", "112"]),
    st.text(DIGITS, max_size=4),
    st.sampled_from(["", "+"]),
)
def test_service_of_digits_in_front_forbid_emergency(front: str, number: str, behind: str, plus: str) -> None:
    """NotrufV § 4(5) s. 1, carrier selection excepted."""
    dialled_number = front + number + behind
    assume(plus or not (dialled_number.startswith(("110", "112")) or re.match(r"010(0\d\d|[1-9]\d)11[02]", dialled_number)))
    assume(not (plus and dialled_number in ("110", "112")))
    for target in (f"{plus}{dialled_number}", f"sip:{plus}{dialled_number}@x", f"tel:{plus}{dialled_number}"):
        assert service_of(target.encode()) == ""


@given(st.text(DIGITS, min_size=1, max_size=7), st.text(DIGITS, max_size=8))
def test_canonical_prefix_blocks_what_starts_with_it(prefix: str, more: str) -> None:
    """A rule entered as dialled refuses every number that is dialled with that beginning."""
    national = prefix.lstrip("0")
    assume(national and (national + more)[:2] != "10")
    for text in (f"0{national}", f"+49{national}", f"0049{national}", f"+49 (0) {national}"):
        canonical = canonical_prefix(text)
        assert canonical
        found = classify(f"0{national}{more}".encode(), "06032").canonical
        if found not in ("-", "service:115"):  # an own area code with 115 is 115; 115 and more digits is nothing
            assert found.startswith(canonical) or canonical.startswith(found)


@given(snapshots(), TARGETS, st.one_of(st.none(), st.integers(0, 9)))
def test_explain_gives_the_live_decision(data: tuple[Snapshot, Line], target: bytes, slots_used: int | None) -> None:
    """design, invariant 9."""
    snapshot, line = data
    live = evaluate(CallAttempt(Direction.OUTGOING, target, line, account_of(), "", slots_used), snapshot, 0)
    found = explain(snapshot, line, account_of(), target, slots_used, 0)
    assert found.decision == live
    assert live.rule in str(found)


@given(snapshots())
def test_snapshot_account_of_finds_only_assigned_numbers(data: tuple[Snapshot, Line]) -> None:
    snapshot, _ = data
    assert (snapshot.account_of(OWN["velbert"]) is not None) is bool(snapshot.accounts)
    assert snapshot.account_of(OWN["velbert"] + "1") is None
    assert dataclasses.replace(snapshot, blocks=()).block_index == index_of(())
