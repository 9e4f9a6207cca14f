"""Rows of files that were pulled or exported, in any form and any column profile, as far as they say which record they are.

Native files have whole records. Of the others `german-csv` names node, number and id, `asterisk` and `cgrates` the id alone,
and `kamailio` the Call-ID and both tags. The form is taken from the file's name, the profile from its columns. Files compressed
by gzip, bzip2 or xz are read as they are. Left out: what the other columns say.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import zlib
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from cdr import codec
from cdr.columns import PROFILES
from cdr.export import FORMS, ExportError, maps, record_of
from cdr.parquet import read_maps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cdr.facts import Record

__all__ = ["CallKey", "Row", "call_key", "read_rows"]

PIECE = 1 << 20
PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
CallKey = tuple[str, str, str]


class Row(NamedTuple):
    """One row: its line, or how many-th record it is where there are no lines; then what it says of itself, "" and 0 for what
    it does not."""

    line: int
    record: Record | None = None
    id: str = ""
    node: str = ""
    seq: int = 0
    call: CallKey | None = None


def call_key(record: Record) -> CallKey:
    """What a `kamailio` row has in place of an id. Parts of a forwarded call may share it."""
    return record.call_id, record.from_tag, record.to_tag


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a file, but for those of live calls. Raises OSError, and ExportError, which names the row."""
    ending = file.suffix.lower()
    form = (file.with_suffix("").suffix if ending in PACKED else ending).lower().removeprefix(".")
    if form not in (*FORMS, "parquet"):
        known = ", ".join((*FORMS, "parquet"))
        raise ExportError(f"the name must end in one of {known}, and .gz, .bz2 or .xz behind it where it is compressed")
    try:
        with PACKED[ending](file, "rb") if ending in PACKED else file.open("rb") as data:
            found = read_maps(data) if form == "parquet" else maps(_pieces(data), form, _headless)
            for line, fields in found:
                row = _row(line, fields, native_map=form == "msgpack")
                if row.record is None or row.record.type == "final":
                    yield row
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ExportError(f"cannot be unpacked: {error}") from None


def _pieces(data: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: data.read(PIECE), b"")


def _headless(cells: list[str]) -> list[str] | None:
    """The names of the columns where the first line is a record's: that is how `asterisk` begins."""
    names = [column.name for column in PROFILES["asterisk"].columns]
    known = len(cells) == len(names) and dict(zip(names, cells, strict=True))["amaflags"] == "DOCUMENTATION"
    return names if known else None


def _row(line: int, fields: dict[str, Any], *, native_map: bool) -> Row:
    if "direction" in fields and "id" in fields:
        record = _from_map(fields, line) if native_map else record_of(fields, line)
        return Row(line, record, record.id, record.node, record.seq)
    if "Kennung" in fields:
        with contextlib.suppress(ValueError):
            return Row(line, None, str(fields["Kennung"]), str(fields["Knoten"]), int(fields["Laufnummer"]))
        raise ExportError(f"row {line}: {str(fields['Laufnummer'])[:40]!r} is no number")
    for name in ("OriginID", "uniqueid"):
        if fields.get(name):
            return Row(line, None, str(fields[name]))
    if "callid" in fields:
        return Row(line, call=(str(fields["callid"]), str(fields.get("from_tag", "")), str(fields.get("to_tag", ""))))
    raise ExportError(f"row {line}: no column of a known profile ({', '.join(PROFILES)}) says which record it is")


def _from_map(fields: dict[str, Any], line: int) -> Record:
    try:
        return codec.decode(msgspec.msgpack.encode(fields))
    except ValueError as error:  # CodecError is one
        raise ExportError(f"record {line}: {error}") from None
