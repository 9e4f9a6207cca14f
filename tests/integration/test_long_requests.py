"""INVITEs that are too long for a datagram, through a real node (RFC 3261 §18.1.1)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import next_call
from loadtest.network import many_lines
from loadtest.ua import CallError
from sipproxy.sip.build import write_response
from sipproxy.sip.framing import StreamFramer
from sipproxy.sip.message import Request, parse_message

if TYPE_CHECKING:
    from loadtest.network import Network

LONG = ((b"X-Long", b"x" * 1400),)
DIALLED = "03023125001"


def ways(metrics: dict[str, float]) -> dict[str, float]:
    name = "sipproxy_long_requests_total{way="
    return {key.removeprefix(name).strip('"}'): value for key, value in metrics.items() if key.startswith(name) and value}


async def test_a_carrier_without_tcp_gets_long_invites_over_udp(start_network: Callable[..., Any]) -> None:
    network: Network = await start_network(many_lines(1))
    router = await network.router("u000000")
    for number in ("112", DIALLED, DIALLED, "112"):  # the first is not held up by finding out, nor is the last
        call = await (await router.call(number, headers=LONG)).answered(30)
        party = network.psap if number == "112" else network.trunk
        at_party = await next_call(party)
        assert at_party.server is not None
        request = at_party.server.request
        assert len(request.raw) > 1400
        assert request.via.transport == "UDP"
        assert await call.hang_up() == 200
    records, result = await network.reconciled()
    assert result.ok, result
    assert len(records) == 4
    assert ways(await network.node.metrics()) == {"urgent": 2, "tcp": 1, "fell_back": 1, "refused_before": 1}


@asynccontextmanager
async def tcp_beside(network: Network, status: int, got: list[Request]) -> AsyncIterator[None]:
    """The carrier takes TCP too, where it refuses every call."""

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        framer = StreamFramer(65536)
        while data := await reader.read(65536):
            for item in framer.feed(data):
                if not isinstance(item, bytes):
                    continue
                message = parse_message(item)
                assert isinstance(message, Request)
                got.append(message)
                if message.method != b"ACK":
                    writer.write(write_response(message, status, to_tag=b"carrier"))

    server = await asyncio.start_server(serve, network.trunk.host, network.trunk.port)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.close()


async def test_a_carrier_with_tcp_gets_long_invites_and_their_acks_over_tcp(
    start_network: Callable[..., Any],
) -> None:
    network: Network = await start_network(many_lines(1), route={"ping_s": 0})
    router = await network.router("u000000")
    got: list[Request] = []
    async with tcp_beside(network, 486, got):
        for _ in range(2):
            with pytest.raises(CallError) as refused:
                await (await router.call(DIALLED, headers=LONG)).answered(30)
            assert refused.value.status == 486
        async with asyncio.timeout(30):
            while [request.method for request in got] != [b"INVITE", b"ACK"] * 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    host, port = network.node.address
    invite, ack = got[:2]
    assert (invite.via.transport, invite.via.host, invite.via.port) == ("TCP", host.encode(), port)
    assert ack.via.branch == invite.via.branch
    assert ways(await network.node.metrics()) == {"tcp": 2}
    await network.followed(network.node, 'sipproxy_transport_total{transport="TCP",what="closed_peer"}', 1.0)
    # Where nobody takes TCP any more, the next long one goes over UDP.
    call = await (await router.call(DIALLED, headers=LONG)).answered(30)
    assert await call.hang_up() == 200
    _, result = await network.reconciled()
    assert result.ok, result
