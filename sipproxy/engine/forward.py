"""Forwarding of requests and responses (RFC 3261 §16.6, §16.7): what a proxy changes, and nothing else.

Pure. Deciding whether and where to is done elsewhere.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sipproxy.engine.reduced import KEPT_OF_REQUESTS
from sipproxy.sip.build import Sent
from sipproxy.sip.digest import credentials_of
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import Flow, Hop, version_of
from sipproxy.sip.lines import value_of
from sipproxy.sip.memo import Remembered
from sipproxy.sip.uri import Uri, parse_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from sipproxy.engine.settings import Listener, Settings
    from sipproxy.engine.state import Desk
    from sipproxy.sip.build import Editor
    from sipproxy.sip.headers import NameAddr
    from sipproxy.sip.message import Request, Response
    from sipproxy.sip.shape import Shape

__all__ = [
    "CALL_PARAM",
    "EDGE_PARAM",
    "TRUSTED_ONLY",
    "Target",
    "forward_request",
    "hop_of",
    "hop_uri",
    "is_ours",
    "listener_of",
    "loop_mark_of",
    "loosen",
    "next_hop",
    "own_routes",
    "strip_trust",
    "via_of",
    "write_loose",
]

CALL_PARAM = b"c"  # in our Record-Route URI: the token of our call
EDGE_PARAM = b"e"  # in the URI of a node with a customer's flow: its token
BRANCH = b"z9hG4bK"  # RFC 3261 §8.1.1.7
LOOP_MARK = b".l"  # in a branch of ours: what follows tells where the request was going
KNOWN = 1024  # rows of header names, and next hops, of which is kept what follows from them
MAX_FORWARDS = 70  # RFC 3261 §16.6 step 3
MAX_HOST = 255  # bytes of a host that a request is sent to: no name is longer (RFC 1035 §2.3.4)

TRUSTED_ONLY = (
    b"p-asserted-identity",
    b"p-preferred-identity",
    b"remote-party-id",
    b"diversion",
    b"cc-diversion",  # as older gateways write it
    b"history-info",
    b"geolocation",
    b"geolocation-routing",
    b"geolocation-error",
    b"identity",  # RFC 8224: a signature, by somebody who may sign
    b"identity-info",
    b"attestation-info",  # 3GPP TS 24.229 §7.2: what such a signature would be made of
    b"origination-id",
    b"additional-identity",
    b"cellular-network-info",
    b"relayed-charge",
    b"service-interact-info",
    b"p-access-network-info",
    b"p-asserted-service",
    b"p-preferred-service",
    b"p-associated-uri",
    b"p-called-party-id",
    b"p-charge-info",
    b"p-charging-function-addresses",
    b"p-charging-vector",
    b"p-early-media",
    b"p-private-network-indication",
    b"p-profile-key",
    b"p-served-user",
    b"p-user-database",
    b"p-visited-network-id",
)  # RFC 3325 §9.1, RFC 7315 §5 and their kin: from a customer these are claims, not facts
TRUSTED_BEGINNINGS = (b"p-charg", b"p-dcs-")  # every charging header there will be, and those of RFC 5503

_TRUSTED_ONLY = frozenset(TRUSTED_ONLY)


@dataclass(slots=True)
class Target:
    """One member of a target set: the Request-URI to send, where to, and what it is. Not to be changed: see `replace`."""

    uri: bytes
    to: Flow | Hop
    kind: Literal["trunk", "psap", "binding", "forward"]
    name: str = ""  # trunk route's name, PSAP route's URI, account user; of a forwarding the account that forwards
    route: bytes = b""  # Route value of the node with the flow, where that is another one
    path: bytes = b""  # Route values of the proxies between us and the device (RFC 3327)
    others: tuple[Target, ...] = ()  # the same device by its further flows, tried in turn (RFC 5626 §5.3)

    @property
    def is_customer(self) -> bool:
        return self.kind == "binding"


def is_ours(uri: Uri, settings: Settings) -> bool:
    return uri.is_sip and settings.is_ours(uri.host_text, uri.port)


def own_routes(desk: Desk, request: Request, call: str) -> int:
    """How many Record-Route values of a request as we sent it are this call's, the topmost; a part has more of ours."""
    count, mark = 0, desk.call_mark(call, request.call_id)
    for route in request.record_routes:
        if not is_ours(route.uri, desk.settings) or route.uri.param(CALL_PARAM) != mark:
            break
        count += 1
    return count


