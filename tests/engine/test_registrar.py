"""The registrar against RFC 3261 §10.3, through the whole engine."""

from __future__ import annotations

import pytest

from sipproxy.engine.actions import RemoveBinding, SaveBinding
from sipproxy.sip.flow import Flow
from tests.engine.desk import DOMAIN, ROUTER, STRANGER, Desk

HOME = b"<sip:alice@203.0.113.1:5060>"
MOBILE = b"<sip:alice@203.0.113.1:5070;transport=udp>"


@pytest.fixture
def desk() -> Desk:
    return Desk()


def contacts_of(desk: Desk, user: str = "alice") -> set[str]:
    return {b.contact for b in desk.engine.desk.location.bindings(user, desk.utc_ms)}


def test_register_without_credentials_is_challenged_with_every_algorithm_best_first(desk: Desk) -> None:
    response = desk.answer(desk.request())
    assert response.status == 401
    values = response.lines(b"www-authenticate")
    assert [b"algorithm=SHA-256" in v for v in values] == [True, False]
    assert b"algorithm=MD5" in values[1]
    assert contacts_of(desk) == set()


def test_register_adds_a_binding_with_its_flow_and_saves_it(desk: Desk) -> None:
    response = desk.register(HOME, expires=600)
    assert response.status == 200
    assert response.lines(b"contact") == [HOME + b";expires=600"]
    saved = [a for a in desk.actions if isinstance(a, SaveBinding)]
    assert [(a.user, a.binding.contact, a.binding.flow) for a in saved] == [("alice", "sip:alice@203.0.113.1:5060", ROUTER)]


def test_register_several_contacts_lists_them_by_q(desk: Desk) -> None:
    response = desk.register(HOME + b";q=0.2", MOBILE + b";q=0.7;expires=120")
    values = response.lines(b"contact")
    assert [v.partition(b">")[0] + b">" for v in values] == [MOBILE, HOME]
    assert [v.rpartition(b"=")[2] for v in values] == [b"120", b"3600"]


def test_register_refresh_replaces_an_equal_uri_however_it_is_spelt(desk: Desk) -> None:
    desk.register(HOME, expires=600)
    desk.tick(500)
    response = desk.register(b"<SIP:%61lice@203.0.113.1:5060>", expires=600)
    assert [v.rpartition(b"=")[2] for v in response.lines(b"contact")] == [b"600"]


def test_register_same_instance_replaces_its_old_contact(desk: Desk) -> None:
    instance = b';+sip.instance="<urn:uuid:00000000-0000-1000-8000-000A95A0E128>"'
    desk.register(HOME + instance)
    desk.register(MOBILE + instance)
    assert contacts_of(desk) == {"sip:alice@203.0.113.1:5070;transport=udp"}


def test_register_zero_expires_removes_that_contact_only(desk: Desk) -> None:
    desk.register(HOME, MOBILE)
    response = desk.register(HOME + b";expires=0")
    assert len(response.lines(b"contact")) == 1
    assert [a.user for a in desk.actions if isinstance(a, RemoveBinding)] == ["alice"]
    assert contacts_of(desk) == {"sip:alice@203.0.113.1:5070;transport=udp"}


def test_register_star_removes_all(desk: Desk) -> None:
    desk.register(HOME, MOBILE)
    response = desk.register(b"*", expires=0)
    assert response.status == 200
    assert contacts_of(desk) == set()


@pytest.mark.parametrize(("contacts", "expires"), [((b"*",), 60), ((b"*",), None), ((b"*", HOME), 0)])
def test_register_star_with_anything_else_is_400(desk: Desk, contacts: tuple[bytes, ...], expires: int | None) -> None:
    desk.register(HOME)
    assert desk.register(*contacts, expires=expires).status == 400
    assert len(contacts_of(desk)) == 1


def test_register_without_contact_fetches(desk: Desk) -> None:
    desk.register(HOME)
    response = desk.register()
    assert [v.partition(b";")[0] for v in response.lines(b"contact")] == [HOME]
    assert not [a for a in desk.actions if isinstance(a, SaveBinding)]


def test_register_too_brief_is_423_and_changes_nothing(desk: Desk) -> None:
    response = desk.register(HOME, MOBILE + b";expires=30")
    assert response.status == 423
    assert response.first(b"min-expires") == b"60"
    assert contacts_of(desk) == set()


def test_register_too_long_is_shortened_and_malformed_expires_is_3600(desk: Desk) -> None:
    response = desk.register(HOME, expires=999999)
    assert response.lines(b"contact") == [HOME + b";expires=7200"]
    response = desk.register(MOBILE + b";expires=soon")
    assert MOBILE + b";expires=3600" in response.lines(b"contact")


def test_register_older_cseq_in_the_same_call_is_refused_whole(desk: Desk) -> None:
    desk.register(HOME, call_id=b"one", cseq=100)
    refused = desk.register(HOME, MOBILE, call_id=b"one", cseq=99)
    assert refused.status == 500
    assert contacts_of(desk) == {"sip:alice@203.0.113.1:5060"}
    assert desk.register(HOME, call_id=b"other", cseq=1).status == 200


