"""Commands on the policy data: import, list and show of lines, PSAP routes and block rules; the check of their files."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from policy import store
from policy.parse import Fault, PolicyError
from sipproxy import policy_files
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import REFUSED, CommandError, Output
from sipproxy.config import Config, load

if TYPE_CHECKING:
    from policy.change import Change
    from policy.model import Account, Line, Snapshot

__all__ = ["check_files", "find_line", "import_file", "list_blocks", "list_lines", "list_psap", "refused", "show_line"]

Kind = Literal["lines", "psap", "blocks"]
Row = dict[str, Any]


def refused(error: PolicyError) -> CommandError:
    """The faults of policy data as a command's."""
    return CommandError(str(error), code=REFUSED, faults=[_fault_row(fault) for fault in error.faults])


def _fault_row(fault: Fault) -> Row:
    return {"file": fault.file, "line": fault.row, "key": fault.column, "detail": fault.reason}


def check_files(config: Config) -> tuple[Row, list[Row], list[str]]:
    """Counts of what the configured policy files hold, their faults, and what is no fault but worth a look."""
    try:
        change = policy_files.read(config)
    except PolicyError as error:
        return {}, [_fault_row(fault) for fault in error.faults], []
    warnings = [
        f"location {location} has no PSAP route for {service} in the files; `sipproxy psap import` can add one"
        for location, service in policy_files.unserved_locations(change)
    ]
    return _counts(change), [], warnings


def _counts(change: Change) -> Row:
    numbers = sum(len(account.numbers) for account in change.accounts)
    counts = {
        "lines": len(change.lines),
        "accounts": len(change.accounts),
        "numbers": numbers,
        "psap_routes": len(change.psap),
        "block_rules": len(change.blocks),
    }
    return {name: count for name, count in counts.items() if count}


def import_file(kind: Kind, file: Path, path: Path, output: Output, *, why: str) -> int:
    """Apply a CSV file to the store, whole or not at all."""
    config = load(path)
    try:
        change = policy_files.read_change(policy_files.Files(**{kind: (str(file),)}), realm=config.registrar.realm)
        who = f"{getpass.getuser()} (command line)"
        reason = why or f"import of {file}"
        version = with_store(config, lambda client: store.apply(client, change, who=who, why=reason), create=True)
    except PolicyError as error:
        raise refused(error) from None
    counts = _counts(change)
    output.value({"ok": True, "file": str(file), "version": version, **counts})
    output.line(
        f"{file}: {', '.join(f'{count} {name}' for name, count in counts.items()) or 'nothing'}; policy version {version}"
    )
    return 0


def _snapshot(path: Path) -> Snapshot:
    return with_store(load(path), store.load)


def list_lines(path: Path, output: Output) -> int:
    snapshot = _snapshot(path)
    rows = [_line_row(snapshot, line) for line in sorted(snapshot.lines.values(), key=lambda line: line.id)]
    output.value(rows)
    columns = ("line", "profile", "status", "channels", "location", "area_code", "accounts", "numbers")
    output.table(
        columns,
        ([len(row[name]) if name in ("accounts", "numbers") else row[name] for name in columns] for row in rows),
        empty="no lines; `sipproxy line import FILE.csv` adds some",
    )
    return 0


def _line_row(snapshot: Snapshot, line: Line) -> Row:
    accounts = [snapshot.accounts[user] for user in line.accounts if user in snapshot.accounts]
    return {
        "line": line.id,
        "profile": line.profile,
        "status": str(line.status),
        "channels": snapshot.channels_of(line) if line.profile in snapshot.profiles else line.channels,
        "location": line.location,
        "area_code": line.area_code,
        "accounts": [account.user for account in accounts],
        "numbers": [number for account in accounts for number in account.numbers],
    }


def find_line(snapshot: Snapshot, text: str) -> tuple[Line, Account | None]:
    """The line with that id, or the one that the number (+E.164, 0049..., 0...) belongs to, with its account."""
    if (line := snapshot.lines.get(text)) is not None:
        return line, next((snapshot.accounts[user] for user in line.accounts if user in snapshot.accounts), None)
    number = _e164(text)
    account = snapshot.account_of(number) if number else None
    if account is None or account.line not in snapshot.lines:
        raise CommandError(f"there is no line and no assigned number {text[:80]!r}; `sipproxy line list` shows the lines")
    return snapshot.lines[account.line], account


def _e164(text: str) -> str:
    for prefix, country in (("+", "+"), ("00", "+"), ("0", "+49")):
        if text.startswith(prefix):
            return country + text[len(prefix) :]
    return ""


def show_line(text: str, path: Path, output: Output) -> int:
    snapshot = _snapshot(path)
    line, _ = find_line(snapshot, text)
    row = _line_row(snapshot, line)
    accounts = [snapshot.accounts[user] for user in row["accounts"]]
    psap = {service: [route.uri for route in snapshot.psap.get((line.location, service), ())] for service in ("110", "112")}
    details: list[Row] = [
        {
            "account": account.user,
            "kind": str(account.kind),
            "algorithms": sorted(account.ha1),
            "numbers": list(account.numbers),
        }
        for account in accounts
    ]
    output.value({**row, "accounts": details, "psap": psap, "version": snapshot.version})
    for name in ("line", "profile", "status", "channels", "location", "area_code"):
        output.line(f"{name:<10} {row[name]}")
    for service, uris in psap.items():
        output.line(f"{service:<10} {', '.join(uris) or 'NO ROUTE: add one with `sipproxy psap import`'}")
    output.line("")
    cells = ((item["account"], item["kind"], " ".join(item["algorithms"]), " ".join(item["numbers"])) for item in details)
    output.table(("account", "kind", "algorithms", "numbers"), cells, empty="no accounts")
    return 0


def list_psap(path: Path, output: Output) -> int:
    snapshot = _snapshot(path)
    columns = ("location", "service", "priority", "uri", "name")
    rows = [{name: getattr(route, name) for name in columns} for key in sorted(snapshot.psap) for route in snapshot.psap[key]]
    output.value(rows)
    empty = "no PSAP routes: 110 and 112 reach nobody; `sipproxy psap import FILE.csv` adds some"
    output.table(columns, ([row[name] for name in columns] for row in rows), empty=empty)
    return 0


def list_blocks(path: Path, output: Output) -> int:
    snapshot = _snapshot(path)
    columns = ("id", "value", "reason", "profile", "line", "owner")
    rows = [{name: getattr(rule, name) for name in columns} for rule in snapshot.blocks]
    output.value(rows)
    empty = "no block rules of an operator; what a profile blocks holds all the same"
    output.table(columns, ([row[name] for name in columns] for row in rows), empty=empty)
    return 0
