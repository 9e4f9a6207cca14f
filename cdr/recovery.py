"""Reading the journal back at start: which calls did not end, which records were not confirmed, what is damaged.

One segment at a time is in memory, and of the calls only those that have not ended where the reading stands. A segment whose
end was torn off by a crash is to be cut there; damage anywhere else is reported and stepped over, never repaired.
"""

from __future__ import annotations

import secrets
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cdr import codec
from cdr.facts import Admit, Alive, Answer, End
from cdr.segment import FRAME_SIZE, HEADER_SIZE, SUFFIX, Frame, Header, Hole, frames, read_header
from cdr.storage import LiveCalls, Ref, Segment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cdr.facts import Record

__all__ = ["Damage", "Found", "JournalError", "Recovered", "UnwritableError", "load"]

MAX_ENDED = 1000  # Calls that ended last, with their facts: of more nobody could be told at start.
MAX_REPORTED = 1000  # Damaged places kept in the report; a disk that is worse needs no longer list.


class JournalError(Exception):
    """The journal cannot do what was asked of it; the text says why."""


class UnwritableError(JournalError):
    """This fact will never be written: trying again is useless."""


class Damage(NamedTuple):
    """A place of the journal that could not be read: the segment's file name, the offset and length in it, and why."""

    segment: str
    offset: int
    length: int
    reason: str


class Recovered(msgspec.Struct, frozen=True):
    """What an earlier run left.

    `unfinished` are the calls that lived when it died, in order of admission; `ended` those with an answer that ended last, as
    far as their facts are still there, with their records; `unpublished` reads the records that were not
    confirmed from disk; `damaged` are places that could not be read; `torn` is the length of an unfinished write cut off.
    """

    next_seq: int
    unfinished: list[tuple[Admit, Answer | None, Alive | None]]
    ended: list[tuple[Admit, Answer, Alive | None, Record]]
    unpublished: Iterator[Record]
    damaged: list[Damage]
    torn: int


@dataclass
class Found:
    """The state that `load` reads from a directory."""

    salt: int = 0
    position: int = 0  # where a journal without segments begins
    last_seq: int = 0
    confirmed_seq: int = 0
    segments: list[Segment] = field(default_factory=list)
    live: LiveCalls = field(default_factory=LiveCalls)
    payloads: dict[str, dict[str, bytes]] = field(default_factory=dict)
    unfinished: list[tuple[Admit, Answer | None, Alive | None]] = field(default_factory=list)
    last: deque[dict[str, bytes]] = field(default_factory=lambda: deque(maxlen=MAX_ENDED))  # facts of calls that ended
    ended: list[tuple[Admit, Answer, Alive | None, Record]] = field(default_factory=list)
    damaged: list[Damage] = field(default_factory=list)
    torn: int = 0

    def report(self, segment: str, offset: int, length: int, reason: str) -> None:
        if len(self.damaged) < MAX_REPORTED:
            self.damaged.append(Damage(segment, offset, length, reason))


def load(directory: Path, node: str) -> Found:
    """Read all segments. Raises OSError, and JournalError when they belong to another node."""
    found = Found()
    headers = _open_segments(directory, node, found)
    for index, (part, header) in enumerate(headers):
        following = headers[index + 1][0].position if index + 1 < len(headers) else None
        if header is not None:
            found.last_seq = max(found.last_seq, header.last_seq)
            found.confirmed_seq = max(found.confirmed_seq, header.confirmed_seq)
        _read_segment(part, following, found)
        found.segments.append(part)
    _finish(found)
    _look_back(found)
    return found


