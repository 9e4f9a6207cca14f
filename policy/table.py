"""CSV files that operators write: rows by column name, every fault with its place.

Pure: text in, rows and faults out. Sizes are bounded. A line that starts with `#` and an empty line are skipped.
Left out: what the cells mean (`policy.parse`). RFC 4180.
"""

from __future__ import annotations

import csv
import io
from typing import NamedTuple

__all__ = ["MAX_CELL", "MAX_ROWS", "MAX_TEXT", "Fault", "PolicyError", "Row", "Table", "quoted", "read_table"]

MAX_TEXT = 128 * 1024 * 1024  # characters of one file: a million rows of the usual length
MAX_ROWS = 1_000_000
MAX_CELL = 2048  # characters; the longest cell that is useful is a list of weekly windows or of trace orders
MAX_FAULTS = 1000  # kept one by one; the rest is counted


class Fault(NamedTuple):
    """One fault: `row` is the line of the file, from 1, or 0 for the file as a whole; `column` "" for the row."""

    file: str
    row: int
    column: str
    reason: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.row}" if self.row else self.file
        return f"{place}: {self.column}: {self.reason}" if self.column else f"{place}: {self.reason}"


class PolicyError(ValueError):
    """Data that cannot be taken over; `faults` are all that were found, in the order of the file. Nothing was applied."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


class Row(NamedTuple):
    """A row's line in the file and its cells by column, stripped."""

    number: int
    cells: dict[str, str]


class Table:
    """A file being read: its rows, and the faults found so far."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.rows: list[Row] = []
        self.places: dict[tuple[int, str], int] = {}  # (row, column) -> line of the file, where it is not the row's own
        self._faults: list[Fault] = []
        self._more = 0

    def fault(self, row: int, column: str, reason: str) -> None:
        """Note a fault."""
        if len(self._faults) < MAX_FAULTS:
            self._faults.append(Fault(self.file, self.places.get((row, column), row), column, reason))
        else:
            self._more += 1

    def finish(self) -> None:
        """Raise PolicyError when there was any fault."""
        if not self._faults:
            return
        faults = sorted(self._faults, key=lambda fault: fault.row)
        if self._more:
            faults.append(Fault(self.file, 0, "", f"{self._more} more faults"))
        raise PolicyError(tuple(faults))


def quoted(text: str) -> str:
    """An operator's text for a message, cut."""
    return repr(text[:80])


def read_table(text: str, file: str, columns: tuple[str, ...], *, required: tuple[str, ...] = ()) -> Table:
    """Rows of a CSV file whose first line names `columns` in any order; those not in `required` may be missing.

    Faults of the form are in the table. Raises PolicyError at once when there is no usable header.
    """
    table = Table(file)
    if len(text) > MAX_TEXT:
        table.fault(0, "", f"longer than {MAX_TEXT} characters")
        table.finish()
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    header: list[str] = []
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            table.fault(reader.line_num, "", f"not CSV: {error}")
            if not header:
                break
            continue
        if not cells or cells[0].startswith("#"):
            continue
        if not header:
            header = _header(table, reader.line_num, cells, columns, required or columns)
        elif len(table.rows) >= MAX_ROWS:
            table.fault(reader.line_num, "", f"more than {MAX_ROWS} rows")
            break
        else:
            _row(table, reader.line_num, cells, header)
    if not header:
        table.fault(0, "", "no header line with the columns " + ",".join(columns))
        table.finish()
    return table


def _header(table: Table, number: int, cells: list[str], columns: tuple[str, ...], required: tuple[str, ...]) -> list[str]:
    header = [cell.strip().lower() for cell in cells]
    if len(header) == 1 and ";" in header[0]:
        table.fault(number, "", "columns are separated by commas, not semicolons")
    elif 2 * len(set(header) & set(columns)) < len(header):  # a row of data: its cells are not repeated, one may be a password
        table.fault(number, "", "no header line with the columns " + ",".join(columns))
    else:
        for name in sorted(set(header) - set(columns)):
            table.fault(number, name[:40], "unknown column")
        for name in required:
            if name not in header:
                table.fault(number, name, "column is missing")
        for name in sorted({name for name in header if header.count(name) > 1}):
            table.fault(number, name[:40], "column twice")
    table.finish()
    return header


def _row(table: Table, number: int, cells: list[str], header: list[str]) -> None:
    if len(cells) != len(header):
        table.fault(number, "", f"{len(cells)} cells instead of {len(header)}")
        return
    found = {}
    for name, raw in zip(header, cells, strict=True):
        cell = raw.strip()
        if len(cell) > MAX_CELL:
            table.fault(number, name, f"longer than {MAX_CELL} characters")
            return
        if not cell.isprintable():
            table.fault(number, name, "unprintable character")
            return
        found[name] = cell
    table.rows.append(Row(number, found))
