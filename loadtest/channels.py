"""Channels are exact over two nodes (design, invariant 2): many simultaneous set-ups on a line of few channels, round by round.

In a round half of the set-ups go to each node, a quarter of these from the line's router, the others from the trunk to the
line's number. Each round has a line of its own, so that the bound on how many calls a line may start in a minute refuses none.
Those that are admitted are answered; the others must be refused for want of channels, as the line's profile says. Then one
call ends, and the time until its channel is in use again is taken at the other node.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.reconcile import TOLERANCE_MS, Reconciliation
from loadtest.ua import CallError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from loadtest.agents import Router
    from loadtest.network import Network
    from loadtest.node import Node
    from loadtest.ua import Call

__all__ = ["SETTINGS", "ChannelsReport", "contend"]

# Exactness is what is measured, not the fall-back (faults.py), which a busy machine would bring about at 250 ms.
SETTINGS: Mapping[str, Mapping[str, object]] = {"log": {"level": "warning"}, "store": {"deadline_ms": 1500}}

DIALLED = "03023125001"
FULL = {"outgoing": 403, "incoming": 486}  # the profile's refusal, and RFC 3261 §21.4.24 towards the trunk
ANSWER_S = 60.0
FREED_S = 5.0
KNOWN_S = 10.0
UNKNOWN = 480  # of a line without a registration
SETTLE_S = 30.0


@dataclass(slots=True)
class ChannelsReport:
    """What came of `rounds` rounds. `admitted` and `refused` count rounds by how many set-ups were."""

    calls: int
    channels: int
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
    result: Reconciliation = field(default_factory=Reconciliation)

    @property
    def wrong_statuses(self) -> dict[str, int]:
        """Refusals with another status than the way of the call asks for."""
        right = {f"{way} {status}" for way, status in FULL.items()}
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
    network: Network, other: Node, *, rounds: int, calls: int, progress: Callable[[str], None] = lambda _: None
) -> ChannelsReport:
    """Run the rounds, each on another line of the network. Raises NoAnswerError when a set-up has no final response at all."""
    users = list(network.lines)[:rounds]
    channels = network.lines[users[0]].channels
    assert channels is not None
    report = ChannelsReport(calls, channels)
    nodes = [network.node, other]
    contests = []
    for user in users:
        routers = [await network.router(user), await network.router(user, register=False, node=other)]
        contests.append(_Contest(network, nodes, routers, user, report))
    await asyncio.gather(*(_known(network, other, user) for user in users))
    await network.slots_of_all(0)
    for number, contest in enumerate(contests):
        await _round(contest, number)
        report.rounds += 1
        progress(f"round {report.rounds} of {rounds}: {sum(report.statuses.values())} refused")
    # What a party and the node measure differs by as much as a message was under way, here at worst as long as a set-up.
    slowest = max((truth.setup_ms or 0.0 for truth in network.ledger.placed().values()), default=0.0)
    tolerance = TOLERANCE_MS + round(slowest)
    records, report.result = await network.reconciled(timeout_s=SETTLE_S, tolerance_ms=tolerance)
    report.rules = Counter(r.rule for r in records if r.verdict == "deny" and r.status != UNKNOWN)
    return report


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
    user = contest.user
    attempts: list[tuple[str, Coroutine[None, None, Call]]] = []
    for index in range(report.calls):
        node, incoming = index % 2, index // 2 % 4
        if incoming:
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
    report.refused[len(placed) - len(live)] += 1
    if await network.slots(user, len(live)) != len(live):
        report.slots_wrong.append(f"round {number + 1}: {len(live)} calls live")
    if live:
        ended = live.pop(0)
        live += await _again(ended, contest, routers[number % 2])
    for call in live:
        await call.hang_up()
    if await network.slots(user, 0) != 0:
        report.slots_wrong.append(f"round {number + 1}: slots were left")


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

    They come from the trunk, which may start as many as it likes. None when none was admitted within the bound.
    """
    network, report = contest.network, contest.report
    first_node, second_node = (node.address for node in contest.nodes)
    node = second_node if ended.next_hop == first_node else first_node
    began = time.monotonic()
    ending = asyncio.ensure_future(ended.hang_up())
    attempts = 0
    while True:
        attempts += 1
        call = await network.trunk.call(network.lines[contest.user].number, node)
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
