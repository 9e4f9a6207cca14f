"""The file format of the journal: segments of framed records (design: §8).

A segment is named by the position of its first record and starts with a header, written twice so that no single fault in it
makes the records unreadable. A position counts the bytes of all frames ever written, over all segments. A frame is

    marker (4)   length of the payload (4)   CRC-32C (4)   payload        all integers little-endian

The CRC covers length, position and payload, and starts from a salt that is drawn once for a journal: neither a record's text,
which comes from peers, nor a frame that was copied or left over from elsewhere can pass for a record. The marker begins with
0xC1, which MessagePack never uses as a type. Pure functions over bytes; files, locks and threads are in `journal`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from crc32c import crc32c

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FRAME_SIZE",
    "HEADER_SIZE",
    "MAX_PAYLOAD",
    "SUFFIX",
    "Frame",
    "Header",
    "Hole",
    "file_name",
    "frames",
    "read_header",
    "write_frame",
    "write_header",
]

SUFFIX = ".cdrj"
MAGIC = b"\x89CDRJ\r\n\x1a"  # As in PNG: a transfer that changes line ends or the eighth bit destroys it.
VERSION = 1
MARKER = b"\xc1CDR"
MAX_PAYLOAD = 1 << 20  # Every text of a message of 64 KiB, three times over for replacement characters, fits several times.
MAX_NODE = 64  # bytes

_HEADER = struct.Struct(f"<8sHxxIQQQ{MAX_NODE}s")
_CRC = struct.Struct("<I")
_COPY_SIZE = 128
HEADER_SIZE = 2 * _COPY_SIZE
_FRAME = struct.Struct("<4sII")
FRAME_SIZE = _FRAME.size
_SEED = struct.Struct("<QI")


class Header(NamedTuple):
    """What a segment says of itself: where it begins and what was known when it was created."""

    position: int  # of its first record
    salt: int  # 32 bits, the same in all segments of a journal
    last_seq: int  # the highest sequence number given before
    confirmed_seq: int
    node: str


class Frame(NamedTuple):
    """A whole record: `offset` of the frame in the data, `payload` its bytes, `end` the offset behind it."""

    offset: int
    payload: bytes
    end: int


class Hole(NamedTuple):
    """Bytes that are no record. `torn` when they can only be the beginning of a record that was never written whole."""

    offset: int
    end: int
    reason: str
    torn: bool


def file_name(position: int) -> str:
    return f"{position:020d}{SUFFIX}"


def write_header(header: Header) -> bytes:
    """Both copies. Raises ValueError for a node id that is empty or longer than MAX_NODE bytes."""
    node = header.node.encode()
    if not node or len(node) > MAX_NODE or b"\0" in node:
        raise ValueError(f"node id must have 1 to {MAX_NODE} bytes: {header.node!r:.80}")
    copy = _HEADER.pack(MAGIC, VERSION, header.salt, header.position, header.last_seq, header.confirmed_seq, node)
    copy = (copy + _CRC.pack(crc32c(copy))).ljust(_COPY_SIZE, b"\0")
    return copy + copy


def read_header(data: bytes) -> Header | None:
    """The header that `data` starts with, from whichever copy is whole; None when neither is or the version is unknown."""
    for start in (0, _COPY_SIZE):
        copy = data[start : start + _HEADER.size]
        crc = data[start + _HEADER.size : start + _HEADER.size + _CRC.size]
        if len(crc) < _CRC.size or crc32c(copy) != _CRC.unpack(crc)[0]:
            continue
        magic, version, salt, position, last_seq, confirmed_seq, node = _HEADER.unpack(copy)
        if magic == MAGIC and version == VERSION:
            return Header(position, salt, last_seq, confirmed_seq, node.rstrip(b"\0").decode("utf-8", "replace"))
    return None


def write_frame(payload: bytes, position: int, salt: int) -> bytes:
    """The frame of `payload` at `position`. Raises ValueError for a payload that is empty or above MAX_PAYLOAD."""
    if not payload or len(payload) > MAX_PAYLOAD:
        raise ValueError(f"journal entry of {len(payload)} bytes, allowed are 1 to {MAX_PAYLOAD}")
    size = len(payload)
    return _FRAME.pack(MARKER, size, crc32c(payload, crc32c(_SEED.pack(position, size), salt))) + payload


def frames(data: bytes, offset: int, position: int, salt: int) -> Iterator[Frame | Hole]:
    """Everything in `data` from `offset` on, where the position is `position`: records, and the holes between them."""
    shift = position - offset
    while offset < len(data):
        frame = _frame_at(data, offset, shift, salt)
        if frame is not None:
            yield frame
            offset = frame.end
            continue
        following = _resync(data, offset + 1, shift, salt)
        end = len(data) if following is None else following
        torn = following is None and _looks_torn(data, offset)
        yield Hole(offset, end, "torn" if torn else _fault(data, offset), torn)
        offset = end


def _frame_at(data: bytes, offset: int, shift: int, salt: int) -> Frame | None:
    start = offset + FRAME_SIZE
    if start > len(data):
        return None
    marker, length, crc = _FRAME.unpack_from(data, offset)
    end = start + length
    if marker != MARKER or not 0 < length <= MAX_PAYLOAD or end > len(data):
        return None
    payload = data[start:end]
    seed = crc32c(_SEED.pack(offset + shift, length), salt)
    return Frame(offset, payload, end) if crc32c(payload, seed) == crc else None


def _resync(data: bytes, offset: int, shift: int, salt: int) -> int | None:
    """The offset of the next whole record, None when there is none."""
    while (offset := data.find(MARKER, offset)) >= 0:
        if _frame_at(data, offset, shift, salt) is not None:
            return offset
        offset += 1
    return None


def _looks_torn(data: bytes, offset: int) -> bool:
    """Whether the rest is the beginning of one frame, or zeros that a file system left of an unfinished write."""
    rest = data[offset : offset + FRAME_SIZE]
    if not MARKER.startswith(rest[: len(MARKER)]):
        return data.count(0, offset) == len(data) - offset
    if len(rest) < FRAME_SIZE:
        return True
    length = _FRAME.unpack(rest)[1]
    return bool(0 < length <= MAX_PAYLOAD and offset + FRAME_SIZE + length > len(data))


def _fault(data: bytes, offset: int) -> str:
    return "checksum" if data.startswith(MARKER, offset) else "no record"
