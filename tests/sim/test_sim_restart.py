"""kill -9 on the virtual clock: calls that live go on, calls that ended meanwhile are found, every call has one record."""

from __future__ import annotations

import pytest

from cdr import codec
from cdr.facts import Admit, Answer
from tests.sim.restart import expire, unfinished
from tests.sim.restarted import WIRE_MS, a_town, agents_of, answered, answered_call, assert_honest, hang_up_all
from tests.sim.test_sim_calls import behave_at_random, call_at_random
from tests.sim.world import PROXY


@pytest.mark.parametrize("leaver", ["caller", "callee"])
def test_bye_after_the_restart_ends_the_call_for_both_and_is_certain(leaver: str) -> None:
    town, node = a_town()
    call = answered_call(town)
    node.kill()
    town.world.run(5.0)
    node.start()
    assert town.world.store.all() == town.world.live_slots() != set()
    town.world.run(60.0)
    (town.alice if leaver == "caller" else town.trunk).bye(call if leaver == "caller" else answered(town.trunk))
    town.world.run(1.0)
    assert {call.ended, answered(town.trunk).ended} == {"local", "remote"}
    (record,) = town.world.records
    assert (record.end_reason, record.released_by, record.duration_certain) == ("normal", leaver, True)
    assert abs(record.billable_ms - 65_000) < 5_000
    ended_at = max(call.ended_at, answered(town.trunk).ended_at)
    assert abs(record.billable_ms - 1000 * (ended_at - call.answered_at)) < WIRE_MS
    town.assert_reconciled()


def test_reinvite_of_either_party_passes_after_the_restart() -> None:
    town, node = a_town()
    call = answered_call(town)
    node.kill()
    node.start()
    statuses: list[int] = []
    for agent, own in ((town.alice, call), (town.trunk, answered(town.trunk))):
        agent.reinvite(own, lambda r: statuses.append(r.status if r else 0))
        town.world.run(2.0)
    assert [status for status in statuses if status >= 200] == [200, 200]
    assert len(town.world.store.all()) == 1


def test_internal_call_goes_on_with_both_slots() -> None:
    town, node = a_town()
    call = answered_call(town, b"020514001")
    assert len(town.world.store.all()) == 2
    node.kill()
    town.world.store.lines.clear()  # the leases ran out while it was away
    node.start()
    assert len(town.world.store.all()) == 2
    town.world.run(30.0)
    town.bob.bye(answered(town.bob))
    town.world.run(2.0)
    assert call.ended == "remote"
    town.assert_reconciled()


def test_bye_sent_while_the_node_was_away_is_uncertain_and_not_later_than_the_truth() -> None:
    town, node = a_town()
    call = answered_call(town)
    town.world.run(600.0)
    node.kill()
    town.world.run(1.0)
    town.alice.bye(call)
    town.world.run(4.0)
    node.start()
    town.world.run(10.0)
    (record,) = town.world.records
    assert (record.end_reason, record.released_by, record.duration_certain) == ("normal", "caller", False)
    true_ms = 1000 * (call.ended_at - call.answered_at)
    assert true_ms - 32_000 <= record.billable_ms <= true_ms
    assert answered(town.trunk).ended == "remote"
    town.assert_reconciled()


@pytest.mark.parametrize("actions", range(1, 9))
def test_node_that_dies_with_a_bye_in_its_hands_leaves_nobody_behind(actions: int) -> None:
    """Whatever it did of it before it died, the party that stayed is told when the BYE is repeated."""
    town, node = a_town()
    call = answered_call(town)
    town.world.run(20.0)
    node.kill_after(actions, lambda: town.world.after(0.2, node.start))
    town.alice.bye(call)
    town.world.run(60.0)
    assert answered(town.trunk).ended == "remote"
    (record,) = town.world.records
    assert record.end_reason == "normal"
    assert record.billable_ms <= 1000 * (call.ended_at - call.answered_at) + WIRE_MS
    town.assert_reconciled()


