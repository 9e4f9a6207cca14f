"""Datagrams that waited in a node's sockets are handed on by their urgency (docs/design.md, "Under load")."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import pytest
from waiting import until

from sipproxy.engine import backlog as backlog_module
from sipproxy.engine.settings import Rates
from sipproxy.net import intake, udp
from sipproxy.net.batch import BATCH
from sipproxy.net.intake import QUEUE_S
from sipproxy.net.resolver import Resolver
from sipproxy.net.transports import Transports
from sipproxy.sip.flow import Flow
from tests.engine.desk import DOMAIN, Desk
from tests.engine.shedding import CALL, CONTACT, desk_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sipproxy.engine.backlog import Backlog
    from sipproxy.engine.kinds import Kind

HELP = b"sip:112@sip.example"


class Came(NamedTuple):
    data: bytes
    port: int  # of the listener's side of the sender
    waited_s: float
    kind: Kind | None


class Site:
    """Two listeners with one engine's shedder before them, and a stranger who sends to them. `hold` seconds pass in the first
    message, as in a node that has to do something else."""

    def __init__(self) -> None:
        self.desk: Desk = desk_of(Rates())
        self.came: list[Came] = []
        self.fault = b""
        self.transports = Transports(Resolver(), self._take, lambda *_: None, lambda *_: None, lambda *_: None)
        bound = self.transports.bind([("UDP", "127.0.0.1", 0), ("UDP", "127.0.0.2", 0)])
        self.transports.read_ahead(self.desk.engine.shedder)
        self.addresses = [(host, port) for _, host, port in bound]
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind(("127.0.0.1", 0))

    def _take(self, data: bytes, flow: Flow, waited_s: float, kind: Kind | None) -> None:
        self.came.append(Came(data, flow.port, waited_s, kind))
        if data == self.fault:
            raise RuntimeError("a fault of ours")

    @property
    def backlog(self) -> Backlog:
        assert self.transports._intake is not None
        return self.transports._intake.backlog

    def send(self, *messages: bytes, listener: int = 0) -> None:
        for data in messages:
            self.peer.sendto(data, self.addresses[listener])

    def invites(self, count: int) -> list[bytes]:
        return [self.desk.request(b"INVITE", CALL, call_id=b"%d" % number) for number in range(count)]

    @property
    def data(self) -> list[bytes]:
        return [one.data for one in self.came]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    yield site
    await site.transports.close()
    site.peer.close()


async def test_call_for_help_that_waits_goes_before_all_that_waits_in_any_socket(site: Site) -> None:
    """Design: invariant 1."""
    invites = site.invites(4 * udp.DRAIN)
    site.send(*invites[udp.DRAIN :])
    site.send(*invites[: udp.DRAIN], listener=1)
    for listener in (0, 1):
        site.send(site.desk.request(b"INVITE", HELP, call_id=b"help%d" % listener), listener=listener)
    time.sleep(4 * QUEUE_S)  # noqa: ASYNC251  nobody reads meanwhile
    await site.transports.start()
    await until(lambda: len(site.came) == len(invites) + 2)
    helps = [number for number, one in enumerate(site.came) if HELP in one.data]
    assert helps == [0, 1], "all is read before any is handed on"
    assert min(one.waited_s for one in site.came) >= 4 * QUEUE_S
    assert all(one.kind is not None for one in site.came)


async def test_what_does_not_wait_is_handed_on_as_it_comes(site: Site) -> None:
    await site.transports.start()
    site.send(*site.invites(1))
    await until(lambda: site.came)
    assert [one.kind for one in site.came] == [None] or site.came[0].waited_s >= QUEUE_S, "nobody had to look at it"


async def test_what_comes_goes_behind_the_answers_that_came_with_it_as_long_as_some_are_awaited(site: Site) -> None:
    loop, before = asyncio.get_running_loop(), []
    site.transports.read_ahead(site.desk.engine.shedder, awaited=("slot",))
    store, node = socket.socketpair()

    def read() -> None:
        node.recv(1)
        before.append(len(site.came))

    site.send(*site.invites(1))
    store.send(b"+")
    await site.transports.start()
    loop.add_reader(node.fileno(), read)
    try:
        await until(lambda: site.came and before)
    finally:
        loop.remove_reader(node.fileno())
        store.close()
        node.close()
    assert before == [0]


async def test_all_that_waited_comes_in_order_and_every_datagram_is_accounted_for(site: Site) -> None:
    invites = site.invites(udp.AHEAD + 6)
    site.send(*invites, *invites[:20])
    time.sleep(2 * QUEUE_S)  # noqa: ASYNC251  nobody reads meanwhile
    await site.transports.start()
    await until(lambda: len(site.came) + site.transports.counters().get(("UDP", "dropped_repeated"), 0) == len(invites) + 20)
    assert list(dict.fromkeys(site.data)) == invites


@pytest.mark.plain_alone
async def test_of_what_a_queue_has_no_room_for_new_calls_alone_are_passed_over(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design: invariants 1 and 10. What is urgent comes wherever it is among them, and each datagram is accounted for."""
    monkeypatch.setattr(udp, "AHEAD", 10_000)  # all is read before any is looked at
    desk = site.desk
    peer = Flow("UDP", 0, *site.peer.getsockname())
    desk.register(CONTACT, flow=peer)
    desk.engine.shedder.has_queue = True
    site.backlog.put(desk.request(b"INVITE", CALL, call_id=b"old"), peer, time.monotonic() - 2 * backlog_module.STALE_S)
    calls = [desk.request(b"INVITE", CALL, call_id=b"%d" % number) for number in range(backlog_module.ROOM + 50)]
    urgent = [desk.request(b"INVITE", HELP, call_id=b"help%d" % number) for number in range(5)]
    urgent += [desk.request(b"INVITE", CALL, call_id=b"again%d" % number, to_tag=b"t") for number in range(5)]
    site.send(*calls[:-40], *urgent[::2], b"\r\n\r\n", *calls[-40:], b"", *urgent[1::2])
    time.sleep(2 * QUEUE_S)  # noqa: ASYNC251  nobody reads meanwhile
    await site.transports.start()
    await until(lambda: len(site.came) == backlog_module.ROOM + len(urgent))
    assert {one.data for one in site.came} == {*calls[:-50], *urgent}
    assert {one.port for one in site.came} == {site.peer.getsockname()[1]}
    assert min(one.waited_s for one in site.came) >= 2 * QUEUE_S
    counters = site.transports.counters()
    assert [counters["UDP", what] for what in ("dropped_unread", "keepalives")] == [1 + 50, 2]
    assert counters["UDP", "received"] == len(calls) + len(urgent) + 2


