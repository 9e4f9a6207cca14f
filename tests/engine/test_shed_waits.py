"""What is not taken by a node that is behind, or after a wait in a queue (docs/design.md, "Under load")."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cdr.facts import End, Record
from policy.emergency import service_of
from sipproxy.engine.actions import Journal, Note, TakeSlot
from sipproxy.engine.peers import Peer
from sipproxy.engine.settings import Rates
from sipproxy.engine.shed import (
    BEHIND_S,
    EMPTY_S,
    REPEATED_S,
    STANDING_S,
    Signals,
)
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Response, check_message
from tests.engine.desk import ROUTER, STRANGER, Desk
from tests.engine.shedding import CALL, CONTACT, TRUNK, desk_of, messages


def test_node_that_is_behind_catches_up_by_looking_at_calls_alone() -> None:
    """What has waited for T1 is repeated by who sent it. Design: invariant 1."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    desk.engine.observe(Signals(0.0, 0, BEHIND_S), desk.now)
    for flow in (ROUTER, STRANGER):
        assert messages(desk, b"REGISTER", 1, flow) == [[503] if flow == ROUTER else []], "a customer would repeat it otherwise"
        assert messages(desk, b"OPTIONS", 1, flow) == [[]]
        assert desk.receive(desk.request(b"INVITE", b"sip:112@sip.example", call_id=b"help-%d" % flow.port), flow)
        assert desk.receive(desk.request(b"BYE", CALL, to_tag=b"t"), flow)
    assert messages(desk, b"INVITE", 1, ROUTER, CALL) == [[407]]
    assert messages(desk, b"INVITE", 1, STRANGER, CALL) == [[]]
    assert desk.engine.shedder.counts == {("behind", "register"): 2, ("behind", "options"): 2, ("behind", "invite"): 1}
    desk.tick(0.1)
    desk.engine.observe(Signals(0.0, 0, 0.1), desk.now)
    assert messages(desk, b"REGISTER", 1, ROUTER) == [[401]]


def test_node_whose_strangers_alone_wait_is_not_behind() -> None:
    """They wait for all others, who are asked for nothing because of it."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    desk.engine.observe(Signals(0.0, 0, 0.0, BEHIND_S), desk.now)
    assert messages(desk, b"REGISTER", 1, ROUTER) == [[401]]
    assert desk.engine.shedder.counts == {}


def new_call(desk: Desk, waited_s: float) -> None:
    """A new call is looked at after such a wait."""
    desk.engine.desk.now = desk.now
    desk.engine.shedder.check(desk.request(b"INVITE", CALL), ROUTER, waited_s)


def with_queue(desk: Desk, waited_s: float = 0.2) -> Desk:
    """New calls have waited so long to be looked at, for long enough."""
    for _ in range(round(STANDING_S / 0.1) + 1):
        new_call(desk, waited_s)
        desk.engine.observe(Signals(0.0, 0, waited_s), desk.now)
        desk.tick(0.1)
    desk.engine.shedder.counts.clear()
    return desk


def statuses(desk: Desk, data: bytes, flow: Flow, waited_s: float) -> list[int]:
    return [m.status for m in desk.receive(data, flow, waited_s=waited_s) if isinstance(m, Response)]


def records(desk: Desk) -> list[Record]:
    return [a.fact.record for a in desk.actions if isinstance(a, Journal) and isinstance(a.fact, End)]


def test_new_call_that_waited_in_a_queue_is_refused_before_anything_is_done_for_it() -> None:
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    with_queue(desk)
    invite = desk.request(b"INVITE", CALL, branch=b"z9hG4bKlate", headers=((b"Contact", CONTACT),))
    answer = desk.answer(invite, waited_s=0.2)
    assert (answer.status, 5 <= int(answer.first(b"retry-after") or b"") <= 10) == (503, True)
    check_message(answer)
    assert records(desk) == [], "nobody has proven to have sent it: it is no attempt yet, as when it is challenged"
    assert statuses(desk, invite, ROUTER, 0.2) == [], "a copy that came before the answer left asks for nothing more"
    desk.tick(0.5)
    assert desk.answer(invite, waited_s=0.2).to.tag == answer.to.tag, "a later one gets the same answer (RFC 3261 §8.2.7)"
    ack = desk.request(b"ACK", CALL, branch=b"z9hG4bKlate", to_tag=answer.to.tag or b"")
    assert desk.receive(ack, waited_s=0.2) == []
    counts = desk.engine.shedder.counts
    assert counts == {("late", "invite"): 1, ("repeated", "invite"): 2, ("acknowledged", "part"): 1}
    assert statuses(desk, desk.request(b"INVITE", CALL), STRANGER, 0.2) == [], (
        "who waited in vain and is not known gets nothing"
    )
    assert statuses(desk, desk.request(b"INVITE", CALL), ROUTER, 0.05) == [407], "others are taken"
    desk.engine.shedder.use(Rates(lag_s=0.5))
    assert statuses(desk, desk.request(b"INVITE", CALL), ROUTER, 0.2) == [407], "where more lateness is allowed"


def test_new_call_that_answers_its_challenge_may_wait_twice_as_long() -> None:
    """Something has been done for it. What is refused then has a record: its caller is known by his binding."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    headers = (desk.credentials(b"INVITE", CALL), (b"Contact", CONTACT))
    with_queue(desk)
    desk.receive(desk.request(b"INVITE", CALL, headers=headers), waited_s=0.24)
    assert any(isinstance(action, TakeSlot) for action in desk.actions)
    again = desk.request(b"INVITE", CALL, call_id=b"second", headers=headers)
    assert statuses(desk, again, ROUTER, 0.26) == [503]
    (record,) = records(desk)
    assert (record.rule, record.account, record.status) == ("node.overload", "alice", 503)
    assert (record.dialled, record.canonical) == (CALL.decode(), "+493023125001")


