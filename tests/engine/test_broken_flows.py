"""Connections that end while a call is being set up (RFC 3261 §18.2.2, RFC 5626 §5.3): who is still reached, and by what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdr.facts import End, Record
from sipproxy.engine.actions import Journal, ReleaseSlot, SendTo, TakeSlot
from sipproxy.sip.build import write_response
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Request, Response, parse_message
from tests.engine.test_flows import ALICE, ONE, OUTBOUND, TWO, contact, invite, make_desk, register
from tests.sim.conftest import PSAP, TRUNK_A

if TYPE_CHECKING:
    from tests.engine.desk import Desk

TRUNK = Flow("UDP", 0, *TRUNK_A)
VIA = b"SIP/2.0/TCP 192.168.1.20:5070"
BACK = ONE._replace(port=5070, connection=0)  # a new connection to the address that the INVITE came from


@pytest.fixture
def desk() -> Desk:
    return make_desk()


def sent(desk: Desk, what: type[Request | Response], number: int | bytes) -> list[tuple[object, object]]:
    """Target and key of each request with this method, or response with this status, that leaves."""
    found = []
    for action in desk.actions:
        if isinstance(action, SendTo) and isinstance(message := parse_message(action.data), what):
            is_it = message.method == number if isinstance(message, Request) else message.status == number
            found += [(action.target, action.key)] if is_it else []
    return found


def perform(desk: Desk) -> None:
    """Give every slot that is asked for."""
    while asked := [action for action in desk.actions if isinstance(action, TakeSlot)]:
        told = (desk.engine.slot_result(one.slot, taken=True, used=1, now=desk.now) for one in asked)
        desk.actions = [action for actions in told for action in actions]


def outgoing(desk: Desk, uri: bytes = b"sip:03023125001@sip.test", *, branch: bytes = b"z9hG4bKcall") -> bytes:
    headers = [(b"Contact", contact(ONE))]
    if uri != b"sip:112@sip.test":
        headers.append(desk.credentials(b"INVITE", uri, user="bob", flow=ONE))
    return desk.request(b"INVITE", uri, user=b"bob", headers=tuple(headers), via=VIA, branch=branch, call_id=b"out", cseq=9)


def call_out(desk: Desk, uri: bytes = b"sip:03023125001@sip.test") -> tuple[bytes, Request]:
    """Bob's call is with the carrier: his INVITE, and the one that went there."""
    request = outgoing(desk, uri)
    desk.receive(request, ONE)
    perform(desk)
    [forwarded] = [message for message in desk.sent() if isinstance(message, Request)]
    return request, forwarded


def answer(desk: Desk, forwarded: Request, flow: Flow = TRUNK) -> list[tuple[object, object]]:
    """The callee's 200 arrives; where it goes."""
    headers = [(b"Contact", b"<sip:b@%s:%d>" % (flow.host.encode(), flow.port))]
    headers += [(b"Record-Route", route.raw) for route in forwarded.record_routes]
    desk.receive(write_response(forwarded, 200, to_tag=b"callee", headers=headers), flow)
    return sent(desk, Response, 200)


def fail(desk: Desk, key: object) -> None:
    """The transport could not send it."""
    desk.actions = desk.engine.transport_failed(key, desk.now)  # type: ignore[arg-type]


def unheard(desk: Desk, uri: bytes = b"sip:03023125001@sip.test", *, failures: int = 2, flow: Flow = TRUNK) -> Request:
    """Bob's connection breaks before the callee answers, and so many ways back to him fail; the INVITE that was forwarded."""
    register(desk, ONE)
    _, forwarded = call_out(desk, uri)
    desk.engine.flow_closed(ONE, desk.now)
    [(_, key)] = answer(desk, forwarded, flow)
    for _ in range(failures):
        fail(desk, key)
    return forwarded


def wait(desk: Desk, seconds: float) -> None:
    """Time passes, and what is due is done."""
    desk.tick(seconds)
    desk.actions = desk.engine.fire(desk.now)


