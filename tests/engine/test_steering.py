"""Which worker a message is for (RFC 3261 §16.11, §17.1.3, §17.2.3, §9.1)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.engine.steering import MAX_KEPT, Steering

KEY = b"k" * 32
OWN = b"z9hG4bK%02x1234567890abcdef12345678"


def steering(worker: int = 1, count: int = 3, alive: tuple[int, ...] = (1, 2, 3)) -> Steering:
    found = Steering(worker, count, KEY)
    found.alive = frozenset(alive)
    return found


def request(method: bytes, call_id: bytes, *lines: bytes, uri: bytes = b"sip:03023125001@sip.test", tag: bytes = b"") -> bytes:
    head = [b"%s %s SIP/2.0" % (method, uri), b"Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKpeer", b"Call-ID: " + call_id]
    return b"\r\n".join([*head, b"From: <sip:a@b>;tag=1", b"To: <sip:c@d>" + tag, *lines, b"", b""])


def owned_by(worker: int, *, beside: bytes = b"") -> bytes:
    """A Call-ID whose hash leads to that worker."""
    some = (b"call-%d%s" % (number, beside) for number in range(1000))
    return next(call_id for call_id in some if steering().owner(request(b"BYE", call_id)) == worker)


@pytest.mark.parametrize(
    "via",
    [
        b"Via: SIP/2.0/UDP 192.0.2.9:5060;branch=%b",
        b"v:SIP/2.0/UDP 192.0.2.9:5060 ; rport=1 ; branch = %b;received=192.0.2.1",
        b"VIA: SIP/2.0/UDP\r\n 192.0.2.9:5060\r\n\t;branch=%b, SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK01other",
    ],
)
def test_response_is_for_the_worker_of_its_topmost_branch(via: bytes) -> None:
    other = b"\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=" + OWN % 1
    for worker in (1, 2, 3):
        data = b"SIP/2.0 180 Ringing\r\n" + via % (OWN % worker) + other + b"\r\nCall-ID: x\r\n\r\n"
        assert steering().owner(data) == worker
    assert steering().owner(b"SIP/2.0 200 OK\r\n" + via % (OWN % 4) + b"\r\n\r\n") == 1  # there is no fourth


def test_request_within_a_dialog_is_for_the_worker_of_its_first_route() -> None:
    lines = (b"Route: <sip:192.0.2.9:5060;lr;c=03.AbC_->, <sip:192.0.2.9:5060;lr;c=02.x>", b"Route: <sip:192.0.2.9;lr;c=01.x>")
    for method in (b"BYE", b"INVITE", b"ACK", b"OPTIONS", b"CANCEL"):
        assert steering().owner(request(method, owned_by(1), *lines, tag=b";tag=2")) == 3
    strict = request(b"BYE", owned_by(1), uri=b"sip:192.0.2.9:5060;lr;c=02.AbC")
    assert steering().owner(strict) == 2
    of_a_peer = request(b"BYE", owned_by(1), b"Route: <sip:192.0.2.1;lr>", uri=b"sip:192.0.2.9:5060;lr;c=02.AbC")
    assert steering().owner(of_a_peer) == 1


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n", b"\n"])
def test_line_ends_before_a_message_lead_nowhere_else(before: bytes) -> None:
    """RFC 3261 §7.5."""
    at, lines = steering(), (b"Route: <sip:192.0.2.9:5060;lr;c=03.AbC>",)
    assert at.owner(before + request(b"BYE", owned_by(1), *lines, tag=b";tag=2")) == 3
    assert at.owner(before + b"SIP/2.0 180 Ringing\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=" + OWN % 2 + b"\r\n\r\n") == 2
    assert at.owner(before + request(b"INVITE", owned_by(2))) == 2
    assert at.instead(before + request(b"INVITE", owned_by(2)), (2,)) == 1


def test_mark_of_a_worker_that_leaves_leads_to_it_until_it_has_left() -> None:
    at = steering()
    at.leaving = frozenset((5,))
    route = b"Route: <sip:192.0.2.9:5060;lr;c=05.AbC>"
    response = b"SIP/2.0 180 Ringing\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=" + OWN % 5 + b"\r\n\r\n"
    assert (at.owner(request(b"BYE", owned_by(2), route, tag=b";tag=2")), at.owner(response)) == (5, 5)
    at.leaving = frozenset()
    assert (at.owner(request(b"BYE", owned_by(2), route, tag=b";tag=2")), at.owner(response)) == (2, 1)


def test_what_stands_in_a_body_or_another_header_is_no_mark() -> None:
    body = b"\r\nRoute: <sip:192.0.2.9;lr;c=02.x>\r\n"
    assert steering().owner(request(b"BYE", owned_by(1)) + body) == 1
    assert steering().owner(request(b"BYE", owned_by(1), b"X-Route: <sip:192.0.2.9;lr;c=02.x>")) == 1


@pytest.mark.parametrize("worker", [1, 2, 3])
def test_call_is_one_workers_whoever_reads_and_from_whatever_port(worker: int) -> None:
    call_id = owned_by(worker)
    for reader in (1, 2, 3):
        at = steering(reader)
        for method in (b"INVITE", b"CANCEL", b"ACK"):
            assert at.owner(request(method, call_id)) == worker
        assert at.owner(request(b"REGISTER", call_id)) == reader
        assert at.owner(request(b"OPTIONS", call_id)) == reader
        assert at.owner(b"\x00\x01\x00\x00stun") == reader
        assert at.owner(b"INVITE sip:x SIP/2.0\r\n\r\n") == reader


@pytest.mark.parametrize("target", [b"sip:112@sip.test", b"urn:service:sos", b"tel:110", b"sip:%31%31%32@sip.test"])
def test_call_for_help_is_taken_by_its_reader_and_so_is_what_follows(target: bytes) -> None:
    """Design: invariant 1, no other worker has to be there for it."""
    for reader in (1, 2, 3):
        at, call_id = steering(reader), owned_by(reader % 3 + 1)
        for method in (b"INVITE", b"INVITE", b"CANCEL", b"ACK"):
            assert at.owner(request(method, call_id, uri=target)) == reader


def test_new_call_of_a_worker_that_is_away_is_taken_by_its_reader_and_stays_there() -> None:
    at, call_id = steering(1, alive=(1, 3)), owned_by(2)
    assert at.owner(request(b"BYE", call_id, tag=b";tag=2")) == 2  # of a call that it had: it waits for it
    assert at.owner(request(b"CANCEL", call_id)) == 2
    assert at.owner(request(b"INVITE", call_id)) == 1
    at.alive = frozenset((1, 2, 3))
    assert at.owner(request(b"CANCEL", call_id)) == 1
    back = steering(2)
    back.learn(at.kept(), 1)
    assert back.owner(request(b"INVITE", call_id)) == 1
    assert back.owner(request(b"CANCEL", call_id)) == 1


def test_marked_new_call_of_a_worker_that_is_away_is_taken_by_its_reader() -> None:
    """Another node's call to a customer whose binding that worker made; over UDP every worker reaches him."""
    route = b"Route: <sip:192.0.2.9:5060;lr;e=02.AbC>"
    assert steering(1, alive=(1, 3)).owner(request(b"INVITE", owned_by(1), route)) == 1
    assert steering(1).owner(request(b"INVITE", owned_by(1), route)) == 2