def test_what_a_hiccup_leaves_is_worked_off() -> None:
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    for number in range(9):  # all that arrived within the time for which nothing was read
        assert statuses(desk, desk.request(b"INVITE", CALL, call_id=b"%d" % number), ROUTER, 0.9 - 0.1 * number) == [407]
        desk.tick(0.1)
        desk.engine.observe(Signals(0.0, 0, 0.9 - 0.1 * number), desk.now)
    desk.tick(5.0)
    assert statuses(desk, desk.request(b"INVITE", CALL, call_id=b"alone"), ROUTER, 0.9) == [407], "and so later on"


def test_log_says_since_when_new_calls_stand_in_a_queue_and_how_many_were_refused_out_of_it() -> None:
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    told = list[Note]()

    def observe(waited_s: float) -> None:
        actions = desk.engine.observe(Signals(0.0, 0, waited_s), desk.now)
        told.extend(action for action in actions if isinstance(action, Note) and action.event == "overload")

    for _ in range(round(STANDING_S / 0.1) + 2):
        new_call(desk, 0.2)
        observe(0.2)
        desk.tick(0.1)
    (begins,) = told
    assert (begins.level, begins.fields) == ("warning", {"state": "begins", "calls": 0})
    refused = desk.engine.shedder.counts["late", "invite"]
    assert refused > 0
    for number in range(2):
        assert statuses(desk, desk.request(b"INVITE", CALL, call_id=b"%d" % number), ROUTER, 0.2) == [503]
    desk.tick(2 * EMPTY_S)
    observe(0.0)
    observe(0.0)
    _, over = told
    assert (over.level, over.fields) == ("info", {"state": "over", "calls": 0, "refused": refused + 2})


