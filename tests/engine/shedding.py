"""Nodes with little room, for the tests of what is not taken under load."""

from __future__ import annotations

from sipproxy.engine.settings import Rates
from sipproxy.engine.shed import Load, Signals
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Response
from tests.engine.desk import DOMAIN, Desk
from tests.sim.conftest import TRUNK_A, make_town

CONTACT = b"<sip:alice@203.0.113.1:5060>"
FEW = Rates(
    source_per_s=1, source_burst=8, line_per_s=1, line_burst=6, strangers_per_s=1, strangers_burst=20, registers_per_s=1,
    registers_burst=4, sources=50,
)  # fmt: skip
CALL = b"sip:03023125001@sip.example"
TRUNK = Flow("UDP", 0, *TRUNK_A)


def desk_of(rates: Rates = FEW) -> Desk:
    return Desk(make_town(rates=rates).world.engine)


def at_load(desk: Desk, load: Load) -> Desk:
    """The node's loop is late until it is in this state."""
    for _ in range(2 * load):
        desk.tick(0.1)
        desk.actions = desk.engine.observe(Signals(1.0, 0), desk.now)
    assert desk.engine.shedder.load is load
    return desk


def stranger(number: int) -> Flow:
    return Flow("UDP", 0, f"192.0.2.{number}", 5060)


def messages(desk: Desk, method: bytes, count: int, flow: Flow, uri: bytes = DOMAIN) -> list[list[int]]:
    """The statuses that each of `count` requests of its own got at once."""
    return [[m.status for m in desk.receive(desk.request(method, uri), flow) if isinstance(m, Response)] for _ in range(count)]
