"""Channels are exact over two nodes, or the workers of one (design, invariant 2): simultaneous set-ups on few, round by round.

What has few channels is the line, an account of it, or the trunk route. In a round half of the set-ups go to each node, a
quarter of these (an eighth at one node) from the line's router, the others from the trunk to the line's number; where the
route is meant all come from the router, for who comes by a route is there already. Each round has a line of its own, so that
the bound on how many calls a line may start in a minute refuses none. Those that are admitted are answered; the others must
be refused for want of channels. Then one call ends, and the time until its channel is in use again is taken at the other
node.

The nodes' counters say in which rounds the store had not answered in time: only there may more be admitted (design §8).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loadtest.generate import percentile
from loadtest.lateness import worst_bucket_ms
from loadtest.network import many_lines
from loadtest.reconcile import TOLERANCE_MS, Reconciliation
from loadtest.report import Report, counted
from loadtest.ua import CallError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from loadtest.agents import Router
    from loadtest.network import Network
    from loadtest.node import LineSpec, Node
    from loadtest.ua import Call

__all__ = ["LIMITS", "PATIENT_MS", "ChannelsReport", "Limit", "contend", "report_of", "settings"]

DIALLED = "03023125001"
PATIENT_MS = 1500  # where exactness is measured, not the fall-back (faults.py), which a busy machine brings about at 250 ms
UNDECIDED, TIMEOUTS = 'sipproxy_slots_undecided_total{way="local"}', "sipproxy_slot_timeouts_total"
ANSWER_S = 60.0
FREED_S = 20.0
KNOWN_S = 40.0
UNKNOWN = 480  # of a line without a registration
SETTLE_S = 30.0


@dataclass(frozen=True, slots=True)
class Limit:
    """What has few channels, and how a call beyond them is refused: status by the call's way, and the record's rule."""

    kind: str
    full: Mapping[str, int]
    rule: str

    def lines(self, rounds: int, channels: int, calls: int) -> list[LineSpec]:
        """A line for each round; where another limit is meant than the line's, it has channels for every set-up."""
        lines = many_lines(rounds, channels=channels if self.kind == "line" else 2 * calls)
        return [replace(line, account_channels=channels) for line in lines] if self.kind == "account" else lines

    def route(self, channels: int) -> dict[str, object]:
        """Keys of the trunk route's table."""
        return {"calls": channels} if self.kind == "route" else {}


PROFILE = {"outgoing": 403, "incoming": 486}  # the profile's refusal, and RFC 3261 §21.4.24 towards the trunk
LIMITS = {
    limit.kind: limit
    for limit in (
        Limit("line", PROFILE, "line.channels"),
        Limit("account", PROFILE, "account.channels"),
        Limit("route", {"outgoing": 480}, "trunk.calls"),
    )
}


def settings(deadline_ms: int) -> dict[str, dict[str, object]]:
    """The nodes' settings: how long a call waits for the store."""
    return {"log": {"level": "warning"}, "store": {"deadline_ms": deadline_ms}}


@dataclass(slots=True)
class ChannelsReport:
    """What came of `rounds` rounds. `admitted` and `refused` count rounds by how many set-ups were."""

    limit: Limit
    calls: int
    channels: int
    over: str = "two nodes"
    rounds: int = 0
    admitted: Counter[int] = field(default_factory=Counter)
    refused: Counter[int] = field(default_factory=Counter)
    admitted_ways: Counter[str] = field(default_factory=Counter)  # which set-ups were first
    statuses: Counter[str] = field(default_factory=Counter)  # "outgoing 403" and so on, over all rounds
    freed_ms: list[float] = field(default_factory=list)  # from the BYE until a new call rang at the other node
    freed_attempts: Counter[int] = field(default_factory=Counter)  # set-ups that this took
    beyond: int = 0  # calls admitted while the line was full again
    rules: Counter[str] = field(default_factory=Counter)  # of the refused calls' records
    slots_wrong: list[str] = field(default_factory=list)  # rounds whose slots were not those of the calls
    undecided: list[int] = field(default_factory=list)  # slots decided without the store, by round
    timeouts: int = 0  # of these, for want of an answer in time
    unexplained: list[str] = field(default_factory=list)  # rounds that were not exact though the store decided all
    late_ms: float = 0.0  # a bound on how late the nodes' event loops ran
    result: Reconciliation = field(default_factory=Reconciliation)

    @property
    def wrong_statuses(self) -> dict[str, int]:
        """Refusals with another status than the way of the call asks for."""
        right = {f"{way} {status}" for way, status in self.limit.full.items()}
        return {text: count for text, count in self.statuses.items() if text not in right}


