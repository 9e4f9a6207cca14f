"""What a node lets others carry for it, and they cannot make or change: in Via, Record-Route, Route and Path (RFC 3261 §16.6,
RFC 5626 §5.2).

Pure. Tokens are sealed with the node's secret in the manner of a synthetic initialisation vector (as RFC 5297, here with
HMAC-SHA-256 for both passes): the same content gives the same token, and a changed one does not open. What a token holds stays
hidden, because it stands in messages that customers and carriers see. What holds nothing, such as a branch, is signed, with
keyed BLAKE2b (RFC 7693): several are made for each message, and it takes a fifth of the time.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TypeVar

import msgspec

from sipproxy.sip.mac import Mac

__all__ = ["Tokens"]

MAC_BYTES = 12  # 96 bits: RFC 2104 §5 asks for no fewer than 80
MARK_BYTES = 10  # RFC 2104 §5 again
MAX_BYTES = 1024  # of a token that is looked at
PURPOSES = ((b"to-tag", 3), (b"to-tag", 1), (b"loop", 3), (b"branch", 2), (b"tag", 1))  # and how many parts

T = TypeVar("T", bound=msgspec.Struct)

_encode = msgspec.msgpack.Encoder().encode


class Tokens:
    """Seals and opens the tokens of one node; `key` is its secret and stays the same over restarts.

    `mark` stands before each token, to tell which of the node's workers made it (`engine.steering`); it proves nothing.
    """

    def __init__(self, key: bytes, mark: bytes = b"") -> None:
        self._begin = mark + b"." if mark else b""
        self._mac_of = Mac(hashlib.sha256(b"token-mac" + key).digest())
        self._stream = Mac(hashlib.sha256(b"token-stream" + key).digest())
        self._sign_key = hashlib.sha256(b"token-sign" + key).digest()
        self._begun = {purpose: self._begin_mark(*purpose) for purpose in PURPOSES}

    def seal(self, content: msgspec.Struct, context: bytes = b"") -> bytes:
        """A token of characters that a URI parameter may hold (RFC 3261 §25.1); it opens with the same `context` alone."""
        plain = _encode(content)
        mac = self._mac(type(content), plain, context)
        return self._begin + urlsafe_b64encode(mac + self._masked(plain, mac)).rstrip(b"=")

    def open(self, kind: type[T], token: bytes, context: bytes = b"") -> T | None:
        """What was sealed; None for a token of another kind, context or node, and for one that somebody made up."""
        if len(token) > MAX_BYTES:
            return None
        token = token.rpartition(b".")[2]
        try:
            data = urlsafe_b64decode(token + b"=" * (-len(token) % 4))
        except ValueError:
            return None
        mac, plain = data[:MAC_BYTES], self._masked(data[MAC_BYTES:], data[:MAC_BYTES])
        if not hmac.compare_digest(mac, self._mac(kind, plain, context)):
            return None
        try:
            return msgspec.msgpack.decode(plain, type=kind)
        except (msgspec.MsgspecError, ValueError):
            return None  # sealed by an earlier version, with other fields

    def sign(self, purpose: bytes, *parts: bytes) -> bytes:
        """A mark of 80 bits in hexadecimal over all parts; another purpose or other parts have another one.

        Where there are several parts none holds a line feed: they are pieces of header lines.
        """
        mac = self._begun[purpose, len(parts)].copy()
        mac.update(parts[0] if len(parts) == 1 else b"\n".join(parts))
        return mac.hexdigest().encode()

    def _begin_mark(self, purpose: bytes, parts: int) -> hashlib.blake2b:
        begun = hashlib.blake2b(digest_size=MARK_BYTES, key=self._sign_key)
        begun.update(b"%b %d\n" % (purpose, parts))  # the key's block is hashed when something follows it
        return begun

    def _mac(self, kind: type, plain: bytes, context: bytes) -> bytes:
        text = b"\0".join((kind.__name__.encode(), hashlib.sha256(context).digest(), plain))
        return self._mac_of.digest(text)[:MAC_BYTES]

    def _masked(self, data: bytes, mac: bytes) -> bytes:
        mask = self._stream.digest(mac + b"\0")
        if len(data) > len(mask):
            mask += b"".join([self._stream.digest(mac + bytes([n])) for n in range(1, -(-len(data) // 32))])
        return (int.from_bytes(data, "big") ^ int.from_bytes(mask[: len(data)], "big")).to_bytes(len(data), "big")
