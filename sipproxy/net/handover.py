"""What the workers of a node pass to each other: one Unix datagram socket into each, messages whole and in order.

The supervisor made the sockets and holds them too, so that what is under way to a worker that dies is there when it comes back.
Nothing waits: what the kernel has no room for is queued within a bound, and beyond it refused to who sends. What is not here:
what the bytes mean, and what becomes of what was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Post", "pair"]

DRAIN = 64  # messages per wake-up
MAX_QUEUED = 2000  # messages to one worker that the kernel has no room for; it holds some hundreds to thousands itself
MAX_MESSAGE = 96 * 1024  # a SIP message of 64 KB and what is said about it
KERNEL_BUFFER = 4 * 1024 * 1024  # asked for; granted up to net.core.wmem_max


def pair() -> tuple[socket.socket, socket.socket]:
    """A worker's inbox: the end that it reads, and the end that the others write to. Raises OSError."""
    inbox, outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for sock in (inbox, outbox):
        sock.settimeout(0)
    with contextlib.suppress(OSError):
        outbox.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
    return inbox, outbox


class Post:
    """One worker's inbox and its ways to the others. `on_message(data)` gets what comes. `counters` are plain integers."""

    def __init__(
        self, inbox: socket.socket, outboxes: Mapping[int, socket.socket], on_message: Callable[[memoryview], None]
    ) -> None:
        self._inbox, self._outboxes, self._on_message = inbox, dict(outboxes), on_message
        self._queues: dict[int, deque[bytes]] = {worker: deque() for worker in outboxes}
        self._buffer = memoryview(bytearray(MAX_MESSAGE))
        self._loop: asyncio.AbstractEventLoop | None = None
        self.counters = {"passed": 0, "taken": 0, "queue_full": 0, "too_large": 0}

    @property
    def queued(self) -> int:
        """Messages that wait for room in the kernel."""
        return sum(map(len, self._queues.values()))

    def start(self) -> None:
        """Read on the running event loop from now on."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._inbox.fileno(), self.read)

    def close(self) -> None:
        """Stop; harmless when repeated. What is still queued is lost with this process."""
        if self._loop is None:
            return
        self._loop.remove_reader(self._inbox.fileno())
        for outbox in self._outboxes.values():
            self._loop.remove_writer(outbox.fileno())
            outbox.close()
        self._inbox.close()
        self._loop = None

    def read(self) -> None:
        """Take what has come, or a part of it: the event loop calls again."""
        for _ in range(DRAIN):
            size = self._read()
            if size is None:
                return
            self.counters["taken"] += 1
            self._on_message(self._buffer[:size])

    def send(self, worker: int, data: bytes) -> bool:
        """Pass `data` to a worker; False when there is no room for it."""
        queue = self._queues[worker]
        if self._loop is None:
            return False
        if not queue:
            try:
                self._outboxes[worker].send(data)
            except BlockingIOError:
                pass
            except OSError:  # EMSGSIZE: above what the kernel grants for one message
                self.counters["too_large"] += 1
                return False
            else:
                self.counters["passed"] += 1
                return True
        if len(queue) >= MAX_QUEUED:
            self.counters["queue_full"] += 1
            return False
        queue.append(data)
        if len(queue) == 1:
            self._loop.add_writer(self._outboxes[worker].fileno(), self._flush, worker)
        return True

    def _flush(self, worker: int) -> None:
        queue = self._queues[worker]
        while queue:
            try:
                self._outboxes[worker].send(queue[0])
            except BlockingIOError:
                return
            except OSError:
                self.counters["too_large"] += 1
            else:
                self.counters["passed"] += 1
            queue.popleft()
        if self._loop is not None:
            self._loop.remove_writer(self._outboxes[worker].fileno())

    def _read(self) -> int | None:
        try:
            return self._inbox.recv_into(self._buffer)
        except BlockingIOError:
            return None
