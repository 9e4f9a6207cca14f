"""`sipproxy cdr export`: records as files, for a group or a period, in a folder and, where wanted, on a server by SFTP."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cdr.consumer import Consumer
from cdr.export import FORMS, ExportError, Writer
from cdr.exporting import Exporter, Period, Totals, know_folder
from cdr.files import Folder, FolderError, Intent, digest
from cdr.parquet import ParquetRows
from cdr.sftp import Remote, RemoteError, parse_target
from cdr.wire import Link
from policy.stamp import parse_stamp
from sipproxy.commands.accesses import recorded
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import USAGE, CommandError, many
from sipproxy.config import load

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from cdr.exporting import Send
    from cdr.files import Rows
    from sipproxy.commands.output import Output
    from sipproxy.config import Config

__all__ = ["GROUP", "Sftp", "export", "period_of"]

GROUP = "export"
PROGRESS_S = 2.0
LAST_MS = 2**52


class Sftp(NamedTuple):
    """Where files go besides the folder; `url` "" for nowhere."""

    url: str = ""
    keys: tuple[str, ...] = ()
    known_hosts: str = ""


def export(
    path: Path,
    output: Output,
    folder: Path,
    *,
    form: str,
    profile: str,
    start: str,
    end: str,
    group: str,
    rows_per_file: int,
    sftp: Sftp,
) -> int:
    """Write files and tell what was written."""
    config = load(path)
    period = period_of(start, end)
    if period is not None and group:
        raise CommandError("--group goes on where the group stands, --from and --to read a period again: use one", code=USAGE)
    form = form or ("csv" if profile == "german-csv" else "jsonl")
    rows = _rows(form, profile)
    progress = _Progress(quiet=output.as_json)
    place = str(folder.resolve())

    async def work(client: Redis) -> Totals:
        async with AsyncExitStack() as stack:
            try:
                opened = stack.enter_context(Folder(folder, node=config.node.id))
                send = await _sender(stack, sftp, folder)
                what = f"{start or '...'} to {end or '...'}" if period is not None else f"group {group or GROUP}"
                seen = await stack.enter_async_context(
                    recorded(client, config.cdr.stream, "cdr export", f"{what}, {profile} {form} to {folder}")
                )
                await _remember(client, config, place)
                exporter = Exporter(
                    client,
                    opened,
                    rows,
                    stream=config.cdr.stream,
                    profile=profile,
                    rows_per_file=rows_per_file,
                    send=send,
                    on_progress=progress.tell,
                )
                try:
                    if period is not None:
                        return await exporter.of_period(period)
                    progress.expected = await _waiting(client, config.cdr.stream, group or GROUP)
                    return await _by_group(client, config, exporter, group or GROUP, place)
                finally:
                    seen.records = exporter.totals.records
            except (FolderError, RemoteError, ExportError) as error:
                raise CommandError(str(error)) from None

    totals = with_store(config, work)
    progress.end()
    output.value(totals.__dict__)
    output.line(
        f"{many(totals.records, 'record')} in {many(totals.files, 'file')} ({many(totals.bytes, 'byte')}) in {folder}"
        + (f"; {many(totals.finished, 'file')} of an earlier export finished" if totals.finished else "")
        + (f"; {many(totals.rejected, 'record')} could not be written" if totals.rejected else "")
    )
    return 1 if totals.rejected else 0


def period_of(start: str, end: str) -> Period | None:
    """The period between two times as operators write them; None when neither is given."""
    stamps = []
    for option, text, default in (("--from", start, 0), ("--to", end, LAST_MS)):
        stamp = parse_stamp(text) if text else default
        if stamp is None:
            raise CommandError(f"{option}: {text[:40]!r} is no time such as 2026-01-31 or 2026-01-31T08:00", code=USAGE)
        stamps.append(stamp)
    if not start and not end:
        return None
    if stamps[0] >= stamps[1]:
        raise CommandError("--from is not before --to", code=USAGE)
    return Period(stamps[0], stamps[1])


def _rows(form: str, profile: str) -> Rows:
    try:
        if form == "parquet":
            return ParquetRows(profile)
        if form not in FORMS:
            raise ExportError(f"there is no format {form[:40]!r}; known are {', '.join(FORMS)}, parquet")
        return Writer(form, profile)
    except ExportError as error:
        raise CommandError(str(error), code=USAGE) from None


async def _by_group(client: Redis, config: Config, exporter: Exporter, group: str, place: str) -> Totals:
    """The same name each time for the same folder: what it was given and did not acknowledge comes first."""
    name = f"export-{config.node.id}-{hashlib.sha256(place.encode()).hexdigest()[:12]}"
    async with Consumer(client, group=group, stream=config.cdr.stream, name=name, patience_s=30.0) as consumer:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, consumer.stop)
        return await exporter.of_group(consumer)


async def _waiting(client: Redis, stream: str, group: str) -> int:
    """About how many entries the group has not acknowledged; 0 where the store cannot tell."""
    if not await client.exists(stream):
        return 0
    for found in await client.xinfo_groups(stream):
        if found["name"] == group.encode():
            return 0 if found.get("lag") is None else int(found["lag"]) + int(found["pending"])
    return int(await client.xlen(stream))


async def _sender(stack: AsyncExitStack, sftp: Sftp, folder: Path) -> Send | None:
    if not sftp.url:
        return None
    password = os.environ.get("SIPPROXY_SFTP_PASSWORD", "")
    remote = await stack.enter_async_context(
        Remote(parse_target(sftp.url), keys=sftp.keys, known_hosts=sftp.known_hosts, password=password)
    )

    async def send(intent: Intent) -> None:
        checksum = folder / f"{intent.file}.sha256"
        try:
            size, found = checksum.stat().st_size, digest(checksum)
        except OSError as error:
            raise FolderError(f"{checksum}: {error.strerror or error}; it is to be sent before its file") from None
        await remote.send(checksum, size=size, sha256=found)
        await remote.send(folder / intent.file, size=intent.bytes, sha256=intent.sha256)

    return send


async def _remember(client: Redis, config: Config, folder: str) -> None:
    """Retention has to know where files are."""
    link = Link(client, timeout_s=5.0)
    try:
        await know_folder(link.call, config.cdr.stream, folder, config.node.id)
    finally:
        await link.drop()


class _Progress:
    """A line on stderr every two seconds: written over on a terminal, one below the other elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._began = self._next = time.monotonic()
        self._next += PROGRESS_S
        self._shown = False
        self.expected = 0  # entries, about; 0 for not known

    def tell(self, totals: Totals) -> None:
        now = time.monotonic()
        if self._quiet or now < self._next:
            return
        self._next = now + PROGRESS_S
        read = totals.records + totals.skipped + totals.rejected
        rate = read / (now - self._began)
        left = f", about {max(0, self.expected - read)} left" if self.expected else ""
        text = f"{many(totals.records, 'record')}, {many(totals.files, 'file')}, {rate:.0f} a second{left}"
        terminal = sys.stderr.isatty()
        sys.stderr.write(f"\r{text}\x1b[K" if terminal else f"{text}\n")
        sys.stderr.flush()
        self._shown = terminal

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\n")
