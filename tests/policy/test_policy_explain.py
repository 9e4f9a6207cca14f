"""Explanations: the live decision in words, one call or a file of them."""

from __future__ import annotations

import csv
import io

import pytest
from policy_samples import ROUTES, account_of, line_of, outgoing, snapshot_with

from policy import evaluate
from policy.explain import BATCH_IN, BATCH_OUT, batch_csv, explain
from policy.model import BlockRule, LineStatus
from policy.table import PolicyError


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
