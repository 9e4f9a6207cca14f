"""A node of the virtual network that dies at any point and comes back: what its journal has is all that it knows then."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from cdr import codec
from cdr.facts import Admit, Alive, Answer, End, Fact, Record
from sipproxy.engine.core import Engine
from sipproxy.engine.recover import slots_of

if TYPE_CHECKING:
    from policy.model import Snapshot
    from sipproxy.engine.actions import Action, Holder, Slot
    from sipproxy.engine.recover import Ended, Unfinished
    from tests.sim.agent import Agent
    from tests.sim.world import World


def unfinished(facts: Iterable[Fact]) -> list[Unfinished]:
    """The calls without an END, each fact through its encoding: of each kind the last one, as the journal keeps them."""
    live: dict[str, dict[str, Fact]] = {}
    for fact in facts:
        call = fact.id if isinstance(fact, Alive | Answer) else fact.record.id
        if isinstance(fact, End):
            live.pop(call, None)
        else:
            live.setdefault(call, {})[codec.kind_of(fact)] = codec.decode_fact(codec.encode_fact(fact))
    found = [(parts.get("admit"), parts.get("answer"), parts.get("alive")) for parts in live.values()]
    assert all(isinstance(admit, Admit) for admit, _, _ in found), "an ANSWER without its ADMIT"
    return cast("list[Unfinished]", found)


def ended(facts: Iterable[Fact]) -> list[Ended]:
    """The answered calls with an END, in its order, each fact through its encoding."""
    known: dict[str, dict[str, Fact]] = {}
    found = []
    for fact in facts:
        call = fact.id if isinstance(fact, Alive | Answer) else fact.record.id
        known.setdefault(call, {})[codec.kind_of(fact)] = codec.decode_fact(codec.encode_fact(fact))
        if isinstance(fact, End) and "answer" in known[call]:
            parts = known[call]
            found.append((parts["admit"], parts["answer"], parts.get("alive"), fact.record))
    return cast("list[Ended]", found)


class _NoCalls:
    def leases(self) -> list[tuple[Slot, Holder]]:
        return []


class _Nobody:
    """In an engine's place while the node is away: nothing is taken, nothing is sent."""

    next_at = None
    channels = _NoCalls()

    def receive(self, *_: object) -> list[Action]:
        return []

    fire = receive

    def slot_result(self, *_: object, **__: object) -> list[Action]:
        return []


@dataclass
class Restarts:
    """`kill` and `start` the node of a world. `kill_after(n)` kills it after n actions, within what an event causes."""

    world: World
    kills: int = 0
    cut: int = 0
    resumed: int = 0
    is_over: bool = False  # no more kills
    on_kill: Callable[[], None] | None = None
    _left: int = 0
    _perform: Callable[[Iterable[Action]], None] = field(init=False)
    _snapshot: Snapshot = field(init=False)

    def __post_init__(self) -> None:
        self._perform = self.world.perform
        self._snapshot = self.world.engine.desk.snapshot
        self.world.perform = self._counted  # type: ignore[method-assign]

    @property
    def is_away(self) -> bool:
        return isinstance(self.world.engine, _Nobody)

    def kill_after(self, actions: int, on_kill: Callable[[], None]) -> None:
        self._left, self.on_kill = 0 if self.is_over else actions, on_kill

    def _counted(self, actions: Iterable[Action]) -> None:
        if self.is_away:
            return
        todo = list(actions)
        if not 0 < self._left <= len(todo):
            self._left -= len(todo) if self._left else 0
            self._perform(todo)
            return
        self._perform(todo[: self._left])
        self._left = 0
        self.kill()
        assert self.on_kill is not None
        self.on_kill()

    def kill(self) -> None:
        self.kills += 1
        self.world.engine = cast("Engine", _Nobody())

    def start(self, **settings: Any) -> None:
        """Start it again, with changed settings where they are given."""
        world = self.world
        world.settings = replace(world.settings, **settings)
        seq = max((record.seq for record in world.records), default=0) + 1
        world.engine = Engine(world.settings, self._snapshot, new_token=world.random.randbytes, key=b"k" * 32, next_seq=seq)
        kept = [(user, binding) for (user, _), binding in world.bindings.items()]
        world.engine.bindings_read(kept, world.instant, own_too=True)
        found = unfinished(world.facts)
        for record in world.records:  # what `lifecycle.resume` does for those that ended just before
            for slot in slots_of(record, world.settings.trunks):
                world.store.release(slot)
        self._perform(world.engine.recover(found, world.instant, ended=ended(world.facts)))
        live = world.engine.calls.live
        self.resumed += live
        self.cut += len(found) - live
        world.reassert()


def forgets_ended_dialogs(agent: Agent) -> None:
    """Have the agent answer 481 within a dialog that is over, as RFC 3261 §12.2.2 has it."""
    find = agent._find

    def found(request: Any) -> Any:
        call = find(request)
        return None if call is not None and call.ended and request.method != b"BYE" else call

    agent._find = found  # type: ignore[method-assign]


def expire(world: World) -> None:
    """Drop the leases that are over, as the store's script does at the next take."""
    for held in world.store.lines.values():
        for call in [call for call, at in held.items() if at <= world.now]:
            del held[call]


def by_call_id(records: Iterable[Record]) -> dict[str, Record]:
    return {record.call_id: record for record in records}
