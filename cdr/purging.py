"""Taking away what may not be kept any longer, and proving it: place by place, by reason, count and span of time.

Places: the stream of records, what was set apart for fraud or an objection, dead letters, export files, and the log of who
looked. Each step is one command or script and may be repeated; a purge that is cut off is simply run again. Before a record
goes its figures are counted (`stats`), and its number is noted, so that `verify` does not take it for lost. An entry that a
consumer group has not acknowledged stays, unless told otherwise, and is reported. Afterwards every place is looked at again:
what is left is what the report calls `left`, with the reason.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cdr import access, dead, exporting, files, rewriting, steps
from cdr.entries import Poison, entry_of, pairs
from cdr.export import ExportError
from cdr.groups import entry_id, positions
from cdr.place import beside
from cdr.retention import Hold, Invoice, Rules, due_at
from cdr.stats import roll_up
from cdr.stream import marked_nodes
from cdr.wire import Script

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cdr.entries import Fields
    from cdr.facts import Record
    from cdr.groups import EntryId
    from cdr.retention import Reason
    from cdr.wire import Link

__all__ = [
    "Held",
    "Purge",
    "Report",
    "Tally",
    "held_records",
    "holds",
    "invoices",
    "journals_elsewhere",
    "mark_invoiced",
    "place_hold",
    "purged",
    "records_of",
    "release_hold",
]

PAGE = 500
APART = ("fraud", "objection")  # what is set apart, out of the stream

NUMBERS = 65536  # of one node, in one key of the numbers that are gone: 8 KiB
NUMBERS_S = 400 * 86_400  # that these are kept: longer than anything that stands around them

# Take entries away. ARGV: an id behind "-", or behind "+" for one that is set apart first; then which of KEYS[3..] notes the
# record's number (0 for none), and which bit. Returns how many went.
_TAKE = Script(
    """
local gone = 0
for i = 1, #ARGV, 3 do
  local id = string.sub(ARGV[i], 2)
  if ARGV[i + 1] ~= '0' then
    redis.call('SETBIT', KEYS[2 + ARGV[i + 1]], ARGV[i + 2], 1)
    redis.call('EXPIRE', KEYS[2 + ARGV[i + 1]], """
    + str(NUMBERS_S)
    + """)
  end
  if string.sub(ARGV[i], 1, 1) == '+' then
    local found = redis.call('XRANGE', KEYS[1], id, id)
    if #found > 0 then
      redis.call('XADD', KEYS[2], '*', unpack(found[1][2]))
    end
  end
  gone = gone + redis.call('XDEL', KEYS[1], id)
