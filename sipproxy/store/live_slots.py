"""Who holds which slots now, read from the store, for operators (`store.slots` writes them).

Leaves out: the other party of a call, which only the node that has the call knows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sipproxy.engine.actions import Holder, Slot
from sipproxy.store import keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

__all__ = ["LiveSlot", "owners", "silent_nodes", "slots_of", "write_holder"]

SCAN_COUNT = 1000  # keys that the server looks at for one step
AT_ONCE = 500  # owners read in one round trip


class LiveSlot(NamedTuple):
    """A slot in use. `lease_ms` is for how long it stays so if its node does nothing more."""

    slot: Slot
    holder: Holder
    lease_ms: int


def write_holder(holder: Holder) -> bytes:
    """The holder as the store keeps it: the account comes first, for the script counts by it."""
    return keys.encoded("\n".join((holder.account, holder.node, str(holder.since_ms), holder.direction)))


def _read_holder(data: bytes | None) -> Holder:
    """Inverse of `write_holder`; an empty one for what was written otherwise."""
    parts = keys.decoded(data or b"").split("\n")
    if len(parts) != 4 or not parts[2].isdecimal():
        return Holder("", 0)
    return Holder(parts[1], int(parts[2]), parts[0], parts[3])


async def slots_of(client: Redis, kind: str, names: Sequence[str]) -> list[LiveSlot]:
    """The slots in use of these lines, or trunk routes, by owner, the oldest first. Raises what the client raises."""
    found = []
    for begin in range(0, len(names), AT_ONCE):
        part = names[begin : begin + AT_ONCE]
        pipeline = client.pipeline(transaction=False)
        pipeline.time()
        for name in part:
            pipeline.zrange(keys.slots(name, kind), 0, -1, withscores=True)
            pipeline.hgetall(keys.holders(name, kind))
        (seconds, micros), *replies = await pipeline.execute()
        now_ms = int(seconds) * 1000 + int(micros) // 1000
        for name, members, holders in zip(part, replies[::2], replies[1::2], strict=True):
            live = [
                LiveSlot(Slot(kind, name, keys.decoded(member)), _read_holder(holders.get(member)), int(until) - now_ms)  # type: ignore[arg-type]
                for member, until in members
                if until > now_ms
            ]
            found += sorted(live, key=lambda slot: slot.holder.since_ms)
    return found


async def silent_nodes(client: Redis, slots: Sequence[LiveSlot]) -> set[str]:
    """The nodes that hold some of these slots and show no sign of life. Raises what the client raises."""
    nodes = sorted({slot.holder.node for slot in slots if slot.holder.node})
    pipeline = client.pipeline(transaction=False)
    for node in nodes:
        pipeline.exists(keys.node(node))
    return {node for node, shown in zip(nodes, await pipeline.execute(), strict=True) if not shown}


async def owners(client: Redis, kind: str) -> list[str]:
    """The lines, or trunk routes, that have slots in use, in order. Raises what the client raises."""
    head, tail = b"sp:{%b:" % kind.encode(), b"}:slots"
    found = set()
    async for key in client.scan_iter(match=head + b"*" + tail, count=SCAN_COUNT):
        found.add(keys.decoded(key[len(head) : -len(tail)]))
    return sorted(found)
