"""Customers in the middle of a flood or a storm: live calls, calls for help, registrations, and what each of them noticed.

Each live call sends a request of its dialog again and again; new calls to 112 and to ordinary numbers are placed; one router
registers again and again, which tells how long the node takes. Every request counts as answered when its final response came
within the lifetime of its transaction, repetitions of UDP included.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.generate import percentile
from loadtest.ua import CallError, NoAnswerError

if TYPE_CHECKING:
    from loadtest.agents import Router
    from loadtest.ua import Call

__all__ = ["Bystanders", "Noticed"]

DIALLED = "03023125001"
ANSWER_S = 35.0
REGISTER_EVERY_S = 0.2


@dataclass(slots=True)
class Noticed:
    """Of one stretch of time. Delays in ms."""

    asked: int = 0  # requests within dialogs
    answered: int = 0
    helped: int = 0  # calls to 112 that were answered
    helps: int = 0
    called: int = 0  # ordinary calls that were answered
    calls: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    in_dialog_ms: list[float] = field(default_factory=list)
    help_ms: list[float] = field(default_factory=list)
    registers: list[tuple[float, float]] = field(default_factory=list)  # monotonic seconds of the end, ms

    unregistered: int = 0  # REGISTERs that were refused or not answered

    def register_ms(self, share: float) -> float:
        return percentile([ms for _, ms in self.registers], share)


class Bystanders:
    """`live` answered calls whose callers ask `asks_per_s` times a second in all, and `help_per_s` calls to 112."""

    def __init__(self, routers: list[Router], *, asks_per_s: float, help_per_s: float) -> None:
        """Three of the routers have no call: one registers, one calls for help, one calls."""
        self._registering, self._helping, self._calling, *self._talking = routers
        self._asks_per_s, self._help_per_s = asks_per_s, help_per_s
        self._calls: list[Call] = []
        self.seen = Noticed()
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._pending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Set the calls up; from then on what happens is in `seen`."""
        for router in self._talking:
            self._calls.append(await (await router.call(DIALLED)).answered(ANSWER_S))
        number = 0

        async def ask() -> None:
            nonlocal number
            number += 1
            await self._ask(self._calls[number % len(self._calls)])

        for rate, work in (
            (self._asks_per_s, ask), (self._help_per_s, self._help), (self._help_per_s, self._call),
        ):  # fmt: skip
            self._tasks.append(asyncio.create_task(self._steadily(rate, work)))
        self._tasks.append(asyncio.create_task(self._register_again()))

    def turn(self) -> Noticed:
        """What was noticed so far; what comes to its end from now on counts for the next stretch."""
        before, self.seen = self.seen, Noticed()
        return before

    async def stop(self) -> None:
        """End the calls and wait for what is under way."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        while self._pending:
            await asyncio.gather(*self._pending)
        for call in self._calls:
            await call.hang_up()

    async def _steadily(self, rate: float, work: Callable[[], Awaitable[None]]) -> None:
        """By the clock, not by the answers."""

        async def one() -> None:
            await work()

        loop = asyncio.get_running_loop()
        began, number = loop.time(), 0
        while not self._stop.is_set():
            number += 1
            task = asyncio.create_task(one())
            self._pending.add(task)
            task.add_done_callback(self._pending.discard)
            await asyncio.sleep(max(0.0, began + number / rate - loop.time()))

    async def _ask(self, call: Call) -> None:
        seen, began = self.seen, time.monotonic()
        seen.asked += 1
        try:
            response = await call.request(b"INFO")
        except NoAnswerError as error:
            seen.failures.append(str(error))
            return
        if response.status == 200:
            seen.answered += 1
            seen.in_dialog_ms.append(1000 * (time.monotonic() - began))
        else:
            seen.failures.append(f"INFO: {response.status}")

    async def _help(self) -> None:
        seen, began = self.seen, time.monotonic()
        seen.helps += 1
        try:
            call = await (await self._helping.call("112")).answered(ANSWER_S)
        except (CallError, NoAnswerError) as error:
            seen.failures.append(f"112: {error}")
            return
        seen.helped += 1
        seen.help_ms.append(1000 * (time.monotonic() - began))
        await self._hang_up(call)

    async def _call(self) -> None:
        seen = self.seen
        seen.calls += 1
        try:
            call = await (await self._calling.call(DIALLED)).answered(ANSWER_S)
        except CallError as error:
            seen.refused[error.status] = seen.refused.get(error.status, 0) + 1
            return
        except NoAnswerError as error:
            seen.failures.append(f"call: {error}")
            return
        seen.called += 1
        await self._hang_up(call)

    async def _hang_up(self, call: Call) -> None:
        seen = self.seen
        seen.asked += 1
        try:
            status = await call.hang_up()
        except NoAnswerError as error:
            seen.failures.append(str(error))
            return
        if status == 200:
            seen.answered += 1
        else:
            seen.failures.append(f"BYE: {status}")

    async def _register_again(self) -> None:
        """One after the other: within one Call-ID their order counts."""
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                status = (await self._registering.register()).status
            except NoAnswerError:
                status = 0
            now = time.monotonic()
            if status == 200:
                self.seen.registers.append((now, 1000 * (now - began)))
            else:
                self.seen.unregistered += 1
            await asyncio.sleep(REGISTER_EVERY_S)
