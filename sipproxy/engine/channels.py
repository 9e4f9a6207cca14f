"""The slots of this node's calls: asking for them, holding them, giving them back (design: invariants 2 and 5, §8).

Pure. A slot belongs to a line, or to a trunk route with a limit. The store counts over all nodes; what it does not say in time
is decided from what this node's own calls hold. All that one call waits for the store, at all its askings together, is bounded
by `Settings.store_wait_s`. Emergency calls never ask (invariant 1).

A call has one slot of a line, whatever becomes of it, with its id as the member. A forwarded part is a call of its own,
which asks for a slot of the line that forwards, and of its account, where the profile counts that (`slots_of_forwarding`). All
else follows from the slot being in `call.slots`: refreshing and re-asserting, the journal (`keep.admission`), the restart, and
the release at the call's end, or before it by `leave`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from sipproxy.engine.actions import Holder, HoldSlot, Slot, new_holder, new_release, new_slot, new_take
from sipproxy.engine.dialogs import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from policy.model import Profile
    from sipproxy.engine.call import Call
    from sipproxy.engine.state import Desk

__all__ = ["Channels", "Grant", "line_slot", "slots_of_forwarding", "trunk_slot"]


class Grant(NamedTuple):
    """The answer to `ask`. `used` counts the owner's slots and `of_account` those of the account, with this one if granted.

    `refusal` is "" when it was granted, else what was full, or `away`: the store did not answer, and without it nothing is
    admitted.
    """

    refusal: Literal["", "full", "account", "away"]
    used: int
    of_account: int


_grant: Callable[[tuple[Literal[""], int, int]], Grant] = partial(tuple.__new__, Grant)  # as those of `actions`


@dataclass(slots=True)
class _Asked:
    call: Call
    slot: Slot
    holder: Holder
    limit: int
    account_limit: int | None
    done: Callable[[Grant], None]


def line_slot(call: Call, line: str) -> Slot:
    """The call's slot of a line."""
    return new_slot(("line", line, call.id))


def trunk_slot(call: Call, route: str, *, incoming: bool = False) -> Slot:
    """The call's slot of a trunk route: a call that comes by a route and leaves by it again has two."""
    return new_slot(("trunk", route, f"{call.id}:in" if incoming else call.id))


def slots_of_forwarding(profile: Profile) -> int:
    """How many slots of the forwarding line the outgoing half of a forwarded call takes, beside the one of the incoming half.

    0: the call goes on with the slot that it has. 1: the part asks for one before its INVITE goes anywhere.
    """
    return min(1, max(0, profile.forwarding_slots))


