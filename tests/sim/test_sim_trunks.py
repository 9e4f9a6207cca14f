"""Trunk routes: health by pings and by traffic, order, limits, loops (design §5 step 4; RFC 3261 §16.3, §16.7, §21.5.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests.sim.carrier import Carrier, carrier_town
from tests.sim.world import PROXY

if TYPE_CHECKING:
    from tests.sim.agent import Agent, AgentCall
    from tests.sim.conftest import Town

NUMBER = b"03023125001"


def route(town: Town, index: int = 0) -> dict[str, Any]:
    return town.world.engine.desk.trunks.view()[index]


def states(town: Town) -> list[object]:
    return [row["state"] for row in town.world.engine.desk.trunks.view()]


def carriers(town: Town) -> tuple[Carrier, Carrier]:
    return cast("Carrier", town.trunk), cast("Carrier", town.trunk_b)


def completed(town: Town, caller: Agent | None = None) -> AgentCall:
    """A call that is answered and hung up."""
    agent = caller or town.alice
    call = agent.call(NUMBER)
    town.world.run(40.0)
    agent.bye(call)
    town.world.run(1.0)
    return call


def reject(agent: Agent, status: int) -> None:
    agent.behave = lambda call: agent.reject(call, status)


def answer(agent: Agent) -> None:
    agent.behave = lambda call: agent.ring_then_answer(call, 0.1, 1.0)


# Pings


def test_ping_unanswered_twice_makes_the_route_down_and_an_answer_up_again() -> None:
    town = carrier_town(a={"ping_s": 30.0})
    first, second = carriers(town)
    town.world.run(5.0)
    assert route(town)["ping_ms"] in range(5, 50)
    first.pings = False
    town.world.run(45.0)
    assert states(town) == ["down", "up"]
    assert route(town)["last_failure"] == "no_ping"
    assert route(town)["since_ms"] == pytest.approx(town.world.instant.utc_ms, abs=45_000)
    town.register_all()
    assert completed(town).status == 200
    assert (len(first.calls), len(second.calls)) == (0, 1)
    first.pings = True
    town.world.run(40.0)
    assert states(town) == ["up", "up"]
    assert completed(town).status == 200
    assert (len(first.calls), len(second.calls)) == (1, 1)
    told = [note.fields for note in town.world.notes if note.event == "trunk_state"]
    assert [(one["state"], one["failure"]) for one in told] == [("down", "no_ping"), ("up", "")]


@pytest.mark.parametrize("status", [404, 405, 500, 501])
def test_ping_refused_is_an_answer(status: int) -> None:
    town = carrier_town(a={"ping_s": 10.0})
    carriers(town)[0].options_status = status
    town.world.run(60.0)
    assert states(town) == ["up", "up"]


def test_ping_that_is_answered_503_is_a_failure() -> None:
    town = carrier_town(a={"ping_s": 10.0})
    carriers(town)[0].options_status = 503
    town.world.run(30.0)
    assert (states(town), route(town)["last_failure"]) == (["down", "up"], "503")


def test_ping_that_cannot_be_sent_is_a_failure() -> None:
    town = carrier_town(a={"ping_s": 10.0})
    world = town.world
    send = world.send

    def failing(data: bytes, source: Any, to: Any) -> None:
        send(data, source, to)
        key = next((key for key, client in world.engine.desk.transactions.clients.items() if client.request.raw == data), None)
        if source == PROXY and key is not None:
            world.after(0.0, lambda: world.perform(world.engine.transport_failed(("c", key), world.instant)))

    world.send = failing  # type: ignore[method-assign]
    world.run(25.0)
    assert (states(town), route(town)["last_failure"]) == (["down", "up"], "transport")


def test_ping_is_a_sound_options_request_without_a_user() -> None:
    town = carrier_town(a={"ping_s": 10.0})
    town.world.run(1.0)
    (ping,) = carriers(town)[0].requests
    assert (ping.method, ping.uri, ping.max_forwards) == (b"OPTIONS", b"sip:198.51.100.1:5060", 70)


def test_routes_that_are_not_pinged_get_no_options() -> None:
    town = carrier_town()
    town.world.run(300.0)
    assert not town.world.wire


# Traffic


@pytest.mark.parametrize("silent", [False, True])
def test_route_that_fails_calls_goes_last_and_is_probed_after_its_back_off(silent: bool) -> None:
    town = carrier_town()
    first, second = carriers(town)
    town.register_all()
    if silent:
        del town.world.agents[first.address]
    reject(first, 503)
    assert completed(town).status == 200
    assert states(town) == ["suspect", "up"]
    assert completed(town).status == 200
    assert states(town) == ["down", "up"]
    assert route(town)["last_failure"] == ("timeout" if silent else "503")
    town.world.agents[first.address] = first._receive
    answer(first)
    seen = len(first.calls)
    down = town.world.engine.desk.trunks._routes["carrier-a"]
    down.hold_until = town.world.now + 100.0
    started = town.world.now
    assert completed(town).status == 200
    assert len(first.calls) == seen, "tried last while its back-off runs"
    assert second.calls[-1].answered_at - started < 2.0, "nobody waits for a route that is known to be down"
    town.world.run(100.0)
    assert completed(town).status == 200
    assert len(first.calls) == seen + 1
    assert states(town) == ["up", "up"]
    town.assert_reconciled()


def test_back_off_of_a_route_that_stays_dead_is_bounded_and_one_call_a_period_probes() -> None:
    town = carrier_town(route_s=2.0)
    first, _ = carriers(town)
    reject(first, 503)
    town.register_all()
    for _ in range(60):
        call = town.alice.call(NUMBER)
        town.world.run(10.0)
        town.alice.bye(call)
        town.world.run(1.0)
        assert call.status == 200
    health = town.world.engine.desk.trunks._routes["carrier-a"]
    assert health.backoff_s <= 300.0
    assert len(first.calls) < 12
    town.assert_reconciled()


def test_every_route_down_is_still_tried() -> None:
    town = carrier_town()
    first, second = carriers(town)
    for agent in (first, second):
        reject(agent, 503)
    town.register_all()
    for _ in range(2):
        assert completed(town).status == 500, "503 is never relayed (§16.7 step 6)"
    assert states(town) == ["down", "down"]
    answer(second)
    assert completed(town).status == 200


def test_retry_after_of_a_503_keeps_calls_and_pings_from_bringing_the_route_back() -> None:
    town = carrier_town(a={"ping_s": 10.0})
    first, second = carriers(town)
    town.register_all()

    def busy(call: AgentCall) -> None:
        from sipproxy.sip.build import write_response

        assert call.server is not None
        call.status = 503
        data = write_response(call.server.request, 503, to_tag=b"t", headers=[(b"Retry-After", b"120")])
        first._tx.respond(call.server, 503, data, town.world.now)
        first._flush()

    first.behave = busy
    assert completed(town).status == 200
    answer(first)
    town.world.run(60.0)
    assert states(town) == ["down", "up"], "the pings were answered, and mean nothing yet"
    town.world.run(40.0)
    assert states(town) == ["up", "up"]
    assert completed(town).status == 200
    assert (len(first.calls), len(second.calls)) == (2, 1)


def test_slow_route_is_passed_within_its_bound_and_counted_once() -> None:
    town = carrier_town(route_s=4.0)
    first, second = carriers(town)
    del town.world.agents[first.address]
    town.register_all()
    started = town.world.now
    call = town.alice.call(NUMBER)
    town.world.run(60.0)
    assert call.status == 200
    assert 4.0 < second.calls[0].answered_at - started < 6.0
    assert states(town) == ["suspect", "up"], "the same silence is one failure, and not a second one at Timer B"
    town.alice.bye(call)
    town.world.run(1.0)
    assert [record.trunk for record in town.world.records] == ["carrier-b"]
    town.assert_reconciled()


def test_all_routes_silent_end_within_the_set_up_bound() -> None:
    town = carrier_town(route_s=6.0, setup_s=20.0)
    for agent in carriers(town):
        del town.world.agents[agent.address]
    town.register_all()
    started = town.world.now
    town.alice.call(NUMBER)
    town.world.run_until(lambda: bool(town.world.records))
    (record,) = town.world.records
    assert town.world.now - started < 20.0 + 32.5
    assert (record.end_reason, record.status) == ("no_answer", 408)
    town.assert_reconciled()


def test_transport_failure_tries_the_next_route_at_once() -> None:
    town = carrier_town()
    town.register_all()
    world = town.world
    send = world.send

    def failing(data: bytes, source: Any, to: Any) -> None:
        send(data, source, to)
        if source == PROXY and to == town.trunk.address and data.startswith(b"INVITE"):
            key = next(key for key, client in world.engine.desk.transactions.clients.items() if client.request.raw == data)
            world.after(0.0, lambda: world.perform(world.engine.transport_failed(("c", key), world.instant)))

    world.send = failing  # type: ignore[method-assign]
    assert completed(town).status == 200
    assert route(town)["last_failure"] == "transport"
    assert len(town.trunk_b.calls) == 1


# Limits


def test_full_route_is_skipped_and_free_again_when_the_call_ends() -> None:
    town = carrier_town(a={"calls": 1})
    first, second = carriers(town)
    town.register_all()
    one, two = town.alice.call(NUMBER), town.andrea.call(NUMBER)
    town.world.run(5.0)
    assert (one.status, two.status) == (200, 200)
    assert (len(first.calls), len(second.calls)) == (1, 1)
    assert (route(town)["calls"], route(town)["limit"]) == (1, 1)
    assert town.world.engine.desk.counters["trunk_full", "carrier-a"] == 1
    assert states(town) == ["up", "up"], "full is not ill"
    held = one if first.calls[0].call_id == one.call_id else two
    (town.alice if held is one else town.andrea).bye(held)
    town.world.run(1.0)
    assert route(town)["calls"] == 0


def test_all_routes_full_is_480_with_cause_34_and_a_record_that_says_so() -> None:
    town = carrier_town(a={"calls": 1}, b={"calls": 1})
    town.register_all()
    held = [agent.call(NUMBER) for agent in (town.alice, town.bob)]
    town.world.run(5.0)
    assert [call.status for call in held] == [200, 200]
    third = town.andrea.call(NUMBER)
    town.world.run(2.0)
    assert third.status == 480
    assert third.final is not None
    assert third.final.first(b"reason") == b"Q.850;cause=34"
    (record,) = town.world.records
    assert (record.verdict, record.rule, record.status, record.cause) == ("deny", "trunk.calls", 480, 34)
    assert record.end_reason == "refused"
    town.assert_reconciled()


def test_emergency_call_is_not_refused_by_the_limit_of_a_route() -> None:
    town = carrier_town(a={"calls": 1}, b={"calls": 1})
    town.register_all()
    for agent in (town.alice, town.bob):
        agent.call(NUMBER)
    town.world.run(5.0)
    reject(town.psap, 486)
    emergency = town.andrea.call(b"112")
    town.world.run(5.0)
    assert emergency.status == 200
    assert [row["calls"] for row in town.world.engine.desk.trunks.view()] == [2, 1]
    town.andrea.bye(emergency)
    town.world.run(1.0)
    assert [row["calls"] for row in town.world.engine.desk.trunks.view()] == [1, 1]


def test_incoming_calls_count_on_their_route_and_are_not_refused_by_it() -> None:
    town = carrier_town(a={"calls": 1})
    town.register_all()
    calls = [town.trunk.call(b"+4920514001") for _ in range(2)]
    town.world.run(5.0)
    assert [call.status for call in calls] == [200, 200]
    assert route(town)["calls"] == 2
    outgoing = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert outgoing.status == 200
    assert len(town.trunk_b.calls) == 1


@pytest.mark.parametrize("seed", range(6))
def test_routes_hold_no_call_after_all_have_ended(seed: int) -> None:
    town = carrier_town(seed=seed, a={"calls": 2}, b={"calls": 2}, loss=0.1, duplicate=0.05, route_s=3.0)
    town.alice.register()
    town.bob.register()
    town.world.run(40.0)
    chance = town.world.random
    for agent in carriers(town):
        kinds = [lambda c, a=agent: a.ring_then_answer(c, 0.1, 0.5), lambda c, a=agent: a.reject(c, 503), lambda c: None]
        agent.behave = lambda call, kinds=kinds: chance.choice(kinds)(call)  # type: ignore[misc]
    for _ in range(20):
        caller = chance.choice([town.alice, town.bob])
        call = caller.call(NUMBER)
        town.world.run(chance.uniform(0.1, 6.0))
        caller.cancel(call)
        caller.bye(call)
        assert all(row["calls"] <= 2 for row in town.world.engine.desk.trunks.view())
    town.world.run(400.0)
    for caller in (town.alice, town.bob):
        for call in caller.calls:
            caller.bye(call)
    town.world.run(100.0)
    live = {call.id for call in town.world.engine.calls.by_id.values() if str(call.phase) != "ended"}
    channels = town.world.engine.channels
    held = {member.partition(":")[0] for owners in channels._held.values() for slots in owners.values() for member in slots}
    assert held <= live
    town.assert_reconciled()


# Loops


def returned(town: Town, user: bytes | None) -> bytes:
    """The INVITE that the carrier got, sent back to us with another hop's Via, to `user` or to whom it was for."""
    invite = town.trunk.calls[0].invite
    assert invite is not None
    number = user if user is not None else invite.uri.partition(b"@")[0].removeprefix(b"sip:")
    lines = invite.raw.split(b"\r\n")
    lines[0] = b"INVITE sip:%s@192.0.2.1 SIP/2.0" % number
    lines.insert(1, b"Via: SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bKback")
    return b"\r\n".join(lines)


