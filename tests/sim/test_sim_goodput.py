"""How many calls go well when more come than the node can carry, on a virtual clock (docs/design.md, "Under load")."""

from __future__ import annotations

import pytest

from sipproxy.engine.shed import STANDING_S
from tests.sim.busy import CAPACITY, goodput_at

T1 = 0.5  # RFC 3261 §17.1.1.1
SECONDS = 6.0


@pytest.mark.parametrize(
    ("factor", "least", "meanwhile"), [(0.9, 0.89, 0.85), (2.0, 0.95, 0.95), (5.0, 0.95, 0.8), (10.0, 0.9, 0.72)]
)
def test_node_to_which_more_calls_come_than_it_can_carry_carries_nearly_as_many_as_it_can(
    factor: float, least: float, meanwhile: float
) -> None:
    """At ten times the capacity reading what comes, and comes again, takes an eighth of the time, and a tenth refusing some of
    it. `meanwhile` leaves out those who were answered when no more calls began."""
    found = goodput_at(factor, seconds=SECONDS)
    world = found.world
    assert found.per_s >= least * CAPACITY
    assert found.answered_per_s >= meanwhile * CAPACITY
    assert [call.status for call in found.helps] == [200] * len(found.helps), "design: invariant 1"
    assert world.waits.pop(b"help") < T1 / 4
    assert {call.status for call in found.calls} <= {200, 503}, "who is not carried is told so, in the end"
    assert world.waits.pop(b"INVITE", 0.0) < STANDING_S + T1, "also while it is not known yet that the queue stays"
    assert max(world.waits.values()) < T1 / 4, "what belongs to calls is not repeated because it waited"
    refused = sum(call.status == 503 for call in found.calls)
    assert (refused > 0) is (factor > 1)
    assert (world.backlog.counts["unread"] > 0) is (factor > 2), "as long as there is time to refuse them, all are told at once"
    records = [record for record in world.records if record.end_reason != "refused"]
    assert len(records) == len(found.calls) + len(found.helps) - refused, "design: invariant 3"
    assert world.backlog.waiting == 0
    assert world.store.all() == set()
