"""Commands that read the policy data: list and show of lines, the check of the configured files; what other commands share."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy import store
from policy.emergency import routes_of
from policy.export import line_cells
from policy.parse import Fault, PolicyError
from policy.review import SERVICES
from sipproxy import policy_cache, policy_files
from sipproxy.commands import live_slots
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import AWAY, REFUSED, CommandError, Output
from sipproxy.config import Config, load
from sipproxy.store.live_slots import silent_nodes, slots_of

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from policy.change import Change
    from policy.model import Account, Line, Snapshot
    from sipproxy.store.live_slots import LiveSlot

__all__ = ["check_files", "counts_of", "e164", "find_line", "list_lines", "load_snapshot", "refused", "show_line"]

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
        f"location {location} has no PSAP route for {service} in the files: a node starts with them only if its store has one"
        for location, service in policy_files.unserved_locations(change)
    ]
    return counts_of(change), [], warnings


def counts_of(change: Change) -> Row:
    """How many things of each kind a change holds."""
    numbers = sum(len(account.numbers) for account in change.accounts)
    counts = {
        "lines": len(change.lines),
        "accounts": len(change.accounts),
        "numbers": numbers,
        "psap_routes": len(change.psap),
        "block_rules": len(change.blocks),
    }
    return {name: count for name, count in counts.items() if count}


def load_snapshot(path: Path) -> Snapshot:
    """The policy data of the store that a configuration names."""
    return with_store(load(path), store.load)


def list_lines(path: Path, output: Output) -> int:
    snapshot = load_snapshot(path)
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
    number = e164(text)
    account = snapshot.account_of(number) if number else None
    if account is None or account.line not in snapshot.lines:
        raise CommandError(f"there is no line and no assigned number {text[:80]!r}; `sipproxy line list` shows the lines")
    return snapshot.lines[account.line], account


def e164(text: str) -> str:
    """+E.164 of a number that is written +, 00 or 0 of an area code; "" for anything else."""
    for prefix, country in (("+", "+"), ("00", "+"), ("0", "+49")):
        if text.startswith(prefix):
            return country + text[len(prefix) :]
    return ""


def _line_data(config: Config, text: str) -> tuple[Snapshot, list[LiveSlot] | None, set[str], str]:
    """The policy data, the slots of a line that the store has, and which of their nodes are silent; without the store the
    node's last snapshot, None, none, and why."""

    async def read(client: Redis) -> tuple[Snapshot, list[LiveSlot], set[str]]:
        snapshot = await store.load(client)
        slots = await slots_of(client, "line", [find_line(snapshot, text)[0].id])
        return snapshot, slots, await silent_nodes(client, slots)

    try:
        return *with_store(config, read), ""
    except CommandError as error:
        last = policy_cache.load(Path(config.node.data_dir) / "policy.snapshot") if error.code == AWAY else None
        if last is None:
            raise
        return last, None, set(), str(error)


def show_line(text: str, path: Path, output: Output) -> int:
    """A line, its accounts and its slots; without the store what this machine's node knows of them."""
    config = load(path)
    snapshot, stored, silent, away = _line_data(config, text)
    line, _ = find_line(snapshot, text)
    calls, no_node = live_slots.calls_of_node(config)
    slots = live_slots.slots_of_line(line.id, stored, calls)
    live_slots.mark_silent(slots, silent, lease_ms=1000 * config.store.lease_s)
    if away:
        calls_of = f"nothing is known of calls: {no_node}" if no_node else "the calls are those of this node alone"
        output.line(f"{away}\nthe line is as of version {snapshot.version}, which the node saw last; {calls_of}\n")
    row = _line_row(snapshot, line)
    accounts = [snapshot.accounts[user] for user in row["accounts"]]
    now_at_ms = time.time_ns() // 1_000_000
    psap = {service: [route.uri for route in routes_of(snapshot, line.location, service, now_at_ms)] for service in SERVICES}
    marks = {name: cell for name, cell in line_cells(line).items() if name not in row}
    details: list[Row] = [
        {
            "account": account.user,
            "kind": str(account.kind),
            "channels": account.channels,
            "algorithms": sorted(account.ha1),
            "numbers": list(account.numbers),
        }
        for account in accounts
    ]
    output.value(
        {**row, **marks, "accounts": details, "psap": psap, "version": snapshot.version, "slots": slots, "store": away}
    )
    for name in ("line", "profile", "status", "channels", "location", "area_code"):
        output.line(f"{name:<16} {row[name]}")
    for name, cell in marks.items():
        if cell:
            output.line(f"{name:<16} {cell}")
    for service, uris in psap.items():
        output.line(f"{service:<16} {', '.join(uris) or 'NO ROUTE: add one with `sipproxy psap import`'}")
    output.line("")
    cells = (
        (item["account"], item["kind"], item["channels"], " ".join(item["algorithms"]), " ".join(item["numbers"]))
        for item in details
    )
    output.table(("account", "kind", "channels", "algorithms", "numbers"), cells, empty="no accounts")
    output.line("")
    live_slots.show_slots(slots, output)
    return 0
