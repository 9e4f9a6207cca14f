"""Which contacts are registered, who registers for whom, and that nothing is sent to where a contact says (RFC 3261 §10.3)."""

from __future__ import annotations

import ipaddress

import pytest

from sipproxy.engine.actions import SaveBinding, SendTo, TakeSlot
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Request, parse_message
from tests.engine.desk import DOMAIN, ROUTER, Desk
from tests.sim.conftest import TRUNK_A, make_town

HERE = Flow("UDP", 0, "127.0.0.1", 5060)
LINK = Flow("UDP", 0, "169.254.10.20", 5060)


@pytest.fixture
def desk() -> Desk:
    return Desk()


def refused(desk: Desk) -> set[str]:
    return {key[1] for key in desk.engine.desk.counters if key[0] == "contacts_refused"}


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "ours"),
        ("192.0.2.1:5060", "ours"),
        ("sip.test", "ours"),
        ("SIP.TEST.", "ours"),
        ("sip.test:5099", "ours"),
        ("127.0.0.1", "loopback"),
        ("127.8.9.10:5060", "loopback"),
        ("[::1]", "loopback"),
        ("localhost", "loopback"),
        ("LocalHost.", "loopback"),
        ("router.localhost", "loopback"),
        ("[::ffff:127.0.0.1]", "loopback"),
        ("[::ffff:7f00:1]", "loopback"),
        ("[64:ff9b::7f00:1]", "loopback"),
        ("[2002:7f00:1::]", "loopback"),
        ("[::127.0.0.1]", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("[::]", "unspecified"),
        ("255.255.255.255", "broadcast"),
        ("240.0.0.1", "broadcast"),
        ("224.0.1.75", "multicast"),
        ("[ff02::1]", "multicast"),
        ("169.254.1.1", "link_local"),
        ("[fe80::1]", "link_local"),
        ("169.254.169.254", "metadata"),
        ("[fd00:ec2::254]", "metadata"),
        ("[fd00:0ec2:0:0::254]", "metadata"),
        ("[::ffff:169.254.169.254]", "metadata"),
        ("metadata.google.internal", "metadata"),
        ("203.0.113.1;maddr=127.0.0.1", "loopback"),
        ("203.0.113.1;maddr=169.254.169.254", "metadata"),
    ],
)
def test_contact_that_no_router_is_reached_at_is_403_whole(desk: Desk, host: str, why: str) -> None:
    response = desk.register(b"<sip:alice@203.0.113.1>", b"<sip:alice@%s>" % host.encode())
    assert (response.status, response.reason) == (403, b"Contact Not Allowed")
    assert refused(desk) == {why}
    assert desk.engine.desk.location.count == 0


@pytest.mark.parametrize(
    "contact",
    [
        b"<sip:alice@127.1>",
        b"<sip:alice@0x7f.1>",
        b"<sip:alice@2130706433>",
        b"<sip:alice@0177.0.0.1>",
        b"<sip:alice@10.0.0.256>",
        b"<sip:alice@203.0.113.1>;x=" + b"a" * 1100,
        b"<mailto:alice@sip.test>",
    ],
)
def test_contact_that_is_none_is_400(desk: Desk, contact: bytes) -> None:
    assert desk.register(contact).status == 400
    assert desk.engine.desk.location.count == 0


def test_header_fields_of_a_contact_are_kept_for_its_owner_and_get_into_no_request(desk: Desk) -> None:
    """RFC 4475 §3.3.14, RFC 3261 §19.1.1."""
    contact = b"sip:alice@203.0.113.1?Route=%3Csip:192.0.2.66%3E"
    response = desk.register(b"<" + contact + b">")
    assert (response.status, [value.uri.raw for value in response.contacts]) == (200, [contact])
    desk.receive(desk.request(b"INVITE", b"sip:+4960323001@sip.test", user=b"+493012345"), Flow("UDP", 0, "198.51.100.1", 5060))
    take = next(action for action in desk.actions if isinstance(action, TakeSlot))
    desk.actions = desk.engine.slot_result(take.slot, taken=True, used=1, now=desk.now)
    (invite,) = [message for message in desk.sent() if isinstance(message, Request)]
    assert (invite.uri, invite.has(b"route")) == (b"sip:alice@203.0.113.1", False)


@pytest.mark.parametrize(
    "host", ["10.0.0.5", "192.168.178.1", "100.64.3.4", "[2001:db8::5]", "[fd12::5]", "router.example", "abc123.invalid"]
)
def test_contact_behind_a_nat_is_taken(desk: Desk, host: str) -> None:
    assert desk.register(b"<sip:alice@%s>" % host.encode()).status == 200


@pytest.mark.parametrize(
    ("flow", "host", "status"),
    [
        (HERE, "127.0.0.1:5070", 200),
        (HERE, "127.0.0.9:5070", 200),
        (HERE, "localhost:5070", 200),
        (HERE, "[::1]:5070", 200),
        (HERE, "169.254.169.254", 403),
        (LINK, "169.254.10.20", 200),
        (LINK, "169.254.10.21", 403),
        (LINK, "127.0.0.1", 403),
    ],
)
def test_contact_at_the_registers_own_source_is_taken(desk: Desk, flow: Flow, host: str, status: int) -> None:
    assert desk.register(b"<sip:alice@%s>" % host.encode(), flow=flow).status == status


