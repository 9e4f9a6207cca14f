"""Messages from elsewhere that know ever more of a call: its Call-ID, its tags, its CSeq, its cookie (design: invariant 6).

The call, its record and its parties stay as they were. What a stolen cookie is good for is shown too.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cdr.facts import Alive
from sipproxy.engine.addresses import MAX_NAMES
from sipproxy.engine.sources import may_answer
from sipproxy.sip.build import write_cancel, write_request, write_response
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Request, parse_message
from sipproxy.sip.places import Place
from tests.sim.conftest import TRUNK_A, TRUNK_B, Town, make_town
from tests.sim.restart import Restarts
from tests.sim.world import PROXY, Address

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.sim.agent import Agent, AgentCall

ELSEWHERE = ("203.0.113.99", 5060)
METHODS = (b"BYE", b"INVITE", b"UPDATE", b"INFO", b"PRACK", b"OPTIONS", b"ACK", b"REFER", b"NEWTHING")
LEVELS = ("call_id", "tags", "cseq", "cookie")
NUMBER = b"03023125001"


class Intruder:
    """Sends what he likes from his own address, and sees what comes back."""

    def __init__(self, town: Town, address: Address = ELSEWHERE) -> None:
        self.world, self.address = town.world, address
        self.got: list[bytes] = []
        self.number = 0
        town.world.agents[address] = lambda data, _: self.got.append(data)

    def send(self, data: bytes) -> None:
        self.world.send(data, self.address, PROXY)
        self.world.run(1.0)

    def within(self, call: AgentCall, method: bytes, level: str, *, cseq: int = 0) -> bytes:
        """A request within the call's dialog, in the place of who has this side of it."""
        self.number += 1
        known = LEVELS.index(level)
        assert call.invite is not None
        own, far = (call.invite.from_, call.invite.to) if call.outgoing else (call.invite.to, call.invite.from_)
        host = b"%s:%d" % (self.address[0].encode(), self.address[1])
        tags = (call.local_tag, call.remote_tag) if known >= 1 else (b"made", b"up")
        number = cseq or (call.cseq + (method != b"ACK") if known >= 2 else 70_000)
        headers = [
            (b"Via", b"SIP/2.0/UDP %s;branch=z9hG4bKintruder%d;rport" % (host, self.number)),
            (b"Max-Forwards", b"70"),
            (b"From", b"<%s>;tag=%s" % (own.uri.raw, tags[0])),
            (b"To", b"<%s>;tag=%s" % (far.uri.raw, tags[1])),
            (b"Call-ID", call.call_id),
            (b"CSeq", b"%d %s" % (number, method)),
            (b"Contact", b"<sip:me@%s>" % host),
            *((b"Route", route) for route in call.routes if known >= 3),
        ]
        return write_request(method, call.remote_target, headers)

    @property
    def statuses(self) -> list[int]:
        return [int(data.split()[1]) for data in self.got]


def up(target: bytes = NUMBER, **options: object) -> tuple[Town, AgentCall, AgentCall]:
    """A town, and both sides of an answered call of alice."""
    town = make_town(**options)
    town.register_all()
    call = town.alice.call(target)
    town.world.run(3.0)
    callee = {NUMBER: town.trunk, b"020514001": town.bob, b"112": town.psap}[target]
    return town, call, callee.calls[0]


def agents(town: Town) -> tuple[Agent, ...]:
    return town.alice, town.andrea, town.bob, town.trunk, town.trunk_b, town.psap


def state(town: Town) -> object:
    """All that a message within a call could change."""
    (call,) = town.world.engine.calls.by_id.values()
    (dialog,) = call.dialogs
    told = [(len(agent.requests), len(agent.responses)) for agent in agents(town)]
    proofs = (call.last_seen, call.proof, (dialog.watch.caller, dialog.watch.callee) if dialog.watch else None)
    bounds = (dict(call.due or {}), call.bound_at)
    return told, call.phase, call.flow, dialog.to, dialog.sides, dialog.ended, proofs, bounds, list(town.world.facts)


