"""What a proxy changes in a message and what it leaves alone, and where it sends it (RFC 3261 §16; design, invariant 7)."""

from __future__ import annotations

import pytest

from sipproxy.sip.message import Request, parse_message
from tests.sim.conftest import PSAP, TRUNK_A, Town, make_town
from tests.sim.world import PROXY


def last_to(town: Town, address: tuple[str, int], start: bytes) -> bytes:
    return [data for _, source, to, data in town.world.wire if source == PROXY and to == address and data.startswith(start)][-1]


def test_trust_headers_of_a_customer_do_not_leave(town: Town) -> None:
    town.register_all()
    claims = (
        (b"P-Asserted-Identity", b"<sip:+49110@sip.test>"),
        (b"p-preferred-identity", b"<sip:+49110@sip.test>"),
        (b"Remote-Party-ID", b"<sip:+49110@sip.test>"),
        (b"Diversion", b"<sip:+49110@sip.test>"),
    )
    town.alice.call(b"03023125001", headers=claims)
    town.world.run(3.0)
    arrived = parse_message(last_to(town, TRUNK_A, b"INVITE"))
    assert arrived.lines(b"p-asserted-identity") == [b"<sip:+4960323001@sip.test;user=phone>"]
    assert not any(arrived.has(name) for name in (b"p-preferred-identity", b"remote-party-id", b"diversion"))


def test_restricted_caller_is_not_named_to_a_customer(town: Town) -> None:
    """Design, invariant 11."""
    town.register_all()
    hidden = b"+4989123456"
    headers = ((b"Privacy", b"id"), (b"P-Asserted-Identity", b"<sip:" + hidden + b"@carrier.example>"))
    town.trunk.call(b"+4920514001", headers=headers, from_user="anonymous")
    town.world.run(3.0)
    to_bob = [data for _, source, to, data in town.world.wire if to == town.bob.address and source == PROXY]
    assert any(data.startswith(b"INVITE") for data in to_bob)
    assert not any(hidden in data for data in to_bob)
    town.bob.bye(town.bob.calls[0])
    town.world.run(1.0)
    assert [(r.calling, r.presented, r.privacy) for r in town.world.records] == [("", "", "id")], "nor is it kept: TDDDG § 9(1)"


def test_in_dialog_request_of_a_strict_router_is_understood(town: Town) -> None:
    """RFC 3261 §16.4: our URI in the Request-URI, the target as the last Route value."""
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    (own,) = call.routes
    call.routes = [b"<%s>" % call.remote_target]
    call.remote_target = own.strip(b"<>")
    call.status = 200
    town.alice.bye(call)
    town.world.run(1.0)
    bye = parse_message(last_to(town, TRUNK_A, b"BYE"))
    assert isinstance(bye, Request)
    assert bye.uri == b"sip:carrier@198.51.100.1:5060"
    assert not bye.has(b"route")
    assert town.trunk.calls[0].ended == "remote"


def test_router_behind_nat_is_reached_by_its_flow_within_the_dialog(town: Town) -> None:
    """The deviation from RFC 3261 §16.6 step 6: the Contact names an address that only the router knows."""
    private = b"<sip:bob@192.168.178.1:5060>"
    town.bob.register(contact=private)
    town.world.run(2.0)
    call = town.trunk.call(b"+4920514001")
    town.world.run(3.0)
    assert call.status == 200
    call.remote_target = private.strip(b"<>")
    town.trunk.bye(call)
    town.world.run(1.0)
    assert town.bob.calls[0].ended == "remote"
    assert town.bob.requests[-1].uri == b"sip:bob@192.168.178.1:5060"


def test_next_hop_without_lr_gets_its_own_uri_and_the_target_in_route(town: Town) -> None:
    """RFC 3261 §16.6 step 6."""
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    call.routes = [*call.routes, b"<sip:198.51.100.1:5060>"]
    town.alice.bye(call)
    town.world.run(1.0)
    bye = parse_message(last_to(town, TRUNK_A, b"BYE"))
    assert isinstance(bye, Request)
    assert bye.uri == b"sip:198.51.100.1:5060"
    assert bye.lines(b"route") == [b"<sip:carrier@198.51.100.1:5060>"]


