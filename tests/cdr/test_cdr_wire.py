"""cdr.wire: no reply is ever read as that of another command, and each fault has its name."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio

from cdr.wire import Link, cancel_all, name_of

if TYPE_CHECKING:
    from valkey_process import Valkey


async def test_link_reply_that_does_not_come_raises_and_drops_the_connection(
    client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    """The next command must not read the reply of the one that was given up."""
    link = Link(client, timeout_s=60.0)
    await link.call("SET", "a", "1")
    valkey.signal(signal.SIGSTOP)
    with pytest.raises((redis.exceptions.TimeoutError, TimeoutError)):
        await link.call("GET", "a", timeout_s=0.2)
    valkey.signal(signal.SIGCONT)
    assert await link.call("ECHO", "mine") == b"mine"
    waiting = asyncio.create_task(link.call("BLPOP", "nothing", 5))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await link.call("ECHO", "mine") == b"mine"
    await link.drop()


async def test_link_command_is_sent_without_a_task_of_its_own(client: redis.asyncio.Redis) -> None:
    link = Link(client, timeout_s=60.0)
    await link.call("SET", "a", "1")
    made: list[object] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **named: Any) -> asyncio.Task[Any]:
        made.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **named)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        assert await link.call("GET", "a") == b"1"
    finally:
        loop.set_task_factory(None)
    await link.drop()
    assert made == []


async def test_task_that_lost_a_cancellation_is_cancelled_again() -> None:
    lost: list[int] = []

    async def loses_one() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append(1)

    tasks = [asyncio.ensure_future(loses_one()) for _ in range(2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await cancel_all(tasks)
    assert [task.cancelled() for task in tasks] == [True, True]


@pytest.mark.parametrize(
    "outcome", [b"OK", redis.exceptions.NoScriptError("x"), redis.exceptions.ConnectionError("x"), TimeoutError()]
)
async def test_link_cancellation_that_the_client_swallowed_is_raised(
    monkeypatch: pytest.MonkeyPatch, outcome: bytes | Exception
) -> None:
    """asyncio.wait_for of Python 3.11, which redis-py sends with, may lose it; a task would go on for ever."""

    class Connection:
        closed = 0

        async def connect(self) -> None: ...

        async def send_packed_command(self, *_: object) -> None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

        async def read_response(self, **_: object) -> bytes:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        async def disconnect(self, **_: object) -> None:
            self.closed += 1

    connection = Connection()
    client = redis.asyncio.Redis()
    monkeypatch.setattr(client.connection_pool, "make_connection", lambda: connection)
    waiting = asyncio.create_task(Link(client, timeout_s=1).call("PING"))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert connection.closed == 1


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (redis.exceptions.BusyLoadingError("x"), "loading"),
        (redis.exceptions.AuthenticationError("x"), "noauth"),
        (redis.exceptions.ResponseError("MISCONF Errors writing to the AOF file"), "misconf"),
        (redis.exceptions.ResponseError("CLUSTERDOWN The cluster is down"), "clusterdown"),
        (redis.exceptions.ResponseError("whatever"), "error"),
        (redis.exceptions.MovedError("1 127.0.0.1:1"), "moved"),
        (FileNotFoundError("x"), "away"),
    ],
)
def test_name_of_error_is_the_stores_state(error: Exception, name: str) -> None:
    assert name_of(error) == name
