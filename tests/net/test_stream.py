"""TCP of a node on both event loops: framing, reuse, bounds, time limits, failures (RFC 3261 §18, RFC 5626 §3.5.1)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from waiting import until

from sipproxy.net.stream import StreamLimits, StreamListener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sipproxy.sip.errors import ParseError

    Make = Callable[..., Awaitable["Node"]]
    Dial = Callable[..., Awaitable["Client"]]


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


ADDRESSES = ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on loopback"))]


def message(call_id: str = "1", body: bytes = b"") -> bytes:
    head = f"OPTIONS sip:a@b.example SIP/2.0\r\nCall-ID: {call_id}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


class Node:
    """A listener and all that it called back with."""

    def __init__(self, address: str = "127.0.0.1", **limits: Any) -> None:
        self.got: list[tuple[bytes, str, int, int]] = []
        self.failed: list[tuple[object, str]] = []
        self.closed: list[tuple[int, str, int, str]] = []
        self.refused: list[tuple[bytes, int, int]] = []
        self.answer_refused = b""
        self.listener = StreamListener(
            address,
            0,
            lambda *args: self.got.append(args),
            on_failed=lambda *args: self.failed.append(args),
            on_closed=lambda *args: self.closed.append(args),
            on_refused=self._refused,
            limits=StreamLimits(**{"close_s": 0.5, **limits}),
        )

    def _refused(self, head: bytes, error: ParseError, host: str, port: int, connection: int) -> None:
        self.refused.append((head, error.status, connection))
        if self.answer_refused:
            self.listener.send(self.answer_refused, host, port, connection)

    @property
    def reasons(self) -> list[str]:
        return [reason for _, _, _, reason in self.closed]


class Client:
    """A bare TCP peer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @property
    def name(self) -> tuple[str, int]:
        host, port = self.writer.get_extra_info("sockname")[:2]
        return host, port

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readexactly(size)

    async def read_to_end(self) -> bytes:
        async with asyncio.timeout(5):
            try:
                return await self.reader.read(-1)
            except ConnectionError:
                return b""


@pytest_asyncio.fixture
async def nodes() -> AsyncIterator[Make]:
    made: list[Node] = []

    async def make(*args: Any, **limits: Any) -> Node:
        made.append(Node(*args, **limits))
        await made[-1].listener.start()
        return made[-1]

    yield make
    await asyncio.gather(*(node.listener.close() for node in made))


@pytest_asyncio.fixture
async def dial() -> AsyncIterator[Dial]:
    made: list[Client] = []

    async def connect(node: Node) -> Client:
        made.append(Client(*await asyncio.open_connection(*node.listener.address)))
        return made[-1]

    yield connect
    for client in made:
        client.writer.close()
        with contextlib.suppress(OSError):
            await client.writer.wait_closed()


