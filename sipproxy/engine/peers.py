"""The other nodes on the same store, as their heartbeats told of them: where each is reached, and where it sends from.

Pure. A node that falls silent stays known: its heartbeat may be missing because it has lost the store, and its calls go on all
the same (design: invariant 5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sipproxy.engine.settings import Settings
    from sipproxy.sip.flow import Flow, Hop

__all__ = ["Peer", "Peers"]

MAX_PEERS = 256


class Peer(NamedTuple):
    """`hops` are its listeners, in its order; `hosts` the IP addresses that its messages come from."""

    node: str
    hops: tuple[Hop, ...]
    hosts: frozenset[str]


class Peers:
    """All that were ever heard of, at most 256; the one silent for longest goes first. Our own workers are not among them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[str, Peer] = {}

    def heard(self, peers: Iterable[Peer]) -> None:
        """These nodes show a sign of life."""
        for peer in peers:
            if peer.node == self._settings.node or peer.node in self._settings.siblings:
                continue
            self._known.pop(peer.node, None)
            self._known[peer.node] = peer
            if len(self._known) > MAX_PEERS:
                del self._known[next(iter(self._known))]

    def hop_to(self, node: str) -> Hop | None:
        """The first of the node's listeners that one of ours speaks the transport of; None for a node that is not known."""
        peer = self._known.get(node)
        if peer is None:
            return None
        return next((hop for hop in peer.hops if self._settings.listener_for(hop) is not None), None)

    def hops(self) -> Iterator[Hop]:
        """Where other nodes are reached."""
        for peer in self._known.values():
            yield from peer.hops

    def hosts(self) -> Iterator[str]:
        """The IP addresses that messages of other nodes come from."""
        for peer in self._known.values():
            yield from peer.hosts

    def has_host(self, host: str) -> bool:
        """Whether a message from this IP address can be another node's."""
        return bool(self._known) and any(host in peer.hosts for peer in self._known.values())

    def is_node(self, flow: Flow) -> bool:
        """Whether who sends by this flow is another node: from its address, and where TLS proves who that is, by its name."""
        return any(
            flow.host in peer.hosts and any(self._settings.may_be(hop.host, flow) for hop in peer.hops)
            for peer in self._known.values()
        )
