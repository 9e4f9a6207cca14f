"""The lexical rules that URIs, header fields and whole messages share (RFC 3261 §25.1).

Everything is bytes; letters and digits are ASCII's only. A value handed to these functions has been unfolded. Left out: the
header fields themselves (headers.py) and the start line (message.py).
"""

from __future__ import annotations

import re

from sipproxy.sip.errors import ParseError

__all__ = [
    "BACKSLASH",
    "COMMA",
    "CR",
    "EQUALS",
    "GREATER",
    "HOST",
    "LESS",
    "LF",
    "MAX_PARAMS",
    "PAREN",
    "PERCENT",
    "QUOTE",
    "QUOTED",
    "SEMICOLON",
    "SPACE",
    "TAB",
    "TOKEN",
    "TOKEN_CHARS",
    "Params",
    "find_param",
    "is_token",
    "parse_number",
    "parse_params",
    "quote",
    "shown",
    "telltale",
    "unfold",
    "unquote",
]

# Bytes as the numbers that they are: `COMMA in value` looks for one at a tenth of the price of `b"," in value`, which Python
# tries as a number first, by way of an exception.
TAB = 0x09
LF = 0x0A
CR = 0x0D
SPACE = 0x20
QUOTE = 0x22
PERCENT = 0x25
PAREN = 0x28
COMMA = 0x2C
SEMICOLON = 0x3B
LESS = 0x3C
EQUALS = 0x3D
GREATER = 0x3E
BACKSLASH = 0x5C

Params = tuple[tuple[bytes, bytes], ...]
"""Names in lower case and values as written; b"" is no value, as an empty one is none."""

TOKEN_CHARS = rb"A-Za-z0-9\-.!%*_+`'~"
# Only single characters are repeated possessively, which leaves one way to read a text and keeps that linear. A group never is:
# Python before 3.11.5, Debian 12's too, goes on behind the place where its last turn failed (CPython's gh-106052).
QUOTED = rb'"[^"\\]*+(?:\\.[^"\\]*+)*"'  # §25.1 quoted-string
# §25.1 host, and the underscore that private networks put into host names. IPv6 references are not judged further: RFC 5118
# §4.10 asks to tolerate the address forms that the grammar of RFC 3261 allows by mistake.
HOST = rb"[A-Za-z0-9_][A-Za-z0-9\-_.]*+|\[[0-9A-Fa-f:.]++\]"

MAX_PARAMS = 64
"""Parameters of one value; the longest seen from real devices is below 20."""


def telltale(wanted: bytes) -> bytes:
    """A table that changes every byte but the wanted ones: a text has no others when `translate` leaves it as it is, which
    takes half as long as to have the wanted ones deleted."""
    return bytes(byte if byte in wanted else byte ^ 1 for byte in range(256))


TOKEN = re.compile(rb"[" + TOKEN_CHARS + rb"]+\Z")
_TOKENS = bytes(byte for byte in range(128) if TOKEN.match(bytes((byte,))))
_NO_TOKEN = telltale(_TOKENS)
_FOLD = re.compile(rb"\r\n[ \t]+")
_PAIR = re.compile(rb"\\(.)", re.DOTALL)
# §25.1 gen-value is a token, a host or a quoted string. Devices put '=', '/', '@' and the like into tags and base64 values;
# whatever cannot end a parameter is taken, so that there is still one reading only.
_PARAM = re.compile(
    rb"[ \t]*+;[ \t]*+([" + TOKEN_CHARS + rb"]++)[ \t]*+(?:=[ \t]*+(" + QUOTED + rb'|[^\x00-\x20\x7f",;<>\\?]++)[ \t]*+)?',
    re.DOTALL,
)
_NOT_PLAIN = telltale(_TOKENS + b";=")  # where there is nothing to quote and no space


def shown(data: bytes) -> str:
    """Peer input for an error text: its repr, cut to 80 characters."""
    return repr(data[:80])[1:][:80]


def unfold(value: bytes) -> bytes:
    """The value with every fold (RFC 3261 §7.3.1) turned into one space."""
    return _FOLD.sub(b" ", value) if CR in value else value


def is_token(value: bytes) -> bool:
    """Whether it is a token (§25.1)."""
    return bool(value) and value.translate(_NO_TOKEN) == value


def parse_number(value: bytes, maximum: int, what: str, section: str) -> int:
    """ASCII digits up to `maximum`. Raises ParseError for anything else: no sign, no space, no other script's digits."""
    # Twenty digits hold any 64-bit number, and leading zeros are legal (RFC 4475 §3.1.1.1); bytes.isdigit knows ASCII only.
    if not value.isdigit() or len(value) > 20:
        raise ParseError(f"{what} is not a number: {shown(value)}", section=section)
    number = int(value)
    if number > maximum:
        raise ParseError(f"{what} is above {maximum}: {shown(value)}", section=section)
    return number


def parse_params(data: bytes, position: int) -> Params:
    """The `;name=value` parameters from `position` to the end (quotes of values kept).

    Raises ParseError for anything else, a name that comes twice, or too many.
    """
    if position == len(data):
        return ()
    text = data[position:]
    params: list[tuple[bytes, bytes]] = []
    if text[0] == 0x3B and text.translate(_NOT_PLAIN) == text:
        # Nearly all are such: `;` and `=` mean what they are wherever they stand.
        for part in text[1:].split(b";"):
            name, equals, value = part.partition(b"=")
            if not name or (equals and not value):
                raise _no_params(data, position)
            params.append((name.lower(), value))
    else:
        end = len(data)
        match = _PARAM.match
        while position < end:
            found = match(data, position)
            if found is None or len(params) > MAX_PARAMS:
                raise _no_params(data, position)
            params.append((found[1].lower(), found[2] or b""))
            position = found.end()
    if len(params) > 1:
        if len(params) > MAX_PARAMS:
            raise _no_params(data, position)
        if len(dict(params)) != len(params):
            raise ParseError(f"a parameter comes twice: {shown(data)}", section="RFC 3261 §7.3.1")  # §7.3.1 MUST NOT
    return tuple(params)


def _no_params(data: bytes, position: int) -> ParseError:
    return ParseError(f"not a parameter list: {shown(data[position:])}", offset=position)


def find_param(params: Params, name: bytes) -> bytes | None:
    """The value of a parameter: b"" when it has none, None when it is absent. `name` in lower case."""
    for key, value in params:
        if key == name:
            return value
    return None


def unquote(value: bytes) -> bytes:
    """What a quoted string means; a value without quotes is returned as it is."""
    if len(value) < 2 or value[:1] != b'"' or value[-1:] != b'"':
        return value
    inner = value[1:-1]
    return _PAIR.sub(rb"\1", inner) if BACKSLASH in inner else inner


def quote(value: bytes) -> bytes:
    """`value` as a quoted string (RFC 3261 §25.1). Raises ValueError for a CR or LF, which no quoted string can hold."""
    if CR in value or LF in value:
        raise ValueError("a quoted string holds no line end")
    return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
