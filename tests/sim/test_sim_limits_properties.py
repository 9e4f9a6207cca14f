"""Limits of lines, accounts and trunk routes over two nodes with a store that lies (design: invariants 2 and 5, §8).

Each node is the engine's own `Channels`; the store is the script's model, behind a connection for each node that delays what is
asked, loses answers, and gives wrong ones. What is proven is the same for each kind of limit.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipproxy.engine.actions import Action, Holder, HoldSlot, Now, ReleaseSlot, Slot, TakeSlot
from sipproxy.engine.channels import Channels, Grant, trunk_slot
from sipproxy.engine.dialogs import Phase
from sipproxy.engine.settings import Settings
from tests.sim.world import LEASE_S, REFRESH_S, SlotStore, trunk

pytestmark = pytest.mark.plain_alone

WAIT_S = 0.25


@dataclass(frozen=True)
class Limit:
    """What is full first: the owner's slots, or those of account `a` alone, and what else takes slots unasked."""

    kind: str
    owner: str
    slots: int
    account: int | None = None  # the limit of account a; b has none
    occupied: bool = False  # whether calls come that are counted and not refused


LIMITS = {
    "line": Limit("line", "L1", 2),
    "account": Limit("line", "L1", 5, account=2),
    "route": Limit("trunk", "carrier", 2, occupied=True),
}


@dataclass
class Call:
    """As much of a call as `Channels` looks at."""

    id: str
    account: str
    occupies: bool = False  # is there whatever the limit says
    store_wait_s: float = WAIT_S
    phase: Phase = Phase.PROCEEDING
    slots: tuple[Slot, ...] = ()
    record: Any = field(default_factory=lambda: SimpleNamespace(direction="outgoing"))


@dataclass
class Sent:
    """A command on its way to the store. `answer` takes its reply, unless the node has given it up."""

    action: TakeSlot | HoldSlot | ReleaseSlot
    answer: Callable[[bool | None, int, int], None] | None = None