@pytest.mark.parametrize("side", ["caller", "callee"])
@pytest.mark.parametrize("target", [NUMBER, b"020514001", b"112"])
@pytest.mark.parametrize("level", LEVELS)
def test_requests_from_elsewhere_change_nothing_about_the_call(level: str, target: bytes, side: str) -> None:
    town, call, far = up(target)
    town.world.run(40.0)  # transactions of the set-up are over
    before, intruder = state(town), Intruder(town)
    posed = call if side == "caller" else far
    for method in METHODS:
        intruder.send(intruder.within(posed, method, level))
    assert state(town) == before
    is_customer = side == "caller" or target == b"020514001"
    asked = 407 if level == "cookie" and is_customer else 481
    assert intruder.statuses == [asked] * (len(METHODS) - 1), "everything but the ACK is answered"
    why = ("requests_refused", {"call_id": "no_dialog"}.get(level, "unproven_source" if asked == 407 else "source"))
    assert town.world.engine.desk.counters[why] >= len(METHODS) - 1
    # The call is as it was: held by either side, and ended by whom it belongs to.
    statuses: list[int] = []
    for agent, own in ((town.alice, call), (next(a for a in agents(town) if far in a.calls), far)):
        agent.reinvite(own, lambda r: statuses.append(r.status if r is not None else 0))
        town.world.run(2.0)
    assert [s for s in statuses if s >= 200] == [200, 200]
    town.alice.bye(call)
    town.world.run(2.0)
    assert (call.ended, far.ended) == ("local", "remote")
    (record,) = town.world.records
    assert (record.end_reason, record.released_by, record.duration_certain) == ("normal", "caller", True)
    assert abs(record.billable_ms - 1000 * (call.ended_at - call.answered_at)) <= 40
    assert not [fact for fact in town.world.facts if isinstance(fact, Alive) and fact.caller_cseq >= 70_000]
    town.assert_reconciled()


@pytest.mark.parametrize("right_password", [True, False])
def test_stolen_cookie_from_another_address_needs_the_accounts_password_too(*, right_password: bool) -> None:
    """RFC 3261 §22.3: a router whose address changed within the call answers the challenge, and is followed there."""
    town, call, far = up()
    moved = ("203.0.113.200", 5060)
    intruder = Intruder(town, moved)
    intruder.send(intruder.within(call, b"INFO", "cookie"))
    challenged = parse_message(intruder.got[-1])
    assert not isinstance(challenged, Request)
    assert challenged.status == 407
    agent = town.alice if right_password else town.bob
    value = agent._credentials(challenged, b"INFO", call.remote_target)
    again = intruder.within(call, b"INFO", "cookie", cseq=call.cseq + 2)
    intruder.send(again.replace(b"Contact:", b"Proxy-Authorization: " + value + b"\r\nContact:"))
    assert intruder.statuses[1] == (200 if right_password else 481)
    assert bool([r for r in town.trunk.requests if r.method == b"INFO"]) is right_password
    (live,) = town.world.engine.calls.by_id.values()
    assert live.flow.host == (moved[0] if right_password else town.alice.address[0])
    assert not far.ended


@pytest.mark.parametrize(("cseq", "passes"), [(-1, False), (0, False), (1, True), (900, True), (70_000, False)])
def test_another_port_of_the_same_address_needs_the_cookie_and_a_cseq_that_follows(cseq: int, *, passes: bool) -> None:
    """A NAT that bound anew. Who has the cookie, and can send from the customer's own address, is not told apart from him."""
    town, call, far = up()
    intruder = Intruder(town, (town.alice.address[0], 40_000))
    intruder.send(intruder.within(call, b"BYE", "cseq"))
    assert (intruder.statuses, far.ended) == ([481], "")
    intruder.send(intruder.within(call, b"BYE", "cookie", cseq=call.cseq + cseq))
    assert far.ended == ("remote" if passes else "")
    assert intruder.statuses[1:] == [200 if passes else 481]


def test_customer_whose_port_changed_is_followed_also_over_a_restart() -> None:
    town, call, far = up(boot="boot-1")
    node = Restarts(town.world)
    moved = Intruder(town, (town.alice.address[0], 40_000))
    moved.send(moved.within(call, b"INFO", "cookie"))
    assert moved.statuses == [200]
    node.kill()
    node.start()
    town.trunk._in_dialog(far, b"INFO")
    town.world.run(1.0)
    assert moved.got[-1].startswith(b"INFO ")