@dataclass(frozen=True, slots=True)
class _Contest:
    """Who takes part: `routers` are those of the account `user`, one at each node."""

    network: Network
    nodes: list[Node]
    routers: list[Router]
    user: str
    report: ChannelsReport


async def contend(
    network: Network,
    other: Node | None,
    *,
    rounds: int,
    calls: int,
    channels: int,
    kind: str = "line",
    progress: Callable[[str], None] = lambda _: None,
) -> ChannelsReport:
    """Run the rounds, each on another line of the network, which is made as the `Limit` of that kind says. Without `other` they
    are at one node, over whose workers they are spread.

    Raises NoAnswerError when a set-up has no final response at all.
    """
    users = list(network.lines)[:rounds]
    over = "two nodes" if other is not None else f"{network.node.workers} workers of a node"
    report = ChannelsReport(LIMITS[kind], calls, channels, over)
    nodes = [network.node, other or network.node]
    contests = []
    for user in users:
        routers = [await network.router(user), await network.router(user, register=False, node=nodes[1])]
        contests.append(_Contest(network, nodes, routers, user, report))
    await asyncio.gather(*(_known(network, nodes[1], user) for user in users))
    await network.slots_of_all(0)
    before = [await node.metrics() for node in set(nodes)]
    for number, contest in enumerate(contests):
        await _round(contest, number)
        report.rounds += 1
        progress(f"round {report.rounds} of {rounds}: {sum(report.statuses.values())} refused")
    after = [await node.metrics() for node in set(nodes)]
    report.timeouts = sum(int(now[TIMEOUTS] - then[TIMEOUTS]) for then, now in zip(before, after, strict=True))
    report.late_ms = max(worst_bucket_ms(then, now) for then, now in zip(before, after, strict=True))
    # What a party and the node measure differs by as much as a message was under way, here at worst as long as a set-up.
    slowest = max((truth.setup_ms or 0.0 for truth in network.ledger.placed().values()), default=0.0)
    tolerance = TOLERANCE_MS + round(slowest)
    records, report.result = await network.reconciled(timeout_s=SETTLE_S, tolerance_ms=tolerance)
    rule = report.limit.rule
    report.rules = Counter(r.rule for r in records if r.verdict == "deny" and (r.status != UNKNOWN or r.rule == rule))
    return report


async def _counted(contest: _Contest, name: str) -> int:
    """A counter of all nodes together."""
    return sum([int((await node.metrics()).get(name, 0)) for node in set(contest.nodes)])


async def _known(network: Network, other: Node, user: str) -> None:
    """Wait until the other node knows of the registration at the first."""
    deadline = time.monotonic() + KNOWN_S
    while True:
        try:
            call = await (await network.trunk.call(network.lines[user].number, other.address)).answered(ANSWER_S)
        except CallError as error:
            if error.status != UNKNOWN or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
            continue
        await call.hang_up()
        return


async def _round(contest: _Contest, number: int) -> None:
    network, routers, nodes, report = contest.network, contest.routers, contest.nodes, contest.report
    user, undecided = contest.user, await _counted(contest, UNDECIDED)
    attempts: list[tuple[str, Coroutine[None, None, Call]]] = []
    for index in range(report.calls):
        node, incoming = index % 2, index // 2 % (4 * len(nodes) // len(set(nodes)))  # workers count a line's starts together
        if incoming and "incoming" in report.limit.full:
            attempts.append(("incoming", network.trunk.call(network.lines[user].number, nodes[node].address)))
        else:
            attempts.append(("outgoing", routers[node].call(DIALLED)))
    if number % 2:
        attempts.reverse()  # another node and direction is first
    placed = [(way, await coroutine) for way, coroutine in attempts]
    statuses = await asyncio.gather(*(call.final(ANSWER_S) for _, call in placed))
    live = [call for (_, call), status in zip(placed, statuses, strict=True) if status == 200]
    for (way, _), status in zip(placed, statuses, strict=True):
        if status == 200:
            report.admitted_ways[way] += 1
        else:
            report.statuses[f"{way} {status}"] += 1
    report.admitted[len(live)] += 1
    report.undecided.append(await _counted(contest, UNDECIDED) - undecided)
    if not report.undecided[-1] and len(live) != report.channels:
        report.unexplained.append(f"round {number + 1}: {len(live)} admitted")
    report.refused[len(placed) - len(live)] += 1
    if not await _slots_are(contest, len(live)):
        report.slots_wrong.append(f"round {number + 1}: {len(live)} calls live")
    if live:
        ended = live.pop(0)
        live += await _again(ended, contest, routers[number % 2])
    for call in live:
        await call.hang_up()
    if not await _slots_are(contest, 0):
        report.slots_wrong.append(f"round {number + 1}: slots were left")


