"""A network on a virtual clock: engines, user agents and a store of slots, without sockets, tasks or real time.

What is simulated is the wire (delay, loss, duplication, reordering by a seeded generator), the slot store of design §6 and the
user agents. The engine is the real one, whole.
"""

from __future__ import annotations

import heapq
import ipaddress
import random
from typing import TYPE_CHECKING, Any

from cdr.facts import Admit, Answer, End, Fact, Record
from policy.build import snapshot_of
from policy.model import Account, AccountKind, BlockRule, Line, LineStatus, PsapRoute, Snapshot
from policy.profiles import load as load_profiles
from sipproxy.engine.actions import (
    Action,
    Holder,
    HoldSlot,
    Journal,
    KeepTrace,
    Note,
    Now,
    ReleaseSlot,
    RemoveBinding,
    SaveBinding,
    SendTo,
    Slot,
    TakeSlot,
)
from sipproxy.engine.core import Engine
from sipproxy.engine.edge import with_token
from sipproxy.engine.settings import Listener, Rates, Settings, TrunkRoute
from sipproxy.sip.digest import ha1
from sipproxy.sip.flow import Flow, Hop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sipproxy.engine.structs import Binding, MaliciousCall

REALM = "sip.test"
PROXY = ("192.0.2.1", 5060)
LEASE_S, REFRESH_S = 90.0, 30.0
EPOCH_MS = 1_790_000_000_000
Address = tuple[str, int]


