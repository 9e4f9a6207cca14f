"""Session timers and vanished parties: a call always ends, in time and for both (RFC 4028 §8; design: invariants 2, 4)."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import pytest

from sipproxy.sip.build import write_response
from sipproxy.sip.message import Request, Response, parse_message
from tests.sim.agent import Agent
from tests.sim.conftest import PSAP, TRUNK_A, Town, make_town
from tests.sim.world import PROXY, World, account, line, snapshot, trunk

if TYPE_CHECKING:
    from sipproxy.engine.transactions import Server
    from tests.sim.agent import AgentCall

TIMER = ((b"Supported", b"timer"),)
PROBE_S, SESSION_S = 120.0, 300
BOUND_S = max(SESSION_S, PROBE_S + 32.0) + 1.0  # an unanswered OPTIONS takes 64*T1


def vanish(town: Town, *agents: Agent) -> None:
    for agent in agents:
        del town.world.agents[agent.address]


def byes(world: World) -> set[tuple[str, int]]:
    """Who was sent a BYE by the proxy."""
    return {to for _, source, to, data in world.wire if source == PROXY and data.startswith(b"BYE ")}


def probes(agent: Agent) -> list[Request]:
    return [r for r in agent.requests if r.method == b"OPTIONS" and r.to.tag]


def short_town(**options: object) -> Town:
    town = make_town(probe_s=PROBE_S, session_expires_s=SESSION_S, **options)
    town.register_all()
    return town


def refreshing(agent: Agent, call: AgentCall, every: float, until: float, *, update: bool = False) -> None:
    """The agent refreshes the session as its refresher, by UPDATE where the wire loses: agents send a re-INVITE's 2xx once."""

    def again() -> None:
        if agent.world.now < until and not call.ended:
            if call.status == 200 and update:
                agent._in_dialog(call, b"UPDATE")
            elif call.status == 200:
                agent.reinvite(call, lambda _: None)
            agent.world.after(every, again)

    agent.world.after(every, again)


def test_caller_that_knows_timers_is_told_that_it_refreshes() -> None:
    town = short_town()
    call = town.alice.call(b"03023125001", headers=TIMER)
    town.world.run(5.0)
    invite = town.trunk.calls[0].invite
    assert invite is not None
    assert invite.first(b"session-expires") == b"300"
    assert call.final is not None
    assert (call.final.first(b"session-expires"), call.final.values(b"require")) == (b"300;refresher=uac", [b"timer"])


def test_session_that_is_refreshed_lives_and_one_that_is_not_ends_for_both() -> None:
    town = short_town()
    world = town.world
    call = town.alice.call(b"03023125001", headers=TIMER)
    world.run(5.0)
    refreshing(town.alice, call, 150.0, world.now + 1000.0)
    # The agent's re-INVITE names no timer: it is given one by us, and the answer to it is what counts.
    for _ in range(9):
        world.run(100.0)
        assert not world.records
    last = max(at for at, _, to, data in world.wire if to == PROXY and data.startswith(b"INVITE"))
    world.run(600.0)
    (record,) = world.records
    assert (record.end_reason, record.released_by, record.cause) == ("session_expired", "proxy", 102)
    assert not record.duration_certain
    assert record.billable_ms == pytest.approx((last - call.answered_at) * 1000, abs=100), "the last refresh"
    ended = min(at for at, source, _, data in world.wire if source == PROXY and data.startswith(b"BYE"))
    assert ended - last == pytest.approx(SESSION_S, abs=0.1)
    assert call.ended == town.trunk.calls[0].ended == "remote"
    town.assert_reconciled()


