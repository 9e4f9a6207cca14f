"""Commands on the drop list of a running node: list, add, remove.

Who looked or changed what, and why, is in the log of accesses; the node's own log has each change too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sipproxy.admin import control
from sipproxy.commands import accesses
from sipproxy.commands.changing import operator
from sipproxy.commands.output import USAGE, CommandError, clock
from sipproxy.config import load

if TYPE_CHECKING:
    from pathlib import Path

    from sipproxy.commands.output import Output

__all__ = ["add", "remove", "show"]

COLUMNS = ("source", "why", "by", "since", "until")


def show(path: Path, output: Output) -> int:
    """The sources on the list, and whether the kernel knows of them."""
    reply = _ask(path, "drops", "drops list")
    output.value(reply)
    if reply["problem"]:
        output.line(f"the kernel drops nothing: {reply['problem']}")
    elif reply["mode"] != "on":
        output.line({"off": "the drop list is off", "dry_run": "a dry run: nothing is dropped"}[reply["mode"]])
    rows = ((row["source"], row["why"], row["by"], clock(row["since_ms"]), clock(row["until_ms"])) for row in reply["drops"])
    output.table(COLUMNS, rows, empty="no source is on the list")
    return 0


def add(path: Path, output: Output, address: str, *, seconds: int, why: str) -> int:
    """Put a source on the list. Raises ControlError when it is never dropped, or the list is off."""
    reply = _change(path, "drop", f"drops add {address} for {seconds} s", why, address=address, for_s=seconds)
    output.value(reply)
    output.line(f"{address}: dropped for {seconds} s" + (" (a dry run)" if reply["mode"] == "dry_run" else ""))
    return 0


def remove(path: Path, output: Output, address: str, *, why: str) -> int:
    """Take a source off the list. Raises ControlError when it is not on it."""
    reply = _change(path, "spare", f"drops remove {address}", why, address=address)
    output.value(reply)
    output.line(f"{address}: let through again")
    return 0


def _change(path: Path, command: str, what: str, why: str, **fields: object) -> dict[str, Any]:
    if not why.strip():
        raise CommandError("--why is needed: who drops a source, or lets it through, says what for", code=USAGE)
    return _ask(path, command, f"{what}: {why.strip()}", who=operator(), why=why.strip(), **fields)


def _ask(path: Path, command: str, what: str, **fields: Any) -> dict[str, Any]:
    config = load(path)
    noted = accesses.begin(config, " ".join(what.split()[:2]), what)
    count = 0
    try:
        reply = control.ask(control.socket_path(config.node.data_dir), command, **fields)
        count = len(reply["drops"])
    except control.NodeAwayError as error:
        raise control.NodeAwayError(f"{error}; start one with `sipproxy up`, or name its configuration with -c") from None
    finally:
        accesses.end(config, noted, count)
    return reply
