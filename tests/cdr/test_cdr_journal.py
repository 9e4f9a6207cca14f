"""cdr.journal: what was appended is there after a restart, and nothing else (docs/design.md, invariant 3)."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cdr_samples import answer, draft, ended
from hypothesis import given
from hypothesis import strategies as st
from journals import (
    fill,
    ids,
    make,
    segments,
    wait_for_segments,
)

from cdr import recovery
from cdr.facts import Admit, Alive
from cdr.journal import Journal, JournalError, UnwritableError
from cdr.reading import MAX_LATEST, Latest
from cdr.segment import HEADER_SIZE, read_header

# How many bytes of records are kept to be published without reading them.
in_memory = pytest.mark.parametrize("kept", [0, 1500, MAX_LATEST])


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


def test_recover_has_the_facts_of_the_calls_that_ended_last(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as there may be, the newest; none of a call that was never answered."""
    monkeypatch.setattr(recovery, "MAX_ENDED", 2)
    journal = make(directory)
    journal.recover()
    for number, call in enumerate(("one", "two", "three", "four"), 1):
        journal.append(Admit(draft(call)))
        if call != "three":
            journal.append(answer(call))
        journal.append(Alive(call, number, 1000 * number))
        journal.append(ended(number, call))
    journal.close()
    opened.append(again := make(directory))
    found = again.recover().ended
    assert [(admit.record.id, said.id, alive, record.seq) for admit, said, alive, record in found] == [
        ("two", "two", Alive("two", 2, 2000), 2),
        ("four", "four", Alive("four", 4, 4000), 4),
    ]


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
    again = make(directory)
    again.recover()  # The refused one gave the lock back.
    again.close()


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


@in_memory
def test_read_in_small_batches_gives_everything_once(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr("cdr.reading.MAX_LATEST", kept)
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


@in_memory
def test_read_up_to_a_place_in_an_earlier_segment_skips_nothing_behind_it(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """What is on disk may end segments before what is written."""
    monkeypatch.setattr("cdr.reading.MAX_LATEST", kept)
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    ends = [journal.append(ended(seq, user_agent="u" * 300)) for seq in range(1, 41)]
    assert journal.stats.segments > 3
    for end in ends:
        entries, position = journal.read(0, seq=1, end=end)
        assert position <= end
        further, _ = journal.read(position, seq=1, end=journal.position)
        assert [entry.seq for entry in (*entries, *further)] == list(range(1, 41)), end


def test_facts_of_live_calls_are_read_wherever_they_stand(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the segment that is appended to without opening it; one that is full is closed by another thread at any time."""
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    told, opens = [], os.open

    def by_another_thread(*args: Any, **more: Any) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return opens(*args, **more)

    for number in range(1, 61):
        call = f"live-{number}"
        told.append((Admit(draft(call, user_agent="u" * 150)), answer(call)))
        for fact in told[-1]:
            journal.append(fact)
        with monkeypatch.context() as patch:
            patch.setattr("cdr.storage.os.open", by_another_thread)
            assert journal.facts_of(call) == (*told[-1], None)
        for admit, answered in told[::7]:
            assert journal.facts_of(admit.record.id) == (admit, answered, None)
    assert journal.stats.segments > 3
    assert journal.stats.damaged == 0


@given(data=st.data())
def test_read_out_of_memory_gives_what_reading_the_files_gives(data: st.DataObject) -> None:
    """Wherever reading begins and ends, whatever is wanted, confirmed and kept, and with numbers left out."""
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as directory,
        contextlib.ExitStack() as stack,  # also where an example is given up
    ):
        patch.setattr("cdr.reading.MAX_LATEST", data.draw(st.sampled_from([0, 700, 3000, 1 << 18])))
        journal = stack.enter_context(contextlib.closing(make(Path(directory))))
        journal.recover()
        positions, seq = [0], 0
        for number in range(data.draw(st.integers(1, 30))):
            journal.append(Admit(draft(f"c{number}")))
            seq += data.draw(st.integers(1, 2))
            positions.append(journal.append(ended(seq, f"c{number}", user_agent="u" * data.draw(st.integers(0, 500)))))
        # Whole segments go with what is confirmed; before it nobody reads.
        done = data.draw(st.integers(0, seq))
        journal.confirm(done)
        begin = data.draw(
            st.sampled_from([place for place in positions if place >= journal.position_of(done + 1)] or positions)
        )
        end = data.draw(st.sampled_from([*positions, journal.position]).filter(lambda place: place >= begin))
        asked = {"seq": data.draw(st.integers(done + 1, seq + 1)), "count": data.draw(st.integers(1, 20)), "end": end}
        size = data.draw(st.sampled_from([1, 1500, 1 << 20]))
        got = journal.read(begin, size=size, **asked)
        journal._latest = Latest(journal.position + 1)
        read = journal.read(begin, size=size, **asked)
        assert got.entries == read.entries
        further = [journal.read(batch.position, seq=asked["seq"], end=journal.position).entries for batch in (got, read)]
        assert further[0] == further[1]


def test_record_that_was_just_appended_is_read_without_the_file(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the publisher does many times a second; how much is kept is bounded, and what is confirmed is let go."""
    journal = make(directory)
    opened.append(journal)
    journal.recover()
    monkeypatch.setattr("cdr.storage.Segment.read", None)
    position = journal.position
    for seq in range(1, 2001):
        journal.append(ended(seq, user_agent="u" * 200))
        entries, position = journal.read(position, seq=seq, end=journal.position)
        assert [entry.seq for entry in entries] == [seq]
    assert 100_000 < sum(len(entry.record) for _, entry in journal._latest._held) <= MAX_LATEST
    journal.confirm(1999)
    assert [entry.seq for _, entry in journal._latest._held] == [2000]


def test_read_records_larger_than_a_window_are_whole(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows end in the middle of frames or are shorter than one, and damage as long as a window does not stop the reading."""
    monkeypatch.setattr("cdr.reading.MAX_LATEST", 0)
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
    for window in range(100, 1100, 23):  # a record after the damage may begin in one window and end in the next
        monkeypatch.setattr("cdr.reading.READ_BYTES", window)
        assert ids(journal.records_from(1)) == [f"call-{seq}" for seq in (*range(1, 31), *range(41, 61))], window


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
