"""Records as JSON Lines, CSV or MessagePack, in a profile's columns.

Pure: a writer makes bytes. Texts are neutralised in JSON Lines and CSV (`neutral`) and intact in MessagePack. `read` is the way
back from the native profile, whichever form it has, `maps` from any. Left out: files (`files`), Parquet (`parquet`).

- JSON Lines: one object a line, UTF-8, every column in each.
- CSV: UTF-8, RFC 4180 with CR LF; an empty cell for "not there", lists and maps as JSON, booleans as true and false. Only
  `german-csv` begins with a byte-order mark: spreadsheets need it to see UTF-8, programs stumble over it.
- MessagePack: one map after the other; in the native profile the record as it stands in the stream.
"""

from __future__ import annotations

import csv
import io
import itertools
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from cdr import codec, neutral
from cdr.columns import PROFILES, profile
from cdr.facts import Record
from cdr.skip import end_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Headless = Callable[[list[str]], list[str] | None]

__all__ = ["FORMS", "ExportError", "Form", "Writer", "maps", "read", "record_of"]

Form = Literal["jsonl", "csv", "msgpack"]
FORMS: tuple[str, ...] = get_args(Form)
MAX_CELL = 4 << 20  # characters of one CSV cell when read back; a record's texts are below 1 MiB together
BOM = "\ufeff".encode()
_HEADERS = frozenset(known.columns[0].name for known in PROFILES.values() if known.header)  # each names its first column

_json = msgspec.json.Encoder(enc_hook=repr).encode  # what a newer schema wrote may be of a kind that JSON does not know
_msgpack = msgspec.msgpack.Encoder().encode


class ExportError(ValueError):
    """What was asked for cannot be written, or what was read is no export."""


class Writer:
    """Makes the bytes of one file: `head`, `row` for each record, `foot`. `ending` is the file name's."""

    def __init__(self, form: str = "jsonl", columns: str = "native") -> None:
        """Raises ExportError for a form or profile that does not exist, and for a pair that makes no sense."""
        if form not in FORMS:
            raise ExportError(f"there is no format {form[:40]!r}; known are {', '.join(FORMS)}")
        try:
            self.profile = profile(columns)
        except ValueError as error:
            raise ExportError(str(error)) from None
        if self.profile.csv_only and form != "csv":
            raise ExportError(f"the column profile {columns!r} is CSV: say --format csv")
        self.form = form
        self.ending = form
        self._buffer = io.StringIO()
        quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if self.profile.quote_texts else csv.QUOTE_MINIMAL
        self._csv = csv.writer(self._buffer, delimiter=self.profile.separator, quoting=quoting, lineterminator="\r\n")

    def head(self) -> bytes:
        """What a file begins with."""
        if self.form != "csv":
            return b""
        mark = BOM if self.profile.bom else b""
        return mark + (self._line([column.name for column in self.profile.columns]) if self.profile.header else b"")

    def row(self, record: Record) -> bytes:
        """One record. Raises codec.CodecError for a value that MessagePack cannot hold; text forms take every record."""
        if self.form == "msgpack":
            if self.profile.name == "native":
                return codec.encode(record)
            return _msgpack({column.name: column.value(record) for column in self.profile.columns})
        if self.form == "jsonl":
            return _json({column.name: _plain(column.value(record)) for column in self.profile.columns}) + b"\n"
        return self._line([_cell(column.value(record)) for column in self.profile.columns])

    def foot(self) -> bytes:
        """What a file ends with."""
        return b""

    def _line(self, cells: list[Any]) -> bytes:
        self._buffer.seek(0)
        self._buffer.truncate()
        self._csv.writerow(cells)
        return self._buffer.getvalue().encode()


def read(data: Iterable[bytes], form: str) -> Iterator[Record]:
    """The records of a native export whose bytes come in pieces of any size. Raises ExportError, which names the row."""
    if form == "msgpack":
        yield from (_decoded(value, number) for number, value in _values(data))
    else:
        yield from (record_of(fields, number) for number, fields in maps(data, form))


