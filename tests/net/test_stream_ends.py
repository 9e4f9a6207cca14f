"""How connections of a node end, on both event loops: by time, by their peer, by the node (RFC 3261 §18, RFC 5626 §3.5.1)."""

from __future__ import annotations

import asyncio
import os
import resource
from typing import TYPE_CHECKING

import pytest
from streams import message, silent_server
from waiting import until

from sipproxy.net import stream

if TYPE_CHECKING:
    from streams import Dial, Make


async def test_stream_peer_that_does_not_read_fills_the_buffer_and_is_cut_off(nodes: Make) -> None:
    node = await nodes(write_bytes=100_000, stalled_s=0.2)
    with silent_server() as server:
        target, big = server.getsockname(), message("x", b"x" * 40_000)
        node.listener.send(message(), *target)
        await until(lambda: node.listener.counters["connected"])
        async with asyncio.timeout(40):
            for key in range(10_000):
                if node.failed:
                    break
                node.listener.send(big, *target, key=key)
                await asyncio.sleep(0)
        assert {reason for _, reason in node.failed} == {"write_buffer_full"}
        assert all(c._transport.get_write_buffer_size() <= 100_000 for c in node.listener._connections.values() if c._transport)
        await until(lambda: node.closed)
    assert node.reasons == ["stalled"]


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
    node = await nodes(idle_s=1.0)
    idle, busy = await dial(node), await dial(node)
    idle.writer.write(message("idle"))
    async with asyncio.timeout(40):
        while "idle" not in node.reasons:
            busy.writer.write(message("busy"))
            await asyncio.sleep(0.02)
    assert await idle.read_to_end() == b""
    assert [(host, port) for _, host, port, _ in node.closed] == [idle.name]
    assert len(node.listener) == 1


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
        async with asyncio.timeout(40):
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


async def test_stream_without_a_file_descriptor_left_fails_what_was_to_go_and_connects_when_there_is_one(nodes: Make) -> None:
    """What could not be opened is forgotten: a trunk would never be reached again by an entry that stays."""
    node = await nodes()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with silent_server() as server:
        free = os.dup(server.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))  # every lower number is taken
        try:
            node.listener.send(message(), *server.getsockname(), key="none left")
            await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(5):
            await asyncio.sleep(0)
        failed, count = list(node.failed), len(node.listener)
        node.listener._connections.clear()  # of what stays, for which the end of the listener would wait
        assert (failed, count) == ([("none left", "connect")], 0)
        node.listener.send(message(), *server.getsockname(), key="again")
        await until(lambda: node.listener.counters["connected"])
    assert node.listener.counters["sent"] == 1


async def test_stream_that_a_fault_of_ours_keeps_from_opening_is_reported_and_forgotten(
    nodes: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, faults = await nodes(), list[dict[str, object]]()
    monkeypatch.setattr(stream, "_socket", lambda address: address.no_such_thing)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    node.listener.send(message(), "127.0.0.1", 9, key="lost")
    for _ in range(5):
        await asyncio.sleep(0)
    failed, count = list(node.failed), len(node.listener)
    node.listener._connections.clear()
    assert (failed, count) == ([("lost", "connect")], 0)
    assert [type(fault["exception"]) for fault in faults] == [AttributeError]