def test_register_for_another_account_is_403(desk: Desk) -> None:
    headers = (desk.credentials(b"REGISTER", DOMAIN), (b"Contact", HOME))
    response = desk.answer(desk.request(to=b"<sip:bob@sip.test>", headers=headers))
    assert response.status == 403
    assert contacts_of(desk, "bob") == set()


def test_register_by_the_accounts_own_number_is_taken(desk: Desk) -> None:
    headers = (desk.credentials(b"REGISTER", DOMAIN), (b"Contact", HOME))
    assert desk.answer(desk.request(to=b"<sip:+4960323001@sip.test>", headers=headers)).status == 200
    assert len(contacts_of(desk)) == 1


def test_register_more_contacts_than_allowed_is_403(desk: Desk) -> None:
    many = [b"<sip:alice@203.0.113.1:%d>" % port for port in range(6000, 6011)]
    assert desk.register(*many).status == 403
    assert contacts_of(desk) == set()
    assert desk.register(*many[:10]).status == 200


def test_register_for_a_foreign_domain_is_404(desk: Desk) -> None:
    assert desk.answer(desk.request(uri=b"sip:elsewhere.example")).status == 404


def test_register_with_an_unknown_required_extension_is_420(desk: Desk) -> None:
    response = desk.answer(desk.request(headers=((b"Require", b"gin, foo"),)))
    assert response.status == 420
    assert response.first(b"unsupported") == b"foo"


@pytest.mark.parametrize("contact", [b"<tel:+4960323001>", b"<sip:" + b"a" * 600 + b"@203.0.113.1>"])
def test_register_unusable_contact_is_400(desk: Desk, contact: bytes) -> None:
    assert desk.register(contact).status == 400


def test_register_wrong_password_and_unknown_user_are_answered_alike(desk: Desk) -> None:
    answers = []
    for user, password in (("alice", "wrong"), ("nobody", "wrong")):
        value = desk.credentials(b"REGISTER", DOMAIN, user=user, password=password)
        answers.append(desk.answer(desk.request(user=user.encode(), headers=(value, (b"Contact", HOME)))))
    assert [a.status for a in answers] == [401, 401]
    shapes = [[line.partition(b"nonce")[0] for line in a.lines(b"www-authenticate")] for a in answers]
    assert shapes[0] == shapes[1]


def test_register_response_goes_to_the_source_with_rport_and_to_the_sent_by_without(desk: Desk) -> None:
    """RFC 3581 §4, RFC 3261 §18.2.2."""
    natted = Flow("UDP", 0, "198.51.100.77", 40001)
    desk.receive(desk.request(via=b"SIP/2.0/UDP 10.0.0.5:5062;rport"), natted)
    assert [(a.target.host, a.target.port) for a in desk.actions if hasattr(a, "target")] == [("198.51.100.77", 40001)]
    top = desk.sent()[0].lines(b"via")[0]
    assert b";received=198.51.100.77" in top
    assert b";rport=40001" in top
    desk.receive(desk.request(via=b"SIP/2.0/UDP 10.0.0.5:5062"), natted)
    assert [(a.target.host, a.target.port) for a in desk.actions if hasattr(a, "target")] == [("198.51.100.77", 5062)]


def test_maddr_of_a_stranger_aims_no_response(desk: Desk) -> None:
    """The deviation from RFC 3261 §18.2.2."""
    desk.receive(desk.request(via=b"SIP/2.0/UDP 203.0.113.1:5060;maddr=192.0.2.200"), STRANGER)
    assert [(a.target.host, a.target.port) for a in desk.actions if hasattr(a, "target")] == [("203.0.113.99", 5060)]


def test_binding_expires_by_itself(desk: Desk) -> None:
    desk.register(HOME, expires=60)
    desk.tick(61)
    assert contacts_of(desk) == set()
    assert desk.engine.expire_bindings(desk.now) == 1
    assert desk.engine.desk.location.count == 0


def test_retransmitted_register_gets_the_same_answer_and_is_not_out_of_order(desk: Desk) -> None:
    value = desk.credentials(b"REGISTER", DOMAIN)
    data = desk.request(headers=(value, (b"Contact", HOME)))
    first, second = desk.answer(data), desk.answer(data)
    assert first.raw == second.raw
    assert first.status == 200


def test_replayed_credentials_of_another_source_are_refused(desk: Desk) -> None:
    value = desk.credentials(b"REGISTER", DOMAIN)
    assert desk.answer(desk.request(headers=(value, (b"Contact", HOME)))).status == 200
    replay = desk.request(headers=(value, (b"Contact", b"<sip:mallory@203.0.113.99>")), call_id=b"evil")
    assert desk.answer(replay, STRANGER).status == 401
    assert contacts_of(desk) == {"sip:alice@203.0.113.1:5060"}
