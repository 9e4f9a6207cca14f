"""Flows of customers: what keeps them open, and what becomes of what was reached by one that has ended (RFC 5626 §4.4, §5.3).

Pure. A binding is as alive as its flow. When a connection ends its bindings go, unless the contact itself can be connected to,
and what was sent by it without an answer has failed. A device that comes back by another flow is followed there. UDP says
nothing about its end: there a flow lives as long as its bindings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from sipproxy.engine import ending
from sipproxy.engine.actions import RemoveBinding, SaveBinding, SendTo
from sipproxy.engine.call import Call
from sipproxy.engine.kinds import Kind
from sipproxy.engine.relay import Relay
from sipproxy.engine.sources import account_of
from sipproxy.sip import stun
from sipproxy.sip.errors import ParseError
from sipproxy.sip.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sipproxy.engine.shed import Shedder
    from sipproxy.engine.state import Desk
    from sipproxy.engine.structs import Binding
    from sipproxy.engine.transactions import Server
    from sipproxy.sip.flow import Flow

__all__ = ["Flows", "reopened"]


def reopened(binding: Binding) -> Flow | None:
    """A flow to the contact of a binding whose connection has ended; None when only the device can open one.

    RFC 3261 §18.1.1 has the next request open a connection of its own. That is for a device whose contact is the address that
    it came from: any other is behind a NAT, and one with several flows (RFC 5626) says itself which there are. Nor has a
    customer a certificate to prove himself by over TLS.
    """
    flow = binding.flow
    if flow.transport != "TCP" or binding.reg_id or binding.path:
        return None
    try:
        uri = parse_uri(binding.contact.encode("latin-1"))
    except ParseError:
        return None
    listens = (uri.param(b"transport") or b"").lower() == b"tcp" and uri.scheme == b"sip"
    if not listens or uri.host_text != flow.host:
        return None
    return flow._replace(port=uri.port or 5060, connection=0)


class Flows:
    """See the module."""

    def __init__(self, desk: Desk, shedder: Shedder) -> None:
        self._desk = desk
        self._shedder = shedder
        desk.transactions.ways_back = self._ways_back
        desk.transactions.unheard = self._unheard
        desk.transactions.over = _over

    def ping(self, data: bytes, flow: Flow) -> None:
        """A STUN message: answered within what its source may get, like any request outside a call."""
        desk = self._desk
        if self._shedder.check(data, flow, kind=Kind.OPTIONS) is not None:
            desk.count("stun", "shed")
            return
        response = stun.answer(data, flow.host, flow.port)
        if response is None:
            desk.count("stun", "unanswered")
        elif not self._shedder.may_send(flow, len(response)):
            desk.count("stun", "credit")
        else:
            desk.count("stun", "answered")
            desk.out.append(SendTo(flow, response))

    def _ways_back(self, server: Server) -> Iterator[Flow]:
        """Where the sender of a request is reached whose connection has ended: by the flow that its device has now, else by a
        new connection to the address that it came from, at the port that its Via names (RFC 3261 §18.2.2)."""
        desk, was, user = self._desk, server.target, server.user
        account, known = "", was
        if isinstance(user, Call) and user.from_customer:
            account, known = user.record.account, user.flow
        elif isinstance(user, Relay) and user.found.from_customer:
            account = account_of(user.found)
        now = desk.location.successor(account, known, desk.now.utc_ms)
        if now.transport == was.transport:
            yield now
        if was.transport == "TCP":  # nobody proves himself by a certificate where he is connected to over TLS
            yield was._replace(port=server.request.via.port or 5060, connection=0)

    def _unheard(self, server: Server, way: Flow | None) -> None:
        """A response to an INVITE did not go out; it is tried by this way, None where there is none left."""
        if way is None:
            self._desk.count("responses_lost")
        if isinstance(server.user, Call):
            server.user.unheard()

    def closed(self, flow: Flow) -> None:
        """A connection ended: its bindings are gone, or lead to a new connection, and what had no answer has failed."""
        desk = self._desk
        for user, binding in desk.location.at(flow):
            if binding.path:
                continue  # reached by its proxies, whichever connection they have
            again = reopened(binding)
            desk.location.lose(user, binding)
            if again is None:
                desk.count("flows_lost", flow.transport.lower())
                desk.out.append(RemoveBinding(user, binding.key, binding.at_ms))
            else:
                moved = replace(binding, flow=again)
                desk.location.put(user, moved)
                desk.out.append(SaveBinding(user, moved))
        desk.transactions.flow_closed(flow, desk.now.mono)


def _over(user: object) -> None:
    """The server transaction of this user's INVITE is over."""
    if isinstance(user, Call):
        ending.rest(user)
