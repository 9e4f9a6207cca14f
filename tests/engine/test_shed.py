"""What is not taken under load, in which order, and what always is (docs/design.md, "Under load")."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.emergency import service_of
from sipproxy.engine.actions import Note, TakeSlot
from sipproxy.engine.bucket import Bucket, Buckets
from sipproxy.engine.kinds import MAX_NAME, Kind, copy_of, is_new_call, kind_of, may_be_emergency
from sipproxy.engine.settings import Rates
from sipproxy.engine.shed import (
    CALM_S,
    REPEATED_S,
    Load,
    Signals,
)
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Response, check_message
from tests.engine.desk import DOMAIN, ROUTER, STRANGER, Desk
from tests.engine.shedding import CALL, CONTACT, at_load, desk_of, messages, stranger
from tests.sim.conftest import TRUNK_A


def test_kinds_are_told_by_bytes_alone() -> None:
    desk = Desk()
    told = {
        desk.request(b"OPTIONS"): Kind.OPTIONS,
        desk.request(b"MESSAGE"): Kind.OPTIONS,
        desk.request(b"REGISTER"): Kind.REGISTER,
        desk.request(b"INVITE", CALL): Kind.INVITE,
        desk.request(b"OPTIONS", headers=((b"User-Agent", b"friendly-scanner"),)): Kind.SCANNER,
        desk.request(b"INVITE", CALL, headers=((b"user-agent", b"sipcli/v1.8"),)): Kind.SCANNER,
        b"GET / HTTP/1.1\r\n\r\n": Kind.SCANNER,
        b"\x16\x03\x01\x02\x00\x01": Kind.SCANNER,
        b"": Kind.SCANNER,
        desk.request(b"INVITE", b"sip:112@sip.example"): Kind.PART,
        desk.request(b"INVITE", b"urn:service:sos", headers=((b"User-Agent", b"sipvicious"),)): Kind.PART,
        desk.request(b"INVITE", CALL, to_tag=b"x"): Kind.PART,
        desk.request(b"BYE", to_tag=b"x"): Kind.PART,
        desk.request(b"BYE").replace(b"\r\nTo: <sip:sip.test>", b"\r\nt :<sip:sip.test>\r\n ; TAG = x"): Kind.PART,
        desk.request(b"BYE").replace(b"\r\nTo: <sip:sip.test>", b"\r\nTo: <sip:sip.test>\r\n\t;tag=x"): Kind.PART,
        desk.request(b"REGISTER", to_tag=b"x"): Kind.REGISTER,
        b"REGISTER sip:sip.test SIP/3.0\r\nTo: <sip:sip.test>;tag=x\r\n\r\n": Kind.SCANNER,
        b"SIP/2.0 200": Kind.PART,
        desk.request(b"INVITE", CALL, to=b"<sip:a@sip.test>;x=tag;tagged=1;y;\ttAg =z"): Kind.PART,
        desk.request(b"INVITE", CALL, to=b"<sip:a@sip.test>;x=tag;tagged=1;;etag=2"): Kind.INVITE,
        desk.request(b"INVITE", CALL)
        + b"t: <sip:sip.test>;tag=x\r\n": Kind.INVITE,  # the first To counts, not what the body says
        desk.request(b"NOTIFY").replace(b"\r\nTo: <sip:sip.test>", b"\r\nt: <sip:sip.test>;tag=x")
        + b"SIP/2.0 200 OK\r\nTo: <sip:b@sip.test>\r\n": Kind.PART,  # nor where that writes it in the longer way
        desk.request(b"CANCEL", CALL): Kind.PART,
        desk.request(b"ACK", CALL): Kind.PART,
        b"SIP/2.0 200 OK\r\n\r\n": Kind.PART,
        b"Sip/2.0 200 OK\r\n\r\n": Kind.PART,  # a version is compared without regard to case (RFC 3261 §7.1)
        desk.request(b"INVITE", CALL).replace(b" SIP/2.0\r\n", b" Sip/2.0\r\n", 1): Kind.INVITE,
    }
    assert {data: kind_of(data) for data in told} == told
    new = {data for data, kind in told.items() if data.startswith(b"INVITE ") and kind is not Kind.PART}
    assert {data for data in told if is_new_call(data)} == new
    begun = [data.replace(b"\r\n\r\n", b"\r\nPROXY-authorization : Digest x\r\n\r\n", 1) for data in new]
    assert not any(is_new_call(data) for data in (*begun, b"INVITE ", b"INVITE sip:a@sip.test SIP/2.0", b"\n", b"\r\n"))


@pytest.mark.parametrize(
    "name",
    [
        *("friendly-scanner", "friendly-request", "sipvicious", "sipscan", "sip-scan", "sipcli", "sundayddr", "iwar", "pplsip"),
        *("vaxsip", "smap", "sipsak", "gulp", "nm@nm", "eyebeam release 3006o"),
    ],
)
@pytest.mark.parametrize("header", ["User-Agent: ", "SERVER:\t", "server :"])
def test_scanner_is_known_by_each_of_its_names_in_any_case(name: str, header: str) -> None:
    for spelt in (name, name.upper(), name.title() + "/1.0"):
        data = Desk().request(b"OPTIONS").replace(b"\r\nMax-Forwards", f"\r\n{header}{spelt}\r\nMax-Forwards".encode(), 1)
        assert kind_of(data) is Kind.SCANNER, data


@settings(max_examples=300)
@given(
    st.sampled_from(
        [b"110", b"112", b"+112", b"1-1-2", b"%31%31%32", b"*31#112", b"0108811", b"010881120", b"11201", b"sos", b"SOS"]
    ),
    st.sampled_from([b"sip:%b@sip.example", b"tel:%b", b"SIP:%b", b"sip:%b@x;user=phone", b"urn:service:%b", b"%b"]),
    st.sampled_from([b" SIP/2.0\r\n", b" sip/2.0\n", b"\tSIP/2.0\r\n", b""]),
)
def test_whatever_policy_takes_for_a_call_for_help_is_one_by_its_bytes(user: bytes, form: bytes, end: bytes) -> None:
    """Design: invariant 1. The cheap test errs on one side only."""
    target = form % user
    if service_of(target):
        assert may_be_emergency(b"INVITE " + target + end)
        assert kind_of(b"INVITE " + target + end + b"Via: x\r\n\r\n") is Kind.PART
        assert not is_new_call(b"INVITE " + target + end + b"Via: x\r\n\r\n")


@settings(max_examples=500)
@given(st.binary(max_size=60))
def test_any_target_that_policy_takes_for_a_call_for_help_is_one_by_its_bytes(target: bytes) -> None:
    if service_of(target) and b"\n" not in target:
        assert may_be_emergency(b"INVITE " + target + b" SIP/2.0\r\n")
        assert not is_new_call(b"INVITE " + target + b" SIP/2.0\r\n")


def test_an_ordinary_call_with_the_digits_somewhere_is_no_call_for_help() -> None:
    assert not may_be_emergency(b"INVITE sip:03011255110@sip.example SIP/2.0\r\n")
    assert not may_be_emergency(b"INVITE sip:03012345@sip.example SIP/2.0\r\nTo: <sip:112@x>\r\n")


def test_a_source_over_its_budget_gets_nothing_and_has_it_back_with_time() -> None:
    desk = desk_of()
    assert messages(desk, b"OPTIONS", 10, STRANGER) == [[200]] * 8 + [[]] * 2
    assert desk.engine.shedder.counts == {("source", "options"): 2}
    desk.tick(3)
    assert messages(desk, b"OPTIONS", 5, STRANGER) == [[200]] * 3 + [[]] * 2


def test_an_ipv6_customer_has_one_budget_whatever_addresses_he_takes() -> None:
    desk = desk_of()
    found = [messages(desk, b"OPTIONS", 1, Flow("UDP", 0, f"2001:db8:1:2::{n:x}", 5060))[0] for n in range(1, 11)]
    assert found == [[200]] * 8 + [[]] * 2
    assert messages(desk, b"OPTIONS", 1, Flow("UDP", 0, "2001:db8:1:3::1", 5060)) == [[200]]


def test_many_strangers_share_a_budget_of_which_the_important_get_more() -> None:
    desk = desk_of()
    found = {}
    for number, method in enumerate([b"OPTIONS"] * 15 + [b"REGISTER"] * 15 + [b"INVITE"] * 15):
        answered = messages(desk, method, 1, stranger(number), CALL if method == b"INVITE" else DOMAIN)[0]
        found[method] = found.get(method, 0) + bool(answered)
    assert found == {b"OPTIONS": 10, b"REGISTER": 5, b"INVITE": 5}
    assert desk.engine.shedder.counts == {
        ("strangers", "options"): 5,
        ("strangers", "register"): 10,
        ("strangers", "invite"): 10,
    }


@pytest.mark.parametrize("load", list(Load))
def test_each_state_refuses_one_kind_more(load: Load) -> None:
    desk = at_load(desk_of(), load)
    scanner = desk.request(b"OPTIONS", headers=((b"User-Agent", b"sipvicious"),))
    taken = [
        bool(desk.receive(scanner, STRANGER)),
        bool(desk.receive(desk.request(b"OPTIONS"), STRANGER)),
        bool(desk.receive(desk.request(b"REGISTER"), STRANGER)),
        bool(desk.receive(desk.request(b"INVITE", CALL), STRANGER)),
        bool(desk.receive(desk.request(b"INVITE", b"sip:112@sip.example"), STRANGER)),
        bool(desk.receive(desk.request(b"BYE", to_tag=b"x"), STRANGER)),
        bool(desk.receive(b"\r\n\r\n" + desk.request(b"INVITE", b"sip:110@sip.example"), STRANGER)),
    ]
    assert taken == [index >= load for index in (*range(6), 4)]


def test_a_customer_is_told_when_to_come_again_and_his_calls_for_help_pass() -> None:
    desk = desk_of(Rates(registers_per_s=100, registers_burst=2))
    assert desk.register(CONTACT).status == 200
    at_load(desk, Load.INVITE)
    assert desk.answer(desk.request(b"REGISTER")).status == 401, "a part of them goes on"
    for method, uri in ((b"REGISTER", DOMAIN), (b"INVITE", CALL)):
        answer = desk.answer(desk.request(method, uri))
        assert (answer.status, 5 <= int(answer.first(b"retry-after") or b"") <= 12) == (503, True)
    assert desk.answer(desk.request(b"OPTIONS")).status == 200, "asking whether we are there costs little"
    helped = desk.receive(desk.request(b"INVITE", b"sip:112@sip.example"))
    assert not [m for m in helped if isinstance(m, Response) and m.status >= 300]
    assert [m for m in helped if not isinstance(m, Response)], "it is on its way"


def test_a_call_for_help_passes_every_empty_budget() -> None:
    """Design: invariant 1."""
    desk = desk_of()
    assert desk.register(CONTACT).status == 200
    at_load(desk, Load.INVITE)
    for flow in (ROUTER, STRANGER, Flow("UDP", 0, ROUTER.host, 4444)):
        for _ in range(20):
            messages(desk, b"OPTIONS", 1, flow)
        for number in range(20):
            assert desk.receive(desk.request(b"INVITE", b"sip:112@sip.example", call_id=b"%d-%d" % (flow.port, number)), flow)


def test_the_repetition_of_a_request_that_was_taken_is_not_turned_away() -> None:
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    invite = desk.request(
        b"INVITE", CALL, headers=(desk.credentials(b"INVITE", CALL), (b"Contact", CONTACT)), branch=b"z9hG4bKonce"
    )
    desk.receive(invite)
    assert any(isinstance(action, TakeSlot) for action in desk.actions)
    at_load(desk, Load.INVITE)
    assert desk.receive(invite) == []
    assert desk.answer(desk.request(b"INVITE", CALL)).status == 503


def test_copy_of_a_call_that_was_turned_away_is_turned_away_too_when_the_load_is_over() -> None:
    """Its caller was told 503 and is gone: a call of the copy would ring, be answered and keep its channel without him."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    headers = (desk.credentials(b"INVITE", CALL), (b"Contact", CONTACT))
    invite = desk.request(b"INVITE", CALL, headers=headers, branch=b"z9hG4bKtwice")
    at_load(desk, Load.INVITE)
    assert desk.answer(invite).status == 503
    desk.engine.shedder.load = Load.CALM
    assert desk.answer(invite).status == 503
    assert not any(isinstance(action, TakeSlot) for action in desk.actions)
    assert desk.engine.shedder.counts["repeated", "invite"] == 1
    desk.tick(1.0)
    desk.receive(desk.request(b"INVITE", CALL, headers=headers, branch=b"z9hG4bKanew"))
    assert any(isinstance(action, TakeSlot) for action in desk.actions), "he tries anew"
    desk.tick(REPEATED_S)
    desk.engine.desk.now = desk.now
    assert desk.engine.shedder._again(Kind.INVITE, copy_of(invite, ROUTER), 0.0) is None


