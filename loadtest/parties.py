"""Very many routers, each at an address of its own, and a carrier behind the proxy: as many calls and registrations as memory
is measured with, by a few sockets.

The datagrams are those of `desk_calls`, each step of a call written from what the proxy sent for the one before. Linux answers
on all of 127/8 and lets a socket that is bound to no address send from any of them. A datagram without its answer is repeated.
Leaves out: judging what the proxy does; a step that does not come to its end is a failed call.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from typing import TYPE_CHECKING

from loadtest.desk_calls import Place, Scripted
from loadtest.net import free_udp_port
from sipproxy.sip.flow import Flow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from loadtest.desk_calls import Step
    from loadtest.node import LineSpec
    from loadtest.ua import Address

__all__ = ["Parties"]

IP_PKTINFO = 8  # of Linux's in.h; the socket module of Python 3.11 has no name for it
BUFFER_BYTES = 4 * 1024 * 1024
REPEAT_S = 1.0
REPEATS = 10
LARGEST = 65_535
DEVICES = 2  # of each line: behind one address, by a port each
_CALL_ID = re.compile(rb"\r\nCall-ID: ([^\r]+)\r\n")


class Parties:
    """Routers of lines, and the carrier at `carrier`; a context manager. They write `domain` and send to `proxy`."""

    def __init__(self, proxy: Address, carrier: Address, domain: str) -> None:
        self._proxy, self._domain = proxy, domain.encode()
        self._carrier = Flow("UDP", 0, *carrier)
        self._sockets: dict[int, socket.socket] = {}  # by port
        self._devices: list[int] = []
        self._known: dict[bytes, tuple[Scripted, asyncio.Event]] = {}

    def __enter__(self) -> Parties:
        loop = asyncio.get_running_loop()
        self._devices = [free_udp_port("0.0.0.0") for _ in range(DEVICES)]
        for host, port in ((self._carrier.host, self._carrier.port), *(("0.0.0.0", port) for port in self._devices)):
            sock = self._sockets[port] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            sock.settimeout(0)
            sock.bind((host, port))
            loop.add_reader(sock, self._read, sock, port)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets.values():
            asyncio.get_running_loop().remove_reader(sock)
            sock.close()

    def call(self, line: LineSpec, number: int, device: int = 0) -> Scripted:
        """A call or a registration of the line with this number, by one of its devices."""
        host = f"127.{16 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"
        return Scripted(Place(Flow("UDP", 0, host, self._devices[device]), self._carrier, self._domain), line)

    async def all(
        self, calls: Iterable[Scripted], steps: Sequence[Step], *, together: int, done: Callable[[], None] = lambda: None
    ) -> int:
        """Take them through the steps, so many at a time; `done` is told of each. Returns how many failed."""
        left, failed = iter(calls), 0

        async def work() -> None:
            nonlocal failed
            for call in left:
                failed += not await self._one(call, steps)
                done()

        async with asyncio.TaskGroup() as group:
            for _ in range(together):
                group.create_task(work())
        return failed

    async def _one(self, call: Scripted, steps: Sequence[Step]) -> bool:
        event = asyncio.Event()
        self._known[call.call_id] = (call, event)
        try:
            for step in steps:
                data = step.write(call)
                call.got.clear()
                port = (self._carrier if step.to_carrier else call.place.router).port
                for _ in range(REPEATS):
                    self._send(data, self._carrier if step.from_carrier else call.place.router)
                    if not step.wanted or await _arrived(call, port, step.wanted, event):
                        break
                else:
                    return False
        finally:
            del self._known[call.call_id]
        return True

    def _send(self, data: bytes, party: Flow) -> None:
        source = struct.pack("=I4s4s", 0, socket.inet_aton(party.host), bytes(4))
        with contextlib.suppress(BlockingIOError):  # it is repeated
            self._sockets[party.port].sendmsg([data], [(socket.IPPROTO_IP, IP_PKTINFO, source)], 0, self._proxy)

    def _read(self, sock: socket.socket, port: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data = sock.recv(LARGEST)
                name = _CALL_ID.search(data)
                found = self._known.get(name[1]) if name is not None else None
                if found is not None:
                    found[0].got.append((port, data))
                    found[1].set()


async def _arrived(call: Scripted, port: int, wanted: bytes, event: asyncio.Event) -> bool:
    """Whether such a message comes to the port before it is time to repeat."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REPEAT_S):
            while call.sent(port, wanted) is None:
                event.clear()
                await event.wait()
            return True
    return False
