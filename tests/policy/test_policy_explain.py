"""Explanations: the live decision in words, one call or a file of them."""

from __future__ import annotations

import csv
import dataclasses
import io

import pytest
from policy_samples import ROUTES, account_of, line_of, outgoing, snapshot_with

from policy import evaluate
from policy.explain import BATCH_IN, BATCH_OUT, batch_csv, explain, explain_attempt
from policy.model import BlockRule, CallAttempt, Direction, LineStatus, RuleAction, RuleDirection, RuleKind, RuleLevel
from policy.table import PolicyError
from policy.windows import parse_windows

DAY_MS = 24 * 3600 * 1000


@pytest.mark.parametrize(
    ("dialled", "slots_used", "status", "last"),
    [
        ("*31#030 231 25001", 0, LineStatus.ACTIVE, "ALLOWED by allow to the trunks, snapshot 7"),
        ("988111", 0, LineStatus.ACTIVE, "ALLOWED by allow to account a1 of line L1, snapshot 7"),
        ("03023125001", 3, LineStatus.ACTIVE, "REFUSED with 403, cause 34 by line.channels, snapshot 7"),
        ("0900 1 123456", 0, LineStatus.ACTIVE, "REFUSED with 403, cause 21 by block.class.premium, snapshot 7"),
        ("112", 3, LineStatus.BARRED_FULL, "EMERGENCY by emergency.target, snapshot 7"),
    ],
)
def test_explain_ends_with_the_verdict_of_evaluate(dialled: str, slots_used: int, status: LineStatus, last: str) -> None:
    line = line_of(status=status)
    snapshot = snapshot_with(line=line)
    found = explain(snapshot, line, account_of(), dialled, slots_used)
    assert found.words[-1] == last
    assert found.decision == evaluate(outgoing(dialled, line, slots_used=slots_used), snapshot, 0)


def test_explain_names_the_routes_of_an_emergency_call() -> None:
    found = explain(snapshot_with(), line_of(), account_of(), b"sip:112@x")
    assert "route 1: sip:112@first.example" in found.words
    assert "route 2: sip:112@second.example" in found.words
    nowhere = explain(snapshot_with(psap=()), line_of(), account_of(), "112")
    assert "no PSAP route for this location: the trunks are tried" in nowhere.words


def test_explain_says_what_is_hidden_and_how_it_was_read() -> None:
    text = str(explain(snapshot_with(), line_of(), account_of(), "*31#030 231 25001", 1))
    assert "+493023125001, geographic" in text
    assert "separators dropped, caller hidden" in text
    assert "line.channels: 1 of 3 in use" in text
    assert "hidden from the called party" in text


def run(*rows: list[str], columns: tuple[str, ...] = BATCH_IN) -> list[dict[str, str]]:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    found = batch_csv(text.getvalue(), file="in.csv", snapshot=snapshot_with(BlockRule("r", "+43", "fraud"), psap=ROUTES))
    assert found.splitlines()[0] == ",".join(BATCH_OUT)
    return list(csv.DictReader(io.StringIO(found)))


@pytest.mark.parametrize(
    ("profile", "area_code", "dialled", "expected"),
    [
        ("velbert", "02051", "030 23125001", ("+493023125001", "geographic", "allow", "", "allow")),
        ("velbert", "2052", "988111", ("+492052988111", "geographic", "allow", "", "allow")),
        ("velbert", "02051", "tel:112;phone-context=+49234", ("service:112", "emergency", "emergency", "", "emergency.target")),
        ("velbert", "02051", "11869", ("service:11869", "directory", "block", "403", "block.class.directory")),
        ("badnauheim", "06032", "11869", ("service:11869", "directory", "allow", "", "allow")),
        ("velbert", "02051", "01033", ("carrier:01033", "carrier_selection", "block", "403", "block.class.carrier_selection")),
        ("badnauheim", "06032", "01611234567", ("+491611234567", "reserved", "block", "404", "plan.reserved")),
        ("badnauheim", "06032", "sip:1,2;x=\"y\"@z", ("-", "invalid", "block", "404", "plan.invalid")),
        ("velbert", "02051", "0043664123456", ("+43664123456", "international", "block", "403", "block.rule.r")),
        ("velbert", "02051", "02", ("+492", "geographic", "block", "484", "plan.incomplete")),
        ("velbert", "02051", "\r\n", ("-", "invalid", "block", "400", "plan.malformed")),
        ("velbert", "02051", "", ("-", "invalid", "block", "484", "plan.incomplete")),
    ],
)  # fmt: skip
def test_batch_row_gives_the_decision(profile: str, area_code: str, dialled: str, expected: tuple[str, ...]) -> None:
    (found,) = run(["7", profile, area_code, "+492051988111", dialled])
    assert found["id"] == "7"
    assert tuple(found[name] for name in ("canonical", "class", "decision", "status", "rule")) == expected
    assert found["reason"]


