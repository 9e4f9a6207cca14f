"""Customers behind NATs: many at one address, mappings and addresses that change, and the pings that hold them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sipproxy.engine.settings import Rates
from tests.sim.agent import Agent, AgentCall
from tests.sim.conftest import TRUNK_A, Town
from tests.sim.world import PROXY, Address, World, account, line, snapshot, trunk
from tests.sip.test_stun import PLAIN

if TYPE_CHECKING:
    from sipproxy.sip.message import Response

GATE = "203.0.113.200"  # a carrier-grade NAT
NEW = ("198.51.100.99", 40_001)  # what the home connection has after its nightly break
INSTANCE = b';+sip.instance="<urn:uuid:00000000-0000-1000-8000-000A95A0E128>"'


def town_behind_a_gate(count: int, rates: Rates) -> tuple[World, list[Agent]]:
    """So many lines of one account each, all behind one address."""
    lines = [line(f"L{n}", f"u{n}") for n in range(count)]
    accounts = [account(f"u{n}", f"L{n}", f"+496032{3000 + n}") for n in range(count)]
    world = World(snapshot(lines, accounts), trunks=(trunk("carrier-a", TRUNK_A),), rates=rates)
    return world, [Agent(world, (GATE, 20_000 + n), f"u{n}") for n in range(count)]


class Guesser(Agent):
    """Proves another password than the account has, on the nonces that it is given."""

    def _credentials(self, response: Response, method: bytes, uri: bytes) -> bytes:
        self.user = "u39x"  # whose password is another one
        value = super()._credentials(response, method, uri)
        self.user = "u39"
        return value.replace(b"u39x", b"u39")


def move(agent: Agent, to: Address) -> None:
    """The NAT has another mapping, or the line another address: what the agent sends comes from there alone."""
    del agent.world.agents[agent.address]
    agent.world.agents[to] = agent._receive
    agent.address = to


def test_hundreds_of_lines_behind_one_address_register_at_once_and_none_is_locked_out() -> None:
    """With a budget that a dozen of them use up: it grows with each line that is known there."""
    world, agents = town_behind_a_gate(300, Rates(source_per_s=1, source_burst=20, credit_bytes=65_000))
    for agent in agents:
        agent.register()
    world.run(64.0)
    assert [agent.registered for agent in agents].count(200) >= 200, "more than the address's own budget has room for"
    for agent in agents:
        if not agent.registered:
            agent.register()  # as routers do, a minute later
    world.run(64.0)
    assert [agent.registered for agent in agents] == [200] * 300


def test_neighbour_who_guesses_locks_out_no_other_line_behind_his_address() -> None:
    world, agents = town_behind_a_gate(40, Rates(credit_bytes=1_000_000))
    for agent in agents[:20]:
        agent.register()
    world.run(5.0)
    guesser = Guesser(world, (GATE, 30_000), "u39")
    for _ in range(300):
        guesser.register()
        world.run(0.05)
    for agent in agents[:39]:
        agent.registered = 0
        agent.register()
        world.run(0.1)
    world.run(40.0)
    assert sum(world.engine.desk.counters["guesses_limited", budget] for budget in ("pair", "source", "user")) > 0
    assert [agent.registered for agent in agents[:39]] == [200] * 39


@pytest.mark.parametrize("contact", [b"<sip:bob@192.168.178.1:5060>", b"<sip:bob@192.168.178.1:5060>" + INSTANCE])
def test_router_whose_mapping_changed_has_one_binding_and_is_reached_by_the_new_one(town: Town, contact: bytes) -> None:
    bob, world = town.bob, town.world
    town.alice.register()
    bob.register(contact=contact)
    world.run(2.0)
    move(bob, (bob.address[0], 61_002))
    bob.register(contact=contact)
    world.run(2.0)
    [binding] = world.engine.desk.location.bindings("bob", world.instant.utc_ms)
    assert (binding.flow.host, binding.flow.port) == bob.address
    call = town.alice.call(b"020514001")
    world.run(5.0)
    assert call.status == 200
    town.alice.bye(call)
    world.run(5.0)
    town.assert_reconciled()


def test_router_with_another_address_and_contact_is_known_by_its_instance(town: Town) -> None:
    town.bob.register(contact=b"<sip:bob@203.0.113.3:5060>" + INSTANCE)
    town.world.run(2.0)
    move(town.bob, NEW)
    town.bob.register(contact=b"<sip:bob@%s:%d>" % (NEW[0].encode(), NEW[1]) + INSTANCE)
    town.world.run(2.0)
    [binding] = town.world.engine.desk.location.bindings("bob", town.world.instant.utc_ms)
    assert (binding.flow.host, binding.flow.port) == NEW


def talking(town: Town) -> tuple[AgentCall, AgentCall]:
    """Alice, registered by an instance, is in a call with the carrier: her end of it and the carrier's."""
    town.alice.register(contact=b"<sip:alice@192.168.178.1:5060>" + INSTANCE)
    town.world.run(2.0)
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    assert call.status == 200
    return call, town.trunk.calls[-1]


