"""Whom a trunk route is taken for under load: what its address shows, and not what others have in common with it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest

from sipproxy.engine.backlog import Backlog, Rank
from sipproxy.engine.peers import Peer
from sipproxy.engine.settings import Rates
from sipproxy.sip.flow import Flow, Hop
from tests.engine.desk import Desk
from tests.engine.shedding import CALL, messages
from tests.sim.conftest import make_town

TRUNK = Flow("UDP", 0, "2001:db8:1::10", 5060)
NEIGHBOUR = TRUNK._replace(host="2001:db8:1::66")  # in the same /64, as in one data centre


@pytest.fixture
def desk() -> Desk:
    """Its first trunk has an IPv6 address, and proves a name over TLS."""
    engine = make_town(rates=Rates(source_per_s=1, source_burst=5, credit_bytes=20_000)).world.engine
    first, *others = engine.desk.settings.trunks
    first = replace(first, networks=((ip_network(TRUNK.host), 0),), names=("carrier.example",))
    engine.desk.settings = replace(engine.desk.settings, trunks=(first, *others))
    return Desk(engine)


def test_trunk_is_not_counted_though_a_stranger_of_its_ipv6_network_came_before(desk: Desk) -> None:
    assert messages(desk, b"OPTIONS", 7, NEIGHBOUR) == [[200]] * 5 + [[]] * 2
    assert messages(desk, b"OPTIONS", 30, TRUNK) == [[200]] * 30
    backlog = Backlog(desk.engine.shedder)
    for flow in (TRUNK, NEIGHBOUR):
        backlog.put(desk.request(b"INVITE", CALL), flow, 0.0)
    assert (backlog.waiting_of(Rank.NEW), backlog.waiting_of(Rank.STRANGER)) == (1, 1)
    desk.engine.shedder.source(TRUNK).credit = 0
    assert desk.answer(desk.request(b"OPTIONS"), TRUNK).first(b"allow"), "however many bytes it has sent"


def test_stranger_is_counted_though_a_trunk_of_his_ipv6_network_came_before(desk: Desk) -> None:
    assert messages(desk, b"OPTIONS", 30, TRUNK) == [[200]] * 30
    assert messages(desk, b"OPTIONS", 7, NEIGHBOUR) == [[200]] * 5 + [[]] * 2
    backlog = Backlog(desk.engine.shedder)
    backlog.put(desk.request(b"INVITE", CALL), NEIGHBOUR, 0.0)
    assert backlog.waiting_of(Rank.STRANGER) == 1


def test_datagram_with_the_address_of_who_proved_a_name_over_tls_is_a_strangers(desk: Desk) -> None:
    """Anybody can write an address into a datagram."""
    proven = Flow("TLS", 0, "198.51.100.77", 40_000, 1, ("carrier.example",))
    assert messages(desk, b"OPTIONS", 30, proven) == [[200]] * 30
    datagram = Flow("UDP", 0, proven.host, 5060)
    assert messages(desk, b"OPTIONS", 7, datagram) == [[200]] * 5 + [[]] * 2
    assert not desk.engine.shedder.is_known(datagram)
    assert desk.engine.shedder.is_known(proven)


def test_node_that_shows_itself_after_its_first_message_is_not_counted_from_then_on(desk: Desk) -> None:
    """What it sends is of calls that it has admitted, and is no stranger's while others crowd the node."""
    node, backlog = Flow("UDP", 0, "192.0.2.200", 5060), Backlog(desk.engine.shedder)
    assert messages(desk, b"OPTIONS", 7, node) == [[200]] * 5 + [[]] * 2
    desk.engine.desk.peers.heard([Peer("n2", (Hop("UDP", node.host, 5060),), frozenset([node.host]))])
    assert messages(desk, b"OPTIONS", 30, node) == [[200]] * 30
    backlog.put(desk.request(b"BYE", CALL, to_tag=b"t"), node, 0.0)
    assert backlog.waiting_of(Rank.PART) == 1
