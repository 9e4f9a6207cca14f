"""`sipproxy cdr pull` and `cdr ack`: records for a group whose cursor the store keeps.

What is printed is acknowledged only after it was written: to a file when the whole file is on the disk under its name, to
standard output when it was flushed, is on the disk (a file) or was read from the pipe. A pull that dies gives the same records
again, so that a reader who keeps one per id has each once. One pull or `ack` at a time has a group (`cdr.lease`); a look does
not need it. Left out: files in series (`cdr export`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import struct
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from cdr import steps
from cdr.consumer import Consumer, Delivery
from cdr.entries import Poison, entry_of, pairs
from cdr.export import ExportError, Writer
from cdr.groups import acknowledged
from cdr.lease import HeldError, Lease
from cdr.storage import sync_directory
from cdr.wire import Link
from sipproxy.commands.accesses import recorded, user_name
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import USAGE, CommandError, Output, many
from sipproxy.config import load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from redis.asyncio import Redis

__all__ = ["acknowledge", "pull"]

NAME = "pull"
PATIENCE_S = 10.0
FILE_LIMIT = 1_000_000  # records of one file: their entry ids are kept until it is whole
TELL_S = 5.0
ACKNOWLEDGED = 1000  # entries at once
NEVER = 1 << 30  # deliveries: people may pull as often as they like
DRAIN_S = 0.05


def pull(
    path: Path,
    *,
    group: str,
    form: str,
    columns: str,
    limit: int,
    follow: bool,
    peek: bool,
    keep: bool,
    live: bool,
    file: Path | None,
) -> int:
    """Write the group's next records; see the module for when they are acknowledged."""
    if follow and (file is not None or peek):
        raise CommandError("--follow goes with neither --output nor --peek", code=USAGE)
    try:
        writer = Writer(form, columns)
    except ExportError as error:
        raise CommandError(str(error), code=USAGE) from None
    if file is not None and file.exists():
        raise CommandError(f"{file}: is there already; nothing was pulled", code=USAGE)
    config = load(path)
    progress = _Progress()

    async def work(client: Redis) -> int | BrokenPipeError:
        what = f"group {group}, {columns} {form}" + (", peek" if peek else "") + (f" to {file}" if file else "")
        async with recorded(client, config.cdr.stream, "cdr pull", what) as seen:
            try:
                seen.records = await given(client)
            except BrokenPipeError as error:  # an OSError, but none of the store's
                seen.records = progress.count
                return error
            return seen.records

    async def given(client: Redis) -> int:
        if peek:
            return await _peek(client, config.cdr.stream, group, writer, limit, live=live)
        async with (
            _leased(client, config.cdr.stream, group, "cdr pull") as lease,
            _consumer(client, config.cdr.stream, group, progress.tell) as consumer,
        ):
            lease.on_lost = consumer.stop
            most = min(limit or FILE_LIMIT, FILE_LIMIT) if file is not None else limit
            batches = _limited(consumer, most, follow=follow)
            taker = _Taker(consumer, lease, writer, progress, live=live, keep=keep)
            count = await (taker.to_stdout(batches) if file is None else taker.into_file(batches, file))
            lease.complete = True
            return count

    count = with_store(config, work)
    if isinstance(count, BrokenPipeError):
        raise count
    progress.end(count)
    return 0


def acknowledge(path: Path, output: Output, *, group: str) -> int:
    """Acknowledge what the last pulls of the group gave out and kept."""
    config = load(path)

    async def work(client: Redis) -> int:
        count = 0
        stream = config.cdr.stream
        if not await _exists(client, stream, group):
            raise CommandError(f"there is no group {group[:80]!r}; `sipproxy cdr groups` lists them")
        async with _leased(client, stream, group, "cdr ack") as lease, _consumer(client, stream, group, None) as consumer:
            async for batch in consumer.kept():
                await lease.check()
                await consumer.acknowledge(batch)
                count += len(batch)
        return count

    count = with_store(config, work)
    output.value({"group": group, "acknowledged": count})
    output.line(f"{group}: {many(count, 'record')} acknowledged")
    return 0


