"""Which calls hold which slots, on which node and since when: the store's word, with what this machine's node knows of them.

Without the store it is said so, and what the node itself holds is shown.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sipproxy.admin import control
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import CommandError, clock
from sipproxy.config import load
from sipproxy.store.live_slots import owners, slots_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from redis.asyncio import Redis

    from sipproxy.commands.output import Output
    from sipproxy.config import Config
    from sipproxy.store.live_slots import LiveSlot

__all__ = ["calls_of_node", "mark_silent", "show_calls", "show_slots", "slots_of_line"]

Row = dict[str, Any]
SLOT_COLUMNS = ("call", "node", "since", "direction", "account", "other party", "state")
CALL_COLUMNS = ("id", "node", "since", "direction", "line", "account", "calling", "dialled", "trunk", "state")


def calls_of_node(config: Config) -> tuple[list[Row], str]:
    """The calls of the node on this machine, and why there are none where it does not run."""
    try:
        rows: list[Row] = control.ask(control.socket_path(config.node.data_dir), "calls")["calls"]
    except control.NodeAwayError as error:
        return [], str(error)
    return rows, ""


def slots_of_line(line: str, stored: Iterable[LiveSlot] | None, calls: Sequence[Row]) -> list[Row]:
    """The slots of a line, the oldest first: those that the store has, or (None) those of this node's calls."""
    known = {call["id"]: call for call in calls}
    if stored is not None:
        found = [_slot_row(slot, known.get(slot.slot.call)) for slot in stored]
    else:
        found = [
            {
                "call": call["id"],
                "node": call["node"],
                "since_ms": slot["since_ms"],
                "direction": call["direction"],
                "account": slot["account"],
                "lease_ms": None,
                **_seen_here(line, call),
            }
            for call in calls
            for slot in call["slots"]
            if (slot["kind"], slot["of"]) == ("line", line)
        ]
    return sorted(found, key=lambda row: (row["since_ms"], row["call"]))


def _slot_row(live: LiveSlot, call: Row | None) -> Row:
    slot, holder = live.slot, live.holder
    return {
        "call": slot.call,
        "node": holder.node,
        "since_ms": holder.since_ms,
        "direction": holder.direction,
        "account": holder.account,
        "lease_ms": live.lease_ms,
        **_seen_here(slot.owner, call),
    }


def _seen_here(line: str, call: Row | None) -> Row:
    """What the node adds to a slot of its own: the call's state and its party on the other side."""
    if call is None:
        return {"state": "", "other": ""}
    calls_out = call["direction"] != "incoming" and call["line"] == line
    return {"state": call["state"], "other": call["dialled"] if calls_out else call["calling"]}


def mark_silent(rows: Sequence[Row], silent: Collection[str], *, lease_ms: int) -> None:
    """Add to each row since when nothing was heard of its node, None where it shows signs of life: since it renewed the lease
    of one of these slots. The calls of such a node may go on, or be over; their slots stay until their leases end."""
    now_ms = time.time_ns() // 1_000_000
    heard: dict[str, int] = {}
    for row in rows:
        if row["node"] in silent and row["lease_ms"] is not None:
            heard[row["node"]] = max(heard.get(row["node"], 0), now_ms + min(0, row["lease_ms"] - lease_ms))
    for row in rows:
        row["silent_since_ms"] = heard.get(row["node"])


def _node_of(row: Row) -> str:
    since_ms = row["silent_since_ms"]
    return f"{row['node']} (silent since {clock(since_ms)})" if since_ms is not None else str(row["node"])


def show_slots(rows: Sequence[Row], output: Output) -> None:
    """The table of a line's slots."""
    cells = (
        (row["call"], _node_of(row), clock(row["since_ms"]), row["direction"], row["account"], row["other"], row["state"])
        for row in rows
    )
    output.table(SLOT_COLUMNS, cells, empty="no channel in use")


async def _every_slot(client: Redis) -> list[LiveSlot]:
    return await slots_of(client, "line", await owners(client, "line"))


def show_calls(path: Path, output: Output) -> int:
    """The calls of all nodes that hold a slot, and all those of this machine's node. Raises CommandError when both are away."""
    config = load(path)
    own, no_node = calls_of_node(config)
    no_store = ""
    stored: list[LiveSlot] = []
    try:
        stored = with_store(config, _every_slot)
    except CommandError as error:
        if no_node:
            raise
        no_store = str(error)
    rows: dict[str, Row] = {call["id"]: {**call, "since_ms": call["setup_at_ms"]} for call in own}
    for live in stored:
        slot, holder = live.slot, live.holder
        row = rows.setdefault(
            slot.call,
            {
                "id": slot.call,
                "node": holder.node,
                "since_ms": holder.since_ms,
                "direction": holder.direction,
                "line": slot.owner,
                "account": holder.account,
                "slots": [],
            },
        )
        if "state" not in row:  # of another node: its slots are all that is known of it
            row["slots"].append(
                {
                    "kind": "line",
                    "of": slot.owner,
                    "account": holder.account,
                    "role": "",
                    "since_ms": holder.since_ms,
                }
            )
    shown = sorted(rows.values(), key=lambda row: (row["since_ms"], row["id"]))
    output.value({"calls": shown, "store": no_store, "node": no_node})
    if no_store:
        output.line(f"{no_store}\nonly the calls of this node are shown")
    elif no_node:
        output.line(no_node)
    if not no_store:
        output.line("calls to 110 and 112 at other nodes hold no slot and are shown there alone")
    cells = ([clock(row["since_ms"]) if name == "since" else row.get(name) for name in CALL_COLUMNS] for row in shown)
    output.table(CALL_COLUMNS, cells, empty="no calls")
    return 0
