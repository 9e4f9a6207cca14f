"""Has the kernel give each datagram to the worker whose call it is, so that little has to be handed over between workers.

A classic BPF program (SO_ATTACH_REUSEPORT_CBPF, socket(7)) looks for the Call-ID in a datagram and chooses the socket of the
group by a hash of it, the one of `engine.steering`. It has neither loops nor a way back: the search is written out, a word at a
time, for the name "Call-ID" in any case at any place up to MAX_SEARCHED bytes. What it does not find there (the compact form,
a name that only begins so, a message with a long head, what is no SIP) goes by the kernel's own hash of source and port.

It is never relied upon: who reads a datagram still looks whose it is. Linux alone has it.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from typing import NamedTuple

__all__ = ["spread"]

MAX_SEARCHED = 1400  # bytes: the head of most messages, and a program below the kernel's bound of 4,096 instructions
FIRST = 16  # no header begins before: "SIP/2.0 200 OK\r\n" has as many bytes
STRIDE = 64  # bytes between two looks at whether the datagram goes on: beyond its end nothing may be read

# <linux/bpf_common.h>, <linux/filter.h>, <asm-generic/socket.h>: not in Python's socket module.
_SO_ATTACH_REUSEPORT_CBPF = 51
_LD_WORD, _LD_LENGTH, _LD_WORD_X, _LD_BYTE_X, _LD_KEPT, _LDX_KEPT, _LDX = 0x20, 0x80, 0x40, 0x50, 0x60, 0x61, 0x01
_LD, _STORE, _STORE_X, _TO_X, _TO_A = 0x00, 0x02, 0x03, 0x07, 0x87
_OR, _OR_X, _SHIFT, _MOD, _SUB, _ADD = 0x44, 0x4C, 0x64, 0x94, 0x14, 0x04
_JUMP, _JUMP_EQUAL, _JUMP_ABOVE, _JUMP_FROM, _RETURN, _RETURN_A = 0x05, 0x15, 0x25, 0x35, 0x06, 0x16
_ANY = 0xFFFFFFFF  # no index of a socket: the kernel chooses as without a program
_LOWER = 0x20202020
_INSTRUCTION = struct.Struct("=HBBI")

_NAME = b"all-id:"  # of "Call-ID:"; wherever it stands, one whole word of it is at a multiple of four
_WORDS = [int.from_bytes(_NAME[at : at + 4], "big") for at in range(4)]
_HASH, _AT = 0, 1  # places that the program keeps values in


class _Step(NamedTuple):
    """An instruction; `yes` and `no` are how many are left out behind it, `to` the label that it jumps to instead."""

    code: int
    value: int = 0
    yes: int = 0
    no: int = 0
    to: str = ""
    label: str = ""


def spread(sock: socket.socket, count: int, modulus: int, length: int) -> bool:
    """Have the kernel spread the datagrams of the SO_REUSEPORT group of `sock` over its first `count` sockets, in the order in
    which they were bound, as `engine.steering` hashes Call-IDs by `modulus` (below 2^24) and their first `length` bytes.

    False where the kernel cannot: it then goes on choosing by source and port.
    """
    if sys.platform != "linux":
        return False
    program = _assembled(_steps(count, modulus, length))
    buffer = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // _INSTRUCTION.size, ctypes.addressof(buffer))
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, described)
    except OSError:
        return False
    return True


def _steps(count: int, modulus: int, length: int) -> list[_Step]:
    steps = [_Step(_LD, 0), _Step(_STORE, _HASH)]
    for at in range(FIRST, MAX_SEARCHED, 4):
        if not (at - FIRST) % STRIDE:
            steps += [_Step(_LD_LENGTH), _Step(_JUMP_FROM, at + STRIDE, yes=1), _Step(_JUMP, to="unknown")]
        steps += [_Step(_LD_WORD, at), _Step(_OR, _LOWER)]
        # The last word that does not match leaves out the two that note the place; each one before it leaves out nothing.
        steps += [_Step(_JUMP_EQUAL, word, yes=3 - number, no=2 * (number == 3)) for number, word in enumerate(_WORDS)]
        steps += [_Step(_LDX, at), _Step(_JUMP, to="found")]
    steps += [_Step(_JUMP, to="unknown"), *_at_name(), *_over_spaces()]
    for at in range(length):
        steps += [
            _Step(_LDX_KEPT, _AT),
            _Step(_LD_BYTE_X, at),
            _Step(_JUMP_ABOVE, 0x20, yes=1),
            _Step(_JUMP, to="whole"),
            _Step(_TO_X),
            _Step(_LD_KEPT, _HASH),
            _Step(_SHIFT, 8),
            _Step(_OR_X),
            _Step(_MOD, modulus),
            _Step(_STORE, _HASH),
        ]
    steps += [_Step(_LD_KEPT, _HASH, label="whole"), _Step(_MOD, count), _Step(_RETURN_A)]
    return [*steps, _Step(_RETURN, _ANY, label="unknown")]


def _at_name() -> list[_Step]:
    """From any word of the name to its begin in X; "unknown" where what stands there is another name."""
    steps = [_Step(_JUMP_EQUAL, _WORDS[0], yes=0, no=1, label="found"), _Step(_JUMP, to="name")]
    for back in (1, 2, 3):
        steps += [_Step(_JUMP_EQUAL, _WORDS[back], yes=0, no=4)] if back < 3 else []
        steps += [_Step(_TO_A), _Step(_SUB, back), _Step(_TO_X), _Step(_JUMP, to="name")]
    whole = [(0, _WORDS[0]), (3, _WORDS[3])]
    for number, (at, word) in enumerate(whole):
        steps += [_Step(_LD_WORD_X, at, label="" if number else "name"), _Step(_OR, _LOWER)]
        steps += [_Step(_JUMP_EQUAL, word, yes=1), _Step(_JUMP, to="unknown")]
    return steps


def _over_spaces() -> list[_Step]:
    """Keep where the value begins: behind the name and up to two spaces."""
    steps = [_Step(_TO_A), _Step(_ADD, len(_NAME)), _Step(_TO_X)]
    for _ in range(2):
        steps += [_Step(_LD_BYTE_X, 0), _Step(_JUMP_EQUAL, 0x20, no=3), _Step(_TO_A), _Step(_ADD, 1), _Step(_TO_X)]
    return [*steps, _Step(_STORE_X, _AT)]


def _assembled(steps: list[_Step]) -> bytes:
    places = {step.label: number for number, step in enumerate(steps) if step.label}
    return b"".join(
        _INSTRUCTION.pack(step.code, step.yes, step.no, places[step.to] - number - 1 if step.to else step.value)
        for number, step in enumerate(steps)
    )
