"""TCP of a node on both event loops: framing, reuse, bounds, failures (RFC 3261 §18)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import pytest
from streams import Node, free_port, message, silent_server
from waiting import until

from sipproxy.net.stream import StreamListener
from tests.garbage import uncollected

if TYPE_CHECKING:
    from streams import Dial, Make


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


ADDRESSES = ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on loopback"))]


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


async def test_stream_messages_waiting_for_the_connection_are_bounded(nodes: Make) -> None:
    one, two = await nodes(write_bytes=1000), await nodes()
    sent = [one.listener.send(message("x", b"x" * 400), *two.listener.address, key=n) for n in range(4)]
    assert [bool(number) for number in sent] == [True, True, False, False]
    await until(lambda: len(two.got) == 2 and len(one.failed) == 2)
    assert one.failed == [(2, "write_buffer_full"), (3, "write_buffer_full")]


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


async def test_stream_that_has_ended_leaves_nothing_that_refers_to_itself(nodes: Make, dial: Dial) -> None:
    node = await nodes()
    with uncollected() as unreachable:
        for number, data in enumerate((b"", message(), message() + b"no SIP\r\n\r\n", b"no SIP\r\n\r\n", message()[:20])):
            client = await dial(node)
            client.writer.write(data)
            client.writer.close()
            await until(lambda number=number: len(node.closed) > number)
            del client
        assert not unreachable()


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


def test_stream_address_in_use_raises() -> None:
    first = socket.socket()
    first.bind(("127.0.0.1", 0))
    first.listen()
    with pytest.raises(OSError, match="in use"):
        StreamListener("127.0.0.1", first.getsockname()[1], lambda *_: None)
    first.close()