end
return gone
"""
)


@dataclass
class Tally:
    """So many, from and to when (ends of calls, UTC ms; 0 where nothing is known)."""

    count: int = 0
    first_ms: int = 0
    last_ms: int = 0

    def add(self, at_ms: int) -> None:
        self.first_ms = min(self.first_ms, at_ms) if self.count else at_ms
        self.last_ms = max(self.last_ms, at_ms)
        self.count += 1


@dataclass
class Report:
    """By place and reason: what went (or would go), and what is overdue and still there."""

    gone: dict[tuple[str, str], Tally] = field(default_factory=dict)
    left: dict[tuple[str, str], Tally] = field(default_factory=dict)
    counted: int = 0  # records whose figures were counted
    oldest_ms: int | None = None  # end of the oldest record that the stream still has: as far back as `block replay` sees
    not_invoiced: Tally = field(default_factory=Tally)  # billed calls that no invoice was told of
    on_hold: Tally = field(default_factory=Tally)  # records that stay because an objection runs
    journals: dict[str, int | None] = field(default_factory=dict)  # of nodes that were not looked at -> when one was, UTC ms

    def note(self, table: dict[tuple[str, str], Tally], place: str, reason: str, at_ms: int) -> None:
        table.setdefault((place, reason), Tally()).add(at_ms)


async def mark_invoiced(link: Link, stream: str, invoice: Invoice) -> None:
    """Note that an invoice was sent. Saying it again with another date replaces it."""
    await link.call("HSET", beside(stream, "invoices"), str(invoice.until_ms), str(invoice.sent_ms))


def _numbers(stream: str, node: str, seq: int) -> str:
    return beside(stream, f"purged:{node}:{seq // NUMBERS}")


async def purged(link: Link, stream: str, node: str, first: int, last: int) -> set[int]:
    """Which numbers from `first` to `last` of a node's records a purge has taken out of the stream. Raises as `Link.call`."""
    found: set[int] = set()
    for start in range(first // NUMBERS * NUMBERS, last + 1, NUMBERS):
        bits = await link.call("GET", _numbers(stream, node, start)) or b""
        found |= {start + 8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte & 128 >> bit}
    return {seq for seq in found if first <= seq <= last}


async def journals_elsewhere(
    link: Link, stream: str, *, looked_at: str, now_ms: int, dry_run: bool = False
) -> dict[str, int | None]:
    """The nodes whose journals this run has not seen, with when a purge last did, None for never. `looked_at` is the node whose
    journal it has seen, which is noted; "" for none. A journal is purged on the machine that has it."""
    key = beside(stream, "journals")
    if looked_at and not dry_run:
        await link.call("HSET", key, looked_at, str(now_ms))
    reply = await link.call("HGETALL", key)
    found = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    seen = {node.decode("utf-8", "replace"): int(at_ms) for node, at_ms in found}
    return {node: seen.get(node) for node in sorted((await marked_nodes(link, stream)) | seen.keys()) if node != looked_at}


async def invoices(link: Link, stream: str) -> list[Invoice]:
    """What was noted, in order."""
    reply = await link.call("HGETALL", beside(stream, "invoices"))
    found = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return sorted(Invoice(int(until), int(sent)) for until, sent in found)


async def place_hold(link: Link, stream: str, name: str, hold: Hold) -> None:
    """Have purges leave the records of a line and a span, under a name by which the hold is released."""
    await link.call("HSET", beside(stream, "holds"), name, msgspec.msgpack.encode(hold))


async def release_hold(link: Link, stream: str, name: str) -> bool:
    """Whether there was such a hold. Its records then go at their ordinary time."""
    return bool(await link.call("HDEL", beside(stream, "holds"), name))


async def holds(link: Link, stream: str) -> dict[str, Hold]:
    """The holds by name. Raises msgspec.MsgspecError for one that cannot be read: nothing may be purged without it."""
    reply = await link.call("HGETALL", beside(stream, "holds"))
    found = reply.items() if isinstance(reply, dict) else zip(reply[::2], reply[1::2], strict=True)
    return {name.decode(): msgspec.msgpack.decode(data, type=Hold) for name, data in sorted(found)}


class Held(NamedTuple):
    """A record that is kept apart, or will be at the next purge, which is when `place` is "stream". `due_at_ms` is when it has
    to be gone, UTC ms; None while that is not known."""

    record: Record
    place: str
    reason: Reason
    due_at_ms: int | None


async def held_records(link: Link, stream: str, rules: Rules) -> AsyncIterator[Held]:
    """Those set apart, and those in the stream that holds or fraud are about. Raises as `Link.call`."""
    for place, key in (("held", beside(stream, "held")), ("stream", stream)):
        start = "-"
        while page := pairs(await link.call("XRANGE", key, start, "+", "COUNT", PAGE)):
            for name, fields in page:
                item = entry_of(name, fields)
                if isinstance(item, Poison):
                    continue  # a purge reports it
                reason, due = due_at(item, rules)
                if place == "held" or reason in APART:
                    yield Held(item, place, reason, due)
            start = "(" + page[-1][0].decode("ascii")


async def records_of(link: Link, stream: str, hold: Hold) -> int:
    """How many final records a hold is about, in the stream and among those set apart."""
    rules = Rules(0, 0, 0, frozenset(), holds=(hold,))
    return sum([one.reason == "objection" async for one in held_records(link, stream, rules)])


class Purge:
    """One run. `now_ms` is UTC; `dry_run` changes nothing; `unacknowledged` takes what no group has confirmed."""

    def __init__(
        self,
        link: Link,
        stream: str,
        rules: Rules,
        *,
        node: str,
        now_ms: int,
        exports_ms: int,
        access_ms: int,
        dry_run: bool = False,
        unacknowledged: bool = False,
    ) -> None:
        self.report = Report()
        self._link, self._stream, self._rules, self._node = link, stream, rules, node
        self._now_ms, self._exports_ms, self._access_ms = now_ms, exports_ms, access_ms
        self._dry_run, self._unacknowledged = dry_run, unacknowledged

    async def run(self) -> Report:
        """Raises RedisError and OSError: then a part is done, and running it again does the rest."""
        if not self._dry_run:
            self.report.counted = await roll_up(self._link, self._stream)
            steps.at("purge.counted")
        await self._sweep(self._stream, "stream", check=False)
        await self._sweep(beside(self._stream, "held"), "held", check=False)
        await self._letters(check=False)
        await self._exports(check=False)
        await self._accesses()
        if not self._dry_run:
            self.report.oldest_ms, self.report.not_invoiced, self.report.on_hold = None, Tally(), Tally()
            await self._sweep(self._stream, "stream", check=True)
            await self._sweep(beside(self._stream, "held"), "held", check=True)
            await self._letters(check=True)
            await self._exports(check=True)
        return self.report

    # The stream, and what is set apart

    async def _sweep(self, key: str, place: str, *, check: bool) -> None:
        """Go through all entries; with `check` only note what is overdue."""
        floor = await self._floor() if place == "stream" else None
        start = "-"
        while page := pairs(await self._link.call("XRANGE", key, start, "+", "COUNT", PAGE)):
            taken: list[tuple[str, Record | None]] = []
            for name, fields in page:
                record, reason, ended, due = self._due(name, fields)
                self._look(place, reason, ended, due)
                held = reason in APART and place == "stream"
                if not held and (due is None or due > self._now_ms):
                    continue
                if floor is not None and entry_id(name) >= floor:
                    if due is not None and due <= self._now_ms and (check or self._dry_run):
                        self.report.note(self.report.left, place, f"{reason}, not acknowledged by every group", ended)
                elif check:
                    self.report.note(self.report.left, place, reason, ended)
                else:
                    taken.append((("+" if held else "-") + name.decode("ascii"), record))
                    self.report.note(self.report.gone, place, f"{reason}, set apart" if held else reason, ended)
            if taken and not self._dry_run:
                await self._take(key, taken)
                steps.at("purge.taken")
            start = "(" + page[-1][0].decode("ascii")

    async def _take(self, key: str, taken: list[tuple[str, Record | None]]) -> None:
        """Take them away, and note their numbers: `verify` has to tell them from lost ones."""
        keys: list[str] = []
        arguments: list[str | int] = []
        for name, record in taken:
            numbers = "" if record is None or record.seq <= 0 else _numbers(self._stream, record.node, record.seq)
            if numbers and numbers not in keys:
                keys.append(numbers)
            arguments += [name, keys.index(numbers) + 1 if numbers else 0, record.seq % NUMBERS if record and numbers else 0]
        await _TAKE.run(self._link, (key, beside(self._stream, "held"), *keys), *arguments)

    def _due(self, name: bytes, fields: Fields) -> tuple[Record | None, str, int, int | None]:
        """Record, reason, end, when it is due. What cannot be read goes as late as anything that was billed when it came."""
        item = entry_of(name, fields)
        if isinstance(item, Poison):
            came = entry_id(name).ms
            return None, "unreadable", came, came + max(self._rules.unbilled_ms, 31 * 86_400_000 * self._rules.billed_months)
        reason, due = due_at(item, self._rules)
        return item, reason, item.end_at_ms or item.last_seen_at_ms or item.setup_at_ms, due

    def _look(self, place: str, reason: str, ended: int, due: int | None) -> None:
        if reason == "objection":
            self.report.on_hold.add(ended)
        elif due is None:
            self.report.not_invoiced.add(ended)
        if place != "stream":
            return
        if due is None or due > self._now_ms:
            oldest = self.report.oldest_ms
            self.report.oldest_ms = ended if oldest is None else min(oldest, ended)

    async def _floor(self) -> EntryId | None:
        """Entries from here on are not acknowledged by every group; None where that does not matter."""
        if self._unacknowledged:
            return None
        return min((await positions(self._link, self._stream)).values(), default=None)

    # Dead letters

    async def _letters(self, *, check: bool) -> None:
        """A letter was read by nobody, so it is not acknowledged by its group: it stays unless told otherwise."""
        async for letter in dead.letters(self._link.call, self._stream):
            _, reason, ended, due = self._due(letter.entry_id.encode(), letter.fields)
            if due is None or due > self._now_ms:
                continue
            if not self._unacknowledged:
                if check or self._dry_run:
                    self.report.note(self.report.left, "dead letters", f"{reason}, not acknowledged by {letter.group}", ended)
            elif check:
                self.report.note(self.report.left, "dead letters", reason, ended)
            else:
                if not self._dry_run:
                    await dead.drop(self._link.call, self._stream, letter.id)
                self.report.note(self.report.gone, "dead letters", reason, ended)

    # Files and the log of accesses

    async def _exports(self, *, check: bool) -> None:
        """Whole files that billing had its time for, and records whose time is over before that of their file."""
        table = self.report.left if check else self.report.gone
        for name in await exporting.folders(self._link.call, self._stream, self._node):
            folder = Path(name)
            try:
                found = [(one, self._overdue(folder, one)) for one in files.manifest(folder)]
                found = [(one, what) for one, what in found if what.whole or what.records]
                if found and not check and not self._dry_run:
                    self._remove(folder, found)
            except (files.FolderError, ExportError, OSError) as error:
                self.report.note(self.report.left, "export files", f"{str(error)[:200]}", self._now_ms)
                continue
            for intent, what in found:
                if what.whole:
                    self.report.note(table, "export files", f"files in {folder}", intent.last_end_at_ms)
                for reason, ended in what.records:
                    self.report.note(table, "export files", f"{reason}, from files in {folder}", ended)

    def _overdue(self, folder: Path, intent: files.Intent) -> rewriting.Overdue:
        return rewriting.overdue(folder, intent, self._rules, exports_ms=self._exports_ms, now_ms=self._now_ms)

    def _remove(self, folder: Path, found: list[tuple[files.Intent, rewriting.Overdue]]) -> None:
        with files.Folder(folder, node=self._node) as opened:
            for intent, what in found:
                if not what.whole:
                    rewriting.rewrite(opened, intent, self._rules, self._now_ms)
                    continue
                for path in (folder / intent.file, folder / f"{intent.file}.sha256"):
                    with contextlib.suppress(FileNotFoundError):
                        path.unlink()
                steps.at("purge.unlinked")
                opened.note([msgspec.structs.replace(intent, deleted_at_ms=self._now_ms)])

    async def _accesses(self) -> None:
        before = self._now_ms - self._access_ms
        key = beside(self._stream, "access")
        page = pairs(await self._link.call("XRANGE", key, "-", str(max(0, before - 1))))
        for name, _ in page:
            self.report.note(self.report.gone, "accesses", "older than they are kept", entry_id(name).ms)
        if page and not self._dry_run:
            await access.forget(self._link.call, self._stream, before)
