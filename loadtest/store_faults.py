"""A store in trouble, in each way that is known of: what happens to it, and nothing of what that does to calls."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from loadtest.relay import Relay
from loadtest.valkey import Valkey

__all__ = ["FAULTS", "RelayedValkey"]

LATENCY_S = 0.75
LOSE_EVERY_S = 0.5
LOADED = 16_384  # commands that the store loads slowly: it answers others behind each 1,024 of them
SAVED_S = 60.0


class RelayedValkey(Valkey):
    """A store that nodes reach through a relay; `client` goes past it."""

    relay: Relay

    async def __aenter__(self) -> RelayedValkey:
        await super().__aenter__()
        self.relay = Relay(self.directory / "s", self.directory / "r")
        await self.relay.__aenter__()
        self.url = self.relay.url
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.relay.__aexit__(None, None, None)
        await super().__aexit__(*error)


Fault = Callable[[RelayedValkey, float], Awaitable[None]]


async def _stop(store: RelayedValkey, seconds: float) -> None:
    store.stop()
    try:
        await asyncio.sleep(seconds)
    finally:
        store.resume()


async def _kill(store: RelayedValkey, seconds: float) -> None:
    await store.kill()
    await asyncio.sleep(seconds)
    await store.start_again()


async def _flush(store: RelayedValkey, seconds: float) -> None:
    await store.client.flushall()
    await asyncio.sleep(seconds)


async def _latency(store: RelayedValkey, seconds: float) -> None:
    store.relay.delay_s = LATENCY_S
    await asyncio.sleep(seconds)
    store.relay.delay_s = 0.0


async def _read_only(store: RelayedValkey, seconds: float) -> None:
    await store.client.replicaof("127.0.0.1", 1)  # nobody listens there
    await asyncio.sleep(seconds)
    await store.client.replicaof("NO", "ONE")


async def _full(store: RelayedValkey, seconds: float) -> None:
    await store.client.config_set("maxmemory", "1")
    await asyncio.sleep(seconds)
    await store.client.config_set("maxmemory", "0")


async def _lost_reply(store: RelayedValkey, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        store.relay.lose_replies = 1
        await asyncio.sleep(LOSE_EVERY_S)
    store.relay.lose_replies = 0


async def _misconf(store: RelayedValkey, seconds: float) -> None:
    """A save to disk fails: a directory with something in it stands where the file is to go."""
    obstacle = store.directory / "dump.rdb" / "in the way"
    obstacle.parent.unlink(missing_ok=True)  # of the save that ended the last such trouble; the store has its append-only file
    obstacle.mkdir(parents=True)
    await store.client.config_set("save", "3600 1")  # without any the store does not mind
    await _save(store, "err")
    await asyncio.sleep(seconds)
    shutil.rmtree(obstacle.parent)
    await _save(store, "ok")
    await store.client.config_set("save", "")


async def _save(store: RelayedValkey, outcome: str) -> None:
    """Have the store saved; raises AssertionError when that does not end as it should."""
    deadline = time.monotonic() + SAVED_S
    while time.monotonic() < deadline:
        state = await store.client.info("persistence")
        if not state["rdb_bgsave_in_progress"] and state["rdb_last_bgsave_status"] == outcome:
            return
        if not state["rdb_bgsave_in_progress"] and not state["aof_rewrite_in_progress"]:
            await store.client.bgsave()
        await asyncio.sleep(0.05)
    raise AssertionError(f"the store's save did not end with {outcome!r}")


async def _rewrite(store: RelayedValkey) -> None:
    """Have the store write what it has in place of all that made it; raises AssertionError when that does not end."""
    deadline, begun = time.monotonic() + SAVED_S, False
    while time.monotonic() < deadline:
        state = await store.client.info("persistence")
        if not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]:
            if begun:
                return
            begun = bool(await store.client.bgrewriteaof())
        await asyncio.sleep(0.05)
    raise AssertionError("the store's append-only file was not rewritten")


async def _loading(store: RelayedValkey, seconds: float) -> None:
    """The store starts on much data: it is there, and answers that it is loading."""
    await _rewrite(store)  # hours of calls, a command each, would load as slowly
    await store.client.rpush("filler", *([b"x"] * 16))
    async with store.client.pipeline(transaction=False) as pipe:
        for _ in range(LOADED):
            pipe.lset("filler", 0, "y")
        await pipe.execute()
    keys = await store.client.dbsize()
    await store.kill()
    slow = ("--key-load-delay", str(round(1e6 * seconds / (LOADED + keys))))  # microseconds a command or key
    await store.start_again(*slow, timeout_s=10 * seconds + SAVED_S)


async def _old_copy(store: RelayedValkey, seconds: float) -> None:
    """The store dies and comes back with what it had a while before, as from a backup or an asynchronous replica."""
    files, copy = store.directory / "appendonlydir", store.directory / "copy"
    shutil.copytree(files, copy)
    await asyncio.sleep(seconds / 2)
    await store.kill()
    shutil.rmtree(files)
    copy.rename(files)
    await store.start_again()
    await asyncio.sleep(seconds / 2)


FAULTS: Mapping[str, Fault] = {
    "stopped": _stop,
    "killed": _kill,
    "flushed": _flush,
    "slow": _latency,
    "read-only": _read_only,
    "full": _full,
    "misconf": _misconf,
    "loading": _loading,
    "old copy": _old_copy,
    "lost reply": _lost_reply,
}
