"""`sipproxy cdr groups` and `cdr dead ...`: who reads the records, how far each has come, and what nobody could take."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cdr import dead
from cdr.entries import Poison
from cdr.groups import positions
from cdr.wire import Link
from sipproxy.commands.accesses import recorded
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import USAGE, CommandError, Output, many
from sipproxy.config import load

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["drop_letters", "list_groups", "list_letters", "remove_group", "requeue_letters", "show_letter"]

TIMEOUT_S = 10.0
READING_MS = 60_000  # a consumer that was heard within this time is there
LETTER_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}", re.ASCII)  # the store's; it answers any other with an error


def list_groups(path: Path, output: Output) -> int:
    """The consumer groups of the stream: what each has still to read, what it was given and has not acknowledged."""
    stream = load(path).cdr.stream

    async def work(client: Redis) -> list[dict[str, Any]]:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            if not await link.call("EXISTS", stream):
                return []
            first = await positions(link, stream)
            rows = []
            for group in map(_fields, await link.call("XINFO", "GROUPS", stream)):
                name = group["name"]
                consumers = await _consumers(link, stream, name)
                rows.append(
                    {
                        "group": name,
                        "unread": group.get("lag"),
                        "pending": group["pending"],
                        "acknowledged_before": str(first[name]) if name in first else "",
                        "consumers": [{key: one[key] for key in ("name", "pending", "idle")} for one in consumers],
                    }
                )
            return rows
        finally:
            await link.drop()

    rows = with_store(load(path), work)
    output.value(rows)
    columns = ("group", "unread", "pending", "acknowledged_before", "consumers")
    cells = [[*(row[key] for key in columns[:4]), " ".join(_consumer_text(one) for one in row["consumers"])] for row in rows]
    output.table(columns, cells, empty="nobody reads the records yet")
    return 0


def remove_group(path: Path, output: Output, group: str, *, why: str) -> int:
    """Forget a group, so that it holds up the stream no longer; who did so, and why, is written down first.

    Refused where the configuration waits for it, and where somebody reads as it.
    """
    config = load(path)
    stream = config.cdr.stream
    if not why:
        raise CommandError("what the group had not acknowledged is not its any more: say why with --why", code=USAGE)
    if group in config.cdr.sinks:
        raise CommandError(f"{group!r} stands in cdr.sinks: take it out there first, or the journal waits for it for ever")

    async def work(client: Redis) -> int:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            known = map(_fields, await link.call("XINFO", "GROUPS", stream) if await link.call("EXISTS", stream) else [])
            found = next((one for one in known if one["name"] == group), None)
            if found is None:
                raise CommandError(f"there is no group {group[:80]!r}; `sipproxy cdr groups` lists them")
            reading = [one["name"] for one in await _consumers(link, stream, group) if one["idle"] < READING_MS]
            if reading:
                raise CommandError(f"{reading[0]} reads as {group!r}: stop it, and wait {READING_MS // 1000} s")
            async with recorded(client, stream, "cdr groups", f"remove {group}: {why}") as seen:
                seen.records = found["pending"]
                await link.call("XGROUP", "DESTROY", stream, group)
            return int(found["pending"])
        finally:
            await link.drop()

    pending = with_store(config, work)
    output.value({"removed": group, "pending": pending, "why": why})
    output.line(f"{group} is removed, with {many(pending, 'record')} that it was given and had not acknowledged")
    return 0


def list_letters(path: Path, output: Output, *, count: int) -> int:
    """The dead letters, the oldest first."""
    found = _letters(path, count=count, shown="cdr dead list")
    output.value([_row(letter) for letter in found])
    columns = ("letter", "at", "group", "record", "deliveries", "reason")
    output.table(columns, ([_row(letter)[key] for key in columns] for letter in found), empty="no dead letters")
    return 0


def show_letter(path: Path, output: Output, letter_id: str) -> int:
    """Everything that one letter holds."""
    found = []
    if LETTER_ID.fullmatch(letter_id):
        found = [one for one in _letters(path, count=1, start=letter_id, shown="cdr dead show") if one.id == letter_id]
    if not found:
        raise CommandError(f"there is no dead letter {letter_id[:80]!r}; `sipproxy cdr dead list` names them")
    (letter,) = found
    content = letter.content
    record = None if isinstance(content, Poison) else msgspec.to_builtins(content)
    entry = {name.decode("utf-8", "backslashreplace"): _hex(value) for name, value in letter.fields.items()}
    value = {**_row(letter), "entry": letter.entry_id, "fields": entry, "content": record}
    output.value(value)
    for name, part in value.items():
        output.line(f"{name}: {part!r}" if isinstance(part, str) and not part.isprintable() else f"{name}: {part}")
    return 0


def requeue_letters(path: Path, output: Output, letter_ids: list[str], *, everything: bool) -> int:
    """Give letters to their groups again."""
    if bool(letter_ids) == everything:
        raise CommandError("name the letters, or say --all", code=USAGE)
    config = load(path)

    async def work(client: Redis) -> tuple[int, list[str]]:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            ids = [one.id async for one in dead.letters(link.call, config.cdr.stream)] if everything else letter_ids
            done, faults = 0, []
            for letter_id in ids:
                known = LETTER_ID.fullmatch(letter_id)
                result = await dead.requeue(link.call, config.cdr.stream, letter_id) if known else 0
                done += result > 0
                if result <= 0:
                    faults.append(f"{letter_id[:80]}: {'no such letter' if result == 0 else 'it holds nothing to give out'}")
            return done, faults
        finally:
            await link.drop()

    done, faults = with_store(config, work)
    if faults:
        raise CommandError(f"{done} requeued; " + "; ".join(faults[:10]), faults=[{"detail": fault} for fault in faults])
    output.value({"requeued": done})
    output.line(f"{done} letters go to their groups again")
    return 0


def drop_letters(path: Path, output: Output, letter_ids: list[str], *, why: str) -> int:
    """Delete letters for good; each with its record and the reason is written down first, where `cdr access` shows it."""
    if not why:
        raise CommandError("a dropped record is never billed: say why with --why", code=USAGE)
    config = load(path)
    letters = {letter.id: letter for letter in _letters(path)}
    unknown = [letter_id for letter_id in letter_ids if letter_id not in letters]
    if unknown:
        raise CommandError(f"there is no dead letter {unknown[0][:80]!r}; nothing was dropped")

    async def work(client: Redis) -> None:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            for letter_id in letter_ids:
                row = _row(letters[letter_id])
                what = f"{letter_id}, record {row['record'] or '-'} of group {row['group']}: {why}"
                async with recorded(client, config.cdr.stream, "cdr dead drop", what) as seen:
                    seen.records = int(await dead.drop(link.call, config.cdr.stream, letter_id))
        finally:
            await link.drop()

    with_store(config, work)
    rows = [_row(letters[letter_id]) for letter_id in letter_ids]
    output.value({"dropped": rows, "why": why})
    for row in rows:
        output.line(f"{row['letter']}: dropped record {row['record'] or '-'} of group {row['group']}: {why}")
    return 0


def _letters(path: Path, *, count: int = 0, start: str = "-", shown: str = "") -> list[dead.Letter]:
    """`shown` is the command that shows them to a person, which is written down first."""
    config = load(path)

    async def work(client: Redis) -> list[dead.Letter]:
        if not shown:
            return await read(client)
        async with recorded(client, config.cdr.stream, shown, f"{count} from {start}") as seen:
            found = await read(client)
            seen.records = len(found)
            return found

    async def read(client: Redis) -> list[dead.Letter]:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            return [letter async for letter in dead.letters(link.call, config.cdr.stream, start=start, count=count)]
        finally:
            await link.drop()

    return with_store(config, work)


def _row(letter: dead.Letter) -> dict[str, Any]:
    content = letter.content
    at = dt.datetime.fromtimestamp(letter.at_ms / 1000, dt.UTC)
    return {
        "letter": letter.id,
        "at": at.isoformat(timespec="seconds"),
        "group": letter.group,
        "record": "" if isinstance(content, Poison) else content.id,
        "deliveries": letter.deliveries,
        "reason": letter.reason,
    }


def _hex(value: bytes) -> str:
    text = value.decode("utf-8", "replace")
    return text if text.isprintable() and "\ufffd" not in text else value.hex()


async def _consumers(link: Link, stream: str, group: str) -> list[dict[str, Any]]:
    return [_fields(found) for found in await link.call("XINFO", "CONSUMERS", stream, group)]


def _fields(found: Any) -> dict[str, Any]:
    """What XINFO tells of one thing: a map, or names and values in turn."""
    items = found.items() if isinstance(found, dict) else zip(found[::2], found[1::2], strict=True)
    return {key.decode(): value.decode("utf-8", "replace") if isinstance(value, bytes) else value for key, value in items}


def _consumer_text(consumer: dict[str, Any]) -> str:
    return f"{consumer['name']} ({consumer['pending']} pending, idle {consumer['idle'] / 1000:.0f} s)"
