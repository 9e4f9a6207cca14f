"""The corners of CANCEL, forking, in-dialog requests and slots (RFC 3261 §9, §16; design, invariants 2 and 6)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cdr.facts import Admit
from sipproxy.engine.actions import Journal, ReleaseSlot, SendTo, TakeSlot
from sipproxy.sip.message import Request, parse_message
from tests.engine.desk import Desk
from tests.sim.conftest import Town, make_town
from tests.sim.world import PROXY

if TYPE_CHECKING:
    from tests.sim.agent import Agent

TARGET = b"sip:03023125001@sip.test"


def admitted(desk: Desk) -> TakeSlot:
    value = desk.credentials(b"INVITE", TARGET)
    desk.receive(desk.request(b"INVITE", TARGET, headers=(value, (b"Contact", b"<sip:alice@203.0.113.1>")), call_id=b"one"))
    return next(a for a in desk.actions if isinstance(a, TakeSlot))


def test_cancel_before_the_callees_first_word_is_sent_after_it(town: Town) -> None:
    """§9.1: no CANCEL before a provisional response."""
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run_until(lambda: bool(town.trunk.calls))
    town.alice.cancel(call)
    town.world.run(0.05)
    assert not [r for r in town.trunk.requests if r.method == b"CANCEL"]
    town.world.run(3.0)
    assert [r.method for r in town.trunk.requests].count(b"CANCEL") == 1
    assert (call.status, town.trunk.calls[0].status) == (487, 487)
    town.assert_reconciled()


def test_cancelled_callee_that_has_vanished_ends_within_64_t1(town: Town) -> None:
    town.register_all()
    town.trunk.behave = lambda call: town.trunk.progress(call, 180)
    call = town.alice.call(b"03023125001")
    town.world.run(2.0)
    del town.world.agents[town.trunk.address]
    town.alice.cancel(call)
    town.world.run(34.0)
    assert call.status == 487
    assert [r.end_reason for r in town.world.records] == ["cancelled"]
    town.assert_reconciled()


def test_6xx_of_one_branch_cancels_the_others(town: Town) -> None:
    """§16.7 step 5."""
    town.register_all()
    second = town.second_device()
    town.bob.behave = lambda call: town.bob.progress(call, 180)
    second.behave = lambda call: town.world.after(1.0, lambda: second.reject(call, 603))
    call = town.trunk.call(b"+4920514001")
    town.world.run(3.0)
    assert town.bob.calls[0].status == 487
    assert call.status == 603
    town.assert_reconciled()


def test_second_end_of_a_call_changes_nothing(town: Town) -> None:
    town.register_all()
    town.alice.call(b"03023125001")
    town.world.run(3.0)
    (call,) = town.world.engine.calls.by_id.values()
    call.end("operator", released_by="proxy", cause=31)
    call.end("normal", released_by="caller", cause=16)
    town.world.perform(town.world.engine.desk.take_actions())
    assert [r.end_reason for r in town.world.records] == ["operator"]
    assert town.world.engine.calls.live == 0


def test_claims_of_a_customer_within_a_dialog_do_not_leave(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    assert call.invite is not None
    raw = [d for _, s, _, d in town.world.wire if s == town.alice.address and d.startswith(b"ACK")][-1]
    info = raw.replace(b"ACK ", b"INFO ", 1).replace(b" ACK\r\n", b" INFO\r\n").replace(b"branch=z9hG4bK", b"branch=z9hG4bKi")
    info = info.replace(b"Call-ID:", b"p-asserted-IDENTITY: <sip:+49110@sip.test>\r\nCall-ID:")
    town.world.send(info, town.alice.address, PROXY)
    town.world.run(1.0)
    (arrived,) = [r for r in town.trunk.requests if r.method == b"INFO"]
    assert not arrived.has(b"p-asserted-identity")


def test_exhausted_in_dialog_request_is_483(town: Town) -> None:
    town.register_all()
    town.alice.call(b"03023125001")
    town.world.run(3.0)
    raw = [d for _, s, _, d in town.world.wire if s == town.alice.address and d.startswith(b"ACK")][-1]
    info = raw.replace(b"ACK ", b"INFO ", 1).replace(b" ACK\r\n", b" INFO\r\n").replace(b"branch=z9hG4bK", b"branch=z9hG4bKm")
    town.world.send(info.replace(b"Max-Forwards: 70", b"Max-Forwards: 0"), town.alice.address, PROXY)
    town.world.run(1.0)
    assert not [r for r in town.trunk.requests if r.method == b"INFO"]
    answers = [d for _, s, to, d in town.world.wire if s == PROXY and to == town.alice.address]
    assert answers[-1].startswith(b"SIP/2.0 483 ")


def test_right_token_and_tags_with_another_call_id_are_no_dialog(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    call.call_id = b"another"
    seen: list[int] = []
    town.alice._in_dialog(call, b"INFO", lambda r: seen.append(r.status if r else 0))
    town.world.run(1.0)
    assert seen == [481]
    assert not [r for r in town.trunk.requests if r.method == b"INFO"]


def rings_for_ever(agent: Agent) -> None:
    """An INVITE that the agent would answer with 200 gets 180."""
    answer = agent._respond
    agent._respond = lambda server, status, *rest, **more: answer(  # type: ignore[method-assign]
        server, 180 if server.request.method == b"INVITE" and status == 200 else status, *rest, **more
    )


def test_reinvite_that_rings_for_ever_is_cancelled_by_timer_c() -> None:
    town = make_town(ring_s=20.0)
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    rings_for_ever(town.trunk)
    town.alice.reinvite(call, lambda _: None)
    town.world.run(25.0)
    assert [r.method for r in town.trunk.requests].count(b"CANCEL") == 1


def test_cancel_of_a_reinvite_reaches_the_peer(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    rings_for_ever(town.trunk)
    town.alice.reinvite(call, lambda _: None)
    town.world.run(1.0)
    raw = [d for _, s, _, d in town.world.wire if s == town.alice.address and d.startswith(b"INVITE")][-1]
    sent = parse_message(raw)
    assert isinstance(sent, Request)
    cancel = raw.split(b"\r\n\r\n")[0].replace(b"INVITE ", b"CANCEL ", 1).replace(b" INVITE\r\n", b" CANCEL\r\n") + b"\r\n\r\n"
    town.world.send(cancel, town.alice.address, PROXY)
    town.world.run(1.0)
    assert [r.method for r in town.trunk.requests].count(b"CANCEL") == 1


def test_slot_granted_after_the_caller_gave_up_is_given_back() -> None:
    desk = Desk()
    take = admitted(desk)
    invite = desk.engine.calls.by_id[take.slot.call].request
    cancel = desk.request(b"CANCEL", TARGET, call_id=b"one", cseq=invite.cseq.number, branch=invite.via.branch or b"")
    statuses = [m.status for m in desk.receive(cancel) if not isinstance(m, Request)]
    assert sorted(statuses) == [200, 487]
    actions = desk.engine.slot_result(take.slot, taken=True, used=1, now=desk.now)
    assert actions == [ReleaseSlot(take.slot)]
    assert desk.engine.channels.leases() == []


def test_caller_hears_of_a_call_only_when_its_admission_is_in_the_journal() -> None:
    """Design, invariant 3: behind a 100 he repeats his INVITE no more, so that a node that dies then has to leave a record."""
    desk = Desk()
    take = admitted(desk)
    assert not [a for a in desk.actions if isinstance(a, Journal | SendTo)]
    desk.tick(0.2)
    waiting = desk.engine.fire(desk.now)
    assert [type(a) for a in waiting] == [Journal, SendTo], "the slot takes long: §17.2.1 asks for a 100 within 200 ms"
    assert isinstance(waiting[0].fact, Admit)
    assert waiting[1].data.startswith(b"SIP/2.0 100 ")
    actions = desk.engine.slot_result(take.slot, taken=True, used=1, now=desk.now)
    first = [a for a in actions if isinstance(a, Journal | SendTo)]
    assert isinstance(first[0].fact, Admit)
    assert isinstance(first[1], SendTo)
    assert any(a.data.startswith(b"INVITE ") for a in first[1:])


def test_refused_slot_is_released_in_case_a_late_take_ran() -> None:
    desk = Desk()
    take = admitted(desk)
    actions = desk.engine.slot_result(take.slot, taken=False, used=2, now=desk.now)
    assert ReleaseSlot(take.slot) in actions


def test_undecided_slot_counts_this_nodes_own_calls() -> None:
    desk = Desk()
    for expected in (1, 2):
        take = admitted(desk)
        desk.engine.slot_result(take.slot, taken=None, used=0, now=desk.now)
        assert desk.engine.calls.by_id[take.slot.call].record.slots_used == expected
    take = admitted(desk)
    desk.engine.slot_result(take.slot, taken=None, used=0, now=desk.now)
    assert desk.engine.calls.by_id[take.slot.call].record.rule == "line.channels"


def test_credentials_for_other_realms_alone_keep_their_place() -> None:
    desk = Desk()
    desk.register(b"<sip:alice@203.0.113.1:5060>")
    foreign = b'Digest username="a", realm="carrier.example", nonce="n", uri="sip:x", response="' + b"0" * 32 + b'"'
    headers = ((b"Proxy-Authorization", foreign), (b"Contact", b"<sip:alice@203.0.113.1>"), (b"X-Last", b"1"))
    desk.receive(desk.request(b"INVITE", b"sip:112@sip.test", headers=headers))
    sent = next(a.data for a in desk.actions if isinstance(a, SendTo) and a.data.startswith(b"INVITE"))
    assert sent.index(b"Proxy-Authorization") < sent.index(b"X-Last")


@pytest.mark.parametrize(("hashes", "offered"), [(("MD5",), 1), (("MD5", "SHA-256"), 2)])
def test_account_is_offered_only_what_its_hashes_can_verify(hashes: tuple[str, ...], offered: int) -> None:
    desk = Desk()
    snapshot = desk.engine.desk.snapshot
    alice = snapshot.accounts["alice"]
    alice = replace(alice, ha1={name: value for name, value in alice.ha1.items() if name in hashes})
    desk.engine.swap_snapshot(replace(snapshot, accounts={**snapshot.accounts, "alice": alice}), desk.now)
    assert len(desk.answer(desk.request()).lines(b"www-authenticate")) == offered
