"""The UDP socket of a node on both event loops: delivery, order, ICMP errors, bounds and counters (RFC 3261 §18)."""

from __future__ import annotations

import asyncio
import errno
import itertools
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from waiting import until

from sipproxy.net import udp
from sipproxy.net.udp import UdpListener
from sipproxy.sip.flow import Flow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="ICMP errors of an unconnected socket are a Linux service")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


ADDRESSES = ["127.0.0.1", pytest.param("::1", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on loopback"))]


class Peer:
    """A listener with what it received and what was reported to it."""

    def __init__(self, address: str = "127.0.0.1", **limits: int) -> None:
        self.got: list[tuple[bytes, str, int]] = []
        self.failed: list[tuple[object, str]] = []
        self.listener = UdpListener(address, 0, self._receive, on_failed=self._report, **limits)

    def _receive(self, data: bytes, flow: Flow, _waited_s: float) -> None:
        self.got.append((data, flow.host, flow.port))

    def _report(self, key: object, reason: str) -> None:
        self.failed.append((key, reason))


@pytest.fixture
def peers() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def make(*args: Any, **limits: int) -> Peer:
        made.append(Peer(*args, **limits))
        return made[-1]

    yield make
    for peer in made:
        peer.listener.close()


def free_port(address: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("address", ADDRESSES)
async def test_udp_datagram_arrives_with_its_source(peers: Callable[..., Peer], address: str) -> None:
    one, two = peers(address), peers(address)
    one.listener.start()
    two.listener.start()
    assert one.listener.address[0] == address
    assert one.listener.address[1] != 0
    one.listener.send(b"OPTIONS ...", *two.listener.address)
    await until(lambda: two.got)
    assert two.got == [(b"OPTIONS ...", *one.listener.address)]
    two.listener.send(b"SIP/2.0 200 OK", *two.got[0][1:])
    await until(lambda: one.got)
    assert one.got[0][0] == b"SIP/2.0 200 OK"
    assert (one.listener.counters["sent"], one.listener.counters["sent_bytes"], one.listener.counters["received"]) == (1, 11, 1)


async def test_udp_burst_beyond_one_drain_arrives_whole_and_in_order(peers: Callable[..., Peer]) -> None:
    sender, receiver = peers(), peers()
    count = 5 * udp.DRAIN + 7
    for number in range(count):
        sender.listener.send(b"%d" % number, *receiver.listener.address)
    receiver.listener.start()
    await until(lambda: len(receiver.got) == count)
    assert [int(data) for data, _, _ in receiver.got] == list(range(count))


async def test_udp_burst_leaves_the_loop_to_others_between_drains(peers: Callable[..., Peer]) -> None:
    sender, receiver = peers(), peers()
    for _ in range(3 * udp.DRAIN):
        sender.listener.send(b"x" * 10, *receiver.listener.address)
    receiver.listener.start()
    seen: list[int] = []
    while len(receiver.got) < 3 * udp.DRAIN:
        seen.append(len(receiver.got))
        await asyncio.sleep(0)
    assert all(after - before <= udp.DRAIN for before, after in itertools.pairwise(seen))
    assert len({*seen}) >= 3


@pytest.mark.parametrize("awaited", [(), ("slot",)])
async def test_udp_what_a_datagram_asks_for_leaves_before_the_next_is_handled(
    peers: Callable[..., Peer], awaited: tuple[str, ...]
) -> None:
    """An INVITE's slot is asked of the store in the loop's next turn: its caller need not wait for those behind him. Nor need
    they for an answer that does not come, least of all a call for help (design, invariant 1)."""
    loop, order, sender = asyncio.get_running_loop(), [], peers()

    def handle(data: bytes, _flow: Flow, _waited_s: float) -> None:
        order.append((data, "handled"))
        loop.call_soon(order.append, (data, "asked"))

    listener = UdpListener("127.0.0.1", 0, handle)
    listener.awaited = awaited
    numbers = [b"%d" % number for number in range(8)]
    for number in numbers:
        sender.listener.send(number, *listener.address)
    time.sleep(10 * udp.FRESH_S)  # noqa: ASYNC251  they wait for one another, so that none is taken for the only one
    listener.start()
    try:
        await until(lambda: len(order) == 2 * len(numbers))
    finally:
        listener.close()
    assert order == [(number, step) for number in numbers for step in ("handled", "asked")]


@pytest.mark.parametrize(("awaited", "at_most"), [((), 1), (("slot",), 0)])
async def test_udp_answer_that_came_is_read_before_the_next_datagram_where_it_is_awaited(
    peers: Callable[..., Peer], awaited: tuple[str, ...], at_most: int
) -> None:
    """An INVITE leaves when the store has answered: whatever else waits in the node's socket. asyncio's own loop has begun the
    next turn when it reads, and is one datagram behind."""
    loop, sender, handled, behind = asyncio.get_running_loop(), peers(), [], []
    store, node = socket.socketpair()

    def handle(data: bytes, _flow: Flow, _waited_s: float) -> None:
        handled.append(data)
        store.send(b"+")

    def read() -> None:
        node.recv(1)
        behind.append(len(handled) - len(behind) - 1)

    listener = UdpListener("127.0.0.1", 0, handle)
    listener.awaited = awaited
    for number in range(8):
        sender.listener.send(b"%d" % number, *listener.address)
    time.sleep(10 * udp.FRESH_S)  # noqa: ASYNC251  as above
    loop.add_reader(node.fileno(), read)
    listener.start()
    try:
        await until(lambda: len(behind) == 8)
    finally:
        loop.remove_reader(node.fileno())
        listener.close()
        store.close()
        node.close()
    assert max(behind) <= (at_most if isinstance(loop, uvloop.Loop) else 1)


async def test_udp_largest_datagram_passes_untruncated(peers: Callable[..., Peer]) -> None:
    sender, receiver = peers(), peers()
    receiver.listener.start()
    data = bytes(range(256)) * 255
    sender.listener.send(data, *receiver.listener.address)
    await until(lambda: receiver.got)
    assert receiver.got[0][0] == data


async def test_udp_datagram_beyond_the_limit_is_dropped_and_counted(peers: Callable[..., Peer]) -> None:
    sender, receiver = peers(), peers(max_datagram=1000)
    receiver.listener.start()
    for size in (1001, 1000):
        sender.listener.send(b"x" * size, *receiver.listener.address)
    await until(lambda: receiver.got)
    assert [len(data) for data, _, _ in receiver.got] == [1000]
    assert receiver.listener.dropped["too_large"] == 1


@pytest.mark.parametrize("keepalive", [b"", b"\0", b"\r\n", b"\r\n\r\n", b"\0\0\0\0"])
async def test_udp_keepalive_is_counted_and_not_delivered(peers: Callable[..., Peer], keepalive: bytes) -> None:
    sender, receiver = peers(), peers()
    receiver.listener.start()
    sender.listener.send(keepalive, *receiver.listener.address)
    sender.listener.send(b"\r\n\r\nx", *receiver.listener.address)
    await until(lambda: receiver.got)
    assert [data for data, _, _ in receiver.got] == [b"\r\n\r\nx"]
    assert receiver.listener.counters["keepalives"] == 1


@linux_only
@pytest.mark.parametrize("address", ADDRESSES)
async def test_udp_destination_nobody_listens_on_is_reported_and_the_listener_lives(
    peers: Callable[..., Peer], address: str
) -> None:
    """RFC 3261 §18.4. An error in the socket's queue must not stop delivery either: libuv gives such a socket up."""
    peer, other = peers(address), peers(address)
    peer.listener.start()
    dead = (address, free_port(address))
    for round_number in range(1, 4):
        peer.listener.send(b"hello", *dead, key=round_number)
        await until(lambda: len(peer.failed) == round_number)  # noqa: B023
        other.listener.send(b"still there?", *peer.listener.address)
        await until(lambda: len(peer.got) == round_number)  # noqa: B023
    assert peer.failed == [(1, "unreachable"), (2, "unreachable"), (3, "unreachable")]
    assert peer.listener.counters["unreachable"] == 3


@linux_only
async def test_udp_pending_error_of_one_destination_does_not_fail_another(peers: Callable[..., Peer]) -> None:
    peer, other = peers(), peers()
    peer.listener.start()
    other.listener.start()
    dead = ("127.0.0.1", free_port("127.0.0.1"))
    peer.listener.send(b"hello", *dead, key="dead")
    peer.listener.send(b"hello", *other.listener.address, key="alive")  # meets the refusal of the one before
    assert peer.failed == []  # never from within send
    await until(lambda: other.got and peer.failed)
    assert peer.failed == [("dead", "unreachable")]
    assert peer.listener.counters["sent"] == 2


@linux_only
async def test_udp_refusal_names_the_datagram_that_it_quotes(peers: Callable[..., Peer]) -> None:
    peer = peers()
    peer.listener.start()
    dead = ("127.0.0.1", free_port("127.0.0.1"))
    peer.listener.send(b"A" * 1400, *dead, key="a")
    peer.listener.send(b"B" * 1400, *dead, key="b")
    peer.listener.send(b"no key: only counted", *dead)
    await until(lambda: peer.listener.counters["unreachable"] == 3 and len(peer.failed) == 2)
    assert peer.failed == [("a", "unreachable"), ("b", "unreachable")]
    assert len(peer.listener._recent) == 2


@pytest.mark.parametrize(
    ("host", "port"), [("localhost", 5060), ("sip.example", 5060), ("127.0.0.1", 0), ("127.0.0.1", 65536), ("::1", 5060)]
)
async def test_udp_send_to_what_it_cannot_reach_raises_and_counts(peers: Callable[..., Peer], host: str, port: int) -> None:
    peer = peers()
    with pytest.raises(OSError):  # noqa: PT011  the numbers differ by platform
        peer.listener.send(b"x", host, port)
    assert peer.listener.dropped["send_failed"] == 1
    assert peer.listener.counters["sent"] == 0


class FullSocket:
    """A socket whose send buffer is full until told otherwise."""

    def __init__(self, inner: socket.socket, error: OSError) -> None:
        self._inner = inner
        self.error: OSError | None = error

    def sendto(self, data: bytes, address: tuple[str, int]) -> int:
        if self.error is not None:
            raise self.error
        return self._inner.sendto(data, address)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def fill(peer: Peer, error: OSError) -> FullSocket:
    full = FullSocket(peer.listener._socket, error)
    peer.listener._socket = full  # type: ignore[assignment]
    return full


async def test_udp_full_kernel_buffer_queues_and_sends_in_order_when_there_is_room(peers: Callable[..., Peer]) -> None:
    peer, other = peers(), peers()
    peer.listener.start()
    other.listener.start()
    full = fill(peer, BlockingIOError(errno.EAGAIN, "again"))
    for number in range(udp.SEND_QUEUE + 3):
        peer.listener.send(b"%d" % number, *other.listener.address)
    assert peer.listener.queued == udp.SEND_QUEUE
    assert peer.listener.dropped["send_queue_full"] == 3
    full.error = None
    await until(lambda: len(other.got) == udp.SEND_QUEUE)
    assert [int(data) for data, _, _ in other.got] == list(range(udp.SEND_QUEUE))
    assert peer.listener.queued == 0


async def test_udp_queued_datagram_that_fails_later_is_reported_not_raised(peers: Callable[..., Peer]) -> None:
    peer = peers()
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    peer.listener.start()
    full = fill(peer, BlockingIOError(errno.EAGAIN, "again"))
    peer.listener.send(b"x", "127.0.0.1", 9, key="k")
    full.error = OSError(errno.EHOSTUNREACH, "no route")
    await until(lambda: peer.failed)
    assert peer.failed == [("k", "send_failed")]
    assert (peer.listener.queued, peer.listener.dropped["send_failed"], problems) == (0, 1, [])


async def test_udp_device_queue_full_is_a_counted_loss(peers: Callable[..., Peer]) -> None:
    peer = peers()
    fill(peer, OSError(errno.ENOBUFS, "no buffers"))
    peer.listener.send(b"x", "127.0.0.1", 9)
    assert peer.listener.dropped["no_buffers"] == 1


@linux_only
async def test_udp_kernel_drops_are_read_from_the_socket(peers: Callable[..., Peer]) -> None:
    sender, receiver = peers(), peers()
    assert receiver.listener.kernel_drops == 0
    receiver.listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(100):
        sender.listener.send(b"x" * 1000, *receiver.listener.address)
    dropped = receiver.listener.kernel_drops
    assert dropped > 0
    receiver.listener.close()
    assert receiver.listener.kernel_drops == dropped, "those of a socket that is gone were dropped all the same"


@linux_only
@pytest.mark.parametrize("ago_s", [-5.0, 3600.0])
def test_udp_wait_of_a_datagram_that_came_before_the_clock_was_set_is_not_known(ago_s: float) -> None:
    stamp = struct.pack("=qq", int(time.time() - ago_s), 0)
    assert udp._waited_s([(socket.SOL_SOCKET, udp._SO_TIMESTAMPNS, stamp)]) == 0.0


@linux_only
async def test_udp_how_long_a_datagram_waited_to_be_read_is_told_with_it(peers: Callable[..., Peer]) -> None:
    sender, got = peers(), list[tuple[bytes, float]]()
    listener = UdpListener("127.0.0.1", 0, lambda data, _, waited_s: got.append((data, waited_s)))
    for data in (b"x", b"y" * 1000):
        sender.listener.send(data, *listener.address)
    await asyncio.sleep(0.2)
    listener.start()
    await until(lambda: len(got) == 2)
    assert [data for data, _ in got] == [b"x", b"y" * 1000]
    assert all(0.2 <= waited_s < 60 for _, waited_s in got)
    before = time.monotonic()
    sender.listener.send(b"z", *listener.address)
    await until(lambda: len(got) == 3)
    assert 0.0 < got[2][1] <= time.monotonic() - before
    listener.close()


async def test_udp_flow_of_a_source_is_one_object_for_all_its_datagrams() -> None:
    flows: list[Flow] = []
    listener = UdpListener("127.0.0.1", 0, lambda _, flow, __: flows.append(flow), index=3)
    listener.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as two:
        for sender in (one, two, one):
            sender.sendto(b"hello", listener.address)
        await until(lambda: len(flows) == 3)
        assert flows == [Flow("UDP", 3, "127.0.0.1", sender.getsockname()[1]) for sender in (one, two, one)]
    assert flows[2] is flows[0]
    listener.close()


async def test_udp_close_from_within_a_delivery_stops_at_once(peers: Callable[..., Peer]) -> None:
    sender = peers()
    got: list[bytes] = []

    def receive(data: bytes, _flow: Flow, _waited_s: float) -> None:
        got.append(data)
        listener.close()

    listener = UdpListener("127.0.0.1", 0, receive)
    for _ in range(3):
        sender.listener.send(b"x", *listener.address)
    listener.start()
    await until(lambda: got)
    await asyncio.sleep(0.01)
    listener.close()
    assert got == [b"x"]
    assert listener.kernel_drops == 0


async def test_udp_fault_of_the_receiver_does_not_stop_delivery(peers: Callable[..., Peer]) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    sender, got = peers(), list[bytes]()

    def receive(data: bytes, _flow: Flow, _waited_s: float) -> None:
        got.append(data)
        if data == b"bad":
            raise RuntimeError("our own fault")

    listener = UdpListener("127.0.0.1", 0, receive)
    listener.start()
    for data in (b"bad", b"good!"):
        sender.listener.send(data, *listener.address)
    await until(lambda: len(got) == 2)
    listener.close()
    assert [str(problem["exception"]) for problem in problems] == ["our own fault"]


def test_udp_address_in_use_raises_and_leaks_nothing() -> None:
    first = UdpListener("127.0.0.1", 0, lambda *_: None)
    with pytest.raises(OSError, match="in use"):
        UdpListener("127.0.0.1", first.address[1], lambda *_: None)
    first.close()
    UdpListener(*first_address_free(), lambda *_: None).close()


def first_address_free() -> tuple[str, int]:
    return "127.0.0.1", free_port("127.0.0.1")


@pytest.mark.parametrize("address", ["localhost", "sip.example", ""])
def test_udp_bind_to_a_name_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        UdpListener(address, 0, lambda *_: None)
