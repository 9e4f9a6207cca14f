"""Commands on single lines: set, bar, unbar, remove, export."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import TYPE_CHECKING

from policy import profiles
from policy.change import OUT_BARRED, Change
from policy.export import write_lines
from policy.model import LineStatus
from policy.parse import read_lines
from policy.stamp import parse_stamp, write_stamp
from policy.table import Fault, PolicyError
from sipproxy.commands.changing import change_data, export_text
from sipproxy.commands.output import USAGE, CommandError, Output
from sipproxy.commands.policy_data import find_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.model import Line, Snapshot

__all__ = ["bar", "export", "remove", "set_fields", "unbar"]

_EVERYTHING = "the options"  # what stands for a file in the faults of an option


def _changed(snapshot: Snapshot, line: Line, cells: Mapping[str, str]) -> Line:
    """The line with other cells, read as a file would be. Raises PolicyError with the option's name."""
    rows = list(csv.DictReader(io.StringIO(write_lines(snapshot, [line], form="csv"), newline="")))
    if not rows:
        raise PolicyError((Fault(f"line {line.id}", 0, "", "has no number; import it again"),))
    rows[0].update(cells)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    try:
        return read_lines(text.getvalue(), file=_EVERYTHING, realm="", profiles=profiles.load(), keep_secrets=True).lines[0]
    except PolicyError as error:
        raise PolicyError(tuple(Fault(f"line {line.id}", 0, fault.column, fault.reason) for fault in error.faults)) from None


def set_fields(path: Path, output: Output, line: str, cells: Mapping[str, str], *, why: str, dry_run: bool) -> int:
    """Set what `cells` name, by the columns of a line file."""
    if not cells:
        raise CommandError("say what to set, such as --channels 4; `sipproxy line set --help` lists it", code=USAGE)

    def make(snapshot: Snapshot) -> Change:
        found, _ = find_line(snapshot, line)
        return Change(lines=(_changed(snapshot, found, cells),))

    words = ", ".join(f"{name} {cell or 'none'}" for name, cell in cells.items())
    return change_data(path, output, make, why=why or f"set {words}", dry_run=dry_run, done=f"line {line}: {words}")


def bar(path: Path, output: Output, line: str, *, status: LineStatus, reason: str, at: str, why: str, dry_run: bool) -> int:
    """Bar a line's outgoing calls, and its incoming ones with `barred_full`; 110 and 112 always stay reachable."""
    if not reason.strip():
        raise CommandError("--reason: say why; it stands in the line and is what the customer is told", code=USAGE)
    at_ms = parse_stamp(at) if at else time.time_ns() // 1_000_000
    if at_ms is None:
        raise CommandError(f"--at {at[:80]!r} is no day or time such as 2026-01-31T08:00", code=USAGE)
    until: list[int] = []

    def make(snapshot: Snapshot) -> Change:
        found, _ = find_line(snapshot, line)
        if found.status is LineStatus.TERMINATED:
            raise CommandError(f"line {found.id} is terminated: there is nothing to bar")
        since = found.barred_since_ms if found.status in OUT_BARRED and found.barred_since_ms else at_ms
        cells = {
            "status": status.value,
            "status_reason": reason,
            "status_at": write_stamp(at_ms),
            "barred_since": write_stamp(since),
        }
        changed = _changed(snapshot, found, cells)
        until[:] = [changed.incoming_until_ms]
        return Change(lines=(changed,))

    result = change_data(path, output, make, why=why or reason, dry_run=dry_run, done=f"line {line}: {status.value}")
    if status is LineStatus.BARRED_FULL and until:
        output.line(f"incoming calls are refused from {write_stamp(until[0])} on, a week after outgoing ones at the earliest")
    return result


def unbar(path: Path, output: Output, line: str, *, reason: str, why: str, dry_run: bool) -> int:
    """Make a line active again."""

    def make(snapshot: Snapshot) -> Change:
        found, _ = find_line(snapshot, line)
        if found.status is LineStatus.TERMINATED:
            raise CommandError(f"line {found.id} is terminated; `sipproxy line set {found.id} --status active` takes it back")
        if found.status is LineStatus.ACTIVE:
            return Change()
        now = write_stamp(time.time_ns() // 1_000_000)
        cells = {"status": "active", "status_reason": reason, "status_at": now, "barred_since": ""}
        return Change(lines=(_changed(snapshot, found, cells),))

    return change_data(path, output, make, why=why or reason or "unbarred", dry_run=dry_run, done=f"line {line}: active")


def remove(path: Path, output: Output, lines: Sequence[str], *, why: str, dry_run: bool) -> int:
    """Take lines with their accounts, numbers and own rules away."""

    def make(snapshot: Snapshot) -> Change:
        unknown = [line for line in lines if line not in snapshot.lines]
        if unknown:
            raise CommandError(f"there is no line {', '.join(line[:80] for line in unknown)}; nothing was removed")
        gone = frozenset(lines)
        rules = tuple(rule.id for rule in snapshot.blocks if rule.line in gone)
        return Change(remove_lines=tuple(dict.fromkeys(lines)), remove_blocks=rules)

    done = f"removed {len(set(lines))} lines"
    return change_data(path, output, make, why=why or f"removal of {', '.join(lines)}", dry_run=dry_run, done=done)


def export(path: Path, output: Output, lines: Sequence[str], *, form: str, file: Path | None, secrets: bool) -> int:
    """Lines as a file that `line import` takes."""
    if secrets and file is None:
        raise CommandError("--with-secrets needs --output FILE: HA1 values are never printed", code=USAGE)

    def make(snapshot: Snapshot) -> str:
        wanted = [find_line(snapshot, line)[0] for line in lines] or list(snapshot.lines.values())
        return write_lines(snapshot, sorted(wanted, key=lambda line: line.id), form=form, secrets=secrets)

    return export_text(path, output, file, make, private=secrets)
