"""Calls that a customer's line forwards by a 3xx, and the 3xx of others (RFC 3261 §16.7 step 4, §21.3; design §5, step 4)."""

from __future__ import annotations

import pytest

from policy.model import LineStatus
from tests.sim.conftest import TRUNK_A, Town, make_town
from tests.sim.forwarded import ASSERTED, BOB, CALLER, both, forwarded_call, redirecting, sent_to, to_number


def test_302_of_a_customer_becomes_that_lines_outgoing_call(town: Town) -> None:
    call = forwarded_call(town)
    town.world.run(5.0)
    assert call.status == 200
    assert [r.uri for r in sent_to(town, TRUNK_A)] == [b"sip:+493023125001@198.51.100.1:5060;user=phone"]
    assert town.world.store.lines["L2"].keys() == {c.id for c in town.world.engine.calls.by_id.values()}, "in and out"
    town.world.run(5.0)
    town.trunk_b.bye(call)
    town.world.run(1.0)
    assert town.trunk.calls[0].ended == "remote"
    head, part = both(town)
    assert (head.direction, head.line, head.forwarded_to, head.forwarded_from) == ("incoming", "L2", [part.id], "")
    assert (part.direction, part.line, part.account, part.forwarded_to) == ("outgoing", "L2", "bob", [])
    assert (part.calling, part.presented, part.canonical) == (BOB, CALLER.decode(), "+493023125001"), "who forwards pays"
    assert part.trunk == "carrier-a"
    for record in (head, part):
        assert (record.end_reason, record.released_by, record.status) == ("normal", "caller", 200)
        assert record.billable_ms == pytest.approx(1000 * (call.ended_at - call.answered_at), abs=100)
    town.assert_reconciled()


def test_callee_of_a_forwarded_call_hangs_up_and_both_records_end(town: Town) -> None:
    call = forwarded_call(town)
    town.world.run(5.0)
    town.trunk.bye(town.trunk.calls[0])
    town.world.run(1.0)
    assert call.ended == "remote"
    assert [(r.end_reason, r.released_by) for r in both(town)] == [("normal", "callee")] * 2
    town.assert_reconciled()


def test_next_one_is_told_who_calls_and_who_forwarded(town: Town) -> None:
    """RFC 5806, RFC 7044 §9: from what we know, whatever the 302 says."""
    forwarded_call(town)
    town.world.run(5.0)
    (invite,) = sent_to(town, TRUNK_A)
    assert invite.lines(b"p-asserted-identity") == [b"<sip:" + CALLER + b"@carrier.example>"]
    assert invite.from_.uri.user == CALLER
    assert invite.lines(b"diversion") == [
        b"<sip:+4920514001@sip.test;user=phone>;reason=unknown;counter=1;screen=yes;privacy=off"
    ]
    assert invite.lines(b"history-info") == [
        b"<sip:+4920514001@sip.test;user=phone?Reason=SIP%3Bcause%3D302>;index=1",
        b"<sip:+493023125001@sip.test;user=phone>;index=1.1;mp=1",
    ]


def test_history_of_the_carrier_goes_on_and_claims_in_the_302_do_not_count(town: Town) -> None:
    town.register_all()
    town.bob.behave = lambda call: town.bob.redirect(
        call, b"<sip:03023125001@sip.test?Diversion=%3Csip%3A%2B49110%40x%3E>", headers=((b"Diversion", b"<sip:+49110@x>"),)
    )
    before = ((b"History-Info", b"<sip:+4940669690@carrier.example>;index=1, <sip:+4920514001@x>;index=1.1;mp=1"),)
    town.trunk_b.call(b"+4920514001", headers=(*ASSERTED, *before), from_user=CALLER.decode())
    town.world.run(5.0)
    (invite,) = sent_to(town, TRUNK_A)
    assert b"49110" not in invite.raw
    assert invite.lines(b"history-info")[1:] == [
        b"<sip:+4920514001@sip.test;user=phone?Reason=SIP%3Bcause%3D302>;index=1.1.1",
        b"<sip:+493023125001@sip.test;user=phone>;index=1.1.1.1;mp=1.1.1",
    ]
    assert len(invite.lines(b"diversion")) == 1


