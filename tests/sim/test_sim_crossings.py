"""Answers, cancellations and changes that cross: late 2xx, reliable provisionals, early dialogs, glare
(RFC 3261 §9, §13.2.2.4, §14; RFC 3262; RFC 3311; design, invariants 2 and 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.sim.agent import SDP, Agent
from tests.sim.world import PROXY

if TYPE_CHECKING:
    from sipproxy.sip.message import Response
    from tests.sim.agent import AgentCall
    from tests.sim.conftest import Town

FAX = SDP.replace(b"m=audio 4000 RTP/AVP 8", b"m=image 4000 udptl t38")


def methods(agent: Agent) -> list[bytes]:
    return [request.method for request in agent.requests]


def deaf_to_cancel(agent: Agent, *, answers_after: float) -> None:
    """Have the agent ring, take no notice of a CANCEL, and answer so many seconds after the INVITE."""

    def answer(call: AgentCall) -> None:
        call.status = 0
        agent.answer(call)

    def behave(call: AgentCall) -> None:
        agent.progress(call, 180)
        call.status = 1
        agent.world.after(answers_after, lambda: answer(call))

    agent.behave = behave


# Late answers


def given_up(town: Town) -> AgentCall:
    """A call that its caller cancelled so long ago that nobody waits for the carrier's answer, which is still to come."""
    town.register_all()
    deaf_to_cancel(town.trunk, answers_after=40.0)
    call = town.alice.call(b"03023125001")
    town.world.run(2.0)
    town.alice.cancel(call)
    town.world.run(36.0)
    return call


def test_fork_that_answers_after_the_call_is_over_is_acknowledged_and_ended(town: Town) -> None:
    """RFC 3261 §13.2.2.4, for a caller who is gone: no callee stays in a call with nobody."""
    town.register_all()
    second = town.second_device()
    town.bob.behave = town.bob.answer
    deaf_to_cancel(second, answers_after=5.0)
    call = town.trunk.call(b"+4920514001")
    town.world.run(2.0)
    assert call.status == 200
    town.trunk.bye(call)
    town.world.run(1.0)
    assert len(town.world.records) == 1
    town.world.run(10.0)
    assert (second.calls[0].acked, second.calls[0].ended) == (True, "remote")
    assert methods(second).count(b"BYE") == 1
    assert len(town.world.records) == 1
    assert town.world.engine.desk.counters["late_2xx", "binding"] >= 1
    town.assert_reconciled()


def test_carrier_that_answers_after_its_branch_was_given_up_is_acknowledged_and_ended(town: Town) -> None:
    """64*T1 after the CANCEL the client transaction is gone (§9.1), and what comes then belongs to none."""
    call = given_up(town)
    assert (call.status, [r.end_reason for r in town.world.records]) == (487, ["cancelled"])
    town.world.run(10.0)
    late = town.trunk.calls[0]
    assert (late.acked, late.ended) == (True, "remote")
    assert town.world.engine.desk.counters["late_2xx", "trunk"] >= 1
    bye = next(r for r in town.trunk.requests if r.method == b"BYE")
    assert bye.cseq.number == call.cseq + 1
    assert len(town.world.records) == 1
    town.assert_reconciled()


def test_late_answer_whose_ack_is_lost_is_acknowledged_again_and_ended_once(town: Town) -> None:
    given_up(town)
    send, lost = town.world.send, []

    def without_the_first_ack(data: bytes, source: tuple[str, int], to: tuple[str, int]) -> None:
        if data.startswith(b"ACK") and to == town.trunk.address and not lost:
            lost.append(data)
        else:
            send(data, source, to)

    town.world.send = without_the_first_ack  # type: ignore[method-assign]
    town.world.run(10.0)
    assert lost
    assert town.trunk.calls[0].acked
    assert methods(town.trunk).count(b"BYE") == 1


def test_lost_ack_has_the_2xx_repeated_to_the_caller_who_acknowledges_again(town: Town) -> None:
    """§13.3.1.4: the UAS repeats its 2xx until the ACK, through us."""
    town.register_all()
    send, lost = town.world.send, []

    def without_the_first_ack(data: bytes, source: tuple[str, int], to: tuple[str, int]) -> None:
        if data.startswith(b"ACK") and to == town.trunk.address and not lost:
            lost.append(data)
        else:
            send(data, source, to)

    town.world.send = without_the_first_ack  # type: ignore[method-assign]
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    assert lost
    assert town.trunk.calls[0].acked
    assert [r.status for r in town.alice.responses if r.cseq.method == b"INVITE"].count(200) == 2
    town.alice.bye(call)
    town.world.run(1.0)
    assert len(town.world.records) == 1
    town.assert_reconciled()


