"""The trunk routes of a running node."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sipproxy.admin import control
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import CommandError, clock
from sipproxy.config import load
from sipproxy.store.live_slots import slots_of

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from sipproxy.commands.output import Output
    from sipproxy.config import Config
    from sipproxy.store.live_slots import LiveSlot

__all__ = ["show"]

ADDRESS_COLUMNS = ("trunk", "address", "transport", "state", "since", "why", "tried last for", "found by")
COLUMNS = ("trunk", "state", "since", "calls here", "all nodes", "limit", "ping", "last failure", "registration")


def show(path: Path, output: Output) -> int:
    """The routes' states, calls and registrations, and the addresses that each has now.

    Calls over all nodes are counted by the store, and for routes with a limit alone: `calls_all_nodes` is None for the others,
    and when the store is away, which is said. Raises NodeAwayError when no node runs.
    """
    config = load(path)
    rows = _ask(control.socket_path(config.node.data_dir))
    limited = [row["trunk"] for row in rows if row["limit"]]
    counts, away = _counted(config, limited) if limited else ({}, "")
    rows = [{**row, "calls_all_nodes": counts.get(row["trunk"])} for row in rows]
    output.value(rows)
    output.table(COLUMNS, map(_cells, rows), empty="no trunk routes")
    if rows:
        output.line("")
        addresses = [_address_cells(row["trunk"], address) for row in rows for address in row["addresses"]]
        output.table(ADDRESS_COLUMNS, addresses, empty="no address of any is known: `sipproxy_dns_failures_total` says why")
    if away:
        sys.stderr.write(f"{away}; the calls over all nodes are not known\n")
    return 0


def _ask(socket: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = control.ask(socket, "trunks")["trunks"]
    except control.NodeAwayError as error:
        raise control.NodeAwayError(f"{error}; start one with `sipproxy up`, or name its configuration with -c") from None
    return rows


def _counted(config: Config, names: list[str]) -> tuple[dict[str, int], str]:
    """The slots in use of these routes over all nodes, or why they are not known."""

    async def read(client: Redis) -> list[LiveSlot]:
        return await slots_of(client, "trunk", names)

    try:
        found = Counter(live.slot.owner for live in with_store(config, read))
    except CommandError as error:
        return {}, str(error)
    return {name: found[name] for name in names}, ""


def _address_cells(trunk: str, row: dict[str, Any]) -> list[object]:
    state = "dead" if row["dead"] else "alive" if row["reachable"] else "no listener"
    since = clock(row["dead_since_ms"]) if row["dead"] else ""
    left = f"{row['dead_for_s']} s" if row["dead"] else ""
    return [trunk, row["address"], row["transport"], state, since, row["why"], left, row["record"]]


def _cells(row: dict[str, Any]) -> list[object]:
    failure = f"{row['last_failure']} {clock(row['last_failure_at_ms'])}" if row["last_failure"] else ""
    registration = row["registration"]
    if row["expires_at_ms"]:
        registration += f" until {clock(row['expires_at_ms'])}"
    since = "start" if row["since_ms"] is None else clock(row["since_ms"])
    ping = "" if row["ping_ms"] is None else f"{row['ping_ms']} ms"
    return [row["trunk"], row["state"], since, row["calls"], row["calls_all_nodes"], row["limit"], ping, failure, registration]
