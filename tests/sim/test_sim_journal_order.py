"""What the journal must have before what follows: ADMIT, ANSWER and END each in their place (design: invariant 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdr.facts import Admit, Answer, End
from sipproxy.engine.actions import Action, Journal, ReleaseSlot, SendTo
from tests.sim.conftest import PSAP, TRUNK_A, make_town

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.sim.conftest import Town


def watched(town: Town) -> list[Action]:
    """Everything that the engine has done from now on, in order."""
    done: list[Action] = []
    perform = town.world.perform

    def noted(actions: Iterable[Action]) -> None:
        todo = list(actions)
        done.extend(todo)
        perform(todo)

    town.world.perform = noted  # type: ignore[method-assign]
    return done


def first(done: list[Action], start: bytes, to: tuple[str, int]) -> int:
    """Where the first message that begins so goes to this address."""
    sends = [(n, a) for n, a in enumerate(done) if isinstance(a, SendTo) and a.data.startswith(start)]
    return next(n for n, action in sends if (action.target.host, action.target.port) == to)


def place_of(done: list[Action], kind: type) -> int:
    return next(n for n, action in enumerate(done) if isinstance(action, Journal) and isinstance(action.fact, kind))


@pytest.mark.parametrize(
    ("dialled", "callee"), [(b"03023125001", TRUNK_A), (b"020514001", ("203.0.113.3", 5060)), (b"112", PSAP)]
)
def test_facts_of_a_call_are_journalled_before_what_follows_from_them(dialled: bytes, callee: tuple[str, int]) -> None:
    town = make_town()
    town.register_all()
    done = watched(town)
    call = town.alice.call(dialled)
    town.world.run_until(lambda: bool(call.answered_at))
    assert place_of(done, Admit) < first(done, b"INVITE ", callee)
    answer = next(
        n
        for n, action in enumerate(done)
        if isinstance(action, SendTo) and action.data.startswith(b"SIP/2.0 200") and b"INVITE\r\n" in action.data
    )
    assert place_of(done, Answer) < answer
    assert not town.world.records
    town.alice.bye(call)
    town.world.run(1.0)
    released = [n for n, action in enumerate(done) if isinstance(action, ReleaseSlot)]
    assert bool(released) is (dialled != b"112"), "an emergency call holds none"
    assert all(place_of(done, End) < place for place in released)
