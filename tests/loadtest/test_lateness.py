"""Who samples an event loop can be cancelled at any moment."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.lateness import OwnLateness


@pytest.mark.parametrize("turns", range(6))
async def test_task_that_is_cancelled_while_its_sampling_ends_is_cancelled(turns: int) -> None:
    async def work() -> None:
        async with OwnLateness():
            await leave.wait()
        await asyncio.sleep(60)

    leave = asyncio.Event()
    task = asyncio.create_task(work())
    await asyncio.sleep(0.03)
    leave.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()
