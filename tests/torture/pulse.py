"""A valid OPTIONS every 100 ms, in real time and beside whatever else is sent to the node: each has to be answered."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass

from sipproxy.sip.build import write_request

HOST = "127.0.0.48"
EVERY_S = 0.1
T1, T2, GIVEN_UP_S = 0.5, 4.0, 32.0  # RFC 3261 §17.1.2.2
_NUMBER = re.compile(rb"(?i)\ncall-id: pulse-([0-9]+)\r")


@dataclass(slots=True)
class _Open:
    data: bytes
    began_at: float
    again_at: float
    interval: float = T1


class Pulse(asyncio.DatagramProtocol):
    """`ms` is how long each answer took, `repeated` how many OPTIONS had to be sent again, `lost` have none; `late_ms` is by
    how much this program's own timers ran late, which is no doing of the node."""

    def __init__(self, node: tuple[str, int]) -> None:
        self._node = node
        self._open: dict[int, _Open] = {}
        self.sent = self.repeated = self.lost = 0
        self.ms: list[float] = []
        self.late_ms: list[float] = []
        self.wrong: list[bytes] = []  # answers other than 200
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Pulse:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(HOST, 0))
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._transport.close()

    async def settled(self) -> None:
        """Until the last one is answered, or given up."""
        last = self.sent
        while any(number <= last for number in self._open):
            self._changed.clear()
            await self._changed.wait()

    def datagram_received(self, data: bytes, addr: object) -> None:
        del addr
        found = _NUMBER.search(data)
        one = self._open.pop(int(found[1]), None) if found is not None else None
        if one is not None:
            self._changed.set()
            self.ms.append(1000 * (asyncio.get_running_loop().time() - one.began_at))
            if not data.startswith(b"SIP/2.0 200 "):
                self.wrong.append(data)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            self._send(loop.time())
            self._repeat(loop.time())
            due = began + self.sent * EVERY_S
            await asyncio.sleep(max(0.0, due - loop.time()))
            self.late_ms.append(1000 * (loop.time() - due))

    def _send(self, now: float) -> None:
        self.sent += 1
        mark = b"pulse-%d" % self.sent
        host, port = self._transport.get_extra_info("sockname")
        uri = b"sip:%s:%d" % (self._node[0].encode(), self._node[1])
        via = b"SIP/2.0/UDP %s:%d;branch=z9hG4bK%s;rport" % (host.encode(), port, mark)
        lines = [(b"Via", via), (b"Max-Forwards", b"70"), (b"From", b"<sip:p@x>;tag=1"), (b"To", b"<" + uri + b">")]
        lines += [(b"Call-ID", mark), (b"CSeq", b"1 OPTIONS"), (b"Subject", b"x" * 400)]  # a stranger gets no more than he sent
        data = write_request(b"OPTIONS", uri, lines)
        self._open[self.sent] = _Open(data, now, now + T1)
        self._transport.sendto(data, self._node)

    def _repeat(self, now: float) -> None:
        for number, one in list(self._open.items()):
            if now - one.began_at >= GIVEN_UP_S:
                del self._open[number]
                self.lost += 1
                self._changed.set()
            elif now >= one.again_at:
                one.interval = min(T2, 2 * one.interval)
                one.again_at += one.interval
                self.repeated += 1
                self._transport.sendto(one.data, self._node)
