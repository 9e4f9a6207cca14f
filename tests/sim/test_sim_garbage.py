"""What calls and registrations leave behind is freed with the last reference to it: no garbage collector is needed for it, and
none looks while a node is busy (sipproxy/collecting.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.garbage import uncollected
from tests.sim.world import PROXY

if TYPE_CHECKING:
    from tests.sim.conftest import Town

LATER_S = 200.0  # when all transactions are over, and the calls that ended are known no more
STRANGER = ("203.0.113.99", 5060)


def test_calls_and_registrations_leave_nothing_that_refers_to_itself(town: Town) -> None:
    with uncollected() as unreachable:
        town.register_all()
        answered = town.alice.call(b"03023125001")
        refused = town.alice.call(b"09001123456")
        given_up = town.bob.call(b"03023125002")
        town.world.run(1.0)
        town.bob.cancel(given_up)
        town.world.run(4.0)
        again: list[object] = []
        town.alice.reinvite(answered, again.append)
        town.world.run(2.0)
        town.alice.bye(answered)
        town.register_all()
        town.world.run(LATER_S)
        assert (answered.status, refused.status, len(town.world.records)) == (200, 403, 3)
        assert again
        assert not unreachable()


def test_malformed_messages_leave_nothing_that_refers_to_itself(town: Town) -> None:
    with uncollected() as unreachable:
        town.register_all()
        before = len(town.world.records)
        for data in (
            b"INVITE sip:1@sip.test SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nCSeq: x\r\n\r\n",
            b"INVITE sip:1@sip.test SIP/2.0\r\n\r\n",
            b"SIP/2.0 200 OK\r\nVia: nothing\r\n\r\n",
            b"hello\r\n\r\n",
        ):
            town.world.send(data, STRANGER, PROXY)
        town.world.run(LATER_S)
        assert len(town.world.records) == before
        assert not unreachable()
