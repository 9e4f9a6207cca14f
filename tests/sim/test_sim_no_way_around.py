"""What gives nobody a way around policy, or a password: transfers, Replaces, copies of an INVITE, challenges of others
(RFC 3515, RFC 3891, RFC 3911, RFC 3261 §8.2.2.2 and §22.3; design, invariants 2, 3 and 6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from policy.model import LineStatus
from sipproxy.sip.build import write_response
from sipproxy.sip.digest import write_challenge
from tests.sim.world import PROXY, REALM

if TYPE_CHECKING:
    from sipproxy.sip.message import Response
    from tests.sim.agent import Agent, AgentCall
    from tests.sim.conftest import Town


# Transfers


def ask(agent: Agent, call: AgentCall, method: bytes, *headers: tuple[bytes, bytes]) -> Response:
    """The final response to a request within the call's dialog."""
    seen: list[Response] = []
    agent.chatter = list(headers)
    agent._in_dialog(call, method, lambda r: seen.append(r) if r is not None and r.is_final else None)
    agent.world.run(2.0)
    agent.chatter = []
    (response,) = seen
    return response


@pytest.mark.parametrize("asks", ["caller", "callee"])
def test_refer_within_a_call_is_405_and_says_what_is_allowed(town: Town, asks: str) -> None:
    """A transfer is the router's own: a second call by the usual way, and both joined in the router."""
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    agent, own, far = (town.alice, call, town.trunk) if asks == "caller" else (town.trunk, town.trunk.calls[0], town.alice)
    refused = ask(agent, own, b"REFER", (b"Refer-To", b"<sip:09001123456@sip.test>"))
    allowed = set(refused.values(b"allow"))
    assert refused.status == 405
    assert b"REFER" not in allowed
    assert {b"INVITE", b"ACK", b"BYE", b"CANCEL", b"UPDATE", b"PRACK"} <= allowed
    assert not [r for r in far.requests if r.method == b"REFER"]
    assert call.ended == ""