def test_contact_in_a_network_of_the_list_is_taken() -> None:
    desk = Desk(make_town(contact_networks=(ipaddress.ip_network("169.254.0.0/16"),)).world.engine)
    assert desk.register(b"<sip:alice@169.254.1.1>").status == 200
    assert desk.register(b"<sip:alice@127.0.0.1>").status == 403
    assert desk.register(b"<sip:alice@192.0.2.1>").status == 403


def test_contact_of_before_the_rule_can_be_removed(desk: Desk) -> None:
    here = b"<sip:alice@127.0.0.1:5070>"
    assert desk.register(here, flow=HERE).status == 200
    assert desk.register(here, expires=0).status == 200
    assert desk.engine.desk.location.count == 0


# Who registers for whom


@pytest.mark.parametrize(
    ("sender", "status"),
    [
        (b"alice", 200),
        (b"+4960323001", 200),
        (b"andrea", 200),  # another account of the same line
        (b"+4960323002", 200),
        (b"bob", 403),
        (b"+4920514001", 403),
        (b"mallory", 403),
    ],
)
def test_register_from_is_of_the_accounts_line(desk: Desk, sender: bytes, status: int) -> None:
    """§10.3 step 3: whether a third party may register is ours to say."""
    headers = (desk.credentials(b"REGISTER", DOMAIN), (b"Contact", b"<sip:alice@203.0.113.1>"))
    data = desk.request(headers=(*headers, (b"From", b"<sip:%s@sip.test>;tag=f" % sender)))
    response = desk.answer(data)
    assert response.status == status
    assert len([a for a in desk.actions if isinstance(a, SaveBinding)]) == (status == 200)


@pytest.mark.parametrize(
    ("to", "status"),
    [
        (b"sip:alice@sip.test", 200),
        (b"sip:alice@192.0.2.1", 200),
        (b"sip:alice@elsewhere.example", 404),
        (b"tel:+4960323001", 404),
    ],
)
def test_register_to_is_of_our_domain(desk: Desk, to: bytes, status: int) -> None:
    """§10.3 step 5."""
    headers = (desk.credentials(b"REGISTER", DOMAIN), (b"Contact", b"<sip:alice@203.0.113.1>"))
    assert desk.answer(desk.request(to=b"<%s>" % to, headers=headers)).status == status


# Where things go


def test_nothing_goes_to_an_address_that_a_contact_names(desk: Desk) -> None:
    """The contact is the Request-URI; the way there is the flow, for the INVITE, its ACK, a re-INVITE and the BYE."""
    desk.register(b"<sip:alice@10.66.66.66:6666;transport=tcp;maddr=10.77.77.77>")
    trunk = Flow("UDP", 0, *TRUNK_A)
    via = b"SIP/2.0/UDP %s:%d" % (TRUNK_A[0].encode(), TRUNK_A[1])
    contact = (b"Contact", b"<sip:carrier@%s>" % TRUNK_A[0].encode())
    uri = b"sip:+4960323001@sip.test"
    targets = []
    desk.receive(desk.request(b"INVITE", uri, user=b"+4930123", call_id=b"in", cseq=1, headers=(contact,), via=via), trunk)
    slot = next(a.slot for a in desk.actions if isinstance(a, TakeSlot))
    desk.actions = desk.engine.slot_result(slot, taken=True, used=1, now=desk.now)
    invite = next(a for a in desk.actions if isinstance(a, SendTo) and a.data.startswith(b"INVITE"))
    targets.append(invite.target)
    sent = parse_message(invite.data)
    assert isinstance(sent, Request)
    assert sent.uri.startswith(b"sip:alice@10.66.66.66:6666")
    lines = [b"SIP/2.0 200 OK", *(b"Via: " + value for value in sent.lines(b"via"))]
    lines += [b"Record-Route: " + value for value in sent.lines(b"record-route")]
    lines += [
        b"From: " + (sent.first(b"from") or b""),
        b"To: %s;tag=a" % (sent.first(b"to") or b""),
        b"Call-ID: in",
        b"CSeq: 1 INVITE",
    ]
    lines += [b"Contact: <sip:alice@10.88.88.88>", b"Content-Length: 0", b"", b""]
    desk.receive(b"\r\n".join(lines))
    route = (b"Route", (sent.first(b"record-route") or b""))
    for number, method in enumerate((b"ACK", b"INVITE", b"BYE"), 1):
        cseq = 1 if method == b"ACK" else number
        data = desk.request(
            method, b"sip:alice@10.88.88.88", user=b"+4930123", call_id=b"in", cseq=cseq, headers=(contact, route), via=via,
            to=b"<%s>" % uri, to_tag=b"a",
        )  # fmt: skip
        desk.receive(data, trunk)
        targets += [a.target for a in desk.actions if isinstance(a, SendTo) and a.data.startswith(method + b" ")]
    assert targets == [ROUTER] * 4
