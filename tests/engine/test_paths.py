"""Path (RFC 3327), Service-Route (RFC 3608), bulk contacts (RFC 6140), configured bindings, and the Route of a caller."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from policy.model import AccountKind
from sipproxy.engine.actions import SaveBinding, SendTo, TakeSlot
from sipproxy.engine.core import Engine
from sipproxy.engine.location import STATIC
from sipproxy.engine.paths import MAX_PATHS
from sipproxy.engine.targets import MAX_PROXIES, route_hops
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.message import Request, parse_message
from tests.engine.desk import Desk
from tests.sim.conftest import TRUNK_A, make_town
from tests.sim.world import account, line, snapshot

if TYPE_CHECKING:
    from sipproxy.sip.message import Response

EDGE = Flow("UDP", 0, "198.51.100.40", 5060)
PBX = Flow("UDP", 0, "198.51.100.50", 5080)
TRUNK = Flow("UDP", 0, *TRUNK_A)
PATHS = (b"<sip:198.51.100.40:5070;lr>", b"<sip:token@198.51.100.41;lr;ob>")
BULK = b"<sip:198.51.100.50:5080;bnc;x=1>"
GIN = ((b"Require", b"gin"), (b"Proxy-Require", b"gin"))


def make_desk(**settings: object) -> Desk:
    """`pbx` is a trunk account with a range, `alice` has one number."""
    world = make_town().world
    lines = [line("L1", "alice"), line("L3", "pbx")]
    accounts = [account("alice", "L1", "+4960323001"), account("pbx", "L3", "+4960329*", kind=AccountKind.TRUNK)]
    found = replace(world.settings, path_sources=(ipaddress.ip_network("198.51.100.40/32"),), **settings)  # type: ignore[arg-type]
    return Desk(Engine(found, snapshot(lines, accounts), new_token=world.random.randbytes, key=b"k" * 32))


@pytest.fixture
def desk() -> Desk:
    return make_desk()


def register(
    desk: Desk, *contacts: bytes, user: str = "alice", flow: Flow = EDGE, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Response:
    value = desk.credentials(b"REGISTER", b"sip:sip.test", user=user, flow=flow)
    lines = (value, *((b"Contact", contact) for contact in contacts), *headers)
    return desk.answer(desk.request(user=user.encode(), headers=lines), flow)


def paths(*values: bytes) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((b"Path", value) for value in values)


def call_in(desk: Desk, number: bytes, *headers: tuple[bytes, bytes]) -> list[tuple[object, Request]]:
    """A call from the carrier: where its INVITE goes, once every slot is given."""
    uri = b"sip:%s@192.0.2.1" % number
    contact = (b"Contact", b"<sip:c@198.51.100.1>")
    desk.receive(
        desk.request(b"INVITE", uri, user=b"+493023125001", via=b"SIP/2.0/UDP 198.51.100.1:5060", headers=(contact, *headers)),
        TRUNK,
    )
    return invites(desk)


def invites(desk: Desk) -> list[tuple[object, Request]]:
    while asked := [action for action in desk.actions if isinstance(action, TakeSlot)]:
        told = (desk.engine.slot_result(one.slot, taken=True, used=1, now=desk.now) for one in asked)
        desk.actions = [action for actions in told for action in actions]
    found = [(a.target, parse_message(a.data)) for a in desk.actions if isinstance(a, SendTo)]
    return [(target, m) for target, m in found if isinstance(m, Request) and m.method == b"INVITE"]


def bindings(desk: Desk, user: str) -> list[str]:
    return [one.contact for one in desk.engine.desk.location.bindings(user, desk.utc_ms)]


# Path


def test_path_is_stored_told_back_and_is_the_route_of_a_call(desk: Desk) -> None:
    """RFC 3327 §5.3: in the order in which it stands, to the first of them."""
    response = register(desk, b"<sip:alice@192.168.1.9>", headers=(*paths(*PATHS), (b"Supported", b"path")))
    assert response.status == 200
    assert response.values(b"path") == list(PATHS)
    [(target, invite)] = call_in(desk, b"+4960323001")
    assert target == Hop("UDP", "198.51.100.40", 5070)
    assert [route.raw for route in invite.routes] == list(PATHS)
    assert invite.uri == b"sip:alice@192.168.1.9"


def test_path_is_not_told_to_who_does_not_know_it(desk: Desk) -> None:
    response = register(desk, b"<sip:alice@192.168.1.9>", headers=paths(*PATHS))
    assert (response.status, response.has(b"path")) == (200, False)
    assert register(desk, b"<sip:alice@192.168.1.9>", headers=((b"Require", b"path"),)).status == 200


def test_path_from_anywhere_else_is_refused_and_changes_nothing(desk: Desk) -> None:
    """Whoever may write one says where a customer's calls go."""
    customer = Flow("UDP", 0, "203.0.113.1", 5060)
    assert register(desk, b"<sip:alice@203.0.113.1>", flow=customer, headers=paths(*PATHS)).status == 403
    assert bindings(desk, "alice") == []
    assert desk.engine.desk.counters["registers_refused", "path"] == 1