# CANCEL


@pytest.mark.parametrize("after", [0.0, 0.003, 0.01, 0.02, 0.04, 0.08, 0.16, 0.95, 1.0, 1.01, 1.02, 1.03, 1.05, 1.1, 2.0])
def test_cancel_at_every_moment_leaves_one_record_and_one_truth(town: Town, after: float) -> None:
    """§9.1 and §15: it ends the call, or crosses the answer, and then a BYE does."""
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run_until(lambda: bool(call.provisional))
    town.world.run(after)
    town.alice.cancel(call)
    town.world.run(5.0)
    assert call.status in (200, 487)
    assert (town.trunk.calls[0].status if town.trunk.calls else 487) == call.status
    if call.status == 200:
        assert not town.world.records
        town.alice.bye(call)
        town.world.run(1.0)
    (record,) = town.world.records
    assert record.end_reason == ("normal" if call.status == 200 else "cancelled")
    town.assert_reconciled()


def test_cancel_of_an_answered_call_is_200_and_changes_nothing(town: Town) -> None:
    """§9.2: once there is a final response, CANCEL has no effect."""
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    assert call.invite is not None
    raw = call.invite.raw.partition(b"\r\n\r\n")[0].replace(b"INVITE", b"CANCEL")
    cancel = b"\r\n".join(line for line in raw.split(b"\r\n") if not line.startswith(b"Content-")) + b"\r\n\r\n"
    town.world.send(cancel, town.alice.address, PROXY)
    town.world.run(1.0)
    answers = [d for _, s, to, d in town.world.wire if s == PROXY and to == town.alice.address and b" CANCEL\r\n" in d]
    assert [d[:12] for d in answers] == [b"SIP/2.0 200 "]
    assert b"CANCEL" not in methods(town.trunk)
    assert (call.ended, town.world.records) == ("", [])


# Early dialogs


def enter_early(agent: Agent, call: AgentCall, tag: bytes = b"") -> Response:
    """Take a provisional response of the call as the start of an early dialog (§12.1.2)."""
    found = [r for r in agent.responses if r.call_id == call.call_id and 100 < r.status < 200 and tag in (b"", r.to.tag)]
    response = found[-1]
    call.remote_tag = response.to.tag or b""
    call.remote_target = response.contacts[0].uri.raw
    call.routes = [route.raw for route in reversed(response.record_routes)]
    return response


def within(agent: Agent, call: AgentCall, method: bytes, *headers: tuple[bytes, bytes], run: float = 1.0) -> list[int]:
    """The final statuses of a request within the call's dialog."""
    seen: list[int] = []
    agent.chatter = list(headers)
    agent._in_dialog(call, method, lambda r: seen.append(r.status) if r is not None and r.is_final else None)
    agent.chatter = []
    agent.world.run(run)
    return seen


def reliably(agent: Agent, call: AgentCall, number: int = 1, status: int = 183) -> None:
    """Send a reliable provisional response (RFC 3262 §3)."""
    agent.chatter = [(b"Require", b"100rel"), (b"RSeq", b"%d" % number)]
    agent.progress(call, status)
    agent.chatter = []


@pytest.mark.parametrize("direction", ["outgoing", "incoming", "internal"])
def test_reliable_provisional_and_its_prack_pass(town: Town, direction: str) -> None:
    """RFC 3262: RSeq and RAck are between the parties; a PRACK is a request of its own to us."""
    town.register_all()
    caller, callee, number = {
        "outgoing": (town.alice, town.trunk, b"03023125001"),
        "incoming": (town.trunk, town.bob, b"+4920514001"),
        "internal": (town.alice, town.bob, b"020514001"),
    }[direction]
    callee.behave = lambda call: reliably(callee, call, 4711)
    call = caller.call(number, headers=((b"Supported", b"100rel"),))
    town.world.run(1.0)
    response = enter_early(caller, call)
    assert (response.lines(b"require"), response.lines(b"rseq")) == ([b"100rel"], [b"4711"])
    assert callee.requests[0].lines(b"supported") == [b"100rel"]
    invite = call.cseq
    assert within(caller, call, b"PRACK", (b"RAck", b"4711 %d INVITE" % invite)) == [200]
    (prack,) = [r for r in callee.requests if r.method == b"PRACK"]
    assert prack.lines(b"rack") == [b"4711 %d INVITE" % invite]
    callee.answer(callee.calls[0])
    town.world.run(1.0)
    assert call.status == 200
    caller.bye(call)
    town.world.run(1.0)
    (record,) = town.world.records
    assert record.ringing_at_ms is not None
    town.assert_reconciled()


