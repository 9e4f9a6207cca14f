"""The world of the mix: one node on the virtual network with a real journal, a store that fails, and kills at any action.

The store behaves as Redis behind `store.slots`: commands are executed in order, also those that a stopped server finds when it
goes on; releases and refreshes wait in the process while it is away, and die with it.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from cdr.facts import Admit, Alive, Answer, Record
from cdr.journal import Journal as CallJournal
from sipproxy import lifecycle
from sipproxy.engine.actions import HoldSlot, Journal, ReleaseSlot, RemoveBinding, SaveBinding, SendTo, TakeSlot
from sipproxy.engine.core import Engine
from sipproxy.engine.edge import with_token
from sipproxy.sip.flow import Flow, Hop
from tests.sim.mix.endpoint import call_id_of
from tests.sim.mix.truth import Ledger
from tests.sim.world import LEASE_S, PROXY, REFRESH_S, SlotStore, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from policy.model import Snapshot
    from sipproxy.engine.actions import Action, Holder, Slot
    from sipproxy.engine.recover import Ended, Unfinished
    from sipproxy.store.slots import Slots
    from tests.sim.mix.party import Part, Party
    from tests.sim.mix.plan import Plan
    from tests.sim.world import Address

__all__ = ["MixWorld", "Server"]

DEADLINE_S = 0.25
LISTENED_S = 100.0  # that an emergency centre waits for a caller who has fallen silent


class Server:
    """The store's own side. It survives the node."""

    def __init__(self, world: MixWorld) -> None:
        self._world = world
        self.slots = SlotStore()
        self.stopped: list[Callable[[], None]] | None = None  # commands that wait for a stopped server

    def run(self, command: Callable[[], None]) -> None:
        if self.stopped is None:
            command()
        else:
            self.stopped.append(command)

    def take(self, action: TakeSlot) -> tuple[bool, int, int]:
        return self.slots.take(action, self._world.now, LEASE_S)

    def hold(self, slot: Slot, holder: Holder) -> None:
        self.slots.hold(slot, holder, self._world.now + LEASE_S)

    def all(self) -> set[tuple[str, str]]:
        now = self._world.now
        return {(owner, member) for owner, held in self.slots.lines.items() for member, at in held.items() if at > now}


class Client:
    """The node's side of it, as `store.slots` works. It dies with the node."""

    def __init__(self, world: MixWorld) -> None:
        self._world, self._server = world, world.server
        self.away = self._server.stopped is not None
        self.pending = 0
        self.dead = False
        self._waiting: OrderedDict[Slot, Holder | None] = OrderedDict()  # None: release

    def take(self, action: TakeSlot) -> None:
        world, server = self._world, self._server
        self._waiting.pop(action.slot, None)
        self.pending += 1
        done: list[bool] = []

        def finish(taken: bool | None, used: int, of_account: int) -> None:
            if not done and not self.dead:
                done.append(True)
                self.pending -= 1
                world.slot_result(action, taken=taken, used=used, of_account=of_account)

        def execute() -> None:
            answer = server.take(action)
            if not world.replies_lost:
                finish(*answer)

        def overdue() -> None:
            if not done and not self.dead:
                self.away |= server.stopped is not None
                finish(None, 0, 0)

        if self.away:
            world.after(0.0, overdue)
            return
        world.after(0.001, lambda: server.run(execute))
        world.after(min(DEADLINE_S, action.wait_s), overdue)

    def release(self, slot: Slot) -> None:
        self._wish(slot, None)

    def refresh(self, leases: Iterable[tuple[Slot, Holder]], lease_ms: int = 0) -> None:
        for slot, holder in leases:
            self._wish(slot, holder)

    def _wish(self, slot: Slot, holder: Holder | None) -> None:
        self._waiting.pop(slot, None)
        if self.away:
            self._waiting[slot] = holder
        elif holder is not None:
            self._server.run(lambda: self._server.hold(slot, holder))
        else:
            self._server.run(lambda: self._server.slots.release(slot))

    def back(self) -> None:
        """The server answers again: what waited goes out, and live calls are re-asserted (`app._on_store_state`)."""
        self.away = False
        waiting, self._waiting = self._waiting, OrderedDict()
        for slot, holder in waiting.items():
            self._wish(slot, holder)
        self.refresh(self._world.engine.channels.leases())


class _Nobody:
    """In the engine's place while the node is away."""

    next_at = None

    class channels:  # noqa: N801  the engine's attribute
        @staticmethod
        def leases() -> list[tuple[Slot, Holder]]:
            return []

    def receive(self, *_: object) -> list[Action]:
        return []

    fire = receive


class _Lost(list[object]):
    """The wire of `World` is kept by call here."""

    def append(self, _: object, /) -> None:
        pass


