"""A connection of one's own to Redis, one command after the other, and names for what can be wrong with it.

The connections of a shared pool are not used: a command that is given up leaves its reply on the wire, and the next one would
read it as its own. Here every error and every cancellation drops the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import TYPE_CHECKING, Any, cast

import hiredis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from redis.asyncio import Redis

__all__ = ["Link", "Script", "cancel_all", "name_of"]

CANCEL_EVERY_S = 0.2

_BY_CLASS: tuple[tuple[type[BaseException], str], ...] = (
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.AuthenticationError, "noauth"),
    (exceptions.NoPermissionError, "noperm"),
    (exceptions.ReadOnlyError, "readonly"),
    (exceptions.OutOfMemoryError, "oom"),
    (exceptions.TimeoutError, "slow"),
    (TimeoutError, "slow"),
    (exceptions.ConnectionError, "away"),
    (OSError, "away"),
)
_BY_TEXT = {
    "NOREPLICAS": "noreplicas",
    "MISCONF": "misconf",
    "CLUSTERDOWN": "clusterdown",
    "MASTERDOWN": "masterdown",
    "TRYAGAIN": "moved",
    "READONLY": "readonly",
    "OOM": "oom",
    "BUSY": "busy",
    "WRONGTYPE": "wrongtype",
    "NOAUTH": "noauth",
}


def name_of(error: BaseException) -> str:
    """A short name of a store's state, for metrics: away, slow, readonly, oom, loading, noreplicas, moved, ... or error."""
    if isinstance(error, exceptions.AskError):  # MovedError is one; redis-py keeps the address only.
        return "moved"
    for kind, name in _BY_CLASS:
        if isinstance(error, kind):
            return name
    word = str(error).partition(" ")[0]  # BUSYGROUP is not BUSY
    return _BY_TEXT.get(word, "error")


# redis-py packs in Python: for a batch of records that is most of what publishing it takes. Declared for tuples of one element.
_packed = cast("Callable[[tuple[str | bytes | float, ...]], bytes]", hiredis.pack_command)


async def cancel_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel until every task has ended: redis-py sends with `asyncio.wait_for`, which in Python 3.11 loses a cancellation that
    comes as the command is written."""
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_EVERY_S)


class Link:
    """One dedicated connection with the address, credentials and TLS of `client`'s pool."""

    def __init__(self, client: Redis, *, timeout_s: float) -> None:
        self._pool: Any = client.connection_pool
        self._timeout_s = timeout_s
        self._connection: Any = None  # redis-py's connections have no common public type

    async def call(self, *command: str | bytes | float, timeout_s: float | None = None) -> Any:
        """The reply, undecoded. Raises redis.exceptions.RedisError or OSError; replies that are errors keep the connection."""
        task = asyncio.current_task()
        cancels = task.cancelling() if task is not None else 0
        try:
            return await self._exchange(command, timeout_s or self._timeout_s)
        except ResponseError:
            raise
        except BaseException:
            await self.drop()
            raise
        finally:
            if task is not None and task.cancelling() > cancels:
                # redis-py connects within asyncio.wait_for, which before Python 3.12 may swallow a cancellation. Here it would
                # go on as if nothing had been asked of it, so whatever came of the command gives way to the cancellation.
                await self.drop()
                raise asyncio.CancelledError

    async def _exchange(self, command: tuple[str | bytes | float, ...], timeout_s: float) -> Any:
        if self._connection is None:
            connection = self._pool.make_connection()
            connection.retry = Retry(NoBackoff(), 0)  # When to try again is decided by who calls.
            connection.socket_timeout = connection.socket_connect_timeout = self._timeout_s
            self._connection = connection
            await connection.connect()
            connection.socket_timeout = None  # With one, it makes a task for each command, and three timers.
        async with asyncio.timeout(timeout_s):
            await self._connection.send_packed_command(_packed(command))
            return await self._connection.read_response(disable_decoding=True)

    async def drop(self) -> None:
        """Close the connection at once; the next call makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):
                await connection.disconnect(nowait=True)


class Script:
    """A Lua script that the store keeps under its digest; it is sent whole only where the store does not have it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, link: Link, keys: tuple[str, ...], *arguments: str | int | bytes) -> Any:
        """The script's reply. Raises what `Link.call` does."""
        try:
            return await link.call("EVALSHA", self._sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await link.call("EVAL", self._text, len(keys), *keys, *arguments)
