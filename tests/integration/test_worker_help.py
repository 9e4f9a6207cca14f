"""A call for help whose INVITE comes by several paths is one call, whichever workers read its copies, and waits for none of
them (design: invariant 1; RFC 3261 §8.2.2.2, §17.2.3)."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import Answering, next_call
from loadtest.network import many_lines
from loadtest.reconcile import becomes
from loadtest.ua import new_tag
from sipproxy.admin.control import ask, socket_path
from sipproxy.sip.message import Response, parse_message

if TYPE_CHECKING:
    from loadtest.network import Network
    from loadtest.ua import Call

LINES = many_lines(1)
HOST = "127.0.0.9"  # in the access network: whichever copy comes first needs no challenge
SETTINGS = {"emergency": {"access_networks": [f"{HOST}/32"]}}
PORTS = 9
WAIT_S = 30.0
# What the kernel's program does not find, so that copies from other ports come to other workers, and one that it does.
CALL_IDS = {
    "compact": b"i: %b\r\n",
    "late": b"X-Long: " + b"x" * 1400 + b"\r\nCall-ID: %b\r\n",
    "folded": b"Call-ID:\r\n %b\r\n",
    "spaced": b"cAlL-iD \t: %b\r\n",
    "plain": b"Call-ID: %b\r\n",
}


class Sockets(asyncio.DatagramProtocol):
    """A caller's sockets, each with a port of its own; what comes to any of them is in `came`."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[Response] = asyncio.Queue()
        self._open: list[asyncio.DatagramTransport] = []

    def datagram_received(self, data: bytes, addr: tuple[str | object, int]) -> None:
        message = parse_message(data)
        if isinstance(message, Response):
            self.came.put_nowait(message)

    async def more(self, count: int) -> None:
        for _ in range(count):
            found = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=(HOST, 0))
            self._open.append(found[0])

    def close(self) -> None:
        for transport in self._open:
            transport.close()

    @property
    def last(self) -> int:
        return len(self._open) - 1

    def send(self, data: bytes, network: Network, by: int) -> None:
        self._open[by].sendto(data, network.node.address)

    def send_by_all(self, data: bytes, network: Network) -> None:
        for by in range(len(self._open)):
            self.send(data, network, by)

    async def answer(self, method: bytes, call_id: bytes, *, status: int = 200) -> Response:
        """The final response to a request of a call; provisional ones and other calls' are passed over."""
        async with asyncio.timeout(WAIT_S):
            while True:
                response = await self.came.get()
                if (response.cseq.method, response.call_id) == (method, call_id) and response.status >= 200:
                    assert response.status == status
                    return response


class Helped:
    """A call for help as its caller writes it."""

    numbers = itertools.count()

    def __init__(self, style: str) -> None:
        self.call_id = b"help-%d-%b" % (next(self.numbers), new_tag())
        self._line = CALL_IDS[style] % self.call_id
        self._branch, self._tag = new_tag(), new_tag()

    def request(self, method: bytes, *, to: bytes = b"<sip:112@sip.example>", routes: bytes = b"", uri: bytes = b"") -> bytes:
        """One of the INVITE's transaction, which the ACK of a refusal and its CANCEL are too, or, with a URI, of its dialog."""
        user = LINES[0].user.encode()
        lines = b"%b %b SIP/2.0\r\nMax-Forwards: 70\r\n" % (method, uri or b"sip:112@sip.example")
        branch = self._branch if not uri else new_tag()
        lines += b"Via: SIP/2.0/UDP %b:5060;branch=z9hG4bK%b;rport\r\n" % (HOST.encode(), branch)
        lines += b"From: <sip:%b@sip.example>;tag=%b\r\nTo: %b\r\n" % (user, self._tag, to)
        lines += b"CSeq: %d %b\r\nContact: <sip:%b@%b:5060>\r\n" % (1 + (method == b"BYE"), method, user, HOST.encode())
        return lines + routes + self._line + b"Content-Length: 0\r\n\r\n"

    def within(self, method: bytes, answer: Response) -> bytes:
        """A request of the dialog that this answer made (RFC 3261 §12.2.1.1)."""
        routes = b"".join(b"Route: %b\r\n" % value for value in answer.values(b"record-route")[::-1])
        target = answer.values(b"contact")[0].strip(b"<>")
        return self.request(method, to=answer.first(b"to") or b"", routes=routes, uri=target)


@pytest.fixture
async def sockets() -> AsyncIterator[Sockets]:
    found = Sockets()
    await found.more(PORTS)
    yield found
    found.close()


async def live_calls(network: Network) -> int:
    rows = await asyncio.to_thread(ask, socket_path(network.node.directory / "data"), "calls")
    return len(rows["calls"])


async def the_only_one(network: Network, call_id: bytes) -> Call:
    """The call of that Call-ID at the centre, and no second one came."""
    call = await next_call(network.psap)
    assert call.call_id == call_id.decode()
    assert (await live_calls(network), network.psap.incoming.qsize()) == (1, 0), network.psap.trace(10)
    return call


