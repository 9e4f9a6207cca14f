"""One watch at all workers of a node: what passes at any of them, in the order of its time.

Each message passes at one worker, that which has its connection or socket, and whose call it is may be another's to know: the
workers tell each other which calls are followed (`watching`, `siblings`). A worker that comes back is asked again, for the
calls that were followed until then. Runs in the supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgspec

from sipproxy.admin.control import ControlError, NodeAwayError, follow_async
from sipproxy.crewing import worker_socket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator

    from sipproxy.config import Config

__all__ = ["Together"]

BEGIN_S = 4.0  # that a worker has to begin, below what a command waits for the node
HELD_S = 0.5  # an event waits for those before it which another worker tells later
MAX_HELD = 2000  # events that wait so, and as many that wait for who follows
LOOK_S = 1.0  # between two looks for workers that came back
MAX_CALLS_BYTES = 32 * 1024  # of Call-IDs in one request, of which the control socket takes 64 KB

Row = dict[str, Any]


class _Part:
    """The watch at one worker, for as long as that lives."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.task: asyncio.Task[None] | None = None
        self.left_out = 0
        self.has_begun = False


class Together:
    """See the module. `request` is the watch that each worker is asked for, `present` gives those that serve."""

    def __init__(self, request: Row, config: Config, present: Callable[[], list[int]]) -> None:
        self._request, self._config, self._present = request, config, present
        self._calls: OrderedDict[str, None] = OrderedDict()
        self._clock = asyncio.get_running_loop().time
        minutes = request.get("minutes")
        self._ends_at = self._clock() + 60 * (minutes if isinstance(minutes, int | float) else 0)  # each worker looks at it
        self._arrived: asyncio.Queue[tuple[_Part, Row | ControlError]] = asyncio.Queue(MAX_HELD)
        self._parts: dict[int, _Part] = {}
        self._held: list[tuple[int, int, float, Row]] = []  # a heap: time, number, until when it waits, the event
        self._number = self._left_out = 0

    async def events(self) -> AsyncGenerator[Row]:
        """What all workers tell, until the time is over. Raises ControlError when one refuses, or none serves."""
        told, look_at = 0, self._clock() + LOOK_S
        try:
            yield await self._begin()
            while self._parts or self._held or self._clock() < self._ends_at:
                if self._clock() >= look_at:
                    look_at = self._clock() + LOOK_S
                    self._look()
                for event in self._due():
                    told += event["kind"] != "alive"
                    yield event
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(min(look_at, self._held[0][2]) if self._held else look_at):
                        self._take(*await self._arrived.get())
            yield {"kind": "over", "told": told, "left_out": self._left_out}
        finally:
            tasks = [part.task for part in self._parts.values() if part.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _begin(self) -> Row:
        """What tells that every worker watches; what passes from then on is told. Raises ControlError."""
        begins: list[Row] = []
        refused: list[ControlError] = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEGIN_S):
                await self._ask_and_hear(begins, refused)
                if refused and any(event["calls"] for event in begins):  # the others don't know the call that is meant
                    refused.clear()
                    self._calls = OrderedDict.fromkeys(call_id for event in begins for call_id in event["calls"])
                    await self._ask_and_hear(begins, refused)
        if refused:
            raise refused[0]
        if not begins:
            raise ControlError("no worker of this node serves; see its log")
        return begins[0]

    async def _ask_and_hear(self, begins: list[Row], refused: list[ControlError]) -> None:
        """Ask who does not watch yet, and return when each has answered."""
        self._ask_all(self._request.get("minutes"))
        while not all(part.has_begun for part in self._parts.values()):
            part, event = await self._arrived.get()
            if isinstance(event, ControlError):
                self._take(part, event)
                refused += [] if isinstance(event, NodeAwayError) else [event]
            elif event["kind"] == "begins":
                self._take(part, event)
                begins.append(event)

    def _look(self) -> None:
        left_s = self._ends_at - self._clock()
        if left_s > 0:
            self._ask_all(left_s / 60)

    def _ask_all(self, minutes: object) -> None:
        """Have every worker watch that serves and does not yet."""
        for worker in set(self._present()) - self._parts.keys():
            part = self._parts[worker] = _Part(worker)
            part.task = asyncio.create_task(self._follow(part, {**self._request, "minutes": minutes, "calls": self._latest()}))

    async def _follow(self, part: _Part, request: Row) -> None:
        gone: ControlError = NodeAwayError(f"worker {part.worker} is gone")
        try:
            async for event in follow_async(worker_socket(self._config, part.worker), "watch", **request):
                await self._arrived.put((part, event))
        except ControlError as error:
            gone = error
        await self._arrived.put((part, gone))

    def _latest(self) -> list[str]:
        """The Call-IDs that were told last, as many as a request has room for."""
        found: list[str] = []
        room = MAX_CALLS_BYTES
        for call_id in reversed(self._calls):
            room -= len(msgspec.json.encode(call_id)) + len(",")
            if room < 0:
                break
            found.append(call_id)
        return found

    def _take(self, part: _Part, event: Row | ControlError) -> None:
        if isinstance(event, ControlError):
            self._left_out += part.left_out
            if self._parts.get(part.worker) is part:
                del self._parts[part.worker]
            return
        self._number += 1
        if event["kind"] == "begins":
            part.has_begun = True
        elif event["kind"] in ("alive", "over"):
            part.left_out = event["left_out"]
            if event["kind"] == "alive":
                heapq.heappush(self._held, (0, self._number, 0.0, event))  # says nothing that others come before
        else:
            self._calls[event["call_id"]] = None
            self._calls.move_to_end(event["call_id"])
            if len(self._calls) > MAX_HELD:
                self._calls.popitem(last=False)
            heapq.heappush(self._held, (event["at_ns"], self._number, self._clock() + HELD_S, event))

    def _due(self) -> Iterator[Row]:
        """The events that have waited long enough, or that there is no room for."""
        while self._held and (self._held[0][2] <= self._clock() or len(self._held) > MAX_HELD):
            yield heapq.heappop(self._held)[3]
