"""Timers of the load generator."""

from __future__ import annotations

import asyncio
from typing import Any

from loadtest.clockwork import Clockwork


async def test_timer_whose_work_fails_stops_none_of_the_others() -> None:
    loop, reported, ran = asyncio.get_running_loop(), [], asyncio.Event()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    clock = Clockwork(loop)

    def fail(subject: Any) -> None:
        raise ValueError(subject)

    clock.after(0.0, fail, "broken")
    clock.after(0.02, lambda done: done.set(), ran)
    await asyncio.wait_for(ran.wait(), timeout=20)
    assert [str(error) for error in reported] == ["broken"]