def test_batch_columns_may_stand_in_any_order_beside_others() -> None:
    (found,) = run(["x", "112", "", "02051", "velbert", "9"], columns=("note", *reversed(BATCH_IN)))
    assert (found["id"], found["decision"]) == ("9", "emergency")


def test_batch_faults_are_all_reported() -> None:
    with pytest.raises(PolicyError) as raised:
        run(["1", "nope", "02051", "", "112"], ["2", "velbert", "x", "", "112"], ["3", "velbert", "02051", "", "112", "more"])
    assert [(fault.row, fault.column) for fault in raised.value.faults] == [(2, "profile"), (3, "caller_area_code"), (4, "")]
    with pytest.raises(PolicyError, match="dialled: column is missing"):
        run(columns=BATCH_IN[:-1])


OFFICE = parse_windows("mo-fr 08:00-17:00")
MONDAY_MS = 1_790_000_000_000 // DAY_MS * DAY_MS  # 2026-09-21, 02:00 in Berlin
LISTS = (
    BlockRule("austria", "+43", "fraud"),
    BlockRule("vienna", "+431", "office", action=RuleAction.ALLOW, windows=OFFICE),
    BlockRule("old", "+4312", "was", valid_until_ms=MONDAY_MS - 1),
    BlockRule("soon", "+43123", "will be", valid_from_ms=MONDAY_MS + 8 * DAY_MS),
    BlockRule("own", "international", "own wish", kind=RuleKind.CLASS, level=RuleLevel.CUSTOMER, line="L1"),
    BlockRule("caller", "+4930", "nuisance", direction=RuleDirection.INCOMING),
)


def rules_said(attempt: CallAttempt, at_ms: int) -> list[tuple[str, str]]:
    return [(item.rule.id, item.said) for item in explain_attempt(attempt, snapshot_with(*LISTS), at_ms).rules]


def test_explain_lists_each_rule_that_matches_in_order_and_what_became_of_it() -> None:
    assert rules_said(outgoing("+431234567"), MONDAY_MS) == [
        ("soon", "valid from 2026-09-29 02:00"),
        ("old", "was valid until 2026-09-21 01:59"),
        ("vienna", "outside its windows: mo,tu,we,th,fr 08:00-17:00"),
        ("austria", "decides"),
        ("own", "would block, but block.rule.austria came before it"),
    ]
    noon = MONDAY_MS + DAY_MS // 2
    assert rules_said(outgoing("+431234567"), noon)[2:] == [
        ("vienna", "would allow, but block.rule.own came before it"),
        ("austria", "covered by rule vienna"),
        ("own", "decides"),
    ]
    assert rules_said(outgoing("+441234567"), noon) == [("own", "decides")]
    assert rules_said(outgoing("03023125001"), noon) == []


def test_explain_words_name_the_rule_what_it_is_for_and_what_was_not_asked() -> None:
    words = explain_attempt(outgoing("+431234567", slots_used=1), snapshot_with(*LISTS), MONDAY_MS).words
    assert "matching rule austria: block prefix +43 for all (fraud): decides" in words
    assert (
        "matching rule own: the customer's, block class international for line L1 (own wish): "
        "would block, but block.rule.austria came before it"
    ) in words
    assert "not asked any more: line.rate, line.channels" in words
    assert "channels: 1/3 in use before this call" in words
    assert words[-1] == "REFUSED with 403, cause 21 by block.rule.austria, snapshot 7"
    emergency = explain_attempt(outgoing("112"), snapshot_with(*LISTS), MONDAY_MS).words
    assert "not asked any more: line.status, caller, block.class, block.rule, line.rate, line.channels" in emergency
    barred = line_of(status=LineStatus.BARRED_OUT)
    refused = explain_attempt(outgoing("030231250", barred), snapshot_with(line=barred), 0).words
    assert "not asked any more: caller, block.class, block.rule, line.rate, line.channels" in refused


def test_explain_incoming_call_goes_by_the_callers_number() -> None:
    attempt = CallAttempt(Direction.INCOMING, b"+492051988111", network="+493012345678", slots_used=0)
    found = explain_attempt(attempt, snapshot_with(*LISTS), MONDAY_MS)
    assert [(item.rule.id, item.said) for item in found.rules] == [("caller", "decides")]
    assert found.words[-1] == "REFUSED with 403, cause 21 by block.rule.caller, snapshot 7"
    assert "not asked any more: line.channels" in found.words
    nobody = CallAttempt(Direction.INCOMING, b"+492051999999", network="+493012345678")
    unassigned = explain_attempt(nobody, snapshot_with(*LISTS), MONDAY_MS)
    assert unassigned.rules == ()
    assert unassigned.words[-2] == "not asked any more: line.status, caller, block.rule, line.channels"
    hidden = dataclasses.replace(attempt, network="+43123456789", privacy=True)
    assert "caller: hidden from the line" in explain_attempt(hidden, snapshot_with(*LISTS), MONDAY_MS).words
