"""PBXs with a fixed address: the bindings that the configuration makes for them, and whether they are there.

Pure. They never register, so that nothing else would tell: each is asked by OPTIONS, as trunk routes are (health.py). Calls to
one that is down fail at once, or go to the account's other contacts. A PBX that never answered an OPTIONS, and was not seen to
fail a call, may only be deaf to them: it is called all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.engine.forward import hop_of
from sipproxy.engine.health import Health, HealthState
from sipproxy.engine.location import STATIC
from sipproxy.engine.structs import Binding
from sipproxy.sip.flow import Flow
from sipproxy.sip.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sipproxy.engine.state import Desk
    from sipproxy.sip.flow import Hop

__all__ = ["Statics"]

FOR_EVER_MS = 1 << 53  # no binding of today's configuration expires by itself


class PbxHealth(Health):
    """What is known of one PBX."""

    def __init__(self, desk: Desk, name: str, hop: Hop) -> None:
        super().__init__(desk, "pbx", name, hop, desk.settings.static_ping_s)
        self.failed_calls = False  # since it was last heard of

    @property
    def is_dead(self) -> bool:
        """Whether calls need not try it."""
        deaf = self.ping_ms is None and not self.failed_calls and self.failure != "transport"
        return self.state is HealthState.DOWN and not deaf


class Statics:
    """All of a node. They are no business of the store's: each node has its own."""

    def __init__(self, desk: Desk) -> None:
        self._by_flow: dict[tuple[str, Flow], PbxHealth] = {}
        self._by_name: dict[str, PbxHealth] = {}
        settings = desk.settings
        for user, contact in settings.static:
            uri = parse_uri(contact)
            hop = hop_of(uri)
            listener = settings.listener_for(hop)
            if listener is None:
                desk.note("error", "static_binding_unreachable", account=user, contact=contact.decode("latin-1"))
                continue
            flow = Flow(hop.transport, listener.index, hop.host, hop.port or 5060)
            stored = contact if uri.user is not None else contact + b";bnc"
            text = stored.decode("latin-1")
            desk.location.put(user, Binding(STATIC + text, text, flow, (), "", 0, FOR_EVER_MS, node=settings.node))
            name = f"{user} {contact.decode('latin-1')}"
            self._by_flow[user, flow] = self._by_name[name] = PbxHealth(desk, name, hop._replace(port=flow.port))

    def __iter__(self) -> Iterator[PbxHealth]:
        return iter(self._by_name.values())

    def of(self, user: str, to: Flow | Hop) -> PbxHealth | None:
        """The PBX of the account that this flow leads to; None for what is none of these."""
        return self._by_flow.get((user, to)) if isinstance(to, Flow) and self._by_flow else None

    def is_dead(self, user: str, binding: Binding) -> bool:
        """Whether calls need not try the binding."""
        found = self.of(user, binding.flow)
        return found is not None and found.is_dead

    def heard(self, user: str, to: Flow | Hop, status: int) -> None:
        """A call to the account was answered there."""
        found = self.of(user, to)
        if found is not None:
            found.failed_calls = found.failed_calls and status == 503
            found.heard(status)

    def failed(self, user: str, to: Flow | Hop, why: str) -> None:
        """A call to the account had no answer there (`timeout`), or could not be sent (`transport`)."""
        found = self.of(user, to)
        if found is not None and found.is_asked:
            found.failed_calls = True
            found.failed(why)