def test_update_refreshes_a_session_and_its_2xx_says_what_holds() -> None:
    town = short_town()
    world = town.world
    call = town.alice.call(b"03023125001", headers=TIMER)
    world.run(5.0)
    results: list[Response] = []
    world.after(200.0, lambda: town.alice._in_dialog(call, b"UPDATE", lambda r: results.append(r) if r else None))
    world.run(490.0)
    assert not world.records, "refreshed 290 s ago"
    assert [(r.status, r.first(b"session-expires")) for r in results] == [(200, b"300;refresher=uac")]
    update = next(r for r in town.trunk.requests if r.method == b"UPDATE")
    assert update.first(b"session-expires") == b"300"
    world.run(15.0)
    assert [r.end_reason for r in world.records] == ["session_expired"]


@pytest.mark.parametrize("expires", [b"60", b"89"])
def test_interval_below_the_minimum_is_refused_with_422_and_min_se(expires: bytes) -> None:
    town = short_town()
    call = town.alice.call(b"03023125001", headers=(*TIMER, (b"Session-Expires", expires)))
    town.world.run(5.0)
    assert call.status == 422
    assert call.final is not None
    assert call.final.first(b"min-se") == b"90"
    assert not town.trunk.requests
    assert [(r.status, r.end_reason) for r in town.world.records] == [(422, "refused")]
    again = town.alice.call(b"03023125001", headers=(*TIMER, (b"Session-Expires", b"90"), (b"Min-SE", b"90")))
    town.world.run(5.0)
    assert again.status == 200
    town.assert_reconciled()


def test_emergency_call_is_neither_asked_for_a_timer_nor_refused_for_one() -> None:
    town = short_town(maximum_s=100.0)
    call = town.alice.call(b"112", headers=(*TIMER, (b"Session-Expires", b"60")))
    town.world.run(5.0)
    assert call.status == 200
    invite = town.psap.calls[0].invite
    assert invite is not None
    assert invite.first(b"session-expires") == b"60"
    town.world.run(1000.0)
    assert not town.world.records, "no longest duration, no expiry"
    assert probes(town.psap)
    assert probes(town.alice)


def test_parties_without_timers_are_asked_and_live_on_when_they_answer() -> None:
    town = short_town()
    call = town.alice.call(b"03023125001")
    town.world.run(1000.0)
    assert not town.world.records
    at_alice, at_trunk = probes(town.alice), probes(town.trunk)
    assert len(at_alice) == len(at_trunk) == 8
    # The next number is the other party's to use: §12.2.2.
    assert {r.cseq.number for r in at_trunk} == {call.cseq}
    assert {r.cseq.number for r in at_alice} == {0}
    town.alice.reinvite(call, lambda _: None)
    town.trunk.reinvite(town.trunk.calls[0], lambda _: None)
    town.world.run(5.0)
    town.alice.bye(call)
    town.world.run(5.0)
    (record,) = town.world.records
    assert (record.end_reason, record.duration_certain) == ("normal", True)


@pytest.mark.parametrize("gone", ["alice", "trunk"])
def test_party_that_has_lost_the_call_ends_it_for_both_at_once(gone: str) -> None:
    """RFC 3261 §12.2.1.2: 481 means that the dialog is over."""
    town = short_town()
    world = town.world
    call = town.alice.call(b"03023125001")
    world.run(30.0)
    agent = getattr(town, gone)
    agent.by_call_id.clear()  # restarted: it answers, and knows nothing
    world.run(PROBE_S + 1.0)
    (record,) = world.records
    assert record.end_reason == "session_expired"
    other = town.trunk.calls[0] if gone == "alice" else call
    assert other.ended == "remote"
    assert byes(world) == {town.alice.address, town.trunk.address}
    town.assert_reconciled()


@pytest.mark.parametrize("status", [200, 405, 500, 501, 603])
def test_any_other_answer_to_a_probe_is_life(status: int) -> None:
    town = short_town()
    answer = town.trunk._respond

    def respond(server, code, tag=b"", *, contact=False):  # type: ignore[no-untyped-def]
        answer(server, status if server.request.method == b"OPTIONS" else code, tag, contact=contact)

    town.trunk._respond = respond  # type: ignore[method-assign]
    town.alice.call(b"03023125001")
    town.world.run(600.0)
    assert not town.world.records