def test_call_that_comes_back_with_the_same_number_is_a_loop() -> None:
    """RFC 3261 §16.3 step 4."""
    town = carrier_town()
    first, _ = carriers(town)
    first.behave = lambda call: None
    town.register_all()
    town.alice.call(NUMBER)
    town.world.run(1.0)
    admitted = len(town.world.admitted)
    town.world.send(returned(town, None), first.address, PROXY)
    town.world.run(1.0)
    answers = [data for _, source, to, data in town.world.wire if source == PROXY and to == first.address]
    assert answers[-1].startswith(b"SIP/2.0 482 ")
    assert len(town.world.admitted) == admitted
    assert town.world.engine.desk.counters["requests_refused", "loop"] == 1


def test_call_that_comes_back_with_another_number_is_a_spiral_and_goes_on() -> None:
    """The carrier forwards to a number of ours: RFC 3261 §16.3 step 4 calls it a spiral."""
    town = carrier_town()
    first, _ = carriers(town)
    first.behave = lambda call: None
    town.register_all()
    town.alice.call(NUMBER)
    town.world.run(1.0)
    town.world.send(returned(town, b"+4920514001"), first.address, PROXY)
    town.world.run(1.0)
    assert len(town.bob.calls) == 1


def test_loop_mark_of_another_node_is_not_ours() -> None:
    town, other = carrier_town(), carrier_town()
    marks = [one.world.engine.desk.tokens.sign(b"loop", b"call", b"tag", b"user") for one in (town, other)]
    assert marks[0] == marks[1]  # the address tells nodes apart that share the secret
    other.world.engine.desk.settings = replace(
        other.world.settings, listeners=(replace(other.world.settings.listeners[0], sent_by=b"192.0.2.2:5060"),)
    )
    first, _ = carriers(town)
    first.behave = lambda call: None
    town.register_all()
    town.alice.call(NUMBER)
    town.world.run(1.0)
    from sipproxy.sip.message import Request, parse_message

    message = parse_message(returned(town, None))
    assert isinstance(message, Request)
    assert town.world.engine.desk.has_looped(message)
    assert not other.world.engine.desk.has_looped(message)