class Channels:
    """What every call of the node holds, and what was asked for."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        # By kind, owner and member, which are texts that are there already.
        self._held: dict[Literal["line", "trunk"], dict[str, dict[str, Holder]]] = {"line": {}, "trunk": {}}
        self._asked: dict[Slot, _Asked] = {}
        self._limited = frozenset(route.name for route in desk.settings.trunks if route.calls)

    # Asking

    def ask(
        self,
        call: Call,
        slot: Slot,
        done: Callable[[Grant], None],
        *,
        limit: int,
        account: str = "",
        account_limit: int | None = None,
    ) -> None:
        """Ask for a slot; `done` is told once, unless the call ends before, and at once when the call has waited long enough.

        What is granted is the call's from then on. What is refused, or comes for a call that has ended, is given back here.
        """
        desk = self._desk
        if slot in call.slots:
            done(Grant("", self.held(slot.kind, slot.owner), self.held_by(slot.owner, account)))
            return
        holder = new_holder((desk.settings.node, desk.now.utc_ms, account, call.record.direction))
        asked = _Asked(call, slot, holder, limit, account_limit, done)
        if call.store_wait_s <= 0:
            grant = self._alone(asked)
            if not grant.refusal:
                desk.out.append(HoldSlot(slot, holder))
            self._settle(asked, grant)
            return
        self._asked[slot] = asked
        desk.out.append(new_take((slot, holder, limit, account_limit, call.store_wait_s)))

    def result(self, slot: Slot, *, taken: bool | None, used: int, of_account: int, waited_s: float) -> None:
        """The answer to a `TakeSlot`: granted, refused, or (None) the store did not say in time (design §8).

        `waited_s` is for how long the store was waited for.
        """
        desk = self._desk
        asked = self._asked.pop(slot, None)
        if asked is None or asked.call.phase is Phase.ENDED:
            desk.out.append(new_release((slot,)))
            return
        asked.call.store_wait_s -= waited_s
        if taken is None:
            grant = self._alone(asked)
            if not grant.refusal:
                # The take may still be refused when it is executed, and the store would not know of the call.
                desk.out.append(HoldSlot(slot, asked.holder))
        elif taken:
            grant = self._checked(asked, used, of_account)
        else:
            grant = Grant("full" if used >= asked.limit else "account", used, of_account)
        if grant.refusal:
            desk.out.append(new_release((slot,)))  # a take whose reply was late or lost may have run
        self._settle(asked, grant)

    def _checked(self, asked: _Asked, used: int, of_account: int) -> Grant:
        """What the store grants, unless this node's own calls fill the limit already.

        A store that counts fewer than this node holds has not heard of calls that were let in without it, was flushed, or is
        an old copy: it is told of them again at once, so that no other node is granted what they have (design §8).
        """
        slot = asked.slot
        if used <= self.held(slot.kind, slot.owner):
            self._desk.count("slots_forgotten", slot.kind)
            kind, owner, _ = slot
            of_owner = self._held[kind][owner]
            self._desk.out += [HoldSlot(new_slot((kind, owner, member)), holder) for member, holder in of_owner.items()]
        return self._full_here(asked) or _grant(("", used, of_account))

    def _alone(self, asked: _Asked) -> Grant:
        """Decide without the store, from what this node's calls hold."""
        slot, way = asked.slot, self._desk.settings.slots
        self._desk.count("slots_undecided", way)
        used, of_account = self.held(slot.kind, slot.owner), self.held_by(slot.owner, asked.holder.account)
        if way == "refuse" and slot.kind == "line":
            return Grant("away", used, of_account)
        return self._full_here(asked) or Grant("", used + 1, of_account + 1)

    def _full_here(self, asked: _Asked) -> Grant | None:
        """The refusal, when this node's own calls hold all that there is."""
        slot = asked.slot
        used = self.held(slot.kind, slot.owner)
        if used < asked.limit and asked.account_limit is None:
            return None
        of_account = self.held_by(slot.owner, asked.holder.account)
        if used >= asked.limit:
            return Grant("full", used, of_account)
        if asked.account_limit is not None and of_account >= asked.account_limit:
            return Grant("account", used, of_account)
        return None

    def _settle(self, asked: _Asked, grant: Grant) -> None:
        slot = asked.slot
        if grant.refusal:
            what = "account" if grant.refusal == "account" else slot.kind
            self._desk.count("slots_refused", "store" if grant.refusal == "away" else what)
        else:
            self.hold(asked.call, slot, asked.holder)
        asked.done(grant)

    # Holding

    def hold(self, call: Call, slot: Slot, holder: Holder) -> None:
        """Count the slot as the call's from now on."""
        if slot not in call.slots:
            call.slots += (slot,)
        kind, owner, member = slot
        self._held[kind].setdefault(owner, {})[member] = holder

    def occupy(self, call: Call, slot: Slot) -> None:
        """Hold a slot that nobody was asked for, because the call is there whatever the limit says."""
        desk = self._desk
        if slot in call.slots:
            return
        holder = new_holder((desk.settings.node, desk.now.utc_ms, "", call.record.direction))
        self.hold(call, slot, holder)
        if self._is_leased(slot.kind, slot.owner):
            desk.out.append(HoldSlot(slot, holder))

    def leave(self, call: Call, slot: Slot) -> None:
        """Give one of the call's slots back. Harmless when it has none such."""
        if slot not in call.slots:
            return
        call.slots = tuple([held for held in call.slots if held != slot])
        self._free(slot)

    def give_back(self, call: Call) -> None:
        """The call is over: nothing is its any more."""
        slots, call.slots = call.slots, ()
        for slot in slots:
            self._free(slot)

    def _free(self, slot: Slot) -> None:
        kind, owner, member = slot
        of_owner = self._held[kind][owner]
        del of_owner[member]
        if not of_owner:
            del self._held[kind][owner]
        if self._is_leased(kind, owner):
            self._desk.out.append(new_release((slot,)))

    def _is_leased(self, kind: str, owner: str) -> bool:
        """Whether the store counts it: routes without a limit are counted for show, by each node for itself."""
        return kind == "line" or owner in self._limited

    # What is held here

    def holder(self, slot: Slot) -> Holder:
        """Who has the slot, which a call of this node holds."""
        kind, owner, member = slot
        return self._held[kind][owner][member]

    def held(self, kind: Literal["line", "trunk"], owner: str) -> int:
        """How many slots of a line or trunk route this node's calls hold."""
        return len(self._held[kind].get(owner, ()))

    def held_by(self, line: str, account: str) -> int:
        """How many of a line's slots this node's calls of one account hold."""
        held = self._held["line"].get(line)
        return len([None for holder in held.values() if holder.account == account]) if held else 0

    def count(self) -> dict[str, int]:
        """How many slots this node's calls hold, by kind."""
        return {kind: sum(map(len, owners.values())) for kind, owners in self._held.items()}

    def leases(self, part: int = 0, parts: int = 1) -> list[tuple[Slot, Holder]]:
        """Every slot that the store counts, with its holder; or of so many parts one, which an owner's slots stay in."""
        return [
            (new_slot((kind, owner, member)), holder)
            for kind, owners in self._held.items()
            for owner, held in owners.items()
            if hash(owner) % parts == part and self._is_leased(kind, owner)
            for member, holder in held.items()
        ]