def test_one_vanished_party_ends_the_call_at_the_last_instant_both_were_there() -> None:
    town = short_town()
    world = town.world
    call = town.alice.call(b"03023125001")
    world.run(200.0)
    gone_at = world.now
    vanish(town, town.alice)
    world.run(PROBE_S + 40.0)
    (record,) = world.records
    assert (record.end_reason, record.duration_certain) == ("session_expired", False)
    assert record.billable_ms <= (gone_at - call.answered_at) * 1000
    assert record.billable_ms == pytest.approx(PROBE_S * 1000, abs=500), "when both answered last"
    assert town.trunk.calls[0].ended == "remote"
    town.assert_reconciled()


@pytest.mark.parametrize("asked", ["probe", "info"])
def test_repeated_answer_is_no_later_a_sign_of_life_than_what_it_answers(asked: str) -> None:
    """RFC 3261 §17.2.2: a transaction answers a repeated request with what it said before, whatever became of the dialog."""
    town = short_town()
    world = town.world
    call = town.alice.call(b"03023125001")
    world.run(30.0)
    send, asked_at = world.send, []

    def lossy(data: bytes, source: tuple[str, int], to: tuple[str, int]) -> None:
        kind = b"OPTIONS" if asked == "probe" else b"INFO"
        if source == town.alice.address and data.startswith(b"SIP/2.0 200") and kind in data and len(asked_at) < 3:
            asked_at.append(world.now)
            town.alice.by_call_id.clear()  # it forgets the dialog as soon as it has answered
            return
        send(data, source, to)

    world.send = lossy  # type: ignore[method-assign]
    if asked == "info":
        town.trunk._in_dialog(town.trunk.calls[0], b"INFO")
    world.run(3 * PROBE_S)
    (record,) = world.records
    assert len(asked_at) == 3
    assert asked_at[2] - asked_at[0] > 1.0
    assert (record.end_reason, record.duration_certain) == ("session_expired", False)
    assert record.billable_ms == pytest.approx((asked_at[0] - call.answered_at) * 1000, abs=100)


def test_emergency_call_outlives_a_caller_whose_signalling_is_lost_but_not_both() -> None:
    town = short_town()
    world = town.world
    town.alice.call(b"112")
    world.run(30.0)
    vanish(town, town.alice)
    world.run(1000.0)
    assert not world.records, "the caller may still be speaking"
    world.agents[town.alice.address] = town.alice._receive
    world.run(PROBE_S + 40.0)
    vanish(town, town.alice, town.psap)
    world.run(PROBE_S + 72.0)
    assert [r.end_reason for r in world.records] == ["session_expired"]
    assert byes(world) == {town.alice.address, PSAP}


def test_session_that_the_parties_of_an_emergency_call_agreed_on_does_not_end_it() -> None:
    town = short_town()
    answer = town.psap._respond

    def respond(server: Server, status: int, tag: bytes = b"", *, contact: bool = False) -> None:
        answer_with_timer(town.psap, server, status, tag)

    town.psap._respond = respond  # type: ignore[method-assign]
    call = town.alice.call(b"112", headers=TIMER)
    town.world.run(5.0)
    town.psap._respond = answer  # type: ignore[method-assign]
    assert call.final is not None
    assert call.final.first(b"session-expires") == b"90;refresher=uac"
    town.world.run(600.0)
    assert not town.world.records


def answer_with_timer(agent: Agent, server: Server, status: int, tag: bytes) -> None:
    headers = [(b"Record-Route", route.raw) for route in server.request.record_routes]
    headers += [(b"Contact", b"<sip:psap@%s:%d>" % (PSAP[0].encode(), PSAP[1])), (b"Session-Expires", b"90;refresher=uac")]
    agent._tx.respond(server, status, write_response(server.request, status, to_tag=tag, headers=headers), agent.world.now)
    agent._flush()


