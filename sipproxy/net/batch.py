"""Datagrams of a socket in which many wait, as many as one system call gives (recvmmsg(2)): one by one they cost twice as much.

Python's socket module does not have that call. Where the C library does not either (it is Linux's) a batch is one datagram.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BATCH", "STAMP_BYTES", "Batch", "OneByOne", "batch"]

BATCH = 32  # datagrams in one system call, whose own cost is no longer seen then
ROOM_BYTES = 65536  # for each: no UDP payload is larger
STAMP_BYTES = 64  # of ancillary data, more than CMSG_SPACE of a timespec

_NAME_BYTES = 28  # of a sockaddr_in6
_IPV4, _IPV6 = struct.Struct("!2xH4s"), struct.Struct("!2xH4x16s")  # sockaddr_in and _in6 behind the family: port, address
_FAMILY = struct.Struct("@H")
_CMSG = struct.Struct("@Nii")  # length with this header, level, type
_CMSG_BYTES = socket.CMSG_LEN(0)


class _Part(ctypes.Structure):  # struct iovec
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):  # struct msghdr
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("parts", ctypes.c_void_p),
        ("part_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Entry(ctypes.Structure):  # struct mmsghdr
    _fields_ = (("header", _Header), ("size", ctypes.c_uint32))


_BEHIND = ctypes.sizeof(_Entry) - _Entry.size.offset - ctypes.sizeof(ctypes.c_uint32)
_SIZES = struct.Struct("=" + f"{_Entry.size.offset}xI{_BEHIND}x" * BATCH)
_RECVMMSG = getattr(ctypes.CDLL(None, use_errno=True), "recvmmsg", None)
if _RECVMMSG is not None:
    _RECVMMSG.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)


class OneByOne:
    """Reads any socket of datagrams, of which `source` and `ancillary` tell by their place among those that were read last."""

    def __init__(self) -> None:
        self._told: tuple[tuple[str, int], list[tuple[int, int, bytes]]] = ("", 0), []

    def read(self, sock: socket.socket, most: int) -> Sequence[bytes]:  # noqa: ARG002
        """What a socket that does not block has, `most` datagrams or fewer. Raises OSError: BlockingIOError when nothing waits,
        another when the kernel has something else to tell."""
        data, ancillary, _, source = sock.recvmsg(ROOM_BYTES, STAMP_BYTES)
        self._told = source, ancillary
        return [data]

    def source(self, number: int) -> tuple[str, int]:  # noqa: ARG002
        """The IP literal and port that a datagram came from."""
        return self._told[0][:2]

    def ancillary(self, number: int) -> list[tuple[int, int, bytes]]:  # noqa: ARG002
        """What the kernel told with a datagram, as `socket.recvmsg` gives it, but no more than its first word."""
        return self._told[1][:1]


class Batch(OneByOne):
    """The same, BATCH datagrams at once. Only where the C library has recvmmsg."""

    def __init__(self) -> None:
        self._data = bytearray(BATCH * ROOM_BYTES)  # of which pages that no datagram reached take no memory
        self._names, self._control = bytearray(BATCH * _NAME_BYTES), bytearray(BATCH * STAMP_BYTES)
        self._view = memoryview(self._data)
        self._begins = tuple(range(0, BATCH * ROOM_BYTES, ROOM_BYTES))
        self._parts, self._entries = (_Part * BATCH)(), (_Entry * BATCH)()
        data, names, control = (_address_of(room) for room in (self._data, self._names, self._control))
        for number, (part, entry) in enumerate(zip(self._parts, self._entries, strict=True)):
            header = entry.header
            part.base, part.length = data + number * ROOM_BYTES, ROOM_BYTES
            header.name, header.name_length = names + number * _NAME_BYTES, _NAME_BYTES
            header.parts, header.part_count = ctypes.addressof(part), 1
            header.control, header.control_length = control + number * STAMP_BYTES, STAMP_BYTES
        self._fresh = bytes(self._entries)  # what the kernel writes its lengths into, each time
        self._raw = memoryview(self._entries).cast("B")
        self._at = ctypes.addressof(self._entries)

    def read(self, sock: socket.socket, most: int) -> Sequence[bytes]:
        self._raw[:] = self._fresh
        assert _RECVMMSG is not None
        count = _RECVMMSG(sock.fileno(), self._at, min(most, BATCH), 0, None)
        if count < 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        view = self._view
        sizes = _SIZES.unpack(self._raw)[:count]
        return [view[begin : begin + size].tobytes() for begin, size in zip(self._begins, sizes, strict=False)]

    def source(self, number: int) -> tuple[str, int]:
        at = number * _NAME_BYTES
        (family,) = _FAMILY.unpack_from(self._names, at)
        port, address = (_IPV6 if family == socket.AF_INET6 else _IPV4).unpack_from(self._names, at)
        return socket.inet_ntop(family, address), port

    def ancillary(self, number: int) -> list[tuple[int, int, bytes]]:
        if self._entries[number].header.control_length < _CMSG_BYTES:
            return []
        at = number * STAMP_BYTES
        length, level, kind = _CMSG.unpack_from(self._control, at)
        return [(level, kind, bytes(self._control[at + _CMSG_BYTES : at + length]))]


def batch() -> OneByOne:
    """What reads as many at once as this machine's C library can."""
    return Batch() if _RECVMMSG is not None else OneByOne()


def _address_of(room: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(room))
