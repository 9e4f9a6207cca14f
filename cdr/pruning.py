"""Old records in a node's journal: what is confirmed goes after a time, also where traffic is too thin to fill a segment.

The journal is the node's own safety until the sinks have a record; after that it is one more copy of traffic data (TDDDG § 9).
The running node lets go of it by itself (`prune`), every few minutes; `cdr purge` has it do so now, or does it in the directory
of a node that is stopped (`prune_stopped`), and proves it by reading the segments before and after (`survey`).
What is not confirmed stays, whatever its age: invariant 3 comes first.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NamedTuple

from cdr import codec
from cdr.journal import Journal, JournalError
from cdr.reading import read_directory
from cdr.retention import Rules, reason_of
from cdr.segment import Frame

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Overdue", "Survey", "prune", "prune_stopped", "survey"]


class Overdue(NamedTuple):
    """A final record that is older than the journal may keep it. `node` and `seq` name it."""

    node: str
    seq: int
    reason: str
    ended_ms: int
    confirmed: bool


class Survey(NamedTuple):
    """What lies in a journal's directory past its time; `aside` are damaged files, with the times of their last write."""

    overdue: list[Overdue]
    aside: list[tuple[str, int]]


def survey(directory: Path, rules: Rules, now_ms: int) -> Survey:
    """Read all segments, also beside the running node. Raises OSError."""
    confirmed: dict[str, int] = {}
    found: list[Overdue] = []
    before_ms = now_ms - rules.unbilled_ms
    for _, header, items in read_directory(directory):
        if header is None:
            continue  # Recovery reports it; nothing in it can be told from an accident.
        confirmed[header.node] = max(confirmed.get(header.node, 0), header.confirmed_seq)
        for item in items:
            try:
                entry = codec.scan(item.payload) if isinstance(item, Frame) else None
                if entry is not None and entry.kind == "confirmed":
                    confirmed[header.node] = max(confirmed[header.node], entry.seq)
                elif entry is not None and entry.kind == "end" and entry.end_at_ms < before_ms:
                    record = codec.decode(entry.record)
                    found.append(Overdue(header.node, entry.seq, reason_of(record, rules), record.end_at_ms, confirmed=False))
            except codec.CodecError:
                continue  # As above.
    aside = [(path.name, path.stat().st_mtime_ns // 1_000_000) for path in sorted(directory.glob("*.damaged"))]
    return Survey(
        [one._replace(confirmed=one.seq <= confirmed[one.node]) for one in found],
        [(name, at_ms) for name, at_ms in aside if at_ms < before_ms],
    )


async def prune(journal: Journal, before_ms: int) -> None:
    """Have the journal let go of confirmed records of calls that ended before `before_ms` (UTC ms), off the disk.

    Raises JournalError when the disk refuses to sync: then they may be there still.
    """
    while journal.prune(before_ms):  # noqa: ASYNC110  nothing is waited for: others have their turn
        await asyncio.sleep(0)
    await journal.wait_synced(journal.position)


def prune_stopped(directory: Path, *, node: str, segment_bytes: int, before_ms: int) -> None:
    """`prune` in the directory of a node that is stopped. Raises JournalError, also when a process has the directory.

    Only as the directory's owner: files of another user would keep the node from starting.
    """
    owner = directory.stat().st_uid
    if owner != os.geteuid():
        raise JournalError(f"{directory} belongs to uid {owner}: run this as that user")
    journal = Journal(directory, node=node, segment_bytes=segment_bytes)
    journal.recover()
    try:
        while journal.prune(before_ms):
            pass
    finally:
        journal.close()
