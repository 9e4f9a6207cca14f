"""The kernel's drop list in a network namespace of its own: what is dropped there concerns nobody else."""

from __future__ import annotations

from pathlib import Path

from sipproxy.net.droplist import MAX_JOBS, KernelDrops, table_name
from tests.networks import run_in_own_network


def test_drop_list_in_a_network_of_its_own() -> None:
    run_in_own_network(Path(__file__).with_name("droplist_cases.py"), "nft", "setpriv")


def test_table_names_are_words_of_nft_and_differ_as_nodes_do() -> None:
    names = {table_name(node) for node in ("a-b", "a_b", "a.b", "ab", "A-b")}
    assert len(names) == 5
    assert all(name.replace("_", "").isalnum() and len(name) < 128 for name in names)


def test_entries_that_the_thread_does_not_take_are_bounded_and_counted() -> None:
    drops = KernelDrops("n", [("udp", 5060)], entries=10, on_problem=print)
    for _ in range(MAX_JOBS + 3):
        drops.put("192.0.2.9", 60)
    assert drops.counters["queue_full"] == 3
