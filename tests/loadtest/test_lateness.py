"""Who samples an event loop can be cancelled at any moment; who places calls is not held up by looking for garbage."""

from __future__ import annotations

import asyncio
import gc

import pytest

from loadtest.lateness import OwnLateness, no_sweeps


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


def test_garbage_is_looked_for_before_and_after_but_not_within() -> None:
    looked: list[str] = []

    def note(phase: str, _: dict[str, int]) -> None:
        looked.append(phase)

    with no_sweeps():
        gc.callbacks.append(note)
        try:
            kept = [[number] for number in range(100_000)]  # what would make it look some hundred times
        finally:
            gc.callbacks.remove(note)
    assert (len(kept), looked) == (100_000, [])
    assert gc.isenabled()
    with pytest.raises(KeyError), no_sweeps():
        raise KeyError
    assert gc.isenabled()