def test_hop_that_cannot_be_reached_is_asked_again_before_the_party_counts_as_gone() -> None:
    """A connection may be on its way back: one failure of the transport proves nothing."""
    town = short_town()
    world = town.world
    town.alice.call(b"03023125001")
    world.run(PROBE_S - 5.0)
    vanish(town, town.trunk)

    def fail_probes() -> int:
        clients = world.engine.desk.transactions.clients
        keys = [key for key, c in clients.items() if c.request.method == b"OPTIONS" and c.target.host == TRUNK_A[0]]
        for key in keys:
            world.perform(world.engine.transport_failed(("c", key), world.instant))
        return len(keys)

    world.run(7.0)
    assert fail_probes() == 1
    world.run(30.0)
    assert not world.records
    world.run(3.0)
    assert fail_probes() == 1
    assert [r.end_reason for r in world.records] == ["session_expired"]


def test_provisional_answer_to_a_probe_is_a_hops_word_and_proves_nothing() -> None:
    town = short_town()
    answer = town.trunk._respond

    def respond(server: Server, status: int, tag: bytes = b"", *, contact: bool = False) -> None:
        answer(server, 100 if server.request.method == b"OPTIONS" else status, tag, contact=contact)

    town.trunk._respond = respond  # type: ignore[method-assign]
    town.alice.call(b"03023125001")
    town.world.run(PROBE_S + 40.0)
    (record,) = town.world.records
    assert record.end_reason == "session_expired"
    assert record.billable_ms < 1000, "the carrier was not heard after its answer"


def test_lost_dialog_of_a_forked_call_ends_alone() -> None:
    """Two 200s, two dialogs: one callee vanishes, the call with the other goes on (RFC 4028 §8.2: an expiration for each)."""
    town = short_town()
    second = town.second_device()
    for agent in (town.bob, second):
        agent.behave = lambda call, agent=agent: agent.answer(call)  # type: ignore[misc]
    town.trunk.call(b"+4920514001")
    town.world.run(5.0)
    assert [agent.calls[0].status for agent in (town.bob, second)] == [200, 200]
    vanish(town, second)
    town.world.run(PROBE_S + 40.0)
    assert byes(town.world) == {TRUNK_A, second.address}
    assert not town.world.records
    vanish(town, town.bob)
    town.world.run(PROBE_S + 40.0)
    assert [r.end_reason for r in town.world.records] == ["session_expired"]
    town.assert_reconciled()


@pytest.mark.parametrize("seed", range(4))
def test_living_calls_over_a_lossy_wire_are_never_reaped(seed: int) -> None:
    """Probes and timers must not cost a call whose parties are there, at 10 % loss, with duplicates and reordering."""
    town = make_town(
        seed=seed, loss=0.1, duplicate=0.05, delay=(0.001, 0.4), probe_s=20.0, session_expires_s=90, line_fields={"channels": 9}
    )
    world, choose = town.world, town.world.random
    for agent in (town.alice, town.andrea, town.bob):
        agent.register()
    world.run(40.0)
    calls = []
    for n in range(12):
        caller = choose.choice([town.alice, town.andrea])
        call = caller.call(b"112" if n % 6 == 5 else b"03023125001", headers=TIMER if n % 3 == 0 else ())
        refreshing(caller, call, 40.0 if n % 3 == 0 else 130.0, world.now + 3600.0, update=True)
        calls.append((caller, call))
        world.run(choose.uniform(0.0, 5.0))
    world.run(1800.0)
    up = [(caller, call) for caller, call in calls if call.status == 200]
    assert len(up) >= 8
    assert not [r for r in world.records if r.end_reason == "session_expired"]
    assert [call.ended for _, call in up] == [""] * len(up)
    for caller, call in up:
        caller.bye(call)
    world.run(100.0)
    assert {r.end_reason for r in world.records if r.status == 200} == {"normal"}
    town.assert_reconciled()


