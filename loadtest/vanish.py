"""Answered calls whose parties vanish: neither side answers anything any more (design, invariants 2 and 4).

Whether by the bound on silence, by asking the parties, or by the session timer: each call must end within the bound, a BYE of
its dialog must have been sent to both sides, its slot be free, and its record end at the last proof of life and say that this
is not certain. Half of the routers use UDP, half TCP; half of the calls come from them, half from the trunk.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.dialog import LIFETIME_S, SDP_TYPE, sdp_of
from loadtest.generate import at_rate
from loadtest.reconcile import TOLERANCE_MS, Reconciliation

if TYPE_CHECKING:
    from cdr.facts import Record
    from loadtest.agents import Router
    from loadtest.dialog import Call, Headers
    from loadtest.network import Network
    from loadtest.ua import UserAgent

__all__ = ["MARGIN_S", "WAYS", "VanishReport", "Way", "vanish", "way_of"]

WAYS = ("silence", "asking", "session")
SHORTEST_SESSION_S = 90  # RFC 4028 §4
DIALLED = "03023125001"
ANSWER_S = 60.0
SETUP_RATE = 50.0  # calls a second, while they are set up
MARGIN_S = 5.0  # for this machine, which has to send and read a thousand BYEs at once


@dataclass(frozen=True, slots=True)
class Way:
    """One way of noticing: the configuration, what callers offer, and seconds from the last proof of life until the BYE."""

    calls: Mapping[str, object]
    bound_s: float
    headers: Headers = ()


def way_of(name: str, *, reap_s: int, probe_s: int) -> Way:
    """The way of that name. Asking ends when the question is not answered within 64*T1 (RFC 3261 §17.1.2.2, Timer F)."""
    if name == "silence":
        return Way({"reap_s": reap_s, "probe_s": 0, "session_expires_s": 0}, reap_s)
    if name == "asking":
        return Way({"probe_s": probe_s, "session_expires_s": 0}, probe_s + LIFETIME_S)
    offer = [(b"Supported", b"timer"), (b"Session-Expires", b"%d;refresher=uac" % SHORTEST_SESSION_S)]
    return Way({"session_expires_s": SHORTEST_SESSION_S, "probe_s": 0}, SHORTEST_SESSION_S, offer)


@dataclass(slots=True)
class VanishReport:
    """What became of `calls` calls. Times are seconds from a call's last proof of life."""

    calls: int
    bound_s: float
    refreshed: int = 0  # calls that showed life again after their answer
    byes_s: list[float] = field(default_factory=list)  # to the first BYE at either side
    without: dict[str, int] = field(default_factory=dict)  # calls that had no BYE, by side
    strange: list[str] = field(default_factory=list)  # BYEs that belong to no dialog of the party they reached
    transports: Counter[str] = field(default_factory=Counter)
    slots_before: int = 0
    slots_left: int = 0
    wrong: list[str] = field(default_factory=list)  # what a record says otherwise
    ends_off_ms: list[float] = field(default_factory=list)  # a record's end after the last proof of life as the parties know it
    result: Reconciliation = field(default_factory=Reconciliation)


