"""This node among the others on the same store: what it tells of itself, and what it learns of them.

Puts together the heartbeat, the other nodes' heartbeats and the log of bindings with the engine. Makes no SIP decision.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import structlog

import sipproxy
from sipproxy.config_file import split_address
from sipproxy.engine.peers import Peer
from sipproxy.shell import instant
from sipproxy.sip.flow import Hop, is_literal
from sipproxy.store.following import Follower
from sipproxy.store.nodes import NodeSeen, NodeWatch

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping, Sequence

    from cdr.journal import Journal
    from sipproxy.engine.settings import Settings
    from sipproxy.engine.structs import Binding
    from sipproxy.shell import Shell
    from sipproxy.store.bindings import Bindings
    from sipproxy.store.connection import Store

__all__ = ["Neighbours"]

MAX_LISTED = 256  # nodes that `sipproxy nodes` remembers after they fell silent
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  compared with, not bound


class Neighbours:
    """See the module. `bound` are the IP addresses that the listeners took."""

    def __init__(self, store: Store, bindings: Bindings, shell: Shell, journal: Journal, bound: Iterable[str]) -> None:
        self._store, self._shell, self._journal = store, shell, journal
        self._settings = shell.engine.desk.settings
        self._about = _about(self._settings, bound)
        self._started_at_ms = time.time_ns() // 1_000_000
        self._first = True
        self._seen: dict[str, NodeSeen] = {}
        self._log = structlog.get_logger("node")
        self.watch = NodeWatch(store, self._on_nodes)
        self.follower = Follower(store, bindings, self._settings.node, self, is_alone=self._is_alone)

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """What has to run for as long as the node does."""
        return [self.watch.run(), self.follower.run()]

    def told(self) -> dict[str, str | int]:
        """The fields of this node's heartbeat."""
        engine, stats = self._shell.engine, self._journal.stats
        location = engine.desk.location
        return {
            **self._about,
            "started_at_ms": self._started_at_ms,
            "calls": engine.calls.live,
            "registrations": location.count - location.elsewhere,
            "closed": ",".join(sorted(engine.desk.closed)),
            "seq": stats.last_seq,
            "confirmed": stats.confirmed_seq,
        }

    # Bindings of the other nodes

    def bindings_read(self, bindings: Sequence[tuple[str, Binding]], /) -> list[tuple[str, str]]:
        """Some bindings that the store has; the first time those of this node, of before its start, among them."""
        self._shell.bindings_read(bindings, own_too=self._first)
        location = self._shell.engine.desk.location
        held = [(user, location.get(user, binding.key)) for user, binding in bindings]
        return [(user, one.key) for user, one in held if one is not None and not location.is_own(one)]

    def all_read(self, count: int, elsewhere: set[tuple[str, str]], /) -> bool:
        """The store has no others. True when it lacks some that are known here."""
        self._log.info("bindings_loaded", count=count, first=self._first)
        self._first = False
        engine = self._shell.engine
        return engine.bindings_lacking([ident for ident in engine.bindings_elsewhere() if ident not in elsewhere], instant())

    def binding_seen(self, user: str, binding: Binding, /) -> None:
        self._shell.binding_seen(user, binding)

    def binding_gone(self, user: str, key: str, at_ms: int, /) -> None:
        self._shell.binding_gone(user, key, at_ms)

    def unheard(self, since_ms: int | None, /) -> None:
        self._shell.engine.desk.location.unheard_ms = since_ms

    # The nodes

    def _is_alone(self) -> bool:
        """Whether no other node shows a sign of life, as far as that was looked for yet."""
        own = self._settings.node
        return bool(self.watch.read_at_ms) and all(seen.node == own for seen in self.watch.nodes)

    def _on_nodes(self, nodes: list[NodeSeen]) -> None:
        for seen in nodes:
            self._seen.pop(seen.node, None)
            self._seen[seen.node] = seen
        while len(self._seen) > MAX_LISTED:
            del self._seen[next(iter(self._seen))]
        self._shell.engine.peers_seen([_peer(seen) for seen in nodes])

    def view(self) -> dict[str, Any]:
        """Every node that was seen since the start, this one included, and the state of the store that tells of them."""
        now_ms = instant().utc_ms
        alive = {seen.node for seen in self.watch.nodes}
        own = self._settings.node
        here = NodeSeen(own, now_ms, 0, {name: str(value) for name, value in self.told().items()})
        rows = [_row(here, now_ms, "here")]
        rows += [_row(seen, now_ms, "up" if name in alive else "silent") for name, seen in self._seen.items() if name != own]
        store = {"state": self._store.state.value, "reason": self._store.reason, "read_at_ms": self.watch.read_at_ms}
        return {"nodes": sorted(rows, key=lambda row: str(row["node"])), "store": store}


def _about(settings: Settings, bound: Iterable[str]) -> dict[str, str | int]:
    """Where this node is reached by the others, and the addresses that its messages come from."""
    shown = [(listener.transport, listener.sent_by.decode("ascii")) for listener in settings.listeners]
    hosts = {host for host in bound if host not in WILDCARDS}
    hosts |= {host for _, sent_by in shown if is_literal(host := split_address(sent_by)[0])}
    return {
        "listen": ",".join(f"{transport.lower()} {address}" for transport, address in shown),
        "from": ",".join(sorted(hosts)),
        "version": sipproxy.__version__,
    }


def _peer(seen: NodeSeen) -> Peer:
    """What the engine needs of a heartbeat; parts that cannot be read are left out."""
    hops = []
    for listener in seen.fields.get("listen", "").split(","):
        transport, _, address = listener.partition(" ")
        try:
            host, port = split_address(address)
        except ValueError:
            continue
        hops.append(Hop(transport.upper(), host, port))
    return Peer(seen.node, tuple(hops), frozenset(filter(None, seen.fields.get("from", "").split(","))))


def _row(seen: NodeSeen, now_ms: int, state: str) -> dict[str, object]:
    fields: Mapping[str, str] = seen.fields
    started = _number(fields.get("started_at_ms"))
    return {
        "node": seen.node,
        "state": state,
        "listen": [part for part in fields.get("listen", "").split(",") if part],
        "version": fields.get("version", ""),
        "started_at_ms": started,
        "uptime_s": max(0, seen.at_ms - started) // 1000 if started is not None else None,
        "calls": _number(fields.get("calls")),
        "registrations": _number(fields.get("registrations")),
        "closed": [reason for reason in fields.get("closed", "").split(",") if reason],
        "heartbeat_age_ms": max(0, now_ms - seen.at_ms),
        "seq": _number(fields.get("seq")),
        "confirmed": _number(fields.get("confirmed")),
    }


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
