"""One world of the mix from its seed, and many of them with a table of what came of it."""

from __future__ import annotations

import collections
import random
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from policy.model import BlockRule, PsapRoute
from tests.sim.mix.check import Checker, Difference, census
from tests.sim.mix.party import Party
from tests.sim.mix.plan import Device, Places, draw
from tests.sim.mix.truth import Story
from tests.sim.mix.world import MixWorld
from tests.sim.world import account, line, snapshot, trunk

if TYPE_CHECKING:
    from policy.model import Snapshot

__all__ = ["CALLS_PER_WORLD", "Result", "run_world"]

CALLS_PER_WORLD = 250
TRUNKS = (("198.51.100.1", 5060), ("198.51.100.2", 5060))
PSAP = ("198.51.100.112", 5060)
RELAPSES = 0.5  # of the restarts, where the node relapses
DRAIN_S = 520.0  # the longest bound of the worlds, and what follows it

# Line, profile, area code, place, and its users with the number that each has behind the area code, and how many devices.
LINES: tuple[tuple[str, str, str, str, tuple[tuple[str, str, int], ...]], ...] = (
    ("L1", "badnauheim", "06032", "friedberg", (("alice", "3001", 1), ("andrea", "3002", 1))),
    ("L2", "velbert", "02051", "velbert", (("bob", "4001", 3),)),
    ("L3", "badnauheim", "06032", "friedberg", (("carol", "3003", 1), ("carl", "3004", 2))),
    ("L4", "velbert", "02051", "velbert", (("dora", "4002", 1), ("dirk", "4003", 1))),
    ("L5", "velbert", "02051", "velbert", (("eva", "4004", 2), ("emil", "4005", 1))),
    ("L6", "badnauheim", "06032", "friedberg", (("frank", "3005", 1),)),
)


@dataclass
class Result:
    """What one world, or many, came to."""

    calls: int = 0
    worlds: int = 0
    by_name: collections.Counter[str] = field(default_factory=collections.Counter)
    by_reason: collections.Counter[str] = field(default_factory=collections.Counter)
    by_final: collections.Counter[int] = field(default_factory=collections.Counter)
    differences: list[Difference] = field(default_factory=list)
    errors_ms: list[float] = field(default_factory=list)
    totals: collections.Counter[str] = field(default_factory=collections.Counter)

    def add(self, other: Result) -> None:
        self.calls += other.calls
        self.worlds += other.worlds
        for mine, others in ((self.by_name, other.by_name), (self.by_reason, other.by_reason), (self.totals, other.totals)):
            mine.update(others)
        self.by_final.update(other.by_final)
        self.differences += other.differences
        self.errors_ms += other.errors_ms


ACCOUNT_CHANNELS = {"bob": 2, "dora": 1}
ROUTE_CALLS = 3


def mix_snapshot(*, forwarding_slots: int) -> Snapshot:
    lines, accounts = [], []
    for name, profile, area, place, users in LINES:
        lines.append(line(name, *(user for user, _, _ in users), profile=profile, location=place, area_code=area))
        for user, number, _ in users:
            made = account(user, name, f"+49{area[1:]}{number}")
            accounts.append(replace(made, channels=ACCOUNT_CHANNELS.get(user)))
    psap = [
        PsapRoute(place, service, 1, f"sip:{service}@{PSAP[0]}:{PSAP[1]}")
        for place in ("friedberg", "velbert")
        for service in ("110", "112")
    ]
    made = snapshot(lines, accounts, psap=psap, blocks=[BlockRule("B1", "+4923125999", "test")])
    profiles = {name: replace(profile, forwarding_slots=forwarding_slots) for name, profile in made.profiles.items()}
    return replace(made, profiles=profiles)


def places_of(world: MixWorld, forwarding_slots: int) -> Places:
    """Every party at its address."""
    carriers = [Party(world, address, host=address[0]) for address in TRUNKS]
    psap = Party(world, PSAP)
    customers: list[tuple[Party, str]] = []
    devices: dict[str, Device] = {}
    forked: list[str] = []
    for number, (name, _, area, _, users) in enumerate(LINES, 1):
        for index, (user, digits, count) in enumerate(users):
            for device in range(count):
                party = Party(world, (f"203.0.113.{16 * number + 4 * index + device}", 5060), user)
                customers.append((party, name))
            number_of = b"+49%s%s" % (area[1:].encode(), digits.encode())
            devices[user] = Device(number_of, area.encode() + digits.encode(), name, customers[-1][0].address)
            if count > 1:
                forked.append(user)
    world.parties = [*carriers, psap, *(party for party, _ in customers)]
    return Places(customers, devices, forked, carriers[0], TRUNKS, forwarding_slots)


def run_world(seed: int, calls: int = CALLS_PER_WORLD, *, relapses: bool = False) -> Result:
    """Place so many calls, let them end, and compare. With `relapses` the node often dies again soon after a restart."""
    scratch = Path("/dev/shm")  # memory where there is: what is tried is the journal, not the disk
    with tempfile.TemporaryDirectory(prefix="mix-", dir=scratch if scratch.is_dir() else None) as directory:
        return _World(seed, Path(directory), relapses=relapses).run(calls)