def test_only_a_new_call_can_be_taken_in_its_owners_place() -> None:
    at, call_id = steering(1), owned_by(2)
    assert not at.instead(request(b"BYE", call_id, tag=b";tag=2"), (2,))
    assert not at.instead(request(b"INVITE", call_id, tag=b";tag=2"), (2,))
    assert at.owner(request(b"CANCEL", call_id)) == 2
    assert at.instead(request(b"INVITE", call_id), (2,)) == 1
    assert at.owner(request(b"CANCEL", call_id)) == 1


@pytest.mark.parametrize("name", [b"Replaces", b"Join"])
def test_call_that_names_another_one_goes_where_that_is(name: bytes) -> None:
    at, named = steering(1), owned_by(3)
    for reader, own in ((1, owned_by(1)), (1, owned_by(2)), (1, owned_by(3))):
        assert reader == at.worker
        assert at.owner(request(b"INVITE", own, name + b": " + named + b";to-tag=1;from-tag=2")) == 3
        assert at.owner(request(b"CANCEL", own)) == 3


def test_exceptions_are_bounded_and_the_oldest_goes_first() -> None:
    at = steering(1)
    for number in range(MAX_KEPT + 1):
        assert at.instead(request(b"INVITE", b"call-%d" % number), (2,)) == 1
    assert (len(at), at.forgotten) == (MAX_KEPT, 1)
    assert at.owner(request(b"CANCEL", b"call-%d" % MAX_KEPT)) == 1