def crowd(count: int, *, loss: float) -> tuple[World, list[Agent], Agent]:
    """`count` lines of one account each, registered, and a carrier."""
    users = [f"u{n}" for n in range(count)]
    found = snapshot(
        [line(f"L{user}", user, channels=1) for user in users],
        [account(user, f"L{user}", f"+4960325{n:05d}") for n, user in enumerate(users)],
    )
    world = World(
        found,
        seed=4,
        trunks=(trunk("carrier", TRUNK_A),),
        loss=loss,
        probe_s=PROBE_S,
        session_expires_s=SESSION_S,
    )
    agents = [Agent(world, (f"203.0.{113 + n // 200}.{n % 200 + 1}", 5060), user) for n, user in enumerate(users)]
    carrier = Agent(world, TRUNK_A, host="198.51.100.1")
    for n, agent in enumerate(agents):
        world.after(n * 0.01, agent.register)
    world.run(count * 0.01 + 60.0)
    assert all(agent.registered == 200 for agent in agents)
    return world, agents, carrier


def crowd_calls(world: World, agents: list[Agent]) -> list[AgentCall]:
    """A call of each agent, answered. Half of the callers know timers, and half of these refresh."""
    calls = []
    for n, agent in enumerate(agents):
        call = agent.call(b"03023125001", headers=TIMER if n % 2 else ())
        if n % 4 == 1:
            refreshing(agent, call, SESSION_S / 2, world.now + 5000.0)
        calls.append(call)
        world.run(0.01)
    world.run(60.0)
    assert [call.status for call in calls] == [200] * len(agents)
    return calls


def vanish_within(
    world: World, agents: list[Agent], calls: list[AgentCall], carrier: Agent, seconds: float
) -> dict[bytes, float]:
    """Let the caller, the callee or both of each call vanish for good some time; Call-ID -> when, as it happens."""
    truth: dict[bytes, float] = {}
    forgotten: set[bytes] = set()

    def hear(data: bytes, source: tuple[str, int]) -> None:
        if parse_message(data).call_id not in forgotten:
            carrier._receive(data, source)

    def vanishes(n: int) -> None:
        truth[calls[n].call_id] = world.now
        if n % 3 != 1:
            world.agents.pop(agents[n].address, None)
            calls[n].ended = "vanished"
        if n % 3 != 0:
            forgotten.add(calls[n].call_id)

    world.agents[carrier.address] = hear
    for n in range(len(calls)):
        world.after(world.random.uniform(0.0, seconds), partial(vanishes, n))
    return truth


def test_500_calls_whose_parties_vanish_are_all_reaped_within_the_bound() -> None:
    count = 500
    world, agents, carrier = crowd(count, loss=0.02)
    calls = crowd_calls(world, agents)
    assert len(world.store.all()) == count
    truth = vanish_within(world, agents, calls, carrier, 900.0)
    reaped: dict[str, float] = {}
    end = world.now + 900.0 + BOUND_S + 33.0  # the BYEs are repeated for 64*T1
    while world.now < end:
        world.run(1.0)
        reaped |= {record.call_id: world.now for record in world.records[len(reaped) :]}
    assert [record.seq for record in world.records] == list(range(1, count + 1))
    assert not world.store.all()
    assert not world.live_slots()
    late = {key: reaped[key.decode()] - at for key, at in truth.items() if reaped[key.decode()] - at > BOUND_S}
    assert not late
    sent = {(to, data) for _, source, to, data in world.wire if source == PROXY and data.startswith(b"BYE ")}
    told = Counter((parse_message(data).call_id, to == TRUNK_A) for to, data in sent)
    assert told == {(call.call_id, at_trunk): 1 for call in calls for at_trunk in (True, False)}, "a BYE to each side"
    offset = world.instant.utc_ms / 1000 - world.now
    for record in world.records:
        assert (record.end_reason, record.released_by, record.duration_certain) == ("session_expired", "proxy", False)
        assert record.end_at_ms / 1000 <= truth[record.call_id.encode()] + offset + 0.05, "not above the truth"
