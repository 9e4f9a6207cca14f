"""Bindings that other nodes wrote, taken into this node's location service (design §6).

Pure. The latest REGISTER wins, wherever it came: a router that registers again at another node has moved there. What a node
holds itself it does not give up for another's word that is older.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from sipproxy.engine.actions import RemoveBinding, SaveBinding
from sipproxy.engine.edge import with_token
from sipproxy.engine.flows import reopened
from sipproxy.engine.location import supersedes
from sipproxy.sip.headers import parse_name_addr
from sipproxy.sip.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sipproxy.engine.state import Desk
    from sipproxy.engine.structs import Binding

__all__ = ["Replicas"]


LACKING_S = 10.0  # two heartbeats, by which a node learns that the store has lost what it wrote


class Replicas:
    """See the module."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._lacking: dict[tuple[str, str], float] = {}  # bindings of others that the store does not have, and since when

    def seen(self, user: str, binding: Binding, *, is_told: bool = False) -> None:
        """A node registered or refreshed this binding: the store says so, or, earlier, a worker of this node itself."""
        desk, location = self._desk, self._desk.location
        if binding.expires_at_ms <= desk.now.utc_ms or (not is_told and location.was_removed(user, binding)):
            return
        if not self._is_usable(binding):
            desk.count("bindings_refused", "unusable")
            return
        held = location.get(user, binding.key)
        if held is not None and (held == binding or not self._gives_way(held, binding, is_told=is_told)):
            return
        for other in location.bindings(user, desk.now.utc_ms) if binding.instance else ():
            if other.key != binding.key and (other.instance, other.reg_id) == (binding.instance, binding.reg_id):
                if not supersedes(binding, other):
                    return
                self._moved(user, other)  # RFC 5626 §6: the same device by another contact
        if not location.put(user, binding):
            desk.count("bindings_refused", "full")

    def _gives_way(self, held: Binding, binding: Binding, *, is_told: bool) -> bool:
        """A node's later word about its own binding counts, whatever its clock says; our own about ours is in memory. What the
        store says of another worker's may be earlier than what that one told."""
        if held.node == binding.node:
            location = self._desk.location
            is_later = is_told or not location.is_near(held) or binding.at_ms >= held.at_ms
            return is_later and not location.is_own(held)
        return supersedes(binding, held)

    def _is_usable(self, binding: Binding) -> bool:
        """Whether calls can be sent by it. What something else wrote into the store, or this node with other listeners, must
        not make the account's calls and registrations fail."""
        flow = binding.flow
        try:
            contact = parse_uri(binding.contact.encode("latin-1"))
            paths = [parse_name_addr(path.encode("latin-1")).uri for path in binding.path]
            ipaddress.ip_address(flow.host)
        except ValueError:  # as ParseError and UnicodeEncodeError are
            return False
        listeners = self._desk.settings.listeners
        fits = 0 <= flow.listener < len(listeners) and listeners[flow.listener].transport == flow.transport
        routable = contact.is_sip and all(path.is_sip and path.host for path in paths)
        return routable and 0 < flow.port < 65_536 and (fits or not self._desk.location.is_own(binding))

    def _moved(self, user: str, old: Binding) -> None:
        location = self._desk.location
        location.remove(user, old.key, is_told=True)
        if location.is_own(old):
            self._desk.out.append(RemoveBinding(user, old.key, self._desk.now.utc_ms))

    def gone(self, user: str, key: str, at_ms: int, *, is_told: bool = False) -> None:
        """A node removed this binding at `at_ms`; one that was registered later stays. `is_told` as in `seen`."""
        location = self._desk.location
        held = location.get(user, key)
        if held is None or held.at_ms > at_ms:
            return
        location.remove(user, key, is_told=is_told)
        if is_told and location.is_own(held):  # it may wait to be written here, behind its removal by the other worker
            self._desk.out.append(RemoveBinding(user, key, held.at_ms))

    def read(self, bindings: Iterable[tuple[str, Binding]], *, own_too: bool) -> None:
        """Some of the bindings that the store has. `own_too` takes this node's own ones as well, of before its restart; later
        its memory is the truth about them."""
        for user, binding in bindings:
            if not self._desk.location.is_own(binding):
                self.seen(user, binding)
            elif own_too:
                self._restored(user, binding)

    def _restored(self, user: str, binding: Binding) -> None:
        """A binding of this node, of before its restart. It is written again where its flow has changed, or its token, because
        the secret is another one by now: nobody could bring a call for it otherwise."""
        desk = self._desk
        if desk.location.get(user, binding.key) is not None:
            return  # registered again since
        if not self._is_usable(binding):
            desk.count("bindings_refused", "unusable")
            return
        flow = binding.flow if binding.flow.transport == "UDP" or binding.path else reopened(binding)
        if flow is None:  # its connection ended with the process
            desk.out.append(RemoveBinding(user, binding.key, binding.at_ms))
            return
        renewed = replace(binding, flow=flow, token="", node=desk.settings.node)
        self.seen(user, renewed)
        if with_token(desk.tokens, user, renewed) != binding:
            desk.out.append(SaveBinding(user, renewed))

    def elsewhere(self) -> list[tuple[str, str]]:
        """Account and key of each binding of other nodes."""
        location = self._desk.location
        return [(user, binding.key) for user, binding in location.items() if not location.is_own(binding)]

    def lacking(self, idents: Iterable[tuple[str, str]]) -> bool:
        """Of other nodes' bindings the store lacks just these. True when some of them may come again.

        They go when the store still lacks them ten seconds later: after a flush their nodes have to write them again first.
        """
        now, location = self._desk.now.mono, self._desk.location
        since = {ident: self._lacking.get(ident, now) for ident in idents}
        self._lacking = {ident: at for ident, at in since.items() if now - at < LACKING_S}
        for user, key in since.keys() - self._lacking.keys():
            held = location.get(user, key)
            if held is not None and not location.is_own(held):
                location.remove(user, key)
        return bool(self._lacking)