class _World:
    def __init__(self, seed: int, directory: Path, *, relapses: bool) -> None:
        choose = self.choose = random.Random(seed)
        self.seed, self.relapses = seed, relapses
        # A node that starts releases what ended lately once more, from the records that the journal still has: where slots can
        # wait for the store the segments are as long as real ones, else so short that they are removed all the time.
        self.store_fails = choose.random() < 0.5
        forwarding_slots, limits = choose.choice([0, 1]), {}
        routes = [trunk("carrier-a", TRUNKS[0]), trunk("carrier-b", TRUNKS[1], 1)]
        if choose.random() < 0.5:
            routes = [replace(route, calls=ROUTE_CALLS) for route in routes]
            limits = {f"trunk:{route.name}": ROUTE_CALLS for route in routes}
        self.world = MixWorld(
            mix_snapshot(forwarding_slots=forwarding_slots),
            directory,
            segment_bytes=(4096 if self.store_fails else 32) * 1024,
            seed=seed,
            trunks=tuple(routes),
            delay=choose.choice([(0.001, 0.02), (0.001, 0.02), (0.005, 0.1), (0.001, 0.3)]),
            boot="boot-1",
            setup_s=30.0,
            ring_s=choose.choice([20.0, 40.0]),
            maximum_s=200.0,
            reap_s=250.0,
            recovered_reap_s=90.0,
            probe_s=choose.choice([30, 60]),
            session_expires_s=choose.choice([0, 0, 90]),
        )
        self.places = places_of(self.world, forwarding_slots)
        policy = self.world.engine.desk.snapshot
        limits |= ACCOUNT_CHANNELS | {name: policy.channels_of(policy.lines[name]) for name, *_ in LINES}
        self.checker = Checker(self.world, seed, limits)
        self.over = False

    def run(self, calls: int) -> Result:
        world, choose = self.world, self.choose
        for party, _ in self.places.customers:
            party.register()
        world.run(40.0)
        assert all(party.registered == 200 for party, _ in self.places.customers)
        before = census(world.engine)
        world.loss = choose.choice([0.0, 0.01, 0.03, 0.06, 0.1])
        world.duplicate = choose.choice([0.0, 0.02, 0.05])
        world.on_quiet = self.checker.quiet
        if choose.random() < 0.7:
            self._kill_soon()
        if self.store_fails:
            self._store_fails_soon()
        result = Result(calls=calls, worlds=1)
        pace = choose.choice([0.5, 1.5, 3.0])
        for _ in range(calls):
            plan = draw(self.places, choose)
            call_id = b"%x-%d" % (choose.getrandbits(40), self.seed)
            world.plans[call_id] = plan
            story = world.ledger.stories[call_id] = Story(plan, call_id, b"")
            part = plan.caller.call(plan, call_id)
            story.caller_tag = part.local_tag
            result.by_name[plan.name] += 1
            world.run(choose.expovariate(1 / pace))
        self.over = True
        world.run(DRAIN_S)
        self.checker.final(before)
        world.journal.close()
        return self._sum_up(result)

    def _kill_soon(self) -> None:
        """Some time from now, at the n-th action; away for a moment or longer than a transaction lives."""
        world, choose = self.world, self.choose

        def dead() -> None:
            boot = f"boot-{world.kills + 1}" if choose.random() < 0.15 else None
            world.after(choose.choice([0.001, 0.05, 1.0, 5.0, 20.0, 40.0]), lambda: alive(boot))

        def alive(boot: str | None) -> None:
            world.start(boot=boot)
            if self.relapses and choose.random() < RELAPSES:
                world.after(choose.uniform(0.2, 10), arm)  # before it has heard of all the calls that it took up
            else:
                self._kill_soon()

        def arm() -> None:
            if not self.over:
                world.kill_after(choose.randint(1, 40), dead)

        world.after(choose.expovariate(1 / 60), arm)

    def _store_fails_soon(self) -> None:
        world, choose = self.world, self.choose

        def fail() -> None:
            if self.over:
                return
            if choose.random() < 0.8:
                world.stop_store(choose.choice([0.1, 0.3, 2.0, 20.0, 100.0]))
            else:
                world.replies_lost = True
                world.after(choose.uniform(0.1, 5), lambda: setattr(world, "replies_lost", False))
            world.after(choose.expovariate(1 / 80), fail)

        world.after(choose.expovariate(1 / 60), fail)

    def _sum_up(self, result: Result) -> Result:
        world, checker = self.world, self.checker
        result.by_reason = checker.reasons
        result.differences, result.errors_ms = checker.differences, checker.errors_ms
        for story in world.ledger.stories.values():
            current = story.current
            if current is not None:
                result.by_final[200 if current.answered else current.final] += 1
                result.totals["doubtful"] += current.doubtful
        result.totals.update(
            kills=world.kills,
            resumed=world.resumed,
            cut=world.cut,
            lost=world.lost,
            datagrams=world.sent,
            records=len(world.published),
            quiet=world.quiet_points,
            certain=checker.certain,
            uncertain=checker.uncertain,
        )
        return result
