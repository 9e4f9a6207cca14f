"""cdr.journal on a disk that is full, fails or is read-only: what was taken stays, what was not is told (design §8)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from cdr_samples import draft, ended
from journals import disk_full, facts_of, make

from cdr.facts import Admit
from cdr.journal import Journal, JournalError
from tests.mounts import run_in_own_mounts


def test_append_that_fails_leaves_whole_records_and_says_why(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    journal.append(Admit(draft("one")))
    fails = disk_full(monkeypatch, after=10)
    with pytest.raises(JournalError, match="No space left on device"):
        journal.append(Admit(draft("two")))
    assert journal.stats.failure == "No space left on device"
    assert journal.stats.write_errors == 1
    fails.undo()
    journal.append(ended(1, "one"))
    assert journal.stats.failure == ""
    journal.close()
    assert [type(fact).__name__ for fact in facts_of(directory)] == ["Admit", "End"]


def test_journal_on_disks_that_are_full_or_read_only() -> None:
    """The cases in disk_cases.py, in a mount namespace of their own: whatever becomes of them, no mount is left behind."""
    run_in_own_mounts(Path(__file__).with_name("disk_cases.py"))


def test_append_when_the_file_cannot_be_restored_goes_on_in_a_new_segment(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make(directory)
    journal.recover()
    journal.append(Admit(draft("one")))
    fails = disk_full(monkeypatch, after=10)
    fails.setattr("cdr.storage.os.ftruncate", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(JournalError):
        journal.append(Admit(draft("two")))
    fails.undo()
    journal.append(Admit(draft("three")))
    assert journal.stats.segments == 2
    journal.close()
    journal = make(directory)
    found = journal.recover()
    assert [admit.record.id for admit, _, _ in found.unfinished] == ["one", "three"]
    assert found.damaged == []
    journal.close()


async def test_wait_synced_returns_when_the_disk_has_it(directory: Path, opened: list[Journal]) -> None:
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    position = journal.append(Admit(draft()))
    await journal.wait_synced(position)
    assert journal.synced >= position
    await journal.wait_synced(position)
    await journal.wait_synced(position + 1_000_000)  # more than there is: all of it
    assert journal.stats.unsynced == 0
    assert journal.stats.fsync_ms > 0
    assert 0 < journal.stats.free_percent <= 100


async def test_wait_synced_when_the_disk_refuses_raises(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    await journal.wait_synced(journal.append(Admit(draft())))
    with monkeypatch.context() as broken:
        broken.setattr("cdr.storage.os.fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        position = journal.append(Admit(draft("two")))
        with pytest.raises(JournalError, match="Input/output error"):
            await journal.wait_synced(position)
        assert journal.stats.fsync_errors >= 1
        assert journal.stats.failure == "Input/output error"
    await journal.wait_synced(position)  # asked again, and this time it works
    assert journal.stats.failure == ""


async def test_sync_groups_appends_within_the_interval(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = os.fsync

    def counted(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_relative_to(directory):  # and not another test's journal
            calls.append(descriptor)
        real(descriptor)

    monkeypatch.setattr("cdr.storage.os.fsync", counted)
    journal = make(directory, segment_bytes=1 << 20, fsync_interval_ms=200)
    opened.append(journal)
    journal.recover()
    began = time.monotonic()
    await journal.wait_synced(journal.append(Admit(draft())))
    before, started = len(calls), time.monotonic()
    for seq in range(1, 301):
        position = journal.append(ended(seq))
    await journal.wait_synced(position)
    now = time.monotonic()
    assert 0 < len(calls) - before <= 2 + (now - started) / 0.2
    assert now - began >= 0.2
