"""Where the messages of a call may come from: requests within its dialogs, CANCEL and ACK, responses (design: invariant 6).

Pure. Call-ID, tags, branch and CSeq stand in messages that others see, so that they alone prove nothing. What counts is the
source:

- a customer: the flow of the dialog, or that of a live binding of his account. Another port of the same address and transport,
  as behind a NAT that bound anew or after a connection broke, together with the token of our Record-Route and a CSeq that
  follows. From any other address he has to prove the account by digest: routers answer 407 within a dialog as they do for
  INVITE (RFC 3261 §22.3);
- a trunk route, a PSAP: the sources that the route allows, and the addresses that its side of the dialog named in Contact and
  Record-Route. Where nothing but a name is known, the token has to do;
- a customer behind another node: that node.

Left out: what a source may ask for; and senders on the path who write the right source address into a datagram, against whom
only TLS helps.
"""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

from sipproxy.engine.dialogs import Side
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import LOOP, Flow, Hop
from sipproxy.sip.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sipproxy.engine.calls import Found
    from sipproxy.engine.settings import TrunkRoute
    from sipproxy.engine.state import Desk
    from sipproxy.engine.transactions import Server
    from sipproxy.sip.message import Message, Request
    from sipproxy.sip.uri import Uri

__all__ = ["Standing", "account_of", "follow", "is_source", "may_answer", "may_reach", "standing"]

# How far the number of a request from a new place may be ahead of what was seen of that side: by requests that were challenged,
# and those that came while the node was away. A choice: an hour of one request in four seconds.
MAX_CSEQ_AHEAD = 1000
_STRENGTH = {"UDP": 0, "TCP": 1, "TLS": 2}


class Standing(Enum):
    """What a source is to a dialog."""

    PARTY = "party"
    UNPROVEN = "unproven"  # a customer who may have another address now, and has to prove it by digest
    STRANGER = "stranger"


def standing(desk: Desk, found: Found, request: Request, flow: Flow, *, marked: bool) -> Standing:
    """What the flow that the request came by is to its dialog. `marked` is whether it bears the token of this call."""
    known = found.call.flow if found.from_caller else found.dialog.to
    if flow == known:
        return Standing.PARTY
    if LOOP in (known.transport, flow.transport):
        return Standing.PARTY if known.transport == flow.transport and known.host == flow.host else Standing.STRANGER
    if not found.from_customer:
        return Standing.PARTY if _is_carriers(desk, found, known, flow, marked=marked) else Standing.STRANGER
    if desk.location.is_at(account_of(found), flow, desk.now.utc_ms):
        return Standing.PARTY
    if isinstance(known, Hop) and _is_nodes(desk, known, flow):
        return Standing.PARTY
    if not marked or not _follows(found, request):
        return Standing.STRANGER
    if isinstance(known, Flow) and (known.transport, known.host) == (flow.transport, flow.host):
        return Standing.PARTY
    return Standing.STRANGER if request.method == b"ACK" else Standing.UNPROVEN  # RFC 3261 §22.1: no challenge to an ACK


def _is_nodes(desk: Desk, known: Hop, flow: Flow) -> bool:
    """Whether the flow is that of a node with a customer's flow: the one that the call went to, or another one."""
    same = _same_host(known.host, flow.host) and desk.settings.may_be(known.host, flow)
    return same or desk.peers.is_node(flow)


def may_reach(desk: Desk, found: Found, to: Flow | Hop) -> bool:
    """Whether a request within the dialog may go there: to its other party, not to whom the sender wrote into Route or
    Request-URI."""
    known = found.dialog.to if found.from_caller else found.call.flow
    if to == known or isinstance(to, Flow) or _same_host(to.host, known.host) or to.host == _name_of(known):
        return True
    side = Side.CALLEE if found.from_caller else Side.CALLER
    if any(_same_host(host, to.host) and port == to.port for host, port in _named(found, side)):
        return True
    name = found.dialog.target.name if found.from_caller else found.call.record.trunk
    route = desk.trunks.route(name)
    return route is not None and bool(to.version) and route.matches(Flow(to.transport, 0, to.host, to.port, 0, route.names))


def account_of(found: Found) -> str:
    """The account whose side of the dialog the request claims to be."""
    return found.call.record.account if found.from_caller else found.dialog.target.name


def follow(found: Found, flow: Flow) -> None:
    """A customer was heard by this flow: requests within the dialog reach him there from now on."""
    if not found.from_customer or flow.transport == LOOP:
        return
    if found.from_caller:
        found.call.flow = flow
    elif isinstance(found.dialog.to, Flow):
        found.dialog.to = flow


