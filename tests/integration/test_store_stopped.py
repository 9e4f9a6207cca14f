"""The store in trouble under live calls, in short forms: invariants 2, 3 and 5 of the design. The long form is
`python -m loadtest faults`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.faults import CHANNELS, Timing, run_fault
from loadtest.network import many_lines
from loadtest.store_faults import FAULTS

if TYPE_CHECKING:
    from loadtest.network import Network

SHORT = Timing(before_s=1.0, during_s=2.5, after_s=1.0, rate=6.0, hold_s=0.8)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("stopped", ""),
        ("killed", "away"),
        ("misconf", "misconf"),
        ("lost reply", ""),
    ],
)
async def test_store_in_trouble_refuses_no_emergency_call_and_loses_no_record(name: str, error: str) -> None:
    assert name in FAULTS
    report = await run_fault(name, SHORT)
    assert error in {"", *report.errors}, report.errors
    assert report.failures == []
    assert report.emergency_failures == []
    assert report.phases["during"].emergency_ms
    assert [phase.refused for phase in report.phases.values()] == [{}, {}, {}]
    before = report.phases["before"]
    assert before.over <= (CHANNELS if before.undecided else 0), "one node that is late goes by its own calls alone"
    assert max(phase.over for phase in report.phases.values()) <= CHANNELS, "each of two nodes goes by its own calls"
    assert report.slots_right_s is not None, "slots equal calls again"
    assert report.slots_left == 0
    assert report.result.ok, report.result


async def test_store_stopped_before_a_registration_does_not_delay_it(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(many_lines(1))
    router = await network.router("u000000", register=False)
    network.store.stop()
    try:
        response = await router.register(timeout_s=20)
        assert response.status == 200, "answered while the store stands still"
    finally:
        network.store.resume()
    assert await network.bindings("u000000", 1, timeout_s=10) == 1
