"""What a customer may not say goes, however it is written, in every kind of message (RFC 3325 §5, RFC 7315 §5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipproxy.engine.actions import SendTo, TakeSlot
from sipproxy.sip.headers import COMPACT
from sipproxy.sip.message import Request, Response, parse_message
from tests.engine.desk import ROUTER, Desk
from tests.sim.conftest import PSAP, TRUNK_A, make_town

if TYPE_CHECKING:
    from sipproxy.sip.flow import Flow

CLAIMS = [
    "P-Asserted-Identity", "P-Preferred-Identity", "Remote-Party-ID", "Diversion", "CC-Diversion", "History-Info",
    "Geolocation", "Geolocation-Routing", "Geolocation-Error", "Identity", "y", "Identity-Info", "n", "P-Asserted-Service",
    "P-Charge-Info",
    "P-Charging-Vector", "P-Charging-Function-Addresses", "P-Charging-New", "P-Served-User", "P-Visited-Network-ID",
    "P-Access-Network-Info", "P-Associated-URI", "P-Called-Party-ID", "P-User-Database", "P-Profile-Key", "P-DCS-Billing-Info",
    "Attestation-Info", "Origination-Id", "Cellular-Network-Info", "X-Carrier-Trust", "X-Carrier-", "x-ACME",
]  # fmt: skip
SECRET = b"claimed-by-a-customer"


@st.composite
def claims(draw: st.DrawFn) -> bytes:
    """One header line in any spelling that is the same header: case, white space before the colon, folding."""
    name = draw(st.sampled_from(CLAIMS))
    spelt = "".join(draw(st.sampled_from((c.lower(), c.upper()))) for c in name)
    colon = draw(st.sampled_from((":", " :", "\t:", ": ", ":\r\n ", " :\r\n\t ", ":\t\t")))
    value = draw(
        st.sampled_from(("<sip:{}@sip.test>", "<tel:+49110>;p={}", "{}", "a,\r\n\t{}", '"x" <sip:{}@h>;q=1,\r\n <sip:b@h>'))
    )
    return (spelt + colon + value).encode().replace(b"{}", SECRET)


def with_lines(data: bytes, lines: list[bytes], at: int) -> bytes:
    """The message with header lines put in, behind the Via."""
    head, _, body = data.partition(b"\r\n\r\n")
    rows = head.split(b"\r\n")
    place = 2 + at % (len(rows) - 1)
    return b"\r\n".join([*rows[:place], *lines, *rows[place:]]) + b"\r\n\r\n" + body


class Dialog:
    """A call of alice's through a real engine, step by step: `sent` is everything that left towards somebody else."""

    def __init__(self, uri: bytes, far: tuple[str, int], lines: list[bytes], at: int) -> None:
        world = make_town(carrier_headers=(b"x-carrier-", b"x-acme")).world
        self.desk, self.uri, self.far, self.lines, self.at = Desk(world.engine), uri, far, lines, at
        self.sent: list[bytes] = []
        self.desk.register(b"<sip:alice@203.0.113.1:5060>")
        if far[0] == "203.0.113.3":
            self.desk.register(
                b"<sip:bob@203.0.113.3:5060>", user="bob", flow=ROUTER._replace(host="203.0.113.3"), call_id=b"bobs"
            )

    def take(self, data: bytes, flow: Flow) -> list[Request | Response]:
        actions = self.desk.engine.receive(data, flow, self.desk.now)
        for _ in range(2):
            for action in [a for a in actions if isinstance(a, TakeSlot)]:
                actions = [a for a in actions if a is not action]
                actions += self.desk.engine.slot_result(action.slot, taken=True, used=1, now=self.desk.now)
        found = [a for a in actions if isinstance(a, SendTo) and a.target.host != flow.host]
        self.sent += [a.data for a in found]
        return [parse_message(a.data) for a in found]

    def said(self, method: bytes, cseq: int, **options: object) -> list[Request | Response]:
        """A request of alice's, with the claims in it."""
        headers = options.pop("headers", ())
        contact = (b"Contact", b"<sip:alice@203.0.113.1:5060>")
        data = self.desk.request(
            method, options.pop("uri", self.uri), call_id=b"c1", cseq=cseq, headers=(contact, *headers), **options
        )  # type: ignore[misc,arg-type]
        return self.take(with_lines(data, self.lines, self.at), ROUTER)

    def answered(self, request: Request, status: int, flow: Flow, *, claims: bool) -> list[Request | Response]:
        """The callee's response; with the claims in it when the callee is a customer."""
        rows = [b"SIP/2.0 %d Whatever" % status, *(b"Via: " + value for value in request.lines(b"via"))]
        rows += [b"Record-Route: " + value for value in request.lines(b"record-route")]
        to = request.first(b"to") or b""
        rows += [b"From: " + (request.first(b"from") or b""), b"To: " + (to if b"tag=" in to else to + b";tag=callee")]
        rows += [b"Call-ID: c1", b"CSeq: %d %s" % (request.cseq.number, request.method)]
        rows += [b"Contact: <sip:callee@%s:%d>" % (flow.host.encode(), flow.port), b"Content-Length: 0"]
        data = b"\r\n".join(rows) + b"\r\n\r\n"
        return self.take(with_lines(data, self.lines, self.at) if claims else data, flow)


