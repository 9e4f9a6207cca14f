"""The order in which messages that wait are looked at (docs/design.md, "Under load")."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from sipproxy.engine import backlog as backlog_module
from sipproxy.engine.backlog import ROOM, STALE_S, STEP, Backlog, Rank
from sipproxy.engine.edge import target_at
from sipproxy.engine.peers import Peer
from sipproxy.engine.settings import Rates
from sipproxy.sip.flow import Flow, Hop
from tests.engine.desk import DOMAIN, ROUTER, STRANGER, Desk
from tests.engine.shedding import CALL, CONTACT, TRUNK, desk_of
from tests.engine.test_location import binding
from tests.sim.conftest import make_town

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = b"sip:112@sip.example"
PROVEN = (b"Proxy-Authorization", b'Digest username="alice"')
NONCE = (b"Authorization", b'Digest username="alice", nonce="abc"')
CARRIED = b"SIP/2.0 200 OK\r\n\r\n"


@pytest.fixture
def desk() -> Desk:
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    return desk


@pytest.fixture
def backlog(desk: Desk) -> Backlog:
    return Backlog(desk.engine.shedder)


def out(backlog: Backlog) -> list[bytes]:
    """All that waits, in the order in which it is looked at."""
    taken = []
    while (one := backlog.take()) is not None:
        taken.append(one.data)
    return taken


def come(backlog: Backlog, data: bytes, flow: Flow, at: float) -> None:
    """A datagram is read as a listener does it."""
    backlog.make_room(at)
    if not backlog.passes_over(data):
        backlog.put(data, flow, at)


def of_ranks(desk: Desk) -> list[tuple[Rank, bytes, Flow]]:
    """A message of each rank, the most urgent first."""
    return [
        (Rank.HELP, desk.request(b"INVITE", HELP), STRANGER),
        (Rank.PART, desk.request(b"BYE", CALL, to_tag=b"t"), ROUTER),
        (Rank.BEGUN, desk.request(b"INVITE", CALL, headers=(PROVEN,)), ROUTER),
        (Rank.REGISTER, desk.request(b"REGISTER", headers=(NONCE,)), ROUTER),
        (Rank.NEW, desk.request(b"INVITE", CALL), TRUNK),
        (Rank.OTHER, desk.request(b"REGISTER"), ROUTER),
        (Rank.STRANGER, desk.request(b"INVITE", CALL), STRANGER),
    ]


def test_what_is_begun_goes_before_what_begins_whatever_came_first(desk: Desk, backlog: Backlog) -> None:
    messages = of_ranks(desk)
    for _, data, flow in reversed(messages):
        backlog.put(data, flow, 0.0)
    assert [backlog.waiting_of(rank) for rank in Rank] == [1] * len(Rank)
    assert out(backlog) == [data for _, data, _ in messages]
    assert (backlog.waiting, backlog.bytes, backlog.counts) == (0, 0, {})


@pytest.mark.parametrize(
    ("method", "to_tag", "headers", "flow", "rank"),
    [
        (b"ACK", b"t", (), ROUTER, Rank.PART),
        (b"CANCEL", b"", (), ROUTER, Rank.PART),
        (b"INVITE", b"t", (), TRUNK, Rank.PART),
        (b"BYE", b"t", (), STRANGER, Rank.STRANGER),
        (b"INVITE", b"", (PROVEN,), STRANGER, Rank.STRANGER),
        (b"REGISTER", b"", (NONCE,), STRANGER, Rank.STRANGER),
        (b"OPTIONS", b"", (), TRUNK, Rank.OTHER),
        (b"INVITE", b"", (), ROUTER._replace(port=6000), Rank.NEW),
        (b"INVITE", b"", (), Flow("UDP", 0, "198.51.100.200", 5060), Rank.STRANGER),
    ],
)
def test_rank_is_by_what_a_message_is_and_whether_its_source_is_known(
    desk: Desk, backlog: Backlog, method: bytes, to_tag: bytes, headers: tuple[tuple[bytes, bytes], ...], flow: Flow, rank: Rank
) -> None:
    """Nobody gets before customers by writing a To tag or credentials."""
    uri = DOMAIN if method == b"REGISTER" else CALL
    backlog.put(b"\r\n" + desk.request(method, uri, to_tag=to_tag, headers=headers), flow, 0.0)
    assert backlog.waiting_of(rank) == backlog.waiting == 1


def test_call_that_another_node_has_admitted_is_begun_and_finds_room_in_a_queue_that_stays(
    desk: Desk, backlog: Backlog
) -> None:
    """It has its channel there, and would fail here for calls for which nothing was done. One that only looks so is new."""
    shedder = desk.engine.shedder
    shedder.has_queue = True
    for data in new_calls(desk, ROOM):
        come(backlog, data, ROUTER, 0.0)
    node, hop = Flow("UDP", 0, "192.0.2.200", 5060), Hop("UDP", "192.0.2.200", 5060)
    desk.engine.desk.peers.heard([Peer("n2", (hop,), frozenset([node.host]))])
    elsewhere = replace(binding("b", node, 0), node="n2", token="t0ken")
    reach = target_at(desk.engine.desk, "alice", elsewhere, CALL)
    assert reach is not None
    route = (b"Route", reach.route)
    for number, flow in enumerate((node, ROUTER, STRANGER)):
        come(backlog, desk.request(b"INVITE", CALL, call_id=b"%d" % number, headers=(route,)), flow, 0.0)
    assert [backlog.waiting_of(rank) for rank in (Rank.BEGUN, Rank.NEW, Rank.STRANGER)] == [1, ROOM, 1]


def test_who_is_in_an_emergency_access_network_is_no_stranger() -> None:
    desk = Desk(make_town(rates=Rates(), access_networks=(ip_network("198.18.0.0/24"),)).world.engine)
    backlog = Backlog(desk.engine.shedder)
    for host in ("198.18.0.5", "198.18.1.5"):
        backlog.put(desk.request(b"INVITE", CALL), Flow("UDP", 0, host, 5060), 0.0)
    assert (backlog.waiting_of(Rank.NEW), backlog.waiting_of(Rank.STRANGER)) == (1, 1)


def test_message_that_names_a_live_call_is_part_of_it_wherever_it_comes_from(desk: Desk, backlog: Backlog) -> None:
    headers = (desk.credentials(b"INVITE", CALL), (b"Contact", CONTACT))
    desk.receive(desk.request(b"INVITE", CALL, call_id=b"live", headers=headers))
    backlog.put(desk.request(b"BYE", CALL, call_id=b"live", to_tag=b"t"), STRANGER, 0.0)
    assert backlog.waiting_of(Rank.PART) == 1


def test_no_rank_waits_for_ever(desk: Desk, backlog: Backlog) -> None:
    """One of STEP goes to who has waited longest."""
    register = desk.request(b"REGISTER")
    backlog.put(register, ROUTER, 0.0)
    for at in range(1, 4 * STEP):
        backlog.put(CARRIED, TRUNK, float(at))
    assert out(backlog).index(register) < STEP


def test_copy_of_an_invite_that_waits_is_dropped_and_a_later_one_is_not(desk: Desk, backlog: Backlog) -> None:
    invite = desk.request(b"INVITE", CALL, branch=b"z9hG4bKone")
    other = desk.request(b"INVITE", CALL, branch=b"z9hG4bKtwo")
    for data in (invite, other, invite, invite):
        backlog.put(data, ROUTER, 0.0)
    backlog.put(invite, ROUTER._replace(port=6000), 0.0)
    assert (out(backlog), backlog.counts) == ([invite, other, invite], {"repeated": 2})
    backlog.put(invite, ROUTER, 1.0)
    assert out(backlog) == [invite], "what was looked at is the engine's to know"


def test_cancel_stays_behind_the_invite_that_waits(desk: Desk, backlog: Backlog) -> None:
    """RFC 3261 §9.2: what comes before its INVITE cancels nothing. Its other messages wait for nobody."""
    invite = desk.request(b"INVITE", CALL, branch=b"z9hG4bKone")
    cancel = desk.request(b"CANCEL", CALL, branch=b"z9hG4bKone")
    another = desk.request(b"CANCEL", CALL, branch=b"z9hG4bKtwo")
    ack = desk.request(b"ACK", CALL, branch=b"z9hG4bKone", to_tag=b"t")
    for data in (invite, cancel, another, ack):
        backlog.put(data, ROUTER, 0.0)
    assert out(backlog) == [another, ack, invite, cancel]


@pytest.mark.plain_alone
@pytest.mark.parametrize(("held", "held_bytes"), [(4, 1_000_000), (100, 1200)])
def test_backlog_is_bounded_and_what_is_least_urgent_goes_first(
    desk: Desk, backlog: Backlog, monkeypatch: pytest.MonkeyPatch, held: int, held_bytes: int
) -> None:
    """Design: invariant 1. Calls for help are never dropped: those that have no room stay in the socket."""
    monkeypatch.setattr(backlog_module, "HELD", held)
    monkeypatch.setattr(backlog_module, "HELD_BYTES", held_bytes)
    stranger = [desk.request(b"OPTIONS", DOMAIN, body=b"x" * 100) for _ in range(9)]
    for at, data in enumerate(stranger):
        backlog.put(data, STRANGER, float(at))
        assert backlog.room in (1, held - backlog.waiting), "no more are read than there is room for"
    left = backlog.waiting
    assert backlog.waiting <= held
    assert backlog.bytes <= held_bytes
    assert backlog.counts == {"crowded": 9 - left}
    helps = [desk.request(b"INVITE", HELP, call_id=b"%d" % number, body=b"x" * 100) for number in range(9)]
    read = 0
    while backlog.room:
        backlog.put(helps[read], STRANGER, 9.0)
        read += 1
    assert (backlog.waiting_of(Rank.STRANGER), backlog.waiting_of(Rank.HELP)) == (0, read)
    assert backlog.counts == {"crowded": 9}
    assert out(backlog) == helps[:read]
    assert backlog.room


@pytest.mark.plain_alone
def test_what_is_dropped_is_of_the_lowest_rank_that_waits_and_never_a_call_for_help(
    desk: Desk, backlog: Backlog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one more that is part of a call has the least urgent of those that wait dropped; in the end it is itself. A call for
    help still has the latest of those dropped, whoever fills the node with them."""
    messages = of_ranks(desk)
    for at, (_, data, flow) in enumerate(messages):
        backlog.put(data, flow, float(at))
    monkeypatch.setattr(backlog_module, "HELD", len(messages))
    left = list(Rank)
    for number in range(2 * len(messages)):
        assert [rank for rank in Rank if backlog.waiting_of(rank)] == left
        backlog.put(desk.request(b"BYE", CALL, call_id=b"more%d" % number, to_tag=b"t"), ROUTER, 9.0)
        if left[-1] > Rank.PART:
            left.pop()
    assert (backlog.waiting_of(Rank.HELP), backlog.waiting_of(Rank.PART)) == (1, len(messages) - 1)
    for number in range(1, len(messages)):
        assert backlog.room
        backlog.put(desk.request(b"INVITE", HELP, call_id=b"help%d" % number), STRANGER, 9.0)
        assert backlog.waiting_of(Rank.PART) == len(messages) - 1 - number
        if number == 1:
            assert [b"more" in one.data for one in backlog._lines[Rank.PART]] == [False] + [True] * (len(messages) - 3)
    assert (backlog.room, backlog.waiting_of(Rank.HELP)) == (0, len(messages))