def records(desk: Desk) -> list[Record]:
    return [a.fact.record for a in desk.actions if isinstance(a, Journal) and isinstance(a.fact, End)]


def test_answer_finds_the_flow_that_the_caller_s_device_has_now(desk: Desk) -> None:
    register(desk, ONE, 1)
    _, forwarded = call_out(desk)
    desk.engine.flow_closed(ONE, desk.now)
    register(desk, TWO, 1)
    [(target, key)] = answer(desk, forwarded)
    assert target == ONE
    fail(desk, key)
    assert [target for target, _ in sent(desk, Response, 200)] == [TWO]


def test_answer_to_a_caller_who_has_not_come_back_goes_to_a_new_connection_to_his_address(desk: Desk) -> None:
    """RFC 3261 §18.2.2: the address that it came from, the port that the Via names."""
    unheard(desk, failures=1)
    assert [target for target, _ in sent(desk, Response, 200)] == [BACK]


def test_answer_that_no_way_leads_back_for_ends_the_call_unbilled_for_both(desk: Desk) -> None:
    forwarded = unheard(desk)
    assert desk.engine.desk.counters[("responses_lost",)] == 1
    desk.tick(4)
    [(target, key)] = answer(desk, forwarded)  # the callee repeats it: each time all ways are tried once
    assert target == BACK
    fail(desk, key)
    assert [target for target, _ in sent(desk, Response, 200)] == [ONE]
    fail(desk, key)
    wait(desk, 12.5)
    assert Hop("UDP", *TRUNK_A) in [target for target, _ in sent(desk, Request, b"BYE")]
    [record] = records(desk)
    assert (record.end_reason, record.released_by, record.duration_certain, record.billable_ms) == (
        "session_expired", "proxy", False, 0,
    )  # fmt: skip
    assert [action.slot.owner for action in desk.actions if isinstance(action, ReleaseSlot)] == ["L2"]


def test_answer_that_went_by_a_new_connection_and_is_not_acknowledged_ends_the_call_as_well(desk: Desk) -> None:
    """Whoever listens at that port may be somebody else."""
    unheard(desk, failures=1)
    wait(desk, 16.5)
    [record] = records(desk)
    assert (record.end_reason, record.billable_ms) == ("session_expired", 0)


def test_callee_who_gives_up_first_is_not_billed_for_what_the_caller_never_heard(desk: Desk) -> None:
    forwarded = unheard(desk)
    desk.tick(10)
    routes = [(b"Route", route.raw) for route in forwarded.record_routes]
    tags = [(b"From", b"<sip:b@sip.test>;tag=callee"), (b"To", forwarded.from_.raw)]
    bye = desk.request(
        b"BYE", b"sip:bob@192.168.1.20", call_id=b"out", cseq=1, headers=(*routes, *tags), via=b"SIP/2.0/UDP 198.51.100.1:5060"
    )
    desk.receive(bye, TRUNK)
    [record] = records(desk)
    assert (record.released_by, record.duration_certain, record.billable_ms) == ("callee", False, 0)


def test_caller_who_comes_back_keeps_his_call(desk: Desk) -> None:
    register(desk, ONE)
    _, forwarded = call_out(desk)
    desk.engine.flow_closed(ONE, desk.now)
    [(_, key)] = answer(desk, forwarded)
    response = next(m for m in desk.sent() if isinstance(m, Response))
    fail(desk, key)
    fail(desk, key)
    desk.tick(5)
    routes = [(b"Route", route.raw) for route in reversed(response.record_routes)]
    ends = [(b"To", b"<sip:03023125001@sip.test>;tag=callee")]
    desk.receive(
        desk.request(
            b"ACK", b"sip:b@198.51.100.1:5060", user=b"bob", call_id=b"out", cseq=9, headers=(*routes, *ends), via=VIA
        ),
        TWO,
    )  # fmt: skip
    assert [target for target, _ in sent(desk, Request, b"ACK")] == [Hop("UDP", *TRUNK_A)]
    wait(desk, 20)
    assert records(desk) == []


