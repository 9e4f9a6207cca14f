"""What is kept of messages does not grow with them: names that a peer makes up may be as long as a datagram."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import msgspec
import pytest

from sipproxy.engine import forward, privacy, reduced
from sipproxy.engine.actions import TakeSlot
from sipproxy.engine.forward import next_hop
from sipproxy.engine.settings import Rates
from sipproxy.sip.flow import Hop, version_of
from sipproxy.sip.message import Request, Response
from tests.engine.desk import DOMAIN, Desk
from tests.sim.conftest import make_town

if TYPE_CHECKING:
    from collections.abc import Callable

CONTACT = b"<sip:alice@203.0.113.1:5060>"
CALL = b"sip:03023125001@sip.test"
LONG = 50_000
COUNT = 8
ROOM = 1000  # bytes of one entry, what is around it included


def size_of(kept: object) -> int:
    """Bytes of what a table holds, with all that stands in it."""
    size = sys.getsizeof(kept)
    if isinstance(kept, msgspec.Struct):
        return size + sum(size_of(getattr(kept, name)) for name in kept.__struct_fields__)
    if isinstance(kept, Mapping):
        return size + sum(size_of(key) + size_of(value) for key, value in kept.items())
    if isinstance(kept, Iterable) and not isinstance(kept, str | bytes):
        return size + sum(map(size_of, kept))
    return size


def a_desk(**options: object) -> Desk:
    desk = Desk(make_town(rates=Rates(credit_bytes=10_000_000), **options).world.engine)
    assert desk.register(CONTACT).status == 200
    return desk


def name(number: int) -> bytes:
    return b"%d" % number + b"x" * LONG


def old_branch(number: int) -> bytes:
    return b"y" + name(number)


def new_branch(number: int) -> bytes:
    return b"z9hG4bK" + name(number)


def ask(desk: Desk, data: bytes) -> list[int]:
    return [message.status for message in desk.receive(data) if isinstance(message, Response)]


def long_user(number: int) -> bytes:
    return (b"u%d" % number).ljust(4000, b"u")


@pytest.mark.parametrize("branch", [new_branch, old_branch])
def test_invite_that_is_challenged_is_known_by_a_name_of_bounded_length(branch: Callable[[int], bytes]) -> None:
    desk = a_desk()
    sent = [desk.request(b"INVITE", CALL, branch=branch(n), call_id=name(n), cseq=1) for n in range(COUNT)]
    assert [ask(desk, data) for data in sent] == [[407]] * COUNT
    known = desk.engine.refusals._challenged
    assert len(known) == COUNT
    assert size_of(known) < COUNT * ROOM


@pytest.mark.parametrize("branch", [new_branch, old_branch])
def test_invite_that_is_refused_is_known_by_a_name_of_bounded_length(branch: Callable[[int], bytes]) -> None:
    desk = a_desk(max_calls=0)
    sent = []
    for number in range(COUNT):
        headers = (desk.credentials(b"INVITE", CALL), (b"Contact", CONTACT))
        sent.append(desk.request(b"INVITE", CALL, branch=branch(number), call_id=name(number), cseq=1, headers=headers))
    assert [ask(desk, data) for data in sent] == [[503]] * COUNT
    known = desk.engine.refusals._known
    assert len(known) == COUNT
    assert size_of(known) < COUNT * ROOM
    assert [ask(desk, data) for data in sent] == [[503]] * COUNT
    assert len(known) == COUNT, "a copy is known by the same name"


@pytest.mark.parametrize("branch", [new_branch, old_branch])
def test_transaction_is_found_by_a_name_of_bounded_length(branch: Callable[[int], bytes]) -> None:
    desk = a_desk()
    headers = (desk.credentials(b"REGISTER", DOMAIN), (b"Contact", CONTACT))
    register = desk.request(headers=headers, branch=branch(1), call_id=name(1))
    assert ask(desk, register) == [200]
    assert ask(desk, register) == [200], "a copy is answered by the same transaction"
    servers = desk.engine.desk.transactions.servers
    assert size_of(list(servers)) < len(servers) * ROOM


def test_binding_keeps_a_name_of_bounded_length_of_the_register_that_made_it() -> None:
    desk = a_desk()
    for number in range(5):
        assert desk.register(CONTACT, call_id=name(7), cseq=10 + number).status == 200
    assert desk.register(CONTACT, call_id=name(7), cseq=14).status == 500, "the same Call-ID is known again"
    assert desk.register(CONTACT, call_id=name(8), cseq=1).status == 200
    assert size_of(list(desk.engine.desk.location.items())) < 3 * ROOM


def test_guesses_at_a_name_are_counted_by_a_name_of_bounded_length() -> None:
    desk = a_desk()
    statuses = []
    for number in range(COUNT):
        user = long_user(number)
        headers = (desk.credentials(b"REGISTER", DOMAIN, user=user.decode()), (b"Contact", CONTACT))
        statuses += ask(desk, desk.request(user=user, headers=headers))
    assert statuses == [401] * COUNT
    guesses = desk.engine.auth.guesses
    assert guesses.sizes()["pair"] == guesses.sizes()["user"] == COUNT
    counted = [table._counts for table in guesses._tables.values()]
    assert size_of(counted) < 4 * COUNT * ROOM


def test_guesses_at_one_long_name_are_limited_as_at_any() -> None:
    desk = a_desk()
    user = long_user(1)
    for _ in range(12):
        headers = (desk.credentials(b"REGISTER", DOMAIN, user=user.decode()), (b"Contact", CONTACT))
        ask(desk, desk.request(user=user, headers=headers))
    assert desk.engine.desk.counters["guesses_limited", "pair"] == 2


def test_caches_keep_nothing_of_long_messages() -> None:
    """A row of header names, a From, and what is done with them once the call is forwarded."""
    caches = (privacy._shown, reduced._kept_of, forward._claims)

    def call(display: bytes, header: bytes) -> list[int]:
        desk = a_desk()
        caller = b'"%b" <sip:alice@sip.test>;tag=f1' % display
        headers = (desk.credentials(b"INVITE", CALL), (b"From", caller), (header, b"x"), (b"Contact", CONTACT))
        ask(desk, desk.request(b"INVITE", CALL, headers=headers))
        [take] = [action for action in desk.actions if isinstance(action, TakeSlot)]
        desk.actions = desk.engine.slot_result(take.slot, taken=True, used=1, now=desk.now)
        [sent] = [message for message in desk.sent() if isinstance(message, Request)]
        reduced.reduced(sent)
        return [cache.cache_info().currsize for cache in caches]

    before = call(b"Alice", b"X-Short")
    assert call(b"Alice", b"X-Another") == [before[0], before[1] + 1, before[2] + 1]
    assert call(b"Bob", b"X-Another") == [before[0] + 1, before[1] + 1, before[2] + 1]
    for number in range(4, 8):
        assert call(name(number), b"X-Long-" + name(number)) == [before[0] + 1, before[1] + 1, before[2] + 1]


def test_request_goes_to_no_host_with_a_name_that_none_can_have() -> None:
    settings, known = a_desk().engine.desk.settings, Hop("UDP", "192.0.2.1", 5060)
    before = version_of.cache_info().currsize
    assert next_hop(settings, b"sip:a@" + b"h" * 255, known) == Hop("UDP", "h" * 255, 0, is_open=True)
    assert next_hop(settings, b"sip:a@" + b"h" * 256, known) == known
    assert version_of.cache_info().currsize == before + 1
