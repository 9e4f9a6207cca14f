"""A second node beside the one of a world, on the same wire and the same store: its own engine, journal and death."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sipproxy.engine.actions import HoldSlot, Journal, ReleaseSlot, RemoveBinding, SaveBinding, SendTo, TakeSlot
from sipproxy.engine.core import Engine
from sipproxy.engine.edge import with_token
from sipproxy.engine.peers import Peer
from sipproxy.engine.settings import Listener
from sipproxy.sip.flow import Flow, Hop
from tests.sim.world import LEASE_S, PROXY, REALM, Address, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cdr.facts import Fact
    from sipproxy.engine.actions import Action
    from sipproxy.engine.structs import Binding

SECOND = ("192.0.2.2", 5060)
LAG_S = 0.05  # of replication


@dataclass
class Second:
    """Node `n2`. What either node registers reaches the other after a moment, as by the log in the store."""

    world: World
    address: Address = SECOND
    facts: list[Fact] = field(default_factory=list)
    alive: bool = True
    replicates: bool = True
    engine: Engine = field(init=False)
    _armed: float | None = None
    _first: Callable[[Iterable[Action]], None] = field(init=False)

    def __post_init__(self) -> None:
        world = self.world
        self.engine = self._make()
        world.agents[self.address] = self._deliver
        self._first = world.perform
        world.perform = self._perform_first  # type: ignore[method-assign]
        for engine in (world.engine, self.engine):
            engine.peers_seen(self.peers)

    @property
    def peers(self) -> list[Peer]:
        """What the heartbeats of both nodes tell."""
        nodes = (("n1", PROXY), ("n2", self.address))
        return [Peer(node, (Hop("UDP", *address),), frozenset([address[0]])) for node, address in nodes]

    def _make(self) -> Engine:
        world, (host, port) = self.world, self.address
        listener = Listener(0, "UDP", f"{host}:{port}".encode(), frozenset([self.address, (REALM, 5060)]))
        settings = replace(world.settings, node="n2", listeners=(listener,))
        snapshot = world.engine.desk.snapshot
        return Engine(settings, snapshot, new_token=world.random.randbytes, key=b"2" * 32)

    def kill(self) -> None:
        """The node dies: what comes to it is lost."""
        self.alive = False

    def start(self) -> None:
        """It is started again without a call of its own, and reads the bindings that the store has."""
        self.alive = True
        self.engine, self._armed = self._make(), None
        self.engine.peers_seen(self.peers)
        kept = [(user, binding) for (user, _), binding in self.world.bindings.items()]
        self.perform(self.engine.bindings_read(kept, self.world.instant, own_too=True))

    # The shell's part

    def _deliver(self, data: bytes, source: Address) -> None:
        if self.alive:
            self.perform(self.engine.receive(data, Flow("UDP", 0, *source), self.world.instant))

    def _perform_first(self, actions: Iterable[Action]) -> None:
        told = list(actions)
        self._first(told)
        self._replicate(told, self.world.engine, lambda: self if self.alive else None)

    def _replicate(self, actions: list[Action], by: Engine, to: Callable[[], Second | World | None]) -> None:
        if self.replicates:
            for action in actions:
                if isinstance(action, SaveBinding):
                    told = SaveBinding(action.user, with_token(by.desk.tokens, *action))
                    self.world.after(LAG_S, lambda action=told: self._apply(action, to()))  # type: ignore[misc]
                elif isinstance(action, RemoveBinding):
                    self.world.after(LAG_S, lambda action=action: self._apply(action, to()))  # type: ignore[misc]

    def _apply(self, action: SaveBinding | RemoveBinding, to: Second | World | None) -> None:
        if to is None:
            return
        now = self.world.instant
        if isinstance(action, SaveBinding):
            to.perform(to.engine.binding_seen(action.user, action.binding, now))
        else:
            to.perform(to.engine.binding_gone(action.user, action.key, now.utc_ms, now))

    def perform(self, actions: Iterable[Action]) -> None:
        world, told = self.world, list(actions)
        for action in told:
            if isinstance(action, SendTo):
                target = action.target
                port = target.port or 5060 if isinstance(target, Hop) else target.port
                world.send(action.data, self.address, (target.host, port))
            elif isinstance(action, TakeSlot):
                world.after(0.001, lambda action=action: self._take(action))  # type: ignore[misc]
            elif isinstance(action, ReleaseSlot):
                world.store.release(action.slot)
            elif isinstance(action, HoldSlot):
                world.store.hold(action.slot, action.holder, world.now + LEASE_S)
            elif isinstance(action, Journal):
                self.facts.append(action.fact)
            elif isinstance(action, SaveBinding):
                self._save(action.user, action.binding)
            elif isinstance(action, RemoveBinding):
                world.bindings.pop((action.user, action.key), None)
        self._replicate(told, self.engine, lambda: world)
        self._arm()

    def _save(self, user: str, binding: Binding) -> None:
        self.world.bindings[user, binding.key] = with_token(self.engine.desk.tokens, user, binding)

    def _take(self, action: TakeSlot) -> None:
        world = self.world
        taken, used, of_account = world.store.take(action, world.now, LEASE_S)
        actions = self.engine.slot_result(action.slot, taken=taken, used=used, of_account=of_account, now=world.instant)
        self.perform(actions)

    def _arm(self) -> None:
        at, world = self.engine.next_at, self.world
        if at is not None and (self._armed is None or at < self._armed):
            self._armed = at
            engine = self.engine
            world.at(max(at, world.now), lambda: self._fire(engine))

    def _fire(self, engine: Engine) -> None:
        if engine is self.engine and self.alive:
            self._armed = None
            self.perform(engine.fire(self.world.instant))