def new_calls(desk: Desk, count: int, *, user: bytes = CALL) -> list[bytes]:
    return [desk.request(b"INVITE", user, call_id=b"new-%d" % number) for number in range(count)]


def test_in_a_queue_that_stays_the_latest_goes_first_and_who_waited_longest_has_a_turn(desk: Desk, backlog: Backlog) -> None:
    """Those are refused, so that no more than one of STEP messages is a refusal."""
    desk.engine.shedder.has_queue = True
    calls = new_calls(desk, 3 * STEP)
    for at, data in enumerate(calls):
        backlog.put(data, ROUTER, at / 100)
    latest, longest = calls[::-1], iter(calls)
    expected = [next(longest) if turn % STEP == 0 else latest.pop(0) for turn in range(1, len(calls) + 1)]
    assert out(backlog) == expected
    desk.engine.shedder.has_queue = False
    for at, data in enumerate(calls):
        backlog.put(data, ROUTER, float(at))
    assert out(backlog) == calls, "what a hiccup leaves is looked at in its order"


def test_queue_that_stays_has_room_for_some_new_calls_and_of_others_nothing_is_kept(desk: Desk, backlog: Backlog) -> None:
    """Whoever sends them. What was begun, what is part of a call and calls for help always find room (design: invariant 1)."""
    shedder = desk.engine.shedder
    calls = new_calls(desk, ROOM + 10)
    for data in calls:
        come(backlog, data, ROUTER, 0.0)
    assert (backlog.waiting, backlog.counts) == (ROOM + 10, {}), "it is not known yet that it stays"
    shedder.has_queue = True
    for flow in (ROUTER, TRUNK, STRANGER):
        come(backlog, desk.request(b"INVITE", CALL, call_id=b"more"), flow, 0.1)
    assert (backlog.waiting_of(Rank.NEW), backlog.waiting) == (ROOM, ROOM)
    assert backlog.counts == {"unread": 10 + 3}
    assert backlog.dropped == 13
    for _, data, flow in of_ranks(desk):
        if flow != STRANGER or HELP in data:
            come(backlog, data.replace(b"Call-ID: ", b"Call-ID: x"), flow, 0.1)
    assert [backlog.waiting_of(rank) for rank in Rank] == [1, 1, 1, 1, ROOM, 1, 0]
    assert backlog.counts == {"unread": 14}
    taken = out(backlog)
    assert set(calls[:10]).isdisjoint(taken)
    assert set(calls[10:]) < set(taken)


