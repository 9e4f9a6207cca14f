"""docs/operation.md, "Bounds": each is there, is counted where the table says so, and a test that fails without it exists."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from sipproxy.config import Limits
from sipproxy.engine.settings import Rates
from sipproxy.sip.message import Response
from tests.engine.desk import Desk
from tests.sim.conftest import make_town

ROOT = Path(__file__).resolve().parent.parent
ROW = re.compile(
    r"^\| (?P<what>[^|]+) \| `(?P<bound>[^`|]+)` \| (?P<full>[^|]+) \| `(?P<metric>[^`|]+)` \| `(?P<test>[^`|]+)` \|$"
)
CALL = b"sip:03023125001@sip.test"
CONTACT = b"<sip:alice@203.0.113.1:5060>"


def rows() -> list[dict[str, str]]:
    text = (ROOT / "docs" / "operation.md").read_text()
    table = text.partition("### Bounds\n")[2].partition("\n#")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ") and not line.startswith("| what ")]
    found = [ROW.match(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if match is None]
    return [match.groupdict() for match in found if match is not None]


SOURCES = "\n".join(path.read_text() for path in (ROOT / "sipproxy").rglob("*.py"))


def test_the_table_has_every_table_of_the_node() -> None:
    assert len(rows()) >= 15


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["bound"])
def test_a_bound_of_the_table_exists_is_counted_and_has_its_test(row: dict[str, str]) -> None:
    place, _, name = row["bound"].rpartition(".")
    if place == "limits":
        assert name in Limits.__struct_fields__
    else:
        module, _, owner = place.partition(":")
        holder = import_module(module if module.startswith(("cdr.", "policy.")) else f"sipproxy.{module}")
        found = getattr(holder, owner)() if owner else holder
        assert isinstance(getattr(found, name), int | float)
    metric = row["metric"].removesuffix("_total").split("{")[0]
    counted = f'"{metric}"' in SOURCES or f'"{metric.removeprefix("sipproxy_")}": (' in SOURCES
    assert counted, f"nothing counts as {metric}"
    path, _, test = row["test"].partition("::")
    assert f"def {test}(" in (ROOT / "tests" / path).read_text()


def test_full_transaction_tables_refuse_registrations_and_calls_and_never_help() -> None:
    desk = Desk(make_town(rates=Rates(credit_bytes=65_000), max_transactions=40).world.engine)
    assert desk.register(CONTACT).status == 200
    table = desk.engine.desk.transactions
    statuses = []
    for number in range(60):
        request = desk.request(b"REGISTER", call_id=b"r%d" % number, headers=(desk.credentials(b"REGISTER", b"sip:sip.test"),))
        statuses += [m.status for m in desk.receive(request) if isinstance(m, Response)]
        assert len(table.servers) + len(table.clients) <= 40
    assert set(statuses) == {200, 503}
    assert desk.engine.desk.counters["requests_refused", "table_full"]
    invite = desk.request(b"INVITE", CALL, headers=(desk.credentials(b"INVITE", CALL), (b"Contact", CONTACT)))
    assert desk.answer(invite).status == 503
    helped = desk.receive(desk.request(b"INVITE", b"sip:112@sip.test", headers=((b"Contact", CONTACT),), call_id=b"help"))
    assert not [m for m in helped if isinstance(m, Response) and m.status >= 300]


def test_calls_beyond_the_limit_are_refused_and_never_help() -> None:
    desk = Desk(make_town(max_calls=1).world.engine)
    assert desk.register(CONTACT).status == 200
    found = []
    for number, uri in enumerate([CALL, CALL, b"sip:112@sip.test"]):
        headers = (desk.credentials(b"INVITE", uri) if uri == CALL else (b"Subject", b"help"), (b"Contact", CONTACT))
        answers = desk.receive(desk.request(b"INVITE", uri, call_id=b"c%d" % number, headers=headers))
        found.append({m.status for m in answers if isinstance(m, Response)})
    assert found == [set(), {503}, {100}]  # the first waits for its channel, and hears 100 once it is journalled