def test_repeated_reliable_provisional_reaches_the_caller_again(town: Town) -> None:
    """RFC 3262 §3: the UAS repeats it until the PRACK; a proxy absorbs no provisional response (RFC 3261 §16.7 step 5)."""
    town.register_all()

    def behave(call: AgentCall) -> None:
        for after in (0.0, 0.5, 1.5):
            town.world.after(after, lambda: reliably(town.trunk, call))

    town.trunk.behave = behave
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    assert call.provisional.count(183) == 3


def test_prack_of_each_of_several_early_dialogs_reaches_its_own_device(town: Town) -> None:
    town.register_all()
    second = town.second_device()
    for agent in (town.bob, second):
        agent.behave = lambda call, agent=agent: reliably(agent, call, 1)  # type: ignore[misc]
    call = town.trunk.call(b"+4920514001")
    town.world.run(1.0)
    for agent in (town.bob, second):
        enter_early(town.trunk, call, agent.calls[0].local_tag)
        assert within(town.trunk, call, b"PRACK", (b"RAck", b"1 1 INVITE")) == [200]
        assert methods(agent).count(b"PRACK") == 1


def test_early_media_of_one_fork_and_answer_of_another_is_one_call(town: Town) -> None:
    town.register_all()
    second = town.second_device()
    town.bob.behave = lambda call: reliably(town.bob, call)
    second.behave = lambda call: second.ring_then_answer(call, 0.5, 2.0)
    call = town.trunk.call(b"+4920514001")
    town.world.run(1.0)
    enter_early(town.trunk, call, town.bob.calls[0].local_tag)
    assert within(town.trunk, call, b"PRACK", (b"RAck", b"1 1 INVITE")) == [200]
    call.remote_tag = b""
    town.world.run(4.0)
    assert (call.status, call.remote_tag) == (200, second.calls[0].local_tag)
    assert town.bob.calls[0].status == 487
    town.trunk.bye(call)
    town.world.run(1.0)
    (record,) = town.world.records
    assert (record.to_tag, second.calls[0].ended) == (second.calls[0].local_tag.decode(), "remote")
    town.assert_reconciled()


def test_prack_after_the_cancel_passes_and_ends_nothing(town: Town) -> None:
    """RFC 3262 §4: a PRACK may cross the CANCEL; it keeps no call alive."""
    town.register_all()
    deaf_to_cancel(town.trunk, answers_after=500.0)
    call = town.alice.call(b"03023125001")
    town.world.run(1.0)
    enter_early(town.alice, call)
    town.alice.cancel(call)
    assert within(town.alice, call, b"PRACK", (b"RAck", b"1 %d INVITE" % call.cseq)) == [200]
    town.world.run(40.0)
    assert call.status == 487
    assert [r.end_reason for r in town.world.records] == ["cancelled"]
    town.assert_reconciled()


@pytest.mark.parametrize("asks", ["caller", "callee"])
def test_update_in_an_early_dialog_passes_both_ways(town: Town, asks: str) -> None:
    """RFC 3311 §5.1: before the INVITE is answered."""
    town.register_all()
    town.trunk.behave = lambda call: reliably(town.trunk, call)
    call = town.alice.call(b"03023125001")
    town.world.run(1.0)
    enter_early(town.alice, call)
    agent, own, far = (town.alice, call, town.trunk) if asks == "caller" else (town.trunk, town.trunk.calls[0], town.alice)
    assert within(agent, own, b"UPDATE") == [200]
    assert methods(far).count(b"UPDATE") == 1
    town.trunk.answer(town.trunk.calls[0])
    town.world.run(1.0)
    assert call.status == 200
    town.alice.bye(call)
    town.world.run(1.0)
    assert [r.end_reason for r in town.world.records] == ["normal"]
    town.assert_reconciled()


# Changes of an answered call


