"""Slots of lines, accounts and trunk routes against a model, over random interleavings of several nodes (design, invariant 2).

What has slots is an owner; `l` is a line and a route too, to see that they are not taken for each other.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_server import PATIENT, Relay, Server, eventually

from sipproxy.engine.actions import Holder, Slot, TakeSlot
from sipproxy.store.connection import Bounds, State, Store
from sipproxy.store.live_slots import slots_of
from sipproxy.store.slots import SlotResult, Slots

LEASE_MS = 60_000
NODES = 3
Owner = tuple[Literal["line", "trunk"], str]
LIMITS: dict[Owner, int] = {("line", "l"): 1, ("line", "m"): 3, ("trunk", "l"): 2}
OWNERS = tuple(LIMITS)
ACCOUNT_LIMITS = {"a0": None, "a1": 1, "a2": 2}

node_numbers = st.integers(0, NODES - 1)
owners = st.sampled_from(OWNERS)
call_names = st.sampled_from([f"c{number}" for number in range(9)])  # the account goes by the call's number
steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), node_numbers, owners, call_names),
        st.tuples(st.just("release"), node_numbers, owners, call_names),
        st.tuples(st.just("refresh"), node_numbers, owners, call_names),
        st.tuples(st.just("lapse"), node_numbers, owners, call_names),
        st.tuples(st.just("rush"), st.integers(1, 12), owners, st.just("")),
        st.tuples(st.sampled_from(["flush", "empty", "copy", "old copy"]), st.just(0), owners, st.just("")),
    ),
    max_size=25,
)


def in_loop(main: Callable[[], Coroutine[object, object, None]]) -> None:
    uvloop.run(main())


async def open_nodes(url: str, number: int) -> tuple[list[Store], list[Slots], list[asyncio.Task[None]]]:
    stores = [Store(url, 60_000, bounds=PATIENT) for _ in range(number)]
    slots = [Slots(store) for store in stores]
    for store in stores:
        assert await store.start()
    return stores, slots, [asyncio.create_task(store.run()) for store in stores]


async def close_nodes(stores: list[Store], tasks: list[asyncio.Task[None]]) -> None:
    for store in stores:
        await store.close()
    await asyncio.gather(*tasks)


def account_of(call: str) -> str:
    return f"a{int(call[1:]) % len(ACCOUNT_LIMITS)}" if call[0] == "c" else "a0"


def slot(owner: Owner, call: str) -> Slot:
    return Slot(*owner, call)


def holder(call: str) -> Holder:
    return Holder(f"n{call}", 1, account_of(call), "outgoing")


def account_limit(owner: Owner, call: str) -> int | None:
    return ACCOUNT_LIMITS[account_of(call)] if owner[0] == "line" else None


def wanted(owner: Owner, call: str, limit: int) -> TakeSlot:
    return TakeSlot(slot(owner, call), holder(call), limit, account_limit(owner, call), 9.0)


async def members(slots: Slots, owner: Owner) -> set[str]:
    """The owner's members; each with the holder that it was taken for."""
    kind, name = owner
    found = await slots_of(slots._store.client, kind, [name])
    assert all(live.holder == holder(live.slot.member) for live in found), found
    return {live.slot.member for live in found}


async def take(slots: Slots, owner: Owner, call: str) -> SlotResult:
    results: list[SlotResult] = []
    slots.take(wanted(owner, call, LIMITS[owner]), LEASE_MS, results.append)
    await eventually(lambda: results)
    return results[0]


async def settled(slots: Slots) -> None:
    await eventually(lambda: slots.owed == 0)


@dataclass
class Model:
    """What each owner must hold; `step` performs one step on the real slots and checks its result."""

    nodes: list[Slots]
    held: dict[Owner, set[str]] = field(default_factory=lambda: {owner: set() for owner in OWNERS})
    rushes: int = 0
    copy: dict[bytes, Any] = field(default_factory=dict)
    copied: dict[Owner, set[str]] = field(default_factory=lambda: {owner: set() for owner in OWNERS})

    async def step(self, kind: str, number: int, line: Owner, call: str) -> None:
        held, limit = self.held[line], LIMITS[line]
        if kind == "take":
            result = await take(self.nodes[number], line, call)
            own_limit = account_limit(line, call)
            of_account = sum(account_of(other) == account_of(call) for other in held)
            allowed = call in held or (len(held) < limit and (own_limit is None or of_account < own_limit))
            of_account += allowed and call not in held
            if allowed:
                held.add(call)
            assert result == SlotResult(allowed, len(held), 0 if own_limit is None else of_account)
        elif kind == "release":
            self.nodes[number].release(slot(line, call))
            await settled(self.nodes[number])
            held.discard(call)
        elif kind == "refresh":
            self.nodes[number].refresh([(slot(line, call), holder(call))], LEASE_MS)
            await settled(self.nodes[number])
            held.add(call)  # re-asserted whether or not it was there, beyond the limit too
        elif kind == "lapse":  # its owner died: the lease ends by itself
            if call in held:
                self.nodes[number].refresh([(slot(line, call), holder(call))], 1)
                await settled(self.nodes[number])
                await asyncio.sleep(0.004)
                held.discard(call)
        elif kind == "rush":  # at the same moment from all nodes
            self.rushes += 1
            rush = [f"r{self.rushes}.{index}" for index in range(number)]
            results = await asyncio.gather(*(take(self.nodes[i % NODES], line, call) for i, call in enumerate(rush)))
            granted = {call for call, result in zip(rush, results, strict=True) if result.taken}
            assert len(granted) == min(len(rush), max(0, limit - len(held)))
            held |= granted
        else:
            await self._trouble(kind, self.nodes[number]._store)

    async def _trouble(self, kind: str, store: Store) -> None:
        if kind == "flush":
            await store.execute("SCRIPT", "FLUSH")
        elif kind == "empty":  # the store forgot; who lives is told to it again by a refresh
            await store.execute("FLUSHALL")
            self.held = {owner: set() for owner in OWNERS}
        elif kind == "copy":
            self.copied = {owner: set(held) for owner, held in self.held.items()}
            names: Any = await store.execute("KEYS", "sp:{*")
            self.copy = {name: await store.execute("DUMP", name) for name in names}
        elif kind == "old copy":  # whatever was released or taken since
            await store.execute("FLUSHALL")
            for name, data in self.copy.items():
                await store.execute("RESTORE", name, 0, data)
            self.held = {owner: set(held) for owner, held in self.copied.items()}

    async def check(self) -> None:
        for owner, held in self.held.items():
            assert await members(self.nodes[0], owner) == held


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(script=steps)
def test_slots_any_interleaving_equals_the_model(server: Server, script: list[tuple[str, int, Owner, str]]) -> None:
    async def main() -> None:
        stores, slots, tasks = await open_nodes(server.url, NODES)
        await stores[0].execute("FLUSHALL")
        model = Model(slots)
        try:
            for step in script:
                await model.step(*step)
                await model.check()
            for owner in OWNERS:  # every call ends: nothing may be left
                for call in sorted(model.held[owner]):
                    slots[0].release(slot(owner, call))
            await settled(slots[0])
            assert await stores[0].execute("KEYS", "sp:{*") == []
        finally:
            await close_nodes(stores, tasks)

    in_loop(main)