@pytest.mark.parametrize("leaver", ["caller", "callee", "nobody"])
@pytest.mark.parametrize("repeats", [True, False])
def test_bye_that_was_lost_and_whose_node_died_is_said_again(leaver: str, *, repeats: bool) -> None:
    """END is journalled, the BYE to the other party is lost on the wire: the next node tells it, whether or not the first one
    repeats his (over a connection he would not)."""
    town, node = a_town(maximum_s=60.0)
    world, send = town.world, town.world.send
    call, parties = answered_call(town), (town.alice, town.trunk)
    stays = {"caller": [town.trunk], "callee": [town.alice], "nobody": [town.alice, town.trunk]}[leaver]
    lost = []

    def losing(data: bytes, source: tuple[str, int], to: tuple[str, int]) -> None:
        if data.startswith(b"BYE") and source == PROXY and to in [party.address for party in stays] and not node.kills:
            lost.append(to)
        elif data.startswith(b"BYE") and source != PROXY and node.kills and not repeats:
            return
        else:
            send(data, source, to)

    world.send = losing  # type: ignore[method-assign]
    if leaver == "nobody":
        world.run_until(lambda: len(lost) == 2)
    else:
        parties[leaver == "callee"].bye(call if leaver == "caller" else answered(town.trunk))
        world.run_until(lambda: bool(lost))
    assert lost == [party.address for party in stays]
    (record,) = world.records
    node.kill()
    world.run(2.0)
    node.start()
    world.run(10.0)
    assert [bool(own.ended) for own in (call, answered(town.trunk))] == [True, True]
    assert world.records == [record]
    world.run(40.0)
    assert (world.engine.calls.by_id, world.store.all()) == ({}, set())
    town.assert_reconciled()


def test_calls_that_ended_long_before_the_node_died_are_not_told_again() -> None:
    town, node = a_town()
    world = town.world
    call = answered_call(town)
    town.alice.bye(call)
    world.run(20.0)
    town.alice.bye(answered_call(town))
    world.run(1.0)
    node.kill()
    node.start()
    assert list(world.engine.calls.by_id) == [world.records[-1].id]
    assert world.engine.calls.live == 0


def test_repeated_ack_of_a_party_that_hung_up_is_no_proof_of_life() -> None:
    """RFC 3261 §13.2.2.4: an ACK answers every 2xx that comes, also after a BYE of which nothing was heard."""
    town, _ = a_town(probe_s=30)
    call = answered_call(town)
    world, send, alice = town.world, town.world.send, town.alice.address
    ack = [data for _, source, _, data in world.wire if source == alice and data.startswith(b"ACK")][-1]

    def losing(data: bytes, source: tuple[str, int], to: tuple[str, int]) -> None:
        if source != alice or not data.startswith(b"BYE"):
            send(data, source, to)

    world.send = losing  # type: ignore[method-assign]
    town.alice.bye(call)
    world.run(5.0)
    send(ack.replace(b"branch=z9hG4bK", b"branch=z9hG4bKagain"), alice, PROXY)
    world.run(90.0)
    (record,) = world.records
    assert (record.end_reason, record.duration_certain) == ("session_expired", False)
    assert record.billable_ms <= 1000 * (call.ended_at - call.answered_at) + WIRE_MS


def test_both_parties_hung_up_while_the_node_was_away_and_one_gave_up_telling() -> None:
    """The BYE that is heard was repeated from a time at which the other party may have left long before."""
    town, node = a_town(probe_s=60)
    call = answered_call(town)
    town.world.run(100.0)
    node.kill()
    town.alice.bye(call)
    town.world.run(25.0)
    town.trunk.bye(answered(town.trunk))
    town.world.run(12.0)
    node.start()
    town.world.run(10.0)
    (record,) = town.world.records
    assert (record.end_reason, record.released_by, record.duration_certain) == ("normal", "callee", False)
    assert record.billable_ms <= 1000 * (call.ended_at - call.answered_at)


def test_parties_that_hung_up_and_gave_up_meanwhile_are_found_by_asking() -> None:
    town, node = a_town()
    call = answered_call(town)
    node.kill()
    town.alice.bye(call)
    town.world.run(40.0)
    node.start()
    town.world.run(10.0)
    (record,) = town.world.records
    assert (record.end_reason, record.duration_certain) == ("session_expired", False)
    assert record.billable_ms <= 1000 * (call.ended_at - call.answered_at)
    assert answered(town.trunk).ended == "remote", "a BYE to the one who stayed"
    town.assert_reconciled()


@pytest.mark.parametrize("probe_s", [0, 600])
def test_parties_that_vanished_are_reaped_within_the_bound(probe_s: int) -> None:
    town, node = a_town(probe_s=probe_s)
    answered_call(town)
    node.kill()
    for agent in (town.alice, town.trunk):
        del town.world.agents[agent.address]
    node.start()
    town.world.run(town.world.settings.recovered_reap_s + 1)
    (record,) = town.world.records
    assert (record.end_reason, record.duration_certain) == ("session_expired", False)
    assert town.world.store.all() == set()


@pytest.mark.parametrize("probe_s", [0, 600])
def test_parties_that_live_are_not_cut_by_the_bound(probe_s: int) -> None:
    town, node = a_town(probe_s=probe_s, session_expires_s=0)
    call = answered_call(town)
    node.kill()
    node.start()
    town.world.run(1000.0)
    assert (call.ended, town.world.records) == ("", [])


