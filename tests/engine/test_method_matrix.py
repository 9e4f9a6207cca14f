"""Method x source x To tag x Route x target: what leaves, as a table; elsewhere nothing does (design: invariant 6)."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from dataclasses import replace

import pytest

from sipproxy.engine.actions import SendTo, TakeSlot
from sipproxy.engine.core import Engine
from sipproxy.engine.peers import Peer
from sipproxy.engine.relay import IN_DIALOG
from sipproxy.engine.settings import TrunkRoute
from sipproxy.engine.state import KNOWN_METHODS
from sipproxy.sip.build import write_response
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Request, parse_message
from tests.engine.desk import Desk
from tests.sim.conftest import make_town, town_snapshot

ALICE, BOB = Flow("UDP", 0, "203.0.113.1", 5060), Flow("UDP", 0, "203.0.113.3", 5060)
CARRIER = Flow("TLS", 1, "198.51.100.3", 40_000, 9, ("carrier.test",))
SOURCES = {
    "stranger": Flow("UDP", 0, "203.0.113.99", 5060),
    "registered": ALICE,  # without credentials
    "proven": ALICE,  # the same with credentials, where they are asked for
    "other_customer": BOB,
    "trunk": CARRIER,
    "trunk_by_datagram": Flow("UDP", 0, "198.51.100.3", 5061),  # its address, which anybody can write
    "trunk_other_name": CARRIER._replace(connection=10, names=("other.test",)),
    "node": Flow("UDP", 0, "192.0.2.2", 5060),
}
METHODS = [*sorted(KNOWN_METHODS), b"NEWTHING", b"invite"]
TAGS = ("none", "made_up", "as_caller", "as_callee")
ROUTES = ("none", "us", "elsewhere", "us_elsewhere")
TARGETS = {
    "local": b"sip:020514001@sip.test",
    "foreign": b"sip:someone@elsewhere.example",
    "premium": b"sip:09001123456@sip.test",
    "emergency": b"sip:112@sip.test",
}
EVIL = b"<sip:203.0.113.66:5060;lr>"
OURS = [name for name in TARGETS if name != "foreign"]

# What may leave: source, methods, tags, routes, targets, and where to. `us` is our Record-Route with its token, as stolen.
ALLOWED = [
    ("registered", {b"INVITE"}, ["none"], ROUTES, ["emergency"], "198.51.100.112"),  # help needs no challenge
    ("proven", {b"INVITE"}, ["none"], ROUTES, ["emergency"], "198.51.100.112"),
    ("proven", {b"INVITE"}, ["none"], ROUTES, ["local"], BOB.host),
    ("other_customer", {b"INVITE"}, ["none"], ROUTES, ["emergency"], CARRIER.host),  # his place has no centre of its own
    ("trunk", {b"INVITE"}, ["none"], ROUTES, ["local"], BOB.host),  # a call to a customer
    ("registered", IN_DIALOG, ["as_caller"], ["none", "us"], OURS, CARRIER.host),  # the parties, to each other alone
    ("proven", IN_DIALOG, ["as_caller"], ["none", "us"], OURS, CARRIER.host),
    ("trunk", IN_DIALOG, ["as_callee"], ROUTES, list(TARGETS), ALICE.host),
]


def may_leave(source: str, method: bytes, tag: str, route: str, target: str) -> str:
    """The host that the cell may send to, "" for none."""
    for who, methods, tags, routes, targets, to in ALLOWED:
        if who == source and method in methods and tag in tags and route in routes and target in targets:
            return to
    return ""


class Scene:
    """A node with alice in a call with the carrier, bob registered, and another node known."""

    def __init__(self) -> None:
        base = make_town().world.settings
        (udp,) = base.listeners
        tls = replace(udp, index=1, transport="TLS", sent_by=b"192.0.2.1:5061", hosts=frozenset([("192.0.2.1", 5061)]))
        route = TrunkRoute(
            "carrier",
            Hop("TLS", CARRIER.host, 5061),
            ((ipaddress.ip_network(CARRIER.host), 0),),
            names=("carrier.test",),
        )
        settings = replace(base, listeners=(udp, tls), trunks=(route,))
        engine = Engine(settings, town_snapshot(), new_token=random.Random(1).randbytes, key=b"k" * 32)
        self.desk = desk = Desk(engine)
        engine.peers_seen([Peer("n2", (Hop("UDP", "192.0.2.2", 5060),), frozenset(["192.0.2.2"]))])
        assert desk.register(b"<sip:alice@203.0.113.1:5060>").status == 200
        assert desk.register(b"<sip:bob@203.0.113.3:5060>", user="bob", flow=BOB).status == 200
        uri, contact = b"sip:03023125001@sip.test", (b"Contact", b"<sip:alice@203.0.113.1:5060>")
        credentials = desk.credentials(b"INVITE", uri)
        (sent,) = self.leaving(desk.request(b"INVITE", uri, call_id=b"live", headers=(credentials, contact)), ALICE)
        assert isinstance(sent[1], Request)
        lines = [(b"Record-Route", value.raw) for value in sent[1].record_routes]
        lines.append((b"Contact", b"<sip:carrier@198.51.100.3:5061;transport=tls>"))
        desk.receive(write_response(sent[1], 200, to_tag=b"far", headers=lines), CARRIER)
        self.cookie = lines[-2][1]
        assert engine.calls.live == 1

    def leaving(self, data: bytes, flow: Flow) -> list[tuple[str, object]]:
        """Host and message of all that goes out but the answers to who sent this."""
        desk = self.desk
        desk.receive(data, flow)
        todo, out = list(desk.actions), []
        while todo:
            action = todo.pop(0)
            if isinstance(action, TakeSlot):
                todo += desk.engine.slot_result(action.slot, taken=True, used=1, now=desk.now)
            elif isinstance(action, SendTo):
                message = parse_message(action.data)
                if isinstance(message, Request) or action.target.host != flow.host:
                    out.append((action.target.host, message))
        return out

    def cell(self, source: str, method: bytes, tag: str, route: str, target: str) -> list[tuple[str, object]]:
        flow = SOURCES[source]
        routes = {"none": [], "us": [self.cookie], "elsewhere": [EVIL], "us_elsewhere": [self.cookie, EVIL]}[route]
        ends = {"as_caller": (b"f1", b"far"), "as_callee": (b"far", b"f1"), "made_up": (b"f1", b"made"), "none": (b"f1", b"")}[
            tag
        ]
        asked = source == "proven" and method == b"INVITE" and tag == "none" and target != "emergency"
        proof = [self.desk.credentials(method, TARGETS[target], flow=flow)] if asked else []
        data = self.desk.request(
            method,
            TARGETS[target],
            call_id=b"new%d" % next(self.desk.counter) if tag == "none" else b"live",
            to_tag=ends[1],
            via=b"SIP/2.0/%s %s:%d;rport" % (flow.transport.encode(), flow.host.encode(), flow.port),
            headers=(
                (b"From", b"<sip:alice@sip.test>;tag=" + ends[0]),
                (b"Contact", b"<sip:x@%s:%d>" % (flow.host.encode(), flow.port)),
                (b"Refer-To", b"<sip:09001123456@sip.test>"),
                *((b"Route", value) for value in routes),
                *proof,
            ),
        )
        return self.leaving(data, flow)


@pytest.mark.parametrize("source", list(SOURCES))
def test_nothing_leaves_but_what_the_table_allows(source: str) -> None:
    scene, seen = Scene(), Counter[str]()
    for method in METHODS:
        for tag in TAGS:
            for route in ROUTES:
                for target in TARGETS:
                    where = (method, tag, route, target)
                    out = scene.cell(source, *where)
                    allowed = may_leave(source, *where)
                    assert {host for host, _ in out} == ({allowed} if allowed else set()), where
                    seen["left" if out else "kept"] += 1
                    if out:
                        assert not [m for h, m in out if h == "203.0.113.66"], where
                        scene = Scene()  # what left has changed it
                    assert scene.desk.engine.calls.live == 1, where
    rows = [row for row in ALLOWED if row[0] == source]
    assert seen["left"] == sum(len(m) * len(t) * len(r) * len(g) for _, m, t, r, g, _ in rows)
    assert seen.total() == len(METHODS) * len(TAGS) * len(ROUTES) * len(TARGETS)
