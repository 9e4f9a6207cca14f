"""Worlds for the tests on the virtual network: one carrier, two lines, a trunk, a PSAP."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from policy.model import BlockRule, PsapRoute, Snapshot
from tests.sim.agent import Agent
from tests.sim.world import World, account, line, snapshot, trunk

TRUNK_A = ("198.51.100.1", 5060)
TRUNK_B = ("198.51.100.2", 5060)
PSAP = ("198.51.100.112", 5060)


@dataclass
class Town:
    """`alice` and `andrea` share line L1 (2 channels); `bob` is on L2 (3 channels)."""

    world: World
    alice: Agent
    andrea: Agent
    bob: Agent
    trunk: Agent
    trunk_b: Agent
    psap: Agent

    def register_all(self) -> None:
        for agent in (self.alice, self.andrea, self.bob):
            agent.register()
        self.world.run(2.0)
        assert [a.registered for a in (self.alice, self.andrea, self.bob)] == [200, 200, 200]

    def second_device(self, user: str = "bob") -> Agent:
        """One more device of the account, registered."""
        second = Agent(self.world, ("203.0.113.4", 5060), user)
        second.register()
        self.world.run(2.0)
        return second

    def change(self, table: str, key: str, **fields: object) -> None:
        """A new snapshot, in which the line, account or profile `key` has these fields. `table` is the snapshot's."""
        snapshot = self.world.engine.desk.snapshot
        rows = getattr(snapshot, table)
        changed = replace(snapshot, **{table: {**rows, key: replace(rows[key], **fields)}})
        self.world.perform(self.world.engine.swap_snapshot(changed, self.world.instant))

    def assert_reconciled(self) -> None:
        """Design, invariants 2 and 3: no slot without a live call, one final record for each attempt."""
        world = self.world
        assert world.store.all() == world.live_slots()
        ids = [record.id for record in world.records]
        assert len(ids) == len(set(ids))
        live = {call.id for call in world.engine.calls.by_id.values() if str(call.phase) != "ended"}
        assert {record.id for record in world.admitted} <= set(ids) | live
        assert [record.seq for record in world.records] == list(range(1, len(ids) + 1))


def town_snapshot(*, version: int = 7, **line_fields: object) -> Snapshot:
    return snapshot(
        [
            line("L1", "alice", "andrea", **line_fields),
            line("L2", "bob", profile="velbert", location="velbert", area_code="02051"),
        ],
        [
            account("alice", "L1", "+4960323001"),
            account("andrea", "L1", "+4960323002"),
            account("bob", "L2", "+4920514001"),
        ],
        psap=[
            PsapRoute("friedberg", "112", 1, f"sip:112@{PSAP[0]}:{PSAP[1]}"),
            PsapRoute("friedberg", "110", 1, f"sip:110@{PSAP[0]}:{PSAP[1]}"),
        ],
        blocks=[BlockRule("B1", "+4923125", "test")],
        version=version,
    )


def make_town(*, seed: int = 1, line_fields: dict[str, object] | None = None, **options: object) -> Town:
    world = World(
        town_snapshot(**(line_fields or {})),
        seed=seed,
        trunks=(trunk("carrier-a", TRUNK_A), trunk("carrier-b", TRUNK_B, 1)),
        **options,  # type: ignore[arg-type]
    )
    return Town(
        world,
        Agent(world, ("203.0.113.1", 5060), "alice"),
        Agent(world, ("203.0.113.2", 5062), "andrea"),
        Agent(world, ("203.0.113.3", 5060), "bob"),
        Agent(world, TRUNK_A, host="198.51.100.1"),
        Agent(world, TRUNK_B, host="198.51.100.2"),
        Agent(world, PSAP),
    )


@pytest.fixture
def town() -> Town:
    return make_town()
