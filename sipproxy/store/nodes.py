"""The node's sign of life in the store, and the list of nodes that show one (`sp:node:<id>`, design §6).

The beat is a counter that only this node raises. A reply that is not higher than the last one says that the store has
lost what it held: it was flushed, restored from an old copy, or the node was away for longer than its heartbeat lives.
Then `on_forgotten` is called, and whoever holds the truth in memory writes it again (bindings, slots of live calls).

`NodeWatch` reads the others' signs of life. Leaves out: deciding anything from another node's silence.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sipproxy.store import keys
from sipproxy.store.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sipproxy.store.connection import Store

__all__ = ["Heartbeat", "NodeSeen", "NodeWatch", "nodes_seen"]

_OURS = (b"beat", b"at_ms")


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """A node's last heartbeat: UTC ms by the node's clock, and what it told of itself."""

    node: str
    at_ms: int
    beat: int
    fields: dict[str, str]


class Heartbeat:
    """Writes the heartbeat every `interval_s`; `run` belongs to a TaskGroup."""

    def __init__(
        self,
        store: Store,
        node: str,
        *,
        tell: Callable[[], Mapping[str, str | int]],
        on_forgotten: Callable[[], None],
        interval_s: float = 5.0,
    ) -> None:
        """`tell` returns the fields to publish, such as the journal's watermark; it is called at each beat."""
        self._store = store
        self._key = keys.node(node)
        self._tell = tell
        self._on_forgotten = on_forgotten
        self._interval_s = interval_s
        self._beat = 0
        self.forgotten = 0

    async def run(self) -> None:
        while not self._store.closed:
            self.beat()
            await asyncio.sleep(self._interval_s)

    def beat(self) -> None:
        """Write one heartbeat; it lives for three intervals."""
        now_ms = time.time_ns() // 1_000_000
        fields = [part for name, value in self._tell().items() for part in (name, str(value))]
        self._store.submit(("HINCRBY", self._key, b"beat", 1), self._on_beat)
        self._store.submit(("HSET", self._key, b"at_ms", now_ms, *fields))
        self._store.submit(("PEXPIRE", self._key, max(1, int(3000 * self._interval_s))))

    def _on_beat(self, reply: object) -> None:
        if isinstance(reply, StoreError):
            return
        assert isinstance(reply, int)
        forgotten, self._beat = reply <= self._beat, reply
        if forgotten:
            self.forgotten += 1
            self._on_forgotten()


class NodeWatch:
    """Reads every node's heartbeat again and again; `run` belongs to a TaskGroup.

    `nodes` is what was read last, `read_at_ms` when (UTC, 0 for never): while the store is away both stay.
    """

    def __init__(self, store: Store, on_nodes: Callable[[list[NodeSeen]], None], *, interval_s: float = 1.0) -> None:
        self._store, self._on_nodes, self._interval_s = store, on_nodes, interval_s
        self.nodes: list[NodeSeen] = []
        self.read_at_ms = 0

    async def run(self) -> None:
        while not self._store.closed:
            try:
                self.nodes = await nodes_seen(self._store)
            except StoreError:
                pass  # the store's state tells of it
            else:
                self.read_at_ms = time.time_ns() // 1_000_000
                self._on_nodes(self.nodes)
            await asyncio.sleep(self._interval_s)


async def nodes_seen(store: Store) -> list[NodeSeen]:
    """Return the nodes whose heartbeat is alive, by id. Raises StoreError."""
    names: set[bytes] = set()
    cursor: bytes = b"0"
    while True:
        page = await store.execute("SCAN", cursor, "MATCH", keys.NODE_PATTERN, "COUNT", 1000)
        assert isinstance(page, list)
        cursor, found = page
        names.update(found)
        if cursor == b"0":
            break
    ordered = sorted(names)
    seen: list[NodeSeen] = []
    for key, reply in zip(ordered, await store.execute_all([("HGETALL", key) for key in ordered]), strict=True):
        if (one := _seen(key, reply)) is not None:
            seen.append(one)
    return seen


def _seen(key: bytes, reply: object) -> NodeSeen | None:
    """One node's heartbeat; None where its time ran out between the two commands, or somebody else wrote there."""
    if not isinstance(reply, list) or not reply:
        return None
    fields = dict(zip(reply[::2], reply[1::2], strict=True))
    try:
        at_ms, beat = int(fields.get(b"at_ms", 0)), int(fields.get(b"beat", 0))
    except ValueError:
        return None
    told = {keys.decoded(name): keys.decoded(value) for name, value in fields.items() if name not in _OURS}
    return NodeSeen(keys.node_id(key), at_ms, beat, told)
