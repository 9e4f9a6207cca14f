"""Requests that are too long for a datagram (RFC 3261 §18.1.1), and which neighbours take them over TCP.

Pure. Above the limit a request that would leave over UDP leaves over TCP, with the Via of our TCP listener. Where nobody
listens on TCP it goes over UDP after all, as §18.1.1 asks for, in the same transaction with the same branch; and so does what
follows, for ten minutes: many carriers and nearly all routers take SIP over UDP alone.

Whoever calls for help does not wait to find out: what is urgent leaves over TCP only where TCP was answered lately, else over
UDP at once. A customer's router is tried over TCP only where it says that it is reached at the address that it sends from:
behind a NAT nobody listens.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.sip.build import Editor, Sent, whole
from sipproxy.sip.flow import Flow, Hop

if TYPE_CHECKING:
    from sipproxy.engine.settings import Listener
    from sipproxy.engine.state import Desk
    from sipproxy.sip.message import Request

__all__ = ["CONNECT_S", "LongRequests"]

CONNECT_S = 0.5  # that a connection may take to open until the request goes over UDP; a choice: some ten round trips
REMEMBER_S = 600.0  # that it is known who takes TCP and who does not
MAX_PLACES = 10_000  # places that something is known of

Address = tuple[str, int]


class _Known(NamedTuple):
    takes_tcp: bool
    until: float  # monotonic seconds


class LongRequests:
    """See the module. Knows a place by host and port; a name by the name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._known: OrderedDict[Address, _Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def choose(self, sent: Request | Sent, target: Flow | Hop, *, urgent: bool) -> tuple[Request, Hop] | None:
        """The request as it leaves over TCP, and where to; None when it leaves as it is."""
        desk = self._desk
        limit = desk.settings.udp_bytes
        if target.transport != "UDP" or not limit or len(sent.raw) <= limit or sent.method == b"CANCEL":
            return None
        request = whole(sent)
        listener = self._listener(target)
        if listener is None:
            desk.count("long_requests", "no_listener")
            return None
        if isinstance(target, Flow) and not _is_reached_at(request, target):
            desk.count("long_requests", "behind_nat")
            return None
        known = self._known.get((target.host, target.port))
        if known is not None and known.until <= desk.now.mono:
            known = None
        if known is None and urgent:
            # DEVIATION: RFC 3261 §18.1.1, a long emergency call is not sent over TCP where that may not be taken: to find
            # out could cost the caller half a second, or the call.
            desk.count("long_requests", "urgent")
            return None
        if known is not None and not known.takes_tcp:
            desk.count("long_requests", "refused_before")
            return None
        desk.count("long_requests", "tcp")
        branch = request.via.branch or b""
        editor = Editor(request)
        # RFC 3261 §18.1.1: "the value in the top Via MUST be changed".
        editor.replace_first(b"Via", b"SIP/2.0/TCP %s;branch=%s" % (listener.sent_by, branch))
        if not request.has(b"content-length"):
            editor.append(b"Content-Length", b"%d" % len(request.body))  # §18.3
        longer = editor.to_request(max_headers=desk.settings.max_headers + 17)
        name = target.domain if isinstance(target, Hop) else ""
        return longer, Hop("TCP", target.host, target.port, listener.index, name)

    def learnt(self, target: Flow | Hop, *, takes_tcp: bool) -> None:
        """A request to this place was answered over TCP, or could not be sent there."""
        desk, key = self._desk, (target.host, target.port)
        if not takes_tcp:
            desk.count("long_requests", "fell_back")
        self._known.pop(key, None)
        self._known[key] = _Known(takes_tcp, desk.now.mono + REMEMBER_S)
        if len(self._known) > MAX_PLACES:
            self._known.popitem(last=False)
            desk.count("places_forgotten", "full")

    def _listener(self, target: Flow | Hop) -> Listener | None:
        """Our TCP listener beside the UDP one that it would leave by: that of the same address, else of its version."""
        settings = self._desk.settings
        own = settings.listeners[target.listener] if isinstance(target, Flow) else settings.listener_for(target)
        if own is None:
            return None
        found = [one for one in settings.listeners if one.transport == "TCP" and one.version == own.version]
        return next((one for one in found if _host(one) == _host(own)), found[0] if found else None)


def _host(listener: Listener) -> bytes:
    return listener.sent_by.rpartition(b":")[0]


def _is_reached_at(request: Request, flow: Flow) -> bool:
    """Whether a customer's contact, which is the Request-URI, names where he sends from, and does not ask for UDP."""
    uri = request.parsed_uri
    named = uri.is_sip and (uri.host_text, uri.port or 5060) == (flow.host, flow.port)
    return named and (uri.param(b"transport") or b"").lower() != b"udp"
