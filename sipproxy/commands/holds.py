"""`sipproxy cdr hold`, `cdr held` and `cdr release`: records that a purge leaves while an objection to an invoice runs."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import msgspec

from cdr.purging import Held, held_records, holds, place_hold, records_of, release_hold
from cdr.retention import Hold
from cdr.wire import Link
from policy import store as policy_store
from sipproxy.commands.accesses import recorded
from sipproxy.commands.backend import with_store
from sipproxy.commands.exports import period_of
from sipproxy.commands.output import USAGE, CommandError, many, stamp
from sipproxy.commands.purge import rules_of
from sipproxy.config import load

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from sipproxy.commands.output import Output

__all__ = ["held", "hold", "release"]

TIMEOUT_S = 30.0


def hold(path: Path, output: Output, line: str, *, start: str, end: str, reason: str) -> int:
    """Place a hold; without a line list those that there are."""
    config = load(path)
    stream = config.cdr.stream
    new = _new(line, start, end, reason) if line or start or end or reason else None

    async def work(client: Redis) -> tuple[str, int, dict[str, Hold]]:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            if new is None:
                return "", 0, await holds(link, stream)
            async with recorded(client, stream, "cdr hold", f"{line} {start} to {end}: {reason}") as seen:
                if not await client.hexists(policy_store.TABLES["lines"], line) and not await records_of(link, stream, new):
                    raise CommandError(f"there is no line {line[:40]!r} and no record of it in that time: nothing is on hold")
                name = secrets.token_hex(4)
                await place_hold(link, stream, name, new)
                seen.records = await records_of(link, stream, new)
                return name, seen.records, {name: new}
        finally:
            await link.drop()

    name, records, found = with_store(config, work)
    rows = [{"hold": key, **one._asdict()} for key, one in found.items()]
    output.value({**rows[0], "records": records} if name else rows)
    if name:
        output.line(f"{name}: {many(records, 'record')} of {line} kept until `sipproxy cdr release {name}`")
        return 0
    cells = (
        (key, one.line, stamp(one.from_ms), stamp(one.to_ms), one.reason, stamp(one.placed_ms)) for key, one in found.items()
    )
    output.table(("hold", "line", "from", "to", "reason", "placed"), cells, empty="no records are on hold")
    return 0


def held(path: Path, output: Output, line: str) -> int:
    """The records that are kept apart, or will be by the next purge; with `line` those of one line."""
    config = load(path)
    stream = config.cdr.stream

    async def work(client: Redis) -> list[Held]:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            async with recorded(client, stream, "cdr held", line) as seen:
                rules = await rules_of(client, link, config)
                found = [one async for one in held_records(link, stream, rules) if not line or one.record.line == line]
                seen.records = len(found)
                return found
        finally:
            await link.drop()

    found = with_store(config, work)
    output.value([{**one._asdict(), "record": msgspec.to_builtins(one.record)} for one in found])
    columns = ("place", "reason", "goes", "id", "line", "calling", "dialled", "setup", "talked")
    output.table(columns, map(_cells, found), empty="no records are kept apart")
    return 0


def _cells(one: Held) -> tuple[object, ...]:
    record = one.record
    goes = stamp(one.due_at_ms) if one.due_at_ms is not None else "not yet known"
    talked = f"{record.billable_ms / 1000:.1f} s"
    called = record.canonical if record.canonical not in ("", "-") else record.dialled
    return (one.place, one.reason, goes, record.id, record.line, record.calling, called, stamp(record.setup_at_ms), talked)


def release(path: Path, output: Output, name: str, *, reason: str) -> int:
    """Let the records of a hold go at their ordinary time."""
    if not reason.strip():
        raise CommandError("--reason is needed: say how the objection was settled", code=USAGE)
    config = load(path)

    async def work(client: Redis) -> bool:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            async with recorded(client, config.cdr.stream, "cdr release", f"{name[:40]}: {reason}"):
                return await release_hold(link, config.cdr.stream, name)
        finally:
            await link.drop()

    if not with_store(config, work):
        raise CommandError(f"there is no hold {name[:40]!r}; `sipproxy cdr hold` lists them")
    output.value({"released": name})
    output.line(f"{name} is released: the next purge treats its records like others")
    return 0


def _new(line: str, start: str, end: str, reason: str) -> Hold:
    period = period_of(start, end) if start and end else None
    if not line or period is None or not reason.strip():
        raise CommandError("a hold needs the line, --from, --to and --reason", code=USAGE)
    return Hold(line, period.start_ms, period.end_ms, reason[:200], time.time_ns() // 1_000_000)
