"""Export files under retention: what of a file's records is overdue, and the file without them.

Native JSON Lines, CSV and MessagePack can be read back, so that a record leaves its file when its time is over and the others
stay for billing to fetch. Other columns do not say why a call was kept: such a file goes as a whole, but not before billing had
a day. A rewritten file keeps its name; manifest, checksum and file are replaced in this order, so that a rewriting that was cut
off finds the overdue records still there and is done again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from cdr import steps
from cdr.export import FORMS, Writer, read
from cdr.files import Folder, Intent, checksum_line, replace_whole
from cdr.retention import DAY_MS, Rules, due_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdr.facts import Record

__all__ = ["Overdue", "overdue", "rewrite"]

PIECE = 1 << 20


class Overdue(NamedTuple):
    """What has to leave a file: `whole` the file itself, else records by reason and end (UTC ms)."""

    whole: bool
    records: list[tuple[str, int]]


def overdue(folder: Path, intent: Intent, rules: Rules, *, exports_ms: int, now_ms: int) -> Overdue:
    """What of a file is past its time. Raises OSError, and ExportError for a file that is not as it was written."""
    if not (folder / intent.file).exists():
        return Overdue(whole=False, records=[])
    if intent.written_at_ms + exports_ms <= now_ms:
        return Overdue(whole=True, records=[])
    shortest = min(rules.unbilled_ms, rules.fraud_ms)
    if intent.first_end_at_ms + shortest > now_ms:
        return Overdue(whole=False, records=[])
    if not _is_readable(intent):
        return Overdue(whole=intent.written_at_ms + max(shortest, DAY_MS) <= now_ms, records=[])
    found = [(*due_at(record, rules), record.end_at_ms) for record in _records(folder, intent)]
    gone: list[tuple[str, int]] = [(reason, ended) for reason, due, ended in found if due is not None and due <= now_ms]
    return Overdue(whole=len(gone) == len(found), records=gone)


def rewrite(opened: Folder, intent: Intent, rules: Rules, now_ms: int) -> None:
    """Replace the file by one without its overdue records. Raises as `overdue`."""
    writer = Writer(_form(intent), intent.profile)
    kept = [record for record in _records(opened.path, intent) if (due := due_at(record, rules)[1]) is None or due > now_ms]
    data = writer.head() + b"".join(writer.row(record) for record in kept) + writer.foot()
    new = msgspec.structs.replace(
        intent,
        records=len(kept),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    opened.note([new])
    replace_whole(opened.path / f"{intent.file}.sha256", checksum_line(new))
    steps.at("purge.rewriting")
    replace_whole(opened.path / intent.file, data)
    ends = [record.end_at_ms for record in kept]
    opened.note([msgspec.structs.replace(new, first_end_at_ms=min(ends), last_end_at_ms=max(ends))])  # only now: it tells when


def _form(intent: Intent) -> str:
    return Path(intent.file).suffix.removeprefix(".")


def _is_readable(intent: Intent) -> bool:
    return intent.profile == "native" and _form(intent) in FORMS


def _records(folder: Path, intent: Intent) -> Iterator[Record]:
    with (folder / intent.file).open("rb") as file:
        yield from read(iter(lambda: file.read(PIECE), b""), _form(intent))
