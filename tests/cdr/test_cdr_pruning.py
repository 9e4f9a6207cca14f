"""cdr.pruning and Journal.prune: confirmed records leave the disk after their time, everything else stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cdr_samples import SETUP_AT_MS, answer, draft, ended
from journals import facts_of, fill, make, segments

from cdr.facts import Admit, Answer
from cdr.journal import Journal, JournalError
from cdr.pruning import Overdue, prune, prune_stopped, survey
from cdr.retention import HOUR_MS, Rules

RULES = Rules(24 * HOUR_MS, 3, 90 * HOUR_MS, frozenset())
ENDED_MS = SETUP_AT_MS + 1000
BEFORE_MS = ENDED_MS + 1
NOW_MS = BEFORE_MS + RULES.unbilled_ms


def overdue(directory: Path) -> list[tuple[int, bool]]:
    return [(one.seq, one.confirmed) for one in survey(directory, RULES, NOW_MS).overdue]


async def test_prune_newest_segment_confirmed_records_leave_the_disk(directory: Path, opened: list[Journal]) -> None:
    opened.append(journal := make(directory, segment_bytes=65536))
    journal.recover()
    fill(journal, 3)
    journal.confirm(3)
    await prune(journal, ENDED_MS)
    assert overdue(directory) == [(1, True), (2, True), (3, True)], "none has ended before that time"
    await prune(journal, BEFORE_MS)
    assert overdue(directory) == []
    assert facts_of(directory) == []
    assert len(segments(directory)) == 1
    fill(journal, 1)
    journal.close()
    opened.append(again := make(directory))
    assert again.recover().next_seq == 5
    assert (again.confirmed_seq, [record.seq for record in again.records_from(1)]) == (3, [4])


async def test_prune_what_is_not_confirmed_stays_and_goes_later(directory: Path, opened: list[Journal]) -> None:
    opened.append(journal := make(directory, segment_bytes=65536))
    journal.recover()
    fill(journal, 4)
    journal.confirm(3)
    await prune(journal, BEFORE_MS)
    await prune(journal, BEFORE_MS)
    assert overdue(directory) == [(1, True), (2, True), (3, True), (4, False)]
    assert len(segments(directory)) == 2, "the newest segment, without an old record, is not closed again"
    journal.confirm(4)
    await prune(journal, BEFORE_MS)
    assert overdue(directory) == []


async def test_prune_recovered_journal_knows_how_old_its_records_are(directory: Path, opened: list[Journal]) -> None:
    opened.append(journal := make(directory, segment_bytes=65536))
    journal.recover()
    fill(journal, 2)
    journal.confirm(2)
    journal.close()
    opened.append(again := make(directory))
    again.recover()
    await prune(again, ENDED_MS)
    assert len(overdue(directory)) == 2
    await prune(again, BEFORE_MS)
    assert overdue(directory) == []


async def test_prune_live_calls_keep_their_facts(directory: Path, opened: list[Journal]) -> None:
    """A call of 26 hours does not keep the records of others, nor do others take its facts along."""
    opened.append(journal := make(directory, segment_bytes=65536))
    journal.recover()
    for number in range(120):
        journal.append(Admit(draft(f"live-{number}")))
    journal.append(answer("live-7"))
    fill(journal, 2)
    journal.confirm(2)
    await prune(journal, BEFORE_MS)
    assert overdue(directory) == []
    journal.close()
    opened.append(again := make(directory))
    unfinished = {admit.record.id: found for admit, found, _ in again.recover().unfinished}
    assert sorted(unfinished) == sorted(f"live-{number}" for number in range(120))
    assert isinstance(unfinished["live-7"], Answer)
    assert unfinished["live-8"] is None


@pytest.mark.plain_alone
async def test_prune_disk_that_takes_no_new_segment_loses_nothing(
    directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.append(journal := make(directory, segment_bytes=65536))
    journal.recover()
    fill(journal, 2)
    journal.confirm(2)
    with monkeypatch.context() as patch:
        patch.setattr("cdr.journal.Segment.create", lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
        await prune(journal, BEFORE_MS)
        assert journal.stats.write_errors == 1
    assert len(overdue(directory)) == 2
    fill(journal, 1)
    journal.confirm(3)
    await prune(journal, BEFORE_MS)
    assert overdue(directory) == []


def test_prune_stopped_directory_and_who_may(directory: Path, opened: list[Journal], monkeypatch: pytest.MonkeyPatch) -> None:
    opened.append(journal := make(directory, segment_bytes=65536))
    journal.recover()
    journal.append(Admit(draft("live")))
    fill(journal, 3)
    journal.confirm(2)
    with pytest.raises(JournalError, match="in use by another process"):
        prune_stopped(directory, node="n1", segment_bytes=65536, before_ms=BEFORE_MS)
    journal.close()
    with monkeypatch.context() as patch:
        patch.setattr("os.geteuid", lambda: directory.stat().st_uid + 1)
        with pytest.raises(JournalError, match="run this as that user"):
            prune_stopped(directory, node="n1", segment_bytes=65536, before_ms=BEFORE_MS)
    with pytest.raises(JournalError, match="belongs to node"):
        prune_stopped(directory, node="n2", segment_bytes=65536, before_ms=BEFORE_MS)
    assert len(overdue(directory)) == 3
    prune_stopped(directory, node="n1", segment_bytes=65536, before_ms=BEFORE_MS)
    assert overdue(directory) == [(1, True), (2, True), (3, False)], "a segment goes when all of it is confirmed"
    opened.append(again := make(directory))
    found = again.recover()
    assert [admit.record.id for admit, _, _ in found.unfinished] == ["live"]
    again.confirm(3)
    again.close()
    prune_stopped(directory, node="n1", segment_bytes=65536, before_ms=BEFORE_MS)
    assert overdue(directory) == []
    opened.append(last := make(directory))
    assert [admit.record.id for admit, _, _ in last.recover().unfinished] == ["live"]


def test_survey_tells_reasons_and_damaged_files_that_lie_aside(directory: Path, opened: list[Journal]) -> None:
    opened.append(journal := make(directory, segment_bytes=65536))
    journal.recover()
    for seq, verdict in ((1, "deny"), (2, "allow")):
        journal.append(Admit(draft(f"call-{seq}")))
        journal.append(ended(seq, verdict=verdict))
    aside = directory / "00000000000000000001.damaged"
    aside.write_bytes(b"x")
    os.utime(aside, ns=(0, ENDED_MS * 1_000_000))
    found = survey(directory, RULES, NOW_MS)
    assert found.overdue == [
        Overdue("n1", 1, "refused", ENDED_MS, confirmed=False),
        Overdue("n1", 2, "unanswered", ENDED_MS, confirmed=False),
    ]
    assert found.aside == [(aside.name, ENDED_MS)]
    assert survey(directory, RULES, NOW_MS - 1).overdue == []
