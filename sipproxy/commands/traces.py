"""`sipproxy trace list|accesses`: records of malicious calls, for those who may read them (TDDDG § 14).

Each reading is written down, with who and why, before a record is shown; without a reason nothing is read.
"""

from __future__ import annotations

import getpass
import os
import time
from typing import TYPE_CHECKING

import msgspec

from sipproxy.commands.backend import with_store
from sipproxy.commands.output import USAGE, CommandError, stamp
from sipproxy.config import load
from sipproxy.store import traces
from sipproxy.store.traces import Access

if TYPE_CHECKING:
    from pathlib import Path

    from sipproxy.commands.output import Output

__all__ = ["list_accesses", "list_records"]

COLUMNS = ("time", "line", "order", "called", "network number", "from", "asserted", "privacy", "via", "call")


def list_records(path: Path, output: Output, *, line: str, reference: str, why: str) -> int:
    """Print the records of a line or order; `why` is kept."""
    if not why.strip():
        raise CommandError("--why is needed: who reads hidden numbers says what for, and it is written down", code=USAGE)
    if not line and not reference:
        raise CommandError("name a line or an order; nobody reads all records at once", code=USAGE)
    access = Access(time.time_ns() // 1_000_000, _reader(), why.strip()[:500], line, reference)
    try:
        records = with_store(load(path), lambda client: traces.read(client, access))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"a record of a malicious call cannot be read: {error}") from None
    output.value(msgspec.to_builtins(records))
    rows = (
        (
            stamp(record.at_ms),
            record.line,
            record.reference,
            record.called,
            record.network or "-",
            record.given,
            " ".join(record.asserted) or "-",
            record.privacy or "-",
            record.trunk or record.caller_line or "-",
            record.call,
        )
        for record in records
    )
    output.table(COLUMNS, rows, empty="no calls were recorded for that order")
    return 0


def list_accesses(path: Path, output: Output, *, count: int) -> int:
    """Print who read records, and why."""
    found = with_store(load(path), lambda client: traces.accesses(client, count))
    output.value([access._asdict() for access in found])
    rows = ((stamp(access.at_ms), access.who, access.line or "-", access.reference or "-", access.why) for access in found)
    output.table(("time", "who", "line", "order", "why"), rows, empty="nobody has read any record")
    return 0


def _reader() -> str:
    """The account of this machine that runs the command."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry for the user id
        return f"uid {os.getuid()}"