class Node:
    """`Channels` with what it stands on. A `deaf` node does not reach the store."""

    def __init__(self, name: str, town: Town) -> None:
        self.name, self.town = name, town
        self.deaf = self.drains = False
        self.on_the_way: deque[Sent] = deque()
        self.waiting: dict[Slot, HoldSlot | ReleaseSlot] = {}  # for the store to be back
        self.begin()

    def begin(self) -> None:
        """A new process."""
        self.calls: dict[str, Call] = {}
        self.asked: dict[Slot, Sent] = {}
        self.settings = Settings(
            node=self.name,
            realm="sip.test",
            domains=frozenset(["sip.test"]),
            listeners=(),
            trunks=(replace(trunk("carrier", ("198.51.100.1", 5060)), calls=self.town.limit.slots),),
            store_wait_s=WAIT_S,
        )
        self.desk: Any = SimpleNamespace(settings=self.settings, now=Now(0.0, 0), out=[], counters=Counter())
        self.desk.count = lambda *name: self.desk.counters.update([name])
        self.channels = Channels(self.desk)

    @property
    def held(self) -> int:
        return self.channels.held(self.town.limit.kind, self.town.limit.owner)

    def held_by(self, account: str) -> int:
        held = [slot for call in self.calls.values() for slot in call.slots]
        return sum(self.channels.holder(slot).account == account for slot in held)

    # Calls

    def slot(self, call: Call) -> Slot:
        limit = self.town.limit
        return Slot("line", limit.owner, call.id) if limit.kind == "line" else trunk_slot(call, limit.owner)  # type: ignore[arg-type]

    def place(self, call: Call) -> None:
        """A new call, which is let in, refused, or waits for the store."""
        limit, of_account = self.town.limit, self.town.account_limit(call.account)
        self.calls[call.id] = call
        self.desk.now = self.town.now
        if call.occupies:
            self.channels.occupy(call, self.slot(call))  # type: ignore[arg-type]
        else:
            self.channels.ask(
                call,  # type: ignore[arg-type]
                self.slot(call),
                lambda grant: self._decided(call, grant),
                limit=limit.slots,
                account=call.account,
                account_limit=of_account,
            )
        self.perform()

    def _decided(self, call: Call, grant: Grant) -> None:
        limit, of_account = self.town.limit, self.town.account_limit(call.account)
        if grant.refusal:
            assert self.slot(call) not in call.slots
            del self.calls[call.id]
            self.town.refused[grant.refusal] += 1
            return
        # What this node alone knows is never exceeded, whatever the store says.
        assert self.held <= limit.slots
        assert of_account is None or self.held_by(call.account) <= of_account
        self.town.admitted(call)

    def end(self, call: Call) -> None:
        call.phase = Phase.ENDED
        del self.calls[call.id]
        self.desk.now = self.town.now
        self.channels.give_back(call)  # type: ignore[arg-type]
        self.perform()

    @property
    def live(self) -> list[Call]:
        return [call for call in self.calls.values() if call.slots]

    @property
    def patient(self) -> list[Call]:
        """Who still waits for a slot."""
        return [self.calls[slot.member] for slot in self.asked if slot.member in self.calls]

    # Towards the store, as `store.slots` does it

    def perform(self) -> None:
        out: list[Action] = self.desk.out[:]
        self.desk.out.clear()
        for action in out:
            if isinstance(action, TakeSlot):
                self._take(action)
            elif isinstance(action, HoldSlot | ReleaseSlot):
                self._wish(action)

    def _take(self, action: TakeSlot) -> None:
        self.waiting.pop(action.slot, None)
        sent = Sent(action)

        def answer(taken: bool | None, used: int, of_account: int) -> None:
            sent.answer = None
            self.asked.pop(action.slot, None)
            self.desk.now = self.town.now
            self.channels.result(action.slot, taken=taken, used=used, of_account=of_account, waited_s=0.01)
            self.perform()

        sent.answer = answer
        self.asked[action.slot] = sent
        if self.deaf:
            answer(None, 0, 0)
        else:
            self.on_the_way.append(sent)

    def _wish(self, action: HoldSlot | ReleaseSlot) -> None:
        if self.deaf:
            self.waiting[action.slot] = action
        else:
            self.on_the_way.append(Sent(action))

    def overdue(self) -> None:
        """The deadline of all that was asked for."""
        for sent in list(self.asked.values()):
            assert sent.answer is not None
            sent.answer(None, 0, 0)

    def reassert(self) -> None:
        for slot, holder in self.channels.leases():
            self._wish(HoldSlot(slot, holder))

    def reach(self, *, store: bool) -> None:
        """Lose the store, or find it again."""
        if not store:
            self.deaf = True
            self.overdue()
        elif self.deaf:
            self.deaf = False
            waiting, self.waiting = self.waiting, {}
            for action in waiting.values():
                self._wish(action)
            self.reassert()

    def die(self, keeps: Callable[[Call], bool]) -> None:
        """Die and start again. Answered calls are taken up from the journal; the slots of others that it knows are released."""
        old = [(call, {slot: self.channels.holder(slot) for slot in call.slots}) for call in self.live]
        for sent in self.asked.values():
            sent.answer = None  # nobody is there who could hear it
        self.begin()
        self.waiting.clear()
        for call, slots in old:
            call.slots = ()
            for slot, holder in slots.items():
                if keeps(call):
                    self.calls[call.id] = call
                    self.channels.hold(call, slot, holder)  # type: ignore[arg-type]
                else:
                    self._wish(ReleaseSlot(slot))
        self.reassert()


