"""The local journal of call facts: what is in it survives the process, and soon the machine (design: invariant 3, §8).

Every append is one write to the kernel, so that a killed process loses nothing; a thread syncs groups of them to the disk.
Records stay until they are confirmed as published, and the facts of a live call until it ends. Segments are removed oldest
first only, because an END must not go before its ADMIT; the facts of a few calls that outlive their segment are appended
again. The newest segment always stays, and its header knows the numbers given so far; `prune` begins a new one, so that what is
confirmed does not lie there until it is full.

Left out: the file format (`segment`), files (`storage`), reading them back at start (`recovery`), the timing of syncs
(`syncer`), the way into the stream (`publisher`). One thread appends, confirms and reads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from bisect import bisect_right
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cdr import codec, recovery, steps
from cdr.facts import Admit, Alive, Answer, End
from cdr.reading import READ_BYTES, Batch, Entry, Latest, Wanted, read_entries
from cdr.recovery import Damage, JournalError, Recovered, UnwritableError
from cdr.segment import FRAME_SIZE, HEADER_SIZE, MAX_PAYLOAD, Frame, Header, frames, write_frame, write_header
from cdr.storage import LiveCalls, Ref, Reserve, Segment, free_percent, lock_directory, sync_directory
from cdr.syncer import Syncer, SyncFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cdr.facts import Fact, Record

__all__ = ["Batch", "Damage", "Entry", "Journal", "JournalError", "Recovered", "Stats", "UnwritableError"]

MIN_SEGMENT_BYTES = 4096
MAX_SEGMENT_BYTES = 256 * 1024 * 1024  # One segment at a time is held in memory at recovery.
CARRY_CALLS = 4  # Calls carried on per append: bounds its time, and is faster than segments can fill.
CARRY_SEGMENTS = 4  # Segments that may lie before calls are carried on at all.
PRUNE_CALLS = 50  # Calls carried on by one step of pruning: some 2 ms in which the event loop does nothing else.
PROBE_S = 1.0  # How often the disk's free space is looked at.

_ref: Callable[[tuple[Segment, int, int]], Ref] = partial(tuple.__new__, Ref)  # to call the class takes four times as long


class Stats(NamedTuple):
    """What the metrics show. Times are milliseconds of the last and of the longest sync."""

    bytes: int
    segments: int
    live: int
    last_seq: int
    confirmed_seq: int
    unsynced: int  # bytes
    fsync_ms: float
    fsync_longest_ms: float
    fsync_errors: int
    write_errors: int
    gaps: int  # sequence numbers that were skipped
    damaged: int  # places that could not be read
    free_percent: float
    failure: str  # why the disk refuses now, "" when it does not


class Journal:
    """Facts in, numbered records out. `recover` comes first; `append` and `confirm` are synchronous and short."""

    def __init__(
        self,
        directory: Path | str,
        *,
        node: str,
        segment_bytes: int = 16 * 1024 * 1024,
        fsync_interval_ms: int = 10,
    ) -> None:
        """Raises ValueError for a node id or a size that cannot be."""
        if not MIN_SEGMENT_BYTES <= segment_bytes <= MAX_SEGMENT_BYTES:
            raise ValueError(f"segment_bytes must be {MIN_SEGMENT_BYTES} to {MAX_SEGMENT_BYTES}: {segment_bytes}")
        write_header(Header(0, 0, 0, 0, node))
        self.directory = Path(directory)
        self.node = node
        self._segment_bytes = segment_bytes
        self._interval_s = max(0, fsync_interval_ms) / 1000
        self._lock = threading.Lock()  # guards what the syncing thread sees: segments, dirty, condemned
        self._held = -1
        self._segments: list[Segment] = []
        self._dirty: list[Segment] = []
        self._condemned: list[Segment] = []
        self._directory_changed = False
        self._live = LiveCalls()
        self._latest = Latest(0)
        self._reserve = Reserve(self.directory / "reserve", segment_bytes // 4)
        self._syncer: Syncer | None = None
        self._salt = 0
        self._last_seq = self._confirmed = self._recovered_seq = 0
        self._write_errors = self._gaps = self._damaged = 0
        self._failure = ""
        self._free = 100.0
        self._probe_at = 0.0

    def recover(self) -> Recovered:
        """Take the directory, read what is there, cut off a torn end, and be ready for appends.

        Raises JournalError when another process has the directory, it belongs to another node, or it cannot be read or written.
        """
        if self._held >= 0:
            raise JournalError(f"journal {self.directory} is open already")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._held = lock_directory(self.directory)
            found = recovery.load(self.directory, self.node)
            self._adopt(found)
        except OSError as error:
            self._unlock()
            raise JournalError(f"journal {self.directory}: {error.strerror or error}") from error
        except JournalError:
            self._unlock()
            raise
        self._syncer = Syncer(self._sync, interval_s=self._interval_s, position=self._segments[0].position)
        self._syncer.start()
        self._syncer.want(self._position)
        self._syncer.poke()
        return Recovered(
            next_seq=self._last_seq + 1,
            unfinished=found.unfinished,
            ended=found.ended,
            unpublished=self.records_from(self._confirmed + 1),
            damaged=found.damaged,
            torn=found.torn,
        )

    def append(self, fact: Fact) -> int:
        """Hand `fact` to the kernel; the position behind it, for `wait_synced`.

        Raises JournalError with the reason when the disk does not take it (the file is as before, and an END keeps its
        number for the next try), and its subclass UnwritableError when this fact can never be written: its texts or numbers do
        not fit, or its sequence number is not above the last one.
        """
        syncer = self._syncer or self._started
        try:
            payload = codec.encode_fact(fact)
        except codec.CodecError as error:
            raise UnwritableError(str(error)) from error
        if isinstance(fact, End):
            self._append_end(fact.record, payload)
        elif isinstance(fact, Admit):
            self._live.put(fact.record.id, "admit", self._write(payload, urgent=False))
        else:
            self._live.put(fact.id, codec.kind_of(fact), self._write(payload, urgent=True))
        if len(self._segments) > CARRY_SEGMENTS:
            self._carry()
        position = self._segments[-1].end
        syncer.want(position)
        return position

    async def wait_synced(self, position: int) -> None:
        """Return when everything before `position` is on disk. Raises JournalError when the disk refuses."""
        try:
            await self._started.wait(min(position, self._position))
        except SyncFailedError as error:
            raise JournalError(f"journal {self.directory}: {error}") from error

    def confirm(self, seq: int) -> None:
        """All records up to `seq` are safely in the stream. Never raises: forgetting it only repeats a publication."""
        seq = min(seq, self._last_seq)
        if seq <= self._confirmed or self._syncer is None:
            return
        self._confirmed = seq
        self._latest.confirmed(seq)
        try:
            self._write(codec.encode_confirmed(seq), urgent=False)
        except JournalError:
            return  # Counted in `_write`; the number is in memory and goes into the next header.
        self._started.want(self._position)
        self._remove()

    def prune(self, before_ms: int) -> bool:
        """Let go of what is confirmed of calls that ended before `before_ms` (UTC ms), wherever it stands; True: call it again.

        The newest segment is closed when it holds such a record, and live calls whose facts stand among them are carried on.
        The files are gone once `position` is synced. What is not confirmed stays. What the disk refuses is counted, not raised.
        """
        self._started  # noqa: B018  raises before recovery and after closing
        carried = 0
        with contextlib.suppress(JournalError, OSError):
            if self._segments[-1].oldest_ms < before_ms:
                self._rotate(self._segments[-1])
            self._remove()
            last = max((at for at, part in enumerate(self._segments[:-1]) if part.oldest_ms < before_ms), default=-1)
            for part in self._segments[: last + 1]:
                if part.last_seq > self._confirmed or part.damaged:
                    break
                for call in list(part.pins)[: PRUNE_CALLS - carried]:
                    self._carry_call(call)
                    carried += 1
            self._remove()
            if self._condemned:
                self._write(codec.encode_confirmed(self._confirmed), urgent=False)
                self._started.want(self._position)
        return carried >= PRUNE_CALLS

    def records_from(self, seq: int) -> Iterator[Record]:
        """The final records numbered `seq` and above, in order, read from disk as they are asked for.

        One that this version cannot decode is left out here and counted; `read` has its bytes. Raises JournalError.
        """
        position = self.position_of(seq)
        while position < (end := self._position):
            entries, position = self.read(position, seq=seq, end=end)
            for entry in entries:
                try:
                    yield codec.decode(entry.record)
                except codec.CodecError:
                    self._damaged += 1

    def position_of(self, seq: int) -> int:
        """A position from which no record numbered `seq` or above is missed."""
        self._started  # noqa: B018  raises before recovery and after closing
        with self._lock:
            for part in self._segments:
                if part.last_seq >= seq:
                    return part.position
        return self._segments[-1].position

    def read(self, position: int, *, seq: int, end: int, count: int = 500, size: int = READ_BYTES) -> Batch:
        """Final records numbered `seq` and above between two positions: at most `count`, and about `size` bytes.

        The latest of them are still in memory. Raises JournalError when a file cannot be read.
        """
        wanted = Wanted(seq, count, size)
        if position >= self._latest.since:
            return self._latest.read(position, end, wanted)
        with self._lock:
            first = max(0, bisect_right(self._segments, position, key=lambda part: part.position) - 1)
            parts = [(part, min(part.end, end)) for part in self._segments[first:]]
        try:
            return read_entries(parts, position, self._salt, wanted)
        except OSError as error:
            raise JournalError(f"journal {self.directory}: {error.strerror or error}") from error

    def facts_of(self, call: str) -> tuple[Admit, Answer | None, Alive | None] | None:
        """The facts of a live call, the last of each kind, read from disk; None for a call that is not live here.

        Raises JournalError when they cannot be read.
        """
        if call not in self._live:
            return None
        refs = self._live.of(call)
        try:
            facts = {kind: codec.decode_fact(self._payload(ref)) for kind, ref in refs.items()}
        except (OSError, codec.CodecError) as error:
            raise JournalError(f"journal {self.directory}: call {call!r:.80}: {error}") from error
        admit, answer, alive = facts.get("admit"), facts.get("answer"), facts.get("alive")
        if not isinstance(admit, Admit):
            return None
        return admit, answer if isinstance(answer, Answer) else None, alive if isinstance(alive, Alive) else None

    def probe(self) -> None:
        """Have the disk's free space looked at, also while nothing is written."""
        self._started.poke()

    @property
    def has_reserve(self) -> bool:
        """Whether disk space is held back for live calls."""
        return self._reserve.held

    @property
    def last_seq(self) -> int:
        """The highest number given."""
        return self._last_seq

    @property
    def recovered_seq(self) -> int:
        """The highest number that was given before this run."""
        return self._recovered_seq

    @property
    def confirmed_seq(self) -> int:
        return self._confirmed

    @property
    def synced(self) -> int:
        """Everything before this position is on disk."""
        return self._started.synced

    @property
    def position(self) -> int:
        """Behind the last append."""
        return self._position

    @property
    def stats(self) -> Stats:
        syncer = self._started
        with self._lock:
            size, count = sum(part.size for part in self._segments), len(self._segments)
        return Stats(
            bytes=size,
            segments=count,
            live=len(self._live),
            last_seq=self._last_seq,
            confirmed_seq=self._confirmed,
            unsynced=max(0, self._position - syncer.synced),
            fsync_ms=syncer.last_ms,
            fsync_longest_ms=syncer.longest_ms,
            fsync_errors=syncer.failures,
            write_errors=self._write_errors,
            gaps=self._gaps,
            damaged=self._damaged,
            free_percent=self._free,
            failure=self._failure or syncer.failure,
        )

    def close(self) -> None:
        """Sync what is left and give the directory back. Harmless when repeated."""
        if self._syncer is not None:
            self._syncer.stop()
            self._syncer = None
        for part in (*self._segments, *self._dirty):
            part.close()
        self._segments, self._dirty = [], []
        self._unlock()

    @property
    def _started(self) -> Syncer:
        if self._syncer is None:
            raise JournalError(f"journal {self.directory} is not open")
        return self._syncer

    @property
    def _position(self) -> int:
        self._started  # noqa: B018  raises before recovery and after closing
        return self._segments[-1].end

    def _unlock(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def _adopt(self, found: recovery.Found) -> None:
        """Go on from what recovery found. A damaged end is left as it is, with a new segment behind it."""
        self._segments, self._live, self._salt = found.segments, found.live, found.salt
        self._last_seq = self._recovered_seq = max(found.last_seq, found.confirmed_seq)
        self._confirmed = found.confirmed_seq
        self._damaged = len(found.damaged)
        self._directory_changed = True
        if not self._segments or self._segments[-1].damaged:
            position = self._segments[-1].end if self._segments else found.position
            self._segments.append(Segment.create(self.directory, self._header(position), self._segment_bytes))
        else:
            self._segments[-1].open()
            self._segments[-1].allocate(self._segment_bytes)
        self._dirty = [self._segments[-1]]
        self._latest = Latest(self._segments[-1].end)
        self._reserve.take()

    def _header(self, position: int) -> Header:
        return Header(position, self._salt, self._last_seq, self._confirmed, self.node)

    def _append_end(self, record: Record, payload: bytes) -> None:
        seq = record.seq
        if seq <= self._last_seq:
            raise UnwritableError(f"sequence number {seq} of call {record.id!r:.80} was given already")
        part = self._write(payload, urgent=True).segment
        self._gaps += seq - self._last_seq - 1
        self._last_seq = part.last_seq = seq
        part.oldest_ms = min(part.oldest_ms, record.end_at_ms)
        self._live.end(record.id)
        self._latest.add(part.end, Entry(seq, record.id, record.schema, record.type, payload[len(codec.END_HEAD) :]))

    def _write(self, payload: bytes, *, urgent: bool) -> Ref:
        """Append one frame. Only what is `urgent`, because it belongs to a live call, may use the disk's reserve."""
        if len(payload) > MAX_PAYLOAD:
            raise UnwritableError(f"journal entry of {len(payload)} bytes, allowed are {MAX_PAYLOAD}")
        try:
            try:
                return self._write_once(payload)
            except OSError as error:
                if not urgent or error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._reserve.release():
                    raise
                return self._write_once(payload)
        except OSError as error:
            self._write_errors += 1
            self._failure = error.strerror or str(error)
            raise JournalError(f"journal {self.directory}: {self._failure}") from error

    def _write_once(self, payload: bytes) -> Ref:
        active, size = self._segments[-1], FRAME_SIZE + len(payload)
        offset = active.size
        if active.broken or (offset + size > self._segment_bytes and offset > HEADER_SIZE):
            active = self._rotate(active)
            offset = active.size
        steps.at("journal.writing")
        active.write(write_frame(payload, active.position + offset - HEADER_SIZE, self._salt))
        steps.at("journal.written")
        self._failure = ""
        return _ref((active, offset, size))

    def _rotate(self, active: Segment) -> Segment:
        """A new segment; the old one, too long, when none can be created and it still takes records."""
        try:
            created = Segment.create(self.directory, self._header(active.end), self._segment_bytes)
        except OSError:
            self._write_errors += 1
            if active.broken:
                raise
            return active
        steps.at("journal.rotated")
        active.is_active = False
        with self._lock:
            self._segments.append(created)
            self._dirty.append(created)
            self._directory_changed = True
        return created

    def _carry(self) -> None:
        """Append again what a few calls still need of the oldest segment, so that one long call does not keep it all.

        As many segments as four times the facts of live calls fill may lie before this begins, beside CARRY_SEGMENTS, which
        bounds the extra writes.
        """
        oldest = self._segments[0]
        allowed = CARRY_SEGMENTS + 4 * self._live.bytes // self._segment_bytes
        if len(self._segments) <= allowed or oldest.last_seq > self._confirmed or oldest.damaged:
            return
        try:
            for call in list(oldest.pins)[:CARRY_CALLS]:
                self._carry_call(call)
        except (JournalError, OSError):
            return  # Counted where it arose; the segment stays, nothing is lost.
        self._remove()

    def _carry_call(self, call: str) -> None:
        """All facts of the call in their order: recovery may meet an ANSWER whose ADMIT now stands behind it, once."""
        refs = self._live.of(call)
        for kind in [kind for kind in ("admit", "answer", "alive") if kind in refs]:
            self._live.put(call, kind, self._write(self._payload(refs[kind]), urgent=False))

    def _payload(self, ref: Ref) -> bytes:
        """What stands at `ref`. Raises OSError, and JournalError when it is damaged."""
        data = ref.segment.read(ref.offset, ref.offset + ref.size)
        position = ref.segment.position + ref.offset - HEADER_SIZE
        frame = next(frames(data, 0, position, self._salt), None)
        if not isinstance(frame, Frame):
            ref.segment.damaged = True
            self._damaged += 1
            raise JournalError(f"{ref.segment.path.name}: record at {ref.offset} cannot be read")
        return frame.payload

    def _remove(self) -> None:
        """Let go of the oldest segments that nobody needs; the thread deletes them once what replaced them is on disk."""
        with self._lock:
            while len(self._segments) > 1 and not self._segments[0].pins and self._segments[0].last_seq <= self._confirmed:
                self._condemned.append(self._segments.pop(0))
        if self._condemned:
            self._started.poke()

    def _sync(self) -> int:
        """Runs in the syncing thread: everything written so far to disk, then deletions. Raises OSError."""
        with self._lock:
            active = self._segments[-1]
            target, dirty = active.end, list(self._dirty)
            condemned, self._condemned = self._condemned, []
            changed, self._directory_changed = self._directory_changed, False
        steps.at("journal.syncing")
        try:
            for part in dirty:
                part.sync()
            steps.at("journal.synced")
            if changed:
                sync_directory(self.directory)
        except OSError:
            with self._lock:
                self._condemned = condemned + self._condemned
                self._directory_changed |= changed
            raise
        with self._lock:  # One that was rotated since may have grown behind our back: it is synced once more.
            done = [part for part in dirty if part is not active]
            self._dirty = [part for part in self._dirty if part not in done]
        for part in done:
            part.close()
        with contextlib.suppress(OSError):  # What cannot be deleted is left to the next start; it holds nothing that is needed.
            for part in condemned:
                steps.at("journal.removing")
                part.remove()
                steps.at("journal.removed")
            self._probe()
        return target

    def _probe(self) -> None:
        now = time.monotonic()
        if now < self._probe_at:
            return
        self._probe_at = now + PROBE_S
        self._free = free_percent(self.directory)
        if not self._reserve.held and not self._failure:
            self._reserve.take()
