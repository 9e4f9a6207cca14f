"""The trunk routes of a running node: once, or again and again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sipproxy.admin import control
from sipproxy.commands.output import clock
from sipproxy.config import load

if TYPE_CHECKING:
    from sipproxy.commands.output import Output

__all__ = ["show"]

EVERY_S = 2.0
COLUMNS = ("trunk", "state", "since", "calls", "ping", "last failure", "registration")


def show(path: Path, output: Output, *, watch: bool) -> int:
    """The routes' states, calls and registrations; with `watch` every two seconds until interrupted.

    Raises NodeAwayError when no node runs.
    """
    socket = control.socket_path(load(path).node.data_dir)
    while True:
        rows = _ask(socket)
        output.value(rows)
        if watch:
            output.line(time.strftime("%H:%M:%S"))
        output.table(COLUMNS, map(_cells, rows), empty="no trunk routes")
        if not watch:
            return 0
        time.sleep(EVERY_S)


def _ask(socket: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = control.ask(socket, "trunks")["trunks"]
    except control.NodeAwayError as error:
        raise control.NodeAwayError(f"{error}; start one with `sipproxy up`, or name its configuration with -c") from None
    return rows


def _cells(row: dict[str, Any]) -> list[object]:
    limit = f"/{row['limit']}" if row["limit"] else ""
    failure = f"{row['last_failure']} {clock(row['last_failure_at_ms'])}" if row["last_failure"] else ""
    registration = row["registration"]
    if row["expires_at_ms"]:
        registration += f" until {clock(row['expires_at_ms'])}"
    since = "start" if row["since_ms"] is None else clock(row["since_ms"])
    ping = "" if row["ping_ms"] is None else f"{row['ping_ms']} ms"
    return [row["trunk"], row["state"], since, f"{row['calls']}{limit}", ping, failure, registration]