@pytest.mark.plain_alone
@pytest.mark.parametrize("ahead", [1, 3, BATCH + 1])
async def test_a_wake_up_reads_so_many_ahead_and_leaves_the_others_to_the_next(
    site: Site, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    monkeypatch.setattr(udp, "AHEAD", ahead)
    site.send(*site.invites(2 * BATCH))
    time.sleep(2 * QUEUE_S)  # noqa: ASYNC251  nobody reads meanwhile
    listener = site.transports._listeners[0]
    assert isinstance(listener, udp.UdpListener)
    listener._wake()
    assert (site.backlog.waiting, listener.counters["received"]) == (1 + ahead, 1 + ahead)
    listener._wake()
    assert site.backlog.waiting == min(1 + 2 * ahead, 2 * BATCH)


async def test_fault_in_one_message_does_not_hold_up_the_others(site: Site) -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context["exception"]))
    invites = site.invites(20)
    site.fault = invites[3]
    site.send(*invites)
    time.sleep(2 * QUEUE_S)  # noqa: ASYNC251  nobody reads meanwhile
    await site.transports.start()
    await until(lambda: len(site.came) == len(invites))
    assert (site.data, len(faults)) == (invites, 1)


@pytest.mark.plain_alone
async def test_socket_is_not_read_while_only_calls_for_help_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design: invariant 1. They are dropped for no bound: what has no room stays in the socket until there is some."""
    monkeypatch.setattr(backlog_module, "HELD", 3)
    helps = [site.desk.request(b"INVITE", HELP, call_id=b"%d" % number) for number in range(20)]
    site.send(*(site.desk.request(b"OPTIONS", DOMAIN) for _ in range(5)), *helps)
    time.sleep(2 * QUEUE_S)  # noqa: ASYNC251  nobody reads meanwhile
    await site.transports.start()
    await until(lambda: set(helps) <= set(site.data))
    assert [data for data in site.data if HELP in data] == helps
    assert site.transports.counters()["UDP", "dropped_crowded"] > 0


@pytest.mark.plain_alone
async def test_call_for_help_goes_before_what_fills_the_node_as_part_of_calls(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design: invariant 1. A customer's device that sends nothing but BYE keeps none from help, nor who writes its address."""
    monkeypatch.setattr(backlog_module, "HELD", 8)
    site.desk.register(CONTACT, flow=Flow("UDP", 0, *site.peer.getsockname()))
    parts = [site.desk.request(b"BYE", CALL, call_id=b"%d" % number, to_tag=b"t") for number in range(40)]
    help_ = site.desk.request(b"INVITE", HELP)
    site.send(*parts, help_, *parts)
    time.sleep(2 * QUEUE_S)  # noqa: ASYNC251  nobody reads meanwhile
    await site.transports.start()
    await until(lambda: len(site.came) >= 8)
    assert site.data == [help_, *parts[:7]], "of those the latest go, as from a socket that is full"
    assert site.transports.counters()["UDP", "dropped_crowded"] == 2 * len(parts) - 7


