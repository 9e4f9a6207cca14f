"""SIPVicious against a node with its drop list on, in a network namespace of its own."""

from __future__ import annotations

from pathlib import Path

from tests.networks import run_in_own_network


def test_real_scanners_are_dropped_in_a_network_of_its_own() -> None:
    run_in_own_network(Path(__file__).with_name("scanner_cases.py"), "nft")