def test_binding_that_was_registered_from_a_new_address_speaks_for_its_account() -> None:
    town, call, _ = up()
    there = ("203.0.113.201", 5060)
    alice = type(town.alice)(town.world, there, "alice")
    alice.register()
    bob = type(town.alice)(town.world, ("203.0.113.202", 5060), "bob")
    bob.register()
    town.world.run(2.0)
    for address, status in ((bob.address, 481), (there, 200)):
        intruder = Intruder(town, address)
        intruder.send(intruder.within(call, b"INFO", "cseq"))
        assert intruder.statuses == [status]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token[:-1] + (b"A" if token[-1:] != b"A" else b"B"),
        lambda token: b"A" + token[1:] if token[:1] != b"A" else b"B" + token[1:],
        lambda token: token[:-4],
        lambda token: token + b"AAAA",
        lambda token: token.swapcase(),
        lambda _: b"0123456789abcdef01234567",
    ],
)
def test_altered_cookie_is_refused_and_counted_even_from_the_party_itself(spoil: Callable[[bytes], bytes]) -> None:
    town, call, _ = up()
    token = call.routes[0].partition(b";c=")[2].partition(b">")[0]
    call.routes = [call.routes[0].replace(token, spoil(token))]
    before = state(town)
    seen: list[int] = []
    town.alice._in_dialog(call, b"INFO", lambda r: seen.append(r.status if r else 0))
    town.world.run(1.0)
    assert seen == [481]
    assert town.world.engine.desk.counters["requests_refused", "token"] == 1
    assert state(town)[1:] == before[1:]  # type: ignore[index]


def test_cookie_of_another_call_is_refused() -> None:
    town, call, _ = up()
    other = town.andrea.call(b"03023125002")
    town.world.run(3.0)
    call.routes = other.routes
    seen: list[int] = []
    town.alice._in_dialog(call, b"BYE", lambda r: seen.append(r.status if r else 0))
    town.world.run(1.0)
    assert seen == [481]
    assert town.world.engine.calls.live == 2


def test_cookie_is_good_after_a_restart() -> None:
    town, call, far = up(boot="boot-1")
    node = Restarts(town.world)
    node.kill()
    node.start()
    seen: list[int] = []
    town.alice._in_dialog(call, b"INFO", lambda r: seen.append(r.status if r else 0))
    town.world.run(1.0)
    assert seen == [200]
    assert not far.ended
    assert not town.world.engine.desk.counters["requests_refused", "token"]


# CANCEL


def ringing(target: bytes = NUMBER) -> tuple[Town, AgentCall]:
    town = make_town()
    town.register_all()
    for agent in (town.trunk, town.psap):
        agent.behave = lambda call, agent=agent: agent.progress(call, 180)  # type: ignore[misc]
    call = town.alice.call(target)
    town.world.run(1.0)
    assert 180 in call.provisional
    return town, call


@pytest.mark.parametrize("target", [NUMBER, b"112"])
def test_cancel_from_elsewhere_with_everything_right_is_481_and_the_call_rings_on(target: bytes) -> None:
    town, call = ringing(target)
    intruder = Intruder(town)
    assert call.invite is not None
    intruder.send(write_cancel(call.invite))
    # The answer goes to where it came from, as far as a stranger's Via says; the caller is told nothing.
    assert 487 not in [r.status for r in town.alice.responses]
    assert town.world.engine.desk.counters["requests_refused", "cancel_source"] == 1
    callee = town.psap if target == b"112" else town.trunk
    assert not [r for r in callee.requests if r.method == b"CANCEL"]
    callee.answer(callee.calls[0])
    town.world.run(1.0)
    assert call.status == 200
    town.assert_reconciled()


def test_cancel_of_another_dialog_with_the_same_branch_is_481() -> None:
    town, call = ringing()
    assert call.invite is not None
    town.world.send(write_cancel(call.invite).replace(call.call_id, b"another"), town.alice.address, PROXY)
    town.world.run(1.0)
    assert call.status == 0
    assert town.world.engine.desk.counters["requests_refused", "cancel_source"] == 1
    town.alice.cancel(call)
    town.world.run(1.0)
    assert call.status == 487


