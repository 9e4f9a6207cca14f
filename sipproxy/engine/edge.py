"""Calls of one node to customers whose flow is another's (RFC 3261 §16, RFC 5626 §5.3).

Pure. The node that got the call owns it: its slot, its CDR, its policy, its timers. The node with the flow is a hop between
that one and the customer, and no more: it puts itself into the route, with all that it has to know later in a token of its
own making, and keeps nothing but transactions. So its restart does not end a call that passes through it.

Whose word it takes (design: invariant 6): a new INVITE needs the token that this node put into the binding, which only readers
of the store know, and comes from the address of a node that showed a sign of life there; over TLS, where clients are asked for
certificates, with one that names that node. A request within a dialog needs the
token of that dialog's Record-Route, and comes from the customer's flow or from the address of the node that brought the
INVITE; it goes to the other of the two and nowhere else. Anything else is treated as if the token were not there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from msgspec.structs import replace

from sipproxy.engine import timer_c
from sipproxy.engine.forward import EDGE_PARAM, Target, forward_request, hop_uri, is_ours
from sipproxy.engine.structs import Reach, Way
from sipproxy.sip.build import Editor
from sipproxy.sip.flow import Flow, Hop

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.engine.state import Desk
    from sipproxy.engine.structs import Binding
    from sipproxy.engine.tokens import Tokens
    from sipproxy.engine.transactions import Server
    from sipproxy.sip.message import Request, Response
    from sipproxy.sip.timers import Alarm

__all__ = ["ABSENT", "SILENT_S", "Edges", "Passage", "target_at", "with_token"]

# The node with the flow answers 100 at once. Four INVITEs without it, at 0, 0.5, 1.5 and 3.5 s (RFC 3261 §17.1.1.2), tell that
# it is not there.
SILENT_S = 4.0
# What another node says when it cannot reach the customer: his flow is gone (RFC 5626 §5.3.1), it takes no more, or it does not
# know the token, as its secret is another one now.
ABSENT = frozenset([430, 503, 407])


def with_token(tokens: Tokens, user: str, binding: Binding) -> Binding:
    """A binding of this node as others get it: with what they have to present with a call for it. The same binding has the same
    token each time."""
    token = tokens.seal(Reach(user, binding.flow, binding.expires_at_ms // 1000))
    return replace(binding, token=token.decode())


def target_at(desk: Desk, user: str, binding: Binding, uri: bytes) -> Target | None:
    """The target for a binding of another node, with this Request-URI; None, which is counted, when it is out of reach."""
    hop = desk.peers.hop_to(binding.node) if binding.token else None
    if hop is None:
        desk.count("edge_unreachable", "no_token" if not binding.token else "node_unknown")
        return None
    route = b"<%s;lr;%s=%s>" % (hop_uri(hop), EDGE_PARAM, binding.token.encode("ascii", "replace"))
    return Target(uri, hop, "binding", user, route)


@dataclass(eq=False)
class Passage:
    """User of the two transactions that carry one request through this node, unchanged but for the route."""

    desk: Desk
    server: Server
    key: Hashable = None
    provisional: bool = False
    cancelled: bool = False
    done: bool = False
    bound: Alarm | None = None  # Timer C: the call's is its owner's, who may die, and nothing is to stay for ever

    @property
    def _is_invite(self) -> bool:
        return self.server.request.method == b"INVITE"

    def response(self, _key: Hashable, response: Response, /) -> None:
        self.provisional = True
        if response.status >= 200:
            timer_c.finish(self)
        elif self.cancelled:
            self._send_cancel()
        if response.status == 100:
            return
        if not self.done and self._is_invite:
            timer_c.begin(self)  # RFC 3261 §16.7 step 2
        editor = Editor(response)
        editor.pop(b"via")
        if self.server.target.transport != "UDP" and not response.has(b"content-length"):
            editor.append(b"Content-Length", b"%d" % len(response.body))
        desk = self.desk
        desk.transactions.respond(self.server, response.status, editor.to_bytes(), desk.now.mono)

    def failed(self, _key: Hashable, /, *, timed_out: bool) -> None:
        """The customer did not answer, or his flow is gone (430, RFC 5626 §5.3.1)."""
        if not self.done:
            timer_c.finish(self)
            self.desk.answer(self.server, (487 if self.cancelled else 408) if timed_out else 430)

    def cancel(self) -> None:
        """The sender's CANCEL, or Timer C."""
        self.cancelled = True
        if self.provisional:
            self._send_cancel()

    def start(self, key: Hashable) -> None:
        """The request is on its way in this client transaction."""
        self.key = key
        if self._is_invite:
            self.desk.answer(self.server, 100)
            timer_c.begin(self)

    def _send_cancel(self) -> None:
        client = self.desk.transactions.clients.get(self.key)
        if client is not None and not self.done and self._is_invite:
            self.provisional = False  # one CANCEL is enough
            self.desk.transactions.cancel(client, self.desk.now.mono)


