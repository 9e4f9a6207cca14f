"""Commands on block rules and on the history of all policy data: list, add, remove, export, history, rollback."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy import diff, history, profiles, store
from policy.change import Change
from policy.export import block_cells, write_blocks, write_public
from policy.parse_rules import BLOCK_COLUMNS, read_blocks
from policy.stamp import write_stamp
from policy.table import Fault, PolicyError
from sipproxy.commands.backend import with_store
from sipproxy.commands.changing import change_data, export_text, submit, tell
from sipproxy.commands.output import REFUSED, CommandError, Output
from sipproxy.commands.policy_data import load_snapshot
from sipproxy.config import load

if TYPE_CHECKING:
    from policy.history import Entry
    from policy.model import BlockRule, Snapshot

__all__ = ["add", "export", "list_rules", "remove", "rollback", "show_history"]

_SHOWN = ("id", "kind", "value", "action", "direction", "level", "reason", "profile", "line", "valid_until")


def list_rules(path: Path, output: Output) -> int:
    """All block rules."""
    rows = [block_cells(rule) for rule in load_snapshot(path).blocks]
    output.value(rows)
    empty = "no block rules of an operator; what a profile blocks holds all the same"
    output.table(_SHOWN, ([row[name] for name in _SHOWN] for row in rows), empty=empty)
    return 0


def add(path: Path, output: Output, cells: Mapping[str, str], *, why: str, dry_run: bool) -> int:
    """Add one rule, given as the cells of a block file; without an id it gets one from its value."""

    def make(snapshot: Snapshot) -> Change:
        known = {rule.id for rule in snapshot.blocks}
        if cells.get("id") in known:
            raise CommandError(f"rule {cells['id']} is there already; take another id, or remove it first")
        rule = _rule({**cells, "id": cells.get("id") or _new_id(cells, known)})
        return Change(blocks=(rule,))

    reason = why or cells.get("reason", "")
    return change_data(path, output, make, why=reason, dry_run=dry_run, done=f"rule for {cells['value'][:80]}")


def _rule(cells: Mapping[str, str]) -> BlockRule:
    """The rule that a file with these cells would hold. Raises PolicyError with the cells' names."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, BLOCK_COLUMNS, restval="")
    writer.writeheader()
    writer.writerow(dict(cells))
    try:
        return read_blocks(text.getvalue(), file="the options", profiles=profiles.load())[0]
    except PolicyError as error:
        where = f"rule {cells['id'][:80]}"
        raise PolicyError(tuple(Fault(where, 0, fault.column, fault.reason) for fault in error.faults)) from None


def _new_id(cells: Mapping[str, str], known: set[str]) -> str:
    """An id that says what the rule is about: "block-43900", "allow-11869-V1001"."""
    words = (cells.get("action") or "block", cells["value"], cells.get("line", "") or cells.get("profile", ""))
    name = "-".join(filter(None, ("".join(c for c in word if c.isascii() and (c.isalnum() or c in "._-")) for word in words)))
    found, number = name[:56], 2
    while found in known:
        found, number = f"{name[:56]}-{number}", number + 1
    return found


def remove(path: Path, output: Output, rules: Sequence[str], *, why: str, dry_run: bool) -> int:
    """Take rules away."""

    def make(snapshot: Snapshot) -> Change:
        known = {rule.id for rule in snapshot.blocks}
        unknown = [rule[:80] for rule in rules if rule not in known]
        if unknown:
            raise CommandError(f"there is no rule {', '.join(unknown)}; nothing was removed")
        return Change(remove_blocks=tuple(dict.fromkeys(rules)))

    done = f"removed {len(set(rules))} rules"
    return change_data(path, output, make, why=why or f"removal of {', '.join(rules)}", dry_run=dry_run, done=done)


def export(path: Path, output: Output, *, public: bool, form: str, file: Path | None) -> int:
    """Rules as a file that `block import` takes, or the list that customers may see."""

    def make(snapshot: Snapshot) -> str:
        if public:
            return write_public(snapshot.blocks, time.time_ns() // 1_000_000, form=form)
        return write_blocks(snapshot.blocks, form=form)

    return export_text(path, output, file, make)


def show_history(path: Path, output: Output, *, count: int, everything: bool, details: bool) -> int:
    """The newest changes, and whether the log's chain of hashes is whole; 1 when it is not."""
    entries = with_store(load(path), store.log_of)
    broken = history.broken_links(entries)
    wanted = [entry for entry in entries if everything or entry.sides is None or "blocks" in entry.counts]
    shown = wanted[max(0, len(wanted) - count) :]
    rows = [_entry_row(entry, details=details) for entry in shown]
    if broken:
        faults = [{"file": "sp:policy:log", "line": 0, "key": "previous", "detail": text} for text in broken]
        output.line("\n".join(_entry_words(row) for row in rows))
        raise CommandError(
            "\n".join(f"the log is not what was written: {text}" for text in broken), code=REFUSED, faults=faults
        )
    since = entries[0].version if entries else 0
    output.value({"entries": rows, "chain": "whole", "since": since})
    for row in rows:
        output.line(_entry_words(row))
        for change in row.get("changes", ()):
            output.line(f"    {diff.words_of(change)}")
    if not rows:
        output.line("no changes")
    if since > 1:
        output.line(f"entries before version {since} have been trimmed")
    return 0


def _entry_row(entry: Entry, *, details: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "version": entry.version,
        "when": write_stamp(entry.when_ms),
        "who": entry.who,
        "why": entry.why,
        "counts": entry.counts,
        "hash": history.entry_hash(entry.fields),
    }
    if details and entry.sides is not None:
        row["changes"] = diff.differences(*entry.sides)
    return row


def _entry_words(row: Mapping[str, Any]) -> str:
    counts = "; ".join(
        f"{name} " + ", ".join(f"{count} {word}" for word, count in words.items()) for name, words in row["counts"].items()
    )
    return f"{row['version']:>6}  {row['when']}  {row['who']}  {counts or 'not readable'}  {row['why']}"


def rollback(path: Path, output: Output, version: int, *, everything: bool, why: str, dry_run: bool) -> int:
    """Make the rules, or all policy data, what they were at a version; refused when that cannot be done exactly."""
    config = load(path)
    entries = with_store(config, lambda client: store.log_of(client, after=version))

    def make(snapshot: Snapshot) -> Change:
        return history.return_to(version, entries, snapshot, everything=everything)

    outcome = submit(config, make, why=why or f"rollback to version {version}", dry_run=dry_run)
    what = "all policy data" if everything else "the block rules"
    return tell(output, outcome, f"{what} as at version {version}", dry_run=dry_run)