class SlotStore:
    """The leases as the script in the store keeps them, by owner: a line's id, or "trunk:" and a route's name."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[str, float]] = {}
        self.holders: dict[Slot, Holder] = {}

    def take(self, action: TakeSlot, now: float, lease: float) -> tuple[bool, int, int]:
        slot = action.slot
        held = self.lines.setdefault(owner_of(slot), {})
        for gone in [c for c, at in held.items() if at <= now]:
            del held[gone]
            self.holders.pop(slot._replace(member=gone), None)
        used, of_account = len(held), self._of_account(action)
        if slot.member in held:
            held[slot.member] = now + lease
            return True, used, of_account
        if used >= action.limit or (action.account_limit is not None and of_account >= action.account_limit):
            return False, used, of_account
        self.hold(slot, action.holder, now + lease)
        assert len(held) <= action.limit, "over-admission"
        return True, used + 1, of_account + 1

    def _of_account(self, action: TakeSlot) -> int:
        slot = action.slot
        same = (self.holders.get(slot._replace(member=member)) for member in self.lines[owner_of(slot)])
        return sum(holder is not None and holder.account == action.holder.account for holder in same)

    def hold(self, slot: Slot, holder: Holder, until: float) -> None:
        self.lines.setdefault(owner_of(slot), {})[slot.member] = until
        self.holders[slot] = holder

    def release(self, slot: Slot) -> None:
        self.lines.get(owner_of(slot), {}).pop(slot.member, None)
        self.holders.pop(slot, None)

    def all(self) -> set[tuple[str, str]]:
        return {(owner, member) for owner, held in self.lines.items() for member in held}


def owner_of(slot: Slot) -> str:
    return slot.owner if slot.kind == "line" else f"{slot.kind}:{slot.owner}"


class World:
    """One engine and its surroundings. `facts` is what the journal got, `notes` what the log got."""

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        seed: int = 1,
        trunks: tuple[TrunkRoute, ...] = (),
        delay: tuple[float, float] = (0.005, 0.02),
        loss: float = 0.0,
        duplicate: float = 0.0,
        **overrides: object,
    ) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.epoch_ms = EPOCH_MS  # what the wall clock said at 0; a test sets it
        self._events: list[tuple[float, int, Callable[[], None]]] = []  # when, in which order, what
        self._order = 0
        self.delay, self.loss, self.duplicate = delay, loss, duplicate
        self.agents: dict[Address, Callable[[bytes, Address], None]] = {}
        self.streams: set[Address] = set()  # who speaks TCP, by our listener 1
        self.store = SlotStore()
        self.store_answers = True  # False: no answer within the deadline
        self.store_delay = 0.001
        self.store_deadline = 0.25
        self.facts: list[Fact] = []
        self.notes: list[Note] = []
        self.traces: list[MaliciousCall] = []
        self.wire: list[tuple[float, Address, Address, bytes]] = []
        self.bindings: dict[tuple[str, str], Binding] = {}
        self._armed: float | None = None
        hosts = frozenset([PROXY, (REALM, 5060)])
        # What parties here send is shorter than what routers send, and so are the answers that they may have.
        overrides.setdefault("rates", Rates(credit_bytes=1_000_000_000))
        self.settings = Settings(
            node="n1",
            realm=REALM,
            domains=frozenset([REALM]),
            listeners=(Listener(0, "UDP", b"192.0.2.1:5060", hosts),),
            trunks=trunks,
            **overrides,  # type: ignore[arg-type]
        )
        self.engine = Engine(self.settings, snapshot, new_token=self.random.randbytes, key=b"k" * 32)
        self.after(REFRESH_S, self._refresh)

    # Time

    def at(self, at: float, run: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (at, self._order, run))

    def after(self, seconds: float, run: Callable[[], None]) -> None:
        self.at(self.now + seconds, run)

    def run(self, seconds: float) -> None:
        """Let `seconds` pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, run = heapq.heappop(self._events)
            run()
        self.now = end

    def run_until(self, condition: Callable[[], bool], bound: float = 60.0) -> None:
        end = self.now + bound
        while not condition():
            assert self._events, "nothing will happen any more"
            assert self._events[0][0] <= end, "the condition was not reached in time"
            self.now, _, run = heapq.heappop(self._events)
            run()

    @property
    def instant(self) -> Now:
        return Now(self.now, self.epoch_ms + round(self.now * 1000))

    def _refresh(self) -> None:
        if self.store_answers:
            self.reassert()
        self.after(REFRESH_S, self._refresh)

    def reassert(self) -> None:
        """What the node does every now and then, and when the store is back."""
        for slot, holder in self.engine.channels.leases():
            self.store.hold(slot, holder, self.now + LEASE_S)

    # The wire

    def send(self, data: bytes, source: Address, to: Address) -> None:
        self.wire.append((self.now, source, to, data))
        if self.loss and self.random.random() < self.loss:
            return
        for _ in range(2 if self.duplicate and self.random.random() < self.duplicate else 1):
            self.after(self.random.uniform(*self.delay), lambda: self._deliver(data, source, to))

    def _deliver(self, data: bytes, source: Address, to: Address) -> None:
        if to == PROXY:
            flow = Flow("TCP", 1, *source, 1) if source in self.streams else Flow("UDP", 0, *source)
            self.perform(self.engine.receive(data, flow, self.instant))
        elif to in self.agents:
            self.agents[to](data, source)

    # The shell's part

    def perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, SendTo):
                target = action.target
                port = target.port or 5060 if isinstance(target, Hop) else target.port
                self.send(action.data, PROXY, (target.host, port))
            elif isinstance(action, TakeSlot):
                self._take(action)
            elif isinstance(action, ReleaseSlot):
                if self.store_answers:
                    self.store.release(action.slot)
            elif isinstance(action, HoldSlot):
                if self.store_answers:
                    self.store.hold(action.slot, action.holder, self.now + LEASE_S)
            elif isinstance(action, Journal):
                self.facts.append(action.fact)
            elif isinstance(action, SaveBinding):
                tokens = self.engine.desk.tokens
                self.bindings[action.user, action.binding.key] = with_token(tokens, action.user, action.binding)
            elif isinstance(action, RemoveBinding):
                self.bindings.pop((action.user, action.key), None)
            elif isinstance(action, KeepTrace):
                self.traces.append(action.record)
            else:
                self.notes.append(action)
        self._arm()

    def _take(self, action: TakeSlot) -> None:
        def answer() -> None:
            taken, used, of_account = self.store.take(action, self.now, LEASE_S)
            self._slot_result(action, taken=taken, used=used, of_account=of_account, waited_s=self.store_delay)

        def late() -> None:
            self.store.take(action, self.now, LEASE_S)

        def silence() -> None:
            self._slot_result(action, taken=None, used=0, waited_s=action.wait_s)

        if self.store_answers:
            in_time = self.store_delay < action.wait_s
            self.after(self.store_delay, answer if in_time else late)
            if not in_time:
                self.after(action.wait_s, silence)
        else:
            self.after(min(self.store_deadline, action.wait_s), silence)

    def _slot_result(self, action: TakeSlot, **answer: Any) -> None:
        self.perform(self.engine.slot_result(action.slot, **answer, now=self.instant))

    def _arm(self) -> None:
        at = self.engine.next_at
        if at is not None and (self._armed is None or at < self._armed):
            self._armed = at
            self.at(max(at, self.now), lambda: self._fire(at))

    def _fire(self, at: float) -> None:
        if at != self._armed:
            return  # an earlier deadline came up since, and whoever ran for it armed anew
        self._armed = None
        self.perform(self.engine.fire(self.instant))

    # What came of it

    @property
    def records(self) -> list[Record]:
        return [fact.record for fact in self.facts if isinstance(fact, End)]

    @property
    def admitted(self) -> list[Record]:
        return [fact.record for fact in self.facts if isinstance(fact, Admit)]

    @property
    def answers(self) -> list[Answer]:
        return [fact for fact in self.facts if isinstance(fact, Answer)]

    def live_slots(self) -> set[tuple[str, str]]:
        return {(owner_of(slot), slot.member) for slot, _ in self.engine.channels.leases()}


def trunk(name: str, address: Address, priority: int = 0) -> TrunkRoute:
    network = ipaddress.ip_network(address[0])
    return TrunkRoute(name, Hop("UDP", *address), ((network, 0),), priority)


def account(user: str, line: str, *numbers: str, kind: AccountKind = AccountKind.SINGLE) -> Account:
    """An account whose password is its user name backwards."""
    hashes = {a: ha1(a, user, REALM, user[::-1]) for a in ("MD5", "SHA-256")}
    return Account(user, line, kind, hashes, numbers)


def line(name: str, *accounts: str, profile: str = "badnauheim", **fields: object) -> Line:
    given: dict[str, object] = {
        "status": LineStatus.ACTIVE,
        "channels": None,
        "location": "friedberg",
        "area_code": "06032",
        **fields,
    }
    return Line(id=name, profile=profile, accounts=accounts, **given)  # type: ignore[arg-type]


def snapshot(
    lines: Iterable[Line],
    accounts: Iterable[Account],
    *,
    psap: Iterable[PsapRoute] = (),
    blocks: Iterable[BlockRule] = (),
    version: int = 7,
) -> Snapshot:
    return snapshot_of(version, lines, accounts, load_profiles(), psap, blocks)
