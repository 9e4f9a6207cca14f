"""Calls at a steady rate by simulated routers, and what they saw: answers, refusals, set-up delays.

The rate is kept by the clock, not by the answers: a slow proxy gets the next call all the same. Leaves out: rate ramps.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from loadtest.ua import Call, CallError, NoAnswerError

if TYPE_CHECKING:
    from loadtest.agents import Router

__all__ = ["Load", "Outcome", "callers_needed", "percentile", "place_calls"]

DIALLED = "03023125001"
SLACK_S = 6.0  # a channel is free again this long after the hold time, also where a message had to be repeated
ANSWER_S = 35.0


@dataclass(frozen=True, slots=True)
class Load:
    """How many calls a second for how long, each held for `hold_s` seconds after its answer."""

    rate: float
    seconds: float
    hold_s: float = 1.0
    dialled: str = DIALLED

    @property
    def count(self) -> int:
        return round(self.rate * self.seconds)


@dataclass(slots=True)
class Outcome:
    """What became of the calls. `setup_ms` is from the INVITE that was not challenged to the first ringing or the answer."""

    placed: int = 0
    answered: int = 0
    refused: Counter[int] = field(default_factory=Counter)  # by final status
    failures: list[str] = field(default_factory=list)  # no final response, or no answer to the BYE
    setup_ms: list[float] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.answered == self.placed and not self.failures


def callers_needed(load: Load, channels: int) -> int:
    """How many lines it takes that none of them is ever full."""
    return max(1, -int(-load.rate * (load.hold_s + SLACK_S) // channels))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


async def place_calls(callers: Sequence[Router], load: Load) -> Outcome:
    """Place the calls of `load`, one router after the other, and return once all of them have ended."""
    outcome = Outcome()

    async def one(number: int) -> None:
        await _one_call(callers[number % len(callers)], load, outcome)

    await at_rate(load.rate, load.count, one)
    return outcome


async def at_rate(rate: float, count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Start `work(0)` to `work(count - 1)`, `rate` of them a second, and return once all are done."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(count):
            late = began + number / rate - loop.time()
            if late > 0:
                await asyncio.sleep(late)
            group.create_task(_awaited(work(number)))


async def _awaited(work: Awaitable[None]) -> None:
    await work


async def _one_call(router: Router, load: Load, outcome: Outcome) -> None:
    outcome.placed += 1
    call = await router.call(load.dialled)
    outcome.calls.append(call)
    try:
        await call.answered(ANSWER_S)
    except CallError as error:
        outcome.refused[error.status] += 1
        return
    except NoAnswerError as error:
        outcome.failures.append(str(error))
        return
    outcome.answered += 1
    if call.truth.setup_ms is not None:
        outcome.setup_ms.append(call.truth.setup_ms)
    await asyncio.sleep(load.hold_s)
    if call.ended.is_set():
        outcome.failures.append(f"{call.call_id}: was ended from the other side")
        return
    try:
        status = await call.hang_up()
    except NoAnswerError as error:
        outcome.failures.append(str(error))
        return
    if status != 200:
        outcome.failures.append(f"{call.call_id}: BYE was answered {status}")
