"""Files of the journal: segments that are appended to, the lock of the directory, the disk's reserve.

The blocks of a segment are allocated when it is created, behind its end: a record never meets a full disk half way through one,
the file stays in one piece on the disk, and its size still says how far it was written. What is left over goes back to the disk
when the segment is closed.

What the bytes mean is in `segment`; which segment is written, kept or removed is decided in `journal`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
from math import inf
from pathlib import Path
from typing import NamedTuple

from cdr.segment import HEADER_SIZE, Header, file_name, write_header

__all__ = ["LiveCalls", "Ref", "Reserve", "Segment", "free_percent", "lock_directory", "sync_directory"]


KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_FALLOCATE = getattr(_LIBC, "fallocate64", None) or getattr(_LIBC, "fallocate", None)


class Segment:
    """One file of the journal. `size` counts what was written whole; `pins` the facts of live calls in it, by call."""

    __slots__ = (
        *("allocated", "broken", "damaged", "descriptor", "is_active", "last_seq", "oldest_ms", "path", "pins", "position"),
        "size",
    )

    def __init__(self, path: Path, position: int, size: int) -> None:
        self.path = path
        self.position = position
        self.size = size
        self.descriptor = -1
        self.is_active = False  # appended to, and therefore closed by nobody else
        self.last_seq = 0  # highest number of an END in it
        self.oldest_ms: float = inf  # when the first of the calls with an END in it ended, UTC ms
        self.pins: dict[str, int] = {}
        self.damaged = False
        self.allocated = 0  # bytes from the file's beginning whose blocks are its own
        self.broken = False  # bytes that could not be taken back stand behind `size`: nothing may follow them

    @classmethod
    def create(cls, directory: Path, header: Header, size: int) -> Segment:
        """A new segment with its header in the kernel and, where the disk has them, blocks for `size` bytes.

        Raises OSError and leaves no file behind.
        """
        created = cls(directory / file_name(header.position), header.position, 0)
        created.descriptor = os.open(created.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        created.allocate(size)
        try:
            created.write(write_header(header))
        except OSError:
            created.close()
            created.path.unlink(missing_ok=True)
            raise
        created.is_active = True
        return created

    @property
    def end(self) -> int:
        """The position behind its last record."""
        return self.position + self.size - HEADER_SIZE

    def offset_of(self, position: int) -> int:
        return position - self.position + HEADER_SIZE

    def open(self) -> None:
        """Go on with a segment of an earlier run, whose torn end is cut off. Raises OSError."""
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(self.descriptor, self.size)
        self.is_active = True

    def allocate(self, size: int) -> None:
        """Have blocks for `size` bytes; without effect where the disk is too full or its file system does not do that."""
        if _FALLOCATE is None or size <= self.size:
            return
        if _FALLOCATE(self.descriptor, KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
            self.allocated = size

    def write(self, data: bytes) -> None:
        """Append `data` whole. Raises OSError after the file was restored to what it was."""
        try:
            done = os.write(self.descriptor, data)
            while done < len(data):  # A disk that fills up takes a part first and reports the reason with the next write.
                done += os.write(self.descriptor, data[done:])
        except OSError:
            try:
                os.ftruncate(self.descriptor, self.size)
            except OSError:
                self.broken = True
            raise
        self.size += len(data)

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def close(self) -> None:
        self.is_active = False
        if self.descriptor >= 0:
            if self.allocated > self.size:
                with contextlib.suppress(OSError):  # Gives the blocks behind the end back.
                    os.ftruncate(self.descriptor, self.size)
                self.allocated = 0
            os.close(self.descriptor)
            self.descriptor = -1

    def read(self, start: int, end: int) -> bytes:
        """The bytes between two offsets, fewer when the file is shorter. Raises OSError."""
        if self.is_active:
            return _read(self.descriptor, start, end)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _read(descriptor, start, end)
        finally:
            os.close(descriptor)

    def remove(self) -> None:
        """Delete the file; one with damage in it is set aside for a person to look at."""
        if self.damaged:
            self.path.rename(self.path.with_suffix(".damaged"))
        else:
            self.path.unlink(missing_ok=True)


def _read(descriptor: int, start: int, end: int) -> bytes:
    parts = []
    while start < end and (part := os.pread(descriptor, end - start, start)):
        parts.append(part)
        start += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


_REF = struct.Struct("<QII")
_PLACES = {kind: number * _REF.size for number, kind in enumerate(("admit", "answer", "alive"))}  # in a row


class Ref(NamedTuple):
    """Where a fact of a live call stands: a frame's offset and size in its segment."""

    segment: Segment
    offset: int
    size: int


