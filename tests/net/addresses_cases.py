"""Run by test_addresses.py in a network of their own: listeners on an address that goes and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest
import structlog

from sipproxy.lifecycle import an_address_is_here
from sipproxy.net.addresses import follow_addresses
from sipproxy.net.resolver import Resolver
from sipproxy.net.transports import Transports
from sipproxy.process import Stop
from sipproxy.sip.flow import Flow, Hop
from sipproxy.systemd import Notifier
from tests.net.waiting import until
from tests.networks import INSIDE, datagram_socket, exchange, ip

pytestmark = pytest.mark.skipif(INSIDE not in os.environ, reason="run by test_addresses.py")
KEPT, MOVING, MOVING6 = "192.0.2.1", "192.0.2.2", "2001:db8::2"
MESSAGE = b"OPTIONS sip:a SIP/2.0\r\nContent-Length: 0\r\n\r\n"
WAIT_S = 30.0


class Parts:
    """Listeners on both addresses and all that they tell; each datagram is answered, as is each message on a connection."""

    def __init__(self) -> None:
        self.failed: list[object] = []
        self.closed: list[Flow] = []
        self.transports = Transports(Resolver(), self.echo, self.failed.append, lambda *_: None, self.closed.append)

    def echo(self, data: bytes, flow: Flow, *_: object) -> None:
        self.transports.send(flow, data, None)

    async def connect(self, listener: int, host: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(host, self.bound[listener][2])
        writer.write(MESSAGE)
        assert await asyncio.wait_for(reader.readexactly(len(MESSAGE)), WAIT_S) == MESSAGE
        return reader, writer

    async def heard(self, listener: int, *, tries: int = 20) -> bool:
        _, host, port = self.bound[listener]
        with datagram_socket("::1" if ":" in host else "127.0.0.1") as sock:
            return bool(await asyncio.to_thread(exchange, sock, MESSAGE, (host, port), tries=tries, wait_s=0.5))

    async def start(self) -> None:
        await self.listen([(transport, host, 0) for host in (KEPT, MOVING, MOVING6) for transport in ("UDP", "TCP")])

    async def listen(self, wanted: list[tuple[str, str, int]]) -> None:
        self.bound = self.transports.bind(wanted)
        await self.transports.start()


def add(*addresses: str) -> None:
    for address in addresses:
        length, further = (
            ("128", ("nodad",)) if ":" in address else ("32", ())
        )  # there at once, not when a worker of the kernel ran
        ip("addr", "replace", f"{address}/{length}", "dev", "lo", *further)


async def test_listeners_go_and_come_with_their_address_and_others_are_untouched() -> None:
    ip("link", "set", "lo", "up")
    add(KEPT, MOVING, MOVING6)  # for each event loop anew
    parts = Parts()
    await parts.start()
    transports = parts.transports
    with structlog.testing.capture_logs() as logs:
        watch = asyncio.ensure_future(follow_addresses(transports, structlog.get_logger("node")))
        (reader, writer), (lost, other) = await parts.connect(1, KEPT), await parts.connect(3, MOVING)
        assert all([await parts.heard(listener) for listener in (0, 2, 4)])
        received = transports.counters()["UDP", "received"]

        ip("addr", "del", f"{MOVING}/32", "dev", "lo")
        ip("addr", "del", f"{MOVING6}/128", "dev", "lo")
        await until(lambda: len(transports.away) == 4, WAIT_S)
        assert [flow.listener for flow in parts.closed] == [3], "who had a connection there is told gone"
        for transport, listener in (("UDP", 2), ("TCP", 3)):
            transports.send(Hop(transport, KEPT, 5060, listener), MESSAGE, transport)
        await until(lambda: sorted(map(str, parts.failed)) == ["TCP", "UDP"], WAIT_S)
        writer.write(MESSAGE)
        assert await asyncio.wait_for(reader.readexactly(len(MESSAGE)), WAIT_S) == MESSAGE, "the same connection"
        assert await parts.heard(0)

        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as squatter:  # the listener is opened once its port is free
            squatter.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            squatter.bind(("::", parts.bound[4][2]))
            add(MOVING, MOVING6)
            await until(lambda: len(transports.away) == 1, WAIT_S)
            await until(lambda: any(entry["change"] == "Address already in use" for entry in logs), WAIT_S)
        await until(lambda: not transports.away, WAIT_S)
        assert all([await parts.heard(listener) for listener in (0, 2, 4)])
        _, again = await parts.connect(3, MOVING)
        assert transports.counters()["UDP", "received"] >= received + 4, "what is counted never falls"
        watch.cancel()
    for each in (writer, other, again):
        each.close()
    assert lost is not reader
    await transports.close()
    names = [f"{transport.lower()} {host}:{port}" for transport, host, port in parts.bound]
    changes = [(names.index(entry["listener"]), entry["change"]) for entry in logs]
    assert [change for change in changes if change[1] == "closed"] == [(n, "closed") for n in (2, 3, 4, 5)]
    assert sorted(change for change in changes if change[1] == "opened") == [(n, "opened") for n in (2, 3, 4, 5)]
    assert [(n, change) for n, change in changes if change not in ("opened", "closed")] == [(4, "Address already in use")]


async def test_listeners_whose_address_is_not_there_at_the_start_open_when_it_comes() -> None:
    ip("link", "set", "lo", "up")
    add(KEPT)
    for address in (f"{MOVING}/32", f"{MOVING6}/128"):  # a run before this one may have left it
        with contextlib.suppress(AssertionError):
            ip("addr", "del", address, "dev", "lo")
    parts = Parts()
    await parts.listen([(transport, host, 15060) for host in (KEPT, MOVING, MOVING6) for transport in ("UDP", "TCP")])
    transports = parts.transports
    assert len(transports.away) == 4
    with structlog.testing.capture_logs() as logs:
        watch = asyncio.ensure_future(follow_addresses(transports, structlog.get_logger("node")))
        assert await parts.heard(0), "the others serve meanwhile"
        transports.send(Hop("UDP", KEPT, 5060, 2), MESSAGE, "absent")
        await until(lambda: parts.failed == ["absent"], WAIT_S)
        add(MOVING, MOVING6)
        await until(lambda: not transports.away, WAIT_S)
        assert all([await parts.heard(listener) for listener in (0, 2, 4)])
        _, writer = await parts.connect(3, MOVING)
        watch.cancel()
    writer.close()
    await transports.close()
    names = sorted(f"{transport} {host}:15060" for host in (MOVING, MOVING6) for transport in ("tcp", "udp"))
    for change in ("absent", "opened"):
        assert sorted(entry["listener"] for entry in logs if entry["change"] == change) == names


def test_an_address_that_is_not_there_and_has_no_port_of_its_own_is_an_error() -> None:
    parts = Parts()
    with pytest.raises(OSError, match="annot assign"):
        parts.transports.bind([("UDP", "192.0.2.77", 0)])


async def test_a_node_waits_for_its_first_address_and_says_so_once() -> None:
    ip("link", "set", "lo", "up")
    told: list[str] = []

    class Service(Notifier):
        def tell(self, *words: str, status: str = "") -> None:
            told.append(status)

    with structlog.testing.capture_logs() as logs:
        waiting = asyncio.ensure_future(an_address_is_here(["192.0.2.78:5060", "192.0.2.79:5060"], Stop(), Service()))
        await until(lambda: len(told) > 2, WAIT_S)
        assert not waiting.done()
        add("192.0.2.79")
        assert await asyncio.wait_for(waiting, WAIT_S)
        stop = Stop()
        leaving = asyncio.ensure_future(an_address_is_here(["192.0.2.78:5060"], stop, Service()))
        await asyncio.sleep(0)
        stop.terminate()
        assert not await asyncio.wait_for(leaving, WAIT_S)
    assert [entry["event"] for entry in logs] == ["waiting_for_an_address"] * 2
    ip("addr", "del", "192.0.2.79/32", "dev", "lo")
