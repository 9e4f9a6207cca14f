"""cdr.journal: what was appended is there after a crash, and nothing else (docs/design.md, invariant 3)."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
from cdr_samples import answer, draft, ended

from cdr import codec
from cdr.facts import Admit, Alive, Answer, End, Record
from cdr.journal import Journal, JournalError, UnwritableError
from cdr.segment import HEADER_SIZE, SUFFIX, Frame, frames, read_header

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def opened(directory: Path) -> Iterator[list[Journal]]:
    """Journals that a test opens are closed for it."""
    journals: list[Journal] = []
    yield journals
    for journal in journals:
        journal.close()


def make(directory: Path, **options: int) -> Journal:
    return Journal(directory, node="n1", **{"segment_bytes": 4096, "fsync_interval_ms": 1, **options})


def segments(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"*{SUFFIX}"))


def ids(records: Iterator[Record]) -> list[str]:
    return [record.id for record in records]


def wait_for_segments(directory: Path, count: int) -> None:
    until = time.monotonic() + 10
    while len(segments(directory)) != count:
        assert time.monotonic() < until, segments(directory)
        time.sleep(0.005)


def fill(journal: Journal, count: int) -> None:
    """`count` whole calls of some 400 bytes."""
    for _ in range(count):
        seq = journal.last_seq + 1
        journal.append(Admit(draft(f"call-{seq}", user_agent="u" * 100)))
        journal.append(ended(seq, user_agent="u" * 100))


def test_recover_new_directory_is_empty(directory: Path) -> None:
    journal = make(directory)
    found = journal.recover()
    assert (found.next_seq, found.unfinished, list(found.unpublished), found.damaged, found.torn) == (1, [], [], [], 0)
    assert journal.stats.segments == 1
    journal.close()
    journal.close()


def test_recover_after_close_gives_back_live_calls_and_unpublished_records(directory: Path) -> None:
    journal = make(directory)
    journal.recover()
    first, second = draft("one", unknown={"news": 1}), draft("two")
    journal.append(Admit(first))
    journal.append(Admit(second))
    journal.append(answer("one"))
    journal.append(Alive("one", 7, 7000))
    journal.append(Alive("one", 9, 9000))
    journal.append(ended(1, "refused"))
    journal.append(Admit(draft("three")))
    journal.append(ended(2, "three"))
    journal.confirm(1)
    journal.close()

    journal = make(directory)
    found = journal.recover()
    assert found.next_seq == 3
    assert found.unfinished == [(Admit(first), answer("one"), Alive("one", 9, 9000)), (Admit(second), None, None)]
    assert ids(found.unpublished) == ["three"]
    assert (found.damaged, journal.confirmed_seq, journal.recovered_seq) == ([], 1, 2)
    assert journal.stats.live == 2
    journal.append(ended(3, "one"))
    journal.append(ended(4, "two"))
    journal.close()

    journal = make(directory)
    found = journal.recover()
    assert (found.next_seq, found.unfinished, ids(found.unpublished)) == (5, [], ["three", "one", "two"])
    journal.close()


def test_recover_second_process_in_the_same_directory_is_refused(directory: Path) -> None:
    journal = make(directory)
    journal.recover()
    with pytest.raises(JournalError, match="in use by another process"):
        make(directory).recover()
    with pytest.raises(JournalError, match="open already"):
        journal.recover()
    journal.close()
    again = make(directory)
    again.recover()
    again.close()


def test_recover_directory_of_another_node_is_refused(directory: Path) -> None:
    journal = make(directory)
    journal.recover()
    journal.close()
    with pytest.raises(JournalError, match="belongs to node 'n1', not to 'n2'"):
        Journal(directory, node="n2").recover()
    make(directory).recover()  # The refused one gave the lock back.


def test_append_before_recovery_or_after_close_raises(directory: Path) -> None:
    journal = make(directory)
    with pytest.raises(JournalError, match="not open"):
        journal.append(Admit(draft()))
    journal.recover()
    journal.close()
    with pytest.raises(JournalError, match="not open"):
        journal.append(Admit(draft()))


@pytest.mark.parametrize("options", [{"segment_bytes": 4095}, {"segment_bytes": 2**40}])
def test_journal_impossible_size_is_refused(directory: Path, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="segment_bytes"):
        make(directory, **options)


def test_append_number_given_before_is_refused_and_a_gap_is_counted(directory: Path, opened: list[Journal]) -> None:
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    journal.append(ended(1))
    for seq in (1, 0):
        with pytest.raises(UnwritableError, match="given already"):
            journal.append(ended(seq, "other"))
    assert journal.stats.gaps == 0
    journal.append(ended(4))
    assert journal.stats.gaps == 2


def test_append_fact_that_cannot_be_written_raises_and_leaves_the_journal_as_it_was(
    directory: Path, opened: list[Journal]
) -> None:
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    for fact in (Admit(draft(dialled="\ud800")), Admit(draft(dialled="x" * 2_000_000))):
        with pytest.raises(UnwritableError):
            journal.append(fact)
    journal.append(ended(1))
    assert ids(journal.records_from(1)) == ["call-1"]
    assert journal.stats.live == 0


def test_segments_rotate_and_are_removed_oldest_first_when_confirmed(directory: Path) -> None:
    journal = make(directory)
    journal.recover()
    fill(journal, 40)
    count = journal.stats.segments
    assert count > 3
    assert all(path.stat().st_size <= 4096 for path in segments(directory))
    journal.confirm(20)
    wait_for_segments(directory, journal.stats.segments)
    assert 1 < journal.stats.segments < count
    assert ids(journal.records_from(21)) == [f"call-{seq}" for seq in range(21, 41)]
    assert ids(journal.records_from(35)) == [f"call-{seq}" for seq in range(35, 41)]
    journal.confirm(40)
    journal.confirm(40)
    journal.confirm(1000)
    assert journal.stats.segments == 1
    wait_for_segments(directory, 1)
    assert journal.confirmed_seq == 40
    journal.close()
    journal = make(directory)
    found = journal.recover()
    assert (found.next_seq, list(found.unpublished), journal.confirmed_seq) == (41, [], 40)
    journal.close()


def test_next_number_survives_though_no_record_is_left(directory: Path) -> None:
    """The only segment is new, and its header knows the numbers."""
    journal = make(directory)
    journal.recover()
    fill(journal, 10)
    journal.confirm(9)
    while journal.stats.segments < 3:
        fill(journal, 1)
    last = journal.last_seq
    newest = segments(directory)[-1]
    journal.confirm(last)
    journal.close()
    newest.write_bytes(newest.read_bytes()[:HEADER_SIZE])
    assert segments(directory) == [newest]
    header = read_header(newest.read_bytes())
    assert header is not None
    assert header.last_seq > 10
    journal = make(directory)
    assert journal.recover().next_seq == header.last_seq + 1
    assert journal.confirmed_seq == 9
    journal.close()


def test_long_call_does_not_keep_the_segments_it_began_in(directory: Path) -> None:
    """Its facts are carried on, and a crash at any later time still finds them."""
    journal = make(directory)
    journal.recover()
    journal.append(Admit(draft("long", unknown={"n": 1})))
    journal.append(answer("long"))
    journal.append(Alive("long", 3, 3000))
    for _ in range(60):
        fill(journal, 5)
        journal.confirm(journal.last_seq)
    assert journal.stats.segments <= 7
    wait_for_segments(directory, journal.stats.segments)
    first = int(segments(directory)[0].stem)
    assert first > 10 * 4096
    journal.close()
    journal = make(directory)
    found = journal.recover()
    assert found.unfinished == [(Admit(draft("long", unknown={"n": 1})), answer("long"), Alive("long", 3, 3000))]
    assert (found.damaged, found.next_seq) == ([], 301)
    journal.append(ended(301, "long"))
    journal.close()
    journal = make(directory)
    assert journal.recover().unfinished == []
    journal.close()


def test_unpublished_records_are_never_removed(directory: Path) -> None:
    journal = make(directory)
    journal.recover()
    fill(journal, 200)
    journal.confirm(1)
    journal.append(Admit(draft("live")))
    journal.close()
    journal = make(directory)
    found = journal.recover()
    assert ids(found.unpublished) == [f"call-{seq}" for seq in range(2, 201)]
    journal.close()


def small_journal(directory: Path) -> tuple[bytes, list[int], list[Admit | Answer | Alive | End]]:
    """One segment, the offsets where its records end, and its facts."""
    facts: list[Admit | Answer | Alive | End] = [
        Admit(draft("one")),
        answer("one"),
        Admit(draft("two")),
        Alive("one", 9, 9000),
        ended(1, "one"),
        ended(2, "three"),
    ]
    journal = make(directory)
    journal.recover()
    ends = []
    for fact in facts:
        journal.append(fact)
        ends.append(segments(directory)[0].stat().st_size)
    journal.close()
    return segments(directory)[0].read_bytes(), ends, facts


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


def reopened(directory: Path, data: bytes) -> Journal:
    shutil.rmtree(directory)
    directory.mkdir()
    (directory / f"{0:020d}{SUFFIX}").write_bytes(data)
    return make(directory)


def test_recover_segment_cut_anywhere_keeps_every_whole_record(directory: Path) -> None:
    data, ends, facts = small_journal(directory)
    for cut in range(len(data) + 1):
        journal = reopened(directory, data[:cut])
        found = journal.recover()
        whole = sum(end <= cut for end in ends)
        expected = [HEADER_SIZE, *ends][whole] if cut >= HEADER_SIZE else 0
        assert (found.damaged, found.torn) == ([], cut - expected), cut
        assert facts_of(directory) == facts[:whole], cut
        seqs = [fact.record.seq for fact in facts[:whole] if isinstance(fact, End)]
        assert found.next_seq == max(seqs, default=0) + 1
        journal.append(ended(found.next_seq, "after"))  # What follows the cut is whole again.
        journal.close()
        assert facts_of(directory)[:-1] == facts[:whole], cut


def test_recover_segment_with_one_bit_flipped_invents_and_hides_nothing(directory: Path) -> None:
    data, ends, facts = small_journal(directory)
    spans = list(zip([HEADER_SIZE, *ends], ends, strict=False))
    for bit in range(0, 8 * len(data), 7):  # every byte, each of the bits in turn
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        journal = reopened(directory, bytes(bad))
        found = journal.recover()
        left = [fact for fact, (start, end) in zip(facts, spans, strict=False) if not start <= bit // 8 < end]
        assert len(left) == len(facts) - (bit // 8 >= HEADER_SIZE)
        ended_ids = {fact.record.id for fact in left if isinstance(fact, End)}
        assert set(ids(found.unpublished)) == ended_ids, bit
        live = {fact.record.id for fact in left if isinstance(fact, Admit)} - ended_ids
        assert {admit.record.id for admit, _, _ in found.unfinished} == live, bit
        if bit // 8 >= HEADER_SIZE:
            start, end = next(span for span in spans if span[0] <= bit // 8 < span[1])
            assert found.torn or [(d.offset, d.length) for d in found.damaged][:1] == [(start, end - start)], bit
        next_seq = found.next_seq
        journal.append(ended(next_seq, "after"))
        journal.close()
        if bit // 8 >= ends[-2] and not found.torn:
            assert segments(directory)[0].read_bytes() == bad, bit  # The evidence stays as it was found.
        again = make(directory)  # Damage is neither repaired nor grown by a restart.
        found = again.recover()
        assert ids(found.unpublished)[-1] == "after"
        assert found.next_seq == next_seq + 1
        again.close()


def test_recover_answer_without_its_admission_is_reported(directory: Path) -> None:
    journal = make(directory)
    journal.recover()
    journal.append(answer("ghost"))
    journal.close()
    journal = make(directory)
    found = journal.recover()
    assert found.unfinished == []
    assert [damage.reason for damage in found.damaged] == ["call 'ghost' has no admission"]
    assert journal.stats.damaged == 1
    journal.close()


def test_recover_missing_segment_in_the_middle_is_reported(directory: Path) -> None:
    journal = make(directory)
    journal.recover()
    fill(journal, 60)
    journal.close()
    first, second, *_ = segments(directory)
    size = second.stat().st_size
    second.unlink()
    journal = make(directory)
    found = journal.recover()
    assert [(damage.segment, damage.length, damage.reason) for damage in found.damaged] == [
        (first.name, size - HEADER_SIZE, "missing")
    ]
    assert found.next_seq == 61
    journal.close()


def test_recover_segment_without_a_readable_header_is_read_with_that_of_another(directory: Path) -> None:
    journal = make(directory)
    journal.recover()
    fill(journal, 30)
    journal.close()
    path = segments(directory)[1]
    path.write_bytes(b"\0" * HEADER_SIZE + path.read_bytes()[HEADER_SIZE:])
    journal = make(directory)
    found = journal.recover()
    assert ids(found.unpublished) == [f"call-{seq}" for seq in range(1, 31)]
    assert [(damage.segment, damage.reason) for damage in found.damaged] == [(path.name, "header")]
    journal.confirm(30)
    journal.close()
    assert [file.suffix for file in directory.glob(f"{path.stem}*")] == [".damaged"]  # kept for a person to look at


def test_recover_journal_without_any_readable_header_is_set_aside(directory: Path) -> None:
    data, _, _ = small_journal(directory)
    journal = reopened(directory, b"\0" * HEADER_SIZE + data[HEADER_SIZE:])
    found = journal.recover()
    assert (found.next_seq, found.unfinished) == (1, [])
    assert [damage.reason for damage in found.damaged] == ["header", "no readable header in the journal"]
    journal.append(ended(1))
    journal.close()
    assert len(list(directory.glob("*.damaged"))) == 1


def test_facts_of_a_newer_version_survive(directory: Path, opened: list[Journal]) -> None:
    """An older version, after a downgrade: unknown kinds are left alone, records it cannot read are delivered as bytes."""
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    newer = msgpack.packb({"id": "n", "node": "n1", "seq": 1, "schema": 2, "direction": "sideways"})
    journal._write(msgpack.packb({"type": "interim", "id": "x", "news": 1}), urgent=False)
    journal._write(b"\x82\xa4type\xa3end\xa6record" + newer, urgent=False)
    journal._write(msgpack.packb({"type": "admit", "record": {"id": "m", "node": "n1", "direction": "?"}}), urgent=False)
    journal.close()
    journal = make(directory)
    opened.append(journal)
    found = journal.recover()
    assert found.next_seq == 2
    assert [damage.reason[:9] for damage in found.damaged] == ["call 'm':"]
    assert list(found.unpublished) == []
    (entry,), _ = journal.read(0, seq=1, end=journal.position)
    assert (entry.seq, entry.id, entry.schema, entry.record) == (1, "n", 2, newer)
    assert journal.stats.live == 1  # Still pinned, for a version that can read it.


def test_read_in_small_batches_gives_everything_once(directory: Path, opened: list[Journal]) -> None:
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    fill(journal, 50)
    position, got = 0, []
    while position < journal.position:
        entries, position = journal.read(position, seq=3, end=journal.position, count=7, size=1500)
        assert len(entries) <= 7
        got += [entry.seq for entry in entries]
    assert got == list(range(3, 51))


def test_read_records_larger_than_a_window_are_whole(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows end in the middle of frames, and damage as long as a window does not stop the reading."""
    journal = make(directory, segment_bytes=1 << 20)
    opened.append(journal)
    journal.recover()
    fill(journal, 30)
    start = segments(directory)[0].stat().st_size
    fill(journal, 10)
    middle = segments(directory)[0].stat().st_size
    journal.append(ended(41, user_agent="u" * 300))
    fill(journal, 19)
    monkeypatch.setattr("cdr.reading.READ_BYTES", 700)
    assert ids(journal.records_from(1)) == [f"call-{seq}" for seq in range(1, 61)]
    with segments(directory)[0].open("r+b") as file:
        file.seek(start)
        file.write(b"\xff" * (middle - start))
    for window in range(700, 1100, 23):  # a record after the damage may begin in one window and end in the next
        monkeypatch.setattr("cdr.reading.READ_BYTES", window)
        assert ids(journal.records_from(1)) == [f"call-{seq}" for seq in (*range(1, 31), *range(41, 61))], window


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


