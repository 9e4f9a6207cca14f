"""Callers' numbers in whole calls: screened, replaced, hidden, refused, traced (§ 120 TKG, TDDDG; RFC 3323, 3325, 5079).

That hidden numbers stay hidden over all kinds of calls is in test_sim_privacy_properties.py.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from policy.model import Screening, Trace
from sipproxy.sip.flow import Hop
from sipproxy.sip.message import Request, Response, parse_message
from tests.sim.agent import AgentCall
from tests.sim.conftest import PSAP, TRUNK_A, Town, make_town
from tests.sim.world import PROXY, Address

OWN, BOB = "+4960323001", "+4920514001"
ALWAYS = (Trace(0, 2**50, "order-7"),)


def invite_at(town: Town, address: Address) -> Request:
    found = [parse_message(d) for _, s, to, d in town.world.wire if s == PROXY and to == address and d.startswith(b"INVITE")]
    assert found, "no INVITE arrived"
    assert isinstance(found[-1], Request)
    return found[-1]


def outgoing(
    town: Town, target: str = "03023125001", *headers: tuple[bytes, bytes], user: str = "", run: float = 3.0
) -> AgentCall:
    town.register_all()
    call = town.alice.call(target.replace("#", "%23").encode(), headers=headers, from_user=user)
    town.world.run(run)
    return call


def incoming(town: Town, *headers: tuple[bytes, bytes], user: str = "+4989123456", target: str = BOB) -> AgentCall:
    town.register_all()
    call = town.trunk.call(target.encode(), headers=headers, from_user=user)
    town.world.run(3.0)
    return call


def with_line(name: str, **fields: object) -> Town:
    """A town in which one line has these fields."""
    town = make_town()
    town.change("lines", name, **fields)
    return town


# Outgoing: what others see of a customer

PAI = b"<sip:+4960323001@sip.test;user=phone>"
SHOWN = b"<sip:+4960323001@sip.test;user=phone>"


@pytest.mark.parametrize("user", ["+49900123456", "110", "11880", "+4920514001", "+33123456789", "0137123456"])
def test_number_that_is_not_the_callers_is_replaced_in_both_directions(town: Town, user: str) -> None:
    """DEVIATION from RFC 3261 §16.6: From is rewritten, with its tag; who sent it sees what he sent."""
    call = outgoing(town, user=user)
    arrived = invite_at(town, TRUNK_A)
    assert (arrived.from_.uri.raw, arrived.from_.tag) == (SHOWN[1:-1], call.local_tag)
    assert arrived.lines(b"p-asserted-identity") == [PAI]
    assert call.final is not None
    assert call.final.from_.uri.user == user.encode()
    town.trunk.bye(town.trunk.calls[0])
    town.world.run(1.0)
    bye = town.alice.requests[-1]
    assert (bye.method, bye.to.uri.user, bye.to.tag) == (b"BYE", user.encode(), call.local_tag)
    assert call.ended == "remote"
    (record,) = town.world.records
    assert (record.calling, record.presented) == (OWN, user)
    town.assert_reconciled()


@pytest.mark.parametrize("user", ["060323001", "+4960323001", "3001", "alice", "4960323001", "+4960323002"])
def test_from_that_shows_a_number_of_the_line_or_none_reaches_the_trunk_as_it_came(town: Town, user: str) -> None:
    """Design, invariant 7."""
    outgoing(town, user=user)
    arrived = invite_at(town, TRUNK_A)
    assert (arrived.from_.uri.user, arrived.lines(b"p-asserted-identity")) == (user.encode(), [PAI])


@pytest.mark.parametrize(("user", "shown"), [("alice", OWN), ("+49900123456", OWN), ("+4960323002", "+4960323002"), (OWN, OWN)])
def test_internal_callee_sees_the_screened_number_in_from_and_no_assertion(town: Town, user: str, shown: str) -> None:
    """RFC 3325 §7: a customer is outside the trust domain."""
    outgoing(town, "020514001", user=user)
    arrived = invite_at(town, town.bob.address)
    assert arrived.from_.uri.user == shown.encode()
    assert not arrived.has(b"p-asserted-identity")


@pytest.mark.parametrize(
    ("display", "kept"),
    [
        (b"Ann", b"Ann"), (b"09001123456", b""), (b"+49 (30) 123", b""), (b"call 0900 1123456 now", b""),
        (b"Room 12", b"Room 12"), (b"06032 3001", b"06032 3001"), (b"\xd9\xa1\xd9\xa1\xd9\xa0", b""),
    ],
)  # fmt: skip
def test_display_name_that_shows_another_number_is_taken_out(town: Town, display: bytes, kept: bytes) -> None:
    town.register_all()
    call = AgentCall(b"display", outgoing=True, local_tag=b"abc")
    town.alice.by_call_id[call.call_id, call.local_tag] = call
    uri = b"sip:03023125001@sip.test"
    original = town.alice._send_request

    def send(data: bytes, *rest: object) -> object:
        return original(data.replace(b"From: <", b'From: "%s" <' % display), *rest)  # type: ignore[arg-type]

    town.alice._send_request = send  # type: ignore[assignment, method-assign]
    town.alice._invite(call, uri, OWN.encode(), [])
    town.world.run(3.0)
    arrived = invite_at(town, TRUNK_A)
    assert arrived.from_.display == kept
    assert arrived.from_.uri.user == OWN.encode()
    assert call.status == 200


def test_profile_that_refuses_others_numbers_says_403(town: Town) -> None:
    snapshot = town.world.engine.desk.snapshot
    profiles = {name: replace(profile, screening=Screening.REFUSE) for name, profile in snapshot.profiles.items()}
    town.world.engine.swap_snapshot(replace(snapshot, profiles=profiles), town.world.instant)
    call = outgoing(town, user="+49301234567")
    assert call.final is not None
    assert (call.status, call.final.first(b"reason")) == (403, b"Q.850;cause=21")
    assert town.world.records[0].rule == "caller.not_allowed"
    emergency = town.alice.call(b"112", from_user="+49301234567")
    town.world.run(3.0)
    assert emergency.status == 200


@pytest.mark.parametrize("method", [b"INVITE", b"UPDATE", b"INFO"])
def test_number_is_not_exchanged_within_the_dialog(town: Town, method: bytes) -> None:
    """A number is screened once; RFC 4916 would let the From of a later request be another."""
    call = outgoing(town)
    assert call.invite is not None
    changed = call.invite.raw.replace(b"From: <sip:alice@", b"From: <sip:+49900123456@")
    call.invite = parse_message(changed)  # type: ignore[assignment]
    seen: list[int] = []
    if method == b"INVITE":
        town.alice.reinvite(call, lambda r: seen.append(r.status if r else 0))
    else:
        town.alice._in_dialog(call, method, lambda r: seen.append(r.status if r else 0))
    town.world.run(1.0)
    arrived = town.trunk.requests[-2 if method == b"INVITE" else -1]
    assert (arrived.method, arrived.from_.uri.user) == (method, b"alice")
    assert seen[-1] == 200
    answers = [r for r in town.alice.responses if r.cseq.method == method and r.status == 200]
    assert answers[-1].from_.uri.user == b"+49900123456"


def test_identity_headers_in_every_spelling_go_from_requests_and_responses_within_the_dialog(town: Town) -> None:
    claims = [
        (b"p-asserted-IDENTITY", b"<sip:+49110@sip.test>"),
        (b"REMOTE-PARTY-ID", b"<sip:+49110@sip.test>"),
        (b"diversion", b"<sip:+49110@sip.test>"),
        (b"y", b"eyJ"),
        (b"n", b"<http://sip.test/cert>"),
        (b"P-Charging-Vector", b"icid-value=1"),
    ]
    town.alice.chatter = claims
    call = outgoing(town)
    seen: list[int] = []
    town.alice._in_dialog(call, b"INFO", lambda r: seen.append(r.status if r else 0))
    town.trunk._in_dialog(town.trunk.calls[0], b"UPDATE", lambda r: seen.append(r.status if r else 0))
    town.world.run(1.0)
    assert seen == [200, 200]
    at_trunk = [parse_message(d) for _, s, to, d in town.world.wire if s == PROXY and to == TRUNK_A]
    kinds = {m.method if isinstance(m, Request) else m.cseq.method for m in at_trunk if not m.has(b"p-asserted-identity")}
    assert {b"INFO", b"UPDATE"} <= kinds
    for message in at_trunk:
        names = (b"remote-party-id", b"diversion", b"identity", b"identity-info", b"p-charging-vector")
        assert not any(message.has(name) for name in names)
        assert message.lines(b"p-asserted-identity") in ([], [PAI])


# CLIR towards the carrier


@pytest.mark.parametrize(
    ("target", "privacy", "user", "sent"),
    [
        ("03023125001", b"", "", []),
        ("03023125001", b"none", "", [b"none"]),
        ("03023125001", b"id", "", [b"id"]),
        ("03023125001", b"ID;critical", "", [b"ID;critical"]),
        ("03023125001", b"session", "", [b"session"]),
        ("03023125001", b"header", "", [b"header;id"]),
        ("03023125001", b"user;critical", "", [b"user;id;critical"]),
        ("03023125001", b"history", "", [b"history"]),
        ("03023125001", b"", "anonymous", [b"id"]),
        ("03023125001", b"none", "anonymous", [b"id"]),
        ("*31#03023125001", b"", "", [b"id"]),
        ("*31#03023125001", b"none", "", [b"id"]),
    ],
)
def test_trunk_gets_the_number_and_the_wish_to_hide_it(
    town: Town, target: str, privacy: bytes, user: str, sent: list[bytes]
) -> None:
    """RFC 3323 §4.2, RFC 3325 §5: within the trust domain the number is there, and so is `id`."""
    call = outgoing(town, target, *([(b"Privacy", privacy)] if privacy else []), user=user)
    arrived = invite_at(town, TRUNK_A)
    assert arrived.lines(b"privacy") == sent
    assert arrived.lines(b"p-asserted-identity") == [PAI]
    assert arrived.from_.uri.user == (user or "alice").encode()
    assert arrived.uri == b"sip:+493023125001@198.51.100.1:5060;user=phone"
    town.alice.bye(call)
    town.world.run(1.0)
    (record,) = town.world.records
    assert (record.calling, record.presented, record.privacy) == (OWN, user or "alice", privacy.decode())


@pytest.mark.parametrize("user", ["anonymous", "alice"])
def test_116117_always_gets_the_number(town: Town, user: str) -> None:
    """TDDDG § 15(1), § 13(3)."""
    outgoing(town, "*31#116117", (b"Privacy", b"id;header"), user=user)
    arrived = invite_at(town, TRUNK_A)
    assert not arrived.has(b"privacy")
    assert arrived.lines(b"p-asserted-identity") == [PAI]
    assert arrived.from_.uri.user == (OWN.encode() if user == "anonymous" else b"alice")


def test_line_with_permanent_clir_cannot_be_shown_by_privacy_none() -> None:
    town = with_line("L1", clir=True)
    outgoing(town, "020514001", (b"Privacy", b"none"))
    arrived = invite_at(town, town.bob.address)
    assert (arrived.from_.uri.host, arrived.lines(b"privacy")) == (b"anonymous.invalid", [b"id"])


@pytest.mark.parametrize("values", [b"session;critical", b"id;session;critical", b"critical;quantum"])
def test_privacy_that_cannot_be_given_and_is_critical_fails_the_call(town: Town, values: bytes) -> None:
    """RFC 3323 §5."""
    call = outgoing(town, "03023125001", (b"Privacy", values))
    assert call.final is not None
    assert (call.status, call.final.reason[:21]) == (500, b"Privacy not available")
    assert not town.trunk.requests
    assert (town.world.records[0].rule, town.world.records[0].cause) == ("privacy.critical", 79)
    town.assert_reconciled()
    emergency = town.alice.call(b"112", headers=((b"Privacy", values),))
    town.world.run(3.0)
    assert emergency.status == 200


def test_demand_for_a_privacy_service_is_met_here(town: Town) -> None:
    """RFC 3323 §4.3: Proxy-Require of `privacy`."""
    call = outgoing(town, "03023125001", (b"Proxy-Require", b"Privacy"), (b"Privacy", b"id"))
    assert call.status == 200
    assert not invite_at(town, TRUNK_A).has(b"proxy-require")


@pytest.mark.parametrize(
    "header",
    [
        (b"Proxy-Require", b"quantum"), (b"Proxy-Require", b'"broken'), (b"P-Asserted-Identity", b'"broken <sip:'),
        (b"P-Preferred-Identity", b'"broken'), (b"Diversion", b'<sip:"'), (b"History-Info", b",,"), (b"Privacy", b'";;,"'),
    ],
)  # fmt: skip
def test_emergency_call_is_not_refused_for_an_identity_header(town: Town, header: tuple[bytes, bytes]) -> None:
    """Design, invariant 1."""
    call = outgoing(town, "112", header)
    assert call.status == 200
    assert invite_at(town, PSAP).lines(b"p-asserted-identity") == [PAI]


# Incoming: what a customer sees, and which calls do not come through


@pytest.mark.parametrize(
    ("user", "headers"),
    [
        ("110", ()),
        ("09001123456", ()),
        ("+4911880", ()),
        ("4937123456", ((b"P-Asserted-Identity", b"<sip:+49900123456@carrier.example>"),)),
        ("anonymous", ((b"P-Asserted-Identity", b"<tel:0137-123456>"), (b"Privacy", b"id"))),
        ("+4989123456", ((b"P-Asserted-Identity", b"<sip:+4989123456@c.example>, <tel:112>"),)),
        ("+4989123456", ((b"Remote-Party-ID", b"<sip:116117@c.example>"),)),
    ],
)
def test_call_that_shows_what_no_caller_may_show_is_refused(
    town: Town, user: str, headers: tuple[tuple[bytes, bytes], ...]
) -> None:
    """§ 120(3) TKG."""
    call = incoming(town, *headers, user=user)
    assert call.final is not None
    assert (call.status, call.final.first(b"reason")) == (403, b"Q.850;cause=21")
    assert not town.bob.requests
    assert [r.rule for r in town.world.records] == ["caller.forbidden"]


def test_call_with_a_shown_number_comes_through_as_it_came(town: Town) -> None:
    """Design, invariant 7."""
    incoming(town, (b"P-Asserted-Identity", b"<sip:+4989123456@c.example>"), (b"Privacy", b"none"))
    arrived = invite_at(town, town.bob.address)
    assert arrived.from_.uri.raw == b"sip:+4989123456@sip.test"
    assert arrived.lines(b"p-asserted-identity") == [b"<sip:+4989123456@c.example>"]
    town.bob.bye(town.bob.calls[0])
    town.world.run(1.0)
    assert [(r.calling, r.presented) for r in town.world.records] == [("+4989123456", "+4989123456")]


def foreign_town() -> Town:
    town = make_town()
    network = ipaddress.ip_network(TRUNK_A[0])
    abroad = replace(town.world.settings.trunks[0], hop=Hop("UDP", *TRUNK_A), networks=((network, 0),), foreign=True)
    town.world.engine.desk.settings = replace(town.world.settings, trunks=(abroad,))
    return town


@pytest.mark.parametrize(("user", "hidden"), [("+4989123456", True), ("+491701234567", False), ("+43123456789", False)])
def test_german_number_on_a_route_from_abroad_is_hidden(user: str, hidden: bool) -> None:
    """§ 120(4) TKG; roaming mobiles are excepted."""
    town = foreign_town()
    incoming(town, (b"P-Asserted-Identity", b"<sip:%s@c.example>" % user.encode()), user=user)
    arrived = invite_at(town, town.bob.address)
    assert (arrived.from_.uri.host == b"anonymous.invalid") is hidden
    assert arrived.has(b"p-asserted-identity") is not hidden
    assert arrived.lines(b"privacy") == ([b"id"] if hidden else [])


@pytest.mark.parametrize("internal", [True, False])
def test_line_that_rejects_anonymous_calls_answers_433(internal: bool) -> None:
    """RFC 5079 §4; § 15 TDDDG."""
    town = with_line("L2", reject_anonymous=True)
    call = outgoing(town, "*31#020514001") if internal else incoming(town, (b"Privacy", b"id"))
    assert call.final is not None
    assert (call.status, call.final.reason, call.final.first(b"reason")) == (433, b"Anonymity Disallowed", b"Q.850;cause=21")
    assert not town.bob.calls
    (record,) = town.world.records
    assert (record.rule, record.status, record.end_reason) == ("caller.anonymous", 433, "refused")
    assert call.final.from_.tag == call.local_tag
    shown = town.alice.call(b"020514001")
    town.world.run(3.0)
    assert shown.status == 200
    town.assert_reconciled()


@pytest.mark.parametrize("answered", [True, False])
def test_malicious_call_is_kept_apart_from_record_and_log(answered: bool) -> None:
    """TDDDG § 14: calls and attempts, the number even when it is hidden; nowhere else."""
    town = with_line("L2", traces=ALWAYS, reject_anonymous=not answered)
    assertion = b"<sip:+4989123456@c.example>"
    call = incoming(town, (b"Privacy", b"id"), (b"P-Asserted-Identity", assertion), user="anonymous")
    assert (call.status == 200) is answered
    if answered:
        town.trunk.bye(call)
        town.world.run(1.0)
    (kept,) = town.world.traces
    (record,) = town.world.records
    assert (kept.call, kept.line, kept.reference, kept.called) == (record.id, "L2", "order-7", BOB)
    assert (kept.network, kept.asserted, kept.privacy, kept.trunk) == ("+4989123456", [assertion.decode()], "id", "carrier-a")
    assert kept.verdict == ("allow" if answered else "deny")
    assert kept.at_ms == record.setup_at_ms
    assert "89123456" not in repr(record)
    assert "89123456" not in repr(town.world.notes)


def test_malicious_call_of_another_customer_names_his_line() -> None:
    town = with_line("L2", traces=ALWAYS)
    outgoing(town, "*31#020514001")
    (kept,) = town.world.traces
    assert (kept.network, kept.caller_line, kept.caller_account) == (OWN, "L1", "alice")


@pytest.mark.parametrize("internal", [True, False])
def test_malicious_attempt_that_a_full_node_refuses_is_kept(internal: bool) -> None:
    town = make_town(max_calls=0)
    town.change("lines", "L2", traces=ALWAYS)
    call = outgoing(town, "*31#020514001") if internal else incoming(town, (b"Privacy", b"id"))
    assert call.status == 503
    (kept,) = town.world.traces
    (record,) = town.world.records
    assert (kept.call, kept.line, kept.called, kept.verdict, kept.rule) == (record.id, "L2", BOB, "deny", "node.full")
    assert (kept.caller_line, kept.trunk) == (("L1", "") if internal else ("", "carrier-a"))
    assert not internal or kept.network == OWN


def test_call_without_a_valid_order_is_not_kept(town: Town) -> None:
    incoming(town)
    ended = with_line("L2", traces=(Trace(0, 1, "over"),))
    incoming(ended)
    assert not town.world.traces
    assert not ended.world.traces


@pytest.mark.parametrize(("privacy", "kept"), [(b"id", False), (b"none", True), (b"", True)])
def test_connected_number_that_is_hidden_does_not_reach_the_customer(town: Town, privacy: bytes, kept: bool) -> None:
    """§ 15 TDDDG (COLR), RFC 3325 §7."""
    town.trunk.chatter = [(b"P-Asserted-Identity", b"<sip:+493023125009@c.example>")]
    town.trunk.chatter += [(b"Privacy", privacy)] if privacy else []
    call = outgoing(town)
    assert isinstance(call.final, Response)
    assert call.final.has(b"p-asserted-identity") is kept