class Town:
    """Two nodes, one store, and what is owed to invariant 2 as long as nothing has lied yet."""

    def __init__(self, limit: Limit) -> None:
        self.limit = limit
        self.store = SlotStore()
        self.at = 0.0
        self.honest = True
        self.orphans = False
        self.refused: Counter[str] = Counter()
        self.copy: tuple[dict[str, dict[str, float]], dict[Slot, Holder]] = ({}, {})
        self.numbers = 0
        self.nodes = [Node("n1", self), Node("n2", self)]

    @property
    def now(self) -> Now:
        return Now(self.at, round(self.at * 1000))

    def account_limit(self, account: str) -> int | None:
        return self.limit.account if account == "a" else None

    def new_call(self, account: str, *, occupies: bool = False) -> Call:
        self.numbers += 1
        return Call(f"c{self.numbers}", account, occupies)

    def admitted(self, call: Call) -> None:
        if self.honest:
            assert sum(node.held for node in self.nodes) <= self.limit.slots
            self.check_account(call.account, 1)
        else:
            self.check_account(call.account, len(self.nodes))  # design §8: each node may go by its own calls

    def check_account(self, account: str, times: int) -> None:
        limit = self.account_limit(account)
        assert limit is None or sum(node.held_by(account) for node in self.nodes) <= times * limit

    # The store

    @property
    def members(self) -> set[str]:
        owner = self.limit.owner if self.limit.kind == "line" else f"trunk:{self.limit.owner}"
        return {member for member, until in self.store.lines.get(owner, {}).items() if until > self.at}

    def execute(self, node: Node, fate: str = "told") -> None:
        """Run the next command of a node. `fate` is what becomes of the answer to a take."""
        sent = node.on_the_way.popleft()
        action = sent.action
        if isinstance(action, HoldSlot):
            self.store.hold(action.slot, action.holder, self.at + LEASE_S)
        elif isinstance(action, ReleaseSlot):
            self.store.release(action.slot)
        else:
            taken, used, of_account = self.store.take(action, self.at, LEASE_S)
            if fate == "forgotten":  # granted by a server that then falls back behind it
                self.store.release(action.slot)
            elif fate == "denied" and taken:  # counted, and answered with no
                taken, used = False, action.limit
            if sent.answer is not None and fate != "lost":
                sent.answer(taken, used, of_account)

    def serve_all(self) -> None:
        while any(node.on_the_way for node in self.nodes):
            for node in self.nodes:
                while node.on_the_way:
                    self.execute(node)

    def lapse(self) -> None:
        """Time passes until every lease has ended that was not refreshed."""
        self.serve_all()
        for _ in range(int(LEASE_S / REFRESH_S) + 1):
            self.at += REFRESH_S
            for node in self.nodes:
                if not node.deaf:
                    node.reassert()
            self.serve_all()

    # Steps

    def step(self, what: str, number: int, pick: int) -> None:
        node = self.nodes[number]
        if what == "call" and not node.drains:
            node.place(self.new_call("ab"[pick % 2]))
        elif what == "occupy" and self.limit.occupied:
            node.place(self.new_call("", occupies=True))
            self.honest = False  # it may be over the limit, and nobody is refused for it who is there
        elif what == "end" and node.live:
            node.end(node.live[pick % len(node.live)])
        elif what == "give up" and node.patient:  # the caller, while the store is asked
            node.end(node.patient[pick % len(node.patient)])
        elif what == "serve" and node.on_the_way:
            for _ in range(min(1 + pick, len(node.on_the_way))):
                self.execute(node)
        elif what == "drain":
            node.drains = not node.drains
        elif what == "lapse":
            if any(other.deaf for other in self.nodes):
                self.honest = False
            self.lapse()
        else:
            self._trouble(what, node, pick)

    def _trouble(self, what: str, node: Node, pick: int) -> None:
        if what in ("lost", "forgotten", "denied") and node.on_the_way:
            self.honest = False
            self.execute(node, what)
        elif what == "overdue":
            self.honest = self.honest and not node.asked
            node.overdue()
        elif what == "away":
            self.honest = False
            node.reach(store=node.deaf)
        elif what == "flush":
            self.honest = False
            self.store = SlotStore()
        elif what == "copy":
            lines = {owner: dict(held) for owner, held in self.store.lines.items()}
            self.copy = (lines, dict(self.store.holders))
        elif what == "old copy":
            self.honest, self.orphans = False, True
            self.store = SlotStore()
            self.store.lines = {owner: dict(held) for owner, held in self.copy[0].items()}
            self.store.holders = dict(self.copy[1])
        elif what == "kill":
            self.honest, self.orphans = False, True
            node.die(lambda call: int(call.id[1:]) % 3 != pick % 3)

    def check(self) -> None:
        held = sum(node.held for node in self.nodes)
        occupied = sum(call.occupies for node in self.nodes for call in node.live)
        assert held <= len(self.nodes) * self.limit.slots + occupied
        if self.honest:
            # Nothing leaked that could refuse a call: whatever is counted is a call's, or about to be given back.
            known = {slot.member for node in self.nodes for call in node.live for slot in call.slots}
            known |= {sent.action.slot.member for node in self.nodes for sent in node.on_the_way}
            assert self.members <= known

    def mend(self) -> None:
        """The store is well again: every node tells of its calls. What is nobody's any more, or again, ends with its lease;
        that is only so after a kill and in an old copy, so that nothing else may be left to it."""
        self.serve_all()
        for node in self.nodes:
            node.overdue()  # what was lost
            node.reach(store=True)
            node.drains = False
            node.reassert()
        self.serve_all()
        if self.orphans:
            self.lapse()

    def assert_right(self) -> None:
        """Slots are the live calls', and one more is admitted exactly where there is room."""
        live = [call for node in self.nodes for call in node.live]
        assert self.members == {slot.member for call in live for slot in call.slots}
        for node in self.nodes:
            for account in "ab":
                live = [call for each in self.nodes for call in each.live]
                of_account, limit = sum(call.account == account for call in live), self.account_limit(account)
                room = len(live) < self.limit.slots and (limit is None or of_account < limit)
                call = self.new_call(account)
                node.place(call)
                self.serve_all()
                assert bool(call.slots) is room
                if call.slots:
                    node.end(call)
                    self.serve_all()