def test_call_for_help_is_not_ended_because_its_caller_lost_his_connection(desk: Desk) -> None:
    """Design, invariant 1: the centre may hear him all the same."""
    unheard(desk, b"sip:112@sip.test", flow=Flow("UDP", 0, *PSAP))
    wait(desk, 30)
    assert records(desk) == []


def test_caller_who_repeats_his_invite_by_a_new_connection_is_answered_there(desk: Desk) -> None:
    register(desk, ONE)
    request, forwarded = call_out(desk)
    desk.engine.flow_closed(ONE, desk.now)
    desk.receive(request, TWO)
    assert [target for target, _ in answer(desk, forwarded)] == [TWO]


def test_repetition_from_another_address_moves_no_answer(desk: Desk) -> None:
    register(desk, ONE)
    request, forwarded = call_out(desk)
    desk.receive(request, TWO._replace(host="203.0.113.77"))
    assert [target for target, _ in answer(desk, forwarded)] == [ONE]


def test_callee_who_answers_by_a_new_connection_is_acknowledged_there(desk: Desk) -> None:
    register(desk, ONE, 1)
    [forwarded] = invite(desk)
    desk.receive(write_response(forwarded, 180, to_tag=b"callee"), ONE)
    desk.engine.flow_closed(ONE, desk.now)
    assert [target for target, _ in answer(desk, forwarded, TWO)] == [ALICE]
    response = next(m for m in desk.sent() if isinstance(m, Response))
    routes = [(b"Route", route.raw) for route in reversed(response.record_routes)]
    ends = [(b"To", response.to.raw), (b"CSeq", b"%d ACK" % response.cseq.number)]
    desk.receive(desk.request(b"ACK", b"sip:b@203.0.113.3:40002", headers=(*routes, *ends)))
    assert [target for target, _ in sent(desk, Request, b"ACK")] == [TWO]


def test_ack_that_is_repeated_leaves_with_the_branch_that_it_had(desk: Desk) -> None:
    """RFC 3261 §16.11: it is forwarded without a transaction, and the next hop has to know it again."""
    register(desk, ONE, 1)
    [forwarded] = invite(desk)
    answer(desk, forwarded, ONE)
    response = next(m for m in desk.sent() if isinstance(m, Response))
    routes = [(b"Route", route.raw) for route in reversed(response.record_routes)]
    ends = [(b"To", response.to.raw), (b"CSeq", b"%d ACK" % response.cseq.number)]
    branches = []
    for own in (b"z9hG4bKone", b"z9hG4bKone", b"z9hG4bKtwo"):
        ack = desk.request(b"ACK", b"sip:b@203.0.113.3:40002", headers=(*routes, *ends), branch=own)
        branches += [message.via.branch or b"" for message in desk.receive(ack) if isinstance(message, Request)]
    first, again, other = branches
    assert first == again != other
    assert all(desk.engine.desk.is_own_branch(branch) for branch in branches)


def test_request_within_a_call_goes_to_the_flow_that_the_device_has_now(desk: Desk) -> None:
    """The connection breaks while both talk, and the device registers anew before it says anything in the call."""
    register(desk, ONE, 1)
    [forwarded] = invite(desk)
    answer(desk, forwarded, ONE)
    response = next(m for m in desk.sent() if isinstance(m, Response) and m.status == 200)
    desk.engine.flow_closed(ONE, desk.now)
    register(desk, TWO, 1, headers=OUTBOUND)
    routes = [(b"Route", route.raw) for route in reversed(response.record_routes)]
    desk.receive(desk.request(b"BYE", b"sip:b@203.0.113.3:40001", headers=(*routes, (b"To", response.to.raw))))
    assert [target for target, _ in sent(desk, Request, b"BYE")] == [TWO]
