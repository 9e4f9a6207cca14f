"""One watch at several workers: when it begins, in which order it tells, and what it does when a worker refuses or dies."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest

from sipproxy import together
from sipproxy.admin.control import ControlError, ControlServer
from sipproxy.config import Config, Node
from sipproxy.crewing import folder_of, worker_socket
from sipproxy.together import MAX_CALLS_BYTES, Together

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

WAIT_S = 30.0
REQUEST = {"target": "L1", "why": "x", "who": "y", "ident": 7}


def message(at: int, data: str = "", call_id: str = "c") -> dict[str, Any]:
    return {"kind": "message", "at_ns": at, "call_id": call_id, "data": data}


class Worker:
    """A worker's watch whose events a test tells; None ends it as a death does."""

    def __init__(self, path: Path, refusal: str = "", calls: list[str] | None = None) -> None:
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.requests: list[dict[str, Any]] = []
        self.asked = asyncio.Event()
        self.begin = asyncio.Event()
        self.begin.set()
        self.refusal, self._calls = refusal, calls or []
        self.server = ControlServer(path, {}, streamers={"watch": self._watch})

    async def _watch(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        self.requests.append(request)
        self.asked.set()
        await self.begin.wait()
        if self.refusal and not request["calls"]:
            raise ControlError(self.refusal)
        yield {"kind": "begins", "line": "L1", "minutes": 1, "calls": self._calls}
        while (event := await self.events.get()) is not None:
            yield event


class Crew:
    """Two workers, and the watch at both."""

    def __init__(self, folder: Path) -> None:
        self.config = Config(node=Node(id="n", data_dir=str(folder), workers=2))
        self.present = [1, 2]
        self.workers: dict[int, Worker] = {}

    async def add(self, number: int, **options: Any) -> Worker:
        folder_of(self.config, number).mkdir(exist_ok=True)
        worker = self.workers[number] = Worker(worker_socket(self.config, number), **options)
        await worker.server.start()
        return worker

    @contextlib.asynccontextmanager
    async def watch(self, minutes: float = 1) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        watch = Together({**REQUEST, "minutes": minutes}, self.config, lambda: self.present)
        async with contextlib.aclosing(watch.events()) as events, asyncio.timeout(WAIT_S):
            yield events


@pytest.fixture
async def crew(tmp_path: Path) -> AsyncIterator[Crew]:
    crew = Crew(tmp_path)
    yield crew
    for worker in crew.workers.values():
        await worker.server.close()


async def test_watch_begins_when_the_last_worker_watches(crew: Crew) -> None:
    first, second = await crew.add(1), await crew.add(2)
    second.begin.clear()
    async with crew.watch() as events:
        begins = asyncio.ensure_future(anext(events))
        await first.asked.wait()
        await second.asked.wait()
        done, _ = await asyncio.wait([begins], timeout=0.5)
        assert not done
        second.begin.set()
        assert (await begins)["kind"] == "begins"
    assert [request["ident"] for request in (*first.requests, *second.requests)] == [7, 7]


async def test_what_one_worker_tells_later_comes_where_it_belongs(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "HELD_S", 3.0)
    first, second = await crew.add(1), await crew.add(2)
    async with crew.watch() as events:
        await anext(events)
        for event in (message(20), message(40)):
            first.events.put_nowait(event)
        told = [asyncio.ensure_future(anext(events))]
        while not first.events.empty():  # noqa: ASYNC110  a queue has no event for that
            await asyncio.sleep(0.01)
        for event in (message(10), message(30)):
            second.events.put_nowait(event)
        assert [(await told[0])["at_ns"], *[(await anext(events))["at_ns"] for _ in range(3)]] == [10, 20, 30, 40]


async def test_events_of_a_watch_that_is_over_are_told_before_its_end(crew: Crew) -> None:
    first, second = await crew.add(1), await crew.add(2)
    async with crew.watch(minutes=0.001) as events:
        await anext(events)
        for worker in (first, second):
            for event in (message(1), {"kind": "alive", "left_out": 2}, {"kind": "over", "told": 1, "left_out": 3}, None):
                worker.events.put_nowait(event)
        found = [event async for event in events]
    assert sorted(event["kind"] for event in found) == ["alive", "alive", "message", "message", "over"]
    assert found[-1] == {"kind": "over", "told": 2, "left_out": 6}


async def test_workers_that_do_not_know_the_call_are_told_what_it_is(crew: Crew) -> None:
    first, second = await crew.add(1, calls=["a@b"]), await crew.add(2, refusal="there is no live call")
    async with crew.watch() as events:
        assert (await anext(events))["calls"] == ["a@b"]
        assert [request["calls"] for request in second.requests] == [[], ["a@b"]]
        assert len(first.requests) == 1


async def test_watch_that_one_worker_refuses_is_refused(crew: Crew) -> None:
    await crew.add(1)
    await crew.add(2, refusal="4 lines are followed already")
    async with crew.watch() as events:
        with pytest.raises(ControlError, match="4 lines"):
            await anext(events)


async def test_watch_where_nobody_serves_is_refused(crew: Crew) -> None:
    crew.present = []
    async with crew.watch() as events:
        with pytest.raises(ControlError, match="no worker of this node serves"):
            await anext(events)


async def test_worker_that_came_back_is_asked_for_the_calls_that_are_followed(crew: Crew) -> None:
    first, second = await crew.add(1), await crew.add(2)
    long = "x" * (MAX_CALLS_BYTES // 3)
    async with crew.watch() as events:
        await anext(events)
        for call_id in ("1" + long, "2" + long, "3" + long):
            first.events.put_nowait(message(1, call_id=call_id))
            await anext(events)
        second.events.put_nowait(None)
        second.events.put_nowait(message(2, "here again"))  # which it tells when it is asked again
        assert (await anext(events))["data"] == "here again"
        assert second.requests[-1]["calls"] == ["3" + long, "2" + long]  # what a request has room for
        assert 0 < second.requests[-1]["minutes"] < 1
