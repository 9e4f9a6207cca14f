"""Which trunk route a message came by: its address, or what its certificate proved (RFC 5922 §7.3)."""

from __future__ import annotations

import ipaddress

import pytest

from sipproxy.engine.settings import TrunkRoute
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