def is_source(desk: Desk, server: Server, request: Request, flow: Flow, *, account: str = "") -> bool:
    """Whether a CANCEL, or the ACK of a non-2xx, comes from where its INVITE came (RFC 3261 §9.1, §17.1.1.3).

    `account` is whose INVITE it was, where it was a customer's.
    """
    invite, known = server.request, server.target
    if (request.call_id, request.from_.tag, request.cseq.number) != (invite.call_id, invite.from_.tag, invite.cseq.number):
        return False
    if desk.reply_target(request, flow) == known or (flow.transport, flow.host) == (known.transport, known.host):
        return True
    if account and desk.location.is_at(account, flow, desk.now.utc_ms):
        return True
    if any(route.matches(flow) and route.matches(known) for route in desk.settings.trunks if known.transport != LOOP):
        return True  # another address of the same carrier
    return desk.peers.is_node(flow) and desk.peers.has_host(known.host)


def may_answer(desk: Desk, target: Flow | Hop, flow: Flow) -> bool:
    """Whether a response to what was sent to `target` may come by this flow.

    A carrier may answer from another address of the very route that was tried, or of one that shares its addresses; a name from
    where it leads. For a name that was not looked up since the start the branch, which nobody but who got the request knows,
    has to do.
    """
    sent, came = target.transport, flow.transport
    if sent != came and (LOOP in (sent, came) or _STRENGTH.get(came, 0) < _STRENGTH.get(sent, 0)):
        return False  # RFC 3261 §18.2.2: by the connection, or a new one of the same kind
    if came == LOOP:
        return True
    if isinstance(target, Flow):
        return _same_host(target.host, flow.host)
    if desk.peers.has_host(target.host):
        return desk.peers.is_node(flow)
    if target.host == flow.host:
        return True
    name = _name_of(target)
    places = (target.host,) if not name else (*desk.addresses.hosts_of(name), *((target.host,) if target.version else ()))
    if not places or any(_same_host(host, flow.host) for host in places):
        return True
    asked = [Flow(target.transport, 0, host, target.port, 0, flow.names) for host in places]
    routes = [route for route in desk.settings.trunks if route.matches(flow)]
    return any(route.hop.host in (target.host, name) or any(map(route.matches, asked)) for route in routes)


def _name_of(known: Flow | Hop) -> str:
    """The DNS name that a next hop was known by; "" for an address alone."""
    return "" if isinstance(known, Flow) else known.domain or ("" if known.version else known.host)


def _is_carriers(desk: Desk, found: Found, known: Flow | Hop, flow: Flow, *, marked: bool) -> bool:
    name = found.call.record.trunk if found.from_caller else found.dialog.target.name
    route = desk.trunks.route(name) if found.from_caller or found.dialog.target.kind == "trunk" else None
    if route is not None and route.matches(flow):
        return True
    if not _may_speak(route, known, flow):
        return False
    named = [(known.host, known.port), *_named(found, Side.CALLER if found.from_caller else Side.CALLEE)]
    # A datagram comes from the port that the party named; a connection, and whoever helps in an emergency, from any.
    exact = flow.transport == "UDP" and not found.call.is_emergency
    if any(_same_host(host, flow.host) and (not exact or (port or 5060) == flow.port) for host, port in named):
        return True
    return marked and bool(_name_of(known)) and (route is None or not route.networks)


def _may_speak(route: TrunkRoute | None, known: Flow | Hop, flow: Flow) -> bool:
    """Whether addresses say anything about this flow: not over datagrams for who uses connections, nor where names count."""
    if route is not None and route.names:
        return False
    return _STRENGTH.get(flow.transport, 0) >= _STRENGTH.get(known.transport, 0)


def _named_by(message: Message) -> frozenset[tuple[str, int]]:
    """Host and port of each place that a message names for what follows in its dialog: Contact and Record-Route."""
    return _places(value.uri for value in (*message.contacts, *message.record_routes) if not value.is_star)


def _named(found: Found, side: Side) -> frozenset[tuple[str, int]]:
    """What a side of the dialog named: the remote target and the route set, of an early dialog what its first message held."""
    if found.dialog.sides is None:
        message = found.call.request if side is Side.CALLER else found.dialog.first
        with suppress(ParseError):  # what cannot be read names nothing
            return _named_by(message) if message is not None else frozenset()
        return frozenset()
    known = found.dialog.sides[side]
    uris = [route.uri for route in known.route_set]
    with suppress(ParseError):
        uris.append(parse_uri(known.remote_target))
    return _places(uris)


def _places(uris: Iterable[Uri]) -> frozenset[tuple[str, int]]:
    return frozenset((uri.host_text, uri.port or 0) for uri in uris if uri.is_sip and uri.host)


def _follows(found: Found, request: Request) -> bool:
    """Whether the request's number comes after what its sender's side was seen to send (RFC 3261 §12.2.1.1)."""
    sides, number = found.dialog.sides, request.cseq.number
    if sides is None:
        last = found.call.request.cseq.number if found.from_caller else 0
    else:
        last = sides[Side.CALLEE if found.from_caller else Side.CALLER].cseq  # whom it writes to has its number
        number = found.dialog.shift.of(number) if found.from_customer else number
    return last - (request.method == b"ACK") < number <= last + MAX_CSEQ_AHEAD


def _same_host(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return ipaddress.ip_address(one) == ipaddress.ip_address(other)
    except ValueError:
        return False
