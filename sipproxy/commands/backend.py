"""The store for the time of one command: the configured one, a running node's embedded one, or the embedded one started."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from sipproxy.commands.output import AWAY, REFUSED, CommandError
from sipproxy.store.embedded import EmbeddedError, EmbeddedStore, socket_url
from sipproxy.store.errors import UNUSABLE, unusable_mode

if TYPE_CHECKING:
    from sipproxy.config import Config

__all__ = ["fault_of_store", "has_store", "with_store"]

T = TypeVar("T")
CONNECT_S = 2.0
ANSWER_S = 10.0


def has_store(config: Config) -> bool:
    """Whether a store is configured, or the embedded one has ever been used."""
    return bool(config.store.url) or (Path(config.node.data_dir) / "store").is_dir()


def fault_of_store(config: Config) -> str:
    """Why the store that `store.url` names cannot be used; "" where it can, or does not answer now."""

    async def ask() -> str:
        async with contextlib.AsyncExitStack() as stack:
            client = await _connected(stack, config.store.url)
            return await _unusable(client) if client is not None else ""

    try:
        mode = asyncio.run(ask()) if config.store.url else ""
    except (RedisError, OSError):
        return ""
    return UNUSABLE[mode] if mode else ""


def with_store(config: Config, work: Callable[[Redis], Awaitable[T]], *, create: bool = False) -> T:
    """The result of `work` with a client of the store. Raises CommandError when there is no store to be had.

    An embedded store that was never used is made only with `create`: a question leaves nothing behind.
    """
    if not create and not has_store(config):
        detail = f"nothing is stored in {config.node.data_dir} yet; `sipproxy up`, or an import, makes a store there"
        raise CommandError(detail, code=AWAY)

    async def run() -> T:
        async with _client(config) as client:
            return await work(client)

    try:
        return asyncio.run(run())
    except EmbeddedError as error:
        raise CommandError(f"store: {error}", code=AWAY) from None
    except (RedisError, OSError) as error:
        where = "store.url" if config.store.url else "the embedded store"
        raise CommandError(f"{where} does not do its part: {type(error).__name__}: {str(error)[:200]}", code=AWAY) from None


@contextlib.asynccontextmanager
async def _client(config: Config) -> AsyncIterator[Redis]:
    async with contextlib.AsyncExitStack() as stack:
        url = config.store.url or socket_url(config.node.data_dir)
        client = await _connected(stack, url)
        if client is None and not config.store.url:
            store = EmbeddedStore(config.node.data_dir)
            await store.start()
            stack.push_async_callback(store.stop)
            client = await _connected(stack, store.url)
        if client is not None and (mode := await _unusable(client)):
            raise CommandError(f"store.url: {UNUSABLE[mode]}", code=REFUSED)
        if client is None:
            raise CommandError(f"no store answers on {_shown(url)}; is it running, and store.url right?", code=AWAY)
        yield client


async def _unusable(client: Redis) -> str:
    """The name in UNUSABLE of what the server is, "" where it may not be asked."""
    try:
        info = await client.execute_command("INFO", "server")  # type: ignore[no-untyped-call]
    except ResponseError:
        return ""
    told = "\n".join(f"{name}:{value}" for name, value in info.items()).encode() if isinstance(info, dict) else info
    return unusable_mode(told)


async def _connected(stack: contextlib.AsyncExitStack, url: str) -> Redis | None:
    """A client whose server answered, closed with `stack`; None when nobody listens there."""
    client = Redis.from_url(url, socket_connect_timeout=CONNECT_S, socket_timeout=ANSWER_S)
    try:
        await client.ping()
    except (ConnectionError, FileNotFoundError, RedisError, OSError, TimeoutError) as error:
        await client.aclose()
        if isinstance(error, RedisError) and type(error).__name__ not in ("ConnectionError", "TimeoutError"):
            raise
        return None
    stack.push_async_callback(client.aclose)
    return client


def _shown(url: str) -> str:
    """The URL without its password."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"