def test_who_has_been_repeated_since_waits_no_longer_in_a_queue_that_stays(desk: Desk, backlog: Backlog) -> None:
    """RFC 3261 §17.1.1.2. His copy is not held to be one, and comes before those who waited longer."""
    desk.engine.shedder.has_queue = True
    early, late, third = new_calls(desk, 3)
    come(backlog, early, ROUTER, 0.0)
    come(backlog, late, ROUTER, STALE_S)
    assert backlog.waiting == 2
    come(backlog, early, ROUTER, STALE_S + 0.01)
    assert (backlog.waiting, backlog.counts) == (2, {"unread": 1})
    come(backlog, third, ROUTER, STALE_S + 0.02)
    assert out(backlog)[:2] == [third, early]


def test_cancel_comes_behind_a_new_call_that_waits_in_any_order(desk: Desk, backlog: Backlog) -> None:
    """RFC 3261 §9.2. What the CANCEL of a call is looked at before would ring for nobody."""
    desk.engine.shedder.has_queue = True
    invites = new_calls(desk, 2 * STEP)
    for at, data in enumerate(invites):
        backlog.put(data, ROUTER, at / 100)
        backlog.put(data.replace(b"INVITE", b"CANCEL"), ROUTER, at / 100)
    taken = out(backlog)
    assert len(taken) == 2 * len(invites)
    assert all(taken.index(data) < taken.index(data.replace(b"INVITE", b"CANCEL")) for data in invites)


