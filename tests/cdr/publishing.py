"""A journal with its publisher as a test runs and breaks them, and a relay that loses replies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from typing import TYPE_CHECKING, ClassVar, Self

from cdr_samples import draft, ended

from cdr.entries import Poison
from cdr.facts import Admit, Record
from cdr.journal import Journal
from cdr.publisher import Publisher
from cdr.tailing import tail

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import redis.asyncio


STREAM = "sp:cdr"
FAST = {"timeout_s": 0.3}


class Node:
    """A journal and its publisher, which a test stops and starts like a process."""

    running: ClassVar[set[Node]] = set()  # those that a failed test has left are stopped for it

    def __init__(self, directory: Path, client: redis.asyncio.Redis, **options: object) -> None:
        self.directory, self.client, self.options = directory, client, options
        self.states: list[str] = []

    def start(self) -> Self:
        self.journal = Journal(self.directory, node="n1", segment_bytes=65536, fsync_interval_ms=1)
        self.recovered = self.journal.recover()
        self.publisher = Publisher(
            self.client,
            self.journal,
            stream=STREAM,
            node="n1",
            on_state=lambda state, _: self.states.append(state),
            **{"batch": 20, **FAST, **self.options},
        )
        self.task = asyncio.create_task(self.publisher.run())
        self.running.add(self)
        return self

    def call(self, count: int = 1) -> None:
        for _ in range(count):
            seq = self.journal.last_seq + 1
            self.journal.append(Admit(draft(f"call-{seq}")))
            self.journal.append(ended(seq))
            self.publisher.wake()

    def failures(self) -> int:
        return sum(self.publisher.stats.errors.values())

    async def drained(self) -> None:
        assert await self.publisher.flush(60), self.publisher.stats

    async def stop(self) -> None:
        while not self.task.done():  # redis-py on Python 3.11 can swallow a cancellation.
            self.task.cancel()
            await asyncio.wait([self.task], timeout=0.2)
        self.journal.close()
        self.running.discard(self)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  the conditions are counters of the code under test
            await asyncio.sleep(0.005)


async def published(client: redis.asyncio.Redis) -> list[int]:
    """The numbers in the stream, in its order; every entry is a whole record."""
    found = [record async for record in tail(client, STREAM, last=100_000)]
    assert not [record for record in found if isinstance(record, Poison)]
    return [record.seq for record in found if isinstance(record, Record)]


class Relay:
    """Between a client and the server. `lose` drops the reply to the next script call, after the server has executed it."""

    def __init__(self, target: str) -> None:
        self.path = tempfile.mktemp(prefix="cdr-relay-")
        self._target = target
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.lose = 0
        self.lost = 0

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):  # Python 3.13 removes it itself.
            os.unlink(self.path)  # noqa: PTH108

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up_reader, up_writer = await asyncio.open_unix_connection(self._target)
        back = asyncio.create_task(self._back(up_reader, writer))
        try:
            while data := await reader.read(1 << 20):
                if b"EVAL" in data:
                    self._script = True
                up_writer.write(data)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)
            for end in (writer, up_writer):
                end.close()
            self._tasks.discard(task)

    _script = False

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 20):
            if self._script and not data.startswith(b"-NOSCRIPT"):
                self._script = False
                if self.lose:
                    self.lose -= 1
                    self.lost += 1
                    writer.close()  # The script ran; nobody hears of it.
                    return
            writer.write(data)
        writer.close()