HONEST = ("call", "call", "serve", "end", "give up", "lapse", "drain")
TROUBLE = ("lost", "forgotten", "denied", "overdue", "away", "kill", "flush", "copy", "old copy")
STEPS = (*HONEST * 2, *("call",) * 2, *("serve",) * 3, "occupy", *TROUBLE)


def scripts(names: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, int, int]]]:
    """Steps, each with a node and a number to choose by."""
    return st.lists(st.tuples(st.sampled_from(names), st.integers(0, 1), st.integers(0, 5)), min_size=20, max_size=60)


def run(limit: Limit, script: list[tuple[str, int, int]]) -> Town:
    town = Town(limit)
    for step in script:
        town.step(*step)
        town.check()
    town.mend()
    town.assert_right()
    for node in town.nodes:
        for call in list(node.calls.values()):
            node.end(call)
    town.serve_all()
    assert not town.members
    assert not any(node.channels.leases() for node in town.nodes)
    town.honest = True
    for number in range(2 * town.limit.slots):  # all that there is can be used again, and not more
        town.nodes[number % 2].place(town.new_call("b"))
        town.serve_all()
    assert sum(node.held for node in town.nodes) == town.limit.slots
    return town


@pytest.mark.parametrize("kind", LIMITS)
@settings(max_examples=120)
@given(script=scripts(STEPS))
def test_limit_with_a_store_that_lies_is_kept_by_each_node_and_right_again_when_it_is_well(
    kind: str, script: list[tuple[str, int, int]]
) -> None:
    run(LIMITS[kind], script)


@pytest.mark.parametrize("kind", LIMITS)
@settings(max_examples=60)
@given(script=scripts(HONEST))
def test_limit_with_a_store_that_does_not_lie_is_exact_over_both_nodes(kind: str, script: list[tuple[str, int, int]]) -> None:
    assert run(LIMITS[kind], script).honest