@pytest.mark.parametrize(
    ("uri", "far"),
    [
        (b"sip:+4930123456@sip.test", TRUNK_A),
        (b"sip:112@sip.test", PSAP),
        (b"sip:+4920514001@sip.test", ("203.0.113.3", 5060)),
    ],
    ids=["trunk", "psap", "customer"],
)
@settings(max_examples=40)
@given(lines=st.lists(claims(), min_size=1, max_size=4), at=st.integers(0, 6))
def test_customers_claim_reaches_nobody_in_any_message_of_a_call(
    uri: bytes, far: tuple[str, int], lines: list[bytes], at: int
) -> None:
    """INVITE, responses early and late, ACK, re-INVITE, INFO, BYE: the caller's, and a callee's that is a customer too."""
    call = Dialog(uri, far, lines, at)
    value = call.desk.credentials(b"INVITE", uri) if far != PSAP else None
    [invite] = [m for m in call.said(b"INVITE", 5, headers=(value,) if value else ()) if isinstance(m, Request)]
    there = ROUTER._replace(host=far[0], port=far[1])
    customer = far[0] == "203.0.113.3"
    backward = [m for status in (183, 200) for m in call.answered(invite, status, there, claims=customer)]
    assert [m.status for m in backward if isinstance(m, Response)] == [183, 200]
    routes = tuple((b"Route", v) for v in reversed(invite.lines(b"record-route")))
    target = b"sip:callee@%s:%d" % (far[0].encode(), far[1])
    for cseq, method in ((5, b"ACK"), (6, b"INFO"), (7, b"INVITE"), (8, b"BYE")):
        found = call.said(method, cseq, uri=target, to=b"<%s>" % uri, to_tag=b"callee", headers=routes)
        onward = [m for m in found if isinstance(m, Request)]
        assert [m.method for m in onward] == [method]
        if method == b"INVITE":
            assert call.answered(onward[0], 200, there, claims=customer)
    assert len(call.sent) >= 7
    for data in call.sent:
        assert SECRET not in data, data


def test_claims_of_the_test_reach_the_engine_and_others_pass() -> None:
    """The test above can fail: a header that nobody has to take out arrives."""
    call = Dialog(b"sip:+4930123456@sip.test", TRUNK_A, [b"X-Other : " + SECRET], 1)
    value = call.desk.credentials(b"INVITE", call.uri)
    call.said(b"INVITE", 5, headers=(value,))
    assert any(SECRET in data for data in call.sent)


def test_compact_forms_of_claims_are_known() -> None:
    assert (COMPACT[b"y"], COMPACT[b"n"]) == (b"identity", b"identity-info")
