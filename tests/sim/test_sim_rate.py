"""The guard against automatic dialling, on the virtual network: refused and counted, never for emergency."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType

from tests.sim.conftest import make_town, town_snapshot


def guarded(calls: int = 3, window_s: int = 30) -> dict[str, object]:
    profiles = {
        name: dataclasses.replace(profile, setup_calls=calls, setup_window_s=window_s)
        for name, profile in town_snapshot().profiles.items()
    }
    return {"profiles": MappingProxyType(profiles)}


def test_rate_line_that_dials_by_machine_is_refused_and_counted_but_reaches_help() -> None:
    town = make_town()
    town.register_all()
    world = town.world
    world.engine.swap_snapshot(dataclasses.replace(town_snapshot(), **guarded()), world.instant)
    for agent in (town.trunk, town.trunk_b):
        agent.behave = lambda call, agent=agent: agent.reject(call, 486)
    calls = []
    for number in range(6):
        calls.append(town.alice.call(b"sip:03099999%d@sip.test" % number))
        world.run(1.0)
    assert [call.status for call in calls] == [486, 486, 486, 403, 403, 403]
    refused = [record for record in world.records if record.rule == "line.rate"]
    assert [(record.verdict, record.status, record.cause) for record in refused] == [("deny", 403, 42)] * 3
    assert world.engine.desk.counters["decisions", "deny", "line.rate"] == 3
    # The other account of the same line is the same line; another line is not.
    other, free = town.andrea.call(b"sip:030999990@sip.test"), town.bob.call(b"sip:030999990@sip.test")
    help_ = town.alice.call(b"sip:112@sip.test")
    world.run(3.0)
    assert (other.status, free.status, help_.status) == (403, 486, 200)
    world.run(30.0)
    again = town.alice.call(b"sip:030999991@sip.test")
    world.run(3.0)
    assert again.status == 486
    town.assert_reconciled()


def test_rate_refused_attempts_and_emergency_calls_are_not_counted() -> None:
    town = make_town()
    town.register_all()
    world = town.world
    world.engine.swap_snapshot(dataclasses.replace(town_snapshot(), **guarded(calls=1)), world.instant)
    for _ in range(4):
        blocked, emergency = town.alice.call(b"sip:09001123456@sip.test"), town.alice.call(b"sip:110@sip.test")
        world.run(2.0)
        assert (blocked.status, emergency.status) == (403, 200)
    assert not any(record.rule == "line.rate" for record in world.records)
    first = town.alice.call(b"sip:03099999@sip.test")
    world.run(2.0)
    second = town.alice.call(b"sip:03099999@sip.test")
    world.run(2.0)
    assert (first.status, second.status) == (200, 403)
