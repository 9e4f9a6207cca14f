"""Which transaction a message belongs to: RFC 3261 §9.2, §17.1.3, §17.2.3."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transaction_samples import BRANCH, make_request, make_response

from sipproxy.sip.build import write_ack, write_cancel
from sipproxy.sip.matching import cancel_target_key, client_key, is_rfc3261_branch, response_key, server_key
from sipproxy.sip.message import Request, parse_message

OLD_VIA = b"SIP/2.0/UDP pc33.atlanta.example:5060;branch=1"  # a branch that RFC 2543 knew, not unique by itself


def parsed(data: bytes) -> Request:
    message = parse_message(data)
    assert isinstance(message, Request)
    return message


@pytest.mark.parametrize(
    ("branch", "unique"),
    [(BRANCH, True), (b"z9hG4bK-", True), (b"z9hG4bK", False), (b"Z9HG4BKx", False), (b"1", False), (None, False)],
)
def test_branch_is_unique_by_itself_with_the_magic_cookie_and_more(branch: bytes | None, unique: bool) -> None:
    assert is_rfc3261_branch(branch) is unique  # the bare cookie: RFC 4475 §3.2.1


@pytest.mark.parametrize("via", [b"SIP/2.0/UDP pc33.atlanta.example;branch=" + BRANCH, OLD_VIA, b"SIP/2.0/UDP h"])
def test_server_key_retransmission_is_the_same(via: bytes) -> None:
    assert server_key(make_request(via=via)) == server_key(make_request(via=via))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (b"SIP/2.0/UDP Host.example;branch=z9hG4bKa", b"SIP/2.0/UDP hOST.EXAMPLE;branch=z9hG4bKa", True),
        (b"SIP/2.0/UDP h.example;branch=z9hG4bKa", b"SIP/2.0/UDP h.example:5060;branch=z9hG4bKa", True),
        (b"SIP/2.0/TLS h.example;branch=z9hG4bKa", b"SIP/2.0/TLS h.example:5061;branch=z9hG4bKa", True),
        (b"SIP/2.0/TCP h.example;branch=z9hG4bKa", b"SIP/2.0/TCP h.example:5061;branch=z9hG4bKa", False),
        (b"SIP/2.0/UDP [2001:DB8::1];branch=z9hG4bKa", b"SIP/2.0/UDP [2001:db8::1]:5060;branch=z9hG4bKa", True),
        (b"SIP/2.0/UDP h.example;branch=z9hG4bKa", b"SIP/2.0/UDP g.example;branch=z9hG4bKa", False),
        (b"SIP/2.0/UDP h.example;branch=z9hG4bKa", b"SIP/2.0/UDP h.example:5062;branch=z9hG4bKa", False),
        (b"SIP/2.0/UDP h.example;branch=z9hG4bKa", b"SIP/2.0/UDP h.example;branch=z9hG4bKA", False),
        (b"SIP/2.0/UDP h.example;branch=z9hG4bKa", b"SIP/2.0/UDP h.example;branch=z9hG4bKa;rport", True),
        (b"SIP/2.0/UDP h.example;branch=z9hG4bKa", b"SIP/2.0/UDP h.example;received=192.0.2.1;branch=z9hG4bKa", True),
    ],
)
def test_server_key_compares_branch_and_sent_by(one: bytes, other: bytes, same: bool) -> None:
    """§17.2.3: the branch, the sent-by value, the method."""
    assert (server_key(make_request(via=one)) == server_key(make_request(via=other))) is same


@pytest.mark.parametrize("via", [b"SIP/2.0/UDP h.example;branch=z9hG4bKa", OLD_VIA])
def test_server_key_other_method_is_another_transaction(via: bytes) -> None:
    keys = {server_key(make_request(method, via=via)) for method in (b"INVITE", b"OPTIONS", b"BYE", b"CANCEL", b"PRACK")}
    assert len(keys) == 5


@pytest.mark.parametrize("via", [b"SIP/2.0/UDP h.example;branch=z9hG4bKa", OLD_VIA, b"SIP/2.0/UDP h.example"])
def test_server_key_ack_of_a_refusal_is_that_of_its_invite(via: bytes) -> None:
    """§17.2.3: an RFC 2543 client's ACK bears the To tag of the response."""
    invite = make_request(via=via)
    ack = parsed(write_ack(invite, make_response(invite, 486)))
    assert ack.to.tag is not None
    assert server_key(ack) == server_key(invite)


