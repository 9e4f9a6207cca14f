"""Reading final records out of journal segments, in windows of bounded size, and keeping those that need no reading.

Records leave as the bytes they were written with, so that one of a newer schema is delivered unchanged. Places that cannot be
read are stepped over: recovery has reported them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from cdr import codec
from cdr.segment import HEADER_SIZE, SUFFIX, Frame, Header, Hole, frames, read_header

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from cdr.storage import Segment

__all__ = ["READ_BYTES", "Batch", "Entry", "Latest", "Wanted", "read_directory", "read_entries"]

MAX_LATEST = 256 * 1024  # Some 350 records: what is not confirmed of a second or two.
READ_BYTES = 256 * 1024  # One window: some hundred frames; one that is longer is read with all that follows it.


class Entry(NamedTuple):
    """A final record as it lies in the journal. `record` is encoded; it may be of a newer schema than ours."""

    seq: int
    id: str
    schema: int
    type: str
    record: bytes


class Batch(NamedTuple):
    """Entries in order, and the position to go on from."""

    entries: list[Entry]
    position: int


class Wanted(NamedTuple):
    """Which records: numbered `seq` and above, at most `most`, and not many more than `size` bytes."""

    seq: int
    most: int = 500
    size: int = READ_BYTES


def read_entries(parts: Sequence[tuple[Segment, int]], position: int, salt: int, wanted: Wanted) -> Batch:
    """Records from `position` on in `parts`, which are segments and the position where reading them ends. Raises OSError."""
    entries: list[Entry] = []
    left = wanted.size
    for part, end in parts:
        if end <= part.position:
            break  # Reading ends before this segment: what lies between is for the next time.
        position = max(position, part.position)
        while position < end:
            for payload, behind in _window(part, position, end, salt):
                position = behind
                entry = _entry(payload) if payload else None
                if entry is None or entry.seq < wanted.seq:
                    continue
                entries.append(entry)
                left -= len(entry.record)
                if left <= 0 or len(entries) >= wanted.most:
                    return Batch(entries, position)
    return Batch(entries, position)


class Latest:
    """The final records that were appended last and are not confirmed: mostly they are published out of here, and not read.

    It holds every one behind `since`, and no more than MAX_LATEST bytes of them.
    """

    def __init__(self, since: int) -> None:
        """`since` is the position from which on records are added."""
        self.since = since
        self._bytes = 0
        self._held: deque[tuple[int, Entry]] = deque()  # each with the position behind it

    def add(self, behind: int, entry: Entry) -> None:
        """The record before the position `behind` was appended; the oldest ones give way to it."""
        self._held.append((behind, entry))
        self._bytes += len(entry.record)
        while self._bytes > MAX_LATEST:
            self._drop()

    def confirmed(self, seq: int) -> None:
        """Nobody asks for the records up to `seq` any more."""
        while self._held and self._held[0][1].seq <= seq:
            self._drop()

    def read(self, position: int, end: int, wanted: Wanted) -> Batch:
        """What `read_entries` finds there, for a position that is not before `since`."""
        entries: list[Entry] = []
        left = wanted.size
        for behind, entry in self._held:
            if behind > end:
                break
            if behind <= position or entry.seq < wanted.seq:
                continue
            entries.append(entry)
            left -= len(entry.record)
            if left <= 0 or len(entries) >= wanted.most:
                return Batch(entries, behind)
        return Batch(entries, max(position, end))

    def _drop(self) -> None:
        self.since, entry = self._held.popleft()
        self._bytes -= len(entry.record)


def read_directory(directory: Path) -> Iterator[tuple[str, Header | None, list[Frame | Hole]]]:
    """Each segment's file name, its header (None where that cannot be read) and what stands in it, one segment in memory.

    Reads beside a running node: nothing is locked, cut or changed. Raises OSError.
    """
    paths = sorted(directory.glob(f"*{SUFFIX}"))
    for path in paths:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue  # Its records were confirmed meanwhile.
        header = read_header(data[:HEADER_SIZE])
        items = [] if header is None else list(frames(data, HEADER_SIZE, header.position, header.salt))
        if path is paths[-1] and items and isinstance(items[-1], Hole) and items[-1].torn:
            items.pop()  # The running node may be writing there.
        yield path.name, header, items


def _window(part: Segment, position: int, end: int, salt: int) -> Iterator[tuple[bytes, int]]:
    """The payload of each whole frame from `position` on, with the position behind it; at last b"" with the position behind all
    that was looked at, which lies beyond `position`. Nothing is read further than it is asked for."""
    stop = min(end, position + READ_BYTES)
    data = part.read(part.offset_of(position), part.offset_of(stop))
    behind = stop
    for item in frames(data, 0, position, salt):
        if isinstance(item, Frame):
            yield item.payload, position + item.end
        elif item.end == len(data) and stop < end and item.offset > 0:
            behind = position + item.offset  # Cut by the end of the window, most likely: the next one begins with it.
        elif item.end == len(data) and stop < end:
            first = next(frames(part.read(part.offset_of(position), part.offset_of(end)), 0, position, salt))
            behind = position + first.end  # A frame or a hole that is longer than the window.
            if isinstance(first, Frame):
                yield first.payload, behind
    yield b"", behind


def _entry(payload: bytes) -> Entry | None:
    """The final record in a payload; None for other facts, and for what no version wrote."""
    try:
        scanned = codec.scan(payload)
        if scanned.kind != "end":
            return None
        head = codec.head(scanned.record)
    except codec.CodecError:
        return None
    return Entry(head.seq, head.id, head.schema, head.type, scanned.record)