def test_hidden_caller_stays_hidden_and_the_lines_own_privacy_is_kept() -> None:
    """Design, invariant 11, and § 15 TDDDG for the line that forwards: neither is shown to the customer who gets the call."""
    town = make_town()
    town.register_all()
    town.change("lines", "L2", clir=True)
    redirecting(town.bob, to_number(b"060323001"))
    call = town.trunk_b.call(b"+4920514001", headers=(*ASSERTED, (b"Privacy", b"id")), from_user=CALLER.decode())
    town.world.run(5.0)
    assert call.status == 200
    (invite,) = sent_to(town, town.alice.address)
    assert CALLER[3:] not in invite.raw
    assert not any(BOB[3:].encode() in line for line in (*invite.lines(b"diversion"), *invite.lines(b"history-info")))
    town.trunk_b.bye(call)
    town.world.run(1.0)
    head, part = both(town)
    assert part.direction == "internal"
    assert CALLER.decode()[3:] not in f"{head} {part}"
    town.assert_reconciled()


def test_hidden_caller_of_a_forwarded_call_is_told_to_the_carrier_as_hidden(town: Town) -> None:
    """RFC 3325 §7: within the trust domain the number goes on, with its Privacy. The line that forwards is not private."""
    town.register_all()
    redirecting(town.bob, to_number(b"03023125001"))
    call = town.alice.call(b"020514001", headers=((b"Privacy", b"id"),))
    town.world.run(5.0)
    (invite,) = sent_to(town, TRUNK_A)
    assert invite.lines(b"p-asserted-identity") == [b"<sip:+4960323001@sip.test;user=phone>"]
    assert invite.lines(b"privacy") == [b"id"]
    town.alice.bye(call)
    town.world.run(1.0)
    head, part = both(town)
    assert (head.line, head.callee_line, head.calling, part.line) == ("L1", "L2", "+4960323001", "L2")
    assert "60323001" not in f"{part}", "the caller's number is not kept in the record of the line that he hid it from"
    town.assert_reconciled()


@pytest.mark.parametrize(
    ("contact", "rule", "cause"),
    [
        (b"<sip:09001123456@sip.test>", "block.class.premium", 21),
        (b"<tel:+492312512345>", "block.rule.B1", 21),
        (b"<sip:0990001@sip.test>", None, None),
        (b"<sip:112@sip.test>", "forward.emergency", 21),
        (b"<sip:1-1-0@203.0.113.3>", "forward.emergency", 21),
        (b"<urn:service:sos>", "forward.emergency", 21),
        (b"<tel:112;phone-context=+49>", "forward.emergency", 21),
        (b"<sip:bob@203.0.113.3:5060>", "forward.target", 1),
        (b"<sip:+493023125001@evil.example>", "forward.target", 1),
        (b"<mailto:bob@sip.test>", "forward.target", 1),
        (b"<sip:bob@sip.test>", "plan.invalid", 1),
        (b"<sip:+4920514001@sip.test>", "forward.loop", 25),
    ],
)
def test_forwarding_that_policy_refuses_leaves_a_record_and_goes_nowhere(
    town: Town, contact: bytes, rule: str | None, cause: int | None
) -> None:
    """Design §5, step 4: slot, CDR and refusal included. A 302 to 110 or 112 is no call for help: NotrufV § 4(5) s. 4."""
    town.register_all()
    redirecting(town.bob, contact)
    call = town.trunk_b.call(b"+4920514001", headers=ASSERTED, from_user=CALLER.decode())
    town.world.run(5.0)
    head, part = both(town)
    assert (part.verdict, part.end_reason, part.line) == ("deny", "refused", "L2")
    if rule is not None:
        assert (part.rule, part.cause) == (rule, cause)
    assert call.status == part.status == (482 if rule == "forward.loop" else 480)
    assert (head.end_reason, head.status, head.cause, head.verdict) == ("rejected", call.status, part.cause, "allow")
    assert call.final is not None
    assert not call.final.has(b"warning"), "the line's rules are not for its callers"
    assert not town.trunk.calls
    assert not town.psap.calls
    town.assert_reconciled()


@pytest.mark.parametrize("contact", [b"", b"*", b"<sip:broken", b"<sip:x@sip.test>;q"])
def test_302_without_a_usable_contact_is_a_refusal(town: Town, contact: bytes) -> None:
    town.register_all()
    redirecting(town.bob, *([contact] if contact else []))
    call = town.trunk_b.call(b"+4920514001")
    town.world.run(5.0)
    assert call.status == 480
    assert not town.trunk.calls
    town.assert_reconciled()


