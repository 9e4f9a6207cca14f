"""engine.channels: what one call holds, asks for and gives back (design: invariants 2 and 5, §8)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cdr import codec
from cdr.facts import Admit, End, LineSlot
from policy.profiles import load
from sipproxy.engine import keep
from sipproxy.engine.actions import Holder, HoldSlot, Journal, ReleaseSlot, Slot, TakeSlot
from sipproxy.engine.channels import Grant, line_slot, slots_of_forwarding
from tests.engine.desk import Desk

if TYPE_CHECKING:
    from sipproxy.engine.call import Call

TARGET = b"sip:03023125001@sip.test"


def asked(desk: Desk) -> TakeSlot:
    """The next thing that the engine wants a slot for: a call of alice, of line L1 with two channels."""
    value = desk.credentials(b"INVITE", TARGET)
    contact = (b"Contact", b"<sip:alice@203.0.113.1>")
    desk.receive(desk.request(b"INVITE", TARGET, call_id=desk.engine.desk.token().encode(), headers=(value, contact)))
    return next(a for a in desk.actions if isinstance(a, TakeSlot))


def live_call(desk: Desk) -> Call:
    take = asked(desk)
    desk.engine.slot_result(take.slot, taken=True, used=1, now=desk.now)
    return desk.engine.calls.by_id[take.slot.call]


def test_call_that_was_let_in_without_the_store_is_told_to_it_behind_the_take() -> None:
    """The take that it did not answer in time may be refused when it is executed at last."""
    desk = Desk()
    take = asked(desk)
    actions = desk.engine.slot_result(take.slot, taken=None, used=0, now=desk.now)
    assert HoldSlot(take.slot, take.holder) in actions


def test_slot_that_the_store_grants_beyond_what_is_held_here_is_refused_and_given_back() -> None:
    """Design, invariant 2: the store has not heard of the calls yet that were let in without it."""
    desk = Desk()
    for _ in range(2):
        desk.engine.slot_result(asked(desk).slot, taken=None, used=0, now=desk.now)
    take = asked(desk)
    actions = desk.engine.slot_result(take.slot, taken=True, used=1, now=desk.now)
    assert ReleaseSlot(take.slot) in actions
    record = desk.engine.calls.by_id[take.slot.call].record
    assert (record.rule, record.slots_used, desk.engine.channels.held("line", "L1")) == ("line.channels", 2, 2)


@pytest.mark.parametrize(("slots", "more"), [(0, 0), (1, 1), (2, 1), (-1, 0)])
def test_forwarding_takes_at_most_one_slot_more(slots: int, more: int) -> None:
    assert slots_of_forwarding(replace(load()["velbert"], forwarding_slots=slots)) == more


def test_second_slot_of_a_call_is_asked_for_kept_refreshed_journalled_and_given_back() -> None:
    desk = Desk()
    call = live_call(desk)
    grants: list[Grant] = []
    second = line_slot(call, "L2")
    desk.tick(1.0)
    desk.engine.desk.now = desk.now
    desk.engine.channels.ask(call, second, grants.append, limit=2, account="alice")
    take = next(a for a in desk.engine.desk.take_actions() if isinstance(a, TakeSlot))
    assert (take.slot, take.limit) == (Slot("line", "L2", call.id), 2)
    assert take.holder == Holder("n1", desk.utc_ms, "alice", "outgoing")
    desk.engine.slot_result(take.slot, taken=True, used=2, now=desk.now)
    assert grants == [Grant("", 2, 0)]
    assert [slot for slot, _ in desk.engine.channels.leases()] == [Slot("line", "L1", call.id), second]
    in_parts = [desk.engine.channels.leases(part, 7) for part in range(7)]
    assert sorted(slot for part in in_parts for slot, _ in part) == [Slot("line", "L1", call.id), second]
    assert in_parts == [desk.engine.channels.leases(part, 7) for part in range(7)]
    assert (desk.engine.channels.held("line", "L1"), desk.engine.channels.held("line", "L2")) == (1, 1)
    admit = codec.decode_fact(codec.encode_fact(keep.admission(call)))
    assert isinstance(admit, Admit)
    assert admit.slots == (LineSlot("L1", "alice"), LineSlot("L2", "alice"))
    call.refuse(480, 31, end_reason="operator")
    released = {a.slot for a in desk.engine.desk.take_actions() if isinstance(a, ReleaseSlot)}
    assert released == {Slot("line", "L1", call.id), second}
    assert desk.engine.channels.leases() == []


def test_store_that_forgot_this_nodes_calls_admits_no_more_than_the_line_has_and_is_told_of_them() -> None:
    """Design §8, flushed: what the store says cannot be less than what is held here."""
    desk = Desk()
    for used in (1, 2):
        desk.engine.slot_result(asked(desk).slot, taken=True, used=used, now=desk.now)
    held = [slot for slot, _ in desk.engine.channels.leases()]
    assert len(held) == 2
    third = asked(desk).slot
    actions = desk.engine.slot_result(third, taken=True, used=1, now=desk.now)
    assert [action.slot for action in actions if isinstance(action, HoldSlot)] == held
    assert [action.slot for action in actions if isinstance(action, ReleaseSlot)] == [third]
    assert [slot for slot, _ in desk.engine.channels.leases()] == held
    ends = [action.fact.record for action in actions if isinstance(action, Journal) and isinstance(action.fact, End)]
    assert [(record.status, record.rule, record.slots_used) for record in ends] == [(403, "line.channels", 2)]
    assert desk.engine.desk.counters["slots_forgotten", "line"] == 1


def test_call_that_has_waited_long_enough_is_decided_at_once_and_the_store_is_told() -> None:
    desk = Desk()
    call = live_call(desk)
    desk.engine.desk.now = desk.now
    call.store_wait_s = 0.0
    grants: list[Grant] = []
    second = line_slot(call, "L2")
    desk.engine.channels.ask(call, second, grants.append, limit=2, account="alice")
    assert [grant.refusal for grant in grants] == [""]
    actions = [a for a in desk.engine.desk.take_actions() if isinstance(a, TakeSlot | HoldSlot)]
    assert actions == [HoldSlot(second, desk.engine.channels.holder(second))]


def test_what_is_asked_for_after_the_call_waited_is_asked_with_what_is_left() -> None:
    desk = Desk()
    take = asked(desk)
    assert take.wait_s == desk.engine.desk.settings.store_wait_s
    desk.tick(5.0)  # in which this node was busy with other things, most of the time
    desk.engine.slot_result(take.slot, taken=True, used=1, waited_s=0.1, now=desk.now)
    call = desk.engine.calls.by_id[take.slot.call]
    desk.engine.channels.ask(call, line_slot(call, "L2"), lambda _: None, limit=2)
    more = next(a for a in desk.engine.desk.take_actions() if isinstance(a, TakeSlot))
    assert more.wait_s == pytest.approx(take.wait_s - 0.1)


def test_asking_again_for_what_the_call_has_asks_nobody() -> None:
    desk = Desk()
    call = live_call(desk)
    grants: list[Grant] = []
    desk.engine.channels.ask(call, line_slot(call, "L1"), grants.append, limit=1, account="alice")
    assert grants == [Grant("", 1, 1)]
    assert not desk.engine.desk.take_actions()
