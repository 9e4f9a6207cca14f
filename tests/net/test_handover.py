"""Unix datagram sockets between the workers of a node: whole messages in order, within a bound, also to one that is away."""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from sipproxy.net.handover import MAX_QUEUED, Post, pair

if TYPE_CHECKING:
    from collections.abc import Iterator

BIG = b"x" * 60_000


@contextmanager
def posts() -> Iterator[tuple[Post, Post, asyncio.Queue[bytes]]]:
    """Worker 1, worker 2 which does not read yet, and what came to it."""
    (inbox1, outbox1), (inbox2, outbox2) = pair(), pair()
    got: asyncio.Queue[bytes] = asyncio.Queue()
    first = Post(inbox1, {2: outbox2}, lambda _: None)
    second = Post(inbox2, {1: outbox1}, lambda data: got.put_nowait(bytes(data)))
    first.start()
    yield first, second, got
    first.close()
    second.close()


async def received(got: asyncio.Queue[bytes], count: int) -> list[bytes]:
    async with asyncio.timeout(60):
        return [await got.get() for _ in range(count)]


async def test_messages_to_a_worker_that_does_not_read_are_kept_in_order_within_a_bound() -> None:
    with posts() as (first, second, got):
        sent = 0
        while first.queued < MAX_QUEUED:
            assert first.send(2, b"%d " % sent + BIG)
            sent += 1
        assert not first.send(2, b"one more")
        assert first.counters["queue_full"] == 1
        second.start()
        found = await received(got, sent)
        assert [int(data.partition(b" ")[0]) for data in found] == list(range(sent))
        assert (first.queued, first.counters["passed"], second.counters["taken"]) == (0, sent, sent)


@pytest.mark.parametrize("size", [0, 1, 65_535 + 400])
async def test_message_of_any_size_that_sip_has_passes_whole(size: int) -> None:
    with posts() as (first, second, got):
        second.start()
        assert first.send(2, bytes(size))
        assert await received(got, 1) == [bytes(size)]


async def test_message_that_no_socket_takes_is_refused_and_counted() -> None:
    inbox, outbox = pair()
    outbox.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    post = Post(inbox, {2: outbox}, lambda _: None)
    post.start()
    assert not post.send(2, BIG)
    assert post.counters["too_large"] == 1
    post.close()
    assert not post.send(2, b"after the end")
