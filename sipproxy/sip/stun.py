"""STUN Binding requests on the SIP port, by which a router keeps its NAT's mapping open (RFC 5626 §3.5.2 and §8, RFC 5389).

Pure. A request is answered with the address it came from. No credentials are asked for and none are checked (RFC 5626 §8), and
nothing is sent of our own accord. Left out: TURN, ICE, STUN over streams, and clients of RFC 3489, which send no magic cookie.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib

__all__ = ["MAX_BYTES", "answer", "is_stun"]

MAX_BYTES = 548  # of a request that is looked at: RFC 5389 §7.1, what any IPv4 path takes whole
MAX_ATTRIBUTES = 16
COOKIE = b"\x21\x12\xa4\x42"
HEADER = struct.Struct("!HH4s12s")
REQUEST, SUCCESS, ERROR = 0x0001, 0x0101, 0x0111
ERROR_CODE, UNKNOWN_ATTRIBUTES, XOR_MAPPED_ADDRESS, FINGERPRINT = 0x0009, 0x000A, 0x0020, 0x8028
# RFC 5389 §18.2: MAPPED-ADDRESS, USERNAME, MESSAGE-INTEGRITY, ERROR-CODE, UNKNOWN-ATTRIBUTES, REALM, NONCE, XOR-MAPPED-ADDRESS.
# None of them changes the answer to a Binding request.
KNOWN = frozenset([0x0001, 0x0006, 0x0008, 0x0009, 0x000A, 0x0014, 0x0015, 0x0020])
OPTIONAL = 0x8000  # from here on an attribute that is not known is ignored (§15)
FINGERPRINT_XOR = 0x5354554E
FINGERPRINT_BYTES = 8


def is_stun(data: bytes) -> bool:
    """Whether a datagram is STUN's: a SIP message never begins with two zero bits (RFC 5626 §8)."""
    return len(data) >= HEADER.size and data[0] < 64 and data[4:8] == COOKIE


def answer(data: bytes, host: str, port: int) -> bytes | None:
    """The response to a Binding request from there; None for what gets none: indications, responses, what cannot be read."""
    kind, length, _, transaction = HEADER.unpack_from(data)
    if kind != REQUEST or length % 4 or len(data) != HEADER.size + length or len(data) > MAX_BYTES:
        return None
    attributes = _attributes(data)
    if attributes is None or not _is_whole(data, attributes):
        return None
    unknown = list(dict.fromkeys(name for name in attributes if name < OPTIONAL and name not in KNOWN))
    if unknown:  # §7.3.1
        names = b"".join(struct.pack("!H", name) for name in unknown)
        body = _attribute(ERROR_CODE, b"\0\0\4\x14") + _attribute(UNKNOWN_ATTRIBUTES, names)
    else:
        body = _attribute(XOR_MAPPED_ADDRESS, _mapped(host, port, transaction))
    marked = FINGERPRINT in attributes  # §8: who marks his requests is answered with a mark
    head = HEADER.pack(ERROR if unknown else SUCCESS, len(body) + (FINGERPRINT_BYTES if marked else 0), COOKIE, transaction)
    response = head + body
    return response + _attribute(FINGERPRINT, _fingerprint(response)) if marked else response


def _attributes(data: bytes) -> list[int] | None:
    """The attributes' types in order; None when they do not fill the message, or are too many."""
    found: list[int] = []
    at = HEADER.size
    while at < len(data):
        if at + 4 > len(data) or len(found) == MAX_ATTRIBUTES:
            return None
        name, length = struct.unpack_from("!HH", data, at)
        at += 4 + length + -length % 4
        found.append(name)
    return found if at == len(data) else None


def _is_whole(data: bytes, attributes: list[int]) -> bool:
    """Whether the message is what its FINGERPRINT says, which comes last where there is one (§15.5)."""
    if FINGERPRINT not in attributes:
        return True
    return data[-FINGERPRINT_BYTES:] == _attribute(FINGERPRINT, _fingerprint(data[:-FINGERPRINT_BYTES]))


def _fingerprint(before: bytes) -> bytes:
    return struct.pack("!I", zlib.crc32(before) ^ FINGERPRINT_XOR)


def _attribute(name: int, value: bytes) -> bytes:
    return struct.pack("!HH", name, len(value)) + value + bytes(-len(value) % 4)


def _mapped(host: str, port: int, transaction: bytes) -> bytes:
    """XOR-MAPPED-ADDRESS (§15.2): some NATs rewrite addresses that they find in a datagram."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mask = COOKIE + transaction
    hidden = bytes(one ^ other for one, other in zip(address.packed, mask, strict=False))
    return struct.pack("!BBH", 0, 1 if address.version == 4 else 2, port ^ int.from_bytes(COOKIE[:2], "big")) + hidden
