"""What a node keeps of calls in memory: little once they are answered for a while or over, and enough for what still comes."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import pytest
from msgspec import Struct

from sipproxy import compiled
from sipproxy.engine.reduced import unpacked
from tests.sim.conftest import TRUNK_A, Town, make_town
from tests.sim.world import PROXY

if TYPE_CHECKING:
    from sipproxy.engine.call import Call
    from sipproxy.sip.message import Response
    from tests.sim.agent import AgentCall

OVER_S = 33.0  # 64*T1 and a little: no transaction of the set-up is left


def up(town: Town, target: bytes = b"03023125001") -> tuple[AgentCall, Call]:
    """A call that is answered, as its caller and the node have it."""
    town.register_all()
    theirs = town.alice.call(target)
    town.world.run(5.0)
    assert theirs.status == 200
    (ours,) = town.world.engine.calls.by_id.values()
    return theirs, ours


def is_whole(call: Call) -> bool:
    """Whether its INVITE is still there with all that it came with: its body, and header lines that no dialog needs."""
    return bool(call.request.body) or call.request.has(b"user-agent") or call.request.has(b"content-type")


def test_old_call_keeps_its_invite_reduced_and_goes_on(town: Town) -> None:
    theirs, ours = up(town)
    assert is_whole(ours)
    town.world.run(OVER_S)
    assert not is_whole(ours)
    assert not town.world.engine.desk.transactions.servers
    answers: list[Response | None] = []
    town.alice.reinvite(theirs, answers.append)
    town.world.run(2.0)
    assert [answer.status for answer in answers if answer is not None] == [100, 200]
    far = town.trunk.calls[0]
    town.trunk.bye(far)  # whose From and To the caller gets as his own dialog has them
    town.world.run(1.0)
    assert theirs.ended == "remote"
    assert [record.released_by for record in town.world.records] == ["callee"]
    town.assert_reconciled()


def test_call_to_another_line_is_shown_its_own_names_when_it_is_old(town: Town) -> None:
    theirs, ours = up(town, b"020514001")
    town.world.run(OVER_S)
    assert not is_whole(ours)
    town.bob.bye(town.bob.calls[0])
    town.world.run(1.0)
    assert theirs.ended == "remote"
    assert [record.direction for record in town.world.records] == ["internal"]
    town.assert_reconciled()


@pytest.mark.parametrize("wait_s", [0.0, 20.0])
def test_ended_call_lets_go_and_both_hang_up_all_the_same(wait_s: float) -> None:
    """BYEs that cross: the second one is of a call that is over here, and has to reach its party (RFC 3261 §15.1.2)."""
    town = make_town(delay=(0.05, 0.05))
    theirs, ours = up(town)
    far = town.trunk.calls[0]
    town.world.run(wait_s)
    town.alice.bye(theirs)
    town.trunk.bye(far)
    town.world.run(0.2)
    assert not ours.is_live
    assert not is_whole(ours)
    assert (ours.answer, ours.edit, ours.groups) == (None, None, [])
    assert all(dialog.kept is None for dialog in ours.dialogs)
    town.world.run(2.0)
    assert theirs.ended
    assert far.ended
    (record,) = town.world.records
    assert (record.end_reason, record.media, record.to_tag != "") == ("normal", ["audio"], True)  # the record is whole
    town.world.run(2 * OVER_S)
    assert not town.world.engine.calls.by_id
    town.assert_reconciled()


def test_refused_call_is_answered_from_its_invite_before_it_is_let_go(town: Town) -> None:
    town.register_all()
    theirs = town.alice.call(b"09001123456")
    town.world.run(2.0)
    assert theirs.final is not None
    assert theirs.final.first(b"reason") == b"Q.850;cause=21"
    (ours,) = town.world.engine.calls.by_id.values()
    assert not is_whole(ours)


def test_emergency_call_goes_on_when_it_is_old(town: Town) -> None:
    """design, invariant 1: what is kept of it is enough for whoever called for help."""
    theirs, ours = up(town, b"112")
    assert ours.is_emergency
    town.world.run(OVER_S)
    assert not is_whole(ours)
    answers: list[Response | None] = []
    town.alice.reinvite(theirs, answers.append)
    town.world.run(2.0)
    assert [answer.status for answer in answers if answer is not None] == [100, 200]
    town.alice.bye(theirs)
    town.world.run(1.0)
    assert [(record.verdict, record.end_reason) for record in town.world.records] == [("emergency", "normal")]
    assert town.psap.calls[0].ended == "remote"


def test_old_call_has_its_messages_packed_until_a_party_may_have_moved(town: Town) -> None:
    theirs, ours = up(town)
    (dialog,) = ours.dialogs
    before = dialog.kept
    town.world.run(OVER_S)
    assert isinstance(before, tuple)
    assert isinstance(dialog.kept, bytes)
    assert len(dialog.kept) < sum(map(len, before)) / 2
    assert unpacked(dialog.kept, ours.server.kept) == before
    assert not ours.context.branches
    assert ours.asked is None
    town.alice.reinvite(theirs, lambda _: None)
    town.world.run(2.0)
    assert dialog.kept == before
    town.alice.bye(theirs)
    town.world.run(1.0)
    town.assert_reconciled()


def test_answer_that_is_repeated_to_an_old_call_is_acknowledged_and_ends_nothing(town: Town) -> None:
    """RFC 3261 §13.3.1.4: whoever repeats it has heard no ACK. That of a re-INVITE is none of ours to acknowledge."""
    theirs, ours = up(town)
    town.alice.reinvite(theirs, lambda _: None)
    town.world.run(OVER_S)
    sent = [data for _, source, _, data in town.world.wire if source == TRUNK_A]
    first, second = dict.fromkeys(data for data in sent if data.startswith(b"SIP/2.0 200") and b" INVITE\r\n" in data)
    counters = town.world.engine.desk.counters
    for answer, late, dropped in ((first, 1, 0), (second, 1, 1)):
        town.trunk.requests.clear()
        town.world.send(answer, TRUNK_A, PROXY)
        town.world.run(1.0)
        assert [request.method for request in town.trunk.requests] == [b"ACK"] * (late - dropped)
        assert (counters["late_2xx", "trunk"], counters["responses_dropped", "no_transaction"]) == (late, dropped)
    town.trunk.requests.clear()
    town.world.send(first.replace(b";branch=z9hG4bK", b";branch=z9hG4bKmade-up", 1), TRUNK_A, PROXY)
    town.world.run(1.0)
    assert town.trunk.requests == [], "to an INVITE that was none of ours"
    assert ours.is_live
    town.alice.bye(theirs)
    town.world.run(1.0)
    town.assert_reconciled()


def reachable(root: object) -> int:
    """Bytes of everything that the object refers to, classes and modules left out."""
    seen, size, waiting = {id(root)}, 0, [root]
    while waiting:
        found = waiting.pop()
        size += sys.getsizeof(found)
        # The garbage collector knows nothing of the fields of a structure that it is told not to look at.
        fields = [getattr(found, name) for name in found.__struct_fields__] if isinstance(found, Struct) else []
        for other in (*gc.get_referents(found), *fields):
            if id(other) not in seen and not isinstance(other, type | type(sys) | type(reachable)):
                seen.add(id(other))
                waiting.append(other)
    return size


def test_live_call_has_one_timer_and_takes_the_engine_less_than_4300_bytes() -> None:
    """What the journal, the publisher and gaps in memory take comes on top of it; all together stay below 6 KB."""
    town = make_town(line_fields={"channels": 100})
    town.register_all()
    desk, sizes = town.world.engine.desk, []
    for _ in range(2):
        for _ in range(20):
            town.alice.call(b"03023125001")
            town.world.run(0.02)  # as calls come to a node that has thousands: what looks at them looks at several
        town.world.run(7.0 + OVER_S)
        gc.collect()
        sizes.append(reachable((desk, town.world.engine.calls)))
    assert town.world.engine.calls.live == 40
    assert len(desk.transactions.servers) == 0
    assert len(desk.queue) < 50
    assert (sizes[1] - sizes[0]) / 20 < (4300 if compiled.kind() == "plain" else 4500)  # compiled, each object has a word more
