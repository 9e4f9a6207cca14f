"""What the garbage collector looks at while calls wait: the young alone, of which garbage that refers to itself is freed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from sipproxy import collecting
from sipproxy.collecting import YOUNG, run_sweeps, settle_memory

if TYPE_CHECKING:
    from collections.abc import Iterator


class _Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def looked_at() -> Iterator[list[int]]:
    """The generations that were looked at since memory was settled."""
    found: list[int] = []

    def note(phase: str, info: dict[str, Any]) -> None:
        if phase == "stop":
            found.append(info["generation"])

    before = gc.get_threshold()
    settle_memory()
    gc.callbacks.append(note)
    yield found
    gc.callbacks.remove(note)
    gc.set_threshold(*before)
    gc.unfreeze()


def test_old_objects_are_not_looked_at_however_many_there_are(looked_at: list[int]) -> None:
    kept = [[number] for number in range(30 * YOUNG)]
    assert set(looked_at) == {0}
    assert len(looked_at) >= 20
    assert len(kept) == 30 * YOUNG


def test_garbage_that_refers_to_itself_is_freed_while_it_is_young(looked_at: list[int]) -> None:
    gone = weakref.ref(_Knot())
    kept = [[number] for number in range(3 * YOUNG)]
    assert gone() is None
    assert set(looked_at) == {0}
    assert kept


async def _swept(live: int, for_s: float, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the old were looked at, in seconds, by a clock that a pause moves on."""
    now, swept = [1000.0], list[float]()
    real = asyncio.sleep

    async def pause(for_s: float) -> None:
        now[0] += for_s
        await real(0)

    with monkeypatch.context() as patch:
        patch.setattr(collecting.time, "monotonic", lambda: now[0])
        patch.setattr(collecting.asyncio, "sleep", pause)
        patch.setattr(collecting.gc, "collect", lambda: swept.append(now[0] - 1000.0) or 0)
        task = asyncio.create_task(run_sweeps(lambda: live))
        while now[0] < 1000.0 + for_s:
            await real(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    return swept


async def test_the_old_are_looked_at_once_an_hour_when_hardly_anybody_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    swept = await _swept(collecting.QUIET_CALLS, 3.5 * 3600.0, monkeypatch)
    assert [round(at / 3600) for at in swept] == [1, 2, 3]


async def test_while_many_call_the_old_wait_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    swept = await _swept(collecting.QUIET_CALLS + 1, 25 * 3600.0, monkeypatch)
    assert [round(at / 3600) for at in swept] == [24]
