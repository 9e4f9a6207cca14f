"""How commands speak: tables and lines for people, one JSON value for programs, faults with file, line and key for both.

Exit codes: 0 done, 1 refused (something in the input or the data is wrong), 2 wrong usage, 3 a node or store that the
command needs is not there. Results go to stdout, faults to stderr; with --json both are JSON on stdout.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from policy.windows import ZONE

__all__ = ["AWAY", "REFUSED", "USAGE", "CommandError", "Output", "clock", "many", "repeat", "run", "stamp"]

REFUSED = 1
USAGE = 2
AWAY = 3
MAX_WIDTH = 10_000  # of a table in a pipe
EVERY_S = 2.0  # between two looks of --watch


class CommandError(Exception):
    """The command cannot do its work. `faults` are rows of file, line, key and detail, where there are several."""

    def __init__(self, text: str, *, code: int = REFUSED, faults: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(text)
        self.code = code
        self.faults = list(faults)


class Output:
    """Where one command's results go."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def line(self, text: str) -> None:
        """A line for people; nothing with --json."""
        if not self.as_json:
            sys.stdout.write(f"{text}\n")

    def value(self, value: object) -> None:
        """The result for programs; nothing without --json."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
            sys.stdout.flush()

    def raw(self, text: str) -> None:
        """Text that is the result itself, such as CSV."""
        sys.stdout.write(text)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
        """A table for people; `empty` is said when there is no row."""
        if self.as_json:
            return
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        if not cells:
            self.line(empty)
            return
        from rich.console import Console  # most commands print no table
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*map(Text, row))  # Text: what a peer sent is no markup
        console = Console()
        if not console.is_terminal:
            # A pipe has no width: nothing is folded there, so that grep and awk see whole rows.
            wide = console.options.update(max_width=MAX_WIDTH)
            console = Console(width=max(80, console.measure(table, options=wide).maximum))
        console.print(table)


def many(count: int, word: str) -> str:
    """A count with its noun: "1 file", "2 files"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def clock(at_ms: int) -> str:
    """A UTC stamp as `stamp` writes it, without the date where that is today."""
    text = stamp(at_ms)
    day, _, hour = text.partition(" ")
    return hour if day == stamp(time.time_ns() // 1_000_000).partition(" ")[0] else text


def stamp(at_ms: int) -> str:
    """A UTC stamp for people: the clock on the wall in Germany, as times are read that they write, whatever zone the machine
    has."""
    try:
        return dt.datetime.fromtimestamp(at_ms / 1000, ZONE).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(at_ms)


def repeat(show: Callable[[], int], output: Output, *, watch: bool) -> int:
    """What `show` tells: once, or with `watch` every two seconds until interrupted, each time under the time of day."""
    while watch:
        output.line(clock(time.time_ns() // 1_000_000))
        show()
        sys.stdout.flush()
        time.sleep(EVERY_S)
    return show()


def run(command: Callable[[Output], int | None], *, as_json: bool) -> None:
    """Run `command` and leave the process with its exit code, faults told."""
    from sipproxy.admin.control import ControlError, NodeAwayError
    from sipproxy.config_file import ConfigError

    output = Output(as_json=as_json)
    try:
        code = command(output) or 0
        sys.stdout.flush()
    except ConfigError as error:
        code = _fail(output, CommandError(str(error), faults=[fault._asdict() for fault in error.faults]))
    except NodeAwayError as error:
        code = _fail(output, CommandError(str(error), code=AWAY))
    except ControlError as error:
        code = _fail(output, CommandError(str(error)))
    except CommandError as error:
        code = _fail(output, error)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # `| head` has seen enough; the interpreter's own flush at exit must not complain either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise SystemExit(code)


def _fail(output: Output, error: CommandError) -> int:
    output.value({"error": str(error), "faults": error.faults})
    if not output.as_json:
        sys.stderr.write(f"{error}\n")
    return error.code
