"""What the tests of forwarded calls share: who forwards where, the call, and its two records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.sip.message import Request, parse_message
from tests.sim.world import PROXY

if TYPE_CHECKING:
    from cdr.facts import Record
    from tests.sim.agent import Agent, AgentCall
    from tests.sim.conftest import Town

CALLER = b"+4989123456"
ASSERTED = ((b"P-Asserted-Identity", b"<sip:" + CALLER + b"@carrier.example>"),)
BOB = "+4920514001"


def redirecting(agent: Agent, *contacts: bytes, status: int = 302) -> None:
    """Have the agent answer every call with a 3xx."""
    agent.behave = lambda call: agent.redirect(call, *contacts, status=status)


def to_number(number: bytes) -> bytes:
    return b"<sip:%s@sip.test>" % number


def sent_to(town: Town, address: tuple[str, int], start: bytes = b"INVITE") -> list[Request]:
    found = [parse_message(d) for _, s, to, d in town.world.wire if s == PROXY and to == address and d.startswith(start)]
    return [message for message in found if isinstance(message, Request)]


def both(town: Town) -> tuple[Record, Record]:
    """The forwarded call's record and its part's."""
    part = next(r for r in town.world.records if r.forwarded_from)
    head = next(r for r in town.world.records if r.id == part.forwarded_from)
    return head, part


def forwarded_call(town: Town, target: bytes = b"03023125001", **options: object) -> AgentCall:
    """A call from the carrier to bob, whose router forwards it to the carrier."""
    town.register_all()
    redirecting(town.bob, to_number(target))
    return town.trunk_b.call(b"+4920514001", headers=ASSERTED, from_user=CALLER.decode(), **options)  # type: ignore[arg-type]
