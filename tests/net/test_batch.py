"""Datagrams that are read many at once are those that reading one by one gives, with what is told of each."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from sipproxy.net.batch import BATCH, ROOM_BYTES, Batch, OneByOne, batch
from sipproxy.net.udp import bind_udp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

linux = pytest.mark.skipif(sys.platform != "linux", reason="recvmmsg is Linux's")
SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>
EACH = [pytest.param(OneByOne, id="one by one"), pytest.param(Batch, id="many at once", marks=linux)]


@pytest.fixture(params=["127.0.0.1", "::1"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A listener's socket and a peer's."""
    node, peer = bind_udp(request.param, 0), bind_udp(request.param, 0)
    yield node, peer
    node.close()
    peer.close()


def all_of(reader: OneByOne, node: socket.socket, most: int = BATCH) -> list[tuple[bytes, tuple[str, int], bytes]]:
    """All that waits: the datagram, where it came from, and the stamp that the kernel gave it."""
    found = []
    while True:
        try:
            read = reader.read(node, most)
        except BlockingIOError:
            return found
        assert 0 < len(read) <= most
        for number, data in enumerate(read):
            ((level, kind, stamp),) = reader.ancillary(number)
            assert (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS)
            found.append((data, reader.source(number), stamp))


@pytest.mark.parametrize("make", EACH)
@pytest.mark.parametrize("most", [1, 3, 10 * BATCH])
def test_batch_all_that_waits_is_read_in_order_and_whole(
    pair: tuple[socket.socket, socket.socket], make: Callable[[], OneByOne], most: int
) -> None:
    node, peer = pair
    sent = [b"", *(b"%d " % number * (number % 400) for number in range(2 * BATCH + 1)), b"x" * 60_000, b"end"]
    for data in sent:
        peer.sendto(data, node.getsockname())
    came = all_of(make(), node, most)
    assert [data for data, _, _ in came] == sent
    assert {source for _, source, _ in came} == {peer.getsockname()[:2]}
    stamps = [struct.unpack("=qq", stamp) for _, _, stamp in came]
    assert stamps == sorted(stamps), "of a datagram each, by the clock"
    assert stamps[0] < stamps[-1]


@pytest.mark.parametrize("make", EACH)
def test_batch_what_an_earlier_datagram_left_is_not_told_of_a_later_one(make: Callable[[], OneByOne]) -> None:
    """A long one from a short address without a stamp, and a short one from a long address with one, in turn."""
    reader = make()
    for address, data, stamps in [("127.0.0.1", b"long" * 100, 0), ("::1", b"short", 1)] * 2:
        with bind_udp(address, 0) as node, bind_udp(address, 0) as peer:
            node.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, stamps)
            peer.sendto(data, node.getsockname())
            assert list(reader.read(node, BATCH)) == [data]
            assert reader.source(0) == peer.getsockname()[:2]
            assert [len(stamp) for _, _, stamp in reader.ancillary(0)] == [16] * stamps


@linux
@pytest.mark.parametrize("make", EACH)
def test_batch_error_of_an_earlier_datagram_is_raised_and_loses_none(
    pair: tuple[socket.socket, socket.socket], make: Callable[[], OneByOne]
) -> None:
    """RFC 3261 §18.4: ICMP said that nobody listens."""
    node, peer = pair
    gone = bind_udp(node.getsockname()[0], 0)
    nobody = gone.getsockname()
    gone.close()
    node.sendto(b"to nobody", nobody)
    peer.sendto(b"a request", node.getsockname())
    reader = make()
    with pytest.raises(OSError) as raised:  # noqa: PT011  the number says which
        reader.read(node, BATCH)
    assert raised.value.errno == errno.ECONNREFUSED
    node.recvmsg(ROOM_BYTES, 512, socket.MSG_ERRQUEUE)
    assert [data for data, _, _ in all_of(reader, node)] == [b"a request"]


@linux
def test_batch_reads_many_where_the_machine_can() -> None:
    assert isinstance(batch(), Batch)