async def vanish(
    network: Network,
    routers: Sequence[Router],
    count: int,
    way: Way,
    *,
    progress: Callable[[str], None] = lambda _: None,
) -> VanishReport:
    """Answer `count` calls, let half of them show life once more, have all parties vanish, and wait for the end."""
    report = VanishReport(count, way.bound_s)
    calls = await _answered_calls(network, routers, count, way)
    refreshing = list(calls)[::2]
    await asyncio.gather(*(_refresh(calls[call_id], way) for call_id in refreshing))
    report.refreshed = len(refreshing)
    report.slots_before = await network.slots_of_all(count)
    parties: list[UserAgent] = [*routers, network.trunk]
    for party in parties:
        party.vanish()
    router_of = {call_id: router for router in routers for call_id, _ in router.calls}
    report.transports = Counter("TCP" if b"/TCP " in router.new_via() else "UDP" for router in router_of.values())
    proofs = {call_id: min(router.spoke_at[call_id], network.trunk.spoke_at[call_id]) for call_id, router in router_of.items()}
    deadline = time.monotonic() + way.bound_s + 2 * MARGIN_S
    while time.monotonic() < deadline:
        ended = {side: _byes(side) for side in parties}
        first = sum(call_id in ended[network.trunk] for call_id in calls)
        progress(f"{first} of {count} calls ended, {max(0, deadline - time.monotonic()):.0f} s left")
        if first == count and all(call_id in ended[agent] for call_id, agent in router_of.items()):
            break
        await asyncio.sleep(0.2)
    _judge_byes(report, network, router_of, proofs)
    report.slots_left = await network.slots_of_all(0, timeout_s=MARGIN_S)
    records, report.result = await network.reconciled(timeout_s=30)
    # What a party and the node measure differs by as much as a message was under way, here at worst as long as a set-up.
    tolerance = TOLERANCE_MS + max(call.truth.setup_ms or 0.0 for call in calls.values())
    for record in records:
        _judge_record(report, record, calls[record.call_id], proofs[record.call_id], tolerance)
    return report


async def _answered_calls(network: Network, routers: Sequence[Router], count: int, way: Way) -> dict[str, Call]:
    """Calls by Call-ID, as their callers see them."""
    calls: dict[str, Call] = {}

    async def one(number: int) -> None:
        router = routers[number // 2 % len(routers)]
        if number % 2:
            number_of = network.lines[router.user].number
            call = await network.trunk.call(number_of, network.node.address, headers=way.headers)
        else:
            call = await router.call(DIALLED, headers=way.headers)
        calls[call.call_id] = await call.answered(ANSWER_S)

    await at_rate(SETUP_RATE, count, one)
    for party in (network.trunk, *routers):
        for callee in list(party.calls.values()):
            if callee.truth.role == "callee":
                await asyncio.wait_for(callee.acked.wait(), ANSWER_S)
    return calls


async def _refresh(call: Call, way: Way) -> None:
    """A re-INVITE: a sign of life from both sides."""
    response = await call.request(b"INVITE", [SDP_TYPE, *way.headers], sdp_of(call.agent.host))
    assert response.status == 200, f"re-INVITE of {call.call_id} was answered {response.status}"
    call.agent.send(call.write(b"ACK", cseq=call.cseq), call.next_hop)


def _byes(party: UserAgent) -> dict[str, float]:
    """When the first BYE of each call came, by Call-ID."""
    found: dict[str, float] = {}
    for at, request in party.unheard:
        if request.method == b"BYE":
            found.setdefault(request.call_id.decode(), at)
    return found


def _judge_byes(
    report: VanishReport, network: Network, router_of: Mapping[str, UserAgent], proofs: Mapping[str, float]
) -> None:
    at_trunk = _byes(network.trunk)
    without: Counter[str] = Counter()
    for call_id, router in router_of.items():
        at_router = _byes(router).get(call_id)
        came = [at for at in (at_router, at_trunk.get(call_id)) if at is not None]
        without["router"] += at_router is None
        without["trunk"] += call_id not in at_trunk
        if came:
            report.byes_s.append(min(came) - proofs[call_id])
    report.without = {side: number for side, number in without.items() if number}
    for party in {network.trunk, *router_of.values()}:
        for _, request in party.unheard:
            if request.method == b"BYE" and (request.call_id.decode(), request.to.tag or b"") not in party.calls:
                report.strange.append(f"{party.name}: {request.call_id.decode()}")


def _judge_record(report: VanishReport, record: Record, call: Call, proof: float, tolerance: float) -> None:
    answered_at = call.truth.answered_at
    assert answered_at is not None
    off = record.billable_ms - (proof - answered_at) * 1000
    report.ends_off_ms.append(off)
    if record.duration_certain:
        report.wrong.append(f"{record.call_id}: says that its end is certain")
    if (record.end_reason, record.released_by) != ("session_expired", "proxy"):
        report.wrong.append(f"{record.call_id}: {record.end_reason} by {record.released_by}")
    if abs(off) > tolerance:
        report.wrong.append(f"{record.call_id}: ends {off:.0f} ms after the last proof of life")
