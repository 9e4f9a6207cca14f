"""Digest secrets of an account from what an operator enters: a password, or hashes made elsewhere.

Pure. Only the HA1 of RFC 7616 §3.4.2 is kept, one per algorithm, never the password. No message holds any of them.
"""

from __future__ import annotations

import hashlib
import re

__all__ = ["ALGORITHMS", "secret_of"]

ALGORITHMS = {"MD5": "md5", "SHA-256": "sha256", "SHA-512-256": "sha512_256"}
_HEX_LENGTH = {"MD5": 32, "SHA-256": 64, "SHA-512-256": 64}
_HEX = re.compile(r"[0-9a-fA-F]+\Z")
_MARK = "ha1:"


def secret_of(text: str, *, user: str, realm: str) -> tuple[dict[str, str], str]:
    """HA1 by algorithm, and a fault or "".

    `text` is a password, or one or several of `ha1:<32 hex>`, `ha1:SHA-256:<64 hex>`, `ha1:SHA-512-256:<64 hex>`
    separated by spaces.
    """
    if not text:
        return {}, "no password"
    if text.lower().startswith(_MARK):
        return _from_hashes(text.split())
    # RFC 7616 §3.4.2: A1 = unq(username) ":" unq(realm) ":" passwd
    secret = f"{user}:{realm}:{text}".encode()
    return {name: hashlib.new(function, secret, usedforsecurity=False).hexdigest() for name, function in ALGORITHMS.items()}, ""


def _from_hashes(words: list[str]) -> tuple[dict[str, str], str]:
    found: dict[str, str] = {}
    for word in words:
        name, colon, value = word[len(_MARK) :].rpartition(":")
        algorithm = name.upper() if colon else "MD5"
        if not word.lower().startswith(_MARK) or algorithm not in _HEX_LENGTH:
            return {}, "not of the form ha1:<hex>, ha1:SHA-256:<hex> or ha1:SHA-512-256:<hex>"
        if len(value) != _HEX_LENGTH[algorithm] or _HEX.match(value) is None:
            return {}, f"ha1 of {algorithm} is not {_HEX_LENGTH[algorithm]} hex digits"
        if algorithm in found:
            return {}, f"ha1 of {algorithm} twice"
        found[algorithm] = value.lower()
    return found, ""
