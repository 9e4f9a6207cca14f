"""engine.refusals: every attempt of a proven party that the node has no room or no time for has its one record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdr.facts import End
from sipproxy.engine import refusals
from sipproxy.engine.actions import Journal, SendTo
from sipproxy.engine.settings import Rates
from sipproxy.engine.shed import Load
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Response
from tests.engine.desk import DOMAIN, ROUTER, STRANGER, Desk
from tests.engine.test_shed import at_load
from tests.sim.conftest import TRUNK_A, make_town

if TYPE_CHECKING:
    from cdr.facts import Record

CONTACT = b"<sip:alice@203.0.113.1:5060>"
CALL = b"sip:03023125001@sip.test"
TRUNK = Flow("UDP", 0, *TRUNK_A)
OFTEN = Rates(credit_bytes=1_000_000, line_per_s=1, line_burst=3)


def a_desk(**options: object) -> Desk:
    desk = Desk(make_town(rates=Rates(credit_bytes=1_000_000), **options).world.engine)
    assert desk.register(CONTACT).status == 200
    return desk


def invite(desk: Desk, uri: bytes = CALL, *, user: bytes = b"alice", flow: Flow = ROUTER, call_id: bytes = b"c1") -> bytes:
    proof = () if flow is TRUNK else (desk.credentials(b"INVITE", uri, user=user.decode(), flow=flow),)
    return desk.request(b"INVITE", uri, user=user, call_id=call_id, headers=(*proof, (b"Contact", CONTACT)))


def records(desk: Desk) -> list[Record]:
    return [a.fact.record for a in desk.actions if isinstance(a, Journal) and isinstance(a.fact, End)]


def asked(desk: Desk, data: bytes, flow: Flow = ROUTER) -> tuple[list[int], list[Record]]:
    """The statuses that it got, and its records, none of which stands behind its answer."""
    statuses = [m.status for m in desk.receive(data, flow) if isinstance(m, Response)]
    kinds = [isinstance(a, SendTo) for a in desk.actions if isinstance(a, Journal | SendTo)]
    assert kinds == sorted(kinds), "a record behind its answer"
    return statuses, records(desk)


@pytest.mark.parametrize(
    ("flow", "uri", "line", "canonical", "trunk"),
    [
        (ROUTER, CALL, "L1", "+493023125001", ""),
        (TRUNK, b"sip:+4920514001@192.0.2.1", "L2", "+4920514001", "carrier-a"),
    ],
)
@pytest.mark.parametrize("why", ["full", "disk"])
def test_full_or_closed_node_records_what_it_refuses(
    why: str, flow: Flow, uri: bytes, line: str, canonical: str, trunk: str
) -> None:
    desk = a_desk(max_calls=0 if why == "full" else 10)
    if why == "disk":
        desk.engine.close("journal")
    data = invite(desk, uri, flow=flow)
    statuses, (record,) = asked(desk, data, flow)
    assert statuses == [503]
    assert (record.rule, record.verdict, record.status, record.end_reason) == (f"node.{why}", "deny", 503, "refused")
    assert (record.line, record.canonical, record.trunk, record.call_id) == (line, canonical, trunk, "c1")
    assert (record.seq, record.duration_ms, record.released_by, record.cause) == (1, 0, "proxy", 41)
    assert asked(desk, data, flow) == ([503], []), "its repetition is no other attempt"
    desk.tick(33.0)
    assert [one.seq for one in asked(desk, invite(desk, uri, flow=flow), flow)[1]] == [2]
    assert (desk.engine.calls.live, desk.engine.calls.by_id) == (0, {})


def test_stranger_to_a_full_node_is_challenged_and_leaves_no_record() -> None:
    desk = a_desk(max_calls=0)
    assert asked(desk, desk.request(b"INVITE", CALL, user=b"alice"), STRANGER) == ([407], [])


def test_overloaded_node_records_the_calls_of_its_customers_alone() -> None:
    desk = at_load(a_desk(), Load.INVITE)
    data = desk.request(b"INVITE", CALL, user=b"alice", call_id=b"shed")
    statuses, (record,) = asked(desk, data)
    assert (statuses, record.rule, record.line, record.account) == ([503], "node.overload", "L1", "alice")
    assert asked(desk, data) == ([503], [])
    assert asked(desk, desk.request(b"INVITE", CALL, user=b"alice"), STRANGER) == ([], [])
    statuses, found = asked(desk, desk.request(b"INVITE", b"sip:112@sip.test", headers=((b"Contact", CONTACT),)))
    assert (503 in statuses, found) == (False, [])


def test_copy_of_an_invite_that_was_challenged_is_no_other_attempt() -> None:
    """The challenge leaves no transaction; the copy waited in the socket while the node came under load."""
    desk = a_desk()
    plain = desk.request(b"INVITE", CALL, user=b"alice", call_id=b"c1", headers=((b"Contact", CONTACT),))
    assert asked(desk, plain) == ([407], [])
    proven = invite(desk)
    at_load(desk, Load.INVITE)
    assert asked(desk, plain) == ([407], [])
    statuses, (record,) = asked(desk, proven)
    assert (statuses, record.rule, record.call_id) == ([503], "node.overload", "c1")
    desk.tick(33.0)
    assert asked(desk, plain)[0] == [503], "by now it is an attempt of its own"


def test_copy_of_a_register_that_was_taken_has_its_answer_while_others_are_refused() -> None:
    """RFC 3261 §17.2.2. A router that hears that it is to come again tells its user that it is not registered."""
    desk = Desk(make_town(rates=Rates(credit_bytes=1_000_000, registers_per_s=1, registers_burst=4)).world.engine)
    assert desk.register(CONTACT).status == 200
    headers = (desk.credentials(b"REGISTER", DOMAIN), (b"Contact", CONTACT))
    register = desk.request(headers=headers)
    assert desk.answer(register).status == 200
    assert [desk.answer(desk.request(headers=headers)).status for _ in range(6)][-1] == 503
    assert desk.answer(register).status == 200


def test_challenge_is_forgotten_in_its_time_though_an_earlier_one_was_asked_for_again() -> None:
    desk = a_desk()
    first, second = (desk.request(b"INVITE", CALL, headers=((b"Contact", CONTACT),)) for _ in range(2))
    for data in (first, second, first):
        assert desk.answer(data).status == 407
        desk.tick(10.0)
    desk.tick(13.0)  # 33 s after the second
    desk.engine.fire(desk.now)
    assert len(desk.engine.refusals._challenged) == 1


def test_line_over_its_budget_of_messages_has_records_of_its_calls() -> None:
    desk = Desk(make_town(rates=OFTEN).world.engine)
    assert desk.register(CONTACT).status == 200
    found = [asked(desk, desk.request(b"INVITE", CALL, call_id=b"m%d" % number)) for number in range(8)]
    assert found[-1][0] == [503]
    assert [record.rule for _, made in found for record in made] == ["line.messages"] * sum(s == [503] for s, _ in found)


@pytest.mark.plain_alone
def test_records_wait_without_a_number_while_the_disk_has_room_for_live_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_HELD", 2)
    desk = a_desk()
    desk.engine.close("journal")
    desk.engine.refusals.hold(on=True)
    for number in range(3):
        assert asked(desk, invite(desk, call_id=b"w%d" % number)) == ([503], [])
    assert desk.engine.refusals.held == 2
    assert desk.engine.desk.counters["records_dropped", "node.disk"] == 1
    assert desk.engine.calls.number() == 1, "a live call's record was written meanwhile"
    desk.engine.refusals.hold(on=False)
    desk.actions = desk.engine.desk.take_actions()
    assert [(record.call_id, record.seq) for record in records(desk)] == [("w0", 2), ("w1", 3)]
    assert desk.engine.refusals.held == 0


@pytest.mark.plain_alone
def test_known_refusals_are_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "MAX_KNOWN", 2)
    desk = a_desk(max_calls=0)
    sent = [invite(desk, call_id=b"k%d" % number) for number in range(3)]
    assert [len(asked(desk, data)[1]) for data in sent] == [1, 1, 1]
    assert desk.engine.desk.counters["refusals_forgotten", "full"] == 1
    assert len(asked(desk, sent[2])[1]) == 0


def test_help_is_not_refused_by_a_full_and_closed_node() -> None:
    """Design, invariant 1."""
    desk = a_desk(max_calls=0)
    desk.engine.close("journal")
    desk.engine.refusals.hold(on=True)
    statuses, found = asked(desk, desk.request(b"INVITE", b"sip:112@sip.test", headers=((b"Contact", CONTACT),)))
    assert (statuses, found) == ([100], [])