class Firsts:
    """What the kernel's locks tell the workers of a node (`net.taken`), and what they tell each other."""

    def __init__(self) -> None:
        self.taken: dict[int, int] = {}
        self.words: list[tuple[int, bytes]] = []  # who took what

    def worker(self, number: int) -> Steering:
        at = steering(number)
        at.first = lambda place: self.taken.setdefault(place, number)
        at.first_of = lambda place: self.taken.get(place, 0)
        at.tell = lambda key: self.words.append((number, key))
        return at

    def die(self, number: int) -> None:
        self.taken = {place: worker for place, worker in self.taken.items() if worker != number}


HELP = b"sip:112@sip.test"
COPIES = (
    request(b"INVITE", b"abc", uri=HELP),
    b"\r\n" + request(b"INVITE", b"abc", uri=HELP),
    request(b"INVITE", b"abc", uri=HELP).replace(b"Call-ID: ", b"i:"),
    request(b"INVITE", b"abc", uri=HELP).replace(b"Call-ID: ", b"cALL-iD \t:\r\n  "),
    request(b"INVITE", b"abc", b"V: " + b"v" * 2000, uri=HELP),
)


@given(
    readings=st.lists(st.tuples(st.integers(1, 3), st.sampled_from(COPIES)), min_size=1, max_size=12),
    told=st.integers(0, 12),
    dies=st.integers(0, 12),
)
def test_copies_of_a_call_for_help_are_one_workers_whoever_reads_them_and_whatever_was_told(
    readings: list[tuple[int, bytes]], told: int, dies: int
) -> None:
    """RFC 3261 §8.2.2.2. When it dies they are one other's."""
    firsts = Firsts()
    workers = {number: firsts.worker(number) for number in (1, 2, 3)}
    has = set()
    for number, (reader, data) in enumerate(readings):
        if number == told:
            for worker in workers.values():
                for teller, key in firsts.words:
                    worker.learn([(key, teller)], teller)
        if number == dies and has:
            gone = has.pop()
            firsts.die(gone)
            for other in workers.values():
                other.alive -= {gone}
        if reader in workers[reader].alive:
            has.add(workers[reader].owner(data))
            assert workers[reader].is_for_help(data)
    assert len(has) <= 1
    if has:
        alive = [worker for number, worker in workers.items() if number in worker.alive]
        assert {worker.owner(request(b"CANCEL", b"abc", uri=HELP)) for worker in alive} == has


def test_cancel_of_a_call_for_help_is_for_who_has_it_before_that_is_told() -> None:
    firsts = Firsts()
    taker, other = firsts.worker(1), firsts.worker(2)
    call_id = owned_by(3)
    assert taker.owner(request(b"INVITE", call_id, uri=HELP)) == 1
    assert other.owner(request(b"CANCEL", call_id, uri=HELP)) == 1
    assert other.owner(request(b"CANCEL", call_id)) == 3
    assert firsts.worker(2).owner(request(b"CANCEL", owned_by(1, beside=b"x"), uri=HELP)) == 1  # nobody has it


def test_workers_that_cannot_reach_who_has_a_call_for_help_have_one_of_them_take_it() -> None:
    firsts = Firsts()
    first, second, third = (firsts.worker(number) for number in (1, 2, 3))
    data = request(b"INVITE", b"abc", uri=HELP)
    assert [worker.owner(data) for worker in (first, second, third)] == [1, 1, 1]
    assert [worker.instead(data, (1,)) for worker in (third, second)] == [3, 3]
    assert second.instead(data, (1, 3)) == 2
    second.alive = frozenset((1, 2))
    assert second.owner(data) == 2
    assert [word[0] for word in firsts.words] == [1, 3, 2]
    back = firsts.worker(2)
    back.alive = frozenset((2,))
    assert back.owner(request(b"INVITE", b"abc", uri=HELP)) == 2  # the others are going: their locks may be there still


def test_word_of_who_took_a_call_itself_counts_more_than_what_is_known_from_others() -> None:
    at = steering(2)
    at.learn([(b"a", 1), (b"b", 3)], 3)
    at.learn([(b"a", 3), (b"b", 1)], 3)
    assert at.kept() == [(b"a", 3), (b"b", 3)]


def test_calls_are_spread_over_all_workers() -> None:
    found = [steering().owner(request(b"INVITE", b"%d@host" % number)) for number in range(900)]
    assert all(200 < found.count(worker) < 400 for worker in (1, 2, 3))


@given(st.binary(max_size=300))
def test_any_bytes_have_an_owner(data: bytes) -> None:
    assert steering().owner(data) in (1, 2, 3)
    assert steering().owner(b"SIP/2.0 " + data) in (1, 2, 3)
    assert steering().owner(b"INVITE " + data) in (1, 2, 3)