def test_hidden_caller_of_a_trunk_is_in_no_record_of_a_call_that_is_refused_for_its_wait() -> None:
    """TDDDG § 9(1). And what cannot be read has its answer, and a record of what can be told."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    with_queue(desk)
    caller = (b"P-Asserted-Identity", b"<sip:+49301234567@carrier.example;user=phone>")
    headers = (caller, (b"Privacy", b"id"), (b"Diversion", b"<sip:+49301234567@carrier.example>"))
    uri = b"sip:+4920515551234@sip.example"
    assert desk.answer(desk.request(b"INVITE", uri, headers=headers, user=b"+49301234567"), TRUNK, waited_s=0.2).status == 503
    (record,) = records(desk)
    assert (record.canonical, record.calling, record.presented, record.diversions) == ("+4920515551234", "", "", [])
    unreadable = desk.request(b"INVITE", uri, branch=b"z9hG4bKother").replace(b"Max-Forwards: ", b"Max-Forwards: 7\x010")
    assert desk.answer(unreadable, TRUNK, waited_s=0.2).status == 503
    assert [(record.rule, record.canonical) for record in records(desk)] == [("node.overload", "-")]


@pytest.mark.parametrize(("waited_s", "status"), [(0.02, 407), (0.05, 503)])
def test_queue_is_over_when_hardly_anything_waits_for_a_moment(waited_s: float, status: int) -> None:
    """And the next hiccup is one again."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    with_queue(desk)
    for _ in range(round(EMPTY_S / 0.1)):
        desk.tick(0.1)
        new_call(desk, waited_s)
        desk.engine.observe(Signals(0.0, 0, waited_s), desk.now)
    assert statuses(desk, desk.request(b"INVITE", CALL), ROUTER, 0.2) == [status]


def test_copy_of_a_call_that_was_taken_or_challenged_is_not_refused_for_its_wait() -> None:
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    first = desk.request(b"INVITE", CALL, branch=b"z9hG4bKfirst", headers=((b"Contact", CONTACT),))
    assert desk.answer(first).status == 407
    headers = (desk.credentials(b"INVITE", CALL), (b"Contact", CONTACT))
    second = desk.request(b"INVITE", CALL, branch=b"z9hG4bKsecond", headers=headers)
    desk.receive(second)
    assert any(isinstance(action, TakeSlot) for action in desk.actions)
    with_queue(desk, 0.4)
    assert statuses(desk, first, ROUTER, 0.4) == [407]
    assert 503 not in statuses(desk, second, ROUTER, 0.4)
    assert (records(desk), any(isinstance(action, TakeSlot) for action in desk.actions)) == ([], False)
    for branch in (b"z9hG4bKfirst", b"z9hG4bKsecond"):
        ack = desk.request(b"ACK", CALL, branch=branch, to_tag=b"t")
        assert desk.engine.shedder.check(ack, ROUTER, 0.4) is None, "its answer's ACK is waited for"


def test_call_of_a_trunk_that_waited_in_a_queue_is_refused_with_a_record() -> None:
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    with_queue(desk)
    caller = (b"P-Asserted-Identity", b"<sip:+49301234567@carrier.example;user=phone>")
    headers = (caller, (b"Diversion", b"<sip:+493055512@carrier.example>"))
    invite = desk.request(b"INVITE", b"sip:+4920515551234@sip.example", branch=b"z9hG4bKlate", headers=headers)
    answer = desk.answer(invite, TRUNK, waited_s=0.2)
    assert answer.status == 503
    (record,) = records(desk)
    assert (record.rule, record.direction, record.trunk) == ("node.overload", "incoming", "carrier-a")
    assert (record.dialled, record.canonical) == ("sip:+4920515551234@sip.example", "+4920515551234")
    assert (record.calling, len(record.diversions)) == ("+49301234567", 1)
    assert desk.receive(invite, TRUNK, waited_s=0.2) == [], "it was there before the answer"
    desk.tick(0.5)
    assert desk.answer(invite, TRUNK, waited_s=0.2).to.tag == answer.to.tag
    assert records(desk) == [], "of the same attempt"
    assert desk.receive(desk.request(b"ACK", CALL, branch=b"z9hG4bKlate"), TRUNK, waited_s=0.2) == []
    assert desk.engine.shedder.counts == {("late", "invite"): 1, ("repeated", "invite"): 2, ("acknowledged", "part"): 1}
    assert statuses(desk, desk.request(b"BYE", CALL, to_tag=b"t"), TRUNK, 0.2) == [481], "which was looked at"


