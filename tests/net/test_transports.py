"""Which listener a hop is sent from: its own, else the first of its transport and IP version."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

import pytest
from waiting import until

from sipproxy.net.resolver import Resolver
from sipproxy.net.transports import Transports
from sipproxy.sip.flow import Flow, Hop

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
MESSAGE = b"OPTIONS sip:a SIP/2.0\r\n\r\n"


class Peer(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.got: list[tuple[str, int]] = []

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.got.append(addr[:2])


@contextlib.asynccontextmanager
async def peers() -> object:
    loop = asyncio.get_running_loop()
    four, peer4 = await loop.create_datagram_endpoint(Peer, local_addr=("127.0.0.1", 0))
    port = four.get_extra_info("sockname")[1]
    six, peer6 = await loop.create_datagram_endpoint(Peer, local_addr=("::1", port))
    try:
        yield peer4, peer6, port
    finally:
        four.close()
        six.close()


async def test_hop_is_sent_from_the_listener_of_its_version_or_its_own(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 both.example four.example\n::1 both.example six.example\n")
    failed: list[object] = []
    resolver = Resolver(hosts_file=hosts, families=(6, 4))
    transports = Transports(resolver, lambda *_: None, failed.append, lambda *_: None, lambda *_: None)
    bound = transports.bind([("UDP", "127.0.0.1", 0), ("UDP", "::1", 0), ("UDP", "127.0.0.9", 0)])
    await transports.start()
    async with peers() as (peer4, peer6, port):  # type: ignore[misc]
        for host, listener, peer, source in (
            ("127.0.0.1", -1, peer4, 0),
            ("::1", -1, peer6, 1),
            ("six.example", -1, peer6, 1),
            ("both.example", -1, peer4, 0),  # what the Via says, though the name's first address is another
            ("both.example", 1, peer6, 1),
            ("127.0.0.1", 2, peer4, 2),
        ):
            before = len(peer.got)
            transports.send(Hop("UDP", host, port, listener), MESSAGE, None)
            await until(lambda: len(peer.got) > before)  # noqa: B023  awaited within the turn
            assert peer.got[-1] == bound[source][1:], (host, listener)
        transports.send(Hop("UDP", "::1", port, 0), MESSAGE, "own")
        transports.send(Hop("TCP", "127.0.0.1", port), MESSAGE, "tcp")
        await until(lambda: len(failed) == 2)
        assert failed == ["own", "tcp"]
        assert transports.failures == {"no_listener": 2}
    await transports.close()
    await resolver.close()


async def test_a_silent_connection_is_asked_about_by_its_flow_and_its_end_is_told() -> None:
    came: list[Flow] = []
    closed: list[Flow] = []
    asked: list[Flow] = []
    resolver = Resolver()
    transports = Transports(resolver, lambda _, flow, *__: came.append(flow), lambda _: None, lambda *_: None, closed.append)
    transports.may_end = lambda flow: asked.append(flow) or len(asked) > 1  # type: ignore[func-returns-value]
    bound = transports.bind([("UDP", "127.0.0.1", 0), ("TCP", "127.0.0.1", 0)])
    await transports.start()
    _, writer = await asyncio.open_connection(*bound[1][1:])
    writer.write(MESSAGE[:-2] + b"Content-Length: 0\r\n\r\n")
    await until(lambda: came)
    transports.end_silent(Flow("UDP", 0, "127.0.0.1", 5060), 0.1)  # nothing to end
    transports.end_silent(came[0], 0.2)
    await until(lambda: closed, 20)
    assert (closed, asked) == (came, came * 2)
    assert transports.counters()["TCP", "closed_silent"] == 1
    writer.close()
    await transports.close()
    await resolver.close()
