"""The order in which trunk routes are tried, and where all routes lead."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from dataclasses import replace

from sipproxy.engine.peers import Peer
from sipproxy.engine.settings import TrunkRoute
from sipproxy.engine.targets import route_hops, trunk_groups
from sipproxy.sip.flow import Hop
from tests.sim.conftest import town_snapshot
from tests.sim.world import World


def route(name: str, priority: int, weight: int) -> TrunkRoute:
    source = ipaddress.ip_network("198.51.100.1")
    return TrunkRoute(name, Hop("UDP", "198.51.100.1", 5060), ((source, 0),), priority, weight)


def test_trunk_order_keeps_priorities_and_shares_by_weight() -> None:
    world = World(town_snapshot(), trunks=(route("a", 0, 3), route("b", 0, 1), route("last", 1, 100)))
    desk = world.engine.desk
    desk.new_token = random.Random(5).randbytes
    orders = [tuple(group[0].name for group in trunk_groups(desk, "+49301")) for _ in range(4000)]
    assert {order[2] for order in orders} == {"last"}
    assert {frozenset(order) for order in orders} == {frozenset({"a", "b", "last"})}
    share = Counter(order[0] for order in orders)["a"] / len(orders)
    assert 0.72 < share < 0.78


def test_route_hops_are_those_of_all_trunks_and_of_all_psaps_that_can_be_read() -> None:
    snapshot = town_snapshot()
    (first, second) = (route for routes in snapshot.psap.values() for route in routes)
    psap = {("a", "112"): (replace(first, uri="sip:112@psap.example"),), ("b", "112"): (replace(second, uri="no URI"),)}
    by_name = replace(route("named", 0, 1), hop=Hop("TLS", "carrier.example"))
    world = World(replace(snapshot, psap=psap), trunks=(by_name, route("a", 0, 1)))
    expected = {Hop("TLS", "carrier.example"), Hop("UDP", "198.51.100.1", 5060), Hop("UDP", "psap.example", is_open=True)}
    assert route_hops(world.engine.desk) == expected
    other = Hop("UDP", "n2.example", 5060)
    world.engine.peers_seen([Peer("n2", (other,), frozenset(["192.0.2.2"]))])
    assert route_hops(world.engine.desk) == expected | {other}, "nodes that advertise a name too"
