"""Towns whose node is killed and started again, and what is asked of them afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.conftest import Town, make_town
from tests.sim.restart import Restarts, forgets_ended_dialogs

if TYPE_CHECKING:
    from tests.sim.agent import Agent, AgentCall

BOOT = "boot-1"
WIRE_MS = 40  # two deliveries


def a_town(**options: object) -> tuple[Town, Restarts]:
    town = make_town(boot=BOOT, **options)
    for agent in agents_of(town):
        forgets_ended_dialogs(agent)
    town.register_all()
    return town, Restarts(town.world)


def agents_of(town: Town) -> tuple[Agent, ...]:
    return (town.alice, town.andrea, town.bob, town.trunk, town.trunk_b, town.psap)


def answered_call(town: Town, target: bytes = b"03023125001") -> AgentCall:
    call = town.alice.call(target)
    town.world.run(5.0)
    assert call.status == 200
    return call


def answered(agent: Agent) -> AgentCall:
    return agent.calls[-1]


def hang_up_all(town: Town) -> None:
    for agent in agents_of(town):
        for call in agent.calls:
            agent.bye(call)


def assert_honest(town: Town) -> None:
    """No record is longer than its call, by more than what the wire and repetitions explain."""
    truths: dict[str, list[AgentCall]] = {}
    for agent in agents_of(town):
        for call in agent.calls:
            truths.setdefault(call.call_id.decode(), []).append(call)
    for record in town.world.records:
        if record.answer_at_ms is None:
            continue
        parties = truths[record.call_id]
        ends = [call.ended_at for call in parties if call.ended == "local"]
        if ends and not record.duration_certain:
            begun = min(call.answered_at for call in parties if call.answered_at)
            assert record.billable_ms <= 1000 * (min(ends) - begun) + WIRE_MS + 200, record