def test_append_end_on_a_full_disk_uses_the_reserve_and_an_admission_does_not(tmp_path: Path) -> None:
    """Live calls are recorded to the end; new ones are told. A real file system of 256 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "cdr-test", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        journal = Journal(mount / "journal", node="n1", segment_bytes=65536)
        journal.recover()
        assert (mount / "journal" / "reserve").stat().st_size == 16384
        assert admit_until_refused(journal) > 20
        assert journal.stats.failure == "No space left on device"
        for seq in range(1, 11):
            journal.append(ended(seq, user_agent="u" * 1000))
        assert journal.last_seq == 10
        assert admit_until_refused(journal) < 20
        journal.close()
        journal = Journal(mount / "journal", node="n1", segment_bytes=65536)
        found = journal.recover()
        assert found.damaged == []
        assert {"call-11", "call-12"} <= {admit.record.id for admit, _, _ in found.unfinished}
        assert found.next_seq == 11
        journal.close()
    finally:
        subprocess.run(["umount", str(mount)], check=True)


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
    broken = pytest.MonkeyPatch()
    broken.setattr("cdr.storage.os.fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    position = journal.append(Admit(draft("two")))
    with pytest.raises(JournalError, match="Input/output error"):
        await journal.wait_synced(position)
    assert journal.stats.fsync_errors >= 1
    assert journal.stats.failure == "Input/output error"
    broken.undo()
    await journal.wait_synced(position)  # asked again, and this time it works
    assert journal.stats.failure == ""


async def test_sync_groups_appends_within_the_interval(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    calls = []
    real = os.fsync
    monkeypatch.setattr("cdr.storage.os.fsync", lambda descriptor: (calls.append(1), real(descriptor)))
    journal = make(directory, segment_bytes=1 << 20, fsync_interval_ms=200)
    opened.append(journal)
    journal.recover()
    await journal.wait_synced(journal.append(Admit(draft())))
    before, started = len(calls), time.monotonic()
    for seq in range(1, 301):
        position = journal.append(ended(seq))
    await journal.wait_synced(position)
    elapsed = time.monotonic() - started
    assert len(calls) - before <= 2 + elapsed / 0.2
    assert elapsed >= 0.1


def test_recover_keeps_nothing_of_calls_that_ended(directory: Path) -> None:
    """Memory is that of one segment, however long the journal is."""
    journal = make(directory, segment_bytes=16384)
    journal.recover()
    fill(journal, 3000)
    journal.append(Admit(draft("live")))
    assert journal.stats.bytes > 1_000_000
    journal.close()
    journal = make(directory, segment_bytes=16384)
    tracemalloc.start()
    try:
        found = journal.recover()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [admit.record.id for admit, _, _ in found.unfinished] == ["live"]
    assert sum(1 for _ in found.unpublished) == 3000
    journal.close()
    assert peak < 300_000, peak


def test_killed_writer_loses_nothing_that_was_appended(directory: Path) -> None:
    """kill -9 at a random moment, again and again in the same directory: every append that returned is there."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    confirmed = 0
    for _ in range(6):
        command = [sys.executable, str(Path(__file__).with_name("journal_writer.py")), str(directory)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}) as writer:
            assert writer.stdout is not None
            lines = [writer.stdout.readline()]
            until = time.monotonic() + chance.uniform(0, 0.15)
            while time.monotonic() < until:
                lines.append(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            lines += writer.stdout.read().splitlines(keepends=True)
        said = [line.split() for line in lines if line.endswith(b"\n")]
        admitted = max(int(number) for kind, number in said if kind == b"A")
        ended_seq = max((int(number) for kind, number in said if kind == b"E"), default=0)
        confirmed = max([confirmed, *(int(number) for kind, number in said if kind == b"C")])
        journal = Journal(directory, node="n1", segment_bytes=8192)
        found = journal.recover()
        assert found.damaged == []
        assert found.torn == 0  # A write that the kernel took is whole.
        assert found.next_seq >= ended_seq + 1
        live = [admit.record.id for admit, _, _ in found.unfinished]
        assert live in ([], [f"call-{found.next_seq}"])
        assert found.next_seq > admitted or live == [f"call-{admitted}"]
        assert journal.confirmed_seq >= confirmed
        numbers = [record.seq for record in found.unpublished]
        assert numbers == list(range(journal.confirmed_seq + 1, found.next_seq))
        for admit, _, _ in found.unfinished:
            record = admit.record
            record.seq = journal.last_seq + 1
            journal.append(End(record))
        journal.close()
