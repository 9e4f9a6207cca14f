"""One UDP socket of the node: datagrams in by callback, datagrams out at once (RFC 3261 §18).

A wake-up of the loop handles one datagram, or reads a bounded number ahead while they wait, without a task for any of them.
What ICMP says about a datagram we sent is reported with the destination it was sent to (§18.4). What is not here: parsing, the
choice of a destination, names.

Linux reports ICMP errors of an unconnected socket only with IP_RECVERR, and such an error makes libuv (and so uvloop) give
up the descriptor. The loop therefore watches an epoll descriptor that watches the socket: readable is all it ever is.
Elsewhere than on Linux the socket is watched directly and ICMP errors are not seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import select
import socket
import struct
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from sipproxy.net.batch import STAMP_BYTES
from sipproxy.net.intake import QUEUE_S
from sipproxy.sip.flow import Flow, is_literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

    from sipproxy.net.intake import Intake

__all__ = ["UdpListener", "bind_ahead", "bind_udp"]

_Datagram = tuple[bytes, str, int, "Hashable | None"]

DRAIN = 1  # datagrams per wake-up: the slot that one asks for is asked of the store, and answers are read, before the next
AHEAD = 256  # datagrams per wake-up while there is a backlog, which is worked off besides: twice as long as its turn at most
FRESH_S = 0.0002  # what has waited for less was the last: to be told that there is no other costs more than to be woken again
FLOWS = 4096  # sources whose `Flow` is kept, one object for all that is known by it, compared by identity; addresses sent to
ERRORS = 64  # ICMP errors read in one go
RECENT = 512  # datagrams remembered with their keys, for ICMP errors to name them: some seconds' worth of INVITEs
SEND_QUEUE = 512  # datagrams held while the kernel's buffer is full
MAX_WAIT_S = 60.0  # a buffer holds no more
MAX_DATAGRAM = 65535  # no UDP payload is larger
KERNEL_BUFFER = 4 * 1024 * 1024  # asked for; the kernel grants up to net.core.rmem_max and wmem_max

# <linux/in.h>, <linux/in6.h>, <asm-generic/socket.h>, <linux/errqueue.h>: not in Python's socket module.
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_IP_FREEBIND = 15
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("=qq")  # seconds, nanoseconds
_SO_MEMINFO = 55
_SK_MEMINFO_DROPS = 8
_EXTENDED_ERROR = struct.Struct("=IBBBB")  # errno, origin, type, code, pad
_ORIGIN_ICMP, _ORIGIN_ICMP6 = 2, 3
# RFC 3261 §18.4: unreachable and parameter problem are failures; source quench and time exceeded are ignored.
_FAILURES = {(_ORIGIN_ICMP, 3), (_ORIGIN_ICMP, 12), (_ORIGIN_ICMP6, 1), (_ORIGIN_ICMP6, 4)}


class UdpListener:
    """A bound, non-blocking UDP socket. `on_datagram(data, flow, waited_s)` is called in order of arrival; a datagram waited
    for so many seconds in the kernel's buffer, 0.0 where that does not tell. `index` is the listener's in its flows.

    `on_failed(key, reason)` is called, later and never from within `send`, with the key of a datagram that ICMP reports as not
    delivered, or that was queued and could not be sent. `counters` holds plain integers by name; `dropped` counts by reason
    what was not delivered.
    """

    def __init__(
        self,
        address: str,
        port: int,
        on_datagram: Callable[[bytes, Flow, float], None],
        *,
        index: int = 0,
        on_failed: Callable[[Hashable, str], None] | None = None,
        max_datagram: int = MAX_DATAGRAM,
        may_wait: bool = False,
        take: Callable[[], socket.socket] | None = None,
    ) -> None:
        """Bind to an IP literal; port 0 takes a free one. Raises OSError when that is not possible, ValueError for a name.

        With `may_wait` an address that is not on this machine yet makes a closed listener, which `reopen` opens. With `take`
        the socket is what it gives, each time that one is needed.
        """
        self._received = self._received_bytes = self._sent = self._sent_bytes = self._keepalives = self._unreachable = 0
        self.dropped = {"too_large": 0, "send_queue_full": 0, "no_buffers": 0, "send_failed": 0}
        self._on_datagram = on_datagram
        self.intake: Intake | None = None  # gets what comes while datagrams wait; set by who has one for several listeners
        self.awaited: Collection[object] = ()  # while there is any, what other sockets have is read before a datagram
        self._index = index
        self._on_failed = on_failed
        self._max_datagram = max_datagram
        self._read = memoryview(bytearray(MAX_DATAGRAM))  # a new one for each datagram would be as large, and mostly cut off
        self._into = [self._read]
        self._queue: deque[_Datagram] = deque()
        self._recent: deque[_Datagram] = deque(maxlen=RECENT)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._poll: select.epoll | None = None
        self._former_drops = 0  # of the kernel, on sockets that were closed
        # Is told what ICMP says about a datagram that is not remembered here: another worker of the node sent it.
        self.on_stray: Callable[[bytes, str, int], None] = lambda quoted, host, port: None  # noqa: ARG005
        self._take = take
        bind = take or functools.partial(bind_udp, address, port)
        self._socket, self.address = bound_or_away(bind, address, port, may_wait=may_wait)
        self.is_open = self._socket.fileno() >= 0

    @property
    def counters(self) -> dict[str, int]:
        """What passed so far, by name."""
        return {
            "received": self._received,
            "received_bytes": self._received_bytes,
            "sent": self._sent,
            "sent_bytes": self._sent_bytes,
            "keepalives": self._keepalives,
            "unreachable": self._unreachable,
        }

    @property
    def queued(self) -> int:
        """Datagrams that wait for room in the kernel's buffer."""
        return len(self._queue)

    @property
    def kernel_drops(self) -> int:
        """Datagrams that the kernel dropped because its receive buffer was full; 0 where it does not tell."""
        if sys.platform != "linux" or not self.is_open:
            return self._former_drops
        info = self._socket.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 4 * (_SK_MEMINFO_DROPS + 1))
        return self._former_drops + int.from_bytes(info[4 * _SK_MEMINFO_DROPS :], sys.byteorder)

    def start(self) -> None:
        """Deliver datagrams on the running event loop from now on, where the listener is open."""
        if not self.is_open:
            return
        loop = self._loop = asyncio.get_running_loop()
        if sys.platform == "linux":
            self._poll = select.epoll()
            self._poll.register(self._socket.fileno(), select.EPOLLIN)
            loop.add_reader(self._poll.fileno(), self._wake)
        else:
            loop.add_reader(self._socket.fileno(), self._wake)

    def close(self) -> None:
        """Stop and close; harmless when repeated. What still waits to be sent is tried once and then dropped."""
        if not self.is_open:
            return
        self._flush()
        self._former_drops = self.kernel_drops
        self.dropped["send_queue_full"] += len(self._queue)
        self._queue.clear()
        if self._loop is not None:
            _forget(self._loop.remove_reader, self._socket if self._poll is None else self._poll)
            if self._poll is None:
                _forget(self._loop.remove_writer, self._socket)
            else:
                self._poll.close()
        self.is_open = False
        self._socket.close()

    def reopen(self) -> None:
        """Bind to the same address again after `close`, and deliver datagrams. Raises OSError when it cannot be had."""
        self._socket = self._take() if self._take is not None else bind_udp(*self.address)
        self.is_open = True
        self.start()

    def send(self, data: bytes, host: str, port: int, key: Hashable | None = None) -> None:
        """Send one datagram to an IP literal, or queue it while the kernel's buffer is full. `key` names it in `on_failed`.

        Raises OSError when it cannot be sent there at all; a datagram dropped for want of room is counted, and is to the
        transaction what a datagram lost on the way is.
        """
        if self._queue:
            self._enqueue((data, host, port, key))
            return
        try:
            self._transmit(data, host, port, key)
        except BlockingIOError:
            self._enqueue((data, host, port, key))
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                self.dropped["send_failed"] += 1
                raise
            self.dropped["no_buffers"] += 1

    def _transmit(self, data: bytes, host: str, port: int, key: Hashable | None) -> None:
        if not self.is_open:
            raise OSError(errno.EADDRNOTAVAIL, "the listener's address is gone")
        address = _address(host, port)
        try:
            self._socket.sendto(data, address)
        except OSError as error:
            if isinstance(error, BlockingIOError) or not self._drain_errors():
                raise
            self._socket.sendto(data, address)  # The error was that of an earlier datagram, and has been reported.
        if key is not None:
            self._recent.append((data, host, port, key))
        self._sent += 1
        self._sent_bytes += len(data)

    def _enqueue(self, datagram: _Datagram) -> None:
        if len(self._queue) >= SEND_QUEUE:
            self.dropped["send_queue_full"] += 1
            return
        self._queue.append(datagram)
        if len(self._queue) == 1:
            self._watch_writable(wanted=True)

    def _watch_writable(self, *, wanted: bool) -> None:
        if self._loop is None:
            return
        if self._poll is not None:
            self._poll.modify(self._socket.fileno(), select.EPOLLIN | (select.EPOLLOUT if wanted else 0))
        elif wanted:
            self._loop.add_writer(self._socket.fileno(), self._wake)
        else:
            _forget(self._loop.remove_writer, self._socket)

    def _wake(self) -> None:
        if self.awaited and self._loop is not None:
            self._loop.call_soon(self._read_some)  # in the next turn: answers that came in this one go first
        else:
            self._read_some()

    def _read_some(self) -> None:
        if self._queue:
            self._flush()
        intake = self.intake
        if intake is not None and intake.backlog.waiting:
            self._read_ahead(intake)
            return
        for _ in range(DRAIN):
            if not self.is_open:  # which a datagram may change
                return
            try:
                size, ancillary, _, source = self._socket.recvmsg_into(self._into, STAMP_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self._drain_errors()  # An ICMP error of an earlier datagram stood before the datagrams to be read.
                continue
            waited_s = _waited_s(ancillary) if ancillary else 0.0
            self._received += 1
            self._received_bytes += size
            data = self._read[:size].tobytes()
            behind = intake if waited_s >= QUEUE_S else None
            if self._is_message(data):
                (self._on_datagram if behind is None else behind.put)(data, _flow_of(self._index, source), waited_s)
            if behind is not None:
                self._read_ahead(behind)
                return
            if waited_s < FRESH_S:
                return

    def _read_ahead(self, intake: Intake) -> None:
        """Read what waits into the node's own backlog. Of a new call that finds no room there neither way nor wait is asked."""
        backlog, batch, left = intake.backlog, intake.batch, AHEAD
        backlog.make_room(time.monotonic())
        while (most := min(left, backlog.room)) > 0:
            try:
                read = batch.read(self._socket, most)
            except BlockingIOError:
                return
            except OSError:
                self._drain_errors()
                left -= 1
                continue
            left -= len(read)
            self._received += len(read)
            self._received_bytes += sum(map(len, read))
            for number, data in enumerate(read):
                if backlog.passes_over(data) or not self._is_message(data):
                    continue
                ancillary = batch.ancillary(number)
                intake.put(data, _flow_of(self._index, batch.source(number)), _waited_s(ancillary) if ancillary else 0.0)

    def _is_message(self, data: bytes) -> bool:
        """Whether there is anything to look at in a datagram."""
        if len(data) > self._max_datagram:
            self.dropped["too_large"] += 1
            return False
        if len(data) <= 4 and not data.strip(b"\r\n\0"):
            self._keepalives += 1  # What routers send to hold their NAT's mapping: nothing to answer.
            return False
        return True

    def _flush(self) -> None:
        while self._queue:
            try:
                self._transmit(*self._queue[0])
            except BlockingIOError:
                return
            except OSError:
                self.dropped["send_failed"] += 1
                self._report(self._queue[0][3], "send_failed")
            self._queue.popleft()
        self._watch_writable(wanted=False)

    def _drain_errors(self) -> bool:
        """Report what waits in the socket's error queue; False when nothing did."""
        if sys.platform != "linux":
            return False
        for count in range(ERRORS):
            try:
                quoted, ancillary, _, destination = self._socket.recvmsg(MAX_DATAGRAM, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return count > 0
            for _, _, data in ancillary:
                _, origin, kind, _, _ = _EXTENDED_ERROR.unpack_from(data)
                if (origin, kind) in _FAILURES:
                    self._unreachable += 1
                    self.unreachable(quoted, destination[0], destination[1])
        return True

    def unreachable(self, quoted: bytes, host: str, port: int, *, stray: bool = False) -> None:
        """ICMP says that a datagram which begins so did not get there; `stray` when another worker's socket heard of it."""
        key = self._key_of(quoted, host, port)
        self._report(key, "unreachable")
        if key is None and not stray:
            self.on_stray(quoted, host, port)

    def _key_of(self, quoted: bytes, host: str, port: int) -> Hashable | None:
        """The key of the datagram that an ICMP error quotes, as much of it as it does; None when it is not remembered."""
        for data, to_host, to_port, key in reversed(self._recent):
            if to_port == port and to_host == host and data.startswith(quoted):
                return key
        return None

    def _report(self, key: Hashable | None, reason: str) -> None:
        # INVARIANT: never from within `send`: who sends is in the middle of handling another event.
        if self._on_failed is not None and self._loop is not None and key is not None:
            self._loop.call_soon(self._on_failed, key, reason)


@functools.lru_cache(maxsize=FLOWS)
def _flow_of(index: int, source: tuple[str, int] | tuple[str, int, int, int]) -> Flow:
    """The flow of a source, an address as the socket tells it (with further parts for IPv6)."""
    return Flow("UDP", index, source[0], source[1])


@functools.lru_cache(maxsize=FLOWS)
def _address(host: str, port: int) -> tuple[str, int]:
    """Both as the socket takes them. Raises OSError where nothing can be sent."""
    if not is_literal(host):
        raise OSError(errno.EINVAL, "not an IP literal")  # The socket would resolve it, and block the loop meanwhile.
    if not 0 < port < 65536:
        raise OSError(errno.EINVAL, "not a port to send to")
    return host, port


def _forget(remove: Callable[[int], object], watched: socket.socket | select.epoll) -> None:
    """Have the loop watch it no more; whether it did, uvloop does not say, and compiled code insists on what is declared."""
    remove(watched.fileno())


def _waited_s(ancillary: list[tuple[int, int, bytes]]) -> float:
    """For how many seconds a datagram had waited when it was read, by what the kernel told with it; 0.0 where it told nothing,
    or the clock was set meanwhile."""
    _, kind, stamp = ancillary[0]  # of which nothing else was asked for
    if kind != _SO_TIMESTAMPNS or len(stamp) != _TIMESPEC.size:
        return 0.0
    seconds, nanoseconds = _TIMESPEC.unpack(stamp)
    waited: float = time.time() - seconds - nanoseconds / 1e9
    return waited if 0.0 < waited < MAX_WAIT_S else 0.0


def bound_or_away(
    bind: Callable[[], socket.socket], address: str, port: int, *, may_wait: bool
) -> tuple[socket.socket, tuple[str, int]]:
    """A listener's socket and address; a closed socket where the address is not there and `may_wait`. Raises OSError."""
    try:
        sock = bind()
    except OSError as error:
        if not (may_wait and port and error.errno == errno.EADDRNOTAVAIL):
            raise
        sock = socket.socket()
        sock.close()
        return sock, (address, port)
    return sock, sock.getsockname()[:2]


def bind_ahead(sock: socket.socket) -> None:
    """Let the socket bind to an address that is not on this machine yet, as far as the kernel can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # for IPv6 sockets too


def bind_udp(address: str, port: int, *, ahead: bool = False, shared: bool = False) -> socket.socket:
    """A bound socket as a listener has it; with `shared` one of several on the same address (SO_REUSEPORT), between which the
    kernel chooses by source address and port; `ahead` as in `bind_ahead`. Raises OSError, and ValueError for a name."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.settimeout(0)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, KERNEL_BUFFER)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has listeners of its own.
        if sys.platform == "linux":
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if ahead:
            bind_ahead(sock)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock
