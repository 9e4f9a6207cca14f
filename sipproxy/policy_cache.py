"""The last good snapshot on this node's disk: what a node starts with when the store is away (design: invariant 5).

Leaves out: history; the store's log has that. The file holds HA1 values, so it is readable by its owner alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from policy import codec, profiles
from policy.build import snapshot_of

if TYPE_CHECKING:
    from pathlib import Path

    from policy.model import Snapshot

__all__ = ["load", "save"]

VERSION = 1


class _File(msgspec.Struct):
    v: int
    version: int
    lines: list[bytes]
    accounts: list[bytes]
    psap: list[bytes]
    blocks: list[bytes]


def save(path: Path, snapshot: Snapshot) -> None:
    """Write the snapshot whole: aside, then renamed. Raises OSError."""
    content = msgspec.msgpack.encode(
        _File(
            VERSION,
            snapshot.version,
            [codec.encode(line) for line in snapshot.lines.values()],
            [codec.encode(account) for account in snapshot.accounts.values()],
            [codec.encode_psap(routes) for routes in snapshot.psap.values()],
            [codec.encode(rule) for rule in snapshot.blocks],
        )
    )
    aside = path.with_suffix(f".{os.getpid()}.new")  # the workers of a node share the file
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def load(path: Path) -> Snapshot | None:
    """The snapshot that was saved; None when there is none that can be read."""
    try:
        found = msgspec.msgpack.decode(path.read_bytes(), type=_File)
        if found.v != VERSION:
            return None
        return snapshot_of(
            found.version,
            [codec.decode_line(value) for value in found.lines],
            [codec.decode_account(value) for value in found.accounts],
            profiles.load(),
            [route for value in found.psap for route in codec.decode_psap(value)],
            [codec.decode_block(value) for value in found.blocks],
        )
    except (OSError, msgspec.MsgspecError, ValueError):
        return None