def test_cancel_from_another_port_of_the_callers_address_is_his() -> None:
    town, call = ringing()
    assert call.invite is not None
    Intruder(town, (town.alice.address[0], 40_000)).send(write_cancel(call.invite))
    assert call.status == 487


def test_ack_of_a_refusal_from_elsewhere_does_not_stop_its_repetitions() -> None:
    town = make_town()
    town.register_all()
    town.trunk.behave = lambda call: town.trunk.reject(call, 486)
    send, world = town.world.send, town.world

    def losing(data: bytes, source: Address, to: Address) -> None:
        if not (source == town.alice.address and data.startswith(b"ACK")):
            send(data, source, to)

    world.send = losing  # type: ignore[method-assign]
    call = town.alice.call(NUMBER)
    world.run(0.6)
    assert call.final is not None
    assert call.invite is not None
    lines = [
        (b"Via", call.invite.via.raw),
        (b"From", call.invite.first(b"from") or b""),
        (b"To", call.final.first(b"to") or b""),
    ]
    ack = write_request(b"ACK", call.invite.uri, [*lines, (b"Call-ID", call.call_id), (b"CSeq", b"%d ACK" % call.cseq)])
    send(ack, ELSEWHERE, PROXY)
    world.run(0.1)
    sent = [at for at, source, to, data in world.wire if (source, to) == (PROXY, town.alice.address) and b" 486 " in data[:20]]
    world.run(3.0)
    again = [at for at, source, to, data in world.wire if (source, to) == (PROXY, town.alice.address) and b" 486 " in data[:20]]
    assert len(again) > len(sent)
    assert world.engine.desk.counters["requests_refused", "ack_source"] == 1


# Responses


def answer_from(town: Town, source: Address, status: int, *, branch: bool = True) -> None:
    """A response to the INVITE that the trunk got, with everything right but, perhaps, its branch."""
    (far,) = town.trunk.calls
    assert far.invite is not None
    headers = [(b"Record-Route", route.raw) for route in far.invite.record_routes]
    headers += [(b"Contact", b"<sip:me@203.0.113.99:5060>")] if status < 300 else []
    data = write_response(far.invite, status, to_tag=b"intruder", headers=headers)
    own = far.invite.via.branch or b""
    town.world.send(data if branch else data.replace(own, own[:-1] + b"0" + own[-1:]), source, PROXY)
    town.world.run(0.5)


@pytest.mark.parametrize("status", [180, 200, 302, 404, 486, 503, 603])
def test_response_from_elsewhere_with_the_right_branch_changes_nothing(status: int) -> None:
    town, call = ringing()
    before = list(town.world.facts)
    answer_from(town, ELSEWHERE, status)
    answer_from(town, ELSEWHERE, status, branch=False)
    answer_from(town, town.alice.address, status)
    assert (call.status, call.provisional.count(180)) == (0, 1)
    assert town.world.facts == before
    assert town.world.engine.desk.counters["responses_elsewhere", "dropped"] == 2
    assert town.world.engine.desk.counters["responses_dropped", "branch"] == 1
    assert not town.trunk_b.requests
    town.trunk.answer(town.trunk.calls[0])
    town.world.run(1.0)
    assert call.status == 200
    town.assert_reconciled()


def test_carrier_may_answer_from_another_address_of_the_route_that_was_tried_and_no_other_carrier_may() -> None:
    town, call = ringing()
    answer_from(town, (TRUNK_A[0], 5070), 180)
    assert call.provisional.count(180) == 2
    before = list(town.world.facts)
    answer_from(town, TRUNK_B, 486)
    assert (call.status, town.world.facts) == (0, before)
    route = town.world.settings.trunks[0]
    wider = replace(route, networks=(*route.networks, (ipaddress.ip_network("198.51.100.2"), 0)))
    town.world.engine.desk.settings = replace(town.world.settings, trunks=(wider, town.world.settings.trunks[1]))
    answer_from(town, TRUNK_B, 486)
    assert call.status == 486


def places(hosts: list[str]) -> list[Place]:
    return [Place("UDP", host, 5060) for host in hosts]


