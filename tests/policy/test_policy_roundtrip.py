"""What is exported is read back as it was: lines, PSAP routes and block rules, as CSV and as TOML."""

from __future__ import annotations

import csv
import io
import tomllib

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from policy_samples import PROFILES

from policy.build import snapshot_of
from policy.export import PUBLIC_COLUMNS, write_blocks, write_lines, write_psap, write_public
from policy.model import (
    Account,
    AccountKind,
    BlockRule,
    DestinationClass,
    Line,
    LineStatus,
    PsapRoute,
    RuleAction,
    RuleDirection,
    RuleKind,
    RuleLevel,
    Snapshot,
    Trace,
    Window,
)
from policy.parse import read_lines
from policy.parse_rules import read_blocks, read_psap, rule_value
from policy.stamp import FIRST_MS, LAST_MS, parse_stamp, write_stamp

FORMS = pytest.mark.parametrize("form", ["csv", "toml"])
slow = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])

ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
stamps = st.integers(FIRST_MS, LAST_MS)
words = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")) | st.sampled_from(" ;,'\"\\#[]=/-"), max_size=40
).map(lambda text: " ".join(text.split()))
filled = words.filter(bool)
places = filled.filter(lambda text: text[0] != "#" and text != "*")
windows = st.builds(
    lambda days, start, length: Window(tuple(sorted(days)), start, (start + length) % 1440 or 1440),
    st.sets(st.integers(0, 6), min_size=1),
    st.integers(0, 1439),
    st.integers(1, 1439),
).filter(lambda window: window.start_min != window.end_min)


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    start = draw(st.integers(FIRST_MS, LAST_MS - 1))
    reference = draw(st.from_regex(r"[A-Za-z0-9](?:[A-Za-z0-9 .:_-]{0,20}[A-Za-z0-9])?", fullmatch=True))
    return Trace(start, draw(st.integers(start + 1, LAST_MS)), reference)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Lines with all that a line can have; numbers from one block, so that none is taken twice."""
    lines, accounts = [], []
    for index in range(draw(st.integers(1, 3))):
        key = f"{draw(ids)[:40]}-{index}"
        trunk = draw(st.booleans())
        kind = AccountKind.TRUNK if trunk else AccountKind.SINGLE
        users = [f"u{index}-{n}" for n in range(1 if trunk else draw(st.integers(1, 3)))]
        for n, user in enumerate(users):
            ha1 = {"MD5": draw(st.from_regex(r"[0-9a-f]{32}", fullmatch=True))}
            if draw(st.booleans()):
                ha1["SHA-256"] = draw(st.from_regex(r"[0-9a-f]{64}", fullmatch=True))
            count = draw(st.integers(1, 3)) if trunk else 1
            numbers = [f"+492051{9000 + index * 100 + n * 10 + k}" for k in range(count)]
            if trunk:
                numbers[-1] += "*"
            accounts.append(Account(user, key, kind, ha1, tuple(numbers), draw(st.none() | st.integers(1, 10_000))))
        lines.append(
            Line(
                id=key,
                profile="velbert",
                status=draw(st.sampled_from(LineStatus)),
                channels=draw(st.none() | st.integers(1, 10_000)),
                location=draw(places),
                area_code=draw(st.sampled_from(["02051", "02053"])),
                accounts=tuple(users),
                status_reason=draw(words),
                status_at_ms=draw(st.just(0) | stamps),
                barred_since_ms=draw(st.just(0) | stamps),
                clir=draw(st.booleans()),
                reject_anonymous=draw(st.booleans()),
                traces=tuple(draw(st.lists(traces(), max_size=3))),
                soft_channels=draw(st.none() | st.integers(0, 10_000)),
            )
        )
    return snapshot_of(1, lines, accounts, PROFILES, (), ())


routes = st.builds(
    PsapRoute,
    location=places | st.just("*"),
    service=st.sampled_from(["110", "112"]),
    priority=st.integers(0, 999_999),
    uri=st.sampled_from(["sip:112@psap.example", "sips:110@[2001:db8::1]:5061;lr", "sip:a%20b@192.0.2.1;transport=tcp"]),
    name=words,
    valid_from_ms=st.none() | stamps,
)


@st.composite
def rules(draw: st.DrawFn) -> BlockRule:
    kind = draw(st.sampled_from(RuleKind))
    level = draw(st.sampled_from(RuleLevel))
    start = draw(st.none() | st.integers(FIRST_MS, LAST_MS - 1))
    value = {
        RuleKind.PREFIX: st.sampled_from(["0900", "+43", "0043900", "118", "010", "+49137", "service:11869"]),
        RuleKind.NUMBER: st.sampled_from(["+4930123456", "0900 1234567", "11869", "116117"]),
        RuleKind.CLASS: st.sampled_from([DestinationClass.PREMIUM, DestinationClass.INTERNATIONAL, DestinationClass.MOBILE]),
        RuleKind.COUNTRY: st.sampled_from(["+43", "0041", "+1"]),
    }[kind]
    canonical, fault = rule_value(kind, str(draw(value)))
    assert not fault
    return BlockRule(
        id=draw(ids),
        value=canonical,
        reason=draw(filled),
        profile=draw(st.sampled_from(["", *PROFILES])),
        line="L1" if level is RuleLevel.CUSTOMER else draw(st.sampled_from(["", "L1"])),
        owner=draw(words),
        kind=kind,
        action=draw(st.sampled_from(RuleAction)),
        direction=draw(st.sampled_from(RuleDirection)),
        level=level,
        ticket=draw(words),
        valid_from_ms=start,
        valid_until_ms=draw(st.none() | st.integers((start or FIRST_MS) + 1, LAST_MS)),
        windows=tuple(draw(st.lists(windows, max_size=3))),
        public=draw(st.booleans()),
    )


@FORMS
@slow
@given(snapshot=snapshots())
def test_lines_with_their_secrets_come_back(form: str, snapshot: Snapshot) -> None:
    text = write_lines(snapshot, list(snapshot.lines.values()), form=form, secrets=True)
    found = read_lines(text, file=f"x.{form}", realm="sip.example", profiles=PROFILES)
    assert found.lines == tuple(snapshot.lines.values())
    assert found.accounts == tuple(snapshot.accounts.values())


@FORMS
@slow
@given(snapshot=snapshots())
def test_lines_without_their_secrets_hold_none_and_come_back_otherwise(form: str, snapshot: Snapshot) -> None:
    assume("ha1" not in repr(snapshot.lines))  # as somebody's reason for a status, which is no secret
    text = write_lines(snapshot, list(snapshot.lines.values()), form=form)
    assert not any(value in text for account in snapshot.accounts.values() for value in account.ha1.values())
    assert "ha1" not in text
    found = read_lines(text, file=f"x.{form}", realm="sip.example", profiles=PROFILES, keep_secrets=True)
    assert found.lines == tuple(snapshot.lines.values())
    assert [(a.user, a.line, a.kind, a.numbers, a.ha1) for a in found.accounts] == [
        (a.user, a.line, a.kind, a.numbers, {}) for a in snapshot.accounts.values()
    ]


@FORMS
@slow
@given(st.lists(routes, min_size=1, max_size=6, unique_by=lambda r: (r.location, r.service, r.valid_from_ms, r.uri)))
def test_psap_routes_come_back(form: str, found: list[PsapRoute]) -> None:
    assert read_psap(write_psap(found, form=form), file=f"x.{form}") == tuple(found)


@FORMS
@slow
@given(st.lists(rules(), min_size=1, max_size=6, unique_by=lambda rule: rule.id))
def test_block_rules_come_back(form: str, found: list[BlockRule]) -> None:
    assert read_blocks(write_blocks(found, form=form), file=f"x.{form}", profiles=PROFILES) == tuple(found)


@slow
@given(st.lists(rules(), max_size=12, unique_by=lambda rule: rule.id), stamps)
def test_the_public_list_holds_public_rules_that_concern_all_and_are_not_over(found: list[BlockRule], now_at_ms: int) -> None:
    shown = list(csv.DictReader(io.StringIO(write_public(found, now_at_ms, form="csv"), newline="")))
    wanted = [
        rule.value
        for rule in found
        if rule.public and not rule.line and rule.level is RuleLevel.ADMIN
        and (rule.valid_until_ms is None or rule.valid_until_ms > now_at_ms)
    ]  # fmt: skip
    assert sorted(row["value"] for row in shown) == sorted(wanted)
    assert all(set(row) == set(PUBLIC_COLUMNS) for row in shown)
    toml = tomllib.loads(write_public(found, now_at_ms, form="toml")).get("block", [])
    assert not {key for rule in toml for key in rule} & {"id", "owner", "ticket", "line", "level", "public"}


@slow
@given(stamps)
def test_stamp_comes_back(at_ms: int) -> None:
    assert parse_stamp(write_stamp(at_ms)) == at_ms


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2026-04-01", "2026-03-31T22:00:00Z"),  # a day begins in Germany
        ("2026-01-31T08:00", "2026-01-31T07:00:00Z"),
        ("2026-07-01 08:00", "2026-07-01T06:00:00Z"),
        ("2026-07-01T08:00:30.25+05:30", "2026-07-01T02:30:30.250Z"),
        ("2026-07-01T08:00Z", "2026-07-01T08:00:00Z"),
        ("2026-02-30", ""),
        ("1999-01-01", ""),
        ("2101-01-01", ""),
        ("tomorrow", ""),
        ("2026-7-1", ""),
        ("\u0662026-01-01", ""),
        ("2026-01-01T25:00", ""),
    ],
)
def test_stamp_is_read_in_german_time_unless_it_names_its_zone(text: str, utc: str) -> None:
    assert write_stamp(parse_stamp(text)) == utc


def test_toml_lines_may_be_written_by_hand() -> None:
    text = """
# a remark
[[line]]
line = "L1"
profile = "velbert"
channels = 4
location = "town"
area_code = "02051"
clir = true
status_at = 2026-04-01
traces = ["2026-01-01/2026-02-01/A-1", "2026-03-01/2026-04-01/A-2"]

  [[line.account]]
  account = "a1"
  password = "pw"
  numbers = ["+492051988111"]

[[line]]
line = "L2"
profile = "velbert"
location = "town"
area_code = "02051"
account = "b1"
kind = "trunk"
password = "pw"
number = "+492051777*"
"""
    found = read_lines(text, file="x.toml", realm="r", profiles=PROFILES)
    assert [(line.id, line.channels, line.clir, len(line.traces)) for line in found.lines] == [
        ("L1", 4, True, 2),
        ("L2", None, False, 0),
    ]
    assert found.lines[0].status_at_ms == parse_stamp("2026-04-01")
    assert [account.numbers for account in found.accounts] == [("+492051988111",), ("+492051777*",)]
