"""Commands that start a node, check its configuration, or ask a running one.

up, serve, check, demo, calls, registrations, nodes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cdr.journal import JournalError
from sipproxy import crewing
from sipproxy.commands.output import REFUSED, CommandError, Output, clock
from sipproxy.config import Config, load
from sipproxy.config_file import ConfigError

__all__ = ["calls", "check", "demo", "nodes", "registrations", "serve"]

Row = dict[str, Any]


def serve(path: Path, *, everything: bool, welcome: bool) -> int:
    """Run a node until it is told to stop; its exit code."""
    config = load(path)
    if not everything and not config.store.url:
        raise CommandError(
            f"{path}: store.url: is empty; name the store that the nodes share, or start the embedded one with `up`"
        )
    try:
        leaving = crewing.left_behind(config)
    except JournalError as error:
        raise CommandError(f"{path}: {error}") from None
    if config.node.workers > 1 or leaving:
        from sipproxy import workers

        return workers.main(config, leaving, config_path=path, embedded=not config.store.url, greet=welcome)
    from sipproxy import app  # the whole node

    return app.main(config, config_path=path, embedded=not config.store.url, greet=welcome)


def demo(*, as_json: bool) -> int:
    """The narrated demonstration; non-zero when what happened is not what it announces."""
    import loadtest.demo

    return loadtest.demo.main(json=as_json)


def check(path: Path, output: Output) -> int:
    """Every fault of the configuration and of the policy files that it names, and a store that cannot be one."""
    from sipproxy.commands import backend, policy_data

    faults: list[Row] = []
    counts: Row = {}
    warnings: list[str] = []
    try:
        config = load(path)
    except ConfigError as error:
        faults = [fault._asdict() for fault in error.faults]
    else:
        counts, faults, warnings = policy_data.check_files(config)
        if unusable := backend.fault_of_store(config):
            faults = [*faults, {"file": str(path), "line": 0, "key": "store.url", "detail": unusable}]
    if faults:
        raise CommandError("\n".join(_fault_text(fault) for fault in faults), code=REFUSED, faults=faults)
    output.value({"ok": True, "config": str(path), "warnings": warnings, **counts})
    for warning in warnings:
        output.line(f"warning: {warning}")
    output.line(f"{path}: ok" + "".join(f", {count} {name}" for name, count in counts.items()))
    return 0


def _fault_text(fault: Row) -> str:
    place = f"{fault['file']}:{fault['line']}" if fault["line"] else str(fault["file"])
    return f"{place}: {fault['key']}: {fault['detail']}" if fault["key"] else f"{place}: {fault['detail']}"


def calls(path: Path, output: Output) -> int:
    """The calls of the running node."""
    rows = _ask(load(path), "calls", "calls")
    output.value(rows)
    columns = ("id", "state", "direction", "line", "calling", "dialled", "trunk", "for_s")
    output.table(columns, _cells(rows, columns), empty="no calls")
    return 0


def registrations(path: Path, output: Output) -> int:
    """The bindings that the running node knows: its own and those of the other nodes."""
    reply = _reply(load(path), "registrations")
    rows: list[Row] = reply["registrations"]
    output.value(rows)
    now_ms = time.time_ns() // 1_000_000
    for row in rows:
        if row.get("expires_at_ms") is not None:
            row["expires_s"] = max(0, (row["expires_at_ms"] - now_ms) // 1000)
        if row.get("state") == "down":
            row["state"] = f"down: {row['last_failure']}, since {clock(row['state_since_ms'])}"
    columns = ("account", "line", "contact", "node", "flow", "expires_s", "state", "user_agent")
    output.table(columns, _cells(rows, columns), empty="no registrations")
    tell_store(reply["store"], "other nodes' registrations are as of then")
    return 0


def nodes(path: Path, output: Output) -> int:
    """The nodes on the store, as the running one sees them."""
    reply = _reply(load(path), "nodes")
    rows: list[Row] = reply["nodes"]
    output.value(reply)
    columns = (
        "node",
        "state",
        "listen",
        "version",
        "uptime_s",
        "calls",
        "new calls",
        "registrations",
        "heartbeat_age_ms",
        "seq",
        "confirmed",
    )
    for row in rows:
        row["new calls"] = "no: " + ", ".join(row["closed"]) if row["closed"] else "yes"
        row["listen"] = ", ".join(row["listen"])
    output.table(columns, _cells(rows, columns), empty="no nodes")
    tell_store(reply["store"], "what is said of other nodes is as of then")
    return 0


def tell_store(store: Row, consequence: str) -> None:
    """Say that the store is away, if it is, and what that means for what was shown."""
    if store["state"] != "up":
        sys.stderr.write(f"the store is {store['state']} ({store['reason']}): {consequence}\n")


def _ask(config: Config, command: str, field: str) -> list[Row]:
    rows: list[Row] = _reply(config, command)[field]
    return rows


def _reply(config: Config, command: str) -> Row:
    from sipproxy.admin import control

    socket = control.socket_path(config.node.data_dir)
    try:
        return control.ask(socket, command)
    except control.NodeAwayError as error:
        raise control.NodeAwayError(f"{error}; start one with `sipproxy up`, or name its configuration with -c") from None


def _cells(rows: Sequence[Row], columns: Sequence[str]) -> list[list[object]]:
    return [[row.get(column) for column in columns] for row in rows]
