"""Journals as the tests of this folder make, fill, read and break them."""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING

import pytest
from cdr_samples import draft, ended

from cdr import codec
from cdr.facts import Admit, Alive, Answer, End, Record
from cdr.journal import Journal, JournalError
from cdr.segment import HEADER_SIZE, SUFFIX, Frame, frames, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def make(directory: Path, **options: int) -> Journal:
    return Journal(directory, node="n1", **{"segment_bytes": 4096, "fsync_interval_ms": 1, **options})


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{SUFFIX}"))


def ids(records: Iterator[Record]) -> list[str]:
    return [record.id for record in records]


def wait_for_segments(directory: Path, count: int) -> None:
    until = time.monotonic() + 40
    while len(segments(directory)) != count:
        assert time.monotonic() < until, segments(directory)
        time.sleep(0.005)


def fill(journal: Journal, count: int) -> None:
    """`count` whole calls of some 400 bytes."""
    for _ in range(count):
        seq = journal.last_seq + 1
        journal.append(Admit(draft(f"call-{seq}", user_agent="u" * 100)))
        journal.append(ended(seq, user_agent="u" * 100))


def facts_of(directory: Path) -> list[Admit | Answer | Alive | End]:
    """Everything that the segments hold, read without the journal."""
    found = []
    for path in segments(directory):
        data = path.read_bytes()
        header = read_header(data)
        assert header is not None
        for item in frames(data, HEADER_SIZE, header.position, header.salt):
            assert isinstance(item, Frame)
            if codec.scan(item.payload).kind != "confirmed":
                found.append(codec.decode_fact(item.payload))
    return found


def disk_full(monkeypatch: pytest.MonkeyPatch, *, after: int) -> pytest.MonkeyPatch:
    """Every write takes `after` bytes, and the next one fails."""
    import errno
    import os

    patch = pytest.MonkeyPatch()
    real, state = os.write, {"part": True}

    def write(descriptor: int, data: bytes) -> int:
        state["part"] = not state["part"]
        if state["part"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[:after])

    patch.setattr("cdr.storage.os.write", write)
    return patch


def admit_until_refused(journal: Journal) -> int:
    """How many admissions the disk took."""
    for count in range(10_000):
        try:
            journal.append(Admit(draft(f"call-{count + 1}", user_agent="u" * 2000)))
        except JournalError:
            assert journal.stats.failure == "No space left on device"
            return count
    raise AssertionError("the disk is not full")


def reopened(directory: Path, data: bytes) -> Journal:
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / f"{0:020d}{SUFFIX}").write_bytes(data)
    return make(directory)
