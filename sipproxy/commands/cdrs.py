"""`sipproxy cdr tail`: the newest call detail records, as a table, and as they come."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from cdr import tailing
from cdr.entries import Poison
from sipproxy.commands.accesses import recorded
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import stamp
from sipproxy.config import load

if TYPE_CHECKING:
    from pathlib import Path

    from redis.asyncio import Redis

    from cdr.facts import Record
    from sipproxy.commands.output import Output

__all__ = ["tail"]

COLUMNS = ("setup", "direction", "line", "calling", "dialled", "verdict", "rule", "status", "end", "talked")
# Widths of rows that are printed as they come, when no table can know them.
WIDTHS = (19, 9, 12, 16, 24, 9, 24, 6, 15, 9)


def tail(path: Path, output: Output, *, count: int, follow: bool) -> int:
    """Print the last `count` records; with `follow` each further one until interrupted."""
    config = load(path)

    async def work(client: Redis) -> list[Record | Poison]:
        kept: list[Record | Poison] = []
        if follow and not output.as_json:
            output.line(_aligned(COLUMNS))
        what = f"last {count}{', following' if follow else ''}"
        async with recorded(client, config.cdr.stream, "cdr tail", what) as seen:
            async for item in tailing.tail(client, config.cdr.stream, last=count, follow=follow):
                seen.records += 1
                if output.as_json:
                    output.value(_plain(item))
                elif follow:
                    output.line(_aligned(_cells(item)))
                else:
                    kept.append(item)
        return kept

    items = with_store(config, work)
    if not follow:
        output.table(COLUMNS, map(_cells, items), empty="no call detail records")
    return 0


def _plain(item: Record | Poison) -> dict[str, Any]:
    """The whole record, fields of a newer schema included."""
    if isinstance(item, Poison):
        return {"undecodable": item.entry_id, "reason": item.reason}
    plain: dict[str, Any] = json.loads(msgspec.json.encode(item))
    return {**plain.pop("unknown", {}), **plain}


def _cells(item: Record | Poison) -> tuple[str, ...]:
    if isinstance(item, Poison):
        return ("-", "-", "-", "-", "-", "-", f"undecodable entry {item.entry_id}: {item.reason}", "-", "-", "-")
    talked = f"{item.billable_ms / 1000:.1f} s" if item.answer_at_ms is not None else "-"
    return (
        stamp(item.setup_at_ms),
        item.direction,
        item.line or item.callee_line or "-",
        item.calling or item.presented or "-",
        item.canonical if item.canonical not in ("", "-") else item.dialled or "-",
        item.verdict,
        item.rule,
        str(item.status),
        item.end_reason if item.type == "final" else f"({item.type})",
        talked if item.duration_certain else f">= {talked}",
    )


def _aligned(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()
