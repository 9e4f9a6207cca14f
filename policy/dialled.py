"""What was dialled: a Request-URI, or a bare dialled string, read into a number, its context and its faults.

Pure; never raises. Percent-escapes are decoded once, *after* the URI is split, so that an escape never changes where a part
ends. Left out: what the number means (`policy.numbers`) and which of them are emergency calls (`policy.emergency`).
RFC 3261 §19.1 and §19.1.6, RFC 3966 §3 and §5.1, RFC 5031 (only as far as `urn:` is told apart).
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

__all__ = ["KNOWN_LENGTH", "KNOWN_TARGETS", "MAX_NUMBER", "PORTING_PREFIX", "Dialled", "read"]

PORTING_PREFIX = "porting prefix"  # the fault of a number that only networks use between each other

KNOWN_TARGETS, KNOWN_LENGTH = 4096, 200  # targets whose meaning is kept, of so many bytes at most: it follows from them alone
MAX_TARGET = 2048  # bytes of a target that are looked at; longer ones are refused
MAX_NUMBER = 40  # characters of a number after separators are dropped; the longest used one has 24

# RFC 3966 §3 visual separators, and the space that users and routers put into numbers all the same.
SEPARATORS = b"-.() "

# The form that almost every call has: nothing to decode, drop or split.
_PLAIN = re.compile(rb"(?:[sS][iI][pP][sS]?:(\+?[0-9]{1,32})@[^@]*|(\+?[0-9]{1,32}))\Z")
_SCHEMES = {b"tel:": "tel", b"sip:": "sip"}
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*):")
_UNPRINTABLE = re.compile(rb"[^\x20-\x7E]")
_HEX = b"0123456789abcdefABCDEF"
_ESCAPES = {bytes((high, low)): bytes((int(bytes((high, low)), 16),)) for high in _HEX for low in _HEX}
_CONTEXT = re.compile(rb"\+[0-9]{1,15}\Z")
_HOST_ONLY = re.compile(rb"(11[02])(?=[:;?]|\Z)")  # `sip:112`: no user part, but nothing else can be meant
_PORTING = re.compile(r"(?:\+?49|0049|0)?[dD][0-9]{3}")

# `*31#` in front of a number hides the caller's number for one call, `#31#` shows it.
_FEATURES = {"*31#": True, "#31#": False}


class Dialled(NamedTuple):
    """A target taken apart.

    `number` is digits with at most one `+` in front, or "" with `fault` and `status` set; `context` the global
    phone-context ("+49...") or ""; `hide` says that `*31#` stood in front; `spoken` is the same text before any fault is
    looked at, digits of all scripts mapped to ASCII, from which emergency calls are recognised; `how` names what was
    done to get here.
    """

    number: str
    context: str = ""
    hide: bool = False
    fault: str = ""
    status: int = 0
    spoken: str = ""
    how: str = ""


def read(target: bytes) -> Dialled:
    """Take `target` apart. Status of a fault: 400 syntax, 404 no number, 416 unknown scheme, 484 nothing dialled."""
    plain = _PLAIN.match(target)
    if plain is not None:
        number = (plain[1] or plain[2]).decode("ascii")
        return Dialled(number, spoken=number)
    return _read_slowly(target)


def _read_slowly(target: bytes) -> Dialled:
    fault = ""
    if len(target) > MAX_TARGET:
        target, fault = target[:MAX_TARGET], f"target longer than {MAX_TARGET} bytes"
    scheme, rest = _split_scheme(target)
    if scheme == "urn":
        text = _decode(rest).decode("utf-8", "replace").lower()
        return Dialled(
            "", fault=fault or "service urn without a meaning here", status=400 if fault else 404, spoken=f"urn:{text}"
        )
    if scheme not in ("", "sip", "sips", "tel"):
        return Dialled("", fault=f"unknown uri scheme {scheme[:20]!r}", status=416)
    user = rest
    if scheme != "tel":
        user, at, host = rest.partition(b"@")
        if b"@" in host:
            fault = fault or "more than one @ in the uri"
        if not at and scheme and not fault:
            bare = _HOST_ONLY.match(rest)
            user = bare[1] if bare else b""
        user, colon, _ = user.partition(b":")
        if colon:
            fault = fault or "password part in the user info"
    return _read_user(user, fault)


def _split_scheme(target: bytes) -> tuple[str, bytes]:
    """The scheme in lower case and what follows it; "" and all of it for a bare dialled string."""
    scheme = _SCHEMES.get(target[:4])
    if scheme is not None:
        return scheme, target[4:]
    match = _SCHEME.match(target)
    if match is None:
        return "", target
    return match[1].decode("ascii").lower(), target[match.end() :]


def _decode(text: bytes) -> bytes:
    """Percent-escapes decoded, once; what is no escape stays as it is."""
    first, *rest = text.split(b"%")
    parts = [first]
    for part in rest:
        byte = _ESCAPES.get(part[:2])
        parts.append(b"%" + part if byte is None else byte + part[2:])
    return b"".join(parts)


def _read_user(user: bytes, fault: str) -> Dialled:
    """The telephone-subscriber part: number and parameters (RFC 3966 §3; in a SIP URI's user part by RFC 3261 §19.1.6)."""
    first, semicolon, params = user.partition(b";")
    context, said = "", ""
    if semicolon:
        context, said, param_fault = _read_params(params.split(b";"))
        fault = fault or param_fault
    decoded = _decode(first) if b"%" in first else first
    text = decoded.translate(None, SEPARATORS)
    number = text.decode("ascii") if text.isascii() else _spoken(text)
    hide = None
    if number[:1] in ("*", "#"):
        hide = _FEATURES.get(number[:4])
        if hide is not None:
            number = number[4:]
            said += ", caller hidden" if hide else ", caller shown"
    if number[-1:] == "#":
        number = number.rstrip("#")
    if text != decoded:
        said = ", separators dropped" + said
    if decoded != first:
        said = ", escapes decoded" + said
    how = said[2:]
    if not fault and text.isascii() and len(number) <= MAX_NUMBER and _is_number(number):
        return Dialled(number, context, bool(hide), "", 0, number, how)
    status = 400
    if not fault and _UNPRINTABLE.search(decoded):
        fault = "control or non-ASCII character in the number"
    if not fault:
        fault, status = _check_number(number)
    return Dialled("", context, False, fault, status, number, how)  # noqa: FBT003 - in the order of the fields


def _is_number(text: str) -> bool:
    """Digits, with or without "+". Of ASCII text alone: str.isdigit accepts the digits of every script."""
    return text.isdigit() or (text[:1] == "+" and text[1:].isdigit())


def _check_number(number: str) -> tuple[str, int]:
    """What is wrong with a text that is no number, and the status that says so."""
    if not number or number == "+":
        return "nothing dialled", 484
    if len(number) > MAX_NUMBER:
        return f"more than {MAX_NUMBER} characters", 404
    if "%" in number:
        return "escape left after decoding once", 400
    if "*" in number or "#" in number:
        return "feature code that is not offered", 404
    if _PORTING.match(number):
        return PORTING_PREFIX, 404
    return f"not a number: {number[:40]!r}", 404


def _spoken(text: bytes) -> str:
    """Text with the decimal digits of all scripts as ASCII. Nothing is dropped, so that nothing moves to the front."""
    mapped = []
    for char in text.decode("utf-8", "replace"):
        digit = unicodedata.decimal(char, -1)
        mapped.append(char if digit < 0 else str(digit))
    return "".join(mapped)


def _read_params(params: list[bytes]) -> tuple[str, str, str]:
    """Global phone-context or "", what was done, and a fault or "". All other parameters are dropped, and named.

    They say how a network is to reach the number, or whom to ask for behind it (rn, npdi, cic, ext, isub, postd, tgrp): a
    customer has no say in the first, and the second is no part of the number.
    """
    context, seen, dropped = "", False, []
    for param in params:
        name, _, raw_value = param.partition(b"=")
        if name != b"phone-context":
            name = (_decode(name) if b"%" in name else name).lower()
        if name != b"phone-context":
            dropped.append(name.decode("ascii", "replace")[:20])
            continue
        if seen:
            return "", "", "two phone-contexts"  # RFC 3966 §3: each parameter at most once
        seen = True
        if raw_value[:1] not in (b"+", b"%"):
            continue  # §5.1.5: a domain name; the number is then read as dialled
        value = (_decode(raw_value) if b"%" in raw_value else raw_value).translate(None, SEPARATORS)
        if value[:1] != b"+":
            continue
        if _CONTEXT.match(value) is None:
            return "", "", "malformed phone-context"
        context = value.decode("ascii")
    said = f", context {context}" if context else ""
    if dropped:
        said += ", parameters dropped: " + " ".join(dropped[:8])
    return context, said, ""
