"""SIGHUP: the configuration and the policy files that it names are read again and taken over, whole or not at all.

What changes without a restart: the policy files, the log's level, and the budgets of `limits` (LIVE). A file that cannot be
used, a key that needs a restart, or a store that is away leaves everything as it was, and is said once with every fault. A node
with workers reloads in its supervisor: the policy reaches all of them as one version by the store, the rest as one word to
each. Certificates are not waited for SIGHUP (`certificates`).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import msgspec
import structlog
from redis.exceptions import RedisError

from policy import store as policy_store
from policy.table import PolicyError
from sipproxy import policy_files
from sipproxy.config import load
from sipproxy.config_file import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from redis.asyncio import Redis

    from sipproxy.config import Config

__all__ = ["LIVE", "Reloader", "restart_keys"]

_BUDGETS = [f"{whose}_{what}" for whose in ("source", "line", "strangers", "registers") for what in ("per_s", "burst")]
LIVE = frozenset(["log.level", "policy.lines", "policy.psap", "policy.blocks", *(f"limits.{name}" for name in _BUDGETS)])


class _RefusedError(Exception):
    """Why nothing was taken over."""


def restart_keys(before: Config, after: Config) -> list[str]:
    """The keys that differ and need a restart; of tables that may come several times, such as [[trunk]], their name."""
    return [key for key in _changed(before, after) if key not in LIVE]


def _changed(before: Config, after: Config) -> list[str]:
    keys: list[str] = []
    for section in before.__struct_fields__:
        old, new = getattr(before, section), getattr(after, section)
        if isinstance(old, msgspec.Struct):
            names = old.__struct_fields__
            keys += [f"{section}.{name}" for name in names if getattr(old, name) != getattr(new, name)]
        elif old != new:
            keys.append(section)
    return keys


class Reloader:
    """Reloads when asked to. `config` is the one in use; `use` is given what is new in it, once nothing can fail any more."""

    def __init__(
        self,
        config: Config,
        path: Path,
        *,
        connect: Callable[[], AbstractAsyncContextManager[Redis]],
        known_version: Callable[[], int],
        use: Callable[[Config], None],
    ) -> None:
        """`connect` gives the store's client; `known_version` the policy's, as far as it is known here."""
        self.config, self._path = config, path
        self._connect, self._known_version, self._use = connect, known_version, use
        self._wanted = asyncio.Event()
        self._log = structlog.get_logger("node")

    def listen(self, end: Callable[[], None]) -> None:
        """Take SIGHUP from now on. Whoever runs a node in a terminal and closes that means its end."""
        in_terminal = sys.stdin is not None and sys.stdin.isatty()
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGHUP, lambda: end() if in_terminal and _is_terminal_gone() else self._wanted.set()
        )

    async def run(self) -> None:
        """Reload each time that it is asked for, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            try:
                after, version = await self._taken_over()
            except (ConfigError, PolicyError) as error:
                self._refuse([str(fault) for fault in error.faults])
            except (_RefusedError, policy_store.ConflictError, RedisError, OSError, msgspec.DecodeError) as error:
                self._refuse([str(error)])
            else:
                changed, self.config = _changed(self.config, after), after
                self._use(after)
                self._log.info("reloaded", changed=changed, policy_version=version)

    def _refuse(self, faults: list[str]) -> None:
        self._log.error("reload_refused", faults=faults, consequence="nothing has changed")

    async def _taken_over(self) -> tuple[Config, int]:
        """The new configuration, with the policy version that has its files. Raises as `run` tells."""
        after = await asyncio.to_thread(load, self._path)
        change = await asyncio.to_thread(policy_files.read, after)
        if keys := restart_keys(self.config, after):
            raise _RefusedError(f"{self._path}: {', '.join(keys)}: changes with a restart alone; restart the node, or undo it")
        async with self._connect() as client:
            version, known = await policy_store.version_in(client), self._known_version()
            if version < known:
                raise _RefusedError(f"the store has policy version {version}, {known} was known: `sipproxy reseed` comes first")
            why = f"files of {self._path.name}, read again"
            return after, await policy_store.apply(client, change, who=f"node {after.node.id}", why=why)


def _is_terminal_gone() -> bool:
    try:
        os.tcgetpgrp(0)
    except OSError:
        return True
    return False
