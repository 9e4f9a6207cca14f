"""What is sent back to strangers, in bytes (docs/design.md: nobody is flooded through us)."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sipproxy.engine.settings import Rates
from sipproxy.engine.shed import MAX_CREDIT
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Response
from tests.engine.desk import DOMAIN, ROUTER, STRANGER
from tests.engine.shedding import CALL, CONTACT, desk_of
from tests.sim.conftest import TRUNK_A

# Bytes back (design: nobody is flooded through us)


@settings(max_examples=60)
@given(st.data())
def test_a_stranger_never_gets_more_bytes_than_he_sent(data: st.DataObject) -> None:
    """With `credit_bytes` more at most, over any sequence of his messages; 0 means never."""
    credit = data.draw(st.sampled_from([0, 0, 2048]))
    desk = desk_of(Rates(credit_bytes=credit))
    sent = got = 0
    for _ in range(data.draw(st.integers(1, 12))):
        method = data.draw(st.sampled_from([b"OPTIONS", b"REGISTER", b"INVITE", b"BYE", b"FOO", b"SUBSCRIBE"]))
        headers = data.draw(
            st.lists(
                st.sampled_from(
                    [
                        (b"Via", b"SIP/2.0/UDP a.example;branch=z9hG4bKx" + b"y" * 300),
                        (b"Record-Route", b"<sip:p.example;lr>"),
                        (b"Proxy-Require", b"a" * 100),
                        (b"User-Agent", b"x" * 200),
                        (b"Max-Forwards", b"0"),
                    ]
                ),
                max_size=3,
                unique_by=lambda header: header[0],
            )
        )
        uri = data.draw(st.sampled_from([DOMAIN, CALL, b"sip:x", b"http:x"]))
        tag = data.draw(st.sampled_from([b"", b"t"]))
        request = desk.request(method, uri, headers=tuple(headers), to_tag=tag)
        request = data.draw(
            st.sampled_from([request, request, request.replace(b"CSeq: ", b"CSeq: x"), request[: len(request) // 2]])
        )
        sent += len(request)
        got += sum(len(message.raw) for message in desk.receive(request, STRANGER))
        assert got <= sent + credit


def test_an_answer_goes_without_what_it_may_lack_before_it_is_left_out() -> None:
    desk = desk_of(Rates(credit_bytes=0))
    long = desk.request(b"OPTIONS", headers=((b"User-Agent", b"x" * 50),))
    assert desk.answer(long, STRANGER).first(b"allow") is None
    assert desk.answer(desk.request(b"OPTIONS", headers=((b"User-Agent", b"x" * 500),)), STRANGER).first(b"allow")


def test_a_router_whose_request_is_too_short_is_answered_when_it_repeats_it() -> None:
    desk = desk_of(Rates(credit_bytes=0))
    register = desk.request(b"REGISTER")
    assert desk.receive(register, STRANGER) == []
    assert desk.engine.desk.counters["unanswered", "REGISTER"] == 1
    assert [
        m.status for m in (desk.receive(register, STRANGER) or desk.receive(register, STRANGER)) if isinstance(m, Response)
    ] == [401]


def test_a_call_for_help_is_answered_however_short_it_is() -> None:
    """Design: invariant 1."""
    desk = desk_of(Rates(credit_bytes=0))
    assert desk.answer(desk.request(b"INVITE", b"sip:112@sip.example"), STRANGER).status == 407


def test_what_a_stranger_may_get_back_has_a_bound_however_much_he_sent() -> None:
    desk = desk_of(Rates(credit_bytes=0))
    for _ in range(4):
        desk.receive(desk.request(b"OPTIONS", body=b"x" * 60_000), STRANGER)
    source = desk.engine.shedder.source(STRANGER)
    assert MAX_CREDIT - 1000 < source.credit <= MAX_CREDIT, "less what the last answer took"
    assert not desk.engine.shedder.may_send(STRANGER, MAX_CREDIT + 1)


def test_over_a_connection_and_to_trunks_and_customers_answers_are_as_long_as_they_are() -> None:
    desk = desk_of(Rates(credit_bytes=0))
    assert desk.answer(desk.request(b"REGISTER"), Flow("TCP", 0, "203.0.113.99", 5060, 7)).status == 401
    assert desk.answer(desk.request(b"OPTIONS"), Flow("UDP", 0, *TRUNK_A)).first(b"allow")
    for _ in range(3):
        desk.receive(desk.request(b"REGISTER", headers=((b"User-Agent", b"x" * 900),)))
    assert desk.register(CONTACT).status == 200
    desk.engine.shedder.source(ROUTER).credit = 0
    assert desk.answer(desk.request(b"OPTIONS")).first(b"allow")