def hop_of(uri: Uri) -> Hop:
    """The next hop that a SIP URI names (RFC 3263 §4 without look-ups)."""
    return _hops[uri.raw]


def _hop(raw: bytes) -> Hop:
    uri = parse_uri(raw)
    named, host, port = uri.param(b"transport"), uri.host_text, uri.port or 0
    transport = (named or b"udp").decode("ascii", "replace").upper() if uri.scheme != b"sips" else "TLS"
    is_open = named is None and not port and not version_of(host)  # RFC 3263 §4.1
    return Hop(transport, host, port, -1, "", is_open)


_hops = Remembered(_hop)


def listener_of(settings: Settings, to: Flow | Hop) -> Listener | None:
    """The listener whose address stands in the Via of what goes to `to`."""
    if isinstance(to, Flow):
        return settings.listeners[to.listener]
    return settings.listener_for(to)


def record_route_uri(listener: Listener, mark: bytes) -> bytes:
    """A Record-Route value with `mark`, a parameter and its value."""
    transport = b"" if listener.transport == "UDP" else b";transport=" + listener.transport.lower().encode()
    return b"<sip:%s%s;lr;%s>" % (listener.sent_by, transport, mark)


def strip_trust(editor: Editor, message: Request | Response, settings: Settings) -> None:
    """Take from a customer's message what only a trusted peer may say, the carrier's own headers included."""
    claims = _claims if message.shape.is_short else _claims.__wrapped__
    for name in claims(message.shape, settings.carrier_headers):
        editor.remove(name)