def _open_segments(directory: Path, node: str, found: Found) -> list[tuple[Segment, Header | None]]:
    """The segments in order with their headers, where these can be read; what is no segment at all is set aside."""
    opened: list[tuple[Segment, Header | None]] = []
    paths = sorted(directory.glob(f"*{SUFFIX}"))
    for path in paths:
        if not (path.stem.isascii() and path.stem.isdigit() and len(path.stem) == 20):
            continue  # Not ours.
        part = Segment(path, int(path.stem), path.stat().st_size)
        header = read_header(part.read(0, HEADER_SIZE))
        if header is not None and header.node != node:
            raise JournalError(f"{path} belongs to node {header.node!r:.80}, not to {node!r:.80}")
        if header is not None and header.position != part.position:
            header = None
        opened.append((part, header))
    if opened and opened[-1][0].size < HEADER_SIZE:  # Killed while it was created: nothing was ever written to it.
        part, _ = opened.pop()
        found.torn += part.size
        found.position = part.position
        part.path.unlink()
    salts = [header.salt for _, header in opened if header is not None]
    found.salt = salts[-1] if salts else secrets.randbits(32)
    for part, header in opened:
        if header is None:
            part.damaged = True
            found.report(part.path.name, 0, min(part.size, HEADER_SIZE), "header")
    if opened and not salts:  # Without the salt no record can be told from an accident.
        for part, _ in opened:
            found.report(part.path.name, 0, part.size, "no readable header in the journal")
            found.position = max(found.position, part.end)
            part.remove()
        return []
    return opened


def _read_segment(part: Segment, following: int | None, found: Found) -> None:
    """Take in the records of one segment. `following` is the position of the next one, None for the last."""
    name = part.path.name
    if following is not None:
        wanted = part.offset_of(following)
        if part.size < wanted:
            part.damaged = True
            found.report(name, part.size, wanted - part.size, "missing")
        part.size = min(part.size, wanted)  # What stands behind was never taken: the next segment begins before it.
    data = part.read(0, part.size)
    for item in frames(data, HEADER_SIZE, part.position, found.salt):
        if isinstance(item, Hole):
            _note_hole(part, item, found, last=following is None)
        else:
            _note_frame(part, item, found)


def _note_hole(part: Segment, hole: Hole, found: Found, *, last: bool) -> None:
    if last and hole.torn:
        found.torn += hole.end - hole.offset
        part.size = hole.offset
        return
    part.damaged = True
    found.report(part.path.name, hole.offset, hole.end - hole.offset, hole.reason)


def _note_frame(part: Segment, frame: Frame, found: Found) -> None:
    try:
        entry = codec.scan(frame.payload)
    except codec.CodecError as error:
        part.damaged = True
        found.report(part.path.name, frame.offset, frame.end - frame.offset, str(error))
        return
    if entry.kind == "end":
        found.last_seq = max(found.last_seq, entry.seq)
        part.last_seq = max(part.last_seq, entry.seq)
        part.oldest_ms = min(part.oldest_ms, entry.end_at_ms)
        found.live.end(entry.id)
        facts = found.payloads.pop(entry.id, {})
        if "answer" in facts:
            found.last.append({**facts, "end": frame.payload})
    elif entry.kind in ("admit", "answer", "alive"):
        found.live.put(entry.id, entry.kind, Ref(part, frame.offset, FRAME_SIZE + len(frame.payload)))
        found.payloads.setdefault(entry.id, {})[entry.kind] = frame.payload
    elif entry.kind == "confirmed":
        found.confirmed_seq = max(found.confirmed_seq, entry.seq)


def _finish(found: Found) -> None:
    """Decode the calls that did not end."""
    for call in found.live.ids():
        ref = next(iter(found.live.of(call).values()))
        parts = found.payloads.pop(call)
        try:
            facts = {kind: codec.decode_fact(payload) for kind, payload in parts.items()}
        except codec.CodecError as error:
            # It stays pinned: a version that can read it makes its record.
            found.report(ref.segment.path.name, ref.offset, ref.size, f"call {call!r:.80}: {error}")
            continue
        admit, answer, alive = facts.get("admit"), facts.get("answer"), facts.get("alive")
        if not isinstance(admit, Admit):
            found.report(ref.segment.path.name, ref.offset, ref.size, f"call {call!r:.80} has no admission")
            found.live.end(call)
            continue
        found.unfinished.append(
            (admit, answer if isinstance(answer, Answer) else None, alive if isinstance(alive, Alive) else None)
        )


def _look_back(found: Found) -> None:
    """Decode the calls that ended last. What cannot be read is left out: their records are elsewhere."""
    for parts in found.last:
        with suppress(codec.CodecError):
            facts = {kind: codec.decode_fact(payload) for kind, payload in parts.items()}
            admit, answer, alive, end = (facts.get(kind) for kind in ("admit", "answer", "alive", "end"))
            if isinstance(admit, Admit) and isinstance(answer, Answer) and isinstance(end, End):
                found.ended.append((admit, answer, alive if isinstance(alive, Alive) else None, end.record))
    found.last.clear()
