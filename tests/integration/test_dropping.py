"""The drop list of a real node, in a network namespace of its own ([kernel] drop)."""

from __future__ import annotations

from pathlib import Path

from tests.networks import run_in_own_network


def test_dropping_in_a_network_of_its_own() -> None:
    run_in_own_network(Path(__file__).with_name("dropping_cases.py"), "nft", "setpriv")
