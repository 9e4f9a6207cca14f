"""TOML files that operators write, as the rows that a CSV file of the same columns would give.

Pure: text in, rows and faults out. A file has one array of tables for each kind of data, `[[line]]`, `[[psap]]`, `[[block]]`;
a key is a column's name. Values are strings, whole numbers, true and false, dates and lists of those. A line's accounts and
their numbers are nested: `[[line.account]]` with `numbers = [...]`; each number becomes one row, as in CSV.
Left out: what the cells mean (`policy.parse`). A fault's row is the line of the key, or of the table's head.
"""

from __future__ import annotations

import datetime as dt
import re
import tomllib
from typing import TYPE_CHECKING, Any, NamedTuple

from policy.table import MAX_CELL, MAX_ROWS, MAX_TEXT, Row, Table, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_toml"]

_HEAD = re.compile(r"[ \t]*\[\[[ \t]*([A-Za-z0-9_.\- \t]+?)[ \t]*\]\]")
_KEY = re.compile(r"[ \t]*([A-Za-z0-9_-]+)[ \t]*=")
_AT_LINE = re.compile(r"\(at line ([0-9]+), column [0-9]+\)")
LIST_GLUE = "; "  # between the items of a list in one cell


class _Head(NamedTuple):
    """A `[[name]]` of the file: its line, and the lines of the keys below it."""

    name: str
    line: int
    keys: dict[str, int]


def read_toml(text: str, file: str, name: str, columns: tuple[str, ...]) -> Table:
    """Rows of the tables `[[name]]` with the keys `columns`; a key may be missing.

    Faults of the form are in the table. Raises PolicyError at once when the file is no TOML.
    """
    table = Table(file)
    content = _parsed(table, text)
    heads = [head for head in _heads(text) if head.name == name]
    nested = [head for head in _heads(text) if head.name == f"{name}.account"]
    for other in content:
        if other != name:
            place = next((head.line for head in _heads(text) if head.name == other), 0)
            table.fault(place, str(other)[:40], f"unknown table; this file is read for [[{name}]]")
    entries = content.get(name, [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        table.fault(0, name, f"not an array of tables [[{name}]]")
        table.finish()
    if not entries:
        table.fault(0, "", f"no table [[{name}]]")
    places = iter(nested)
    for index, entry in enumerate(entries):
        head = heads[index] if index < len(heads) else _Head(name, 0, {})
        if len(table.rows) >= MAX_ROWS:
            table.fault(head.line, "", f"more than {MAX_ROWS} rows")
            break
        for number, cells, lines in _flat(table, entry, head, places):
            _row(table, number, cells, lines, columns)
    return table


def _parsed(table: Table, text: str) -> dict[str, Any]:
    if len(text) > MAX_TEXT:
        table.fault(0, "", f"longer than {MAX_TEXT} characters")
    else:
        try:
            return tomllib.loads(text.removeprefix("\ufeff"))
        except tomllib.TOMLDecodeError as error:
            place = _AT_LINE.search(str(error))
            line = int(place[1]) if place else text.count("\n") + 1
            table.fault(line, "", f"not TOML: {_AT_LINE.sub('', str(error)).strip()[:120]}")
        except (RecursionError, ValueError):
            table.fault(0, "", "not TOML: nested too deep, or a number beyond all bounds")
    table.finish()
    return {}


def _heads(text: str) -> list[_Head]:
    found: list[_Head] = []
    for number, line in enumerate(text.split("\n"), 1):
        if (head := _HEAD.match(line)) is not None:
            found.append(_Head(re.sub(r"[ \t]", "", head[1]), number, {}))
        elif found and (key := _KEY.match(line)) is not None:
            found[-1].keys.setdefault(key[1], number)
    return found


def _flat(
    table: Table, entry: dict[str, Any], head: _Head, places: Iterator[_Head]
) -> Iterator[tuple[int, dict[str, Any], dict[str, int]]]:
    """The entry itself, or one entry for each number of its nested accounts: its row, cells, and the lines of its keys."""
    accounts = entry.get("account")
    if not isinstance(accounts, list):
        yield head.line, entry, head.keys
        return
    own = {key: value for key, value in entry.items() if key != "account"}
    if not accounts:
        table.fault(head.line, "account", "no account")
    for account in accounts:
        place = next(places, _Head("", head.line, {}))
        if not isinstance(account, dict):
            table.fault(place.line or head.line, "account", "not a table [[line.account]]")
            continue
        lines = {**{key: head.keys.get(key, head.line) for key in own}, **place.keys}
        lines["account"] = place.keys.get("account", place.line)
        lines["number"] = place.keys.get("numbers", place.line)
        numbers = account.get("numbers")
        for key in sorted(own.keys() & account.keys()):
            table.fault(place.keys.get(key, place.line), str(key)[:40], "stands in the line and in its account")
        cells = {key: value for key, value in account.items() if key != "numbers"}
        if not isinstance(numbers, list) or not numbers:
            table.fault(lines["number"], "numbers", "not a list with the account's numbers")
            continue
        for number in numbers:
            yield place.line or head.line, {**own, **cells, "number": number}, lines
            # Further rows repeat nothing but whose they are, as in CSV.
            own, cells = {"line": entry.get("line", "")}, {"account": account.get("account", "")}


def _row(table: Table, number: int, entry: dict[str, Any], lines: dict[str, int], columns: tuple[str, ...]) -> None:
    """Take one row over; a key that is missing is an empty cell."""
    cells = dict.fromkeys(columns, "")
    fine = True
    for key, value in entry.items():
        cell = _cell(value)
        if key not in columns:
            reason = "unknown key"
        elif cell is None:
            reason = "not a text, whole number, true, false, date or list of those"
        else:
            reason = _unfit(cell)
        if cell is None or reason:
            table.fault(lines.get(key, number), str(key)[:40], reason)
            fine = False
        else:
            cells[key] = cell.strip()
    if fine:
        for key, line in lines.items():
            table.places.setdefault((number, key), line)
        table.rows.append(Row(number, cells))


def _unfit(cell: str) -> str:
    if len(cell) > MAX_CELL:
        return f"longer than {MAX_CELL} characters"
    return "" if cell.isprintable() else "unprintable character"


def _cell(value: object) -> str | None:
    """The text that a CSV cell would hold."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**18 else quoted("a number beyond all bounds")
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, list):
        items = [_cell(item) for item in value if not isinstance(item, list)]
        if len(items) != len(value) or None in items:
            return None
        return LIST_GLUE.join(item for item in items if item is not None)
    return None
