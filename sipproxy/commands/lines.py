"""Commands on single lines: add, set, bar, unbar, remove, export."""

from __future__ import annotations

import csv
import io
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from policy import profiles
from policy.change import OUT_BARRED, Change
from policy.export import write_lines
from policy.model import LineStatus
from policy.parse import LINE_COLUMNS, read_lines
from policy.secret import secret_of
from policy.stamp import parse_stamp, write_stamp
from policy.table import Fault, PolicyError
from sipproxy.commands.changing import change_data, export_text, submit, tell
from sipproxy.commands.output import USAGE, CommandError, Output
from sipproxy.commands.policy_data import find_line
from sipproxy.config import load

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.model import Line, Snapshot
    from policy.parse import LinesImport
    from sipproxy.commands.changing import Make
    from sipproxy.config import Config

__all__ = ["add", "bar", "export", "remove", "set_fields", "set_password", "unbar"]

PASSWORD_BYTES = 15  # of chance: 20 characters, which a person can type into a router once
_EVERYTHING = "the options"  # what stands for a file in the faults of an option


def _cells(snapshot: Snapshot, line: Line) -> list[dict[str, str]]:
    """The rows of a line file that the line is."""
    return list(csv.DictReader(io.StringIO(write_lines(snapshot, [line], form="csv"), newline="")))


def _read(line: str, rows: Sequence[Mapping[str, str]], realm: str = "") -> LinesImport:
    """Rows of one line, read as a file would be. Raises PolicyError with the option's name."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, LINE_COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(rows)
    try:
        return read_lines(text.getvalue(), file=_EVERYTHING, realm=realm, profiles=profiles.load(), keep_secrets=True)
    except PolicyError as error:
        faults = dict.fromkeys(Fault(f"line {line[:80]}", 0, fault.column, fault.reason) for fault in error.faults)
        raise PolicyError(tuple(faults)) from None


def _changed(snapshot: Snapshot, line: Line, cells: Mapping[str, str], limits: Mapping[str, str] | None = None) -> LinesImport:
    """The line with other cells, as of its first row, and its accounts with other limits of channels.

    Raises PolicyError with the option's name.
    """
    rows = _cells(snapshot, line)
    if not rows:
        raise PolicyError((Fault(f"line {line.id}", 0, "", "has no number; import it again"),))
    rows[0].update(cells)
    for user, limit in (limits or {}).items():
        own = [row for row in rows if row["account"] == user]
        if not own:
            raise CommandError(f"--account-channels: {user[:80]!r} is no account of line {line.id}", code=USAGE)
        own[0]["account_channels"] = limit
    return _read(line.id, rows)


def add(path: Path, output: Output, cells: Mapping[str, str], numbers: Sequence[str], *, why: str, dry_run: bool) -> int:
    """Add a line, an account to a line that there is, or numbers to an account.

    `cells` are those of a line file's rows, but for the number. A new account without a password gets one, told this once.
    """
    config = load(path)
    line, user = cells["line"], cells["account"]
    made: list[str] = []

    def make(snapshot: Snapshot) -> Change:
        known = snapshot.accounts.get(user)
        if known is not None and cells["password"]:
            raise CommandError(f"account {user} has a password; `sipproxy line password {user}` gives it another one")
        made[:] = [] if known is not None or cells["password"] else [secrets.token_urlsafe(PASSWORD_BYTES)]
        row = {**cells, "password": cells["password"] or "".join(made)}
        rows = _cells(snapshot, snapshot.lines[line]) if line in snapshot.lines else []
        found = _read(line, [*rows, *({**row, "number": number} for number in numbers)], config.registrar.realm)
        return Change(lines=found.lines, accounts=found.accounts)

    words = f"line {line}: account {user} with {', '.join(numbers)}"
    return _with_password(output, config, make, made, user, words, why=why, dry_run=dry_run)


def set_password(path: Path, output: Output, user: str, password: str, *, why: str, dry_run: bool) -> int:
    """Give an account another password: that one, or one that is made and told this once."""
    config = load(path)
    made = [] if password else [secrets.token_urlsafe(PASSWORD_BYTES)]
    ha1, fault = secret_of(password or made[0], user=user, realm=config.registrar.realm)
    if fault:
        raise CommandError(f"password of {user[:80]}: {fault}")

    def make(snapshot: Snapshot) -> Change:
        if user not in snapshot.accounts:
            raise CommandError(f"there is no account {user[:80]!r}; `sipproxy line show LINE` shows a line's accounts")
        return Change(accounts=(replace(snapshot.accounts[user], ha1=ha1),))

    return _with_password(output, config, make, made, user, f"account {user}: another password", why=why, dry_run=dry_run)


def _with_password(  # noqa: PLR0917 - a change and what is told of it
    output: Output, config: Config, make: Make, made: list[str], user: str, words: str, *, why: str, dry_run: bool
) -> int:
    """Make the change; a password that was `made` for it is told when it was."""
    outcome = submit(config, make, why=why or words, dry_run=dry_run)
    told = {"password": made[0]} if made and not dry_run else None
    result = tell(output, outcome, words, dry_run=dry_run, more=told)
    if told:
        output.line(f"password of {user}, told this once: {made[0]}")
    return result


def set_fields(
    path: Path, output: Output, line: str, cells: Mapping[str, str], limits: Sequence[str], *, why: str, dry_run: bool
) -> int:
    """Set what `cells` name, by the columns of a line file, and the channels of accounts, `ACCOUNT=N` each."""
    given = {}
    for item in limits:
        user, separator, limit = item.partition("=")
        if not separator or not user:
            raise CommandError(f"--account-channels: {item[:80]!r} is not of the form ACCOUNT=N", code=USAGE)
        given[user] = limit
    if not cells and not given:
        raise CommandError("say what to set, such as --channels 4; `sipproxy line set --help` lists it", code=USAGE)

    def make(snapshot: Snapshot) -> Change:
        found, _ = find_line(snapshot, line)
        changed = _changed(snapshot, found, cells, given)
        accounts = (
            replace(snapshot.accounts[new.user], channels=new.channels) for new in changed.accounts if new.user in given
        )
        return Change(lines=changed.lines, accounts=tuple(accounts))

    named = [*cells.items(), *((f"channels of {user}", limit) for user, limit in given.items())]
    words = ", ".join(f"{name} {cell or 'none'}" for name, cell in named)
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
        changed = _changed(snapshot, found, cells).lines[0]
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
        return Change(lines=_changed(snapshot, found, cells).lines)

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


def export(path: Path, output: Output, lines: Sequence[str], *, form: str, file: Path | None, with_secrets: bool) -> int:
    """Lines as a file that `line import` takes."""
    if with_secrets and file is None:
        raise CommandError("--with-secrets needs --output FILE: HA1 values are never printed", code=USAGE)

    def make(snapshot: Snapshot) -> str:
        wanted = [find_line(snapshot, line)[0] for line in lines] or list(snapshot.lines.values())
        return write_lines(snapshot, sorted(wanted, key=lambda line: line.id), form=form, secrets=with_secrets)

    return export_text(path, output, file, make, private=with_secrets)
