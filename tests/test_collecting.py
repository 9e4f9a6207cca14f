"""The garbage collector looks at nothing while calls wait, and at all there is in a quiet moment or when memory has grown."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from sipproxy import collecting
from sipproxy.collecting import memory_bytes, run_sweeps, settle_memory

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def looks() -> Iterator[list[int]]:
    """The generations that were looked at since memory was settled."""
    found: list[int] = []

    def note(phase: str, info: dict[str, Any]) -> None:
        if phase == "stop":
            found.append(info["generation"])

    settle_memory()
    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)
    gc.enable()
    gc.unfreeze()


def test_nothing_is_looked_at_however_many_objects_there_are(looks: list[int]) -> None:
    kept = [[number] for number in range(100_000)]
    assert looks == []
    assert len(kept) == 100_000


async def test_sweep_frees_what_refers_to_itself(looks: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    freed = asyncio.Event()
    knot = _Knot()
    weakref.finalize(knot, freed.set)
    del knot
    monkeypatch.setattr(collecting, "LOOK_S", 0.0)
    monkeypatch.setattr(collecting, "SWEEP_S", 0.0)
    task = asyncio.create_task(run_sweeps(lambda: 0))
    async with asyncio.timeout(60):
        await freed.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert looks


async def _swept(live: int, for_s: float, monkeypatch: pytest.MonkeyPatch, grown_per_s: int = 0) -> list[float]:
    """When the collector looked, in seconds, by a clock that a pause moves on."""
    now, swept = [1000.0], list[float]()
    real = asyncio.sleep

    async def pause(for_s: float) -> None:
        now[0] += for_s
        await real(0)

    with monkeypatch.context() as patch:
        patch.setattr(collecting.time, "monotonic", lambda: now[0])
        patch.setattr(collecting.asyncio, "sleep", pause)
        patch.setattr(collecting, "memory_bytes", lambda: round(now[0] * grown_per_s))
        patch.setattr(collecting.gc, "collect", lambda: swept.append(now[0] - 1000.0) or 0)
        task = asyncio.create_task(run_sweeps(lambda: live))
        while now[0] < 1000.0 + for_s:
            await real(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return swept


async def test_collector_looks_once_an_hour_when_hardly_anybody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    swept = await _swept(collecting.QUIET_CALLS, 3.5 * 3600.0, monkeypatch)
    assert [round(at / 3600) for at in swept] == [1, 2, 3]


async def test_collector_waits_a_day_while_many_call(monkeypatch: pytest.MonkeyPatch) -> None:
    swept = await _swept(collecting.QUIET_CALLS + 1, 25 * 3600.0, monkeypatch)
    assert [round(at / 3600) for at in swept] == [24]


async def test_collector_looks_as_often_as_memory_has_grown_though_many_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """What faults leave is bounded, if at the price of a pause."""
    swept = await _swept(1000, 3500.0, monkeypatch, grown_per_s=collecting.GROWN_BYTES // 1000)
    assert [round(at / 1000) for at in swept] == [1, 2, 3]


def test_memory_in_use_is_told() -> None:
    before = memory_bytes()
    filled = b"x" * (64 << 20)
    assert memory_bytes() - before >= len(filled) // 2