def test_two_answers_of_a_fork_are_two_dialogs_and_one_record(town: Town) -> None:
    town.register_all()
    second = town.second_device()
    for agent in (town.bob, second):
        agent.behave = lambda call, agent=agent: agent.answer(call)  # type: ignore[misc]
    call = town.trunk.call(b"+4920514001")
    town.world.run(3.0)
    assert {r.to.tag for r in town.trunk.responses if r.status == 200} == {a.calls[0].local_tag for a in (town.bob, second)}
    other = second if call.remote_tag == town.bob.calls[0].local_tag else town.bob
    first = town.bob if other is second else second
    other.bye(other.calls[0])
    town.world.run(1.0)
    assert not town.world.records, "the first dialog lives"
    first.bye(first.calls[0])
    town.world.run(1.0)
    assert len(town.world.records) == 1
    town.assert_reconciled()


def test_endless_ringing_is_ended_by_timer_c() -> None:
    town = make_town(ring_s=20.0)
    town.register_all()
    town.trunk.behave = lambda call: town.trunk.progress(call, 180)
    call = town.alice.call(b"03023125001")
    town.world.run(22.0)
    assert town.trunk.calls[0].status == 487, "the callee was cancelled"
    assert call.status == 408
    assert [(r.end_reason, r.released_by) for r in town.world.records] == [("no_answer", "proxy")]
    town.assert_reconciled()


def test_route_that_only_says_trying_is_ended_by_the_setup_bound() -> None:
    town = make_town(setup_s=10.0)
    town.register_all()
    for agent in (town.trunk, town.trunk_b):
        agent.behave = lambda call: None
    call = town.alice.call(b"03023125001")
    town.world.run(80.0)
    assert call.status == 408
    town.assert_reconciled()


def test_cancel_while_the_slot_is_being_taken_leaves_nothing(town: Town) -> None:
    town.register_all()
    town.world.store_answers = False
    call = town.alice.call(b"03023125001")
    town.world.run_until(lambda: bool(call.provisional))
    town.alice.cancel(call)
    town.world.run(5.0)
    assert call.status == 487
    assert not town.trunk.requests
    assert [r.end_reason for r in town.world.records] == ["cancelled"]
    assert not town.world.live_slots()


def test_store_silent_and_slots_refuse_means_no_calls_but_emergency() -> None:
    town = make_town(slots="refuse")
    town.register_all()
    town.world.store_answers = False
    plain, emergency = town.alice.call(b"03023125001"), town.alice.call(b"112")
    town.world.run(5.0)
    assert (plain.status, emergency.status) == (500, 200)
    assert [r.rule for r in town.world.records] == ["store.away"]
    assert len([d for _, _, to, d in town.world.wire if to == PSAP and d.startswith(b"INVITE")]) == 1


def test_second_bye_makes_no_second_record(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    town.alice.bye(call)
    town.trunk.bye(town.trunk.calls[0])
    town.world.run(1.0)
    call.ended = ""
    town.alice.bye(call)
    town.world.run(2.0)
    assert len(town.world.records) == 1
    town.assert_reconciled()


@pytest.mark.parametrize("method", [b"REFER", b"SUBSCRIBE", b"NOTIFY", b"MESSAGE", b"BREW"])
def test_methods_that_start_something_of_their_own_are_refused_in_a_dialog(town: Town, method: bytes) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    seen: list[int] = []
    town.alice._in_dialog(call, method, lambda r: seen.append(r.status if r else 0))
    town.world.run(1.0)
    assert seen == [405]
    assert not [r for r in town.trunk.requests if r.method == method]


@pytest.mark.parametrize("method", [b"INFO", b"UPDATE", b"OPTIONS"])
def test_other_in_dialog_methods_pass(town: Town, method: bytes) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    seen: list[int] = []
    town.alice._in_dialog(call, method, lambda r: seen.append(r.status if r else 0))
    town.world.run(1.0)
    assert seen == [200]


def test_finished_world_holds_nothing(town: Town) -> None:
    """Nothing is left in a table once every timer has run out."""
    town.register_all()
    for target in (b"03023125001", b"112", b"09001123456", b"020514001"):
        call = town.alice.call(target)
        town.world.run(5.0)
        town.alice.bye(call)
        town.world.run(2.0)
    town.world.run(120.0)
    engine = town.world.engine
    assert not engine.calls.by_id
    assert not engine.calls._by_call_id
    assert not any(engine.channels.count().values())
    assert not engine.channels._asked
    assert not engine.desk.transactions.servers
    assert not engine.desk.transactions.clients
    assert engine.calls.live == 0