class LiveCalls:
    """Which facts of which calls are needed until the calls end, and which segments they hold back.

    A call's refs are one row of numbers: for each kind of fact its segment's position, its offset and its size, 0 for none. It
    is as long as the facts that came.
    """

    def __init__(self) -> None:
        self._refs: dict[str, bytes] = {}
        self._segments: dict[int, Segment] = {}  # those with pins, by position
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._refs)

    def __contains__(self, call: str) -> bool:
        return call in self._refs

    def ids(self) -> list[str]:
        return list(self._refs)

    def of(self, call: str) -> dict[str, Ref]:
        """Its facts by kind; the last one of each kind counts."""
        rows = zip(_PLACES, _REF.iter_unpack(self._refs[call]), strict=False)
        return {kind: Ref(self._segments[place], offset, size) for kind, (place, offset, size) in rows if size}

    def put(self, call: str, kind: str, ref: Ref) -> None:
        segment, offset, size = ref
        here, row, at = _REF.pack(segment.position, offset, size), self._refs.get(call, b""), _PLACES[kind]
        self.bytes += size
        self._segments[segment.position] = segment
        pins = segment.pins
        pins[call] = pins.get(call, 0) + 1
        if len(row) <= at:
            self._refs[call] = row.ljust(at, b"\0") + here
            return
        self._refs[call] = row[:at] + here + row[at + _REF.size :]
        place, _, size = _REF.unpack_from(row, at)
        if size:
            self._unpin(call, place, size)

    def end(self, call: str) -> None:
        row = self._refs.pop(call, None)
        if row is not None:
            for place, _, size in _REF.iter_unpack(row):
                if size:
                    self._unpin(call, place, size)

    def _unpin(self, call: str, place: int, size: int) -> None:
        self.bytes -= size
        pins = self._segments[place].pins
        if pins[call] > 1:
            pins[call] -= 1
            return
        del pins[call]
        if not pins:
            del self._segments[place]


class Reserve:
    """Disk space that is held back so that live calls can still be recorded when the disk is full."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        self.held = False

    def take(self) -> None:
        """Hold the space; without effect when the disk has less than four times as much."""
        with contextlib.suppress(OSError):
            if self._path.exists() and self._path.stat().st_blocks * 512 >= self._size:
                self.held = True
                return
            disk = os.statvfs(self._path.parent)
            if disk.f_bavail * disk.f_frsize < 4 * self._size:
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, self._size)
                self.held = True
            finally:
                os.close(descriptor)
                if not self.held:
                    self._path.unlink(missing_ok=True)

    def release(self) -> bool:
        """Give the space back to the disk; whether there was any."""
        held, self.held = self.held, False
        self._path.unlink(missing_ok=True)
        return held


def lock_directory(directory: Path) -> int:
    """A descriptor that holds the directory's lock until it is closed. Raises BlockingIOError when another process has it."""
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise BlockingIOError(error.errno, "in use by another process", str(directory)) from error
        raise
    return descriptor


def sync_directory(directory: Path) -> None:
    """Make created and removed names durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_percent(directory: Path) -> float:
    """How much of the file system is free for us, 0 to 100."""
    disk = os.statvfs(directory)
    return 100.0 * disk.f_bavail / disk.f_blocks if disk.f_blocks else 100.0
