"""cdr.journal after cuts, flipped bits, lost files and kills: all whole records come back, nothing else does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise
from pathlib import Path

import pytest
from cdr_samples import answer, draft, ended
from journals import (
    fill,
    ids,
    make,
    reopened,
    segments,
)

from cdr import recovery
from cdr.facts import Admit, Alive, Confirmed, End, Fact, PartySide, Place
from cdr.journal import Journal
from cdr.reading import Wanted, read_entries
from cdr.segment import HEADER_SIZE, Frame, Hole, frames, read_header

ROOT = Path(__file__).resolve().parents[2]


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
    data, _, _ = one_segment(directory, many_facts(2))
    journal = reopened(directory, b"\0" * HEADER_SIZE + data[HEADER_SIZE:])
    found = journal.recover()
    assert (found.next_seq, found.unfinished) == (1, [])
    assert [damage.reason for damage in found.damaged] == ["header", "no readable header in the journal"]
    journal.append(ended(1))
    journal.close()
    assert len(list(directory.glob("*.damaged"))) == 1


def many_facts(count: int) -> list[Fact]:
    """The facts of `count` calls as a node writes them, several at a time: answered ones, refused ones, one that lives on."""
    facts: list[Fact] = []
    for number in range(count):
        call = f"{number:03d}-{'c' * (number % 7)}"
        texts = {"user_agent": "FRITZ!OS 8.0\0\xff" * (number % 4), "calling": f"+49205155{number:04d}", "line": "V1001"}
        facts.append(Admit(draft(call, **texts), "boot", number, ("V1001",)))
        dialog = Confirmed(
            b"INVITE sip:x SIP/2.0\r\n", b"\xc1CDR\0\0\0\0", "trunk", "t", Place("udp", "::1", 1), *2 * (PartySide(b"", 0),)
        )
        facts.append(answer(call, dialogs=(dialog,)))
        if number % 3 == 0:
            facts.append(Alive(call, number, 256 * number))
        if number:
            facts.append(ended(number, f"{number - 1:03d}-{'c' * ((number - 1) % 7)}", **texts))
    return facts


def one_segment(directory: Path, facts: list[Fact]) -> tuple[bytes, int, list[tuple[int, int]]]:
    """The bytes of a segment with these facts, its salt, and where each fact begins and ends in it."""
    journal = make(directory, segment_bytes=1 << 24)
    journal.recover()
    ends = [HEADER_SIZE]
    for fact in facts:
        journal.append(fact)
        ends.append(segments(directory)[0].stat().st_size)
    journal.close()
    data = segments(directory)[0].read_bytes()
    header = read_header(data)
    assert header is not None
    return data, header.salt, list(pairwise(ends))


CALLS = int(os.environ.get("CDR_DAMAGE_CALLS", "8"))  # `make damage` takes more of them


def test_frames_of_a_segment_cut_at_every_byte_are_those_before_the_cut(directory: Path) -> None:
    """What stands before the record that is cut is read as without the cut: reading goes by the offset alone."""
    data, salt, spans = one_segment(directory, many_facts(CALLS))
    assert [(item.offset, item.end) for item in frames(data, HEADER_SIZE, 0, salt)] == spans
    for start, end in spans:
        position = start - HEADER_SIZE
        assert list(frames(data[:start], start, position, salt)) == []
        for cut in range(start + 1, end):
            assert list(frames(data[:cut], start, position, salt)) == [Hole(start, cut, "torn", torn=True)], cut
        zeros = data[: (start + end) // 2] + bytes(end - start)  # as a file system may leave of an unfinished write
        assert not any(isinstance(item, Frame) for item in frames(zeros, start, position, salt))


@pytest.mark.plain_alone
def test_frames_of_a_segment_with_any_bit_flipped_are_all_others(directory: Path) -> None:
    """Every bit of every record: that record is a hole of exactly its bytes, and reading goes on with the next."""
    data, salt, spans = one_segment(directory, many_facts(CALLS))
    bad = bytearray(data)
    for number, (start, end) in enumerate(spans):
        following = spans[number + 1 : number + 2]
        for bit in range(8 * start, 8 * end):
            bad[bit // 8] ^= 1 << bit % 8
            items = frames(bad, start, start - HEADER_SIZE, salt)  # type: ignore[arg-type]
            hole = next(items)
            assert isinstance(hole, Hole), bit
            assert (hole.offset, hole.end) == (start, end), bit
            assert [(item.offset, item.end) for item in islice(items, 1)] == following, bit
            bad[bit // 8] ^= 1 << bit % 8
    assert bad == data


def seqs_in(found: recovery.Found) -> list[int]:
    parts = [(part, part.end) for part in found.segments]
    return [entry.seq for entry in read_entries(parts, 0, found.salt, Wanted(0, 10_000)).entries]


def expected_live(facts: list[Fact]) -> list[str]:
    """The calls that an ADMIT is left of, and no END."""
    over = {fact.record.id for fact in facts if isinstance(fact, End)}
    return [fact.record.id for fact in facts if isinstance(fact, Admit) and fact.record.id not in over]


def test_recover_segment_cut_at_every_byte_keeps_every_whole_record(directory: Path) -> None:
    facts = many_facts(2)
    data, _, spans = one_segment(directory, facts)
    path = segments(directory)[0]
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        found = recovery.load(directory, "n1")
        left = [fact for fact, (_, end) in zip(facts, spans, strict=True) if end <= cut]
        whole = max((end for _, end in spans if end <= cut), default=HEADER_SIZE) if cut >= HEADER_SIZE else 0
        assert (found.damaged, found.torn) == ([], cut - whole), cut
        assert [admit.record.id for admit, _, _ in found.unfinished] == expected_live(left), cut
        assert seqs_in(found) == [fact.record.seq for fact in left if isinstance(fact, End)], cut


def test_recover_segment_with_any_bit_flipped_keeps_every_other_record(directory: Path) -> None:
    facts = many_facts(2)
    data, _, spans = one_segment(directory, facts)
    file = os.open(segments(directory)[0], os.O_WRONLY)
    for bit in range(8 * len(data)):
        os.pwrite(file, bytes([data[bit // 8] ^ 1 << bit % 8]), bit // 8)
        found = recovery.load(directory, "n1")
        finals = seqs_in(found)
        os.pwrite(file, data[bit // 8 : bit // 8 + 1], bit // 8)
        hit = [span for span in spans if span[0] <= bit // 8 < span[1]]
        left = [fact for fact, span in zip(facts, spans, strict=True) if span not in hit]
        assert [admit.record.id for admit, _, _ in found.unfinished] == expected_live(left), bit
        assert finals == [fact.record.seq for fact in left if isinstance(fact, End)], bit
        told = [(damage.offset, damage.offset + damage.length) for damage in found.damaged]
        if hit:
            assert found.torn == hit[0][1] - hit[0][0] or hit[0] in told, bit  # cut off or reported, never silent
        else:
            assert (told, found.torn) == ([], 0), bit  # the other copy of the header serves
    os.close(file)


@pytest.mark.parametrize("fraction", [0, 0.3, 0.999])
def test_append_behind_a_cut_or_damage_is_whole_and_evidence_stays(directory: Path, fraction: float) -> None:
    facts = many_facts(4)
    data, _, spans = one_segment(directory, facts)
    for start, end in spans:
        at = start + int(fraction * (end - start))
        bad = bytearray(data)
        bad[at] ^= 0x10
        for content, cut in ((data[:at], True), (bytes(bad), False)):
            journal = reopened(directory, content)
            found = journal.recover()
            journal.append(ended(found.next_seq, "after"))
            journal.close()
            if not cut and not found.torn:
                assert segments(directory)[0].read_bytes()[: len(bad)] == bad
            again = make(directory)
            assert ids(again.recover().unpublished)[-1] == "after"
            assert again.stats.damaged == len(found.damaged)
            again.close()


def test_killed_writer_loses_nothing_that_was_appended(directory: Path) -> None:
    """kill -9 at a random moment, again and again in the same directory: every append that returned is there."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    confirmed = 0
    for _ in range(max(3, CALLS // 10)):
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
