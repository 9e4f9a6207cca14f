"""Two nodes on one store: a customer registered at one is called by way of the other (design §6).

The trunk's calls arrive at the world's node `n1`; `bob` is registered at `n2`, which is a hop to him and no more.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest

from sipproxy.engine.actions import SendTo
from sipproxy.engine.edge import SILENT_S
from sipproxy.sip.build import write_response
from sipproxy.sip.message import Request, Response, parse_message
from tests.sim.agent import Agent, AgentCall
from tests.sim.conftest import Town, make_town
from tests.sim.restart import Restarts
from tests.sim.second import SECOND, Second
from tests.sim.world import PROXY

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sipproxy.engine.actions import Action

BOB = b"+4920514001"


@dataclass
class Pair:
    town: Town
    second: Second

    @property
    def bob(self) -> Agent:
        return self.town.bob

    def incoming(self, **options: object) -> AgentCall:
        """The trunk calls bob at n1."""
        return self.town.trunk.call(b"sip:%s@192.0.2.1" % BOB, from_user="+4930123456", **options)  # type: ignore[arg-type]

    def run(self, seconds: float) -> None:
        self.town.world.run(seconds)

    def sent(self, source: tuple[str, int], to: tuple[str, int]) -> list[Request | Response]:
        return [parse_message(data) for _, one, other, data in self.town.world.wire if (one, other) == (source, to)]


def make_pair(**options: object) -> Pair:
    town = make_town(**options)  # type: ignore[arg-type]
    second = Second(town.world)
    town.bob.proxy = SECOND
    town.bob.register()
    for agent in (town.alice, town.andrea):
        agent.register()
    town.world.run(2.0)
    assert [a.registered for a in (town.alice, town.andrea, town.bob)] == [200, 200, 200]
    return Pair(town, second)


@pytest.fixture
def pair() -> Pair:
    return make_pair()


def test_call_to_a_customer_of_the_other_node_is_one_call_with_one_cdr_and_one_slot(pair: Pair) -> None:
    call = pair.incoming()
    pair.run(3.0)
    assert call.status == 200
    assert [str(c.phase) for c in pair.town.world.engine.calls.by_id.values()] == ["answered"]
    assert len(pair.town.world.store.all()) == 1
    pair.run(10.0)
    pair.town.trunk.bye(call)
    pair.run(2.0)
    assert pair.bob.calls[0].ended == "remote"
    [record] = pair.town.world.records
    assert (record.node, record.status, record.released_by, record.callee_account or record.account) == (
        "n1",
        200,
        "caller",
        "bob",
    )
    assert pair.second.facts == []
    assert not pair.second.engine.calls.by_id
    pair.town.assert_reconciled()


def test_everything_between_the_trunk_and_the_customer_passes_through_both_nodes(pair: Pair) -> None:
    call = pair.incoming()
    pair.run(3.0)
    assert call.routes[0].startswith(b"<sip:192.0.2.1:5060")
    assert call.routes[1].startswith(b"<sip:192.0.2.2:5060")
    pair.bob.bye(pair.bob.calls[0])
    pair.run(2.0)
    assert call.ended == "remote"
    wire = {(one, other) for _, one, other, _ in pair.town.world.wire}
    assert (PROXY, pair.bob.address) not in wire
    assert (pair.bob.address, PROXY) not in wire
    [record] = pair.town.world.records
    assert record.released_by == "callee"


@pytest.mark.parametrize("method", [b"INVITE", b"UPDATE", b"INFO", b"OPTIONS"])
def test_requests_within_the_dialog_pass_both_ways(pair: Pair, method: bytes) -> None:
    call = pair.incoming()
    pair.run(3.0)
    statuses: list[int] = []

    def got(response: Response | None) -> None:
        statuses.append(response.status if response is not None else 0)

    for agent, own in ((pair.town.trunk, call), (pair.bob, pair.bob.calls[0])):
        if method == b"INVITE":
            agent.reinvite(own, got)
        else:
            agent._in_dialog(own, method, got)
        pair.run(1.0)
    assert [status for status in statuses if status >= 200] == [200, 200]
    assert method in {request.method for request in pair.bob.requests}
    assert method in {request.method for request in pair.town.trunk.requests}


def test_cancel_reaches_the_customer_and_the_call_ends_once(pair: Pair) -> None:
    pair.bob.behave = lambda call: pair.bob.progress(call, 180)
    call = pair.incoming()
    pair.run(2.0)
    pair.town.trunk.cancel(call)
    pair.run(3.0)
    assert call.status == 487
    assert pair.bob.calls[0].status == 487
    [record] = pair.town.world.records
    assert record.end_reason == "cancelled"
    pair.town.assert_reconciled()


@pytest.mark.parametrize("status", [486, 480, 603])
def test_refusal_of_the_customer_reaches_the_trunk(pair: Pair, status: int) -> None:
    pair.bob.behave = lambda call: pair.bob.reject(call, status)
    call = pair.incoming()
    pair.run(3.0)
    assert call.status == status


def test_internal_call_reaches_the_customer_of_the_other_node(pair: Pair) -> None:
    call = pair.town.alice.call(BOB)
    pair.run(3.0)
    assert call.status == 200
    pair.town.alice.bye(call)
    pair.run(2.0)
    [record] = pair.town.world.records
    assert (record.direction, record.callee_account) == ("internal", "bob")
    pair.town.assert_reconciled()


def test_hidden_caller_stays_hidden_over_the_other_node_and_is_reached_again(pair: Pair) -> None:
    privacy = ((b"Privacy", b"id"), (b"P-Asserted-Identity", b"<sip:+4930123456@carrier>"))
    call = pair.incoming(headers=privacy)
    pair.run(3.0)
    statuses: list[int] = []
    pair.bob.reinvite(pair.bob.calls[0], lambda r: statuses.append(r.status if r is not None else 0))
    pair.run(1.0)
    assert 200 in statuses
    pair.town.trunk.bye(call)
    pair.run(2.0)
    for message in (*pair.sent(PROXY, SECOND), *pair.sent(SECOND, pair.bob.address)):
        assert b"30123456" not in message.raw
    assert pair.bob.calls[0].ended == "remote"


def test_what_the_first_node_vouches_for_is_not_taken_away_by_the_second(pair: Pair) -> None:
    pair.incoming(headers=((b"P-Asserted-Identity", b"<sip:+4930123456@carrier>"), (b"X-Kept", b"as it came")))
    pair.run(1.0)
    invite = pair.bob.calls[0].invite
    assert invite is not None
    assert invite.lines(b"p-asserted-identity") == [b"<sip:+4930123456@carrier>"]
    assert invite.lines(b"x-kept") == [b"as it came"]
    assert not invite.has(b"route")


def test_dead_node_makes_its_customer_unreachable_within_seconds(pair: Pair) -> None:
    pair.second.kill()
    started = pair.town.world.now
    call = pair.incoming()
    pair.town.world.run_until(lambda: bool(call.status), bound=30)
    assert call.status == 480
    assert pair.town.world.now - started < SILENT_S + 1
    pair.run(40.0)
    [record] = pair.town.world.records
    assert (record.end_reason, record.cause) == ("unreachable", 20)
    pair.town.assert_reconciled()


def test_dead_node_does_not_keep_another_binding_from_ringing(pair: Pair) -> None:
    world = pair.town.world
    second_bob = Agent(world, ("203.0.113.33", 5060), "bob")
    second_bob.register()
    pair.run(1.0)
    pair.second.kill()
    call = pair.incoming()
    pair.run(3.0)
    assert call.status == 200
    assert [c.status for c in second_bob.calls] == [200]


def test_node_started_again_in_a_call_lets_its_bye_pass_from_either_side(pair: Pair) -> None:
    calls = [pair.incoming(), pair.incoming()]
    pair.run(3.0)
    assert [call.status for call in calls] == [200, 200]
    pair.second.kill()
    pair.run(5.0)
    pair.second.start()
    pair.town.trunk.bye(calls[0])
    pair.bob.bye(pair.bob.calls[1])
    pair.run(3.0)
    assert {pair.bob.calls[0].ended, pair.bob.calls[1].ended} == {"remote", "local"}
    assert {record.end_reason for record in pair.town.world.records} == {"normal"}
    pair.town.assert_reconciled()
    assert pair.incoming().status == 0
    pair.run(3.0)
    assert pair.town.trunk.calls[-1].status == 200  # the binding is back as well


def test_node_that_stays_away_in_a_call_ends_it_at_the_last_proof_of_life() -> None:
    pair = make_pair(probe_s=30.0)
    call = pair.incoming()
    pair.run(3.0)
    pair.second.kill()
    pair.run(200.0)
    [record] = pair.town.world.records
    assert (record.end_reason, record.duration_certain) == ("session_expired", False)
    assert record.billable_ms is not None
    assert record.billable_ms < 4000
    assert call.ended == "remote"
    assert pair.town.world.store.all() == set()


def test_owner_started_again_in_a_call_has_it_back_through_the_other_node(pair: Pair) -> None:
    restarts = Restarts(pair.town.world)
    call = pair.incoming()
    pair.run(3.0)
    restarts.kill()
    pair.run(2.0)
    restarts.start()
    pair.town.world.engine.peers_seen(pair.second.peers)
    pair.run(8.0)  # it asks both parties whether they are there
    assert pair.town.world.records == []
    pair.bob.bye(pair.bob.calls[0])
    pair.run(3.0)
    assert call.ended == "remote"
    [record] = pair.town.world.records
    assert (record.end_reason, record.released_by) == ("normal", "callee")


def test_router_that_registers_at_the_other_node_has_moved(pair: Pair) -> None:
    pair.bob.proxy = PROXY
    pair.bob.register()
    pair.run(1.0)
    for engine in (pair.town.world.engine, pair.second.engine):
        assert [b.node for _, b in engine.desk.location.items() if b.contact.startswith("sip:bob")] == ["n1"]
    pair.incoming()
    pair.run(2.0)
    assert pair.sent(PROXY, SECOND) == []
    assert len(pair.bob.calls) == 1


def test_router_that_unregisters_is_gone_everywhere(pair: Pair) -> None:
    pair.bob.register(expires=0)
    pair.run(1.0)
    assert pair.incoming().status == 0
    pair.run(1.0)
    assert pair.town.trunk.calls[-1].status == 480


def test_stranger_with_a_token_is_treated_as_if_he_had_none(pair: Pair) -> None:
    """Design: invariant 6. A token from elsewhere than a node, or than an end of its dialog."""
    world = pair.town.world
    call = pair.incoming()
    pair.run(3.0)
    invite = next(m for m in pair.sent(PROXY, SECOND) if isinstance(m, Request) and m.method == b"INVITE")
    stranger = ("203.0.113.99", 5060)
    got: list[bytes] = []
    world.agents[stranger] = lambda data, _: got.append(data)
    before = len(pair.bob.requests)
    world.send(invite.raw.replace(b"branch=z9hG4bK", b"branch=z9hG4bKx"), stranger, SECOND)
    pair.run(1.0)
    assert b"SIP/2.0 407" in b"".join(got) or b"SIP/2.0 407" in b"".join(
        data for _, source, _, data in world.wire if source == SECOND
    )
    token = call.routes[1]
    bye = b"\r\n".join(
        [
            b"BYE sip:bob@203.0.113.3:5060 SIP/2.0",
            b"Via: SIP/2.0/UDP 203.0.113.99:5060;branch=z9hG4bKs1;rport",
            b"Max-Forwards: 70",
            b"Route: " + token,
            b"From: <sip:x@y>;tag=" + call.local_tag,
            b"To: <sip:z@y>;tag=" + call.remote_tag,
            b"Call-ID: " + call.call_id,
            b"CSeq: 9 BYE",
            b"Content-Length: 0",
            b"",
            b"",
        ]
    )
    world.send(bye, stranger, SECOND)
    pair.run(1.0)
    assert b"SIP/2.0 481" in b"".join(got)
    assert len(pair.bob.requests) == before
    assert not pair.bob.calls[0].ended


def test_customer_cannot_use_the_token_to_reach_others_through_his_node(pair: Pair) -> None:
    """What he sends goes to the node that brought the call, whatever Route he writes behind it."""
    pair.incoming()
    pair.run(3.0)
    own = pair.bob.calls[0]
    evil = ("203.0.113.66", 5060)
    own.routes = [own.routes[0], b"<sip:203.0.113.66:5060;lr>"]
    pair.bob._in_dialog(own, b"INFO")
    pair.run(2.0)
    assert pair.sent(SECOND, evil) == []
    assert any(isinstance(m, Request) and m.method == b"INFO" for m in pair.sent(SECOND, PROXY))


def test_nonce_of_the_other_node_costs_one_challenge_that_says_stale(pair: Pair) -> None:
    alice, world = pair.town.alice, pair.town.world
    uri = b"sip:%s@%s" % (BOB, b"sip.test")
    first = next(r for r in alice.responses if r.status == 401)
    value = alice._credentials(first, b"INVITE", uri)
    alice.proxy = SECOND
    alice.call(uri, headers=((b"Proxy-Authorization", value),))
    world.run(1.0)
    challenge = alice.responses[-1] if alice.responses[-1].status == 407 else alice.responses[-2]
    assert challenge.status == 407
    assert b"stale=true" in challenge.lines(b"proxy-authenticate")[0].lower()


def test_reliable_provisional_response_is_acknowledged_through_both_nodes(pair: Pair) -> None:
    """RFC 3262: PRACK, and an UPDATE, within an early dialog."""
    pair.bob.behave = lambda call: pair.bob.progress(call, 183)
    call = pair.incoming()
    pair.run(2.0)
    early = next(r for r in pair.town.trunk.responses if r.status == 183)
    call.remote_tag, call.remote_target = early.to.tag or b"", early.contacts[0].uri.raw
    call.routes = [route.raw for route in reversed(early.record_routes)]
    statuses: list[int] = []
    for method in (b"PRACK", b"UPDATE"):
        pair.town.trunk._in_dialog(call, method, lambda r: statuses.append(r.status if r is not None else 0))
        pair.run(1.0)
    assert statuses == [200, 200]
    assert {b"PRACK", b"UPDATE"} <= {request.method for request in pair.bob.requests}
    call.routes, call.remote_tag = [], b""
    pair.bob.answer(pair.bob.calls[0])
    pair.run(2.0)
    pair.town.trunk.bye(call)
    pair.run(2.0)
    pair.town.assert_reconciled()


def test_redirection_of_the_customer_is_followed_by_the_node_that_has_the_call(pair: Pair) -> None:
    def forward(call: AgentCall) -> None:
        assert call.server is not None
        call.status = 302
        headers = [(b"Contact", b"<sip:03023125001@sip.test>")]
        pair.bob._tx.respond(call.server, 302, _response(call, headers), pair.town.world.now)

    pair.bob.behave = forward
    pair.incoming()
    pair.run(3.0)
    records = pair.town.world.records
    assert {record.node for record in (*records, *pair.town.world.admitted)} == {"n1"}
    lines = {record.id: record.line for record in pair.town.world.admitted}  # the first one is admitted again, as forwarded
    assert list(lines.values()) == ["L2", "L2"]
    assert pair.second.facts == []


def _response(call: AgentCall, headers: list[tuple[bytes, bytes]]) -> bytes:
    assert call.server is not None
    return write_response(call.server.request, 302, to_tag=call.local_tag, headers=headers)


@pytest.mark.parametrize("seed", range(4))
def test_calls_over_two_nodes_on_a_bad_network_leave_no_slot_and_one_record_each(seed: int) -> None:
    """Loss, duplication and reordering between all three; either party hangs up, cancels or refuses."""
    pair = make_pair(seed=seed, line_fields={"channels": 50})
    world, bob = pair.town.world, pair.bob
    world.loss, world.duplicate, world.delay = 0.05, 0.05, (0.005, 0.2)
    choose = random.Random(seed)

    def behave(call: AgentCall) -> None:
        kind = choose.random()
        if kind < 0.6:
            bob.ring_then_answer(call, 0.2, 1.5)
            if kind < 0.3:
                world.after(8.0, lambda: bob.bye(call))
        elif kind < 0.8:
            bob.reject(call, 486)
        else:
            bob.progress(call, 180)

    bob.behave = behave
    for _ in range(3):
        calls = [pair.incoming() for _ in range(3)]
        pair.run(10.0)
        for call in calls:
            if call.status // 100 == 2:
                pair.town.trunk.bye(call)
            elif not call.status:
                pair.town.trunk.cancel(call)
        pair.run(110.0)
    assert world.store.all() == set(), f"seed {seed}"
    assert len(world.records) == len({record.id for record in world.records}) == 9
    assert pair.second.facts == []
    assert not pair.second.engine.desk.transactions.clients, "the other node keeps nothing"
    assert not pair.second.engine.desk.transactions.servers


def test_challenge_of_a_node_that_does_not_know_its_token_any_more_is_not_passed_on(pair: Pair) -> None:
    """Its secret is another one: it takes the INVITE for a stranger's. The challenge is no business of the trunk's."""
    world = pair.town.world
    [bob] = [one for one in world.engine.desk.location.bindings("bob", world.instant.utc_ms) if one.node == "n2"]
    world.engine.binding_seen("bob", msgspec.structs.replace(bob, token="another-secret"), world.instant)
    call = pair.incoming()
    pair.run(2.0)
    assert 407 in [m.status for m in pair.sent(SECOND, PROXY) if isinstance(m, Response)]
    assert call.status == 480
    [record] = world.records
    assert (record.end_reason, record.cause) == ("unreachable", 20)


def test_node_that_nothing_can_be_sent_to_makes_its_customer_unreachable_at_once(pair: Pair) -> None:
    world = pair.town.world
    perform = world.perform

    def failing(actions: Iterable[Action]) -> None:
        told = list(actions)
        perform(told)
        for action in told:
            if isinstance(action, SendTo) and action.target.host == SECOND[0] and action.key is not None:
                world.after(0.01, lambda key=action.key: world.perform(world.engine.transport_failed(key, world.instant)))  # type: ignore[misc]

    world.perform = failing  # type: ignore[method-assign]
    pair.second.kill()
    call = pair.incoming()
    pair.run(1.0)
    assert call.status == 480


@pytest.mark.parametrize("renews", [True, False])
def test_customer_who_registers_again_while_the_store_is_away_is_reached_from_the_other_node(renews: bool) -> None:
    """Design §8: what the other node knows of him stays as it was, and his own node knows whether he is there."""
    pair = make_pair()
    world = pair.town.world
    [(_, held)] = [(user, b) for user, b in world.engine.desk.location.items() if user == "bob"]
    pair.second.replicates = False
    world.engine.desk.location.unheard_ms = world.instant.utc_ms
    left_s = (held.expires_at_ms - world.instant.utc_ms) / 1000
    pair.run(left_s / 2)
    if renews:
        pair.bob.register()
    pair.run(left_s / 2 + 10)
    world.engine.expire_bindings(world.instant)
    pair.second.engine.expire_bindings(world.instant)
    call = pair.incoming()
    pair.run(10.0)
    assert call.status == (200 if renews else 480)
    if renews:
        pair.town.trunk.bye(call)
        pair.run(2.0)
    pair.town.assert_reconciled()
