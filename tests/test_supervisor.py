"""The supervisor of a node's workers, without any process."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import structlog

from sipproxy import workers
from sipproxy.config import Config
from sipproxy.orders import State
from sipproxy.workers import HANG_S, LINK_BYTES, LOOK_S, QUIET_S, START_S, Supervisor, Worker


def supervisor_of(*watched: Worker) -> Supervisor:
    supervisor = Supervisor.__new__(Supervisor)
    supervisor._workers, supervisor._count, supervisor._quiet = list(watched), len(watched), set()
    supervisor.log = structlog.get_logger("node")
    return supervisor


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
    watching = asyncio.create_task(supervisor_of(worker)._watch_hangs())
    await asyncio.sleep(LOOK_S + 0.2)
    watching.cancel()
    assert ended == ([2] if beyond_s > 0 else [])


async def test_node_that_ends_does_not_wait_to_start_a_worker_that_keeps_dying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FIRST_BACKOFF_S", 3600.0)
    monkeypatch.setattr(workers, "MAX_BACKOFF_S", 3600.0)
    worker = Worker(2)
    supervisor = Supervisor.__new__(Supervisor)
    supervisor.log, supervisor._ending, supervisor._was_ready = structlog.get_logger("node"), asyncio.Event(), True

    async def live(_: Worker) -> int:
        return 1

    monkeypatch.setattr(supervisor, "_live", live)
    keeping = asyncio.create_task(supervisor._keep(worker))
    async with asyncio.timeout(30):
        while not worker.deaths:  # noqa: ASYNC110  it waits from then on
            await asyncio.sleep(0)
        supervisor._ending.set()
        await keeping
    assert worker.deaths == 1


async def test_worker_that_was_being_started_when_the_node_was_told_to_stop_is_told_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others are told while its process is made, which nobody can send a signal to yet."""
    told: list[str] = []
    supervisor = Supervisor.__new__(Supervisor)
    supervisor.log, supervisor._ending, supervisor._workers = structlog.get_logger("node"), asyncio.Event(), [Worker(2)]
    supervisor._config, supervisor._store_url, supervisor._count = Config(), "", 2
    monkeypatch.setattr(supervisor, "_spec", lambda worker, link: None)
    monkeypatch.setattr(supervisor, "_descriptors", lambda link: [])

    async def communicate(_: bytes) -> None:
        told.append("orders")

    async def wait() -> int:
        return -signal.SIGTERM

    async def made(*_: Any, **__: Any) -> Any:
        supervisor._stop_all(signal.SIGTERM)
        return SimpleNamespace(returncode=None, communicate=communicate, wait=wait, terminate=lambda: told.append("SIGTERM"))

    monkeypatch.setattr(asyncio, "create_subprocess_exec", made)
    monkeypatch.setattr(supervisor, "_end_drained", lambda: told.append("others looked at"))
    assert await supervisor._live(supervisor._workers[0]) == -signal.SIGTERM
    assert told == ["SIGTERM", "orders", "others looked at"]


async def test_datagrams_of_a_worker_that_is_quiet_are_read_by_one_that_is_not_until_it_is_heard() -> None:
    """Design: invariant 1. An answer to a call for help may be among them, whoever has the call."""
    loop = asyncio.get_running_loop()
    both, ends = [Worker(1), Worker(2)], []
    for worker in both:
        worker.link, end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        worker.is_there = worker.is_ready = True
        for sock in (worker.link, end):
            sock.setblocking(False)
        ends.append(end)

    async def told(number: int) -> State:
        async with asyncio.timeout(30):
            return msgspec.json.decode(await loop.sock_recv(ends[number - 1], LINK_BYTES), type=State)

    later = time.monotonic() + 3600
    both[0].heard_at, both[1].heard_at = time.monotonic() - QUIET_S - 1, later
    watching = asyncio.create_task(supervisor_of(*both)._watch_hangs())
    assert [await told(number) for number in (1, 2)] == [State([1, 2]), State([1, 2], [1])]
    both[0].heard_at = later
    assert [await told(number) for number in (1, 2)] == [State([1, 2]), State([1, 2])]
    watching.cancel()
    for sock in (*ends, *(worker.link for worker in both if worker.link is not None)):
        sock.close()