async def hung_up(network: Network, sockets: Sockets, helped: Helped, answer: Response, call: Call, *, by: int) -> None:
    """ACK and BYE come by other ports than the INVITE."""
    sockets.send(helped.within(b"ACK", answer), network, by)
    await asyncio.wait_for(call.acked.wait(), WAIT_S)
    sockets.send(helped.within(b"BYE", answer), network, (by + 1) % PORTS)
    await sockets.answer(b"BYE", helped.call_id)
    await call.wait_ended()
    assert await becomes(lambda: live_calls(network), 0) == 0


async def test_copies_of_a_call_for_help_from_many_ports_are_one_call(
    start_network: Callable[..., Any], sockets: Sockets
) -> None:
    network: Network = await start_network(LINES, workers=3, settings=SETTINGS)
    for number, style in enumerate(CALL_IDS):
        helped = Helped(style)
        sockets.send_by_all(helped.request(b"INVITE"), network)
        answer = await sockets.answer(b"INVITE", helped.call_id)
        sockets.send_by_all(helped.request(b"INVITE"), network)
        call = await the_only_one(network, helped.call_id)
        await hung_up(network, sockets, helped, answer, call, by=number)
    records = await network.records(len(CALL_IDS))
    assert [record.duration_certain for record in records] == [True] * len(CALL_IDS)
    assert network.psap.incoming.empty()


async def test_call_for_help_is_cancelled_and_acknowledged_from_whichever_port(
    start_network: Callable[..., Any], sockets: Sockets
) -> None:
    network: Network = await start_network(LINES, workers=3, settings=SETTINGS)
    network.psap.answering = Answering(status=None)
    for number, style in enumerate(CALL_IDS):
        helped = Helped(style)
        sockets.send_by_all(helped.request(b"INVITE"), network)
        call = await the_only_one(network, helped.call_id)
        sockets.send(helped.request(b"CANCEL"), network, number)
        await sockets.answer(b"CANCEL", helped.call_id)
        refusal = await sockets.answer(b"INVITE", helped.call_id, status=487)
        sockets.send(helped.request(b"ACK", to=refusal.first(b"to") or b""), network, number + 1)
        await call.wait_ended()
        assert await becomes(lambda: live_calls(network), 0) == 0
    assert len(await network.records(len(CALL_IDS))) == len(CALL_IDS)
    assert network.psap.incoming.empty()


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
async def test_call_for_help_waits_for_no_worker_that_died_or_hangs(
    start_network: Callable[..., Any], sockets: Sockets, sign: signal.Signals
) -> None:
    """What the kernel gave to the one that stands still is read by nobody; a copy that another one reads is a call at once."""
    network: Network = await start_network(LINES, workers=3, settings=SETTINGS)
    pids = network.node.worker_pids()
    for number, style in enumerate(("compact", "late", "folded", "spaced")):
        os.kill(pids[1 + number % 3], sign)
        helped = Helped(style)
        sockets.send_by_all(helped.request(b"INVITE"), network)
        answer = await sockets.answer(b"INVITE", helped.call_id)
        assert network.psap.incoming.qsize() == 1
        if sign == signal.SIGSTOP:
            assert network.node.worker_pids() == pids, "it was answered by who came instead of the one that hung"
            os.kill(pids[1 + number % 3], signal.SIGCONT)  # and it reads what it has of that call
        else:
            await network.followed(network.node, "sipproxy_worker_restarts_total", number + 1.0, timeout_s=60)
            await network.followed(network.node, "sipproxy_worker_up", 3.0, timeout_s=60)
            pids = network.node.worker_pids()
        sockets.send_by_all(helped.request(b"INVITE"), network)
        call = await the_only_one(network, helped.call_id)
        await hung_up(network, sockets, helped, answer, call, by=number)
    assert len(await network.records(4)) == 4
    assert network.psap.incoming.empty()


async def test_call_for_help_of_a_worker_that_hangs_with_it_is_taken_by_who_reads_a_copy(
    start_network: Callable[..., Any], sockets: Sockets
) -> None:
    """Rather a second call at the centre than none: it gets no further at the worker that has it."""
    network: Network = await start_network(LINES, workers=3, settings=SETTINGS)
    pids = network.node.worker_pids()
    network.psap.answering = Answering(status=None)
    helped = Helped("compact")
    sockets.send(helped.request(b"INVITE"), network, 0)
    await next_call(network.psap)
    rows = await asyncio.to_thread(ask, socket_path(network.node.directory / "data"), "calls")
    network.psap.answering = Answering()
    os.kill(pids[rows["calls"][0]["worker"]], signal.SIGSTOP)
    sockets.send_by_all(helped.request(b"INVITE"), network)
    answer = await sockets.answer(b"INVITE", helped.call_id)
    assert network.node.worker_pids() == pids, "it was answered by who came instead of the one that hung"
    os.kill(pids[rows["calls"][0]["worker"]], signal.SIGCONT)
    call = await next_call(network.psap)
    sockets.send(helped.within(b"ACK", answer), network, 1)
    await asyncio.wait_for(call.acked.wait(), WAIT_S)
    sockets.send(helped.within(b"BYE", answer), network, 2)
    await sockets.answer(b"BYE", helped.call_id)
    assert network.psap.incoming.empty()