def test_bye_of_ours_after_the_restart_comes_after_what_the_parties_sent() -> None:
    """RFC 3261 §12.2.1.1: CSeq counts up, also when requests of before the crash are known from the journal alone."""
    town, node = a_town(maximum_s=100.0)
    call = answered_call(town)
    for _ in range(3):
        town.alice.reinvite(call, lambda _: None)
        town.world.run(2.0)
    node.kill()
    node.start()
    town.world.run(120.0)
    byes = [request for request in town.trunk.requests if request.method == b"BYE"]
    assert [bye.cseq.number > call.cseq for bye in byes] == [True]
    (record,) = town.world.records
    assert (record.end_reason, record.duration_certain, record.billable_ms) == ("maximum", True, 100_000)


def test_ringing_call_ends_with_the_node() -> None:
    town, node = a_town()
    town.trunk.behave = lambda call: town.trunk.progress(call, 180)
    town.alice.call(b"03023125001")
    town.world.run(3.0)
    node.kill()
    node.start()
    (record,) = town.world.records
    assert (record.end_reason, record.duration_certain, record.billable_ms) == ("node_restart", False, 0)
    assert town.world.store.all() == set()


def test_emergency_call_goes_on() -> None:
    town, node = a_town()
    call = answered_call(town, b"112")
    node.kill()
    node.start()
    town.world.run(20.0)
    town.psap.bye(answered(town.psap))
    town.world.run(1.0)
    assert call.ended == "remote"
    (record,) = town.world.records
    assert (record.verdict, record.end_reason, record.duration_certain) == ("emergency", "normal", True)


def test_answer_that_the_node_died_with_reaches_the_caller_after_the_restart() -> None:
    """ANSWER is journalled and the 200 is not out: the callee repeats it, and the caller's ACK ends that."""
    town, node = a_town()
    call = town.alice.call(b"03023125001")
    world = town.world
    world.run_until(lambda: any(agent.status for agent in town.trunk.calls))
    while not any(isinstance(fact, Answer) for fact in world.facts):
        node.kill_after(1, lambda: None)
        world.run(0.001)
        if node.is_away:
            break
    assert not call.status
    node.start()
    world.run(5.0)
    assert (call.status, answered(town.trunk).acked) == (200, True)
    world.run(40.0)
    town.alice.bye(call)
    world.run(1.0)
    assert answered(town.trunk).ended == "remote"
    town.assert_reconciled()


def test_invite_repeated_across_the_restart_is_no_new_call() -> None:
    town, node = a_town()
    call = answered_call(town)
    node.kill()
    node.start()
    assert call.invite is not None
    town.world.send(call.invite.raw, town.alice.address, PROXY)
    town.world.run(3.0)
    assert (len(town.trunk.calls), town.world.engine.calls.live, town.world.records) == (1, 1, [])


def test_remote_target_of_a_reinvite_is_known_after_the_restart() -> None:
    """RFC 3261 §12.2: a re-INVITE's Contact is where the party is reached from then on."""
    town, node = a_town(maximum_s=100.0)
    answered_call(town)
    town.trunk.contact_user = "moved"
    town.trunk.reinvite(answered(town.trunk), lambda _: None)
    town.world.run(2.0)
    node.kill()
    node.start()
    town.world.run(120.0)
    (bye,) = [request for request in town.trunk.requests if request.method == b"BYE"]
    assert bye.uri.startswith(b"sip:moved@")


def test_second_crash_before_anything_was_heard_loses_nothing() -> None:
    town, node = a_town()
    call = answered_call(town)
    for _ in range(3):
        node.kill()
        town.world.run(2.0)
        node.start()
    town.world.run(50.0)
    town.alice.bye(call)
    town.world.run(1.0)
    (record,) = town.world.records
    assert abs(record.billable_ms - 1000 * (call.ended_at - call.answered_at)) < WIRE_MS
    assert record.duration_certain


def test_life_too_short_to_be_told_of_an_end_proves_nothing_about_it() -> None:
    """The callee hangs up while the node is away, which lives on between two repetitions of its BYE, busy with another call."""
    town, node = a_town(probe_s=60)
    world = town.world
    call = answered_call(town)
    world.run(20.0)
    town.bob.call(b"03023125003")
    world.run(2.0)
    node.kill()
    world.run(0.1)
    town.trunk.bye(town.trunk.calls[0])  # repeated 7.5 and 11.5 s after that, for 32 s
    world.run(8.0)
    node.start()
    town.andrea.call(b"03023125002")
    world.run(2.5)
    assert town.andrea.calls[-1].status == 200
    node.kill()
    world.run(35.0)
    town.alice.bye(call)
    node.start()
    world.run(5.0)
    record = next(record for record in world.records if record.call_id == call.call_id.decode())
    assert (record.end_reason, record.released_by, record.duration_certain) == ("normal", "caller", False)
    assert record.billable_ms <= 1000 * (town.trunk.calls[0].ended_at - call.answered_at)
    assert record.billable_ms >= 19_000