class Edges:
    """Takes requests to this node as a hop between another node and a customer."""

    def __init__(self, desk: Desk, methods: frozenset[bytes]) -> None:
        """`methods` are those that a party may send within a dialog."""
        self._desk = desk
        self._methods = methods

    def take(self, request: Request, flow: Flow) -> bool:
        """Forward a request that bears a token of ours and has the right to it; False for any other, which is left alone.

        Raises ParseError.
        """
        desk = self._desk
        if b"route" not in request.first_line:
            return False
        first = request.routes[0].uri
        token = first.param(EDGE_PARAM)
        if token is None or not is_ours(first, desk.settings):
            return False
        if request.to.tag is not None:
            way, up = self._known(request, token, flow)
        else:
            way, up = self._new(request, token, flow), False
        if way is None:
            return False
        if request.max_forwards == 0:
            desk.reply(request, flow, 483)
        elif request.method not in self._methods:
            desk.count("requests_refused", "method")
            desk.reply(request, flow, 405, headers=[(b"Allow", b", ".join(sorted(self._methods)))])
        elif desk.transactions.is_full:
            desk.count("requests_refused", "table_full")
            desk.reply(request, flow, 503)
        else:
            self._forward(request, flow, way, up=up)
        return True

    # Whose word is taken

    def _new(self, request: Request, token: bytes, flow: Flow) -> Way | None:
        """The way of a new call that another node brings."""
        desk = self._desk
        reach = desk.tokens.open(Reach, token)
        if reach is None or request.method != b"INVITE" or not self._is_good(reach):
            desk.count("edge_refused", "token")
            return None
        if not desk.peers.is_node(flow):
            desk.count("edge_refused", "source")
            return None
        via = request.via
        hop = Hop(via.transport, via.host.decode("latin-1").strip("[]"), via.port or 0)
        return Way(reach.user, reach.flow, flow.host, hop)

    def _is_good(self, reach: Reach) -> bool:
        """Whether a token's time is not over, or its binding was renewed since, of which its bearer may not have heard."""
        return reach.until_s * 1000 >= self._desk.now.utc_ms or any(b.flow == reach.flow for b in self._own(reach.user))

    def _known(self, request: Request, token: bytes, flow: Flow) -> tuple[Way | None, bool]:
        """The way of a request within a dialog, and whether it comes from the customer."""
        desk = self._desk
        way = desk.tokens.open(Way, token, request.call_id)
        if way is None:
            desk.count("edge_refused", "token")
        elif flow == way.flow or any(b.flow == flow for b in self._own(way.user)):
            return way, True
        elif flow.host == way.peer and desk.settings.may_be(way.hop.host, flow):
            return way, False
        elif (flow.transport, flow.host) == (way.flow.transport, way.flow.host):
            return way, True  # a NAT that bound anew: the owner of the call looks at the rest
        else:
            desk.count("edge_refused", "source")
        return None, False

    def _own(self, user: str) -> list[Binding]:
        location = self._desk.location
        return [b for b in location.bindings(user, self._desk.now.utc_ms) if location.is_near(b)]

    def _flow(self, way: Way) -> Flow:
        """Where the customer is now: a router that registered again over another flow is followed there."""
        own = self._own(way.user)
        if not own or any(b.flow == way.flow for b in own):
            return way.flow
        same = [b for b in own if (b.flow.transport, b.flow.host) == (way.flow.transport, way.flow.host)]
        return (same or own)[0].flow if len(own) == 1 or same else way.flow

    # Forwarding

    def _forward(self, request: Request, flow: Flow, way: Way, *, up: bool) -> None:
        desk = self._desk
        desk.count("edge_requests", "from_customer" if up else "to_customer")
        editor = Editor(request)
        routes = list(request.routes)
        while routes and is_ours(routes[0].uri, desk.settings):
            routes.pop(0)
            editor.pop(b"route")
        to: Flow | Hop = way.hop if up else self._flow(way)
        if isinstance(to, Flow) and to.listener >= len(desk.settings.listeners):
            desk.reply(request, flow, 430)  # the configuration has changed since
            return
        mark = desk.tokens.seal(way, request.call_id)
        ack = request.method == b"ACK"
        built = forward_request(
            desk,
            request,
            to,
            editor=editor,
            received_on=flow if request.method in (b"INVITE", b"UPDATE") else None,
            stateless=ack,
            mark=EDGE_PARAM + b"=" + mark,
        )
        if built is None:
            desk.reply(request, flow, 430)
            return
        sent, branch = built
        if ack:
            desk.transactions.send_ack(sent, to)
            return
        server = desk.transactions.new_server(request, desk.reply_target(request, flow), desk.now.mono)
        passage = Passage(desk, server)
        server.user = passage
        passage.start((branch, request.method))
        desk.transactions.new_client(sent, branch, to, passage, desk.now.mono)