@functools.lru_cache(maxsize=KNOWN)  # the messages of one kind of device name the same headers
def _claims(shape: Shape, carriers: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Those of its names that only a trusted peer may send a header of."""
    beginnings = TRUSTED_BEGINNINGS + carriers
    return tuple(name for name in shape.first_line if name in _TRUSTED_ONLY or name.startswith(beginnings))


def consume_credentials(editor: Editor, request: Request, realm: str) -> None:
    """RFC 3261 §22.3: credentials for our realm end here; those for another realm go on."""
    lines = request.lines_of(b"proxy-authorization")
    others = [line for line in lines if _realm(line) != realm]
    if len(others) == len(lines):
        return
    editor.remove(b"proxy-authorization")
    for line in others:
        editor.append(b"Proxy-Authorization", value_of[line])


def _realm(line: bytes) -> str | None:
    try:
        return credentials_of(line).realm
    except ParseError:
        return None


def loosen(request: Request, settings: Settings) -> tuple[list[NameAddr], bytes, bytes]:
    """What strict routing and our own Route values leave of a request (§16.4): the Route values, the Request-URI, and our
    call's token from the Route or Request-URI (b"" for none). `write_loose` makes a copy say so."""
    routes = list(request.routes)
    uri, call = request.uri, b""
    own = request.parsed_uri
    if routes and own.param(CALL_PARAM) is not None and is_ours(own, settings):
        # §16.4: a strict router put our Record-Route URI into the Request-URI and the target at the end of the Route.
        call = own.param(CALL_PARAM) or b""
        uri = routes.pop().uri.raw
    while routes and is_ours(routes[0].uri, settings):
        token = routes[0].uri.param(CALL_PARAM) or b""
        if call and token and token != call:
            break  # another call of ours, of which this one is forwarded: it is the next hop
        call = call or token
        routes.pop(0)
    return routes, uri, call


def write_loose(editor: Editor, request: Request, routes: list[NameAddr], uri: bytes) -> None:
    """Leave these Route values, and this Request-URI, in the copy of a request, as `loosen` has found them."""
    was = request.routes
    gone = len(was) - len(routes)
    if not routes or routes == list(was[gone:]):
        for _ in range(gone):
            editor.pop(b"route")
    else:
        editor.set(b"Route", b", ".join([route.raw for route in routes]))
    if uri != request.uri:
        editor.request_uri(uri)


def forward_request(
    desk: Desk,
    request: Request,
    target: Target | Flow | Hop,
    *,
    editor: Editor,
    mark: bytes = b"",
    received_on: Flow | None = None,
    stateless: bool = False,
    edit: Callable[[Editor], None] | None = None,
) -> tuple[Sent, bytes] | None:
    """Finish the copy of `request` that goes to `target` (§16.6 steps 3 to 8): the request as sent, and its branch.

    `editor` may hold changes already. With `received_on` the request may create a dialog: Record-Route is put in, with `mark`,
    the parameter that says whose it is. None when no listener of ours speaks the target's transport.
    """
    goal = target if isinstance(target, Target) else None
    to = target.to if isinstance(target, Target) else target
    listener = listener_of(desk.settings, to)
    if listener is None:
        return None
    hops = request.max_forwards
    editor.set(b"Max-Forwards", b"%d" % (hops - 1 if hops is not None else MAX_FORWARDS))
    if received_on is not None:
        inner = desk.settings.listeners[received_on.listener]
        editor.push(b"Record-Route", record_route_uri(inner, mark))
        if inner is not listener:
            editor.push(b"Record-Route", record_route_uri(listener, mark))  # RFC 5658: one for each side
    if goal is not None:
        for route in (goal.path, goal.route):
            if route:
                editor.push(b"Route", route)
    if b"proxy-authorization" in request.first_line:
        consume_credentials(editor, request, desk.settings.realm)
    if to.transport != "UDP" and not request.has(b"content-length"):
        editor.append(b"Content-Length", b"%d" % len(request.body))  # §18.3: a stream needs it, a datagram may leave it out
    if edit is not None:
        edit(editor)
    if stateless:
        seed = request.via.branch or request.via.raw, request.call_id, mark
        branch = desk.branch(seed=seed)  # §16.11: the same for a retransmission
    else:
        branch = desk.branch(desk.loop_mark(request, goal.uri) if goal is not None else b"")
    editor.push(b"Via", listener.via + branch)
    kept = editor.kept(KEPT_OF_REQUESTS) if goal is not None else b""  # an INVITE that makes a dialog
    return Sent(request.method, editor.to_bytes(), kept), branch


def loop_mark_of(branch: bytes | None) -> bytes:
    """The part of a branch of ours that loops are known by; b"" when it has none."""
    _, found, mark = (branch or b"").partition(LOOP_MARK)
    return found + mark


def via_of(desk: Desk, to: Flow | Hop, mark: bytes = b"") -> tuple[bytes, bytes] | None:
    """A Via value for a request of our own, and its branch, which ends in `mark`; None when no listener fits."""
    listener = listener_of(desk.settings, to)
    if listener is None:
        return None
    branch = desk.branch(mark)
    return listener.via + branch, branch


def next_hop(settings: Settings, uri: bytes | Uri, known: Flow | Hop) -> Flow | Hop:
    """Where a URI of a party that is no customer leads; `known` when it cannot be read, leads nowhere or leads back to us."""
    try:
        parsed = parse_uri(uri) if isinstance(uri, bytes) else uri
    except ParseError:
        return known
    if not parsed.is_sip or not parsed.host or len(parsed.host) > MAX_HOST or is_ours(parsed, settings):
        return known
    hop = hop_of(parsed)
    if not isinstance(known, Hop) or known.transport != hop.transport or known.listener == hop.listener:
        return hop
    return hop._replace(listener=known.listener)


def strict_next(editor: Editor, routes: list[NameAddr], uri: bytes) -> Uri | None:
    """The next hop's URI (§16.6 steps 6 and 7): the first Route value, else None for "by the Request-URI".

    A next hop that is a strict router gets its own URI as Request-URI and the target at the end of the Route.
    """
    if not routes:
        return None
    first = routes[0].uri
    if first.param(b"lr") is None:
        rest = [route.raw for route in routes[1:]] + [b"<%s>" % uri]
        editor.set(b"Route", b", ".join(rest))
        editor.request_uri(first.raw)
    return first


def uri_at(user: str, to: Hop) -> bytes:
    """A SIP URI for a number at a next hop."""
    return b"sip:%s@%s;user=phone" % (user.encode(), hop_uri(to)[4:])


@functools.lru_cache(maxsize=KNOWN)  # of routes and nodes
def hop_uri(to: Hop) -> bytes:
    """The SIP URI of a next hop itself."""
    host = f"[{to.host}]" if ":" in to.host else to.host
    port = f":{to.port}" if to.port else ""
    transport = "" if to.transport == "UDP" else f";transport={to.transport.lower()}"
    return f"sip:{host}{port}{transport}".encode()


def parse_hop(uri: bytes) -> Hop:
    """The next hop of a SIP URI in our own data. Raises ParseError."""
    parsed = parse_uri(uri)
    if not parsed.is_sip or not parsed.host:
        raise ParseError("a next hop needs a sip URI with a host", section="RFC 3261 §19.1")
    return hop_of(parsed)