def test_barred_line_forwards_nothing(town: Town) -> None:
    town.register_all()
    town.change("lines", "L2", status=LineStatus.BARRED_OUT)
    redirecting(town.bob, to_number(b"03023125001"))
    call = town.trunk_b.call(b"+4920514001")
    town.world.run(5.0)
    assert call.status == 480
    assert both(town)[1].rule == "line.status.barred_out"


@pytest.mark.parametrize(("slots", "status"), [(1, 480), (0, 200)])
def test_forwarding_takes_as_many_channels_as_the_profile_says(slots: int, status: int) -> None:
    """A line with one channel can forward only where the outgoing half takes none of its own."""
    town = make_town()
    town.register_all()
    town.change("lines", "L2", channels=1)
    town.change("profiles", "velbert", forwarding_slots=slots)
    redirecting(town.bob, to_number(b"03023125001"))
    call = town.trunk_b.call(b"+4920514001")
    town.world.run(5.0)
    assert call.status == status
    if status == 200:
        assert len(town.world.store.lines["L2"]) == 1
        town.trunk_b.bye(call)
        town.world.run(1.0)
        assert both(town)[1].slots_used is None
    else:
        assert (both(town)[1].rule, both(town)[1].cause) == ("line.channels", 34)
    assert not town.world.store.lines["L2"]
    town.assert_reconciled()


@pytest.mark.parametrize(("slots", "own", "status"), [(1, 1, 480), (1, 2, 200), (0, 1, 200)])
def test_forwarding_takes_as_many_of_its_accounts_channels_as_of_its_lines(slots: int, own: int, status: int) -> None:
    """An account with a limit of its own forwards within it: the part is its call as it is the line's."""
    town = make_town()
    town.register_all()
    town.change("accounts", "bob", channels=own)
    town.change("profiles", "velbert", forwarding_slots=slots)
    redirecting(town.bob, to_number(b"03023125001"))
    call = town.trunk_b.call(b"+4920514001")
    town.world.run(5.0)
    assert call.status == status
    if status == 200:
        assert len(town.world.store.lines["L2"]) == 1 + slots
        assert town.world.engine.channels.held_by("L2", "bob") == 1 + slots
        town.trunk_b.bye(call)
        town.world.run(1.0)
    else:
        assert (both(town)[1].rule, both(town)[1].cause) == ("account.channels", 34)
    assert not town.world.store.lines["L2"]
    town.assert_reconciled()


def test_contacts_are_tried_by_q_until_one_answers(town: Town) -> None:
    town.register_all()
    redirecting(town.bob, to_number(b"03023125002") + b";q=0.2", to_number(b"03023125001") + b";q=0.9")
    town.trunk.behave = lambda call: (
        town.trunk.reject(call, 486) if b"25001" in call.invite.uri else town.trunk.answer(call)  # type: ignore[union-attr]
    )
    call = town.trunk_b.call(b"+4920514001")
    town.world.run(5.0)
    assert call.status == 200
    town.trunk_b.bye(call)
    town.world.run(1.0)
    parts = [r for r in town.world.records if r.forwarded_from]
    assert [(r.canonical, r.status) for r in parts] == [("+493023125001", 486), ("+493023125002", 200)]
    (head,) = [r for r in town.world.records if not r.forwarded_from]
    assert head.forwarded_to == [r.id for r in parts]
    town.assert_reconciled()


def test_device_that_forwards_while_another_rings_is_one_target_more(town: Town) -> None:
    """§16.7 step 4 adds to the target set; whoever answers first has the call, the other is cancelled."""
    town.register_all()
    second = town.second_device()
    redirecting(town.bob, to_number(b"03023125001"))
    second.behave = lambda call: second.ring_then_answer(call, 0.1, 3.0)
    call = town.trunk_b.call(b"+4920514001")
    town.world.run(6.0)
    assert (call.status, second.calls[0].status) == (200, 487)
    town.trunk_b.bye(call)
    town.world.run(1.0)
    assert [(r.end_reason, r.status) for r in both(town)] == [("normal", 200)] * 2
    town.assert_reconciled()


