"""TCP through a real node: registering, being called over that connection, keep-alives, pieces (RFC 3261 §18, RFC 5626)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from loadtest.agents import Answering, next_call
from loadtest.node import LineSpec
from sipproxy.sip.build import write_request, write_response
from sipproxy.sip.digest import parse_challenge, write_credentials
from sipproxy.sip.framing import StreamFramer
from sipproxy.sip.message import Request, Response, parse_message

if TYPE_CHECKING:
    from loadtest.network import Network

LINES = [
    LineSpec("B2001", "b2001", "secret-b", "+49603255501"),
    LineSpec("V1001", "v1001", "secret-v", "+492051555101", "velbert", "02051", "velbert"),
]
BOUND_S = 40.0


class TcpAgent:
    """A user agent with one connection to the node, driven by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._framer = StreamFramer(65535)
        self._waiting: list[Request | Response] = []
        self.raw = b""
        self.device = b""  # contact parameters of a device that keeps flows apart (RFC 5626)
        host, port = writer.get_extra_info("sockname")[:2]
        self.sent_by = f"{host}:{port}".encode()

    async def send(self, data: bytes, *, piece: int = 0) -> None:
        step = piece or len(data)
        for start in range(0, len(data), step):
            self.writer.write(data[start : start + step])
            await self.writer.drain()

    async def receive(self) -> Request | Response:
        async with asyncio.timeout(BOUND_S):
            while not self._waiting:
                data = await self.reader.read(65536)
                assert data, "the node closed the connection"
                self.raw += data
                self._waiting += [parse_message(item) for item in self._framer.feed(data) if isinstance(item, bytes)]
        return self._waiting.pop(0)

    def register(self, credentials: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
        headers = [
            (b"Via", b"SIP/2.0/TCP %s;branch=z9hG4bKreg%d" % (self.sent_by, len(credentials))),
            (b"Max-Forwards", b"70"),
            (b"From", b"<sip:v1001@sip.example>;tag=1"),
            (b"To", b"<sip:v1001@sip.example>"),
            (b"Call-ID", b"tcp-registration"),
            (b"CSeq", b"%d REGISTER" % (1 + len(credentials))),
            (b"Contact", b"<sip:v1001@%s;transport=tcp>%s" % (self.sent_by, self.device)),
            (b"Supported", b"outbound"),
            *credentials,
        ]
        return write_request(b"REGISTER", b"sip:sip.example", headers)


@pytest_asyncio.fixture
async def network(start_network: Callable[..., Any]) -> Network:
    network: Network = await start_network(LINES)
    return network


@pytest_asyncio.fixture
async def agent(network: Network) -> AsyncIterator[TcpAgent]:
    agent = TcpAgent(*await asyncio.open_connection(*network.node.address))
    yield agent
    agent.writer.close()


async def registered(agent: TcpAgent) -> None:
    await agent.send(agent.register(), piece=7)
    challenged = await agent.receive()
    assert isinstance(challenged, Response)
    assert challenged.status == 401
    challenge = parse_challenge(challenged.lines(b"www-authenticate")[0])
    value = write_credentials(
        challenge, method=b"REGISTER", uri=b"sip:sip.example", user="v1001", password="secret-v", cnonce=b"c", nc=1
    )
    await agent.send(agent.register(((b"Authorization", value),)))
    answer = await agent.receive()
    assert isinstance(answer, Response)
    assert answer.status == 200


async def test_tcp_router_is_called_over_its_own_connection_and_hangs_up(network: Network, agent: TcpAgent) -> None:
    await registered(agent)
    router = await network.router("b2001")
    call = await router.call("02051555101")
    invite = await agent.receive()
    assert isinstance(invite, Request)
    assert invite.method == b"INVITE"
    assert [b"transport=tcp" in route.uri.raw for route in invite.record_routes] == [True, False], "RFC 5658: one for each side"
    routes = [(b"Record-Route", route.raw) for route in invite.record_routes]
    contact = (b"Contact", b"<sip:v1001@%s;transport=tcp>" % agent.sent_by)
    await agent.send(write_response(invite, 200, to_tag=b"77", headers=[*routes, contact]))
    await call.answered()
    ack = await agent.receive()
    assert isinstance(ack, Request)
    assert ack.method == b"ACK"
    bye = [
        (b"Via", b"SIP/2.0/TCP %s;branch=z9hG4bKbye" % agent.sent_by),
        (b"Max-Forwards", b"70"),
        *((b"Route", route.raw) for route in invite.record_routes),
        (b"From", invite.to.raw + b";tag=77"),
        (b"To", invite.from_.raw),
        (b"Call-ID", invite.call_id),
        (b"CSeq", b"1 BYE"),
    ]
    await agent.send(write_request(b"BYE", invite.contacts[0].uri.raw, bye))
    answer = await agent.receive()
    assert isinstance(answer, Response)
    assert answer.status == 200
    await call.wait_ended()
    (record,) = await network.records(1)
    assert (record.direction, record.callee_account, record.released_by, record.status) == ("internal", "v1001", "callee", 200)


async def test_tcp_router_behind_nat_is_gone_with_its_connection_and_back_with_the_next(
    network: Network, agent: TcpAgent
) -> None:
    agent.sent_by = b"192.168.178.1:5060"
    await registered(agent)
    assert await network.bindings("v1001", 1) == 1
    agent.writer.transport.abort()
    assert await network.bindings("v1001", 0) == 0
    back = TcpAgent(*await asyncio.open_connection(*network.node.address))
    await registered(back)
    assert await network.bindings("v1001", 1) == 1
    back.writer.close()


async def test_tcp_keepalive_is_answered_with_the_pong(agent: TcpAgent) -> None:
    await agent.send(b"\r\n\r\n")
    async with asyncio.timeout(BOUND_S):
        assert await agent.reader.readexactly(2) == b"\r\n"


async def test_tcp_router_that_has_gone_is_unreachable_not_an_endless_call(network: Network, agent: TcpAgent) -> None:
    await registered(agent)
    assert await network.bindings("v1001", 1) == 1
    agent.writer.transport.abort()
    router = await network.router("b2001")
    call = await router.call("02051555101")
    status = await call.final()
    assert status in (480, 500)
    (record,) = await network.records(1)
    assert record.end_reason == "unreachable"
    assert await network.slots_of_all(0) == 0


async def test_answer_for_a_connection_that_broke_comes_by_the_device_s_next_one(network: Network, agent: TcpAgent) -> None:
    """The connection ends while it rings; the device comes back by another port, and is told there that it is answered."""
    agent.device = b';+sip.instance="<urn:uuid:00000000-0000-1000-8000-000A95A0E128>";reg-id=1'
    await registered(agent)
    network.trunk.answering = Answering(status=None)
    await invited(agent)
    at_trunk = await next_call(network.trunk)
    assert await statuses(agent, 180)
    agent.writer.transport.abort()
    back = TcpAgent(*await asyncio.open_connection(*network.node.address))
    back.device = agent.device
    await registered(back)
    at_trunk.answer()
    answer = await statuses(back, 200)
    routes = [(b"Route", route.raw) for route in reversed(answer.record_routes)]
    ack = [(b"Via", b"SIP/2.0/TCP %s;branch=z9hG4bKack" % back.sent_by), (b"Max-Forwards", b"70"), *routes]
    ack += [(b"From", answer.from_.raw), (b"To", answer.to.raw), (b"Call-ID", answer.call_id)]
    await back.send(write_request(b"ACK", answer.contacts[0].uri.raw, [*ack, (b"CSeq", b"%d ACK" % answer.cseq.number)]))
    await asyncio.wait_for(at_trunk.acked.wait(), BOUND_S)
    hung_up = asyncio.ensure_future(at_trunk.hang_up())
    bye = await back.receive()
    assert isinstance(bye, Request)
    await back.send(write_response(bye, 200))
    assert await hung_up == 200
    [record] = await network.records(1)
    assert (record.status, record.released_by, record.duration_certain) == (200, "callee", True)
    assert await network.slots_of_all(0) == 0
    back.writer.close()


async def invited(agent: TcpAgent) -> None:
    """Send an INVITE to the carrier, and again with credentials."""
    uri, credentials = b"sip:03023125001@sip.example", []
    for number in (1, 2):
        head = [(b"Via", b"SIP/2.0/TCP %s;branch=z9hG4bKcall%d" % (agent.sent_by, number)), (b"Max-Forwards", b"70")]
        head += [(b"From", b"<sip:+492051555101@sip.example>;tag=9"), (b"To", b"<" + uri + b">"), (b"Call-ID", b"tcp-call")]
        head += [(b"CSeq", b"%d INVITE" % number), (b"Contact", b"<sip:v1001@%s;transport=tcp>" % agent.sent_by), *credentials]
        await agent.send(write_request(b"INVITE", uri, head))
        if not credentials:
            challenged = await statuses(agent, 407)
            challenge = parse_challenge(challenged.lines(b"proxy-authenticate")[0])
            value = write_credentials(
                challenge, method=b"INVITE", uri=uri, user="v1001", password="secret-v", cnonce=b"c", nc=1
            )
            credentials = [(b"Proxy-Authorization", value)]


async def statuses(agent: TcpAgent, wanted: int) -> Response:
    """The response with this status, which only provisional ones come before."""
    while True:
        response = await agent.receive()
        assert isinstance(response, Response)
        if response.status == wanted:
            return response
        assert response.status < 200, response.raw