@pytest.mark.skipif(sys.platform != "linux", reason="ICMP errors of an unconnected socket are a Linux service")
async def test_what_icmp_says_is_told_at_once_also_of_a_socket_in_which_datagrams_wait(site: Site) -> None:
    """RFC 3261 §18.4. A call's next route is tried while others wait, and what stood behind the error is read."""
    listener = site.transports._listeners[0]
    assert isinstance(listener, udp.UdpListener)
    waiting, first, second = site.invites(3)
    site.backlog.put(waiting, Flow("UDP", 0, *site.peer.getsockname()), time.monotonic())
    gone = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    gone.bind(("127.0.0.1", 0))
    nobody = gone.getsockname()
    gone.close()
    site.send(first)
    listener._socket.sendto(b"to nobody", nobody)
    site.send(second)
    listener._wake()
    assert listener.counters["unreachable"] == 1
    assert site.backlog.waiting == 3


@pytest.mark.plain_alone
async def test_other_work_of_the_node_has_its_turn_while_messages_are_handed_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timers and what is read of other sockets wait for TURN_S and a message at most, however many messages wait."""
    monkeypatch.setattr(intake, "TURN_S", 1e-9)
    invites, turns = site.invites(20), list[int]()
    loop = asyncio.get_running_loop()

    def turn() -> None:
        turns.append(len(site.came))
        if len(site.came) < len(invites):
            loop.call_soon(turn)

    site.send(*invites)
    time.sleep(2 * QUEUE_S)  # noqa: ASYNC251  nobody reads meanwhile
    await site.transports.start()
    turn()
    await until(lambda: len(site.came) == len(invites))
    assert site.data == invites
    assert max(later - earlier for earlier, later in pairwise(turns)) == 1


@pytest.mark.plain_alone
async def test_what_waits_when_the_node_ends_is_handed_on_no_more(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "TURN_S", 1e-9)
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    invites = site.invites(20)
    site.send(*invites)
    time.sleep(2 * QUEUE_S)  # noqa: ASYNC251  nobody reads meanwhile
    await site.transports.start()
    while not site.came:  # noqa: ASYNC110  one is handed on in a turn of the loop
        await asyncio.sleep(0)
    await site.transports.close()
    came = len(site.came)
    assert came < len(invites)
    assert site.transports.counters()["UDP", "dropped_closed"] == len(invites) - came
    for _ in range(10):
        await asyncio.sleep(0)
    assert (len(site.came), faults) == (came, [])