def test_more_contacts_than_the_bound_are_left_out_and_counted(town: Town) -> None:
    town.register_all()
    redirecting(town.bob, *(to_number(b"0302312500%d" % n) for n in range(9)))
    town.trunk.behave = lambda call: town.trunk.reject(call, 486)
    call = town.trunk_b.call(b"+4920514001")
    town.world.run(5.0)
    assert call.status == 486
    assert len([r for r in town.world.records if r.forwarded_from]) == 3
    assert town.world.engine.desk.counters["forwardings", "contacts_left_out"] == 1
    town.assert_reconciled()


def test_lines_that_forward_to_each_other_are_a_loop(town: Town) -> None:
    """482, cause 25: three records, each with its own end."""
    town.register_all()
    redirecting(town.bob, to_number(b"060323001"))
    redirecting(town.alice, to_number(b"020514001"))
    call = town.trunk_b.call(b"+4920514001", headers=ASSERTED, from_user=CALLER.decode())
    town.world.run(5.0)
    assert call.status == 482
    records = town.world.records
    assert sorted((r.line, r.status, r.cause, r.rule) for r in records) == [
        ("L1", 482, 25, "forward.loop"),
        ("L2", 482, 25, "allow"),
        ("L2", 482, 25, "allow"),
    ]
    assert not town.world.live_slots()
    town.assert_reconciled()


def test_call_that_comes_back_to_the_line_that_forwarded_it_is_a_loop(town: Town) -> None:
    """Over other networks it has another Call-ID and no Via of ours; the Diversion tells."""
    town.register_all()
    redirecting(town.bob, to_number(b"03023125001"))
    again = ((b"Diversion", b"<sip:+4920514001@sip.test;user=phone>;reason=unknown;counter=1"),)
    call = town.trunk_b.call(b"+4920514001", headers=again)
    town.world.run(5.0)
    assert (call.status, both(town)[1].rule) == (482, "forward.loop")
    assert not town.trunk.calls


def test_call_that_was_forwarded_too_often_is_refused(town: Town) -> None:
    town.register_all()
    redirecting(town.bob, to_number(b"03023125001"))
    often = ((b"Diversion", b"<sip:+4940669690@x>;reason=unknown;counter=4, <sip:+4940669691@x>;reason=unknown"),)
    call = town.trunk_b.call(b"+4920514001", headers=often)
    town.world.run(5.0)
    assert (call.status, both(town)[1].rule, both(town)[1].cause) == (480, "forward.depth", 25)


@pytest.mark.parametrize(("status", "told", "cause"), [(301, 410, 22), (302, 480, 31), (300, 480, 31), (305, 480, 31)])
def test_3xx_of_a_trunk_is_not_followed(town: Town, status: int, told: int, cause: int) -> None:
    """Design §5, step 4: the carrier has no say in whom a customer calls."""
    town.register_all()
    redirecting(town.trunk, to_number(b"09001123456"), status=status)
    call = town.alice.call(b"03023125001")
    town.world.run(5.0)
    assert call.status == told
    assert call.final is not None
    assert not call.final.contacts
    (record,) = town.world.records
    assert (record.status, record.cause, record.end_reason, record.released_by) == (told, cause, "rejected", "callee")
    assert town.world.engine.desk.counters["redirections_refused", "trunk"] == 1
    assert not town.trunk_b.calls


def test_3xx_of_an_emergency_centre_means_the_next_route(town: Town) -> None:
    """Design, invariant 1: tried to the end; the trunk is the last resort."""
    town.register_all()
    redirecting(town.psap, b"<sip:elsewhere@evil.example>")
    call = town.alice.call(b"112")
    town.world.run(5.0)
    assert call.status == 200
    assert town.trunk.calls[0].invite is not None
    assert town.trunk.calls[0].invite.uri == b"sip:112@198.51.100.1:5060;user=phone"


def test_emergency_call_that_everybody_sends_elsewhere_is_480(town: Town) -> None:
    town.register_all()
    for agent in (town.psap, town.trunk, town.trunk_b):
        redirecting(agent, b"<sip:elsewhere@evil.example>")
    call = town.alice.call(b"112")
    town.world.run(5.0)
    assert call.status == 480
    assert [(r.verdict, r.end_reason, r.cause) for r in town.world.records] == [("emergency", "unreachable", 41)]