def test_caller_beside_customers_who_waited_in_vain_is_told() -> None:
    """Behind one address, from a port that no binding has: he would repeat it otherwise, and wait again."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    with_queue(desk)
    assert statuses(desk, desk.request(b"INVITE", CALL), ROUTER._replace(port=40_000), 0.2) == [503]


def test_call_that_was_turned_away_is_remembered_from_its_first_answer_on_and_where_there_was_one_alone() -> None:
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    with_queue(desk)
    invite = desk.request(b"INVITE", CALL, branch=b"z9hG4bKlate")
    assert statuses(desk, invite, ROUTER, 0.2) == [503]
    assert statuses(desk, invite, STRANGER, 0.2) == []
    desk.tick(20.0)
    assert statuses(desk, invite, ROUTER, 0.0) == [503]
    desk.receive(invite, STRANGER)
    desk.tick(REPEATED_S - 20.0)
    assert statuses(desk, invite, ROUTER, 0.0) == [407], "by now it is no copy, but another call"
    assert desk.engine.shedder.counts == {("late", "invite"): 2, ("repeated", "invite"): 1}


def test_what_another_node_sends_is_not_refused_for_its_wait() -> None:
    """It has looked at it already, and asked for its channel."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    with_queue(desk)
    flow = Flow("UDP", 0, "192.0.2.200", 5060)
    assert desk.engine.shedder.check(desk.request(b"INVITE", CALL), flow, 0.2) is not None
    desk.engine.desk.peers.heard([Peer("n2", (Hop("UDP", flow.host, 5060),), frozenset([flow.host]))])
    assert desk.engine.shedder.check(desk.request(b"INVITE", CALL), flow, 0.2) is None


def test_call_that_hardly_waits_shows_that_there_is_no_queue() -> None:
    """Two hiccups, a second apart."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    new_call(desk, 0.9)
    desk.tick(0.5 * STANDING_S)
    new_call(desk, 0.01)
    desk.tick(0.6 * STANDING_S)
    assert statuses(desk, desk.request(b"INVITE", CALL), ROUTER, 0.9) == [407]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 2.0)), max_size=30),
    st.floats(0.0, 60.0),
    st.sampled_from([b"sip:112@sip.example", b"sip:110@sip.example", b"urn:service:sos", b"sip:+49112@sip.example"]),
    st.sampled_from([ROUTER, STRANGER]),
)
def test_call_for_help_and_what_belongs_to_calls_pass_however_long_they_waited(
    waits: list[tuple[float, float]], waited_s: float, target: bytes, flow: Flow
) -> None:
    """Design: invariant 1."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    for waited, pause in waits:
        new_call(desk, waited)
        desk.engine.observe(Signals(0.0, 0, waited), desk.now)
        desk.tick(pause)
    check = desk.engine.shedder.check
    desk.engine.desk.now = desk.now
    if service_of(target):
        assert check(desk.request(b"INVITE", target), flow, waited_s) is None
    for method in (b"BYE", b"ACK", b"INVITE", b"CANCEL"):
        data = desk.request(method, CALL, to_tag=b"" if method == b"CANCEL" else b"t")
        assert check(data, ROUTER, waited_s) is None
    assert check(b"SIP/2.0 200 OK\r\n\r\n", ROUTER, waited_s) is None


def test_strangers_who_wait_for_all_others_make_no_queue_of_customers_calls() -> None:
    """They would refuse them at the next hiccup. Once there is a queue, what waits in it is not answered."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    for number in range(round(2 * STANDING_S / 0.1)):
        desk.receive(desk.request(b"INVITE", CALL, call_id=b"%d" % number), STRANGER, waited_s=0.4)
        desk.engine.observe(Signals(0.0, 0, 0.0, 0.4), desk.now)
        desk.tick(0.1)
    assert not desk.engine.shedder.has_queue
    assert statuses(desk, desk.request(b"INVITE", CALL), ROUTER, 0.2) == [407]
    with_queue(desk)
    assert statuses(desk, desk.request(b"INVITE", CALL), STRANGER, 0.1) == [407]
    assert statuses(desk, desk.request(b"INVITE", CALL), STRANGER, 0.2) == []
    for _ in range(round(EMPTY_S / 0.1)):
        desk.tick(0.1)
        desk.receive(desk.request(b"INVITE", CALL), STRANGER, waited_s=0.4)
        desk.engine.observe(Signals(0.0, 0, 0.0, 0.4), desk.now)
    assert not desk.engine.shedder.has_queue, "nor do they keep it"
