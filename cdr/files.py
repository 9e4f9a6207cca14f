"""Export files: written aside, whole under their name, each once (design: §7).

A folder holds `cdr-<node>-<stamp>-<number>.<ending>`, beside each `<file>.sha256` (as `sha256sum -c` reads it, the number of
records in a comment), and `manifest.jsonl` with a line for each file. Names are never used twice, files never overwritten: one
process at a time has the folder, and a number is above all that the manifest and the folder know.

A file comes into being in steps, and a crash at each leaves something that the next `Folder` puts right:

1. rows go to `.<file>.part`, which is synced;                   left over: deleted, its records come again
2. `.<file>.intent` says what it is and which entries it holds;  left over beside its part: deleted with it
3. checksum, then file get their names, the folder is synced;    left over: finished by steps 4 and 5
4. the caller has the entries acknowledged, and may send the file elsewhere before
5. a line in the manifest, and the intent goes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

import msgspec

from cdr import steps
from cdr.storage import sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cdr.facts import Record

__all__ = ["MANIFEST", "Folder", "FolderError", "Intent", "Rows", "checksum_line", "digest", "manifest", "replace_whole"]

MANIFEST = "manifest.jsonl"
_NAME = re.compile(r"cdr-[A-Za-z0-9._-]+-[0-9]{8}T[0-9]{6}Z-([0-9]{6,})\.[a-z]+")
_CHUNK = 1 << 20

_json = msgspec.json.Encoder().encode


class FolderError(Exception):
    """The folder cannot be used, or holds what it should not; the text names the file and says why."""


class Rows(Protocol):
    """What makes a file's bytes: `cdr.export.Writer`, or Parquet's."""

    form: str
    ending: str

    def head(self) -> bytes: ...
    def row(self, record: Record) -> bytes: ...
    def foot(self) -> bytes: ...


class Intent(msgspec.Struct, omit_defaults=True):
    """One file, as the manifest has it. `entries` are only in the intent. Stamps are UTC ms, `first` and `last` of ends."""

    file: str
    records: int
    bytes: int
    sha256: str
    profile: str
    written_at_ms: int
    first_end_at_ms: int
    last_end_at_ms: int
    group: str = ""
    stream: str = ""
    entries: list[str] = []
    deleted_at_ms: int = 0  # by retention; 0 while it is there


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def manifest(folder: Path) -> list[Intent]:
    """The files that were written to a folder, in order; of two lines about one file the later counts. Raises FolderError.

    A last line that a crash cut off is left out: its intent is still there.
    """
    path = folder / MANIFEST
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FolderError(f"{path}: {error.strerror or error}") from None
    found: dict[str, Intent] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            intent = msgspec.json.decode(line, type=Intent)
        except (msgspec.MsgspecError, ValueError) as error:
            if number == len(lines):
                break
            raise FolderError(f"{path}:{number}: no line of a manifest: {error}") from None
        found[intent.file] = intent
    return list(found.values())


class Folder:
    """A folder for one process. Use it as a context manager; `unfinished` is for the caller to acknowledge and `finish`."""

    def __init__(self, path: Path, *, node: str) -> None:
        """`node` is part of the names."""
        self.path = path
        self.unfinished: list[Intent] = []
        self._node = node
        self._lock = -1
        self._number = 0

    def __enter__(self) -> Folder:
        """Raises FolderError when the folder cannot be written or another process has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._adopt()
        except BlockingIOError:
            self._release()
            raise FolderError(f"{self.path}: another export writes there") from None
        except OSError as error:
            self._release()
            raise FolderError(f"{error.filename or self.path}: {error.strerror or error}") from None
        except FolderError:
            self._release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def begin(self, rows: Rows, *, at_ms: int, stamp: str) -> Part:
        """A new file, still aside. `stamp` is `at_ms` as in names, such as 20260731T120000Z. Raises FolderError."""
        self._number += 1
        return Part(self.path, f"cdr-{self._node}-{stamp}-{self._number:06d}.{rows.ending}", rows, at_ms)

    def finish(self, intent: Intent) -> None:
        """What the file holds is acknowledged: note it, and forget the entries. Raises FolderError."""
        try:
            self.note([msgspec.structs.replace(intent, entries=[])])
            steps.at("export.noted")
            _intent_of(self.path, intent.file).unlink(missing_ok=True)
        except OSError as error:
            raise FolderError(f"{error.filename or self.path}: {error.strerror or error}") from None

    def note(self, lines: Iterable[Intent]) -> None:
        """Append to the manifest, synced. Raises OSError."""
        with (self.path / MANIFEST).open("ab") as file:
            file.write(b"".join(_json(line) + b"\n" for line in lines))
            _sync(file)
        sync_directory(self.path)

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _adopt(self) -> None:
        """Put right what a crash left, and find the highest number."""
        _mend(self.path / MANIFEST)
        known = {intent.file for intent in manifest(self.path)}
        for path in sorted(self.path.glob(".cdr-*.intent")):
            intent = _read_intent(path)
            if self._part_of(intent).exists() or not (self.path / intent.file).exists():
                # It never got its name, or somebody has fetched it since: rather twice than never, the id tells.
                (self.path / f"{intent.file}.sha256").unlink(missing_ok=True)
                path.unlink()
            elif intent.file in known:
                path.unlink()
            else:
                self.unfinished.append(intent)
                known.add(intent.file)
        for path in self.path.glob(".cdr-*.part"):
            path.unlink()
        names = [*known, *(path.name.removesuffix(".sha256") for path in self.path.glob("cdr-*"))]
        self._number = max((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), default=0)
        sync_directory(self.path)

    def _part_of(self, intent: Intent) -> Path:
        return self.path / f".{intent.file}.part"