async def _slots_are(contest: _Contest, wanted: int) -> bool:
    """Whether the line has so many slots, or comes to have them, and the route where it has a limit."""
    network, of_route = contest.network, contest.report.limit.kind == "route"
    if await network.slots(contest.user, wanted) != wanted:
        return False
    return not of_route or await network.route_slots(wanted) == wanted


async def _again(ended: Call, contest: _Contest, router: Router) -> list[Call]:
    """End a call, use its channel, and try once more: the calls that are live beside the others then."""
    call = await _freed(ended, contest)
    if call is None:
        return []
    try:
        beyond = await (await router.call(DIALLED)).answered(ANSWER_S)
    except CallError:
        return [call]
    contest.report.beyond += 1
    return [call, beyond]


async def _freed(ended: Call, contest: _Contest) -> Call | None:
    """End a call and place new ones, one after the other, at the node where it was not, until one is admitted.

    They come from the trunk, which may start as many as it likes, but for the route's limit. None when none was admitted
    within the bound.
    """
    network, report = contest.network, contest.report
    first_node, second_node = (node.address for node in contest.nodes)
    node = second_node if ended.next_hop == first_node else first_node
    router = next(router for router in contest.routers if router.proxy == node)
    began = time.monotonic()
    ending = asyncio.ensure_future(ended.hang_up())
    attempts = 0
    while True:
        attempts += 1
        if "incoming" in report.limit.full:
            call = await network.trunk.call(network.lines[contest.user].number, node)
        else:
            call = await router.call(DIALLED)
        try:
            await call.answered(ANSWER_S)
        except CallError:
            if time.monotonic() - began > FREED_S:
                await ending
                return None
            continue
        break
    first = call.truth.ringing_at or call.truth.answered_at
    assert first is not None
    report.freed_ms.append((first - began) * 1000)
    report.freed_attempts[attempts] += 1
    await ending
    return call


def report_of(found: ChannelsReport) -> Report:
    """The figures, and what is wrong with them. More may be admitted in rounds alone in which the store was late."""
    limit, channels = found.limit, found.channels
    report = Report(f"{found.calls} simultaneous set-ups on {channels} channels of one {limit.kind}, over {found.over}")
    report.add("rounds", "rounds", found.rounds)
    exact, late = found.admitted[channels], sum(map(bool, found.undecided))
    report.add("exact", "rounds in which as many as there are channels were admitted", exact)
    report.add("undecided_rounds", "rounds with slots that were decided without the store", late)
    report.add("undecided", "slots decided without the store", sum(found.undecided))
    report.add("timeouts", "of these, slots that the store had not answered for in time", found.timeouts)
    report.add("node_late_ms", "the nodes' event loops were late by less than", found.late_ms, "ms")
    report.add("admitted", "admitted a round, and in how many rounds", counted(found.admitted))
    report.add("refused", "refused a round, and in how many rounds", counted(found.refused))
    report.add("admitted_ways", "who was admitted", counted(found.admitted_ways))
    report.add("statuses", "refused with", counted(found.statuses))
    report.add("rules", "by rule", counted(found.rules))
    for share, name in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
        value = percentile(found.freed_ms, share)
        report.add(f"freed_{name}_ms", f"BYE until the channel was in use again at the other node, {name}", value, "ms")
    report.add("freed_attempts", "set-ups that this took, and how often", counted(found.freed_attempts))
    report.add("beyond", "calls admitted when it was full again", found.beyond)
    report.add("reconciled", "records", str(found.result))
    report.expect(not found.unexplained, f"not {channels} though the store decided all: {found.unexplained[:3]}")
    report.expect(max(found.admitted) <= 2 * channels, f"more than the nodes alone would admit: {counted(found.admitted)}")
    report.expect(not found.wrong_statuses, f"wrong refusals: {found.wrong_statuses}")
    report.expect(set(found.rules) <= {limit.rule}, f"refused for other reasons: {counted(found.rules)}")
    report.expect(len(found.freed_ms) == found.rounds or late > 0, "a channel was not free again")
    report.expect(not found.beyond or late > 0, "more calls than channels")
    report.expect(not found.slots_wrong, f"slots were not those of the calls: {found.slots_wrong[:3]}")
    report.expect(found.result.ok, str(found.result))
    return report
