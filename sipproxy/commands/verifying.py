"""`sipproxy cdr verify`: journal, stream and exports against each other, for people and for cron."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cdr import export
from cdr.entries import ADDRESSEE, Poison, entry_of, pairs
from cdr.purging import purged
from cdr.stream import mark_key
from cdr.verify import Finding, Held, Holding, Result, read_journal, verify
from cdr.wire import Link
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import USAGE, CommandError, Output
from sipproxy.config import Config, load

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["run"]

PAGE = 500
PIECE = 1 << 20
TIMEOUT_S = 10.0


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
    holdings = [_read_export(files, since)] if files else []
    if journal:
        try:
            holdings.append(read_journal(Path(config.node.data_dir) / "journal"))
        except OSError as error:
            raise CommandError(f"journal of {config.node.data_dir}: {error.strerror or error}", code=USAGE) from None
    try:
        holdings.append(with_store(config, lambda client: _read_stream(client, config, holdings)))
    except CommandError as error:
        raise CommandError(str(error), code=USAGE) from None
    if ids is not None:
        holdings.append(_read_ids(ids, holdings, since))
    result = verify(holdings, since)
    _tell(output, result, holdings)
    if state is not None and result.status == 0:
        _write_state(state, {**since, **result.proven})
    return result.status


def _read_export(files: Sequence[Path], since: dict[str, int]) -> Holding:
    """Files of `cdr pull` or `cdr export` in the native profile, together."""
    holding = Holding("export", reader=True)
    for file in files:
        try:
            with file.open("rb") as data:
                for record in export.read(iter(lambda: data.read(PIECE), b""), _form_of(file)):
                    holding.add(record)
        except OSError as error:
            raise CommandError(f"{file}: {error.strerror or error}", code=USAGE) from None
        except export.ExportError as error:
            raise CommandError(f"{file}: {error}", code=USAGE) from None
    holding.floor.update(since)
    holding.lowest()
    return holding


def _form_of(file: Path) -> str:
    form = file.suffix.lower().lstrip(".")
    if form not in export.FORMS:
        raise CommandError(f"{file}: the name must end in one of {', '.join(export.FORMS)}", code=USAGE)
    return form


def _read_ids(file: Path, holdings: Sequence[Holding], since: dict[str, int]) -> Holding:
    """Ids, one a line, as a reader's database has them. Their numbers come from the other places."""
    holding = Holding("ids", reader=True)
    places = {
        held.id: (node, seq, held) for one in holdings for node, known in one.nodes.items() for seq, held in known.items()
    }
    try:
        lines = file.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{file}: {error}", code=USAGE) from None
    for line in lines:
        if line in places:
            node, seq, held = places[line]
            holding.put(node, seq, Held(line, b"", held.at_ms))
    holding.floor.update(since)
    holding.lowest()
    return holding


async def _read_stream(client: Redis, config: Config, holdings: Sequence[Holding]) -> Holding:
    """The final records of the stream. Where entries were trimmed, it need not be whole below its lowest number."""
    stream = config.cdr.stream
    holding = Holding("stream")
    link = Link(client, timeout_s=TIMEOUT_S)
    try:
        # The marks first: a record that is published meanwhile is above them, and its number is no gap.
        marks = {node: int(await link.call("HGET", mark_key(stream, node), "seq") or 0) for node in _nodes_of(holdings)}
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
            known = holding.nodes.get(node, {})
            holding.floor[node] = (min(known) - 1 if known else mark) if trimmed else 0
            holding.top[node] = max(mark, *known, 0)
            holding.gone[node] = await purged(link, stream, node, holding.floor[node] + 1, holding.top[node])
    finally:
        await link.drop()
    return holding


def _nodes_of(holdings: Sequence[Holding]) -> set[str]:
    return {node for holding in holdings for node in (*holding.nodes, *holding.top)}


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
        yield f"{place}{there} {finding.where}: {finding.detail}{between}"
    for node, number in result.unknown.items():
        yield f"{node}: cannot be known below {number}"
    for where, node, count in result.behind:
        yield f"{node}: {where} is {count} records behind"


def _at(at_ms: int | None) -> str:
    return "-" if at_ms is None else dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).isoformat(timespec="seconds")


def _begin(text: str) -> tuple[str, int]:
    """NODE=SEQ: what was before that number is not asked for."""
    node, _, number = text.rpartition("=")
    if not (node and number.isascii() and number.isdigit() and int(number) > 0):
        raise CommandError(f"--since {text[:80]!r}: expected NODE=NUMBER, such as node1=5000", code=USAGE)
    return node, int(number) - 1


def _read_state(file: Path | None) -> dict[str, int]:
    """What an earlier run proved, by node."""
    if file is None or not file.exists():
        return {}
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, int])
    except (OSError, msgspec.MsgspecError) as error:
        raise CommandError(f"{file}: no state of an earlier run: {error}", code=USAGE) from None


def _write_state(file: Path, proven: dict[str, Any]) -> None:
    aside = file.with_name(f".{file.name}.part")
    try:
        with aside.open("w", encoding="utf-8") as out:
            json.dump(proven, out)
            out.flush()
            os.fsync(out.fileno())
        aside.rename(file)
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror or error}", code=USAGE) from None
