"""`sipproxy cdr verify`: journal, stream and exports against each other, for people and for cron."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cdr.entries import ADDRESSEE, Poison, entry_of, pairs
from cdr.export import ExportError
from cdr.purging import purged
from cdr.rows import read_rows
from cdr.stream import mark_key, marked_nodes
from cdr.verify import Claim, Finding, Held, Holding, Result, read_journal, resolve, verify
from cdr.wire import Link
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import USAGE, CommandError, Output, many
from sipproxy.config import Config, load
from sipproxy.config_file import ConfigError
from sipproxy.crewing import folders

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["run"]

PAGE = 500
TIMEOUT_S = 10.0


@contextlib.contextmanager
def _two_when_it_cannot() -> Iterator[None]:
    """End with 2 whatever keeps the command from its work: for cron that must not look like a gap, which is 1."""
    try:
        yield
    except ConfigError as error:
        raise CommandError(str(error), code=USAGE, faults=[fault._asdict() for fault in error.faults]) from None
    except CommandError as error:
        raise CommandError(str(error), code=USAGE, faults=error.faults) from None


@_two_when_it_cannot()
def run(
    path: Path,
    output: Output,
    files: Sequence[Path],
    *,
    ids: Path | None,
    state: Path | None,
    begins: Sequence[str],
    journal: bool,
) -> int:
    """Tell every gap, double and conflict. 0 fine, 1 something is wrong, 2 it cannot be told."""
    config = load(path)
    since = {**_read_state(state), **dict(map(_begin, begins))}
    readers = {"export": _read_export(files)} if files else {}
    if ids is not None:
        readers["ids"] = Holding("ids", reader=True), _read_ids(ids)
    with_calls = any(claim.call is not None for _, claims in readers.values() for claim in claims)
    places: list[Holding] = []
    if journal:
        for _, folder in folders(config):
            try:
                places.append(read_journal(folder / "journal", with_calls=with_calls))
            except OSError as error:
                raise CommandError(f"{error.filename or folder}: {error.strerror or error}") from None
    sides = [holding for holding, _ in readers.values()]
    known = {node for holding in (*places, *sides) for node in (*holding.nodes, *holding.top)}
    places.append(with_store(config, lambda client: _read_stream(client, config, known, with_calls=with_calls)))
    strangers = {}
    for holding, claims in readers.values():
        strangers[holding.name] = resolve(holding, claims, [*places, *(one for one in sides if one is not holding)])
        holding.floor.update(since)
        holding.lowest()
    holdings = [*sides[: bool(files)], *places, *sides[bool(files) :]]
    result = verify(holdings, since, strangers)
    _tell(output, result, holdings)
    if state is not None and result.status == 0:
        _write_state(state, {**since, **result.proven})
    return result.status


def _read_export(files: Sequence[Path]) -> tuple[Holding, list[Claim]]:
    """Files of `cdr pull` or `cdr export` together, and those of their rows that have no number."""
    holding = Holding("export", reader=True)
    claims = []
    for file in files:
        name = str(file)
        try:
            for row in read_rows(file):
                if row.record is not None:
                    holding.add(row.record, name, row.line)
                elif row.node:
                    holding.put(row.node, row.seq, Held(row.id, b"", 0, name, row.line))
                else:
                    claims.append(Claim(row.id, row.call, name, row.line))
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror or error}") from None
        except ExportError as error:
            raise CommandError(f"{file}: {error}") from None
    return holding, claims


def _read_ids(file: Path) -> list[Claim]:
    """Ids, one a line, as a reader's database has them."""
    try:
        lines = file.read_text("utf-8").split("\n")
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        line = file.read_bytes().count(b"\n", 0, error.start) + 1
        raise CommandError(f"{file}:{line}: not UTF-8") from None
    return [Claim(line.strip(), None, str(file), number) for number, line in enumerate(lines, 1) if line.strip()]