class Traffic:
    """Calls come and go on nodes that reach the store through a relay which is cut, held and refused by a dice."""

    def __init__(self, seed: int, server: Server, relay: Relay, nodes: list[Slots]) -> None:
        self.dice = random.Random(seed)
        self.server = server
        self.relay = relay
        self.nodes = nodes
        self.live: set[tuple[int, Owner, str]] = set()
        self.answers: dict[str, int] = {}

    def start_call(self, number: int) -> None:
        node, owner, call = self.dice.randrange(NODES), self.dice.choice(OWNERS), f"c{number}"
        self.answers[call] = 0

        def on_result(result: SlotResult) -> None:
            self.answers[call] += 1
            if result.taken or (result.taken is None and self.dice.random() < 0.5):
                self.live.add((node, owner, call))
            elif result.taken is None:
                self.nodes[node].release(slot(owner, call))  # what a caller owes after None

        self.nodes[node].take(wanted(owner, call, 5), LEASE_MS, on_result)

    def end_calls(self) -> None:
        for ended in sorted(key for key in self.live if self.dice.random() < 0.15):
            self.live.remove(ended)
            self.nodes[ended[0]].release(slot(*ended[1:]))

    def refresh(self, node: int) -> None:
        self.nodes[node].refresh([(slot(*key[1:]), holder(key[2])) for key in sorted(self.live) if key[0] == node], LEASE_MS)

    async def disturb(self) -> None:
        match self.dice.randrange(40):
            case 0:
                self.relay.cut()
            case 1:
                self.relay.hold()
            case 2:
                self.relay.refusing = True
            case 3 | 4 | 5:
                self.mend()
            case 6 | 7 | 8 | 9:
                await asyncio.sleep(self.dice.random() * 0.05)
            case 10:
                self.server.ask("SCRIPT", "FLUSH")
            case 11:
                self.relay.swallowing = True  # what was asked is done, and nobody is told
            case 12:
                self.server.ask("FLUSHALL")
            case _:
                await asyncio.sleep(0)

    def mend(self) -> None:
        self.relay.refusing = self.relay.swallowing = False
        self.relay.let_go()


@pytest.mark.parametrize("seed", range(6))
def test_slots_under_cut_and_delayed_connections_end_as_the_live_calls(server: Server, seed: int) -> None:
    async def main() -> None:
        relay = Relay(server.path)
        await relay.start()
        quick = Bounds(stall_ms=150, connect_ms=100, backoff_first_ms=5, backoff_max_ms=20, probe_ms=50)
        stores, slots, tasks = await open_nodes(relay.url, NODES)
        for store in stores:
            store.deadline_s, store.bounds = 0.03, quick
        traffic = Traffic(seed, server, relay, slots)
        try:
            for number in range(600):
                traffic.start_call(number)
                traffic.end_calls()
                if number % 10 == 0:
                    traffic.refresh(traffic.dice.randrange(NODES))
                await traffic.disturb()
            traffic.mend()
            relay.cut()  # one that lost a reply passes none any more, and with patient bounds nobody would notice
            for store in stores:
                store.bounds = PATIENT
            await eventually(lambda: all(store.state is State.UP for store in stores))
            await eventually(lambda: set(traffic.answers.values()) == {1}, "exactly one answer per call")
            for node in range(NODES):  # what a node does when the store is back
                traffic.refresh(node)
                await settled(slots[node])
            for owner in OWNERS:
                assert await members(slots[0], owner) == {key[2] for key in traffic.live if key[1] == owner}
            assert sum(store.stats.connects for store in stores) > NODES
            assert not any(slot.dropped for slot in slots)
        finally:
            await close_nodes(stores, tasks)
            await relay.stop()

    in_loop(main)
