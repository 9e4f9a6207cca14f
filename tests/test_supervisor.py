"""The supervisor of a node's workers, without any process."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from sipproxy.workers import HANG_S, LOOK_S, START_S, Supervisor, Worker


@pytest.mark.parametrize(("is_there", "silent_s"), [(False, START_S), (True, HANG_S)])
@pytest.mark.parametrize("beyond_s", [-5.0, 1.0])
async def test_worker_is_ended_when_it_is_silent_where_messages_may_be_passed_to_it(
    is_there: bool, silent_s: float, beyond_s: float
) -> None:
    """Who has said that he is there is not awaited for as long as one who reads a large store: nobody stands in for him."""
    ended: list[int] = []
    worker = Worker(2)
    worker.is_there, worker.heard_at = is_there, time.monotonic() - silent_s - beyond_s
    process: Any = SimpleNamespace(returncode=None, kill=lambda: ended.append(worker.number))
    worker.process = process
    supervisor = Supervisor.__new__(Supervisor)
    supervisor._workers, supervisor.log = [worker], structlog.get_logger("node")
    watching = asyncio.create_task(supervisor._watch_hangs())
    await asyncio.sleep(LOOK_S + 0.2)
    watching.cancel()
    assert ended == ([2] if beyond_s > 0 else [])
