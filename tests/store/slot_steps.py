"""What tests of slots do at a store, and the call they do it for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from store_server import BOUND_S, Server, eventually

from sipproxy.engine.actions import Holder, Slot, TakeSlot
from sipproxy.store import keys
from sipproxy.store.live_slots import slots_of

if TYPE_CHECKING:
    from sipproxy.store.slots import SlotResult, Slots

LEASE_MS = 60_000
HOLDER = Holder("n1", 1_790_000_000_000, "alice", "outgoing")
DEADLINE_MS = 100


def slot(line: str, call: str) -> Slot:
    return Slot("line", line, call)


def leases(live: Iterable[tuple[str, str]]) -> list[tuple[Slot, Holder]]:
    return [(slot(line, call), HOLDER) for line, call in live]


def take(
    slots: Slots,
    line: str,
    call: str,
    limit: int,
    lease_ms: int,
    on_result: Callable[[SlotResult], None],
    *,
    wait_s: float = 90.0,
) -> None:
    slots.take(TakeSlot(slot(line, call), HOLDER, limit, None, wait_s), lease_ms, on_result)


def served(server: Server, line: str, call: str, least_s: float = 0.0) -> float:
    """Stand still until the store has executed a take, so long at least; for how long that was, in seconds."""
    begun = time.monotonic()
    time.sleep(least_s)
    while server.ask("ZSCORE", keys.slots(line), call) is None:
        assert time.monotonic() < begun + BOUND_S
        time.sleep(0.001)
    server.ask("PING")  # answered after the take's reply has been written
    return time.monotonic() - begun


async def used(slots: Slots, line: str) -> list[tuple[str, int]]:
    """The line's members, by lease."""
    found = await slots_of(slots._store.client, "line", [line])
    return [(live.slot.member, live.lease_ms) for live in sorted(found, key=lambda live: live.lease_ms)]


async def taken(slots: Slots, line: str, call: str, limit: int, lease_ms: int = LEASE_MS) -> SlotResult:
    results: list[SlotResult] = []
    take(slots, line, call, limit, lease_ms, results.append)
    await eventually(lambda: results)
    return results[0]


async def calls(slots: Slots, line: str) -> set[str]:
    return {call for call, _ in await used(slots, line)}


async def settled(slots: Slots) -> None:
    await eventually(lambda: slots.owed == 0, "all releases and refreshes confirmed")