@pytest.mark.parametrize("to", [("203.0.113.1", 61_002), NEW])
def test_call_goes_on_over_a_change_of_mapping_or_address_once_the_router_has_registered(town: Town, to: Address) -> None:
    """The carrier hangs up before the router has said anything in the call: the BYE has to find it."""
    call, far = talking(town)
    move(town.alice, to)
    town.alice.register(contact=b"<sip:alice@192.168.178.1:5060>" + INSTANCE)
    town.world.run(2.0)
    town.trunk.bye(far)
    town.world.run(5.0)
    assert call.ended == "remote"
    [record] = town.world.records
    assert (record.released_by, record.duration_certain) == ("callee", True)
    town.assert_reconciled()


def test_address_that_another_customer_has_now_gets_nothing_of_the_call(town: Town) -> None:
    """The old address is somebody else's by the time that the carrier hangs up."""
    _, far = talking(town)
    before = town.alice.address
    move(town.alice, NEW)
    town.alice.register(contact=b"<sip:alice@192.168.178.1:5060>" + INSTANCE)
    town.world.run(2.0)
    stranger = Agent(town.world, before, "andrea")
    town.trunk.bye(far)
    town.world.run(5.0)
    assert stranger.requests == []


def test_pings_of_a_registered_router_are_answered_or_ignored_and_keep_its_binding(town: Town) -> None:
    """OPTIONS and STUN are answered; CRLF and empty datagrams, which the listener takes, do no harm here either."""
    town.register_all()
    world, source = town.world, town.bob.address
    heard: list[bytes] = []
    receive = world.agents[source]
    world.agents[source] = lambda data, peer: heard.append(data) if data[:1] < b"\x04" else receive(data, peer)
    for _ in range(10):
        for ping in (b"", b"\r\n\r\n", b"\0", PLAIN):
            world.send(ping, source, PROXY)
        world.run(15.0)
    assert [data[:2] for data in heard] == [b"\x01\x01"] * 10
    assert world.engine.desk.location.users_at(
        world.engine.desk.location.bindings("bob", world.instant.utc_ms)[0].flow, world.instant.utc_ms
    ) == ["bob"]


def test_call_for_help_behind_a_gate_that_is_over_its_budget_goes_through() -> None:
    """Design, invariant 1: whatever its neighbours do."""
    world, agents = town_behind_a_gate(3, Rates(source_per_s=1, source_burst=3, strangers_burst=3, credit_bytes=65_000))
    agents[0].register()
    world.run(3.0)
    noise = Agent(world, (GATE, 31_000), "u2")
    for _ in range(50):
        noise.register()
    Agent(world, TRUNK_A, host=TRUNK_A[0])
    call = agents[0].call(b"112")
    world.run(5.0)
    assert call.status == 200
