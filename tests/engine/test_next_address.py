"""The next address of a next hop after 503, silence or a transport failure (RFC 3263 §4.3), and dead addresses."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cdr.facts import Place as Place_
from policy.model import PsapRoute
from sipproxy.engine.addresses import MAX_DEAD, MAX_TRIED
from sipproxy.engine.keep import _place
from sipproxy.engine.recover import _flow
from sipproxy.engine.settings import TrunkRoute
from sipproxy.sip.build import write_response
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Request, parse_message
from sipproxy.sip.places import Place
from tests.sim.agent import Agent
from tests.sim.carrier import CREDENTIALS, Carrier
from tests.sim.conftest import PSAP, TRUNK_B, Town, town_snapshot
from tests.sim.world import PROXY, World, trunk

if TYPE_CHECKING:
    from tests.sim.agent import AgentCall
    from tests.sim.world import Address

NUMBER = b"03023125001"
NAMED = Hop("UDP", "carrier.example", is_open=True)
HELP = Hop("UDP", "psap.example", is_open=True)
NETWORK = ipaddress.ip_network("198.51.100.0/24")
ADDRESSES: list[Address] = [(f"198.51.100.{number}", 5060) for number in range(21, 30)]


class NamedTown(Town):
    """A town whose carrier is a name with `machines` addresses, in order, and with `spare` a second route behind it."""

    machines: list[Carrier]


def places(addresses: list[Address]) -> list[Place]:
    return [Place("UDP", host, port, f"SRV {host}", rank=rank, entry=rank) for rank, (host, port) in enumerate(addresses)]


def named_town(
    machines: int = 2, *, spare: bool = False, silent: int = 0, a: dict[str, Any] | None = None, **options: Any
) -> NamedTown:
    first = replace(TrunkRoute("carrier", NAMED, ((NETWORK, 0),)), **(a or {}))
    routes = (first, trunk("spare", TRUNK_B, 1)) if spare else (first,)
    world = World(town_snapshot(), trunks=routes, **options)
    carriers = [Carrier(world, address, host=address[0]) for address in ADDRESSES[:machines]]
    town = NamedTown(
        world,
        Agent(world, ("203.0.113.1", 5060), "alice"),
        Agent(world, ("203.0.113.2", 5062), "andrea"),
        Agent(world, ("203.0.113.3", 5060), "bob"),
        carriers[0],
        Carrier(world, TRUNK_B, host=TRUNK_B[0]),
        Agent(world, PSAP),
    )
    town.machines = carriers
    silence(town, *range(silent))
    world.engine.resolved(NAMED, places(ADDRESSES[:machines]))
    world.perform([])
    town.register_all()
    return town


def reject(agent: Agent, status: int, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    def behave(call: AgentCall) -> None:
        assert call.server is not None
        call.status = status
        data = write_response(call.server.request, status, to_tag=b"no", headers=headers)
        agent._tx.respond(call.server, status, data, agent.world.now)
        agent._flush()

    agent.behave = behave


def answer(agent: Agent) -> None:
    agent.behave = lambda call: agent.ring_then_answer(call, 0.1, 0.5)


def silence(town: NamedTown, *machines: int) -> None:
    for machine in machines:
        del town.world.agents[ADDRESSES[machine]]


def speaks(town: NamedTown, machine: int) -> None:
    town.world.agents[ADDRESSES[machine]] = town.machines[machine]._receive


def completed(town: NamedTown, seconds: float = 40.0) -> AgentCall:
    call = town.alice.call(NUMBER)
    town.world.run(seconds)
    if call.status == 200:
        town.alice.bye(call)
    town.world.run(1.0)
    return call


def invites(town: NamedTown) -> list[tuple[float, Address, Request]]:
    """Every INVITE that the proxy sent to an address of the name, without repetitions."""
    found: dict[bytes, tuple[float, Address, Request]] = {}
    for at, source, to, data in town.world.wire:
        if source == PROXY and to in ADDRESSES and data.startswith(b"INVITE"):
            request = parse_message(data)
            assert isinstance(request, Request)
            found.setdefault(request.via.branch or b"", (at, to, request))
    return list(found.values())


def rows(town: NamedTown) -> list[dict[str, Any]]:
    found: Any = town.world.engine.desk.trunks.view()[0]["addresses"]
    return list(found)


def states(town: NamedTown) -> list[str]:
    return [row["why"] for row in rows(town)]


def refuse_sending(town: NamedTown, address: Address) -> None:
    """What the proxy sends to this address cannot be sent."""
    world, send = town.world, town.world.send

    def failing(data: bytes, source: Address, to: Address) -> None:
        if source == PROXY and to == address:
            clients = world.engine.desk.transactions.clients.items()
            key = next((key for key, client in clients if client.request.raw == data), None)
            world.after(0.0, lambda: world.perform(world.engine.transport_failed(("c", key), world.instant)))
        else:
            send(data, source, to)

    world.send = failing  # type: ignore[method-assign]


# The next address


def test_a_503_leads_to_the_next_address_by_a_branch_of_its_own() -> None:
    town = named_town()
    reject(town.machines[0], 503)
    assert completed(town).status == 200
    (_, first, one), (_, second, other) = invites(town)
    assert [first, second] == ADDRESSES[:2]
    assert (one.call_id, one.cseq, one.uri) == (other.call_id, other.cseq, other.uri)
    assert one.via.branch != other.via.branch
    assert states(town) == ["503", ""]
    assert town.world.engine.desk.trunks.view()[0]["state"] == "up", "the route works, one of its machines does not"
    assert [record.trunk for record in town.world.records] == ["carrier"]
    assert completed(town).status == 200
    assert [to for _, to, _ in invites(town)] == [*ADDRESSES[:2], ADDRESSES[1]], "the dead one is not asked again"
    town.assert_reconciled()


def test_a_silent_address_is_passed_within_the_bound_of_one_try_and_not_waited_for_again() -> None:
    town = named_town(route_s=3.0)
    silence(town, 0)
    began = town.world.now
    assert completed(town).status == 200
    (at, _, _), (later, to, _) = invites(town)
    assert (at - began < 1.0, to) == (True, ADDRESSES[1])
    assert later - at == pytest.approx(3.0, abs=0.1)
    assert states(town) == ["timeout", ""]
    began = town.world.now
    assert completed(town).status == 200
    assert town.machines[1].calls[-1].answered_at - began < 2.0
    town.assert_reconciled()


def test_an_address_that_cannot_be_sent_to_is_passed_at_once() -> None:
    town = named_town()
    refuse_sending(town, ADDRESSES[0])
    assert completed(town).status == 200
    (at, _, _), (later, _, _) = [(town.world.now, None, None), *invites(town)][-2:]
    assert states(town) == ["transport", ""]
    assert later <= at
    town.assert_reconciled()


def test_a_silent_address_that_rings_after_all_is_cancelled_when_the_next_one_answers() -> None:
    town = named_town(route_s=2.0)
    town.machines[0].behave = lambda call: None
    first = town.machines[0]
    held: list[tuple[bytes, Address]] = []
    town.world.agents[ADDRESSES[0]] = lambda data, source: held.append((data, source))
    town.machines[1].behave = lambda call: town.machines[1].ring_then_answer(call, 0.1, 6.0)
    call = town.alice.call(NUMBER)
    town.world.run(4.0)
    speaks(town, 0)
    first.behave = lambda late: first.ring_then_answer(late, 0.1, 60.0)
    first._receive(*held[0])
    town.world.run(40.0)
    assert call.status == 200
    assert [late.status for late in first.calls] == [487], "cancelled, and not left ringing"
    town.alice.bye(call)
    town.world.run(2.0)
    town.assert_reconciled()


def test_a_silent_address_whose_transaction_ends_later_sets_off_no_further_try() -> None:
    town = named_town(3, silent=1, route_s=2.0)
    town.machines[1].behave = lambda call: town.machines[1].ring_then_answer(call, 0.1, 45.0)
    call = town.alice.call(NUMBER)
    town.world.run(60.0)  # Timer B of the first is over after 32 s
    assert call.status == 200
    assert [to for _, to, _ in invites(town)] == ADDRESSES[:2]


def test_a_dead_address_is_tried_again_when_its_time_is_over() -> None:
    town = named_town(dead_s=100.0)
    reject(town.machines[0], 503)
    assert completed(town, 10.0).status == 200
    answer(town.machines[0])
    assert completed(town, 10.0).status == 200
    assert len(town.machines[0].calls) == 1
    town.world.run(100.0)
    assert completed(town).status == 200
    assert (len(town.machines[0].calls), states(town)) == (2, ["", ""])


def test_a_retry_after_holds_an_address_and_an_answered_ping_does_not_bring_it_back() -> None:
    town = named_town(a={"ping_s": 5.0}, dead_s=10.0)
    reject(town.machines[0], 503, ((b"Retry-After", b"300 (busy)"),))
    assert completed(town, 20.0).status == 200
    answer(town.machines[0])
    town.world.run(100.0)
    assert states(town) == ["503", ""]
    assert rows(town)[0]["dead_for_s"] in range(100, 300)
    town.world.run(200.0)
    assert states(town) == ["", ""]


def test_every_address_dead_is_every_address_tried_and_a_503_is_never_relayed() -> None:
    town = named_town(3)
    for machine in town.machines:
        reject(machine, 503)
    assert completed(town).status == 500
    assert states(town) == ["503"] * 3
    assert completed(town).status == 500
    assert [to for _, to, _ in invites(town)] == ADDRESSES[:3] * 2
    answer(town.machines[2])
    assert completed(town).status == 200
    town.assert_reconciled()


def test_the_next_route_comes_after_the_living_addresses_and_before_the_dead_ones() -> None:
    town = named_town(2, spare=True)
    for machine in town.machines:
        reject(machine, 503)
    assert completed(town).status == 200
    assert [to for _, to, _ in invites(town)] == ADDRESSES[:2]
    assert len(town.trunk_b.calls) == 1
    assert town.world.engine.desk.trunks.view()[0]["last_failure"] == "503"
    answer(town.machines[0])
    town.machines[0].behave = lambda call: None
    town.world.engine.desk.addresses.heard(Hop("UDP", *ADDRESSES[1]), 200)
    assert completed(town).status == 200
    assert [to for _, to, _ in invites(town)][2:] == [ADDRESSES[1]], "the dead one is not tried while another route lives"


def test_an_ordinary_call_tries_a_few_addresses_and_a_call_for_help_all() -> None:
    town = named_town(8)
    for machine in town.machines:
        reject(machine, 503)
    assert completed(town).status == 500
    assert len(invites(town)) == MAX_TRIED
    answer(town.machines[7])
    town.world.engine.swap_snapshot(with_help(town, HELP.host), town.world.instant)
    town.world.engine.resolved(HELP, places(ADDRESSES[:8]))
    call = town.alice.call(b"112")
    town.world.run(5.0)
    assert call.status == 200
    assert len(town.machines[7].calls) == 1


# Calls for help (design: invariant 1)


def with_help(town: NamedTown, host: str) -> Any:
    found = town_snapshot(version=8)
    routes = {
        ("friedberg", service): (PsapRoute("friedberg", service, 1, f"sip:{service}@{host}"),) for service in ("110", "112")
    }
    return replace(found, psap=routes)


def test_a_call_for_help_goes_on_beyond_the_set_up_bound_until_every_silent_address_was_tried() -> None:
    town = named_town(7, setup_s=10.0, route_s=4.0)
    town.world.engine.swap_snapshot(with_help(town, HELP.host), town.world.instant)
    town.world.engine.resolved(HELP, places(ADDRESSES[:7]))
    silence(town, *range(6))
    for host, port in ADDRESSES[:6]:  # dead or not
        town.world.engine.desk.addresses.failed(Hop("UDP", host, port), "timeout")
    town.world.engine.desk.addresses.failed(Hop("UDP", *ADDRESSES[6]), "503", hold_s=600.0)
    began = town.world.now
    call = town.alice.call(b"112")
    town.world.run(60.0)
    assert call.status == 200
    assert [to for _, to, _ in invites(town)] == ADDRESSES[:7]
    assert town.machines[6].calls[0].answered_at - began > 20.0
    town.alice.bye(call)
    town.world.run(2.0)
    town.assert_reconciled()


@pytest.mark.parametrize("status", [404, 480, 486, 500, 503])
def test_a_call_for_help_that_one_machine_refuses_goes_to_the_next(status: int) -> None:
    town = named_town(2)
    town.world.engine.swap_snapshot(with_help(town, HELP.host), town.world.instant)
    town.world.engine.resolved(HELP, places(ADDRESSES[:2]))
    reject(town.machines[0], status)
    call = town.alice.call(b"112")
    town.world.run(5.0)
    assert call.status == 200
    ordinary = named_town(2)
    reject(ordinary.machines[0], status)
    assert completed(ordinary).status == (200 if status == 503 else status)


def test_a_call_for_help_ends_when_everything_was_tried() -> None:
    town = named_town(2, setup_s=10.0, route_s=4.0)
    town.world.engine.swap_snapshot(with_help(town, HELP.host), town.world.instant)
    town.world.engine.resolved(HELP, places(ADDRESSES[2:4]))
    silence(town, 0, 1)
    town.alice.call(b"112")
    town.world.run_until(lambda: bool(town.world.records), 80.0)
    assert {to for _, to, _ in invites(town)} == set(ADDRESSES[:4])


# What else goes to a next hop


def test_the_place_on_the_route_is_kept_while_its_addresses_are_tried() -> None:
    town = named_town(2, route_s=2.0, a={"calls": 5})
    silence(town, 0)
    call = town.alice.call(NUMBER)
    town.world.run(10.0)
    assert call.status == 200
    trunks = town.world.engine.desk.trunks
    assert trunks.calls("carrier") == 1
    town.world.run(40.0)  # the INVITE to the first address has timed out meanwhile
    assert trunks.calls("carrier") == 1
    town.alice.bye(call)
    town.world.run(2.0)
    assert trunks.calls("carrier") == 0
    town.assert_reconciled()


@pytest.mark.parametrize("how", ["transport", "503"])
def test_requests_within_the_call_go_on_to_the_next_address_too(how: str) -> None:
    town = named_town(2)
    world = town.world
    call = town.alice.call(NUMBER)
    world.run(5.0)
    assert call.status == 200
    call.remote_target = b"sip:machine@carrier.example"  # as a carrier's Contact may name itself
    if how == "transport":
        refuse_sending(town, ADDRESSES[0])
    else:
        town.machines[0]._request = lambda request, source: town.machines[0]._reply(request, source, 503)  # type: ignore[method-assign]
    before = len(world.wire)
    town.alice.bye(call)
    world.run(1.0)
    sent = [parse_message(data) for _, source, to, data in world.wire[before:] if (source, to) == (PROXY, ADDRESSES[1])]
    (bye,) = sent
    assert isinstance(bye, Request)
    assert (bye.method, bye.uri, bye.cseq.number) == (b"BYE", b"sip:machine@carrier.example", call.cseq)
    assert town.alice.responses[-1].status == 481, "what the machine says that was asked last"
    assert states(town) == [how, ""]
    town.assert_reconciled()


def test_a_registration_goes_on_to_the_next_address_without_its_back_off() -> None:
    town = named_town(2, silent=1, a={"register": True, **CREDENTIALS})
    town.world.run(33.0)  # Timer F
    assert town.world.engine.desk.trunks.view()[0]["registration"] == "registered"
    assert [len(machine.registers) for machine in town.machines] == [0, 1]


def test_pings_ask_every_address_and_the_route_is_up_while_one_answers() -> None:
    town = named_town(3, a={"ping_s": 10.0})
    silence(town, 0, 2)
    town.world.run(40.0)
    view = town.world.engine.desk.trunks.view()[0]
    assert (view["state"], states(town)) == ("up", ["no_ping", "", "no_ping"])
    assert town.world.engine.desk.addresses.dead == 2
    silence(town, 1)
    town.world.run(40.0)
    assert town.world.engine.desk.trunks.view()[0]["state"] == "down"
    speaks(town, 2)
    town.world.run(20.0)
    assert town.world.engine.desk.trunks.view()[0]["state"] == "up"
    assert states(town) == ["no_ping", "no_ping", ""]
    told = [(note.event, note.fields["address"]) for note in town.world.notes if note.event.startswith("address_")]
    assert told[-2:] == [("address_dead", "udp:198.51.100.22:5060"), ("address_alive", "udp:198.51.100.23:5060")]


def test_a_name_that_was_not_looked_up_yet_is_sent_to_and_its_addresses_are_used_when_that_fails() -> None:
    town = named_town(2)
    town.world.engine.desk.addresses._places.clear()
    call = town.alice.call(NUMBER)
    town.world.run(0.2)
    (key,) = [key for key, client in town.world.engine.desk.transactions.clients.items() if client.target == NAMED]
    town.world.engine.resolved(NAMED, places(ADDRESSES[:2]))
    town.world.perform(town.world.engine.transport_failed(("c", key), town.world.instant))
    town.world.run(5.0)
    assert (call.status, [to for _, to, _ in invites(town)]) == (200, ADDRESSES[:1])


def test_an_answer_counts_from_the_name_s_addresses_and_from_nowhere_else() -> None:
    from sipproxy.engine.sources import may_answer

    town = named_town(2, a={"networks": ()})
    desk = town.world.engine.desk
    (first, second) = desk.addresses.choose(NAMED)
    assert (first.domain, second.domain) == (NAMED.host, NAMED.host)
    for host, taken in ((ADDRESSES[0][0], True), (ADDRESSES[1][0], True), (ADDRESSES[2][0], False)):
        assert may_answer(desk, first, Flow("UDP", 0, host, 5060)) is taken


def test_a_call_goes_on_after_a_restart_with_the_name_that_its_address_was_found_by() -> None:
    """Of a route without `addresses` the name is all that tells its machines from others."""
    town = named_town(2, a={"networks": ()})
    desk = town.world.engine.desk
    address = desk.addresses.choose(NAMED)[1]
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(_place(address)), type=Place_)
    assert _flow(desk, kept) == address
    elsewhere = Hop("UDP", "198.51.100.200", 5060)
    assert _flow(desk, _place(elsewhere)) == elsewhere
    desk.settings = replace(desk.settings, trunks=(replace(desk.settings.trunks[0], hop=NAMED._replace(listener=0)),))
    assert _flow(desk, kept) == address._replace(listener=0), "as the route says by now"


def test_places_that_no_listener_reaches_are_shown_and_not_chosen() -> None:
    town = named_town(1)
    desk = town.world.engine.desk
    found = [
        Place("TLS", "198.51.100.40", 5061),
        Place("UDP", "2001:db8::1", 5060, rank=1),
        Place("UDP", *ADDRESSES[0], rank=2),
    ]
    town.world.engine.resolved(NAMED, found)
    assert desk.addresses.choose(NAMED) == [Hop("UDP", *ADDRESSES[0], -1, NAMED.host)]
    assert [row["reachable"] for row in rows(town)] == [False, False, True]


def test_weights_share_the_calls_among_equals() -> None:
    town = named_town(1)
    desk = town.world.engine.desk
    equals = [
        Place("UDP", host, 5060, weight=weight, entry=entry) for entry, (host, weight) in enumerate((("a1", 75), ("a2", 25)))
    ]
    hop = Hop("UDP", "equals.example")
    town.world.engine.resolved(hop, [place._replace(host=f"198.51.100.{61 + place.entry}") for place in equals])
    firsts = [desk.addresses.choose(hop)[0].host for _ in range(2000)]
    assert 1350 < firsts.count("198.51.100.61") < 1650


def test_dead_addresses_are_remembered_up_to_a_bound() -> None:
    desk = named_town(1).world.engine.desk
    for number in range(MAX_DEAD + 1):
        desk.addresses.failed(Hop("UDP", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 5060), "timeout")
    assert desk.addresses.dead == MAX_DEAD
    assert desk.counters["addresses_forgotten", "full"] == 1
    assert not desk.addresses.is_dead(Hop("UDP", "10.0.0.0", 5060))
