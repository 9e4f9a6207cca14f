"""A call has one life cycle, and each way of ending it is one that calls do end in (design, invariants 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

import pytest

from cdr.facts import EndReason, Record
from policy.model import LineStatus
from sipproxy.engine.dialogs import Phase
from tests.sim.conftest import make_town
from tests.sim.restart import Restarts

if TYPE_CHECKING:
    from tests.sim.agent import AgentCall
    from tests.sim.conftest import Town


def ringing(town: Town) -> AgentCall:
    town.trunk.behave = lambda call: town.trunk.progress(call, 180)
    call = town.alice.call(b"03023125001")
    town.world.run(2.0)
    return call


def answered(town: Town) -> AgentCall:
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    assert call.status == 200
    return call


def normal(town: Town) -> None:
    town.alice.bye(answered(town))


def cancelled(town: Town) -> None:
    town.alice.cancel(ringing(town))


def rejected(town: Town) -> None:
    town.trunk.behave = lambda call: town.trunk.reject(call, 486)
    town.alice.call(b"03023125001")


def refused(town: Town) -> None:
    town.alice.call(b"09001123456")


def no_answer(town: Town) -> None:
    ringing(town)
    town.world.run(40.0)


def unreachable(town: Town) -> None:
    town.bob.register(expires=0)
    town.world.run(1.0)
    town.alice.call(b"020514001")


def maximum(town: Town) -> None:
    answered(town)
    town.world.run(100.0)


def session_expired(town: Town) -> None:
    answered(town)
    del town.world.agents[town.trunk.address]
    town.world.run(80.0)


def operator(town: Town) -> None:
    answered(town)
    (call,) = town.world.engine.calls.by_id.values()
    town.world.perform(town.world.engine.end_call(call.id, town.world.instant)[1])


def fraud_hold(town: Town) -> None:
    answered(town)
    town.change("lines", "L1", status=LineStatus.FRAUD_HOLD)


def node_restart(town: Town) -> None:
    node = Restarts(town.world)
    ringing(town)
    node.kill()
    node.start()


WAYS: dict[str, Callable[[Town], None]] = {
    way.__name__: way
    for way in (
        normal, cancelled, rejected, refused, no_answer, unreachable, maximum, session_expired, operator, fraud_hold,
        node_restart,
    )
}  # fmt: skip
NEVER = {"error"}  # what a record says that was never ended: none leaves the engine so


@pytest.mark.parametrize("reason", get_args(EndReason))
def test_each_end_reason_is_that_of_calls_which_end_so(reason: str) -> None:
    if reason in NEVER:
        assert Record(id="x", node="n", direction="outgoing").end_reason == reason
        return
    town = make_town(ring_s=20.0, maximum_s=90.0, probe_s=30.0, session_expires_s=0, setup_s=25.0)
    town.register_all()
    WAYS[reason](town)
    town.world.run(3.0)
    assert [record.end_reason for record in town.world.records] == [reason]
    assert not town.world.live_slots()
    town.assert_reconciled()


def test_phases_go_forward_only() -> None:
    """`Call.phase` is the one state: each is entered from those before it, and nothing leaves the last."""
    town = make_town()
    town.register_all()
    seen: dict[str, list[Phase]] = {}
    perform = town.world.perform

    def watched(actions: object) -> None:
        for call in town.world.engine.calls.by_id.values():
            of_call = seen.setdefault(call.id, [])
            if not of_call or of_call[-1] is not call.phase:
                of_call.append(call.phase)
        perform(actions)  # type: ignore[arg-type]

    town.world.perform = watched  # type: ignore[method-assign]
    town.alice.bye(answered(town))
    town.world.run(1.0)
    town.alice.cancel(ringing(town))
    town.world.run(1.0)
    refused(town)
    town.world.run(2.0)
    order = list(Phase)
    assert [[str(phase) for phase in phases] for phases in seen.values()] == [
        ["admitting", "proceeding", "answered", "ended"],
        ["admitting", "proceeding", "ended"],
        ["ended"],
    ]
    assert all(sorted(phases, key=order.index) == phases for phases in seen.values())


def test_call_that_is_over_does_not_end_again() -> None:
    """Design, invariant 3: whoever comes with a second end, there is one record, and it is the first one's."""
    town = make_town()
    town.register_all()
    town.alice.bye(answered(town))
    town.world.run(1.0)
    engine = town.world.engine
    (call,) = engine.calls.by_id.values()
    call.end("operator", released_by="proxy", cause=31)
    town.world.perform(engine.fire(town.world.instant))
    assert [record.end_reason for record in town.world.records] == ["normal"]
    assert engine.calls.live == 0
    town.assert_reconciled()
