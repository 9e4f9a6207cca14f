"""Which trunk route a message came by (RFC 5922 §7.3), and which listener a hop is sent from."""

from __future__ import annotations

import ipaddress

import pytest

from sipproxy.engine.settings import Listener, Settings, TrunkRoute
from sipproxy.sip.flow import Flow, Hop

NETWORKS = ((ipaddress.ip_network("192.0.2.1"), 0),)
NAMED = TrunkRoute("a", Hop("TLS", "a.example"), NETWORKS, names=("a.example",))
BY_ADDRESS = TrunkRoute("b", Hop("TLS", "192.0.2.1"), NETWORKS)
PLAIN = TrunkRoute("c", Hop("UDP", "192.0.2.1"), NETWORKS)


@pytest.mark.parametrize(
    ("route", "transport", "host", "names", "matches"),
    [
        (NAMED, "TLS", "198.51.100.7", ("x.example", "a.example"), True),
        (NAMED, "TLS", "192.0.2.1", ("x.example",), False),  # its address proves nothing beside a certificate of another
        (NAMED, "TLS", "192.0.2.1", (), False),
        (NAMED, "TCP", "192.0.2.1", (), True),
        (NAMED, "UDP", "192.0.2.1", (), False),  # whoever can write a datagram's source would be the carrier
        (BY_ADDRESS, "TLS", "192.0.2.1", (), True),
        (BY_ADDRESS, "UDP", "192.0.2.1", (), False),
        (PLAIN, "UDP", "192.0.2.1", (), True),
        (PLAIN, "UDP", "192.0.2.2", (), False),
    ],
)
def test_trunk_route_is_told_by_certificate_or_address(
    route: TrunkRoute, transport: str, host: str, names: tuple[str, ...], *, matches: bool
) -> None:
    assert route.matches(Flow(transport, 0, host, 5061, 1, names)) is matches


@pytest.mark.parametrize(
    ("hop", "index"),
    [
        (Hop("UDP", "192.0.2.9"), 0),
        (Hop("UDP", "2001:db8::9"), 1),
        (Hop("UDP", "a.example"), 0),
        (Hop("UDP", "192.0.2.9", 0, 2), 2),
        (Hop("TCP", "192.0.2.9"), None),
        (Hop("TCP", "2001:db8::9"), 3),
    ],
)
def test_listener_for_a_hop_is_its_own_or_the_first_of_its_kind(hop: Hop, index: int | None) -> None:
    kinds = (("UDP", 4), ("UDP", 6), ("UDP", 4), ("TCP", 6))
    listeners = tuple(Listener(n, transport, b"x", frozenset(), version) for n, (transport, version) in enumerate(kinds))
    found = Settings("n", "r", frozenset(), listeners, ()).listener_for(hop)
    assert (found.index if found is not None else None) == index
