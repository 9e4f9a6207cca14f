"""Records as Parquet, by pyarrow (the extra `parquet`). Texts are intact: a column has a type, and nobody runs it.

Every column of the native profile has the type of its field; those of other profiles are texts or 64-bit integers.
"""

from __future__ import annotations

import types
from typing import IO, TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

import msgspec

from cdr.columns import profile
from cdr.export import ExportError
from cdr.facts import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from cdr.columns import Profile

__all__ = ["ParquetRows", "read_maps"]

GROUP = 10_000  # rows of one row group, which are in memory
NEEDS = "Parquet needs pyarrow: pip install 'sipproxy[parquet]'"


class _Sink:
    """A file that only grows, whose bytes are taken out as they come."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None: ...

    def close(self) -> None:
        self.closed = True

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts = []
        return data


class ParquetRows:
    """Makes the bytes of one Parquet file, like `cdr.export.Writer`."""

    form = ending = "parquet"

    def __init__(self, columns: str = "native") -> None:
        """Raises ExportError for an unknown profile, and one that names the pip command where pyarrow is missing."""
        self._arrow, self._parquet = _library()
        try:
            self.profile = profile(columns)
        except ValueError as error:
            raise ExportError(str(error)) from None
        if self.profile.csv_only:
            raise ExportError(f"the column profile {columns!r} is CSV: say --format csv")
        self._schema = _schema(self._arrow, self.profile)
        self._sink = _Sink()
        self._writer: Any = None
        self._rows: list[dict[str, object]] = []

    def head(self) -> bytes:
        sink = self._arrow.PythonFile(self._sink, mode="w")
        self._writer = self._parquet.ParquetWriter(sink, self._schema, compression="zstd")
        return self._sink.take()

    def row(self, record: Record) -> bytes:
        """What is complete so far; most rows wait for their group."""
        cells = {column.name: _value(column.value(record)) for column in self.profile.columns}
        if any(isinstance(cell, int) and not -(2**63) <= cell < 2**63 for cell in cells.values()):
            raise ExportError(f"record {record.id!r:.80} holds a number of more than 64 bits")
        self._rows.append(cells)
        return self._flushed() if len(self._rows) >= GROUP else b""

    def foot(self) -> bytes:
        data = self._flushed() if self._rows else b""
        self._writer.close()
        return data + self._sink.take()

    def _flushed(self) -> bytes:
        self._writer.write_table(self._arrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []
        return self._sink.take()


def read_maps(data: IO[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a Parquet file by the names of their columns, each with its place from 1, a row group in memory. Raises
    ExportError."""
    arrow, parquet = _library()
    try:
        number = 0
        for batch in parquet.ParquetFile(data).iter_batches(GROUP):
            for fields in batch.to_pylist():
                number += 1
                if "unknown" in fields:
                    fields["unknown"] = msgspec.json.decode(fields["unknown"] or "{}")
                yield number, fields
    except (arrow.ArrowException, msgspec.MsgspecError, OSError, ValueError) as error:
        raise ExportError(f"row {number + 1}: no Parquet file of ours: {str(error)[:200]}") from None


def _library() -> tuple[Any, Any]:
    """pyarrow and its Parquet part. Raises ExportError that names the pip command where it is missing."""
    try:
        import pyarrow as pa  # noqa: PLC0415  an extra
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise ExportError(NEEDS) from None
    return pa, parquet


def _schema(arrow: Any, found: Profile) -> pa.Schema:
    """The types of the native profile are those of the fields; of another what its columns make of any record."""
    hints = get_type_hints(Record) if found.name == "native" else {}
    sample = Record(id="", node="", direction="outgoing")
    kinds = ((column.name, hints.get(column.name) or type(column.value(sample))) for column in found.columns)
    return arrow.schema([(name, _kind(arrow, kind)) for name, kind in kinds])


def _kind(arrow: Any, hint: object) -> object:
    if get_origin(hint) is types.UnionType:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    if hint is int:
        return arrow.int64()
    if hint is bool:
        return arrow.bool_()
    return arrow.list_(arrow.string()) if get_origin(hint) is list else arrow.string()


def _value(value: object) -> object:
    """What a newer schema wrote is one text of JSON, "" for nothing; lone surrogates are no UTF-8 and are replaced."""
    if isinstance(value, dict):
        return msgspec.json.encode(value, enc_hook=repr).decode() if value else ""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value
