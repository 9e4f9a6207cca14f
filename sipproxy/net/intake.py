"""Datagrams of all UDP listeners that had to wait, on their way to the node: read ahead, and handed on by their urgency.

A socket's buffer is one queue for what is urgent and what is refused. Once a datagram has waited there for QUEUE_S, all are
read into the node's own backlog, until nothing waits any more. Leaves out: how urgent a message is (`engine.backlog`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from sipproxy.net.batch import batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from sipproxy.engine.backlog import Backlog
    from sipproxy.engine.kinds import Kind
    from sipproxy.sip.flow import Flow

__all__ = ["QUEUE_S", "TURN_S", "Intake"]

QUEUE_S = 0.01  # some twenty datagrams: in fewer, whose turn it is hardly matters
TURN_S = 0.002  # of work, then the loop reads sockets and runs timers


class Intake:
    """`on_message(data, flow, waited_s, kind)` gets each message, with the seconds that it waited in the socket and here."""

    def __init__(self, on_message: Callable[[bytes, Flow, float, Kind | None], None], backlog: Backlog) -> None:
        self._on_message, self.backlog = on_message, backlog
        self.batch = batch()
        self._turn: asyncio.Handle | None = None

    def put(self, data: bytes, flow: Flow, waited_s: float) -> None:
        """A datagram that was read now, after so many seconds."""
        self.backlog.put(data, flow, time.monotonic() - waited_s)
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._serve)

    def close(self) -> None:
        """Forget what waits; harmless when repeated."""
        self.backlog.clear()
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None

    def _serve(self) -> None:
        self._turn = None
        backlog, on_message, clock = self.backlog, self._on_message, time.monotonic
        now = clock()
        until = now + TURN_S
        try:
            while now < until and (one := backlog.take()) is not None:
                on_message(one.data, one.flow, now - one.at, one.kind)
                now = clock()
        finally:  # a fault of one is no reason for the others to wait
            if backlog.waiting and self._turn is None:
                self._turn = asyncio.get_running_loop().call_soon(self._serve)