def test_slow_route_may_still_answer_when_the_others_are_full() -> None:
    town = carrier_town(b={"calls": 1}, route_s=2.0)
    first, _ = carriers(town)
    town.register_all()
    reject(first, 503)
    held = town.bob.call(NUMBER)
    town.world.run(3.0)
    assert (held.status, route(town, 1)["calls"]) == (200, 1)
    town.world.after(10.0, lambda: None)
    del town.world.agents[first.address]
    answer(first)
    call = town.alice.call(NUMBER)
    town.world.run(5.0)
    assert call.status == 0
    town.world.agents[first.address] = first._receive
    town.world.run(20.0)
    assert call.status == 200
    town.alice.bye(call)
    town.world.run(1.0)
    assert [record.trunk for record in town.world.records] == ["carrier-a"]
    town.assert_reconciled()


def test_call_to_the_registered_address_is_for_the_number_in_to() -> None:
    town = carrier_town(a={"user": "node-77", "password": "x", "register": True})
    town.register_all()
    for user, to, rings in ((b"node-77", b"+4920514001", 1), (b"node-78", b"+4920514001", 1), (b"node-77", b"+4923125001", 1)):
        call = town.trunk.call(b"sip:%s@192.0.2.1" % user)
        assert call.invite is not None
        town.world.run(3.0)
        raw = call.invite.raw.replace(b"To: <sip:%s@" % user, b"To: <sip:%s@" % to)
        raw = raw.replace(call.call_id, call.call_id + b"x").replace(b";branch=z9hG4bK", b";branch=z9hG4bKx")
        town.world.send(raw, town.trunk.address, PROXY)
        town.world.run(3.0)
        assert len(town.bob.calls) == rings