@pytest.mark.parametrize(
    "values",
    [
        (b"<sip:198.51.100.40>",),  # a strict router
        (b"<tel:+49>",),
        (b"<sip:198.51.100.40;lr>",) * (MAX_PATHS + 1),
        (b"<sip:%s@198.51.100.40;lr>" % (b"x" * 600),),
        (b"\x00",),
    ],
)
def test_path_that_no_request_can_be_routed_by_is_400(desk: Desk, values: tuple[bytes, ...]) -> None:
    assert register(desk, b"<sip:alice@192.168.1.9>", headers=paths(*values)).status == 400
    assert bindings(desk, "alice") == []


def test_flow_behind_a_proxy_that_keeps_it_is_registered_and_one_behind_another_gets_439(desk: Desk) -> None:
    """RFC 5626 §6: who was first to add a Path, the last one there, says `ob`."""
    contact = b'<sip:alice@192.168.1.9>;+sip.instance="<urn:uuid:1>";reg-id=1'
    found = []
    for number, values in enumerate((tuple(reversed(PATHS)), PATHS)):
        vias = [b"SIP/2.0/UDP %s;branch=z9hG4bK%d" % (host, number) for host in (b"198.51.100.40", b"192.168.1.9")]
        headers = (*((b"Via", via) for via in vias), (b"Supported", b"path, outbound"), *paths(*values))
        response = register(desk, contact, headers=headers)
        found.append((response.status, response.first(b"require")))
    assert found == [(439, None), (200, b"outbound")]


def test_binding_with_a_path_outlives_its_connection_and_a_restart(desk: Desk) -> None:
    register(desk, b"<sip:alice@192.168.1.9>", headers=paths(*PATHS))
    [saved] = [action.binding for action in desk.actions if isinstance(action, SaveBinding)]
    after = make_desk()
    after.engine.bindings_read([("alice", saved)], after.now, own_too=True)
    [(target, _)] = call_in(after, b"+4960323001")
    assert target == Hop("UDP", "198.51.100.40", 5070)


def test_proxies_that_are_names_are_looked_up_ahead_while_a_binding_needs_them(desk: Desk) -> None:
    named = Hop("UDP", "proxy.example", is_open=True)
    for user, contact in (("alice", b"<sip:alice@192.168.1.9>"), ("pbx", b"<sip:pbx@192.168.1.8>")):
        assert register(desk, contact, user=user, headers=paths(b"<sip:proxy.example;lr>")).status == 200
    assert named in route_hops(desk.engine.desk)
    assert register(desk, b"<sip:alice@192.168.1.9>", headers=paths(*PATHS)).status == 200  # by others now
    assert named in route_hops(desk.engine.desk)
    gone = (*paths(b"<sip:proxy.example;lr>"), (b"Expires", b"0"))
    assert register(desk, b"<sip:pbx@192.168.1.8>", user="pbx", headers=gone).status == 200
    assert named not in route_hops(desk.engine.desk)
    assert desk.engine.desk.location.proxies == {Hop("UDP", "198.51.100.40", 5070): 1}
    for number in range(MAX_PROXIES + 2):
        desk.engine.desk.location.proxies[Hop("UDP", f"p{number}.example")] += 1
    assert len(route_hops(desk.engine.desk)) < MAX_PROXIES + 10, "routes have places left at the resolver"


def test_options_that_cannot_be_read_change_nothing(desk: Desk) -> None:
    """All of a REGISTER or nothing (RFC 3261 §10.3)."""
    assert register(desk, b"<sip:alice@192.168.1.9>", headers=((b"Supported", b'path, "x'),)).status == 400
    assert bindings(desk, "alice") == []


# Service-Route


def test_service_route_is_told_with_each_registration() -> None:
    desk = make_desk(service_routes=(b"<sip:192.0.2.1:5060;lr>", b"<sip:192.0.2.2:5060;lr>"))
    response = register(desk, b"<sip:alice@203.0.113.1>", flow=Flow("UDP", 0, "203.0.113.1", 5060))
    assert response.values(b"service-route") == [b"<sip:192.0.2.1:5060;lr>", b"<sip:192.0.2.2:5060;lr>"]
    assert not register(make_desk(), b"<sip:alice@203.0.113.1>").has(b"service-route")