def test_refer_outside_a_call_is_refused_to_customer_trunk_and_stranger(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    assert call.invite is not None
    for agent in (town.alice, town.trunk, town.psap):
        raw = call.invite.raw.replace(b"INVITE", b"REFER").replace(b"branch=z9hG4bK", b"branch=z9hG4bKr" + agent.user.encode())
        raw = raw.replace(b"Contact:", b"Refer-To: <sip:03023125002@sip.test>\r\nTarget-Dialog: x;local-tag=a\r\nContact:")
        here = b"%s:%d" % (agent.address[0].encode(), agent.address[1])
        town.world.send(raw.replace(b"203.0.113.1:5060", here), agent.address, PROXY)
        town.world.run(1.0)
        answers = [d for _, s, to, d in town.world.wire if s == PROXY and to == agent.address and b" REFER\r\n" in d]
        assert answers[-1].startswith(b"SIP/2.0 405 " if agent is town.trunk else b"SIP/2.0 407 ")
        assert b"REFER" not in answers[-1].partition(b"Allow:")[2].partition(b"\r\n")[0]
    assert len(town.trunk.calls) == 1


def test_refer_to_and_target_dialog_in_an_invite_change_nothing(town: Town) -> None:
    """Only the Request-URI is called, and only that is decided on."""
    town.register_all()
    odd = ((b"Refer-To", b"<sip:09001123456@sip.test>"), (b"Target-Dialog", b"abc;local-tag=1;remote-tag=2"))
    call = town.alice.call(b"03023125001", headers=odd)
    town.world.run(3.0)
    assert call.status == 200
    assert [c.invite.uri for c in town.trunk.calls if c.invite] == [b"sip:+493023125001@198.51.100.1:5060;user=phone"]
    assert town.alice.call(b"09001123456", headers=((b"Refer-To", b"<sip:03023125001@sip.test>"),)) is not None
    town.world.run(3.0)
    assert town.alice.calls[-1].status == 403


# Replaces and Join


def dialog_of(call: AgentCall) -> bytes:
    return b"%s;to-tag=%s;from-tag=%s" % (call.call_id, call.remote_tag, call.local_tag)


@pytest.mark.parametrize("name", [b"Replaces", b"Join"])
def test_line_may_take_over_its_own_call_by_an_ordinary_one(town: Town, name: bytes) -> None:
    """RFC 3891: andrea picks up what alice, of the same line, has. It takes a channel and has a record like any call."""
    town.register_all()
    first = town.alice.call(b"03023125001")
    town.world.run(3.0)
    second = town.andrea.call(b"03023125001", headers=((name, dialog_of(first)), (b"Require", name.lower())))
    town.world.run(3.0)
    assert second.status == 200
    (line,) = (arrived.lines(name.lower()) for c in town.trunk.calls[1:] if (arrived := c.invite))
    assert line == [dialog_of(first)]
    assert len(town.world.live_slots()) == 2
    third = town.andrea.call(b"03023125001", headers=((name, dialog_of(first)),))
    town.world.run(3.0)
    assert third.status == 403, "the line's two channels are in use, and Replaces does not make a third"
    town.assert_reconciled()


def test_replaces_does_not_open_a_blocked_number(town: Town) -> None:
    town.register_all()
    first = town.alice.call(b"03023125001")
    town.world.run(3.0)
    second = town.andrea.call(b"09001123456", headers=((b"Replaces", dialog_of(first)),))
    town.world.run(3.0)
    assert second.status == 403


@pytest.mark.parametrize("target", [b"03023125001", b"060323001"])
@pytest.mark.parametrize("name", [b"Replaces", b"Join"])
def test_dialog_of_other_lines_cannot_be_named(town: Town, target: bytes, name: bytes) -> None:
    """Outgoing and internal: bob knows Call-ID and tags of alice's call from somewhere."""
    town.register_all()
    first = town.alice.call(b"03023125001")
    town.world.run(3.0)
    second = town.bob.call(target, headers=((name, dialog_of(first)),))
    town.world.run(3.0)
    assert second.status == 481
    assert (len(town.trunk.calls), town.alice.calls) == (1, [first])
    assert [(r.verdict, r.rule, r.status) for r in town.world.records] == [("deny", "replaces.unknown", 481)]
    town.assert_reconciled()


@pytest.mark.parametrize("value", [b"nobody;to-tag=1;from-tag=2", b"", b";;;", b"%s;to-tag=1", b"%s;early-only"])
def test_replaces_of_nothing_is_481(town: Town, value: bytes) -> None:
    town.register_all()
    first = town.alice.call(b"03023125001")
    town.world.run(3.0)
    second = town.andrea.call(b"03023125001", headers=((b"Replaces", value.replace(b"%s", first.call_id)),))
    town.world.run(3.0)
    assert second.status == 481
    assert len(town.trunk.calls) == 1


def test_carrier_may_replace_its_own_dialog_and_no_other(town: Town) -> None:
    """Incoming: what a trunk names has to be a call that came or went by that trunk."""
    town.register_all()
    own = town.trunk.call(b"+4920514001")
    town.world.run(3.0)
    of_others = town.alice.call(b"020514001")
    town.world.run(3.0)
    assert (own.status, of_others.status) == (200, 200)
    again = town.trunk.call(b"+4920514001", headers=((b"Replaces", dialog_of(own)),))
    foreign = town.trunk.call(b"+4920514001", headers=((b"Replaces", dialog_of(of_others)),))
    other_route = town.trunk_b.call(b"+4920514001", headers=((b"Replaces", dialog_of(own)),))
    town.world.run(3.0)
    assert (again.status, foreign.status, other_route.status) == (200, 481, 481)


def test_emergency_call_with_a_wrong_replaces_is_connected(town: Town) -> None:
    """Design, invariant 1."""
    town.register_all()
    call = town.alice.call(b"112", headers=((b"Replaces", b"nobody;to-tag=1;from-tag=2"),))
    town.world.run(3.0)
    assert call.status == 200


def test_reinvite_with_replaces_is_400(town: Town) -> None:
    town.register_all()
    first = town.alice.call(b"03023125001")
    second = town.andrea.call(b"03023125002")
    town.world.run(3.0)
    refused = ask(town.andrea, second, b"INVITE", (b"Replaces", dialog_of(first)))
    assert refused.status == 400
    assert [r.method for r in town.trunk.requests].count(b"INVITE") == 2
    assert (first.ended, second.ended) == ("", "")


# Copies


def test_merged_request_is_482_and_the_first_one_goes_on(town: Town) -> None:
    """RFC 3261 §8.2.2.2: the same From tag, Call-ID and CSeq by another path: one call, one slot, one record."""
    town.register_all()
    town.bob.behave = lambda call: town.bob.progress(call, 180)
    call = town.trunk.call(b"+4920514001")
    town.world.run(0.5)
    assert call.invite is not None
    copy = call.invite.raw.replace(b"Via:", b"Via: SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bKother\r\nVia:", 1)
    town.world.send(copy, town.trunk.address, PROXY)
    town.world.run(0.5)
    answers = [d for _, s, to, d in town.world.wire if s == PROXY and to == town.trunk.address and b"z9hG4bKother" in d]
    assert [d[:12] for d in answers] == [b"SIP/2.0 482 "]
    assert len(town.bob.calls) == 1
    assert len(town.world.live_slots()) == 1
    town.bob.answer(town.bob.calls[0])
    town.world.run(1.0)
    assert call.status == 200
    town.trunk.bye(call)
    town.world.run(1.0)
    assert len(town.world.records) == 1
    town.assert_reconciled()


def test_copy_for_another_number_is_a_call_of_its_own(town: Town) -> None:
    """RFC 5393 §3: a proxy before us that forks to two numbers, or a spiral with a changed Request-URI, is no fault."""
    town.register_all()
    call = town.trunk.call(b"+4920514001")
    town.world.run(0.5)
    assert call.invite is not None
    fork = call.invite.raw.replace(b"Via:", b"Via: SIP/2.0/UDP 198.51.100.1:5060;branch=z9hG4bKother\r\nVia:", 1)
    town.world.send(fork.replace(b"INVITE sip:+4920514001", b"INVITE sip:+4960323001", 1), town.trunk.address, PROXY)
    town.world.run(3.0)
    assert (len(town.bob.calls), len(town.alice.calls)) == (1, 1)
    assert len(town.world.live_slots()) == 2
    town.assert_reconciled()


def test_copy_of_a_call_for_help_is_not_refused(town: Town) -> None:
    """Design, invariant 1: better the centre rings twice than not at all."""
    town.register_all()
    call = town.alice.call(b"112")
    town.world.run(0.5)
    assert call.invite is not None
    copy = call.invite.raw.replace(b"Via:", b"Via: SIP/2.0/UDP 203.0.113.1:5060;branch=z9hG4bKother\r\nVia:", 1)
    town.world.send(copy, town.alice.address, PROXY)
    town.world.run(2.0)
    assert len(town.psap.calls) == 2


# Challenges of others


def challenging(agent: Agent, realm: str, status: int = 407, *more: tuple[bytes, bytes]) -> None:
    """Have the agent answer calls with a challenge."""
    name = b"Proxy-Authenticate" if status == 407 else b"WWW-Authenticate"

    def behave(call: AgentCall) -> None:
        assert call.server is not None
        call.status = status
        headers = [*more, (name, write_challenge(realm, b"0badc0de", "MD5", stale=False))]
        data = write_response(call.server.request, status, to_tag=call.local_tag, headers=headers)
        agent._tx.respond(call.server, status, data, agent.world.now)
        agent._flush()

    agent.behave = behave


def challenges_at(town: Town, agent: Agent) -> list[bytes]:
    return [d for _, s, to, d in town.world.wire if s == PROXY and to == agent.address and b"0badc0de" in d]


@pytest.mark.parametrize("status", [401, 407])
@pytest.mark.parametrize("realm", [REALM, REALM.upper(), "carrier.test"])
def test_challenge_of_a_customers_device_does_not_reach_the_caller(town: Town, realm: str, status: int) -> None:
    """Its answer would let the callee try alice's password at leisure, or register as alice with a nonce of ours."""
    town.register_all()
    challenging(town.bob, realm, status)
    call = town.alice.call(b"020514001")
    town.world.run(3.0)
    assert call.status == 403
    assert not challenges_at(town, town.alice)
    assert [(r.status, r.cause, r.end_reason, r.released_by) for r in town.world.records] == [(403, 21, "rejected", "callee")]
    assert town.world.engine.desk.counters["challenges_kept", "customer"] == 1
    town.assert_reconciled()


@pytest.mark.parametrize("status", [401, 407])
def test_carriers_challenge_for_our_realm_does_not_reach_the_caller(town: Town, status: int) -> None:
    town.register_all()
    other = (b"Proxy-Authenticate", write_challenge("carrier.test", b"0badc0de", "MD5", stale=False))
    challenging(town.trunk, REALM, status, other)
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    assert call.status == 403
    assert not challenges_at(town, town.alice)
    assert town.world.engine.desk.counters["challenges_kept", "own_realm"] == 1


@pytest.mark.parametrize("value", [b"Digest realm=", b"nonsense", b'Digest realm="sip.test'])
def test_challenge_that_cannot_be_read_is_kept(town: Town, value: bytes) -> None:
    town.register_all()
    challenging(town.trunk, "carrier.test", 407, (b"Proxy-Authenticate", value))
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    assert call.status == 403
    assert not challenges_at(town, town.alice)


def test_carriers_challenge_for_its_own_realm_passes(town: Town) -> None:
    """RFC 3261 §22.3: a trunk route without credentials of its own leaves it to the caller, who may have some."""
    town.register_all()
    challenging(town.trunk, "carrier.test")
    call = town.alice.call(b"03023125001")
    town.world.run(3.0)
    assert challenges_at(town, town.alice)
    assert call.status == 407


def test_challenge_of_a_customers_device_within_a_call_is_403(town: Town) -> None:
    town.register_all()
    call = town.alice.call(b"020514001")
    town.world.run(3.0)
    town.bob.chatter = [(b"Proxy-Authenticate", write_challenge(REALM, b"0badc0de", "MD5", stale=False))]
    answer = town.bob._respond
    town.bob._respond = lambda server, status, *rest, **more: answer(server, 407, *rest, **more)  # type: ignore[method-assign]
    assert ask(town.alice, call, b"INFO").status == 403
    assert not challenges_at(town, town.alice)
    assert call.ended == ""


def test_barred_customer_cannot_hide_behind_replaced_dialogs(town: Town) -> None:
    """The line's status is asked for each call, also for one that replaces a call of before it was barred."""
    town.register_all()
    first = town.alice.call(b"03023125001")
    town.world.run(3.0)
    town.change("lines", "L1", status=LineStatus.BARRED_OUT)
    second = town.andrea.call(b"03023125001", headers=((b"Replaces", dialog_of(first)),))
    town.world.run(3.0)
    assert (second.status, first.ended) == (403, "")