class Part:
    """A file that is being written."""

    def __init__(self, folder: Path, name: str, rows: Rows, at_ms: int) -> None:
        self.records = 0
        self.entries: list[str] = []
        self._folder, self._name, self._rows, self._at_ms = folder, name, rows, at_ms
        self._hash = hashlib.sha256()
        self._bytes = 0
        self._first, self._last = 0, 0
        self._path = folder / f".{name}.part"
        try:
            self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640), "wb")
            self._write(rows.head())
        except OSError as error:
            raise FolderError(f"{self._path}: {error.strerror or error}") from None

    def add(self, record: Record, entry: str = "") -> None:
        """Another row. Raises FolderError, and what the rows raise for a record that they cannot hold."""
        data = self._rows.row(record)
        try:
            self._write(data)
        except OSError as error:
            raise FolderError(f"{self._path}: {error.strerror or error}") from None
        self._first = min(self._first or record.end_at_ms, record.end_at_ms)
        self._last = max(self._last, record.end_at_ms)
        self.records += 1
        if entry:
            self.entries.append(entry)

    def close(self, *, profile: str, group: str = "", stream: str = "") -> Intent:
        """Give the file its name; it is on disk then. Raises FolderError: nothing has that name then, or all of it."""
        try:
            self._write(self._rows.foot())
            _sync(self._file)
            self._file.close()
            steps.at("export.written")
            intent = Intent(
                file=self._name,
                records=self.records,
                bytes=self._bytes,
                sha256=self._hash.hexdigest(),
                profile=profile,
                written_at_ms=self._at_ms,
                first_end_at_ms=self._first,
                last_end_at_ms=self._last,
                group=group,
                stream=stream,
                entries=self.entries,
            )
            replace_whole(_intent_of(self._folder, self._name), _json(intent))
            sync_directory(self._folder)
            steps.at("export.intended")
            self._publish(intent)
        except OSError as error:
            self.abandon()
            raise FolderError(f"{error.filename or self._path}: {error.strerror or error}") from None
        return intent

    def abandon(self) -> None:
        """Forget the file, unless it has its name. Never raises: what is left over the next `Folder` clears away."""
        with contextlib.suppress(OSError):
            self._file.close()  # what it could not write is lost with it
        with contextlib.suppress(OSError):
            if self._path.exists():
                _intent_of(self._folder, self._name).unlink(missing_ok=True)  # first: without its part it would count
                self._path.unlink()

    def _publish(self, intent: Intent) -> None:
        final = self._folder / self._name
        if final.exists():
            raise FolderError(f"{final} is there already; nothing is overwritten")
        replace_whole(self._folder / f"{self._name}.sha256", checksum_line(intent))
        steps.at("export.checksum")
        self._path.rename(final)
        sync_directory(self._folder)
        steps.at("export.renamed")

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._bytes += len(data)


def _intent_of(folder: Path, name: str) -> Path:
    return folder / f".{name}.intent"


def _read_intent(path: Path) -> Intent:
    """Raises FolderError: it was written whole, so what does not fit is none of ours."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Intent)
    except (msgspec.MsgspecError, ValueError) as error:
        raise FolderError(f"{path}: {error}") from None


def _mend(path: Path) -> None:
    """Cut off a last line that a crash left unfinished, so that the next one does not become part of it."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
            _sync(file)


def checksum_line(intent: Intent) -> bytes:
    """What stands beside a file, for `sha256sum -c`."""
    return f"# {intent.records} records, columns {intent.profile}\n{intent.sha256}  {intent.file}\n".encode()


def replace_whole(path: Path, data: bytes) -> None:
    """The file with this content, or none, and on disk; aside first."""
    part = path.with_name(f".{path.name.lstrip('.')}.part")
    with part.open("wb") as file:
        file.write(data)
        _sync(file)
    part.replace(path)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
