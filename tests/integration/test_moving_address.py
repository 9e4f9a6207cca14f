"""Two hosts, a link that loses packets, and an address that goes under live calls: in network namespaces of its own."""

from __future__ import annotations

from pathlib import Path

from tests.networks import run_in_own_network


def test_moving_address_in_networks_of_its_own() -> None:
    run_in_own_network(Path(__file__).with_name("moving_address_cases.py"), "nft")