@pytest.mark.parametrize(
    ("source", "taken"),
    [("192.0.2.51", True), ("192.0.2.52", True), ("198.51.100.1", True), ("198.51.100.2", False), ("203.0.113.99", False)],
)
def test_route_with_a_name_is_heard_from_where_the_name_leads_and_from_its_addresses(source: str, *, taken: bool) -> None:
    world = make_town().world
    desk = world.engine.desk
    first, second = world.settings.trunks
    desk.settings = replace(world.settings, trunks=(replace(first, hop=Hop("UDP", "carrier.example")), second))
    hop, flow = desk.settings.trunks[0].hop, Flow("UDP", 0, source, 5060)
    assert may_answer(desk, hop, flow)  # not looked up yet: the branch has to do
    world.engine.resolved(hop, places(["192.0.2.51"]))
    world.engine.resolved(hop, places(["192.0.2.52"]))
    assert may_answer(desk, hop, flow) is taken
    world.engine.resolved(hop, places(["192.0.2.52"]))  # the same again
    assert may_answer(desk, hop, flow) is taken
    world.engine.resolved(hop, places(["192.0.2.52", "192.0.2.53"]))
    assert may_answer(desk, hop, flow) is (taken and source != "192.0.2.51")


def test_names_that_lead_somewhere_are_remembered_up_to_a_bound() -> None:
    desk = make_town().world.engine.desk
    for number in range(MAX_NAMES + 1):
        desk.addresses.leads(Hop("UDP", f"n{number}.example"), places(["192.0.2.51"]))
    assert desk.addresses.hosts_of("n0.example") == ()
    assert desk.counters["names_forgotten", "full"] == 1
    assert desk.addresses.hosts_of(f"n{MAX_NAMES}.example") == ("192.0.2.51",)


def test_emergency_centre_that_answers_from_another_address_is_heard() -> None:
    """Design, invariant 1: a centre with two addresses is no intruder, and the branch is known to who got the call alone."""
    town, call = ringing(b"112")
    (far,) = town.psap.calls
    assert far.invite is not None
    headers = [(b"Record-Route", route.raw) for route in far.invite.record_routes]
    contact = (b"Contact", b"<sip:112@198.51.100.112:5060>")
    data = write_response(far.invite, 200, to_tag=b"centre", headers=[*headers, contact])
    town.world.send(data, ("198.51.100.113", 5060), PROXY)
    town.world.run(0.5)
    assert call.status == 200
    assert town.world.engine.desk.counters["responses_elsewhere", "emergency"] == 1


def test_responses_within_a_dialog_come_from_where_the_request_went() -> None:
    town, call, far = up()
    town.trunk._respond = lambda *_, **__: None  # type: ignore[method-assign]
    seen: list[int] = []
    town.alice.reinvite(call, lambda r: seen.append(r.status if r is not None else 0))
    town.world.run(0.2)
    reinvite = town.trunk.requests[-1]
    for status in (200, 481, 408):
        town.world.send(write_response(reinvite, status, headers=[(b"Contact", b"<sip:me@203.0.113.99>")]), ELSEWHERE, PROXY)
    town.world.run(0.2)
    assert [status for status in seen if status >= 200] == []
    (live,) = town.world.engine.calls.by_id.values()
    assert live.is_answered
    assert b"203.0.113.99" not in b"".join(side.remote_target for d in live.dialogs for side in d.sides or ())
    assert not far.ended


# Who may reach whom


@pytest.mark.parametrize("how", ["route", "target"])
def test_party_reaches_its_other_party_and_nobody_else(how: str) -> None:
    """A Route or Request-URI of the sender's making does not lead the request elsewhere."""
    town, call, _ = up()
    before = state(town)
    if how == "route":
        call.routes = [call.routes[0], b"<sip:203.0.113.99:5060;lr>"]
    else:
        call.remote_target = b"sip:me@203.0.113.99:5060"
    intruder, seen = Intruder(town), list[int]()
    for method in (b"INFO", b"INVITE", b"UPDATE", b"BYE"):
        town.alice._in_dialog(call, method, lambda r: seen.append(r.status if r else 0))
        town.world.run(1.0)
    assert (seen, intruder.got) == ([403] * 4, [])
    assert town.world.engine.desk.counters["requests_refused", "target"] >= 4  # the ACK of the 403 too
    assert state(town)[1:] == before[1:]  # type: ignore[index]