class MixWorld(World):
    """See the module. `records` are what a publisher read from the journal and confirmed, in order."""

    def __init__(self, snapshot: Snapshot, directory: Path, *, segment_bytes: int, **options: object) -> None:
        super().__init__(snapshot, **options)  # type: ignore[arg-type]
        self.plans: dict[bytes, Plan] = {}
        self.ledger = Ledger({(route.hop.host, route.hop.port): route.name for route in self.settings.trunks})
        self.server = Server(self)
        self.link = Client(self)
        self.replies_lost = False
        self.call_ids: dict[str, bytes] = {}
        self.in_flight = 0
        self.kills = self.resumed = self.cut = self.lost = self.sent = 0
        self.killed_at: list[float] = []
        self.published: list[Record] = []
        self.parties: list[Party] = []
        self.quiet_points = 0
        self.on_quiet: Callable[[], None] | None = None
        self.wire = _Lost()  # type: ignore[assignment]
        self._snapshot = snapshot
        self._directory, self._segment_bytes = directory, segment_bytes
        self.keeps_ended = segment_bytes > 1024 * 1024  # else an ended call's facts are removed at once
        self.journal = self._open()
        self.journal.recover()
        self._left = 0  # actions until the node is killed, 0 for never
        self._on_kill: Callable[[], None] | None = None
        self._handled: set[bytes] = set()

    def _open(self) -> CallJournal:
        return CallJournal(self._directory, node="n1", segment_bytes=self._segment_bytes, fsync_interval_ms=500)

    def _refresh(self) -> None:
        if not self.is_away and hasattr(self, "link"):
            self.link.refresh(self.engine.channels.leases())
            self.publish()
        self.after(REFRESH_S, self._refresh)

    def publish(self) -> None:
        """What the publisher does: read what is not confirmed yet, and confirm it."""
        found = list(self.journal.records_from(self.journal.confirmed_seq + 1))
        if found:
            self.published += found
            self.journal.confirm(found[-1].seq)

    # The wire

    def send(self, data: bytes, source: Address, to: Address) -> None:
        self.sent += 1
        story = self.ledger.stories.get(call_id_of(data))
        if source == PROXY:
            self.ledger.said(data, to, self.now)
        lost = bool(self.loss) and self.random.random() < self.loss
        if story is not None:
            story.ladder.append((self.now, source, "lost" if lost else to, data))
        if lost:
            self.lost += 1
            return
        for _ in range(2 if self.duplicate and self.random.random() < self.duplicate else 1):
            self.in_flight += 1
            self.after(self.random.uniform(*self.delay), lambda: self._deliver(data, source, to))

    def _deliver(self, data: bytes, source: Address, to: Address) -> None:
        self.in_flight -= 1
        if to != PROXY:
            if to in self.agents:
                self.agents[to](data, source)
        elif self.is_away:
            self.ledger.missed(data, self.now)
        else:
            self._handled = {call_id_of(data)}
            at = self.kills
            actions = self.engine.receive(data, Flow("UDP", 0, *source), self.instant)
            self.ledger.heard(data, source, self.now)
            self.perform(actions)
            if self.kills == at:
                self._handled = set()
        if self.on_quiet is not None and not self.in_flight and not self.is_away and not self.link.pending:
            self.on_quiet()

    # The shell's part

    def perform(self, actions: Iterable[Action]) -> None:
        if self.is_away:
            return
        todo = list(actions)
        if 0 < self._left <= len(todo):
            doubtful = self._handled | {_concerns(action, self.call_ids) for action in todo}
            for action in todo[: self._left]:
                self._one(action)
            self._left = 0
            self._die(doubtful - {b""})
            return
        self._left -= len(todo) if self._left else 0
        for action in todo:
            self._one(action)
        self._arm()

    def _one(self, action: Action) -> None:
        if isinstance(action, SendTo):
            target = action.target
            port = target.port or 5060 if isinstance(target, Hop) else target.port
            self.send(action.data, PROXY, (target.host, port))
        elif isinstance(action, TakeSlot):
            self.link.take(action)
        elif isinstance(action, ReleaseSlot):
            self.link.release(action.slot)
        elif isinstance(action, HoldSlot):
            self.link.refresh([(action.slot, action.holder)])
        elif isinstance(action, Journal):
            fact = action.fact
            if isinstance(fact, Admit):
                self.call_ids[fact.record.id] = fact.record.call_id.encode()
            self.journal.append(fact)
        elif isinstance(action, SaveBinding):
            self.bindings[action.user, action.binding.key] = with_token(self.engine.desk.tokens, action.user, action.binding)
        elif isinstance(action, RemoveBinding):
            self.bindings.pop((action.user, action.key), None)

    def slot_result(self, action: TakeSlot, *, taken: bool | None, used: int, of_account: int) -> None:
        self._slot_result(action, taken=taken, used=used, of_account=of_account)

    # Kills

    @property
    def is_away(self) -> bool:
        return isinstance(self.engine, _Nobody)

    def kill_after(self, actions: int, on_kill: Callable[[], None]) -> None:
        """Kill the node after so many more actions; within what an event causes, where that is where they end."""
        self._left, self._on_kill = actions, on_kill

    def _die(self, doubtful: set[bytes]) -> None:
        self.kills += 1
        self.killed_at.append(self.now)
        self.engine = cast("Engine", _Nobody())
        self.link.dead = True
        self.journal.close()
        for call_id, story in self.ledger.stories.items():
            if (current := story.current) is not None and current.lives | (call_id in doubtful):
                what = "killed, handling it" if call_id in doubtful else "killed"
                story.ladder.append((self.now, "the node", what, b""))
        self.ledger.killed(doubtful)
        if self._on_kill is not None:
            self._on_kill()

    def start(self, *, boot: str | None = None) -> None:
        """Start the node on what its journal and its store have."""
        if boot is not None:
            self.settings = replace(self.settings, boot=boot)
        self.journal = self._open()
        found = self.journal.recover()
        self.link = Client(self)
        self.engine = Engine(
            self.settings, self._snapshot, new_token=self.random.randbytes, key=b"k" * 32, next_seq=found.next_seq
        )
        self._armed = None
        kept = [(user, binding) for (user, _), binding in self.bindings.items()]
        self.perform(self.engine.bindings_read(kept, self.instant, own_too=True))
        with contextlib.redirect_stdout(None):  # what the log says of it
            lifecycle.resume(cast("lifecycle.Shell", self), self.journal, found, cast("Slots", self.link))
        self.resumed += self.engine.calls.live
        self.cut += len(found.unfinished) - self.engine.calls.live
        self._arm()

    def recover(self, unfinished: list[Unfinished], ended: list[Ended]) -> None:
        self.perform(self.engine.recover(unfinished, self.instant, ended=ended))

    lease_ms = 10**13  # `resume` reads the wall clock, which is not the one of this world: all that ended did so just now

    def refresh_leases(self) -> None:
        self.link.refresh(self.engine.channels.leases())

    # The store

    def stop_store(self, seconds: float) -> None:
        """It stops for so long, and goes on with what waits for it."""
        if self.server.stopped is not None:
            return
        self.server.stopped = []

        def go_on() -> None:
            waiting, self.server.stopped = self.server.stopped or [], None
            for command in waiting:
                command()
            if self.link.away and not self.link.dead:
                self.link.back()

        self.after(seconds, go_on)

    # The director: what the plan of an established call wants

    def established(self, part: Part) -> None:
        plan = part.plan
        for at, side in plan.renew:
            self.after(at, lambda side=side: self._renew(plan, part, side))
        self.after(plan.talk_s, lambda: self._end(plan, part))

    def _callee(self, part: Part) -> tuple[Part, Party] | None:
        """The other end of an established call, and whose it is."""
        callee = part.plan.callee_parts.get(part.remote_tag)
        if callee is None:
            return None
        return next((callee, party) for party in self.parties if (callee.call_id, callee.local_tag) in party.parts)

    def _renew(self, plan: Plan, part: Part, wanted: str) -> None:
        side, _, how = wanted.partition("_")
        method = b"UPDATE" if how else b"INVITE"
        if side == "caller":
            plan.caller.renew(part, method)
        elif (found := self._callee(part)) is not None:
            found[1].renew(found[0], method)

    def _end(self, plan: Plan, part: Part) -> None:
        verb, _, who = plan.end.rpartition("_")
        found = self._callee(part)
        sides = []
        if who in ("caller", "both"):
            sides.append((plan.caller, part))
        if who in ("callee", "both") and found is not None:
            sides.append((found[1], found[0]))
        if plan.kind == "emergency" and found is not None:
            # Whoever called for help and is not heard any more is not cut off by the node: they hang up in the end.
            self.after(LISTENED_S, lambda: found[1].bye(found[0]))
            self.after(LISTENED_S, lambda: plan.caller.bye(part))
        for party, own in sides:
            {"": party.bye, "lost": party.lose_bye, "gone": party.vanish}[verb](own)


def _concerns(action: Action, call_ids: dict[str, bytes]) -> bytes:
    """The Call-ID that an action is about, b"" for none."""
    if isinstance(action, SendTo):
        return call_id_of(action.data)
    if isinstance(action, Journal):
        fact = action.fact
        if isinstance(fact, Alive | Answer):
            return call_ids.get(fact.id, b"")
        return fact.record.call_id.encode()
    if isinstance(action, TakeSlot | ReleaseSlot | HoldSlot):
        return call_ids.get(action.slot.call, b"")
    return b""
