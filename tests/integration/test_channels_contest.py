"""Channels over two real nodes and calls whose parties vanish, in their short forms: invariants 2 and 4 of the design.

The long forms are `python -m loadtest channels` and `vanish`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.channels import LIMITS, PATIENT_MS, Limit, contend, settings
from loadtest.network import many_lines
from loadtest.vanish import vanish, way_of

if TYPE_CHECKING:
    from loadtest.network import Network


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
async def test_set_ups_at_two_nodes_at_once_fill_what_has_few_channels_exactly(
    start_network: Callable[..., Any], limit: Limit
) -> None:
    lines = limit.lines(3, channels=2, calls=40)
    network: Network = await start_network(lines, settings=settings(PATIENT_MS), route=limit.route(2))
    async with network.another_node() as other:
        report = await contend(network, other, rounds=3, calls=40, channels=2, kind=limit.kind)
        assert await other.stop() == 0
    assert report.admitted == {2: 3}, report
    assert report.refused == {38: 3}
    assert report.wrong_statuses == {}
    assert set(report.rules) == {limit.rule}
    assert len(report.freed_ms) == 3
    assert report.beyond == 0
    assert report.slots_wrong == []
    assert report.result.ok, report.result


async def test_set_ups_of_a_line_at_two_workers_at_once_fill_its_channels_exactly(start_network: Callable[..., Any]) -> None:
    lines = LIMITS["line"].lines(1, channels=2, calls=200)
    network: Network = await start_network(lines, settings=settings(PATIENT_MS), workers=2)
    report = await contend(network, None, rounds=1, calls=200, channels=2)
    assert (report.admitted, report.refused) == ({2: 1}, {198: 1}), report
    assert (report.wrong_statuses, set(report.rules)) == ({}, {LIMITS["line"].rule})
    assert (len(report.freed_ms), report.beyond, report.slots_wrong) == (1, 0, [])
    assert report.result.ok, report.result
    records, _ = await network.reconciled()
    assert {record.node for record in records} == {"node1", "node1-2"}


async def test_calls_whose_parties_vanish_are_ended_on_both_sides(start_network: Callable[..., Any]) -> None:
    way = way_of("silence", reap_s=2, probe_s=0)
    network: Network = await start_network(many_lines(6), settings={"calls": way.calls})
    routers = [await network.router(user, tcp=number % 2 == 0) for number, user in enumerate(network.lines)]
    report = await vanish(network, routers, 12, way)
    assert report.transports == {"TCP": 6, "UDP": 6}
    assert report.refreshed == 6
    assert len(report.byes_s) == 12
    assert min(report.byes_s) >= way.bound_s
    assert report.without == {}, "a BYE goes to both sides"
    assert report.strange == []
    assert (report.slots_before, report.slots_left) == (12, 0)
    assert report.wrong == []
    assert report.result.ok, report.result
