"""Exports: records from the stream into files, by a consumer group or by a period.

A group's records are acknowledged after the file that holds them has its name, is on disk, and is where else it was to be sent.
Whatever ends an export, the next one goes on: files that had their name are finished first, other records come again. Two
exports of one group into one folder therefore hold each record once. Start and interim records are acknowledged and not
written; a record that the form cannot hold becomes a dead letter with its reason.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from cdr import steps
from cdr.codec import CodecError
from cdr.consumer import Poison, entry_of
from cdr.entries import pairs
from cdr.export import ExportError
from cdr.place import beside
from cdr.wire import Link

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from redis.asyncio import Redis

    from cdr.consumer import Consumer, Delivery
    from cdr.facts import Record
    from cdr.files import Folder, Intent, Part, Rows

    Send = Callable[[Intent], Awaitable[None]]

    Call = Callable[..., Awaitable[Any]]

__all__ = ["Exporter", "Period", "Totals", "folders", "know_folder"]

PAGE = 500
ACKNOWLEDGED = 1000  # entries of one command
HOLD_S = 15.0  # how often the entries of an unfinished file are held, so that nobody else of the group takes them
TIMEOUT_S = 10.0
EARLY_MS = 86_400_000  # entries are stamped by the store's clock, records by the node's


@dataclass
class Totals:
    """What an export has done so far."""

    records: int = 0
    files: int = 0
    bytes: int = 0
    skipped: int = 0  # start and interim records, and those outside the period
    rejected: int = 0  # that the form cannot hold, or that cannot be read
    finished: int = 0  # files of an earlier export that it had not acknowledged


class Period(NamedTuple):
    """Records whose set-up lies from `start_ms` to before `end_ms`, UTC ms."""

    start_ms: int
    end_ms: int

    def holds(self, record: Record) -> bool:
        return self.start_ms <= record.setup_at_ms < self.end_ms


class Exporter:
    """Writes files of one form and profile into one folder."""

    def __init__(
        self,
        client: Redis,
        folder: Folder,
        rows: Rows,
        *,
        stream: str,
        profile: str,
        rows_per_file: int,
        send: Send | None = None,
        on_progress: Callable[[Totals], None] | None = None,
    ) -> None:
        """`send` brings a finished file elsewhere, before it counts as done."""
        self.totals = Totals()
        self._link = Link(client, timeout_s=TIMEOUT_S)
        self._folder, self._rows = folder, rows
        self._stream, self._profile, self._group = stream, profile, ""
        self._rows_per_file = max(1, rows_per_file)
        self._send, self._on_progress = send, on_progress
        self._part: Part | None = None

    async def of_group(self, consumer: Consumer) -> Totals:
        """All that the group has not acknowledged. Raises RedisError, OSError, FolderError, and what `send` raises."""
        self._group = consumer.group
        try:
            await self._finish_earlier()
            held_at = time.monotonic()
            async for batch in consumer.batches(follow=False):
                others = [one.entry_id for one in batch if one.record.type != "final"]
                self.totals.skipped += len(others)
                await self._acknowledge(others)
                for delivery in batch:
                    if delivery.record.type == "final":
                        await self._take(consumer, delivery)
                if time.monotonic() - held_at > HOLD_S:
                    held_at = time.monotonic()
                    await self._hold(consumer.name)
                self._tell()
            await self._close()
        finally:
            await self._leave()
        return self.totals

    async def of_period(self, period: Period) -> Totals:
        """All final records of a period that the stream still has; nothing is acknowledged. Raises as `of_group`."""
        try:
            async for record in self._between(period):
                try:
                    await self._add(record, "")
                except (CodecError, ExportError):
                    self.totals.rejected += 1
                self._tell()
            await self._close()
        finally:
            await self._leave()
        return self.totals

    async def _take(self, consumer: Consumer, delivery: Delivery) -> None:
        try:
            await self._add(delivery.record, delivery.entry_id)
        except (CodecError, ExportError) as error:
            self.totals.rejected += 1
            await consumer.reject(delivery, f"export as {self._rows.form}: {error}")

    async def _between(self, period: Period) -> AsyncIterator[Record]:
        start = str(max(0, period.start_ms - EARLY_MS))
        while page := pairs(await self._link.call("XRANGE", self._stream, start, "+", "COUNT", PAGE)):
            for entry_id, fields in page:
                item = entry_of(entry_id, fields)
                if isinstance(item, Poison):
                    self.totals.rejected += 1
                elif item.type == "final" and period.holds(item):
                    yield item
                else:
                    self.totals.skipped += 1
            start = "(" + page[-1][0].decode("ascii")

    async def _finish_earlier(self) -> None:
        """Files that had their name when an earlier export died."""
        for intent in self._folder.unfinished:
            await self._done(intent)
            self.totals.finished += 1
        self._folder.unfinished.clear()

    async def _add(self, record: Record, entry: str) -> None:
        if self._part is None:
            now = time.time()
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
            self._part = self._folder.begin(self._rows, at_ms=int(1000 * now), stamp=stamp)
        self._part.add(record, entry)
        self.totals.records += 1
        if self._part.records >= self._rows_per_file:
            await self._close()

    async def _close(self) -> None:
        """The file that is being written is complete."""
        part, self._part = self._part, None
        if part is None:
            return
        if not part.records:
            part.abandon()
            return
        intent = part.close(profile=self._profile, group=self._group, stream=self._stream)
        self.totals.files += 1
        self.totals.bytes += intent.bytes
        await self._done(intent)

    async def _done(self, intent: Intent) -> None:
        if self._send is not None:
            await self._send(intent)
            steps.at("export.sent")
        await self._acknowledge(intent.entries, stream=intent.stream, group=intent.group)
        steps.at("export.acknowledged")
        self._folder.finish(intent)

    async def _acknowledge(self, entries: list[str], *, stream: str = "", group: str = "") -> None:
        for start in range(0, len(entries), ACKNOWLEDGED):
            ids = entries[start : start + ACKNOWLEDGED]
            await self._link.call("XACK", stream or self._stream, group or self._group, *ids)

    async def _hold(self, name: str) -> None:
        entries = self._part.entries if self._part is not None else []
        for start in range(0, len(entries), ACKNOWLEDGED):
            ids = entries[start : start + ACKNOWLEDGED]
            await self._link.call("XCLAIM", self._stream, self._group, name, 0, *ids, "JUSTID")

    async def _leave(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            part.abandon()
        await self._link.drop()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self.totals)


async def know_folder(call: Call, stream: str, folder: str, node: str) -> None:
    """Note that the node of that name writes exports into that folder of its machine, so that retention finds them."""
    await call("HSET", beside(stream, "folders"), f"{node}:{folder}", "1")


async def folders(call: Call, stream: str, node: str) -> list[str]:
    """The folders that were noted for the node."""
    reply = await call("HKEYS", beside(stream, "folders"))
    known = (name.decode("utf-8", "surrogateescape") for name in reply)
    return sorted(name.removeprefix(f"{node}:") for name in known if name.startswith(f"{node}:"))
