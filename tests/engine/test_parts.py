"""Budgets of what belongs to calls: a flood of it from a customer's address takes nobody's time, and cuts no call."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from sipproxy.engine.actions import TakeSlot
from sipproxy.engine.backlog import Backlog, Rank
from sipproxy.engine.crew import Took
from sipproxy.engine.parts import BURST_S, CHANNEL_PER_S, PART_BYTES, REST_BURST, REST_PER_S, SETUPS
from sipproxy.engine.settings import Rates
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Request, Response
from tests.engine import test_edge
from tests.engine.desk import ROUTER, STRANGER, Desk
from tests.engine.shedding import CALL, CONTACT, TRUNK
from tests.engine.test_edge import in_dialog
from tests.engine.test_spending import crew
from tests.sim.conftest import make_town

if TYPE_CHECKING:
    from collections.abc import Sequence

desk_with_peer = test_edge.desk
CHANNELS = 2  # of alice's line
RATES = Rates(credit_bytes=10_000_000)
RATE = SETUPS * RATES.line_per_s + CHANNELS * CHANNEL_PER_S
BURST = SETUPS * RATES.line_burst + CHANNELS * CHANNEL_PER_S * BURST_S
OF_CALL = CHANNEL_PER_S * BURST_S


def a_desk(**options: object) -> Desk:
    desk = Desk(make_town(**{"rates": RATES, **options}).world.engine)
    assert desk.register(CONTACT).status == 200
    return desk


def taken(desk: Desk, data: bytes, count: int = 1, flow: Flow = ROUTER) -> int:
    """How many of so many copies of a message are looked at now."""
    desk.engine.desk.now = desk.now
    return sum(desk.engine.shedder.check(data, flow) is None for _ in range(count))


def part(desk: Desk, method: bytes = b"INFO", call_id: bytes = b"made up", **options: bytes) -> bytes:
    return desk.request(method, CALL, call_id=call_id, to_tag=b"t", **options)


def flooded(desk: Desk, flow: Flow = ROUTER) -> Desk:
    """With nothing left of the budget of the line."""
    taken(desk, part(desk), 2 * BURST, flow)
    assert taken(desk, part(desk), 1, flow) == 0
    return desk


def call(desk: Desk, call_id: bytes = b"live") -> Request:
    """A call that alice has begun: its INVITE as it left."""
    headers = (desk.credentials(b"INVITE", CALL), (b"Contact", CONTACT))
    desk.receive(desk.request(b"INVITE", CALL, call_id=call_id, headers=headers))
    [take] = [action for action in desk.actions if isinstance(action, TakeSlot)]
    desk.actions = desk.engine.slot_result(take.slot, taken=True, used=1, now=desk.now)
    [sent] = [message for message in desk.sent() if isinstance(message, Request)]
    return sent


def test_parts_by_a_customers_flow_are_taken_up_to_what_his_channels_can_need() -> None:
    desk = a_desk()
    methods = (b"INFO", b"BYE", b"ACK", b"CANCEL", b"UPDATE")
    data = [*(part(desk, method) for method in methods), b"SIP/2.0 200 OK\r\nCall-ID: x\r\n\r\n"]
    assert sum(taken(desk, data[number % len(data)]) for number in range(2 * BURST)) == BURST
    assert desk.engine.shedder.counts == {("parts", "part"): BURST}
    desk.tick(1.0)
    assert taken(desk, data[0], BURST) == RATE
    assert desk.receive(data[1]) == [], "what is too much is not answered"


def honest(desk: Desk, channels: int, seconds: int) -> None:
    """All channels are in use; the parties of each call press keys, whoever called, and sessions are refreshed; calls end and
    begin all the time."""
    info, ok = part(desk), b"SIP/2.0 200 OK\r\nCall-ID: x\r\nCSeq: 1 INFO\r\n\r\n"
    setup: Sequence[bytes] = (part(desk, b"ACK"), part(desk, b"ACK"), part(desk, b"BYE"), ok, ok)
    for tenth in range(10 * seconds):
        for _ in range(channels):
            assert taken(desk, info) == taken(desk, ok) == 1
        if tenth % 10 == 0:
            assert all(taken(desk, part(desk, method)) for method in (b"INVITE", b"UPDATE", b"ACK") for _ in range(channels))
            assert all(taken(desk, data) for data in setup for _ in range(channels))
        desk.tick(0.1)


def test_no_pbx_meets_its_budget_though_all_of_its_channels_do_what_they_can() -> None:
    desk = a_desk()
    honest(desk, CHANNELS, 60)
    snapshot = desk.engine.desk.snapshot
    lines = {**snapshot.lines, "L1": replace(snapshot.lines["L1"], channels=30)}
    desk.engine.desk.snapshot = replace(snapshot, lines=lines)
    honest(desk, 30, 60)
    assert not desk.engine.shedder.counts
    assert desk.engine.shedder.parts.budgets.find("L1").tokens > BURST  # type: ignore[union-attr]


def test_live_call_goes_on_while_others_write_its_customers_address_into_what_they_send() -> None:
    desk = a_desk()
    call(desk)
    flooded(desk)
    for method in (b"INFO", b"BYE", b"ACK", b"CANCEL", b"UPDATE", b"PRACK", b"INVITE"):
        assert taken(desk, part(desk, method, b"live")) == 1, method
    assert taken(desk, b"SIP/2.0 200 OK\r\ni: live\r\nCSeq: 1 BYE\r\n\r\n") == 1
    assert taken(desk, desk.request(b"INVITE", b"sip:112@sip.test")) == 1, "nor is a call for help refused"


def test_one_call_takes_no_more_than_a_call_can_need_and_nothing_from_another() -> None:
    desk = a_desk()
    call(desk, b"one")
    call(desk, b"two")
    flooded(desk)
    assert taken(desk, part(desk, call_id=b"one"), 2 * OF_CALL) == OF_CALL
    assert taken(desk, part(desk, call_id=b"two")) == 1
    assert taken(desk, part(desk, call_id=b"one"), 2 * RATES.source_burst, STRANGER) == RATES.source_burst, "whoever sends it"
    desk.tick(1.0)
    flooded(desk)
    assert taken(desk, part(desk, call_id=b"one"), OF_CALL) == CHANNEL_PER_S


def test_part_that_is_long_counts_as_several() -> None:
    """A transaction keeps it for half a minute: by datagrams full to the brim one customer could take hundreds of megabytes."""
    desk = a_desk()
    call(desk)
    long = desk.request(b"INFO", CALL, call_id=b"live", to_tag=b"t", body=b"x" * 60_000)
    count = 1 + len(long) // PART_BYTES
    assert count == 15
    assert taken(desk, long, BURST) == BURST // count + OF_CALL // count
    assert taken(desk, part(desk, call_id=b"live"), BURST) == BURST % count + OF_CALL % count, "the rest is for others"


def test_call_that_has_ended_has_room_for_repetitions() -> None:
    desk = a_desk()
    call(desk)
    [known] = desk.engine.calls.of(b"live")
    known.stop("operator")
    desk.receive(b"SIP/2.0 487 Gone\r\n\r\n")
    known.end("cancelled", released_by="caller", cause=16)
    flooded(desk)
    assert taken(desk, part(desk, b"BYE", b"live"), 100) == REST_BURST
    desk.tick(1.0)
    flooded(desk)
    assert taken(desk, part(desk, b"BYE", b"live"), 100) == REST_PER_S


def test_answer_to_a_request_of_ours_is_known_by_its_branch() -> None:
    """A PBX with a fixed address is asked by OPTIONS whether it is there; nobody else knows the branch."""
    desk = a_desk()
    asked = call(desk, b"other")
    branch = asked.via.branch or b""
    flooded(desk)
    answer = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=%b\r\nCall-ID: unknown\r\nCSeq: 1 %b\r\n\r\n"
    assert taken(desk, answer % (branch, b"INVITE"), 100) == REST_BURST
    assert taken(desk, answer % (branch, b"OPTIONS")) == 0
    assert taken(desk, answer % (branch + b"x", b"INVITE")) == 0


def test_customer_of_another_nodes_call_is_known_by_the_token_that_he_was_given(desk_with_peer: Desk) -> None:
    desk = desk_with_peer
    data = in_dialog(desk, b"INFO")
    flooded(desk, test_edge.TCP)
    assert taken(desk, data, 1, test_edge.TCP) == 1
    assert taken(desk, data.replace(b";e=", b";e=x"), 1, test_edge.TCP) == 0
    assert taken(desk, data.replace(b"Call-ID: in", b"Call-ID: on"), 1, test_edge.TCP) == 0, "it is for that call alone"
    assert taken(desk, data, 2000, test_edge.TCP) < 1500


def test_flood_by_a_call_of_ones_own_leaves_room_for_the_transactions_of_others() -> None:
    """Ten thousand INFO a second filled the table of transactions within half a minute, and all calls were refused."""
    desk = a_desk()
    sent = call(desk)
    lines = (b"Via", b"From", b"Call-ID", b"CSeq")
    copied = b"".join(line + b"\r\n" for line in sent.raw.split(b"\r\n") if line.startswith((*lines, b"Record-Route")))
    to = b"To: <sip:03023125001@sip.test>;tag=callee\r\n"
    contact = b"Contact: <sip:192.0.2.9>\r\nContent-Length: 0\r\n\r\n"
    carrier = Flow("UDP", 0, *make_town().world.engine.desk.settings.trunks[0].hop[1:3])
    [answer] = [m for m in desk.receive(b"SIP/2.0 200 OK\r\n" + copied + to + contact, carrier) if isinstance(m, Response)]
    routes = tuple((b"Route", b"<%s>" % route.uri.raw) for route in reversed(answer.record_routes))
    desk.receive(desk.request(b"ACK", CALL, call_id=b"live", to_tag=b"callee", cseq=answer.cseq.number, headers=routes))
    taken_in = 0
    for number in range(3000):
        data = desk.request(b"INFO", b"sip:192.0.2.9", call_id=b"live", to_tag=b"callee", cseq=5000 + number, headers=routes)
        taken_in += any(isinstance(message, Request) for message in desk.receive(data))  # the carrier does not answer
    table = desk.engine.desk.transactions
    assert taken_in == BURST - 1 + OF_CALL
    assert len(table.clients) <= len(table.servers) <= taken_in + 5


def test_parts_of_a_flood_wait_behind_all_others_while_the_node_is_late() -> None:
    desk = a_desk()
    call(desk)
    backlog = Backlog(desk.engine.shedder)

    def rank_of(data: bytes, flow: Flow = ROUTER) -> Rank:
        backlog.put(data, flow, desk.mono)
        [found] = [rank for rank in Rank if backlog.waiting_of(rank)]
        backlog.take()
        return found

    assert rank_of(part(desk)) is Rank.PART
    flooded(desk)
    assert rank_of(part(desk)) is Rank.STRANGER
    assert rank_of(part(desk, call_id=b"live")) is Rank.PART
    assert taken(desk, part(desk, call_id=b"live"), 2 * OF_CALL) == OF_CALL
    assert rank_of(part(desk, call_id=b"live")) is Rank.STRANGER
    assert rank_of(desk.request(b"INVITE", b"sip:112@sip.test")) is Rank.HELP
    assert rank_of(part(desk), TRUNK) is Rank.PART
    desk.tick(1.0)
    desk.engine.desk.now = desk.now
    assert rank_of(part(desk)) is Rank.PART, "its budget is coming back"


def test_what_parts_are_counted_by_is_bounded() -> None:
    desk = a_desk(rates=replace(RATES, sources=3))
    for number in range(5):
        data = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP h;branch=%b\r\nCSeq: 1 INVITE\r\n\r\n"
        branch = b"z9hG4bK%d" % number
        desk.engine.desk.transactions.clients[branch, b"INVITE"] = None  # type: ignore[assignment]
        flooded(desk)
        assert taken(desk, data % branch) == 1, number
    assert (len(desk.engine.shedder.parts.budgets), desk.engine.shedder.parts.budgets.evicted) == (3, 3)


def test_parts_of_a_line_have_one_budget_wherever_its_messages_come_to() -> None:
    desks = crew(RATES)
    assert desks[0].register(CONTACT).status == 200
    for desk in desks[1:]:
        for user, binding in desks[0].engine.desk.location.items():
            desk.engine.desk.location.put(user, binding)
    told = sum(taken(desks[number % 3], part(desks[0])) for number in range(3 * BURST))
    assert BURST <= told <= BURST + 2 * BURST // 10
    alone = desks[0]
    alone.tick(1000.0)
    assert taken(alone, part(alone)) == 1
    alone.engine.crew.hear(Took("parts", "L1", BURST), alone.now)
    assert taken(alone, part(alone)) == 0
    alone.engine.crew.hear(Took("parts", "L7", 5), alone.now)


@pytest.mark.parametrize("method", [b"BYE", b"ACK"])
def test_part_of_a_customer_whose_line_is_gone_has_a_budget_all_the_same(method: bytes) -> None:
    desk = a_desk()
    snapshot = desk.engine.desk.snapshot
    desk.engine.desk.snapshot = replace(snapshot, lines={}, accounts={})
    assert 0 < taken(desk, part(desk, method), 2 * BURST) < 2 * BURST
