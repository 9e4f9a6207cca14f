"""Messages of strangers that need no outcome of their own: what must never come of any, and what one costs the node."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.net.hep import MAX_PAYLOAD
from sipproxy.sip.errors import ParseError
from sipproxy.sip.message import Response, check_message, parse_message
from tests.torture.pulse import HOST as PULSE
from tests.torture.run import AT_ONCE, DATAGRAM, PROBE, STRANGER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.torture.eye import Seen
    from tests.torture.run import Torture

CREDIT = 2048  # limits.credit_bytes: what a source is answered with beyond what it sent
AGAIN = 3  # a message that costs much is measured so often again: the machine's hiccups are not its doing


class Cost(NamedTuple):
    """CPU time of the node for one message, its answer and the OPTIONS after it."""

    number: int
    over: str
    ms: float


@dataclass
class Hammer:
    """What was sent as a stranger, and what the node sent because of it. `faults` are what must never be."""

    torture: Torture
    sent: int = 0
    sent_bytes: int = 0  # over UDP
    got_bytes: int = 0
    faults: list[str] = field(default_factory=list)

    async def send(self, messages: Iterable[bytes], *, tcp: bool) -> int:
        """Send them in any case; after every few all that the node has sent is looked at. Returns how many were sent."""
        before, streams = self.sent, list[asyncio.StreamWriter]()
        for data in messages:
            if not tcp and len(data) > DATAGRAM:
                continue
            with contextlib.suppress(ConnectionError):
                stream = await self.torture.send("stranger", data, tcp=tcp)
                streams += [stream] if stream is not None else []
            self.sent += 1
            self.sent_bytes += 0 if tcp else len(data)
            if self.sent % AT_ONCE == 0:
                self._judge(await self.torture.probe(), data)
                while streams:
                    streams.pop().close()
        for stream in streams:
            stream.close()
        self._judge(await self.torture.probe(), b"")
        return self.sent - before

    def _judge(self, seen: Sequence[Seen], last: bytes) -> None:
        for one in seen:
            if not one.outgoing:
                continue
            if fault := self._fault(one):
                self.faults.append(f"{fault}: {one.data[:200]!r} among the {AT_ONCE} until {last[:80]!r}")
        if self.got_bytes > self.sent_bytes + CREDIT:
            self.faults.append(f"{self.got_bytes} bytes back over UDP for {self.sent_bytes}")

    def _fault(self, one: Seen) -> str:
        """What is wrong with something that the node sent, "" for nothing."""
        if one.destination[0] not in (STRANGER, PROBE, PULSE):
            return f"sent to {one.destination}"
        if not one.data.startswith(b"SIP/2.0 "):
            return "a request to a stranger"
        if one.destination[0] == STRANGER and one.transport == "UDP":
            self.got_bytes += len(one.data)
        if len(one.data) >= MAX_PAYLOAD:
            return ""  # its copy was cut off
        try:
            answer = parse_message(one.data)
            check_message(answer)
        except ParseError as error:  # an answer repeats what its request had
            return "" if one.data.startswith(b"SIP/2.0 4") else f"cannot be read ({error})"
        assert isinstance(answer, Response)
        return "a stranger was let in" if answer.is_success and answer.cseq.method not in (b"OPTIONS", b"CANCEL") else ""

    async def costs(self, messages: Sequence[bytes], *, tcp: bool) -> list[Cost]:
        """The CPU time of each message, alone; what costs ten times as much as most is measured again, and its least counts."""
        over = "TCP" if tcp else "UDP"
        found = [Cost(number, over, await self._cost(data, tcp=tcp)) for number, data in enumerate(messages)]
        usual = sorted(cost.ms for cost in found)[len(found) // 2]
        for at, cost in enumerate(found):
            for _ in range(AGAIN if cost.ms > 10 * usual else 0):
                found[at] = found[at]._replace(ms=min(found[at].ms, await self._cost(messages[cost.number], tcp=tcp)))
        return found

    async def _cost(self, data: bytes, *, tcp: bool) -> float:
        before = self._cpu_ns()
        await self.send([data], tcp=tcp)
        return (self._cpu_ns() - before) / 1e6

    def _cpu_ns(self) -> int:
        """What all threads of the node have run for, as the kernel's scheduler counts."""
        tasks = Path(f"/proc/{self.torture.network.node.pid}/task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir())
