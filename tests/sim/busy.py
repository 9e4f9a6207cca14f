"""A node that needs time for what comes, on the virtual network: what it cannot look at at once waits in a backlog.

Its machine is some ten times as slow as a real one. Refusing costs it an eighth of what other messages do, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sipproxy.engine.backlog import Backlog
from sipproxy.engine.settings import Rates
from sipproxy.engine.shed import Signals
from sipproxy.sip.flow import Flow
from tests.sim.agent import Agent
from tests.sim.conftest import PSAP, TRUNK_A, town_snapshot
from tests.sim.world import PROXY, World, trunk

if TYPE_CHECKING:
    from tests.sim.agent import AgentCall
    from tests.sim.world import Address

__all__ = ["CAPACITY", "MESSAGE_S", "BusyWorld", "Goodput", "goodput_at"]

MESSAGE_S, REFUSAL_S, READ_S = 0.004, 0.0005, 0.00025  # the last is a part of both
PASSED_S = READ_S / 2  # for a new call that finds no room
CAPACITY = 1 / (8 * MESSAGE_S)  # calls a second: two INVITEs, the ACK of the 407, 180, 200 and its ACK, BYE and its 200
HOLD_S, PATIENCE_S = 1.0, 4.0
OBSERVE_S = 0.1
HELP_EVERY = 50  # one call of so many is for help
PLENTY = 10_000_000
GENEROUS = Rates(
    source_per_s=PLENTY, source_burst=PLENTY, line_per_s=PLENTY, line_burst=PLENTY, registers_per_s=PLENTY,
    registers_burst=PLENTY, credit_bytes=PLENTY,
)  # fmt: skip


class BusyWorld(World):
    """Looks at one message at a time. `busy_s` is the time that it spent on messages so far, `waits` are the longest waits."""

    def __init__(self) -> None:
        super().__init__(town_snapshot(channels=1000), trunks=(trunk("carrier-a", TRUNK_A),), rates=GENEROUS)
        self.backlog = Backlog(self.engine.shedder)
        self.busy_s = 0.0
        self.waits: dict[bytes, float] = {}  # by method, "SIP/2.0" or "help"
        self._is_busy = False
        self._reading_s = 0.0  # that it read since it last looked at a message
        self._waited_s = 0.0
        self.after(OBSERVE_S, self._observe)

    def _observe(self) -> None:
        waited_s, self._waited_s = self._waited_s, 0.0
        self.perform(self.engine.observe(Signals(0.0, 0, waited_s), self.instant))
        self.after(OBSERVE_S, self._observe)

    def _deliver(self, data: bytes, source: Address, to: Address) -> None:
        if to != PROXY:
            super()._deliver(data, source, to)
            return
        if self.backlog.waiting:  # as sipproxy.net.udp reads ahead
            self.backlog.make_room(self.now)
            if self.backlog.passes_over(data):
                self._reading_s += PASSED_S
                return
        self.backlog.put(data, Flow("UDP", 0, *source), self.now)
        self._reading_s += READ_S
        if not self._is_busy:
            self._is_busy = True
            self._look()

    def _look(self) -> None:
        one = self.backlog.take()
        if one is None:
            self._is_busy = False
            return
        waited_s, shedder = self.now - one.at, self.engine.shedder
        self._waited_s = max(self._waited_s, waited_s)
        what = b"help" if b":112@" in one.data else one.data.split(b" ", 1)[0]
        self.waits[what] = max(self.waits.get(what, 0.0), waited_s)
        refused = shedder.counts.total()
        self.perform(self.engine.receive(one.data, one.flow, self.instant, waited_s, one.kind))
        cost = self._reading_s + (REFUSAL_S if shedder.counts.total() > refused else MESSAGE_S - READ_S)
        self._reading_s = 0.0
        self.busy_s += cost
        self.after(cost, self._look)


@dataclass(frozen=True, slots=True)
class Goodput:
    """What became of the calls that arrived within `seconds`."""

    seconds: float
    calls: list[AgentCall]
    helps: list[AgentCall]
    world: BusyWorld
    busy_share: float
    setup_s: list[float]  # of those that were answered
    in_time: dict[AgentCall, float]  # of these those that were answered in time, and when
    until: float  # calls arrived

    @property
    def per_s(self) -> float:
        """Calls a second that went well: answered in time, and ended by who wanted to, also after those seconds."""
        return sum(call.status == 200 and call.ended == "local" for call in self.in_time) / self.seconds

    @property
    def answered_per_s(self) -> float:
        """Calls a second that were answered in time while calls arrived."""
        return sum(at <= self.until for at in self.in_time.values()) / self.seconds


def goodput_at(factor: float, *, seconds: float) -> Goodput:
    """So many times the capacity arrive for so long."""
    world = BusyWorld()
    alice, carrier, psap = Agent(world, ("203.0.113.1", 5060), "alice"), Agent(world, TRUNK_A), Agent(world, PSAP)
    alice.register()
    world.run(2.0)
    assert alice.registered == 200
    carrier.behave = lambda call: carrier.ring_then_answer(call, 0.0, 0.0)
    psap.behave = lambda call: psap.ring_then_answer(call, 0.0, 0.0)
    calls: list[AgentCall] = []
    helps: list[AgentCall] = []
    setup_s: list[float] = []
    in_time: dict[AgentCall, float] = {}

    def place(number: int) -> None:
        is_help = number % HELP_EVERY == 0
        call, began = alice.call(b"112" if is_help else b"06924001122"), world.now
        (helps if is_help else calls).append(call)

        def answered() -> None:
            setup_s.append(world.now - began)
            if setup_s[-1] <= PATIENCE_S:
                in_time[call] = world.now
                world.after(HOLD_S, lambda: alice.bye(call))
            else:  # he has gone
                alice.bye(call)

        call.on_answer = answered

    rate, busy, end = factor * CAPACITY, world.busy_s, world.now + seconds
    for number in range(round(rate * seconds)):
        world.after(number / rate, lambda number=number: place(number))  # type: ignore[misc]
    world.run(seconds)
    share = (world.busy_s - busy) / seconds
    world.run(45.0)
    return Goodput(seconds, calls, helps, world, share, setup_s, in_time, end)