@pytest.mark.parametrize(
    ("via", "branch"),
    [
        pytest.param(b"SIP/2.0/UDP 203.0.113.1", b"1", id="not unique by itself"),
        pytest.param(b"SIP/2.0/UDP 203.0.113.1", b"z9hG4bK", id="the cookie alone"),
        pytest.param(b"SIP/2.0/UDP 203.0.113.1, SIP/2.0/UDP p.example", b"z9hG4bKfork", id="of a further element"),
        pytest.param(b"SIP/2.0/UDP 203.0.113.1|Via: SIP/2.0/UDP p.example", b"z9hG4bKfork", id="of a further line"),
    ],
)
def test_other_call_with_a_branch_that_says_nothing_is_no_copy(via: bytes, branch: bytes) -> None:
    """RFC 3261 §17.2.3: only the branch of the first Via tells, and only behind the magic cookie."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    first, second = (desk.request(b"INVITE", CALL, via=via, branch=branch, call_id=b"%d" % number) for number in (1, 2))
    first, second = first.replace(b"|", b"\r\n"), second.replace(b"|", b"\r\n")
    at_load(desk, Load.INVITE)
    assert desk.answer(first).status == 503
    desk.engine.shedder.load = Load.CALM
    assert desk.answer(first).status == 503, "it is one of itself"
    assert desk.answer(second).status == 407


@pytest.mark.parametrize("before", [b";", b"\r\n ;", b";rport\r\n\t;x ;\r\n ", b"; "])
def test_copy_is_known_by_the_branch_wherever_its_line_is_folded(before: bytes) -> None:
    desk = Desk()
    invite, ack = (desk.request(method, CALL, branch=b"z9hG4bK7") for method in (b"INVITE", b"ACK"))
    invite, ack = (data.replace(b";branch", before + b"branch", 1) for data in (invite, ack))
    assert copy_of(invite, ROUTER) == copy_of(ack, ROUTER) == (ROUTER.host, ROUTER.port, b"z9hG4bK7")


def test_what_is_kept_of_a_call_that_was_turned_away_is_short_however_long_it_was() -> None:
    """Design: invariant 10. A customer who sends nothing but such ones does not fill the memory."""
    desk = Desk()
    for invite in (
        desk.request(b"INVITE", CALL, branch=b"z9hG4bK" + b"x" * 50_000),
        desk.request(b"INVITE", CALL, branch=b"1", body=b"x" * 50_000),
        desk.request(b"INVITE", CALL, body=b"x" * 50_000).replace(b"\r\nVia: ", b"\r\nSubject: "),
    ):
        copy, other = copy_of(invite, ROUTER), copy_of(invite.replace(b"x\r", b"y\r") + b"y", ROUTER)
        assert (len(copy[2]) <= MAX_NAME, copy == copy_of(bytes(invite), ROUTER), copy == other) == (True, True, False)


def test_the_table_of_calls_that_were_turned_away_is_bounded() -> None:
    desk = desk_of(Rates(sources=20))
    assert desk.register(CONTACT).status == 200
    at_load(desk, Load.INVITE)
    for number in range(50):
        assert desk.answer(desk.request(b"INVITE", CALL, call_id=b"%d" % number)).status == 503
    assert (len(desk.engine.shedder.turned_away), desk.engine.shedder.turned_away.evicted) == (20, 30)


def test_what_belongs_to_a_live_call_passes_whoever_sends_it() -> None:
    desk = desk_of(Rates(source_burst=1, source_per_s=1))
    desk.engine.shedder._rates = Rates()
    assert desk.register(CONTACT).status == 200
    desk.receive(
        desk.request(b"INVITE", CALL, headers=(desk.credentials(b"INVITE", CALL), (b"Contact", CONTACT)), call_id=b"live")
    )
    desk.engine.shedder._rates = Rates(source_burst=1, source_per_s=1)
    messages(desk, b"OPTIONS", 3, STRANGER)
    before = sum(desk.engine.shedder.counts.values())
    for method in (b"BYE", b"INFO", b"CANCEL", b"ACK"):
        desk.receive(desk.request(method, CALL, call_id=b"live", to_tag=b"t"), STRANGER)
    assert sum(desk.engine.shedder.counts.values()) == before
    folded = desk.request(b"BYE", CALL, call_id=b"live", to_tag=b"t").replace(b"Call-ID: ", b"Call-ID:\r\n ")
    desk.receive(folded, STRANGER)
    assert sum(desk.engine.shedder.counts.values()) == before
    desk.receive(desk.request(b"BYE", CALL, call_id=b"made up", to_tag=b"t"), STRANGER)
    assert desk.engine.shedder.counts["source", "part"] == 1, "a To tag alone opens no door"


def test_a_line_has_its_own_budget_behind_an_address_that_others_flood() -> None:
    desk = desk_of()
    assert desk.register(CONTACT).status == 200
    neighbour = Flow("UDP", 0, ROUTER.host, 40_000)
    messages(desk, b"OPTIONS", 30, neighbour)
    assert ("source", "options") in desk.engine.shedder.counts
    assert messages(desk, b"OPTIONS", 7, ROUTER) == [[200]] * 6 + [[]], "the line's six"
    desk.tick(60)
    assert messages(desk, b"INVITE", 7, ROUTER, CALL) == [[407]] * 6 + [[503]]


def test_address_with_customers_has_a_larger_budget_for_those_whose_port_is_new() -> None:
    """Carrier-grade NAT: routers that come back by other ports share it."""
    desk = desk_of()
    assert desk.register(CONTACT).status == 200
    neighbour = Flow("UDP", 0, ROUTER.host, 40_000)
    messages(desk, b"OPTIONS", 1, neighbour)
    desk.tick(60)
    assert messages(desk, b"OPTIONS", 11, neighbour) == [[200]] * 9 + [[]] * 2, "eight, and one for the line"


def test_registered_routers_that_all_come_at_once_are_given_different_times() -> None:
    desk = desk_of(Rates(registers_per_s=40, registers_burst=4))
    assert desk.register(CONTACT).status == 200
    waits = []
    for _ in range(200):
        desk.engine.shedder.lines = Buckets(50)  # as many lines as REGISTERs
        answer = desk.answer(desk.request(b"REGISTER"))
        if answer.status == 503:
            waits.append(int(answer.first(b"retry-after") or b""))
    assert len(waits) > 190
    assert waits[0] <= 6
    assert 38 <= max(waits) <= 50, "five come again in each second"
    busiest = max(sum(second <= wait < second + 5 for wait in waits) for second in range(50))
    assert busiest <= 45, "no more than come in five seconds at most of the rate"


def test_router_that_answers_its_challenge_is_not_turned_away_behind_first_tries() -> None:
    desk = desk_of(Rates(registers_per_s=1, registers_burst=8))
    assert desk.register(CONTACT).status == 200
    proof = desk.credentials(b"REGISTER", DOMAIN)
    forged = (proof[0], proof[1].replace(b'nonce="', b'nonce="A'))
    desk.tick(60)

    def registers(number: int, *headers: tuple[bytes, bytes]) -> list[int]:
        found = []
        for _ in range(number):
            desk.engine.shedder.lines = Buckets(50)
            found.append(desk.answer(desk.request(b"REGISTER", headers=headers)).status)
        return found

    assert registers(6) == [401] * 4 + [503] * 2, "half of the burst is for those"
    assert registers(1, forged) == [503], "who were challenged, not for who says so"
    assert registers(5, proof)[0] == 200
    assert registers(1, proof) == [503], "and they have a bound too"


def test_stranger_who_answers_his_challenge_is_heard_when_first_tries_are_not() -> None:
    """A router with a new address, after a power cut."""
    desk = desk_of()
    proof = desk.credentials(b"REGISTER", DOMAIN, flow=STRANGER)
    at_load(desk, Load.REGISTER)
    assert not desk.receive(desk.request(b"REGISTER"), STRANGER)
    assert not desk.receive(desk.request(b"REGISTER", headers=(proof,)), ROUTER), "another source's nonce"
    assert desk.answer(desk.request(b"REGISTER", headers=(proof,)), STRANGER).status == 200
    at_load(desk, Load.INVITE)
    assert not desk.receive(desk.request(b"REGISTER", headers=(proof,)), STRANGER)


def test_trunks_are_never_counted() -> None:
    desk = at_load(desk_of(), Load.INVITE)
    trunk = Flow("UDP", 0, *TRUNK_A)
    assert messages(desk, b"OPTIONS", 30, trunk) == [[200]] * 30


def test_the_table_of_sources_is_bounded_and_forgets_the_silent_first() -> None:
    desk = desk_of(Rates(sources=50))
    for number in range(1, 200):
        messages(desk, b"OPTIONS", 1, stranger(number))
        messages(desk, b"OPTIONS", 1, STRANGER)
    assert len(desk.engine.shedder.sources) == 50
    assert desk.engine.shedder.sources.evicted == 150
    assert desk.engine.shedder.sources.find(STRANGER.host) is not None


def test_the_table_of_lines_is_bounded() -> None:
    buckets = Buckets(3)
    for key in range(10):
        buckets.add(key, Bucket(1, 0.0))
    assert (len(buckets), buckets.evicted, buckets.find(9) is None, buckets.find(1)) == (3, 7, False, None)


def test_a_state_comes_after_two_bad_samples_and_goes_after_a_calm_while() -> None:
    desk = desk_of()
    states = []

    def sample(lag_s: float, drops: int = 0) -> None:
        desk.tick(0.1)
        for action in desk.engine.observe(Signals(lag_s, drops), desk.now):
            assert isinstance(action, Note)
            states.append((action.level, action.event, action.fields["state"]))

    sample(1.0)
    sample(0.0)
    sample(1.0)
    assert states == [], "one late sample is a hiccup"
    sample(1.0)
    assert states == [("warning", "load", "scanners")]
    for _ in range(round(10 * CALM_S) - 3):
        sample(0.0)
    sample(0.13)
    sample(0.13)
    for _ in range(round(10 * CALM_S) - 3):
        sample(0.0)
    assert len(states) == 1, "half of the mark is not calm"
    for _ in range(5):
        sample(0.0)
    assert states[1:] == [("info", "load", "calm")]


@pytest.mark.parametrize("signals", [Signals(0.0, 100), Signals(0.0, 0, 1.0), Signals(0.0, 0, 0.0, 1.0)])
def test_datagrams_that_the_kernel_dropped_or_holds_are_strangers_doing(signals: Signals) -> None:
    """A flood must not make the node refuse its customers."""
    desk = desk_of()
    for _ in range(20):
        desk.tick(0.1)
        desk.engine.observe(signals, desk.now)
    assert desk.engine.shedder.load is Load.OPTIONS
    assert (desk.engine.shedder.pace.ease < 1.0) == (signals.wait_s > 0), "strangers are asked less while others wait"


def test_register_that_is_turned_away_is_answered_without_being_parsed_and_as_if_it_had_been() -> None:
    desk = desk_of(Rates(registers_per_s=1, registers_burst=2))
    assert desk.register(CONTACT).status == 200
    desk.engine.shedder.lines = Buckets(50)
    while desk.answer(desk.request(b"REGISTER")).status != 503:
        desk.engine.shedder.lines = Buckets(50)
    once = desk.request(b"REGISTER", branch=b"z9hG4bKonce")
    plain, again = desk.answer(once), desk.answer(once)
    odd = desk.answer(once.replace(b";rport", b";RPORT"))
    for answer in (plain, again, odd):
        assert (answer.status, answer.call_id, answer.cseq.number) == (503, b"call-1", plain.cseq.number)
        assert int(answer.first(b"retry-after") or b"") >= 5
        check_message(answer)
    assert plain.to.tag == again.to.tag, "RFC 3261 §8.2.7"
    assert (plain.via.param(b"received"), plain.via.param(b"rport")) == (b"203.0.113.1", b"5060")


@pytest.mark.parametrize("name", [b"From", b"To", b"Call-ID", b"CSeq"])
def test_register_that_is_turned_away_and_cannot_be_read_is_told_so(name: bytes) -> None:
    desk = desk_of(Rates(registers_per_s=1, registers_burst=2))
    assert desk.register(CONTACT).status == 200
    while desk.answer(desk.request(b"REGISTER")).status != 503:
        desk.engine.shedder.lines = Buckets(50)
    data = desk.request(b"REGISTER").replace(b";rport", b";RPORT")
    start = data.index(b"\r\n" + name + b":") + len(name) + 3
    assert desk.answer(data[:start] + b" a b" + data[data.index(b"\r\n", start) :]).status == 400
    assert desk.engine.desk.counters["malformed", "headers"] == 1


def test_repetition_of_a_register_that_was_taken_gets_its_answer_when_others_are_turned_away() -> None:
    desk = desk_of(Rates(registers_per_s=1, registers_burst=8))
    taken = desk.request(headers=(desk.credentials(b"REGISTER", DOMAIN), (b"Contact", CONTACT)), branch=b"z9hG4bKtaken")
    assert desk.answer(taken).status == 200
    desk.engine.shedder.lines = Buckets(50)
    while desk.answer(desk.request(b"REGISTER")).status != 503:
        desk.engine.shedder.lines = Buckets(50)
    assert desk.answer(taken).status == 200


def test_register_with_a_to_tag_is_counted_as_one() -> None:
    """It belongs to no call, whatever it says."""
    desk = desk_of()
    assert desk.register(CONTACT).status == 200
    found = [desk.answer(desk.request(b"REGISTER", to_tag=b"t")).status for _ in range(8)]
    assert found[:2] == [401, 401]
    assert found[-1] == 503


def test_a_full_transaction_table_is_load() -> None:
    desk = desk_of()
    table = desk.engine.desk.transactions
    table._limit = 10
    table.servers.update(dict.fromkeys(range(9)))  # type: ignore[misc]
    for _ in range(8):
        desk.tick(0.1)
        desk.engine.observe(Signals(0.0, 0), desk.now)
    assert desk.engine.shedder.load is Load.INVITE


def test_time_that_stands_still_gives_nothing_back() -> None:
    bucket = Bucket(1.0, 5.0)
    assert bucket.take(5.0, 1.0, 1.0)
    assert not bucket.take(4.0, 1.0, 1.0)
    assert bucket.take(6.0, 1.0, 1.0)
