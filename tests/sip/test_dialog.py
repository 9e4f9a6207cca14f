"""What a BYE of our own to either side of a call is made of: RFC 3261 §12.1, §12.2.1.1."""

from __future__ import annotations

import pytest
from transaction_samples import make_request, make_response

from sipproxy.sip.dialog import DialogSide, after_2xx, after_request, dialog_id, from_invite_2xx, write_bye, write_probe
from sipproxy.sip.headers import CSeq
from sipproxy.sip.message import Request, Response, check_message, parse_message

VIA = b"SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bKours"
ALICE = b"Alice <sip:alice@atlanta.example>;tag=1928301774"
BOB = b"Bob <sip:bob@biloxi.example>;tag=a6c85cf"
# caller - up2 - up1 - we - down1 - down2 - callee, in the order in which Record-Route values stand: the last to see it on top.
UP = [b"<sip:up1.example;lr>", b"<sip:up2.example;lr>"]
OURS = b"<sip:192.0.2.1;lr>"
DOWN = [b"<sip:down2.example;lr>", b"<sip:down1.example;lr>"]


def record_route(values: list[bytes]) -> bytes:
    return b"".join(b"Record-Route: " + value + b"\r\n" for value in values)


def call(
    up: list[bytes] = UP,
    down: list[bytes] = DOWN,
    ours: int = 1,
    contacts: tuple[bytes, bytes] = (b"a@pc33", b"b@192.0.2.4:5070"),
) -> tuple[DialogSide, DialogSide]:
    def contact(value: bytes) -> bytes:
        return b"Contact: <sip:" + value + b">\r\n" if value else b""

    sent = [OURS] * ours + up
    invite = make_request(more=record_route(sent) + contact(contacts[0]))
    headers = [(b"Record-Route", value) for value in down + sent]
    if contacts[1]:
        headers.append((b"Contact", b"<sip:" + contacts[1] + b">"))
    return from_invite_2xx(invite, make_response(invite, 200, headers=tuple(headers)), own_routes=ours)


def bye(side: DialogSide, **changes: object) -> Request:
    message = parse_message(write_bye(side, VIA, **changes))  # type: ignore[arg-type]
    assert isinstance(message, Request)
    check_message(message)
    return message


def routes(request: Request) -> list[bytes]:
    return [route.raw for route in request.routes]


def in_dialog(method: bytes, cseq: int, *, from_callee: bool = False, contact: bytes = b"") -> Request:
    more = b"Contact: <" + contact + b">\r\n" if contact else b""
    one, other = (BOB, ALICE) if from_callee else (ALICE, BOB)
    return make_request(method, from_=one, to=other, cseq=b"%d" % cseq, more=more)


def accepted(request: Request, status: int = 200, contact: bytes = b"") -> Response:
    headers = ((b"Contact", b"<" + contact + b">"),) if contact else ()
    return make_response(request, status, headers=headers)


def test_dialog_id_is_call_id_and_tags() -> None:
    invite = make_request()
    assert dialog_id(invite) == (invite.call_id, b"1928301774", b"")
    assert dialog_id(make_response(invite, 200)) == (invite.call_id, b"1928301774", b"a6c85cf")


def test_bye_to_the_callee_looks_like_the_callers() -> None:
    """§12.2.1.1: From and To as in the INVITE and its 2xx, the caller's next CSeq, the 2xx's Contact."""
    request = bye(call()[1])
    assert (request.method, request.uri, request.via.raw) == (b"BYE", b"sip:b@192.0.2.4:5070", VIA)
    assert (request.from_.raw, request.to.raw) == (ALICE, BOB)
    assert (request.cseq, request.max_forwards, request.call_id) == (CSeq(314160, b"BYE"), 70, make_request().call_id)
    assert routes(request) == [b"<sip:down1.example;lr>", b"<sip:down2.example;lr>"]


def test_bye_to_the_caller_looks_like_the_callees() -> None:
    """§12.1.1: the UAS has the values in order; its sequence numbers are its own."""
    request = bye(call()[0])
    assert (request.uri, request.from_.raw, request.to.raw) == (b"sip:a@pc33", BOB, ALICE)
    assert request.cseq == CSeq(1, b"BYE")
    assert routes(request) == [b"<sip:up1.example;lr>", b"<sip:up2.example;lr>"]


@pytest.mark.parametrize("ours", [0, 1, 2])
def test_route_sets_end_where_we_stand(ours: int) -> None:
    caller, callee = call(ours=ours)
    assert [route.raw for route in caller.route_set] == UP
    assert [route.raw for route in callee.route_set] == DOWN[::-1]


def test_route_set_without_other_proxies_is_empty_and_the_target_is_the_next_hop() -> None:
    caller, callee = call(up=[], down=[])
    assert (routes(bye(caller)), routes(bye(callee))) == ([], [])
    assert (caller.next_hop, callee.next_hop) == (b"sip:a@pc33", b"sip:b@192.0.2.4:5070")


def test_route_set_of_a_callee_that_dropped_record_route_is_empty() -> None:
    invite = make_request(more=record_route([OURS, *UP]) + b"Contact: <sip:a@pc33>\r\n")
    _, callee = from_invite_2xx(invite, make_response(invite, 200, headers=((b"Contact", b"<sip:b@h>"),)))
    assert callee.route_set == ()


