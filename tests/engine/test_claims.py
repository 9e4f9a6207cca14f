"""What From of a customer claims as a parameter is taken out, in every spelling; what it does not claim stays (invariant 7)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipproxy.engine.claims import has_claims, without_claims
from sipproxy.sip.headers import parse_name_addr
from sipproxy.sip.message import Request
from sipproxy.sip.uri import parse_uri, unescape
from tests.engine.desk import ROUTER
from tests.engine.test_trust import Dialog
from tests.sim.conftest import PSAP, TRUNK_A

CLAIM = re.compile(rb"verstat|cpc|oli\b|otg", re.IGNORECASE)
OWN = b"+4960323001"
SPELLINGS = [
    b"<sip:%b@sip.test;verstat=TN-Validation-Passed>" % OWN,
    b"<sip:%b;verstat=TN-Validation-Passed@sip.test;user=phone>" % OWN,
    b"<sip:%b;CPC=priority@sip.test;user=phone;Cpc=test>" % OWN,
    b"<sip:%b@sip.test;ver%%73tat=x>" % OWN,
    b"<sip:%b;%%63%%70%%63=operator@sip.test>" % OWN,
    b"<sip:%b;cpc=operator@sip.test?cpc=operator>" % OWN,
    b"<sip:%b%%3Bcpc=operator@sip.test>" % OWN,
    b"<sip:%b%%253Bcpc%%253Doperator@sip.test>" % OWN,
    b"<tel:%b;cpc=operator;verstat=TN-Validation-Passed>" % OWN,
    b'"Alice" <sip:alice@sip.test;isup-oli=62;ss7-oli=1;otg=carrier;oli=9>',
    b"<sip:alice@sip.test>;verstat=TN-Validation-Passed",
    b"<sip:alice@sip.test> ; VerStat = x;cpc",
    b"<sip:alice@sip.test;cpc>",
]
FARS = [
    (b"sip:+4930123456@sip.test", TRUNK_A),
    (b"sip:112@sip.test", PSAP),
    (b"sip:+4920514001@sip.test", ("203.0.113.3", 5060)),
]


def plain(data: bytes) -> bytes:
    for _ in range(4):
        data = unescape(data)
    return data


@pytest.mark.parametrize(("uri", "far"), FARS, ids=["trunk", "psap", "customer"])
@pytest.mark.parametrize("said", SPELLINGS)
def test_claim_in_from_reaches_nobody_and_its_sender_sees_what_he_said(uri: bytes, far: tuple[str, int], said: bytes) -> None:
    """INVITE, its responses, and what follows in the dialog."""
    call = Dialog(uri, far, [], 0)
    value = call.desk.credentials(b"INVITE", uri) if far != PSAP else None
    sender = (b"From", said + b";tag=f1")
    sent = call.said(b"INVITE", 5, headers=(sender, *((value,) if value else ())))
    [invite] = [message for message in sent if isinstance(message, Request)]
    assert invite.from_.tag == b"f1"
    there = ROUTER._replace(host=far[0], port=far[1])
    (answer,) = call.answered(invite, 200, there, claims=False)
    assert answer.first(b"from") == sender[1]  # RFC 3261 §8.2.6.2
    routes = tuple((b"Route", v) for v in reversed(invite.lines(b"record-route")))
    target = b"sip:callee@%s:%d" % (far[0].encode(), far[1])
    for cseq, method in ((5, b"ACK"), (6, b"INFO"), (7, b"BYE")):
        found = call.said(method, cseq, uri=target, to=b"<%s>" % uri, to_tag=b"callee", headers=(sender, *routes))
        assert [m.method for m in found if isinstance(m, Request)] == [method]
    outward = [data for data in call.sent if not data.startswith(b"SIP/2.0")]
    assert len(outward) >= 4
    for data in outward:
        assert not CLAIM.search(plain(data)), data


@pytest.mark.parametrize(
    ("uri", "far", "shown"),
    [
        (*FARS[0], b"<sip:alice@sip.test>;tag=f1"),
        (*FARS[2], b"<sip:+4960323001@sip.test;user=phone>;tag=f1"),  # a customer is shown the number, no account's name
    ],
)
def test_claim_that_first_comes_within_the_dialog_is_replaced(uri: bytes, far: tuple[str, int], shown: bytes) -> None:
    call = Dialog(uri, far, [], 0)
    value = call.desk.credentials(b"INVITE", uri)
    [invite] = [m for m in call.said(b"INVITE", 5, headers=(value,)) if isinstance(m, Request)]
    there = ROUTER._replace(host=call.far[0], port=call.far[1])
    call.answered(invite, 200, there, claims=False)
    routes = tuple((b"Route", v) for v in reversed(invite.lines(b"record-route")))
    sender = (b"From", b"<sip:alice@sip.test>;tag=f1;verstat=TN-Validation-Passed")
    target = b"sip:callee@%s:%d" % (call.far[0].encode(), call.far[1])
    found = call.said(b"INFO", 6, uri=target, to=b"<%s>" % uri, to_tag=b"callee", headers=(sender, *routes))
    assert [m.from_.raw for m in found if isinstance(m, Request)] == [shown]


def test_from_without_a_claim_leaves_as_it_came() -> None:
    call = Dialog(*FARS[0], [], 0)
    value = call.desk.credentials(b"INVITE", FARS[0][0])
    sender = (b"From", b'"A" <sip:+4960323001;phone-context=x@sip.test;user=phone;cpcx=1;x=verstat>;tag=f1;note=cpc')
    [invite] = [m for m in call.said(b"INVITE", 5, headers=(sender, value)) if isinstance(m, Request)]
    assert invite.first(b"from") == sender[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"sip:+491;a=b;cpc=x;c@h:5070;d;verstat=y;e=f?g=h", b"sip:+491;a=b;c@h:5070;d;e=f?g=h"),
        (b"tel:+491;ext=5;cpc=x", b"tel:+491;ext=5"),
        (b"sip:a%3Bcpc=x@h;lr", b"sip:h"),
        (b"sip:a;b%3Bcpc=x@h;lr", b"sip:a@h"),
        (b"sip:a@h;x=cpc", b"sip:a@h;x=cpc"),
    ],
)
def test_only_claims_are_taken_out_where_they_can_be_told(before: bytes, after: bytes) -> None:
    assert without_claims(parse_uri(before)) == after


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from([b"verstat", b"CPC", b"%63pc", b"oli", b"otg", b"x", b"user", b"%2563pc"]), max_size=4), st.data()
)
def test_no_arrangement_of_parameters_keeps_a_claim(names: list[bytes], data: st.DataObject) -> None:
    parts = [b";" + name + data.draw(st.sampled_from((b"", b"=v", b"=%3Bcpc"))) for name in dict.fromkeys(names)]
    cut = data.draw(st.integers(0, len(parts)))
    uri = parse_uri(b"sip:+491%b@h%b" % (b"".join(parts[:cut]), b"".join(parts[cut:])))
    kept = without_claims(uri)
    assert not has_claims(parse_name_addr(b"<%b>" % kept))
    assert kept.endswith((b"@h", b"sip:h")) or b"@h;" in kept