async def _exists(client: Redis, stream: str, group: str) -> bool:
    """Whether there is such a group. A consumer makes its own, which then holds up the stream's trimming: a slip of the hand
    must not."""
    link = Link(client, timeout_s=PATIENCE_S)
    try:
        return await acknowledged(link, stream, group) is not None
    finally:
        await link.drop()


@contextlib.asynccontextmanager
async def _leased(client: Redis, stream: str, group: str, command: str) -> AsyncIterator[Lease]:
    """The group for this process alone. Raises CommandError when another has it, or has taken it since."""
    lease = Lease(client, stream, group, user=user_name(), host=socket.gethostname(), pid=os.getpid(), command=command)
    try:
        async with lease:
            yield lease
    except HeldError as error:
        raise CommandError(f"{error}; nothing more was acknowledged") from None


def _consumer(client: Redis, stream: str, group: str, on_event: object) -> Consumer:
    events = on_event if callable(on_event) else None
    return Consumer(client, group=group, stream=stream, name=NAME, patience_s=PATIENCE_S, max_deliveries=NEVER, on_event=events)


async def _limited(consumer: Consumer, limit: int, *, follow: bool) -> AsyncIterator[list[Delivery]]:
    """Batches with `limit` records together (0: all). What is cut off stays with this name, and comes first next time."""
    left = limit
    async for batch in consumer.batches(follow=follow):
        yield batch[:left] if limit else batch
        left -= len(batch)
        if limit and left <= 0:
            return


class _Taker:
    """Brings a group's batches to where they are wanted, and acknowledges them then."""

    def __init__(
        self, consumer: Consumer, lease: Lease, writer: Writer, progress: _Progress, *, live: bool, keep: bool
    ) -> None:
        self._consumer, self._lease, self._writer, self._progress = consumer, lease, writer, progress
        self._live, self._keep = live, keep

    async def into_file(self, batches: AsyncIterator[list[Delivery]], file: Path) -> int:
        """Written aside, on the disk, renamed, then acknowledged. Raises CommandError or HeldError; then nothing was
        acknowledged."""
        aside = file.with_name(f".{file.name}.part")
        given: list[Delivery] = []
        count = 0
        try:
            with _aside(aside) as out:
                out.write(self._writer.head())
                async for batch in batches:
                    rows, number = self._rows(batch)
                    out.write(rows)
                    count += number
                    given += [one._replace(record=batch[0].record, data=b"") for one in batch]  # the ids are what is needed
                    self._progress.at(count)
                out.flush()
                os.fsync(out.fileno())
                await self._lease.check()
                _name(aside, file)
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror or error}; nothing was acknowledged, the records come again") from None
        steps.at("pull.named")
        for start in range(0, len(given), ACKNOWLEDGED):
            await self._acknowledge(given[start : start + ACKNOWLEDGED])
        return count

    async def to_stdout(self, batches: AsyncIterator[list[Delivery]]) -> int:
        """Each batch is acknowledged when it was read, or is on the disk. Raises BrokenPipeError, CommandError or HeldError."""
        out = sys.stdout.buffer
        sys.stdout.flush()
        await asyncio.to_thread(_write_whole, out, self._writer.head())
        count = 0
        async for batch in batches:
            rows, number = self._rows(batch)
            await self._lease.check()
            await asyncio.to_thread(_write_whole, out, rows)
            steps.at("pull.written")
            await self._acknowledge(batch)
            count += number
            self._progress.at(count)
        await self._lease.check()
        return count

    def _rows(self, batch: list[Delivery]) -> tuple[bytes, int]:
        rows = [self._writer.row(one.record) for one in batch if self._live or one.record.type == "final"]
        return b"".join(rows), len(rows)

    async def _acknowledge(self, batch: list[Delivery]) -> None:
        if not self._keep:
            await self._lease.check()
            await self._consumer.acknowledge(batch)


@contextlib.contextmanager
def _aside(path: Path) -> Iterator[BinaryIO]:
    """An empty file for this process alone; what is left of it afterwards goes. Raises OSError, also when another has it."""
    while True:
        out = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(out.fileno()).st_ino:
                break
        except BlockingIOError:
            out.close()
            raise OSError(errno.EBUSY, "another pull writes it") from None
        out.close()  # it got its name before we had the lock: it is whole, and not ours
    with out:
        out.truncate()
        try:
            yield out
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise


