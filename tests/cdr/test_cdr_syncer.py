"""cdr.syncer: whoever asks is heard, asleep or at work, and no sync comes sooner than the interval (design: invariant 3)."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from cdr.syncer import Syncer, SyncFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Disk:
    """What is written, and when it was synced."""

    def __init__(self) -> None:
        self.written = 0
        self.at: list[float] = []

    def sync(self) -> int:
        target = self.written
        self.at.append(time.monotonic())
        return target


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def started(disk: Disk) -> Iterator[Callable[[float], Syncer]]:
    """Makes what syncs the disk at most once in so many seconds; stopped behind the test."""
    made: list[Syncer] = []

    def start(interval_s: float) -> Syncer:
        made.append(Syncer(disk.sync, interval_s=interval_s, position=0))
        made[-1].start()
        return made[-1]

    yield start
    for syncer in made:
        syncer.stop()


async def test_wait_is_heard_whether_the_thread_sleeps_is_about_to_or_works(
    disk: Disk, started: Callable[[float], Syncer]
) -> None:
    """Between two of them lies any number of bytecodes of the thread: a wake-up that is lost stops everything."""
    syncer = started(0.0)
    async with asyncio.timeout(60):
        for number in range(1, 3001):
            disk.written = number
            syncer.want(number)
            for _ in range(number % 37):
                syncer.want(number)
            await syncer.wait(number)
            assert syncer.synced >= number
            await syncer.wait(number)  # of what is on disk already


async def test_what_was_wanted_without_waiting_is_synced(disk: Disk, started: Callable[[float], Syncer]) -> None:
    syncer = started(0.001)
    async with asyncio.timeout(60):
        for number in range(1, 101):
            disk.written = number
            syncer.want(number)
            while syncer.synced < number:  # noqa: ASYNC110  the thread tells nobody
                await asyncio.sleep(0.0005)
    before = len(disk.at)
    syncer.poke()
    async with asyncio.timeout(60):
        while len(disk.at) == before:  # noqa: ASYNC110  the thread tells nobody
            await asyncio.sleep(0.001)


class AskedBetween(Syncer):
    """Is asked for more whenever it has just found that there is nothing to do."""

    asks: list[Callable[[], None]]

    def _is_due(self) -> bool:
        due = super()._is_due()
        if not due and self.asks:
            self.asks.pop()()
        return due


@pytest.mark.parametrize("poked", [False, True])
async def test_what_is_asked_for_while_the_thread_falls_asleep_is_done(poked: bool) -> None:
    disk = Disk()
    syncer = AskedBetween(disk.sync, interval_s=0.0, position=0)

    def ask() -> None:
        disk.written += 1
        if poked:
            syncer.poke()
        else:
            syncer.want(disk.written)

    syncer.asks = [ask] * 5
    syncer.start()
    async with asyncio.timeout(20):
        while len(disk.at) < 5 or (not poked and syncer.synced < 5):  # noqa: ASYNC110  the thread tells nobody
            await asyncio.sleep(0.001)
    syncer.stop()


@pytest.mark.parametrize(("interval_s", "least_s", "rings"), [(0.05, 0.045, False), (0.3, 0.29, True)])
async def test_syncs_keep_their_distance_however_often_somebody_asks(
    disk: Disk, started: Callable[[float], Syncer], interval_s: float, least_s: float, *, rings: bool
) -> None:
    """With `rings`, who asks sees the thread asleep, which then finds by itself what is wanted, and pauses."""
    syncer = started(interval_s)
    async with asyncio.timeout(60):
        while len(disk.at) < 5:
            disk.written += 1
            syncer.want(disk.written)
            if rings:
                syncer._ring()
            await asyncio.sleep(0.001)
    assert min(later - earlier for earlier, later in pairwise(disk.at)) >= least_s


async def test_stop_syncs_what_is_left_without_waiting_for_the_interval_and_refuses_who_waits_later(
    disk: Disk, started: Callable[[float], Syncer]
) -> None:
    syncer = started(3600.0)
    disk.written = 1
    await syncer.wait(1)
    disk.written = 2
    syncer.want(2)
    await asyncio.to_thread(syncer.stop)  # in a thread: one that waits for the interval does not stop this test
    assert syncer.synced == 2
    with pytest.raises(SyncFailedError, match="closed"):
        await syncer.wait(3)