def test_next_hop_is_the_first_route() -> None:
    caller, callee = call()
    assert (caller.next_hop, callee.next_hop) == (b"sip:up1.example;lr", b"sip:down1.example;lr")


def test_bye_over_a_strict_router_has_it_as_request_uri_and_the_target_last() -> None:
    """§12.2.1.1: the first route without lr is the Request-URI, the remote target the last Route value."""
    strict = [b"<sip:down2.example;lr>", b"<sip:down1.example;method=INVITE;transport=udp?Subject=x>"]
    side = call(down=strict)[1]
    request = bye(side)
    assert request.uri == b"sip:down1.example;transport=udp"
    assert routes(request) == [b"<sip:down2.example;lr>", b"<sip:b@192.0.2.4:5070>"]


def test_bye_over_a_strict_router_behind_a_loose_one_is_routed_loosely() -> None:
    request = bye(call(down=[b"<sip:down2.example>", b"<sip:down1.example;lr>"])[1])
    assert request.uri == b"sip:b@192.0.2.4:5070"
    assert routes(request) == [b"<sip:down1.example;lr>", b"<sip:down2.example>"]


def test_target_without_a_contact_is_the_partys_own_uri() -> None:
    caller, callee = call(contacts=(b"", b""))
    assert (caller.remote_target, callee.remote_target) == (b"sip:alice@atlanta.example", b"sip:bob@biloxi.example")


def test_cseq_follows_the_party_in_whose_place_we_write() -> None:
    sides = call()
    sides = after_request(sides, in_dialog(b"INFO", 314170))
    sides = after_request(sides, in_dialog(b"INFO", 314165))  # late, by another path
    sides = after_request(sides, in_dialog(b"UPDATE", 77, from_callee=True))
    assert [bye(side).cseq.number for side in sides] == [78, 314171]


@pytest.mark.parametrize("method", [b"ACK", b"CANCEL"])
def test_cseq_of_ack_and_cancel_counts_for_nothing(method: bytes) -> None:
    assert after_request(call(), in_dialog(method, 999999)) == call()


def test_request_of_another_dialog_changes_nothing() -> None:
    stranger = make_request(b"INVITE", from_=b"<sip:x@y.example>;tag=other", cseq=b"999999", more=b"Contact: <sip:evil@h>\r\n")
    assert after_request(call(), stranger) == call()
    assert after_2xx(call(), stranger, accepted(stranger, contact=b"sip:evil@h")) == call()


def test_cseq_at_its_end_stays_a_valid_number() -> None:
    sides = after_request(call(), in_dialog(b"INFO", 2**31 - 1))
    assert bye(sides[1]).cseq.number < 2**31  # §8.1.1.5


@pytest.mark.parametrize("method", [b"INVITE", b"UPDATE"])
@pytest.mark.parametrize("from_callee", [False, True])
def test_target_refresh_moves_both_targets_and_no_route(method: bytes, from_callee: bool) -> None:
    """§12.2.1.2, §12.2.2."""
    before = call()
    request = in_dialog(method, 314160, from_callee=from_callee, contact=b"sip:new@asker")
    after = after_2xx(before, request, accepted(request, contact=b"sip:new@answerer"))
    expected = [b"sip:new@answerer", b"sip:new@asker"] if from_callee else [b"sip:new@asker", b"sip:new@answerer"]
    assert [side.remote_target for side in after] == expected
    assert [side.route_set for side in after] == [side.route_set for side in before]


@pytest.mark.parametrize(("method", "status"), [(b"INVITE", 488), (b"INVITE", 180), (b"INFO", 200), (b"BYE", 200)])
def test_target_stays_without_a_2xx_to_a_refresh(method: bytes, status: int) -> None:
    request = in_dialog(method, 314160, contact=b"sip:new@asker")
    assert after_2xx(call(), request, accepted(request, status, contact=b"sip:new@answerer")) == call()


def test_target_stays_when_a_refresh_brings_no_contact() -> None:
    request = in_dialog(b"UPDATE", 314160)
    assert after_2xx(call(), request, accepted(request)) == call()


def test_bye_bears_the_headers_asked_for() -> None:
    request = bye(call()[0], headers=[(b"Reason", b"Q.850;cause=31")], max_forwards=7)
    assert (request.first(b"reason"), request.max_forwards) == (b"Q.850;cause=31", 7)


def test_probe_goes_the_way_of_a_bye_and_uses_up_no_number() -> None:
    """RFC 3261 §12.2.2: the next number stays the other party's, so that its next request is not out of order."""
    for side in call():
        found = parse_message(write_probe(side, VIA))
        assert isinstance(found, Request)
        check_message(found)
        last = bye(side)
        assert (found.method, found.uri, routes(found)) == (b"OPTIONS", last.uri, routes(last))
        assert (found.first(b"from"), found.first(b"to"), found.call_id) == (
            last.first(b"from"),
            last.first(b"to"),
            last.call_id,
        )
        assert found.cseq == CSeq(side.cseq, b"OPTIONS")
        assert last.cseq.number == side.cseq + 1