def test_server_key_ack_of_a_2xx_finds_no_transaction() -> None:
    """§13.2.2.4: its branch is its own."""
    ack = make_request(
        b"ACK", via=b"SIP/2.0/UDP pc33.atlanta.example;branch=z9hG4bKother", to=b"<sip:bob@biloxi.example>;tag=1"
    )
    assert server_key(ack) != server_key(make_request())


@pytest.mark.parametrize("via", [b"SIP/2.0/UDP h.example;branch=z9hG4bKa", OLD_VIA, b"SIP/2.0/UDP h.example"])
def test_cancel_target_key_is_that_of_the_invite_and_its_own_is_not(via: bytes) -> None:
    """§9.2."""
    invite = make_request(via=via)
    cancel = parsed(write_cancel(invite))
    assert cancel_target_key(cancel) == server_key(invite)
    assert server_key(cancel) != server_key(invite)


@pytest.mark.parametrize("via", [b"SIP/2.0/UDP h.example;branch=z9hG4bKother", b"SIP/2.0/UDP g.example;branch=z9hG4bKa"])
def test_cancel_target_key_of_another_branch_or_sender_is_not_the_invite(via: bytes) -> None:
    invite = make_request(via=b"SIP/2.0/UDP h.example;branch=z9hG4bKa")
    assert cancel_target_key(make_request(b"CANCEL", via=via)) != server_key(invite)


@pytest.mark.parametrize(
    "change",
    [
        {"uri": b"sip:carol@biloxi.example"},
        {"from_": b"<sip:alice@atlanta.example>;tag=other"},
        {"call_id": b"other"},
        {"cseq": b"314160"},
        {"via": b"SIP/2.0/UDP pc33.atlanta.example:5060;branch=2"},
    ],
)
def test_server_key_without_cookie_each_part_counts(change: dict[str, bytes]) -> None:
    """§17.2.3 for RFC 2543: Request-URI, From tag, Call-ID, CSeq and the top Via."""
    base = {"via": OLD_VIA}
    assert server_key(make_request(**{**base, **change})) != server_key(make_request(**base))


def test_server_key_without_cookie_to_tag_counts_but_for_invite_and_ack() -> None:
    tagged = b"<sip:bob@biloxi.example>;tag=9"
    bye = [server_key(make_request(b"BYE", via=OLD_VIA, to=to)) for to in (tagged, b"<sip:bob@biloxi.example>")]
    assert bye[0] != bye[1]


def test_server_key_with_cookie_nothing_else_counts() -> None:
    """§17.2.3: a client that retransmits changes nothing, but what is not asked for is not compared."""
    other = make_request(uri=b"sip:x@y.example", call_id=b"other", cseq=b"1", from_=b"<sip:a@b.example>;tag=z")
    assert server_key(other) == server_key(make_request())


def test_response_key_is_the_client_key_of_branch_and_cseq_method() -> None:
    """§17.1.3: the CSeq method keeps the answer to a CANCEL apart from that to its INVITE."""
    invite = make_request()
    cancel = parsed(write_cancel(invite))
    assert response_key(make_response(invite, 180)) == client_key(BRANCH, b"INVITE")
    assert response_key(make_response(cancel, 200)) == client_key(BRANCH, b"CANCEL")
    assert client_key(BRANCH, b"INVITE") != client_key(BRANCH, b"CANCEL")


def test_response_key_without_a_branch_matches_nothing() -> None:
    key = response_key(make_response(make_request(via=b"SIP/2.0/UDP h.example"), 200))
    assert key not in {client_key(b"", b"INVITE"), client_key(BRANCH, b"INVITE")}


TOKEN = st.text("abcXYZ019-.", min_size=1, max_size=8).map(str.encode)


@given(st.tuples(TOKEN, TOKEN), st.tuples(TOKEN, TOKEN), st.booleans())
def test_server_keys_of_requests_are_equal_only_for_equal_branches_and_tags(
    one: tuple[bytes, bytes], other: tuple[bytes, bytes], cookie: bool
) -> None:
    def key(parts: tuple[bytes, bytes]) -> tuple[object, ...]:
        via = b"SIP/2.0/UDP h.example;branch=" + (b"z9hG4bK" if cookie else b"") + parts[0]
        return server_key(make_request(via=via, from_=b"<sip:a@b.example>;tag=" + parts[1]))

    same = one[0] == other[0] if cookie else one == other
    assert (key(one) == key(other)) is same
