"""cdr.journal on real file systems that are full or read-only, which it takes mounting to have.

Not collected by itself: test_cdr_journal_disk.py runs it in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from cdr_samples import draft, ended
from journals import admit_until_refused, fill, ids

from cdr import codec
from cdr.facts import Admit
from cdr.journal import Journal, JournalError
from cdr.segment import FRAME_SIZE, HEADER_SIZE
from tests.mounts import mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    with mounted(tmp_path / "disk", "256k") as disk:
        yield disk


def test_append_end_on_a_full_disk_uses_the_reserve_and_an_admission_does_not(disk: Path) -> None:
    """Live calls are recorded to the end; new ones are told."""
    journal = Journal(disk / "journal", node="n1", segment_bytes=65536)
    journal.recover()
    assert (disk / "journal" / "reserve").stat().st_size == 16384
    assert admit_until_refused(journal) > 20
    assert journal.stats.failure == "No space left on device"
    for seq in range(1, 11):
        journal.append(ended(seq, user_agent="u" * 1000))
    assert journal.last_seq == 10
    assert admit_until_refused(journal) < 20
    journal.close()
    journal = Journal(disk / "journal", node="n1", segment_bytes=65536)
    found = journal.recover()
    assert found.damaged == []
    assert {"call-11", "call-12"} <= {admit.record.id for admit, _, _ in found.unfinished}
    assert found.next_seq == 11
    journal.close()


PAGE = os.sysconf("SC_PAGE_SIZE")


def fill_up(path: Path) -> None:
    """Give the file all that is left of its disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(PAGE)):
            pass
    assert os.statvfs(path).f_bavail == 0


def sized(call: str, size: int) -> Admit:
    """An admission whose frame has `size` bytes, 500 at least."""
    bare = FRAME_SIZE + len(codec.encode_fact(Admit(draft(call, user_agent="u" * 300))))
    return Admit(draft(call, user_agent="u" * (300 + size - bare)))


@pytest.mark.parametrize("share", [0, 50, 100])
def test_append_on_a_disk_that_is_full_at_a_share_of_the_record_keeps_all_that_was_taken(disk: Path, share: int) -> None:
    """The disk gives whole pages, so the record is laid so that the last page ends at 0, 50 or 100 % of it."""
    journal = Journal(disk / "journal", node="n1", segment_bytes=1 << 20)  # more than the disk has: no blocks in advance
    journal.recover()
    record = sized("last", 1000)
    journal.append(sized("one", 2 * PAGE - HEADER_SIZE - 10 * share))
    file = next((disk / "journal").glob("*.cdrj"))
    assert file.stat().st_size == 2 * PAGE - 10 * share
    fill_up(disk / "filler")
    taken = ["one"]
    if share == 100:
        journal.append(record)
        taken.append("last")
        record = sized("further", 1000)
    with pytest.raises(JournalError, match="No space left on device"):
        journal.append(record)
    assert file.stat().st_size == 2 * PAGE - (0 if share in (0, 100) else 10 * share)
    shutil.copytree(disk / "journal", disk.parent / "copy")
    copy = Journal(disk.parent / "copy", node="n1")  # as after a crash at this moment
    found = copy.recover()
    assert ([admit.record.id for admit, _, _ in found.unfinished], found.damaged, found.torn) == (taken, [], 0)
    copy.close()
    (disk / "filler").unlink()
    journal.append(record)
    taken.append(record.record.id)
    journal.close()
    journal = Journal(disk / "journal", node="n1")
    found = journal.recover()
    assert ([admit.record.id for admit, _, _ in found.unfinished], found.damaged) == (taken, [])
    journal.close()


def test_segment_has_its_blocks_before_it_is_written(disk: Path) -> None:
    """A disk that fills up later does not stop the recording into it; what is left over goes back at the end."""
    journal = Journal(disk / "journal", node="n1", segment_bytes=131072)
    journal.recover()
    file = next((disk / "journal").glob("*.cdrj"))
    assert (file.stat().st_size, file.stat().st_blocks * 512) == (HEADER_SIZE, 131072)
    fill_up(disk / "filler")
    for number in range(100):
        journal.append(sized(f"c{number}", 1000))
    assert journal.stats.write_errors == 0
    journal.close()
    assert file.stat().st_blocks * 512 < 131072
    journal = Journal(disk / "journal", node="n1")
    assert len(journal.recover().unfinished) == 100
    journal.close()


def test_directory_that_becomes_read_only_is_told_and_live_calls_are_recorded_on(disk: Path) -> None:
    directory = disk / "journal"
    journal = Journal(directory, node="n1", segment_bytes=4096)
    journal.recover()
    journal.append(Admit(draft("live")))
    subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(directory)], check=True)
    fill(journal, 30)  # No further segment can be made; the one that is open takes it all.
    assert journal.stats.write_errors > 0
    assert journal.stats.segments == 1
    with pytest.raises(JournalError):  # A second process, or this one after a restart, does not start.
        Journal(directory, node="n1").recover()
    subprocess.run(["umount", str(directory)], check=True)
    fill(journal, 1)
    assert journal.stats.segments == 2
    journal.close()
    journal = Journal(directory, node="n1")
    found = journal.recover()
    assert ids(found.unpublished) == [f"call-{seq}" for seq in range(1, 32)]
    assert [admit.record.id for admit, _, _ in found.unfinished] == ["live"]
    journal.close()


def test_directory_that_is_read_only_at_start_is_named(disk: Path) -> None:
    directory = disk / "journal"
    directory.mkdir()
    subprocess.run(["mount", "--bind", str(directory), str(directory)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(directory)], check=True)
    with pytest.raises(JournalError, match=r"journal /.*/journal: Read-only file system"):
        Journal(directory, node="n1").recover()