@contextlib.contextmanager
def silent_server(*, backlog: int = 1) -> Any:
    """A bound port that accepts into its backlog and never reads."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(backlog)
        yield server


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("address", ADDRESSES)
async def test_stream_message_and_its_answer_use_one_connection(nodes: Make, address: str) -> None:
    one, two = await nodes(address), await nodes(address)
    number = one.listener.send(message("a"), *two.listener.address)
    await until(lambda: two.got)
    data, host, port, connection = two.got[0]
    assert (data, host) == (message("a"), address)
    assert two.listener.send(message("b"), host, port, connection) == connection
    await until(lambda: one.got)
    assert one.got == [(message("b"), *two.listener.address, number)]
    assert (one.listener.counters["connected"], two.listener.counters["accepted"], len(one.listener), len(two.listener)) == (
        1,
        1,
        1,
        1,
    )


async def test_stream_second_message_reuses_the_connection_also_before_it_is_open(nodes: Make) -> None:
    one, two = await nodes(), await nodes()
    numbers = {one.listener.send(message(str(n)), *two.listener.address) for n in range(5)}
    await until(lambda: len(two.got) == 5)
    numbers |= {one.listener.send(message("5"), *two.listener.address)}
    await until(lambda: len(two.got) == 6)
    assert [data for data, *_ in two.got] == [message(str(n)) for n in range(6)]
    assert len(numbers) == 1
    assert two.listener.counters["accepted"] == 1


async def test_stream_closed_connection_is_opened_anew_for_a_request(nodes: Make) -> None:
    one, two = await nodes(), await nodes()
    first = one.listener.send(message("1"), *two.listener.address)
    await until(lambda: two.got)
    two.listener._connections[two.got[0][3]].finish("idle")
    await until(lambda: one.closed)
    second = one.listener.send(message("2"), *two.listener.address)
    await until(lambda: len(two.got) == 2)
    assert second > first
    assert one.closed == [(first, *two.listener.address, "peer")]


async def test_stream_chunks_of_any_size_give_the_same_messages(nodes: Make, dial: Dial) -> None:
    node = await nodes()
    client = await dial(node)
    stream = b"\r\n\r\n" + message("1", b"x" * 100) + message("2") + b"\r\n" + message("3", b"\r\n\r\n")
    for position in range(0, len(stream), 7):
        client.writer.write(stream[position : position + 7])
        await client.writer.drain()
        await asyncio.sleep(0)
    await until(lambda: len(node.got) == 3)
    assert [data for data, *_ in node.got] == [message("1", b"x" * 100), message("2"), message("3", b"\r\n\r\n")]
    assert node.got[0][1:3] == client.name


async def test_stream_ping_is_answered_with_one_crlf(nodes: Make, dial: Dial) -> None:
    node = await nodes()
    client = await dial(node)
    client.writer.write(b"\r\n\r\n")
    assert await client.read(2) == b"\r\n"
    client.writer.write(b"\r\n\r\n\r\n\r\n")
    assert await client.read(4) == b"\r\n\r\n"
    assert node.listener.counters["pings"] == 3


async def test_stream_message_for_a_connection_of_another_peer_is_not_sent_on_it(nodes: Make, dial: Dial) -> None:
    """A flow that was kept over a restart: the number is in use again, by somebody else."""
    node = await nodes()
    client = await dial(node)
    client.writer.write(message())
    await until(lambda: node.got)
    _, host, port, connection = node.got[0]
    assert node.listener.send(message(), host, port + 1, connection, key="k") == 0
    await until(lambda: node.failed)
    assert node.failed == [("k", "gone")]
    assert node.listener.send(message(), host, port, connection) == connection


async def test_stream_answer_on_a_connection_that_is_gone_fails_and_opens_none(nodes: Make, dial: Dial) -> None:
    node = await nodes()
    client = await dial(node)
    client.writer.write(message())
    await until(lambda: node.got)
    _, host, port, connection = node.got[0]
    client.writer.close()
    await until(lambda: node.closed)
    assert node.listener.send(message(), host, port, connection, key="k") == 0
    assert node.failed == []  # never from within send
    await until(lambda: node.failed)
    assert node.failed == [("k", "gone")]
    assert (node.listener.failed["gone"], node.listener.counters["connected"], len(node.listener)) == (1, 0, 0)


async def test_stream_refused_connection_fails_each_waiting_message(nodes: Make) -> None:
    node = await nodes()
    port = free_port()
    for key in ("a", "b"):
        assert node.listener.send(message(), "127.0.0.1", port, key=key) != 0
    await until(lambda: len(node.failed) == 2)
    assert node.failed == [("a", "connect"), ("b", "connect")]
    assert (len(node.listener), node.listener.failed["connect"], node.listener.closed["connect"]) == (0, 2, 1)
    node.listener.send(message(), "127.0.0.1", port, key="c")
    await until(lambda: len(node.failed) == 3)


async def test_stream_connect_that_hangs_fails_within_its_bound(nodes: Make) -> None:
    node = await nodes(connect_s=0.1)
    with silent_server(backlog=0) as server, contextlib.ExitStack() as stack:
        for _ in range(4):  # fills the backlog, so that the kernel answers no further SYN
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0)
            filler.connect_ex(server.getsockname())
        await asyncio.sleep(0.05)
        node.listener.send(message(), *server.getsockname(), key="k")
        await until(lambda: node.failed)
    assert node.failed == [("k", "connect")]


async def test_stream_message_that_waits_too_long_for_its_connection_fails_and_is_not_sent_later(nodes: Make) -> None:
    node = await nodes(connect_s=30.0)
    with silent_server(backlog=0) as server:
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.settimeout(0)
            filler.connect_ex(server.getsockname())
        await asyncio.sleep(0.05)
        node.listener.send(message("late"), *server.getsockname(), key="k", connect_s=0.2)
        node.listener.send(message("patient"), *server.getsockname(), key="p")
        await until(lambda: node.failed)
        assert node.failed == [("k", "slow_connect")]
        for filler in fillers:
            filler.close()
        server.settimeout(0)
        got, loop = b"", asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while b"patient" not in got:  # the kernel repeats its SYN, and there is room by then
                accepted, _ = await loop.sock_accept(server)
                with accepted:
                    accepted.settimeout(0)
                    got += await loop.sock_recv(accepted, 65536)
        assert b"late" not in got


@pytest.mark.parametrize(("host", "port"), [("localhost", 5060), ("sip.example", 5060), ("127.0.0.1", 0), ("127.0.0.1", 70000)])
async def test_stream_send_to_no_address_fails(nodes: Make, host: str, port: int) -> None:
    node = await nodes()
    assert node.listener.send(message(), host, port, key="k") == 0
    await until(lambda: node.failed)
    assert (node.failed, len(node.listener)) == ([("k", "bad_address")], 0)


async def test_stream_connections_beyond_the_total_are_refused_and_counted(nodes: Make, dial: Dial) -> None:
    node = await nodes(connections=2)
    for _ in range(2):
        await dial(node)
    await until(lambda: len(node.listener) == 2)
    third = await dial(node)
    assert await third.read_to_end() == b""
    assert node.listener.closed["too_many"] == 1
    assert node.listener.send(message(), "127.0.0.1", 9, key="k") == 0
    await until(lambda: node.failed)
    assert node.failed == [("k", "too_many")]


async def test_stream_connections_beyond_those_of_a_source_are_refused_until_one_ends(nodes: Make, dial: Dial) -> None:
    node = await nodes(connections_per_source=1)
    first = await dial(node)
    await until(lambda: len(node.listener) == 1)
    second = await dial(node)
    assert await second.read_to_end() == b""
    assert node.listener.closed["too_many_from_source"] == 1
    first.writer.close()
    await until(lambda: not len(node.listener))
    third = await dial(node)
    third.writer.write(message())
    await until(lambda: node.got)
    assert node.listener._per_source == {"127.0.0.1": 1}


async def test_stream_customers_behind_one_address_have_connections_besides_those_of_strangers(nodes: Make, dial: Dial) -> None:
    node = await nodes(connections_per_source=1)
    node.listener.customers_at = {"127.0.0.1": 2}.__getitem__
    for count in (1, 2, 3):
        await dial(node)
        await until(lambda: len(node.listener) == count)  # noqa: B023  awaited within the turn
    assert await (await dial(node)).read_to_end() == b""
    assert node.listener.closed["too_many_from_source"] == 1


async def test_stream_peer_that_does_not_read_fills_the_buffer_and_is_cut_off(nodes: Make) -> None:
    node = await nodes(write_bytes=100_000, stalled_s=0.2)
    with silent_server() as server:
        target, big = server.getsockname(), message("x", b"x" * 40_000)
        node.listener.send(message(), *target)
        await until(lambda: node.listener.counters["connected"])
        async with asyncio.timeout(10):
            for key in range(10_000):
                if node.failed:
                    break
                node.listener.send(big, *target, key=key)
                await asyncio.sleep(0)
        assert {reason for _, reason in node.failed} == {"write_buffer_full"}
        assert all(c._transport.get_write_buffer_size() <= 100_000 for c in node.listener._connections.values() if c._transport)
        await until(lambda: node.closed)
    assert node.reasons == ["stalled"]


async def test_stream_messages_waiting_for_the_connection_are_bounded(nodes: Make) -> None:
    one, two = await nodes(write_bytes=1000), await nodes()
    sent = [one.listener.send(message("x", b"x" * 400), *two.listener.address, key=n) for n in range(4)]
    assert [bool(number) for number in sent] == [True, True, False, False]
    await until(lambda: len(two.got) == 2 and len(one.failed) == 2)
    assert one.failed == [(2, "write_buffer_full"), (3, "write_buffer_full")]


async def test_stream_connection_that_says_nothing_is_closed(nodes: Make, dial: Dial) -> None:
    node = await nodes(first_message_s=0.05)
    client = await dial(node)
    assert await client.read_to_end() == b""
    await until(lambda: node.closed)
    assert node.reasons == ["first_message"]


async def test_stream_message_that_is_not_finished_is_cut_off_though_bytes_drip_in(nodes: Make, dial: Dial) -> None:
    node = await nodes(incomplete_s=0.15)
    client = await dial(node)
    client.writer.write(message())
    await until(lambda: node.got)
    client.writer.write(b"OPTIONS sip:")
    for _ in range(200):
        if node.closed:
            break
        client.writer.write(b"a")
        await asyncio.sleep(0.01)
    assert node.reasons == ["incomplete"]


async def test_stream_half_a_ping_is_no_message_begun(nodes: Make, dial: Dial) -> None:
    node = await nodes(incomplete_s=0.05)
    client = await dial(node)
    client.writer.write(message() + b"\r\n")
    await asyncio.sleep(0.2)
    client.writer.write(b"\r\n")
    assert await client.read(2) == b"\r\n"
    assert node.closed == []


async def test_stream_idle_connection_is_closed_and_a_busy_one_is_not(nodes: Make, dial: Dial) -> None:
    node = await nodes(idle_s=0.3)
    idle, busy = await dial(node), await dial(node)
    idle.writer.write(message("idle"))
    async with asyncio.timeout(10):
        while "idle" not in node.reasons:
            busy.writer.write(message("busy"))
            await asyncio.sleep(0.02)
    assert await idle.read_to_end() == b""
    assert [(host, port) for _, host, port, _ in node.closed] == [idle.name]
    assert len(node.listener) == 1


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"OPTIONS sip:a@b.example SIP/2.0\r\nCall-ID: 1\r\n\r\n", 400),
        (b"OPTIONS sip:a@b.example SIP/2.0\r\nContent-Length: 99999\r\n\r\n", 513),
    ],
)
async def test_stream_that_cannot_be_framed_may_be_answered_and_is_closed(
    nodes: Make, dial: Dial, bad: bytes, status: int
) -> None:
    node = await nodes(message_bytes=2000)
    node.answer_refused = b"SIP/2.0 400 Bad Request\r\n\r\n"
    client = await dial(node)
    client.writer.write(message("good") + bad + message("lost"))
    assert await client.read_to_end() == node.answer_refused
    assert [data for data, *_ in node.got] == [message("good")]
    assert [(head, code) for head, code, _ in node.refused] == [(bad, status)]
    assert node.reasons == ["framing"]


async def test_stream_of_no_sip_at_all_is_closed(nodes: Make, dial: Dial) -> None:
    node = await nodes()
    client = await dial(node)
    client.writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100))
    assert await client.read_to_end() == b""
    await until(lambda: node.closed)
    assert (node.reasons, node.refused) == (["framing"], [])


async def test_stream_fault_of_the_receiver_is_reported_and_the_stream_goes_on(dial: Dial) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    node = Node()
    got: list[bytes] = []

    def receive(data: bytes, *_: object) -> None:
        got.append(data)
        if len(got) == 1:
            raise RuntimeError("our own fault")

    node.listener.on_message = receive
    await node.listener.start()
    client = await dial(node)
    client.writer.write(message("1") + message("2"))
    await until(lambda: len(got) == 2)
    await node.listener.close()
    assert [str(problem["exception"]) for problem in problems] == ["our own fault"]


async def test_stream_close_writes_what_is_left_and_refuses_what_comes_later(nodes: Make) -> None:
    one, two = await nodes(), await nodes()
    one.listener.send(message("first"), *two.listener.address)
    await until(lambda: two.got)
    one.listener.send(message("last", b"x" * 50_000), *two.listener.address)
    await one.listener.close()
    await until(lambda: len(two.got) == 2)
    assert one.listener.send(message(), *two.listener.address, key="k") == 0
    await until(lambda: one.failed)
    assert (one.failed, one.reasons, len(one.listener)) == ([("k", "shutdown")], ["shutdown"], 0)
    with pytest.raises(OSError):  # noqa: PT011
        await asyncio.open_connection(*one.listener.address)
    await one.listener.close()


async def test_stream_close_while_connecting_fails_what_waits(nodes: Make) -> None:
    one, two = await nodes(), await nodes()
    one.listener.send(message(), *two.listener.address, key="k")
    await one.listener.close()
    await until(lambda: one.failed)
    assert one.failed == [("k", "shutdown")]
    assert len(one.listener) == 0


async def test_stream_close_does_not_wait_for_a_peer_that_does_not_read(nodes: Make) -> None:
    node = await nodes(close_s=0.1, write_bytes=10_000_000)
    with silent_server() as server:
        for _ in range(9):
            node.listener.send(message("x", b"x" * 1_000_000), *server.getsockname())
        await until(lambda: node.listener.counters["sent"])
        async with asyncio.timeout(3):
            await node.listener.close()
    assert len(node.listener) == 0


async def test_stream_peer_that_half_closes_gets_what_was_written(nodes: Make, dial: Dial) -> None:
    node = await nodes()
    client = await dial(node)
    client.writer.write(b"\r\n\r\n")
    client.writer.write_eof()
    assert await client.read_to_end() == b"\r\n"
    await until(lambda: node.closed)
    assert node.reasons == ["peer"]


def test_stream_address_in_use_raises() -> None:
    first = socket.socket()
    first.bind(("127.0.0.1", 0))
    first.listen()
    with pytest.raises(OSError, match="in use"):
        StreamListener("127.0.0.1", first.getsockname()[1], lambda *_: None)
    first.close()


async def test_stream_connection_that_promised_to_speak_ends_when_it_is_silent_and_only_then(nodes: Make, dial: Dial) -> None:
    """RFC 5626 §5.4. What we send is no sign of the peer's life."""
    node = await nodes()
    silent, speaking, unbound = await dial(node), await dial(node), await dial(node)
    for client in (silent, speaking, unbound):
        client.writer.write(message())
    await until(lambda: len(node.got) == 3)
    numbers = {(host, port): connection for _, host, port, connection in node.got}
    for client in (silent, speaking, unbound):
        node.listener.end_silent(numbers[client.name], 3.0)
    node.listener.end_silent(numbers[unbound.name], 0.0)
    node.listener.end_silent(4711, 1.5)  # gone meanwhile

    async def speak() -> None:
        while True:
            speaking.writer.write(b"\r\n\r\n")
            node.listener.send(message("to"), *silent.name, numbers[silent.name])
            await asyncio.sleep(0.1)

    chatter = asyncio.create_task(speak())
    await until(lambda: node.closed, 20)
    await asyncio.sleep(0.5)
    chatter.cancel()
    assert [(number, reason) for number, _, _, reason in node.closed] == [(numbers[silent.name], "silent")]
    assert len(node.listener) == 2


async def test_stream_connection_that_must_not_end_is_looked_at_again(nodes: Make, dial: Dial) -> None:
    node = await nodes()
    client = await dial(node)
    client.writer.write(message())
    await until(lambda: node.got)
    asked: list[int] = []

    def may_end(_host: str, _port: int, connection: int) -> bool:
        asked.append(connection)
        return len(asked) > 2

    node.listener.may_end = may_end
    node.listener.end_silent(node.got[0][3], 0.2)
    await until(lambda: node.closed, 20)
    assert (len(asked), node.reasons) == (3, ["silent"])
