"""Target sets of a call, and what policy changes in the copies of its INVITE (RFC 3261 §16.5, RFC 3325).

Pure. Header lines that are not named here leave as they came.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from policy.model import Decision, Verdict
from sipproxy.engine.edge import target_at
from sipproxy.engine.forward import Target, parse_hop, strip_trust, uri_at
from sipproxy.engine.location import first_proxy
from sipproxy.engine.paths import called_at
from sipproxy.engine.privacy import set_privacy, strip_for_customer
from sipproxy.sip.errors import ParseError

if TYPE_CHECKING:
    from sipproxy.engine.privacy import Faces, Said
    from sipproxy.engine.settings import TrunkRoute
    from sipproxy.engine.state import Desk
    from sipproxy.sip.build import Editor
    from sipproxy.sip.flow import Hop
    from sipproxy.sip.message import Request

__all__ = ["binding_groups", "emergency_groups", "incoming_edit", "outgoing_edit", "route_hops", "trunk_groups"]

MAX_PROXIES = 200  # of customers that are looked up ahead: what is left of the resolver's places is for the routes
Groups = list[list[Target]]
Edit = Callable[["Editor", Target], None]


def trunk_groups(desk: Desk, user: str, *, probe: bool = True) -> Groups:
    """Every trunk route by itself, with `user` in the Request-URI: by priority, then at random by weight (as RFC 2782); those
    that are down last."""
    groups: Groups = []
    left = list(desk.settings.trunks)
    while left:
        chosen = left[0]
        if len(left) > 1:
            first = [trunk for trunk in left if trunk.priority == chosen.priority]
            if len(first) > 1:
                chosen = _weighted(first, int.from_bytes(desk.new_token(4), "big") / 2**32)
        left.remove(chosen)
        groups.append([Target(uri_at(user, chosen.hop), chosen.hop, "trunk", chosen.name)])
    return desk.trunks.arrange(groups, lambda target: target.name, probe=probe)


def _weighted(trunks: list[TrunkRoute], at: float) -> TrunkRoute:
    """The trunk that `at` (0 to 1) falls on when each has a share as large as its weight."""
    mark = at * sum(trunk.weight for trunk in trunks)
    for trunk in trunks:
        mark -= trunk.weight
        if mark < 0:
            return trunk
    return trunks[-1]


def emergency_groups(desk: Desk, decision: Decision) -> Groups:
    """The PSAP routes in order; when all of them fail, or there is none, the carrier is asked: help outranks order."""
    groups: Groups = []
    for route in decision.psap:
        try:
            groups.append([Target(route.uri.encode(), parse_hop(route.uri.encode()), "psap", route.uri)])
        except ParseError:
            desk.note("error", "psap_route_unusable", location=route.location, uri=route.uri)
    return groups + trunk_groups(desk, decision.destination.service, probe=False)


def route_hops(desk: Desk) -> set[Hop]:
    """The next hops of all trunk and PSAP routes, customers' proxies and other nodes. A PSAP's URI that cannot be read is told
    with the calls that it fails."""
    hops = (
        {route.hop for route in desk.settings.trunks} | set(islice(desk.location.proxies, MAX_PROXIES)) | set(desk.peers.hops())
    )
    for route in (route for routes in desk.snapshot.psap.values() for route in routes):
        with contextlib.suppress(ParseError):
            hops.add(parse_hop(route.uri.encode()))
    return hops


def binding_groups(desk: Desk, user: str, number: str) -> Groups:
    """All devices of the account at once (parallel forking), those of other nodes through them; no group when it has none that
    can be reached. Of a device with several flows (RFC 5626 §5.3) the one that it used last is tried first."""
    devices: dict[str, list[Target]] = {}
    for binding in sorted(desk.location.reachable(user, desk.now.utc_ms), key=lambda b: (-b.q, -b.at_ms)):
        uri = called_at(binding, number)
        if binding.path:  # RFC 3327 §5.3: by those proxies, which every node reaches
            path = b", ".join(value.encode("latin-1") for value in binding.path)
            target: Target | None = Target(uri, first_proxy(binding), "binding", user, path=path)
        elif desk.statics.is_dead(user, binding):
            desk.count("pbx_passed_over", user)
            target = None
        elif desk.location.is_near(binding):
            target = Target(uri, binding.flow, "binding", user)
        else:
            target = target_at(desk, user, binding, uri)
        if target is not None:
            devices.setdefault(binding.instance or binding.key, []).append(target)
    group = [replace(first, others=tuple(others)) for first, *others in devices.values()]
    return [group] if group else []


def outgoing_edit(desk: Desk, request: Request, decision: Decision, said: Said, faces: Faces) -> Edit:
    """A customer's INVITE: claims that only a trusted peer may make go, our own assertion comes (RFC 3325 §5)."""
    settings = desk.settings
    realm = settings.realm.encode()

    def edit(editor: Editor, target: Target) -> None:
        strip_trust(editor, request, settings)
        set_privacy(editor, request, said, restricted=decision.restricted)
        faces.to(target.kind).put_on_request(editor, request, settings, target.to)
        if target.is_customer:
            return
        if decision.verdict is Verdict.EMERGENCY and request.has(b"privacy"):
            editor.remove(b"privacy")  # TDDDG § 15(1): caller-id restriction has no effect on 110 and 112
        if decision.asserted:
            user = decision.asserted.encode()
            editor.append(b"P-Asserted-Identity", b"<sip:%s@%s;user=phone>" % (user, realm))

    return edit


def incoming_edit(desk: Desk, request: Request, decision: Decision, said: Said, faces: Faces) -> Edit:
    """A trunk's INVITE to a customer: of a hidden caller, what names him goes (RFC 3325 §7)."""

    def edit(editor: Editor, target: Target) -> None:
        if target.is_customer:
            strip_for_customer(editor, request, desk.settings)
        faces.to(target.kind).put_on_request(editor, request, desk.settings, target.to)
        if decision.restricted:
            set_privacy(editor, request, said, restricted=True)

    return edit