@pytest.mark.parametrize("uri", [b"sip:03023125001@sip.test", b"sip:112@sip.test"])
def test_route_that_a_caller_writes_goes_no_further(desk: Desk, uri: bytes) -> None:
    """RFC 3261 §16.4 for what names us, as a Service-Route does; anything else the carrier would follow."""
    flow = Flow("UDP", 0, "203.0.113.1", 5060)
    register(desk, b"<sip:alice@203.0.113.1>", flow=flow)
    routes = [(b"Route", b"<sip:192.0.2.1:5060;lr>, <sip:premium.example;lr>"), (b"Contact", b"<sip:alice@203.0.113.1>")]
    headers = [*routes, desk.credentials(b"INVITE", uri, flow=flow)] if b"112" not in uri else routes
    desk.receive(desk.request(b"INVITE", uri, headers=tuple(headers)), flow)
    [(_, invite)] = invites(desk)
    assert not invite.has(b"route")


# Bulk registration


def test_bulk_contact_stands_for_every_number_of_the_account(desk: Desk) -> None:
    response = register(desk, BULK, user="pbx", flow=PBX, headers=GIN)
    assert response.status == 200
    assert response.lines(b"contact") == [BULK + b";expires=3600"]
    for number in (b"+49603291", b"+496032999"):
        [(target, invite)] = call_in(desk, number, (b"Call-ID", b"in-" + number))
        assert (target, invite.uri) == (PBX, b"sip:%s@198.51.100.50:5080;x=1" % number)


@pytest.mark.parametrize(
    ("contact", "headers", "user", "status"),
    [
        (BULK, (), "pbx", 400),
        (b"<sip:198.51.100.50:5080>", GIN, "pbx", 400),
        (b"<sip:me@198.51.100.50:5080;bnc>", GIN, "pbx", 400),
        (BULK, GIN, "alice", 403),
    ],
)
def test_bulk_contact_that_is_none_or_for_a_single_number_is_refused(
    desk: Desk, contact: bytes, headers: tuple[tuple[bytes, bytes], ...], user: str, status: int
) -> None:
    assert register(desk, contact, user=user, flow=PBX, headers=headers).status == status
    assert bindings(desk, user) == []


def test_bulk_contact_is_removed_like_any_other(desk: Desk) -> None:
    register(desk, BULK, user="pbx", flow=PBX, headers=GIN)
    assert register(desk, BULK + b";expires=0", user="pbx", flow=PBX, headers=GIN).status == 200
    assert bindings(desk, "pbx") == []


def test_options_of_bulk_registration_are_for_registrations_only(desk: Desk) -> None:
    response = desk.answer(desk.request(b"OPTIONS", b"sip:sip.test", headers=((b"Proxy-Require", b"gin"),)))
    assert (response.status, response.first(b"unsupported")) == (420, b"gin")


# Configured bindings


@pytest.mark.parametrize(
    ("contact", "uri"),
    [
        (b"sip:198.51.100.50:5080", b"sip:+49603291@198.51.100.50:5080"),
        (b"sip:main@198.51.100.50:5080", b"sip:main@198.51.100.50:5080"),
    ],
)
def test_configured_pbx_is_called_without_a_registration_for_ever(contact: bytes, uri: bytes) -> None:
    desk = make_desk(static=(("pbx", contact),))
    desk.tick(10 * 366 * 86400)
    desk.engine.expire_bindings(desk.now)
    [(target, invite)] = call_in(desk, b"+49603291")
    assert (target, invite.uri) == (PBX, uri)


def test_configured_pbx_calls_for_help_without_a_challenge() -> None:
    """Design, §5: an INVITE to 112 from the address of a line's binding needs none."""
    desk = make_desk(static=(("pbx", b"sip:198.51.100.50:5080"),))
    desk.receive(
        desk.request(b"INVITE", b"sip:112@sip.test", user=b"pbx", headers=((b"Contact", b"<sip:198.51.100.50:5080>"),)), PBX
    )
    assert len(invites(desk)) == 1


def test_configured_binding_is_no_business_of_registrations_or_the_store() -> None:
    desk = make_desk(static=(("pbx", b"sip:198.51.100.50:5080"),), max_contacts=1)
    location = desk.engine.desk.location
    assert register(desk, user="pbx").lines(b"contact") == []
    assert register(desk, b"<sip:pbx@198.51.100.40>", user="pbx").status == 200
    assert register(desk, b"*", user="pbx", headers=((b"Expires", b"0"),)).status == 200
    assert [one.key for one in location.bindings("pbx", desk.utc_ms)] == [STATIC + "sip:198.51.100.50:5080;bnc"]
    assert location.stored() == []


def test_configured_binding_that_no_listener_reaches_is_said_to_be_so() -> None:
    desk = make_desk(static=(("pbx", b"sip:198.51.100.50:5080;transport=tcp"),))
    assert bindings(desk, "pbx") == []
    assert [a.event for a in desk.engine.fire(desk.now) if hasattr(a, "event")] == ["static_binding_unreachable"]