def maps(data: Iterable[bytes], form: str, headless: Headless = lambda _: None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of any profile by the names of their columns, each with its line, or its place among the maps of MessagePack.

    Texts are as they were before they were neutralised. `headless` is asked for the names of columns where a CSV's first line
    may be a row. Raises ExportError, which names the row.
    """
    if form == "jsonl":
        yield from ((number, _decoded_json(line, number)) for number, line in enumerate(_lines(data), 1) if line)
    elif form == "csv":
        yield from _read_csv(data, headless)
    elif form == "msgpack":
        for number, value in _values(data):
            try:
                yield number, msgspec.msgpack.decode(value, type=dict[str, Any])
            except (msgspec.MsgspecError, ValueError, RecursionError) as error:
                raise ExportError(f"record {number}: {error}") from None
    else:
        raise ExportError(f"there is no format {form[:40]!r}; known are {', '.join(FORMS)}")


def record_of(fields: dict[str, Any], number: int) -> Record:
    """The record in a row of a native export. Raises ExportError."""
    try:
        return msgspec.convert(fields, Record)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ExportError(f"row {number}: no record: {error}") from None


def _plain(value: object) -> object:
    """A value for JSON with every text in it neutralised."""
    if isinstance(value, str):
        return neutral.text(value)
    if isinstance(value, dict):
        return {neutral.text(key) if isinstance(key, str) else str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _cell(value: object) -> object:
    """A value for a CSV cell. Only our own numbers are numbers."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return neutral.text(value)
    if isinstance(value, list | dict):
        return neutral.text(_json(_plain(value)).decode()) if value else ""
    return value


def _lines(data: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in data:
        *whole, rest = (rest + piece).split(b"\n")
        yield from whole
    if rest:
        yield rest


def _decoded_json(line: bytes, number: int) -> dict[str, Any]:
    try:
        return {name: _restored(value) for name, value in msgspec.json.decode(line, type=dict[str, Any]).items()}
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ExportError(f"line {number}: no record: {error}") from None


def _restored(value: object) -> object:
    if isinstance(value, str):
        return neutral.restore(value)
    if isinstance(value, dict):
        return {neutral.restore(key): _restored(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return value


def _read_csv(data: Iterable[bytes], headless: Headless) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(MAX_CELL)
    try:
        lines = (line.decode("utf-8-sig" if number == 0 else "utf-8") + "\n" for number, line in enumerate(_lines(data)))
        first = next(lines, "")
        separator = ";" if first.startswith("Kennung;") else ","
        rows = csv.reader(itertools.chain([first], lines), delimiter=separator)
        header = next(rows, [])
        if (names := headless(header)) is not None:
            yield 1, dict(zip(names, map(neutral.restore, header), strict=True))
            header = names
        elif not _HEADERS & set(header):
            raise ExportError("row 1: the header of an export is missing")
        native = "id" in header and "node" in header
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise ExportError(f"row {number}: {len(row)} cells where the header has {len(header)}")
            cells = _uncelled(header, row, number) if native else zip(header, map(neutral.restore, row), strict=True)
            yield number, dict(cells)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ExportError(f"no CSV in UTF-8: {error}") from None


def _uncelled(header: list[str], row: list[str], number: int) -> Iterator[tuple[str, object]]:
    """Names and values of a row; an empty cell that is no text is not there."""
    for name, cell in zip(header, row, strict=True):
        kind = str(Record.__annotations__.get(name, "str"))
        if cell or not kind.startswith(("int", "bool", "list", "dict")):
            yield name, _uncell(cell, kind, number)


def _uncell(cell: str, kind: str, number: int) -> object:
    if kind.startswith("int"):
        try:
            return int(cell)
        except ValueError:
            raise ExportError(f"row {number}: {cell[:40]!r} is no number") from None
    if kind == "bool":
        return cell == "true"
    if kind.startswith(("list", "dict")):
        try:
            return _restored(msgspec.json.decode(neutral.restore(cell)))
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise ExportError(f"row {number}: {cell[:40]!r} is no JSON") from None
    return neutral.restore(cell)


def _values(data: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Maps that follow each other without anything between them, each as its bytes."""
    rest, number = b"", 0
    for piece in data:
        rest += piece
        start = 0
        try:
            while (end := end_of(rest, start)) is not None:
                number += 1
                yield number, rest[start:end]
                start = end
        except ValueError as error:
            raise ExportError(f"record {number + 1}: {error}") from None
        rest = rest[start:]
    if rest:
        raise ExportError(f"record {number + 1}: cut off")


def _decoded(value: bytes, number: int) -> Record:
    try:
        return codec.decode(value)
    except codec.CodecError as error:
        raise ExportError(f"record {number}: {error}") from None
