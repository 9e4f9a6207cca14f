"""The secret that all nodes on one store share (`sp:secret`): nonces are made with it.

The first node writes its own, the others take that. Each keeps what it learned in a file of its own, so that it starts with the
right one while the store is away, and writes it again after the store was emptied. It is asked for again and again, because a
store may be restored from an old copy. Leaves out: replacing the secret; delete the key and every node's file while all are
stopped.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from sipproxy.store import keys
from sipproxy.store.errors import StoreError, next_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sipproxy.store.connection import Store

__all__ = ["SECRET_BYTES", "SharedSecret", "kept_secret"]

SECRET_BYTES = 32


def kept_secret(path: Path) -> bytes:
    """The secret in this file, which its owner alone can read; made when there is none. Raises OSError."""
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        found = b""
    if len(found) == SECRET_BYTES:
        return found
    made = os.urandom(SECRET_BYTES)
    _keep(path, made)
    return made


def _keep(path: Path, secret: bytes) -> None:
    """Replace the file whole: a node that dies meanwhile finds the old one or the new one."""
    new = path.with_suffix(f".{os.getpid()}.new")  # the workers of a node share the file
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)
    new.replace(path)


class SharedSecret:
    """See the module. `on_secret` is called with each secret that is another one than before."""

    def __init__(self, store: Store, path: Path, on_secret: Callable[[bytes], None], *, interval_s: float = 5.0) -> None:
        """`path` is this node's file. Raises OSError when it can be neither read nor made."""
        self._store, self._path, self._on_secret, self._interval_s = store, path, on_secret, interval_s
        self.current = kept_secret(path)
        self.undecodable = 0

    async def step(self) -> None:
        """Take the store's secret, or give it ours. Raises StoreError, and OSError when it cannot be kept in the file."""
        replies = await self._store.execute_all([("SETNX", keys.SECRET, self.current), ("GET", keys.SECRET)])
        del replies[0]
        found = next_of(replies)
        if not isinstance(found, bytes) or len(found) != SECRET_BYTES:
            self.undecodable += 1
            return
        if found != self.current:
            self.current = found
            self._on_secret(found)
            _keep(self._path, found)

    async def run(self, on_problem: Callable[[str], None]) -> None:
        """Do so again and again; `on_problem` is told of a file that cannot be written."""
        while not self._store.closed:
            try:
                await self.step()
            except StoreError:
                pass  # the store's state tells of it
            except OSError as error:
                on_problem(str(error))
            await asyncio.sleep(self._interval_s)