async def _read_stream(client: Redis, config: Config, known: set[str], *, with_calls: bool) -> Holding:
    """The final records of the stream. Where entries were trimmed, it need not be whole below its lowest number. `known` are
    nodes that others know of."""
    stream = config.cdr.stream
    holding = Holding("stream", calls={} if with_calls else None)
    link = Link(client, timeout_s=TIMEOUT_S)
    try:
        # The marks first: a record that is published meanwhile is above them, and its number is no gap.
        nodes = known | await marked_nodes(link, stream)
        marks = {node: int(await link.call("HGET", mark_key(stream, node), "seq") or 0) for node in nodes}
        trimmed = False
        start = "-"
        if await link.call("EXISTS", stream):
            found = await link.call("XINFO", "STREAM", stream)
            about = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=True))
            trimmed = about.get(b"max-deleted-entry-id", b"0-0") != b"0-0" or about.get(b"entries-added") != about[b"length"]
        while page := pairs(await link.call("XRANGE", stream, start, "+", "COUNT", PAGE)):
            for entry_id, fields in page:
                _take(holding, entry_id, fields)
            start = "(" + page[-1][0].decode("ascii")
        for node in holding.nodes:
            marks.setdefault(node, int(await link.call("HGET", mark_key(stream, node), "seq") or 0))
        for node, mark in marks.items():
            there = holding.nodes.get(node, {})
            holding.floor[node] = (min(there) - 1 if there else mark) if trimmed else 0
            holding.top[node] = max(mark, *there, 0)
            holding.gone[node] = await purged(link, stream, node, holding.floor[node] + 1, holding.top[node])
    finally:
        await link.drop()
    return holding


def _take(holding: Holding, entry_id: bytes, fields: dict[bytes, bytes]) -> None:
    if ADDRESSEE in fields:
        return  # The repetition of an entry, for one group.
    item = entry_of(entry_id, fields)
    if isinstance(item, Poison):
        holding.findings.append(Finding("damage", "stream", "", 0, 0, f"entry {item.entry_id}: {item.reason}"))
    else:
        holding.add(item)


def _tell(output: Output, result: Result, holdings: Sequence[Holding]) -> None:
    output.value(
        {
            "status": ("fine", "wrong", "cannot tell")[result.status],
            "findings": [finding._asdict() for finding in result.findings],
            "cannot_be_known_below": result.unknown,
            "proven_to": result.proven,
            "without_record": [{"name": claim.name, "file": claim.file, "line": claim.line} for claim in result.gone],
            "behind": [{"where": where, "node": node, "records": count} for where, node, count in result.behind],
            "records": {holding.name: sum(map(len, holding.nodes.values())) for holding in holdings},
        }
    )
    for line in _lines(result):
        output.line(line)
    counted = ", ".join(f"{sum(map(len, holding.nodes.values()))} in {holding.name}" for holding in holdings)
    if result.status == 0:
        output.line(f"nothing is missing, double or different: {counted}")
    elif not result.proven:
        output.line("there are no records: nothing can be said")


def _lines(result: Result) -> Iterator[str]:
    for finding in result.findings:
        numbers = f"{finding.first} to {finding.last}" if finding.last > finding.first else str(finding.first)
        place = f"{finding.node} {numbers}: " if finding.first else ""
        between = f", calls between {_at(finding.after_ms)} and {_at(finding.before_ms)}" if finding.kind == "gap" else ""
        there = "missing in" if finding.kind == "gap" else f"{finding.kind} in"
        file = f"{finding.file}:{finding.line}: " if finding.file else ""
        yield f"{file}{place}{there} {finding.where}: {finding.detail}{between}"
    for node, number in result.unknown.items():
        yield f"{node}: cannot be known below {number}"
    for claim in result.gone:
        yield f"{claim.file}:{claim.line}: no record {claim.name} is here any more; as many have gone lawfully"
    for where, node, count in result.behind:
        yield f"{node}: {where} is {many(count, 'record')} behind"


def _at(at_ms: int | None) -> str:
    return "-" if at_ms is None else dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).isoformat(timespec="seconds")


def _begin(text: str) -> tuple[str, int]:
    """NODE=SEQ: what was before that number is not asked for."""
    node, _, number = text.rpartition("=")
    if not (node and number.isascii() and number.isdigit() and int(number) > 0):
        raise CommandError(f"--since {text[:80]!r}: expected NODE=NUMBER, such as node1=5000")
    return node, int(number) - 1


def _read_state(file: Path | None) -> dict[str, int]:
    """What an earlier run proved, by node."""
    if file is None or not file.exists():
        return {}
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandError(f"{file}: no state of an earlier run: {error}") from None


def _write_state(file: Path, proven: dict[str, Any]) -> None:
    aside = file.with_name(f".{file.name}.part")
    try:
        with aside.open("w", encoding="utf-8") as out:
            json.dump(proven, out)
            out.flush()
            os.fsync(out.fileno())
        aside.rename(file)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or error}") from None
