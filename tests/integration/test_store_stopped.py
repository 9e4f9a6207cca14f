"""The store stands still (SIGSTOP) under load: invariant 5 of the design. The long form is `python -m loadtest stall`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loadtest.generate import Load, callers_needed
from loadtest.network import many_lines
from loadtest.outages import stall_store

if TYPE_CHECKING:
    from loadtest.network import Network

LOAD = Load(rate=25, seconds=5, hold_s=0.5)


async def test_store_stopped_under_load_delays_no_emergency_call_and_loses_nothing(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(many_lines(callers_needed(LOAD, 2) + 1))
    routers = [await network.router(user) for user in network.lines]
    report = await stall_store(network, routers, LOAD, after_s=1.0, stop_s=2.5)
    assert report.during >= 40
    assert report.calls.ok, (report.calls.refused, report.calls.failures[:3])
    assert report.emergency_failures == []
    assert len(report.emergency_during_ms) >= 4
    before, during = report.emergency(0.5)
    assert during < before + 100, f"emergency set-up {before:.0f} ms before, {during:.0f} ms during"
    assert report.result.ok, report.result
    assert report.slots_left == 0


async def test_store_stopped_before_a_registration_does_not_delay_it(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(many_lines(1))
    router = await network.router("u000000", register=False)
    network.store.stop()
    try:
        response = await router.register(timeout_s=2)
        assert response.status == 200
        assert not [event for event in network.ledger.events if event.what == "repeats"]
    finally:
        network.store.resume()
    assert await network.bindings("u000000", 1, timeout_s=10) == 1