def _name(aside: Path, file: Path) -> None:
    """Give a whole file its name, on the disk. Raises OSError."""
    if file.exists():
        raise FileExistsError(errno.EEXIST, "came there meanwhile")
    aside.rename(file)
    sync_directory(file.parent)


def _write_whole(out: BinaryIO, data: bytes) -> None:
    """All of `data` is on the disk, or was read from the pipe. Raises BrokenPipeError when the reader went before that, and
    CommandError for a disk that refuses, with the file as it was before."""
    number = out.fileno()
    kind = os.fstat(number).st_mode
    before = os.lseek(number, 0, os.SEEK_CUR) if stat.S_ISREG(kind) else 0
    end = os.fstat(number).st_size
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(number, view) :]
        if stat.S_ISREG(kind):
            os.fsync(number)
    except BrokenPipeError:
        raise
    except OSError as error:
        if stat.S_ISREG(kind):
            with contextlib.suppress(OSError):
                os.ftruncate(number, end)
                os.lseek(number, before, os.SEEK_SET)
        raise CommandError(f"standard output: {error.strerror}; what was not written comes again") from None
    if stat.S_ISFIFO(kind):
        _wait_read(number)


def _wait_read(number: int) -> None:
    """Until the reader has taken all that is in the pipe. Raises BrokenPipeError when it went before."""
    poll = select.poll()
    poll.register(number, 0)
    while struct.unpack("i", fcntl.ioctl(number, termios.FIONREAD, b"\0" * 4))[0] > 0:
        if poll.poll(0):  # only POLLERR is asked for: nobody reads any more
            raise BrokenPipeError
        time.sleep(DRAIN_S)


async def _peek(client: Redis, stream: str, group: str, writer: Writer, limit: int, *, live: bool) -> int:
    """What the next pull would give, without a trace in the store."""
    link = Link(client, timeout_s=PATIENCE_S)
    try:
        start = "0-0"
        pending: list[bytes] = []
        if await link.call("EXISTS", stream):
            for found in await link.call("XINFO", "GROUPS", stream):
                about = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
                if about[b"name"] == group.encode():
                    start = about[b"last-delivered-id"].decode()
                    page = await link.call("XPENDING", stream, group, "-", "+", limit or 1000, NAME)
                    pending = [row[0] for row in page]
        out, count = sys.stdout.buffer, 0
        out.write(writer.head())
        for entry_id in pending:
            for found_id, fields in pairs(await link.call("XRANGE", stream, entry_id, entry_id)):
                count += _show(out, writer, found_id, fields, live=live)
        while not limit or count < limit:
            page = pairs(await link.call("XRANGE", stream, f"({start}", "+", "COUNT", 500))
            if not page:
                break
            for found_id, fields in page:
                if not limit or count < limit:
                    count += _show(out, writer, found_id, fields, live=live)
            start = page[-1][0].decode()
        out.flush()
        return count
    finally:
        await link.drop()


def _show(out: BinaryIO, writer: Writer, entry_id: bytes, fields: dict[bytes, bytes], *, live: bool) -> int:
    item = entry_of(entry_id, fields)
    if isinstance(item, Poison):
        sys.stderr.write(f"entry {item.entry_id} is no record: {item.reason}\n")
        return 0
    if not live and item.type != "final":
        return 0
    out.write(writer.row(item))
    return 1


class _Progress:
    """Lines on standard error, so that a long run is seen to go on; a short one says nothing."""

    def __init__(self) -> None:
        self._began = self._told = time.monotonic()
        self.count = 0

    def at(self, count: int) -> None:
        self.count, now = count, time.monotonic()
        if now - self._told >= TELL_S:
            self._told = now
            sys.stderr.write(f"{count:,} records, {count / (now - self._began):,.0f} a second\n")

    def tell(self, kind: str, text: str) -> None:
        sys.stderr.write(f"{kind}: {text}\n")

    def end(self, count: int) -> None:
        if self._told != self._began:
            sys.stderr.write(f"{count:,} records, done\n")