def test_call_that_was_heard_after_the_first_kill_has_its_node_watch_over_it_again() -> None:
    town, node = a_town(probe_s=0)
    world = town.world
    call = answered_call(town)
    node.kill()
    world.run(3.0)
    node.start()
    world.run(7.0)  # both are asked, and answer
    town.andrea.call(b"03023125002")
    world.run(40.0)
    town.andrea.bye(town.andrea.calls[-1])
    world.run(1.0)
    town.andrea.call(b"03023125003")
    world.run(2.0)
    node.kill()
    world.run(40.0)
    town.alice.bye(call)
    node.start()
    world.run(5.0)
    record = next(record for record in world.records if record.call_id == call.call_id.decode())
    assert (record.end_reason, record.duration_certain) == ("normal", False)
    assert 1000 * (52 - 1) <= record.billable_ms <= 1000 * (call.ended_at - call.answered_at)


def test_reboot_is_measured_by_the_wall_clock_and_never_certain() -> None:
    town, node = a_town()
    call = answered_call(town)
    node.kill()
    town.world.run(30.0)
    node.start(boot="boot-2")
    town.world.run(60.0)
    town.alice.bye(call)
    town.world.run(1.0)
    (record,) = town.world.records
    assert abs(record.billable_ms - 1000 * (call.ended_at - call.answered_at)) < WIRE_MS
    assert not record.duration_certain


def test_facts_of_an_earlier_version_end_with_the_node() -> None:
    """They have no dialogs: the call cannot be taken up, its record and its slot are as they were before."""
    town, node = a_town()
    answered_call(town)
    world = town.world
    world.facts = [
        Admit(fact.record)
        if isinstance(fact, Admit)
        else Answer(*(getattr(fact, name) for name in Answer.__struct_fields__[:10]))
        if isinstance(fact, Answer)
        else fact
        for fact in world.facts
    ]
    node.kill()
    node.start()
    (record,) = world.records
    assert (record.end_reason, record.status, record.duration_certain) == ("node_restart", 200, False)
    assert world.store.all() == set()


def test_listener_that_is_no_more_ends_its_calls() -> None:
    town, node = a_town()
    answered_call(town)
    node.kill()
    listener = town.world.settings.listeners[0]
    node.start(listeners=(type(listener)(0, "TCP", listener.sent_by, listener.hosts),))
    assert [record.end_reason for record in town.world.records] == ["node_restart"]


def test_facts_of_one_call_stay_small() -> None:
    town, _ = a_town()
    call = answered_call(town)
    town.alice.reinvite(call, lambda _: None)
    town.world.run(1.0)
    sizes = {codec.kind_of(fact): len(codec.encode_fact(fact)) for fact in town.world.facts}
    assert sizes["answer"] < 2000
    assert sizes["alive"] < 120


@pytest.mark.parametrize("seed", range(6))
def test_kills_at_random_points_of_random_calls_leave_one_record_each_and_no_slot(seed: int) -> None:
    """Design, invariants 2 to 4, with 3 % loss: the node dies between any two actions and is away for up to 40 s."""
    town, node = a_town(seed=seed, delay=(0.001, 0.1), probe_s=60, session_expires_s=0)
    world, choose = town.world, town.world.random
    world.loss = 0.03
    for agent in agents_of(town):
        behave_at_random(agent)

    def die() -> None:
        world.after(choose.choice([0.01, 1.0, 5.0, 40.0]), node.start)
        world.after(choose.uniform(45, 120), lambda: node.kill_after(choose.randint(1, 20), die))

    node.kill_after(choose.randint(1, 50), die)
    for _ in range(80):
        call_at_random(town)
        world.run(choose.uniform(0.1, 15))
        for name, limit in (("L1", 2), ("L2", 3)):
            assert sum(1 for line, _ in world.store.all() if line == name) <= limit
    hang_up_all(town)
    node.is_over = True
    node.kill_after(0, die)
    world.run(541.0)
    hang_up_all(town)  # what was still being set up has been answered meanwhile
    world.run(61.0)
    world.loss = 1.0  # an emergency call whose BYE came while nobody was there goes on while either party can be heard
    world.run(world.settings.reap_s + 1.0)
    assert node.kills >= 5
    assert node.resumed >= 3
    expire(world)
    assert world.store.all() == world.live_slots() == set()
    assert unfinished(world.facts) == []
    ids = [record.id for record in world.records]
    assert len(ids) == len(set(ids))
    assert {record.id for record in world.admitted} <= set(ids)
    assert [record.seq for record in world.records] == list(range(1, len(ids) + 1))
    assert_honest(town)
