"""What one call of the mix is going to do: a script drawn from a table of weighted behaviours.

A plan says what its parties want. What becomes of it is theirs, the wire's and the node's business: a plan that hangs up after
20 s may be refused, cut by a restart, or lose its BYE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from tests.sim.mix.party import Part, Party
    from tests.sim.world import Address

__all__ = ["BEHAVIOURS", "Callee", "Device", "Places", "Plan", "draw"]

TOO_DEEP = 6  # devices in a row that forward: one more than a call may be forwarded
REFRESH_S = 40.0  # between a refresher's requests; the worlds with session timers ask for 90


@dataclass(slots=True)
class Callee:
    """What the next party does that the INVITE reaches: `answer`, `reject`, `ring` (without end) or `silent`.

    Times are seconds after the INVITE; a `ring_after` of 0 or less is no ringing at all. A `reliable` one rings by a 183 that
    it repeats until the PRACK (RFC 3262).
    """

    act: str = "answer"
    ring_after: float = 0.1
    after: float = 1.0
    status: int = 486
    reliable: bool = False


@dataclass(slots=True, eq=False)
class Plan:
    """`cancel_on` is the status after which the caller cancels, `cancel_at` the seconds after its INVITE.

    `lines` are those of which the call holds a slot once it is forwarded. `end` is who ends it after `talk_s`: `caller`,
    `callee`, `both`, `never`, or somebody of whom nothing is heard any more: `lost_*` hung up and every BYE is lost, `gone_*`
    vanished. `renew` are re-INVITEs and UPDATEs: seconds after the answer, and whose. `forwards` are the devices that send the
    call on by a 302, and where to; `hops` the addresses that the call can reach, by how often it was forwarded on the way, and
    `passed` the lines that each of these parts takes a channel of.
    """

    name: str
    caller: Party
    target: bytes
    kind: str
    lines: tuple[str, ...] = ()
    callees: list[Callee] = field(default_factory=list)
    cancel_at: float | None = None
    cancel_on: int = 0
    no_ack: bool = False
    talk_s: float = 10.0
    end: str = "caller"
    renew: list[tuple[float, str]] = field(default_factory=list)
    update_early: bool = False  # an UPDATE by the caller once its PRACK was answered
    is_copied: bool = False  # the INVITE comes once more by another path, when it was answered provisionally
    copied: bytes = b""  # the branch of that one
    forwards: dict[Address, bytes] = field(default_factory=dict)
    hops: dict[Address, int] = field(default_factory=dict)
    passed: list[frozenset[str]] = field(default_factory=list)
    hidden: bool = False
    headers: tuple[tuple[bytes, bytes], ...] = ()
    caller_parts: dict[bytes, Part] = field(default_factory=dict)  # by the callee's tag
    callee_parts: dict[bytes, Part] = field(default_factory=dict)  # by their own tag
    met: int = 0  # parties that the INVITE has reached

    def next_callee(self) -> Callee:
        chosen = self.callees[min(self.met, len(self.callees) - 1)] if self.callees else Callee("reject", status=404)
        self.met += 1
        return chosen


@dataclass(slots=True)
class Device:
    """Where one of a user's devices is, and the user's number: as +E.164, and as dialled within Germany."""

    number: bytes
    dialled: bytes
    line: str
    address: Address


@dataclass(slots=True)
class Places:
    """Who can call whom: parties by line with their numbers as the trunk, and as customers, dial them."""

    customers: list[tuple[Party, str]]
    devices: dict[str, Device]  # by user
    forked: list[str]  # users with several devices
    trunk: Party
    trunks: tuple[Address, ...]
    forwarding_slots: int


Change = Callable[["Plan", "random.Random"], None]


def _ends(end: str) -> Change:
    def change(plan: Plan, choose: random.Random) -> None:
        plan.end = end

    return change


def _rejected(plan: Plan, choose: random.Random) -> None:
    status = choose.choice([486, 486, 486, 408, 404, 480, 488, 600, 603, 500])
    plan.callees = [Callee("reject", choose.choice([0.0, 0.1]), choose.uniform(0.05, 4), status)]


def _no_route(plan: Plan, choose: random.Random) -> None:
    """The first route is overloaded or silent; the second one answers, or is no better."""
    bad = choose.choice([Callee("reject", 0.0, 0.05, 503), Callee("silent")])
    plan.callees = [bad, choose.choice([Callee("answer", 0.1, 1.5), Callee("reject", 0.1, 1.0, 486), bad])]


def _rings_on(plan: Plan, choose: random.Random) -> None:
    plan.callees = [Callee("ring", 0.1)]


def _silent(plan: Plan, choose: random.Random) -> None:
    plan.callees = [Callee("silent")]


def _cancel_at_random(plan: Plan, choose: random.Random) -> None:
    plan.callees = [Callee("answer", 0.5, choose.uniform(3, 12))]
    plan.cancel_at = choose.uniform(0.0, 6.0)


def _cancel_at_once(plan: Plan, choose: random.Random) -> None:
    plan.cancel_at = choose.uniform(0.0, 0.05)


def _cancel_on(status: int) -> Change:
    def change(plan: Plan, choose: random.Random) -> None:
        plan.callees = [Callee("answer", 0.3, choose.uniform(2, 5))]
        plan.cancel_on = status

    return change


def _cancel_crosses_200(plan: Plan, choose: random.Random) -> None:
    plan.callees = [Callee("answer", 0.2, 2.0)]
    plan.cancel_at = 2.0 + choose.uniform(-0.05, 0.25)


def _cancelled_callee_vanishes(plan: Plan, choose: random.Random) -> None:
    plan.callees = [Callee("ring_gone", 0.1, choose.uniform(1, 3))]
    plan.cancel_at = choose.uniform(0.5, 5)


def _no_ack(plan: Plan, choose: random.Random) -> None:
    plan.no_ack = True


def _renewed(plan: Plan, choose: random.Random) -> None:
    plan.talk_s = choose.uniform(10, 40)
    plan.renew = [(choose.uniform(0.5, plan.talk_s), choose.choice(["caller", "callee"])) for _ in range(choose.randint(1, 4))]
    plan.end = choose.choice(["caller", "callee", "both"])


def _glare(plan: Plan, choose: random.Random) -> None:
    plan.talk_s, at = choose.uniform(10, 30), choose.uniform(1, 5)
    plan.renew = [(at, "caller"), (at + choose.uniform(0, 0.02), "callee")]


def _renewed_while_ending(plan: Plan, choose: random.Random) -> None:
    plan.renew = [(plan.talk_s + choose.uniform(-0.1, 0.1), choose.choice(["caller", "callee"]))]


def _forked_answers(plan: Plan, choose: random.Random) -> None:
    """Several devices answer as good as at once: several 2xx."""
    at = choose.uniform(0.5, 3)
    plan.callees = [Callee("answer", 0.1, at), Callee("answer", 0.1, at + choose.uniform(0, 0.06)), Callee("ring", 0.1)]
    plan.end = choose.choice(["caller", "callee", "both"])


def _forked_rejections(plan: Plan, choose: random.Random) -> None:
    plan.callees = [Callee("reject", 0.1, choose.uniform(0.5, 2), choose.choice([486, 603, 480])) for _ in range(3)]


def _reliable(plan: Plan, choose: random.Random) -> None:
    """Early media that is acknowledged, and an UPDATE before the answer (RFC 3262, RFC 3311)."""
    plan.headers = (*plan.headers, (b"Supported", b"100rel"))
    plan.callees = [Callee("answer", 0.1, choose.uniform(0.5, 6), reliable=True)]
    plan.update_early = choose.random() < 0.7
    plan.end = choose.choice(["caller", "callee", "both"])


def _reliable_cancelled(plan: Plan, choose: random.Random) -> None:
    _reliable(plan, choose)
    plan.cancel_at = choose.uniform(0.3, 4)


def _refreshed(plan: Plan, choose: random.Random) -> None:
    """A session that its caller refreshes for as long as it is there (RFC 4028)."""
    plan.headers = (*plan.headers, (b"Supported", b"timer"))
    plan.talk_s = choose.uniform(30, 190)
    side = choose.choice(["caller", "caller_update"])
    plan.renew = [(REFRESH_S * n, side) for n in range(1, 5)]
    plan.end = choose.choice(["caller", "callee", "gone_caller", "lost_caller"])


def _copied(plan: Plan, choose: random.Random) -> None:
    """The INVITE comes by two paths."""
    plan.is_copied = plan.caller.user == ""
    plan.end = choose.choice(["caller", "callee"])


def _forwarded_ends(plan: Plan, choose: random.Random) -> None:
    if choose.random() < 0.3:
        plan.callees = [Callee("reject", 0.1, choose.uniform(0.1, 3), choose.choice([486, 480, 603]))]
    elif choose.random() < 0.3:
        plan.callees = [Callee("answer", 0.3, choose.uniform(1, 5))]
        plan.cancel_at = choose.uniform(0.0, 5)
    elif choose.random() < 0.15:
        plan.renew = [(choose.uniform(0.5, 5), choose.choice(["caller", "callee", "caller_update", "callee_update"]))]
    ends = ["caller", "callee", "both"]
    if plan.caller.user:  # a carrier that is the caller and the callee would fall silent as both
        ends += ["lost_caller", "lost_callee", "gone_caller", "gone_callee", "never"]
    plan.end = choose.choice(ends)


def _as_it_is(plan: Plan, choose: random.Random) -> None:
    """The plan as it was drawn."""


# Name, weight, on which kinds of call, and what it makes of an ordinary one.
ANY = frozenset(["outgoing", "incoming", "internal"])
ALSO_112 = ANY | {"emergency"}
BEHAVIOURS: tuple[tuple[str, int, frozenset[str], Change], ...] = (
    ("bye of caller", 14, ALSO_112, _ends("caller")),
    ("bye of callee", 14, ALSO_112, _ends("callee")),
    ("bye of both", 6, ALSO_112, _ends("both")),
    ("bye of caller lost", 2, ALSO_112, _ends("lost_caller")),
    ("bye of callee lost", 2, ANY, _ends("lost_callee")),
    ("caller gone", 2, ANY, _ends("gone_caller")),
    ("callee gone", 2, ANY, _ends("gone_callee")),
    ("both gone", 2, ALSO_112, _ends("gone_both")),
    ("never ended", 1, ANY, _ends("never")),
    ("no ack", 2, ANY, _no_ack),
    ("rejected", 10, ALSO_112, _rejected),
    ("rings on", 2, ANY, _rings_on),
    ("silent", 2, ANY, _silent),
    ("route fails", 3, frozenset(["outgoing", "emergency"]), _no_route),
    ("cancel at random", 5, ALSO_112, _cancel_at_random),
    ("cancel at once", 3, ANY, _cancel_at_once),
    ("cancel on 100", 2, ANY, _cancel_on(100)),
    ("cancel on 180", 3, ANY, _cancel_on(180)),
    ("cancel crosses 200", 5, ANY, _cancel_crosses_200),
    ("cancelled callee gone", 2, ANY, _cancelled_callee_vanishes),
    ("re-INVITEs", 6, ANY, _renewed),
    ("re-INVITEs cross", 3, ANY, _glare),
    ("re-INVITE meets end", 3, ANY, _renewed_while_ending),
    ("fork, several 200", 6, frozenset(["forked"]), _forked_answers),
    ("fork, rejected", 2, frozenset(["forked"]), _forked_rejections),
    ("fork, one answers", 2, frozenset(["forked"]), _as_it_is),
    ("100rel", 4, ANY, _reliable),
    ("100rel, cancelled", 2, ANY, _reliable_cancelled),
    ("session refreshed", 4, ANY, _refreshed),
    ("INVITE by two paths", 3, frozenset(["incoming"]), _copied),
    ("forwarded", 10, frozenset(["forwarded"]), _forwarded_ends),
    ("blocked number", 2, frozenset(["blocked"]), _as_it_is),
    ("unknown number", 1, frozenset(["unknown"]), _as_it_is),
)

KINDS = (
    ("outgoing", 36),
    ("incoming", 22),
    ("internal", 14),
    ("forked", 9),
    ("forwarded", 10),
    ("emergency", 6),
    ("blocked", 2),
    ("unknown", 1),
)


def draw(places: Places, choose: random.Random) -> Plan:
    """One call at random."""
    kind = choose.choices([name for name, _ in KINDS], [weight for _, weight in KINDS])[0]
    rows = [row for row in BEHAVIOURS if kind in row[2]]
    name, _, _, change = choose.choices(rows, [row[1] for row in rows])[0]
    plan = _ordinary(name, kind, places, choose)
    plan.talk_s = choose.choice([choose.uniform(0, 1.0), choose.uniform(1, 15), choose.expovariate(1 / 25)])
    plan.callees = [Callee("answer", choose.choice([0.0, 0.1, 0.4]), choose.uniform(0.05, 4))]
    if kind == "forwarded":
        _forward(plan, places, choose)
    if kind == "forked":
        plan.callees.append(Callee("ring", 0.1))
    change(plan, choose)
    return plan


def _ordinary(name: str, kind: str, places: Places, choose: random.Random) -> Plan:
    if kind in ("incoming", "forked", "forwarded") and (kind == "incoming" or choose.random() < 0.7):
        user = choose.choice(places.forked if kind == "forked" else [u for u in places.devices if u not in places.forked])
        device = places.devices[user]
        plan = Plan(name, places.trunk, device.number, "incoming", (device.line,))
        if choose.random() < 0.15:
            plan.hidden, plan.headers = True, ((b"Privacy", b"id"),)
        return plan
    if kind == "unknown":
        return Plan(name, places.trunk, b"+4960329999", kind)
    caller, line = choose.choice(places.customers)
    if kind in ("internal", "forked", "forwarded"):
        forked = kind == "forked"
        found = [d for user, d in places.devices.items() if d.line != line and (user in places.forked) is forked]
        if found:
            device = choose.choice(found)
            return Plan(name, caller, device.dialled, "internal", (line, device.line))
    if kind == "emergency":
        return Plan(name, caller, b"112", kind)
    if kind == "blocked":
        return Plan(name, caller, b"09001123456", kind)
    return Plan(name, caller, b"03023125%03d" % choose.randint(1, 999), "outgoing", (line,))


def _forward(plan: Plan, places: Places, choose: random.Random) -> None:
    """Have the called device, and some more in a row, send the call on: to the carrier, a device, or where it may not go."""
    first = next(d for d in places.devices.values() if plan.target in (d.number, d.dialled))
    others = [d for user, d in places.devices.items() if d is not first and user not in places.forked]
    others = [d for d in others if d.address != plan.caller.address]
    choose.shuffle(others)
    row = [first, *others]
    length = choose.choice([1, 1, 1, 2, 2, 3, TOO_DEEP])
    last = choose.choice(["carrier", "carrier", "device", "loop", "112", "blocked"])
    targets = {
        "carrier": b"03023125%03d" % choose.randint(1, 999),
        "device": row[min(length, len(row) - 1)].dialled,
        "loop": row[0].dialled,
        "112": b"112",
        "blocked": b"09001123456",
    }
    chain = row[:length]
    for depth, device in enumerate(chain):
        plan.hops[device.address] = depth
        plan.forwards[device.address] = chain[depth + 1].dialled if depth + 1 < len(chain) else targets[last]
    plan.passed = [frozenset()]
    for depth in range(1, len(chain) + 1):
        passing = {chain[depth - 1].line} if places.forwarding_slots else set()
        if depth < len(chain):
            passing.add(chain[depth].line)
        elif last == "device" and length < len(row):
            passing.add(row[length].line)
        plan.passed.append(frozenset(passing))
    if last == "carrier":
        plan.hops.update(dict.fromkeys(places.trunks, len(chain)))
    elif last == "device" and length < len(row):
        plan.hops[row[length].address] = len(chain)