def test_nobody_gets_before_others_by_the_number_in_a_request_that_calls_nobody(desk: Desk, backlog: Backlog) -> None:
    for method in (b"BYE", b"CANCEL", b"OPTIONS", b"REGISTER"):
        backlog.put(desk.request(method, HELP, call_id=method, to_tag=b"t"), STRANGER, 0.0)
    assert backlog.waiting_of(Rank.STRANGER) == backlog.waiting == 4


def test_what_waits_is_forgotten_when_the_node_ends(desk: Desk, backlog: Backlog) -> None:
    invite = desk.request(b"INVITE", CALL)
    backlog.put(invite, ROUTER, 0.0)
    backlog.clear()
    assert (backlog.waiting, backlog.counts) == (0, {"closed": 1})
    backlog.put(invite, ROUTER, 0.0)
    assert out(backlog) == [invite]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.integers(1, 12))
def test_all_that_is_read_comes_out_once_and_in_order_within_its_rank(kinds: Sequence[int], every: int) -> None:
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    backlog, given, taken = Backlog(desk.engine.shedder), list[tuple[Rank, bytes]](), list[bytes]()
    for at, number in enumerate(kinds):
        rank, data, flow = of_ranks(desk)[number]
        backlog.put(data, flow, float(at))
        given.append((rank, data))
        if at % every == 0 and (one := backlog.take()) is not None:
            taken.append(one.data)
    taken += out(backlog)
    for rank in Rank:
        mine = [data for of, data in given if of is rank]
        assert [data for data in taken if data in mine] == mine
    assert len(taken) == len(given)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 6), st.floats(0.0, 0.05), st.booleans()), min_size=1, max_size=120), st.integers(1, 6))
def test_whatever_comes_to_a_queue_is_looked_at_once_or_counted_and_new_calls_alone_are_dropped(
    came: Sequence[tuple[int, float, bool]], every: int
) -> None:
    """Design: invariants 1 and 10. Also where the queue comes and goes."""
    desk = desk_of(Rates())
    assert desk.register(CONTACT).status == 200
    backlog, given, taken, at = Backlog(desk.engine.shedder), list[tuple[Rank, bytes]](), list[bytes](), 0.0
    backlog_room = [desk.request(b"INVITE", CALL) for _ in range(ROOM - 3)]
    for data in backlog_room:
        backlog.put(data, ROUTER, at)
    for turn, (number, later_s, has_queue) in enumerate(came):
        at, desk.engine.shedder.has_queue = at + later_s, has_queue
        rank, data, flow = of_ranks(desk)[number]
        come(backlog, data, flow, at)
        given.append((rank, data))
        if turn % every == 0 and (one := backlog.take()) is not None:
            taken.append(one.data)
    taken += out(backlog)
    assert len(taken) == len(set(taken))
    assert len(taken) + backlog.counts["unread"] == len(given) + len(backlog_room)
    assert set(backlog.counts) <= {"unread"}
    assert {data for rank, data in given if data not in taken} <= {
        data for rank, data in given if rank in (Rank.NEW, Rank.STRANGER)
    }
    assert (backlog.waiting, backlog.bytes) == (0, 0)
