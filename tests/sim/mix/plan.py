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

__all__ = ["BEHAVIOURS", "Callee", "Places", "Plan", "draw"]


@dataclass(slots=True)
class Callee:
    """What the next party does that the INVITE reaches: `answer`, `reject`, `ring` (without end) or `silent`.

    Times are seconds after the INVITE; a `ring_after` of 0 or less is no ringing at all.
    """

    act: str = "answer"
    ring_after: float = 0.1
    after: float = 1.0
    status: int = 486


@dataclass(slots=True, eq=False)
class Plan:
    """`cancel_on` is the status after which the caller cancels, `cancel_at` the seconds after its INVITE.

    `lines` are those of which the call holds a slot once it is forwarded. `end` is who ends it after `talk_s`: `caller`,
    `callee`, `both`, `never`, or somebody of whom nothing is heard any more: `lost_*` hung up and every BYE is lost, `gone_*`
    vanished. `renew` are re-INVITEs: seconds after the answer, and whose.
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
class Places:
    """Who can call whom: parties by line with their numbers as the trunk, and as customers, dial them."""

    customers: list[tuple[Party, str]]
    devices: dict[str, tuple[bytes, bytes, str]]  # by user: +E.164, as dialled within Germany, line
    forked: list[str]  # users with several devices
    trunk: Party


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
    ("blocked number", 2, frozenset(["blocked"]), _as_it_is),
    ("unknown number", 1, frozenset(["unknown"]), _as_it_is),
)

KINDS = (("outgoing", 40), ("incoming", 25), ("internal", 16), ("forked", 10), ("emergency", 6), ("blocked", 2), ("unknown", 1))


def draw(places: Places, choose: random.Random) -> Plan:
    """One call at random."""
    kind = choose.choices([name for name, _ in KINDS], [weight for _, weight in KINDS])[0]
    rows = [row for row in BEHAVIOURS if kind in row[2]]
    name, _, _, change = choose.choices(rows, [row[1] for row in rows])[0]
    plan = _ordinary(name, kind, places, choose)
    plan.talk_s = choose.choice([choose.uniform(0, 1.0), choose.uniform(1, 15), choose.expovariate(1 / 25)])
    plan.callees = [Callee("answer", choose.choice([0.0, 0.1, 0.4]), choose.uniform(0.05, 4))]
    if kind == "forked":
        plan.callees.append(Callee("ring", 0.1))
    change(plan, choose)
    return plan


def _ordinary(name: str, kind: str, places: Places, choose: random.Random) -> Plan:
    if kind in ("incoming", "forked") and (kind == "incoming" or choose.random() < 0.7):
        user = choose.choice(places.forked if kind == "forked" else [u for u in places.devices if u not in places.forked])
        number, _, line = places.devices[user]
        plan = Plan(name, places.trunk, number, "incoming", (line,))
        if choose.random() < 0.15:
            plan.hidden, plan.headers = True, ((b"Privacy", b"id"),)
        return plan
    if kind == "unknown":
        return Plan(name, places.trunk, b"+4960329999", kind)
    caller, line = choose.choice(places.customers)
    if kind == "internal" or kind == "forked":
        users = [u for u, (_, _, of) in places.devices.items() if of != line and (u in places.forked) is (kind == "forked")]
        if users:
            _, dialled, other = places.devices[choose.choice(users)]
            return Plan(name, caller, dialled, "internal", (line, other))
    if kind == "emergency":
        return Plan(name, caller, b"112", kind)
    if kind == "blocked":
        return Plan(name, caller, b"09001123456", kind)
    return Plan(name, caller, b"03023125%03d" % choose.randint(1, 999), "outgoing", (line,))