def answering(agent: Agent, statuses: dict[bytes, int]) -> None:
    """Have the agent answer requests of these methods within its dialogs with these statuses."""
    answer = agent._respond
    agent._respond = lambda server, status, *rest, **more: answer(  # type: ignore[method-assign]
        server, statuses.get(server.request.method, status) if server.request.to.tag else status, *rest, **more
    )


@pytest.mark.parametrize("asks", ["caller", "callee"])
def test_fax_reinvite_passes_both_ways_byte_for_byte(town: Town, asks: str) -> None:
    """T.38 by re-INVITE: the body is the parties' own, and no further call."""
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    agent, own, far = (town.alice, call, town.trunk) if asks == "caller" else (town.trunk, town.trunk.calls[0], town.alice)
    send = town.world.send

    def with_fax(data: bytes, source: tuple[str, int], to: tuple[str, int]) -> None:
        if data.startswith(b"INVITE") and source == agent.address:
            head = data.replace(b"Content-Length: 0", b"Content-Type: application/sdp\r\nContent-Length: %d" % len(FAX))
            data = head + FAX
        send(data, source, to)

    town.world.send = with_fax  # type: ignore[method-assign]
    seen: list[int] = []
    agent.reinvite(own, lambda r: seen.append(r.status) if r is not None and r.is_final else None)
    town.world.run(1.0)
    arrived = [r for r in far.requests if r.method == b"INVITE"][-1]
    assert (seen, arrived.body) == ([200], FAX)
    assert len(town.world.live_slots()) == 1
    town.assert_reconciled()


@pytest.mark.parametrize("asks", ["caller", "callee"])
@pytest.mark.parametrize("status", [488, 415, 500])
def test_refused_reinvite_leaves_the_call_as_it_was(town: Town, asks: str, status: int) -> None:
    """RFC 3261 §14.1."""
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    agent, own, far = (town.alice, call, town.trunk) if asks == "caller" else (town.trunk, town.trunk.calls[0], town.alice)
    (live,) = town.world.engine.calls.by_id.values()
    before = [[(s.remote_target, s.route_set) for s in d.sides or ()] for d in live.dialogs]
    answering(far, {b"INVITE": status})
    agent.contact_user = "moved"
    assert within(agent, own, b"INVITE") == [status]
    assert [[(s.remote_target, s.route_set) for s in d.sides or ()] for d in live.dialogs] == before
    assert (call.ended, town.world.records) == ("", [])
    town.trunk.bye(town.trunk.calls[0])
    town.world.run(1.0)
    assert call.ended == "remote"
    town.assert_reconciled()


@pytest.mark.parametrize("method", [b"INVITE", b"UPDATE"])
def test_glare_is_491_for_both_and_each_may_try_again(town: Town, method: bytes) -> None:
    """RFC 3261 §14.1, RFC 3311 §5.2: both refuse, both try again; the BYE that we send then comes after all their numbers."""
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    far = town.trunk.calls[0]
    normal = [agent._respond for agent in (town.alice, town.trunk)]
    for agent in (town.alice, town.trunk):
        answering(agent, {method: 491})
    seen: list[int] = []
    for agent, own in ((town.alice, call), (town.trunk, far)):
        agent._in_dialog(own, method, lambda r: seen.append(r.status) if r is not None and r.is_final else None)
    town.world.run(1.0)
    assert seen == [491, 491], "neither heard of the other's before its own had left"
    for agent, respond in zip((town.alice, town.trunk), normal, strict=True):
        agent._respond = respond  # type: ignore[method-assign]

    def final(response: Response | None) -> None:
        if response is not None and response.is_final:
            seen.append(response.status)

    for agent, own in ((town.trunk, far), (town.alice, call)):
        if method == b"INVITE":
            agent.reinvite(own, final)
        else:
            agent._in_dialog(own, method, final)
        town.world.run(2.0)
    assert seen == [491, 491, 200, 200]
    (live,) = town.world.engine.calls.by_id.values()
    _, actions = town.world.engine.end_call(live.id, town.world.instant)
    town.world.perform(actions)
    town.world.run(1.0)
    assert (call.ended, far.ended) == ("remote", "remote")
    for agent, other in ((town.alice, far), (town.trunk, call)):
        bye = next(r for r in agent.requests if r.method == b"BYE")
        assert bye.cseq.number == other.cseq + 1
    town.assert_reconciled()
