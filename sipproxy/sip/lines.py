"""What single header lines say, remembered: whether they are sound, their names, and the headers that are always looked at.

The messages of a call, of a device and of a carrier repeat most of their lines byte for byte. Each reader depends on the
line alone, folds inside, and its values are never changed; it raises ParseError, the same way each time. Left out: headers that
may be spread over several lines (message.py puts those together), and all others.
"""

from __future__ import annotations

import re

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import (
    COMMA,
    CR,
    LESS,
    QUOTE,
    QUOTED,
    SEMICOLON,
    SPACE,
    TAB,
    is_token,
    parse_number,
    shown,
    telltale,
    unfold,
)
from sipproxy.sip.headers import (
    CSeq,
    NameAddr,
    Via,
    ViaFrame,
    parse_cseq,
    parse_frame,
    parse_name_addr,
    parse_via,
    split_commas,
)
from sipproxy.sip.memo import CACHED, Remembered
from sipproxy.sip.shape import KNOWN, key_of

__all__ = [
    "LINE_END",
    "MAX_BODY",
    "MAX_NAMED",
    "call_id_of",
    "check_head",
    "check_line",
    "contacts_of",
    "cseq_of",
    "expires_of",
    "from_of",
    "length_of",
    "max_forwards_of",
    "name_of",
    "routes_of",
    "to_of",
    "value_of",
    "vias_of",
]

MAX_EXPIRES = 2**32 - 1  # §20.19 delta-seconds
MAX_BODY = 2**31 - 1  # of a claimed Content-Length; nothing is ever allocated by it.

MAX_NAMED = 4 * CACHED
"""Lines whose header's name is remembered: all lines of a message, of which a call has some twenty of its own."""
_CRLF = b"\r\n"
LINE_END = re.compile(rb"\r\n(?![ \t])")
_CONTROLS = bytes([*range(9), *range(10, 32), 127])  # all but HTAB
_HAS_CONTROL = telltale(bytes(byte for byte in range(256) if byte not in _CONTROLS))
_QUOTED = re.compile(QUOTED, re.DOTALL)
_QUOTED_PAIR = re.compile(rb"\\[\x00-\x09\x0b\x0c\x0e-\x7f]")  # §25.1 quoted-pair


def check_head(head: bytes) -> list[bytes]:
    """The start line and the header lines, folds kept. Raises ParseError for any line end but CRLF and any stray control."""
    if len(head.translate(None, _CONTROLS)) != len(head) - 2 * head.count(_CRLF):
        _check_controls(head)
    return LINE_END.split(head)


def check_line(line: bytes) -> None:
    """Raise ParseError for a stray control or line end in one line, folds inside."""
    if line.translate(_HAS_CONTROL) != line:
        _check_controls(line)


def _name(line: bytes) -> bytes:
    """The header's name in its long form and lower case. Raises ParseError for a line that is not sound."""
    if line.translate(_HAS_CONTROL) != line:
        _check_controls(line)
    end = line.find(b":")
    return (KNOWN.get(line[:end]) if end > 0 else None) or key_of(line)


def _check_controls(head: bytes) -> None:
    """Raise ParseError unless every control character is a quoted pair in a quoted string (RFC 4475 §3.1.1.2 has some)."""
    ends = head.count(_CRLF)
    if head.count(b"\r") != ends or head.count(b"\n") != ends:
        raise ParseError("a line end that is not CRLF", section="RFC 3261 §7")
    for line in LINE_END.split(head):
        rest = _QUOTED.sub(lambda quoted: _QUOTED_PAIR.sub(b"", quoted[0]), line).replace(_CRLF, b"")
        if len(rest) != len(rest.translate(None, _CONTROLS)):
            # The line is not shown, nor is any other that cannot be read: it may be a piece of a credential.
            raise ParseError("control character in a header line", section="RFC 3261 §25.1")


def _value(line: bytes) -> bytes:
    """What stands behind the colon, unfolded and stripped."""
    value = line.partition(b":")[2]
    return (unfold(value) if CR in value else value).strip(b" \t")


def _person(value: bytes, name: bytes) -> NameAddr:
    address = parse_name_addr(value)
    if address.is_star:
        raise ParseError(f"* is not a {name.decode('ascii')}", section="RFC 3261 §20.20")
    tag = address.tag
    if tag[:1] == b'"' if tag is not None else address.param(b"tag") is not None:
        # §25.1 tag-param: a token. Without a value it would be neither a tag nor room for one.
        raise ParseError(f"not a tag in {name.decode('ascii')}", section="RFC 3261 §19.3")
    return address


def _route(value: bytes) -> NameAddr:
    address = parse_name_addr(value)
    if address.is_star or LESS not in value:
        raise ParseError(f"not a route: {shown(value)}", section="RFC 3261 §20.34")  # name-addr only
    return address


def _vias(line: bytes) -> tuple[Via, ...]:
    # A sender writes alike in each transaction, only the branch is new.
    before, _, branch = line.partition(b";branch=")
    around = before + b";branch=*"
    if SEMICOLON in branch:
        branch, _, behind = branch.partition(b";")
        around += b";" + behind
    if is_token(branch):
        frame = _frames[around]
        if frame.has_gap:
            return (Via(frame, branch),)
    value = _value(line)
    return tuple(map(parse_via, split_commas(value))) if COMMA in value or not value else (parse_via(value),)


def _frame(line: bytes) -> ViaFrame:
    """What a line says that has "*" for its branch; _UNCLEAR where that may stand between quotes or be one of several."""
    if QUOTE in line or COMMA in line:
        return _UNCLEAR
    return parse_frame(_value(line), has_gap=True)


_UNCLEAR = ViaFrame("", b"", None, (), b"", has_gap=False)


def _from(line: bytes) -> NameAddr:
    return _person(_value(line), b"From")


def _to(line: bytes) -> NameAddr:
    return _person(_value(line), b"To")


def _contacts(line: bytes) -> tuple[NameAddr, ...]:
    return tuple(map(parse_name_addr, split_commas(_value(line))))


def _routes(line: bytes) -> tuple[NameAddr, ...]:
    return tuple(map(_route, split_commas(_value(line))))


def _call_id(line: bytes) -> bytes:
    value = _value(line)
    if not value or SPACE in value or TAB in value:
        raise ParseError(f"not a Call-ID: {shown(value)}", section="RFC 3261 §20.8")
    return value


def _cseq(line: bytes) -> CSeq:
    return parse_cseq(_value(line))


def _max_forwards(line: bytes) -> int:
    return parse_number(_value(line), 255, "max-forwards", "RFC 3261 §20.22")


def _expires(line: bytes) -> int:
    return parse_number(_value(line), MAX_EXPIRES, "expires", "RFC 3261 §20.19")


def _length(line: bytes) -> int:
    return parse_number(_value(line), MAX_BODY, "Content-Length", "RFC 3261 §20.14")


# Each is asked by the line: `cseq_of[line]`.
name_of = Remembered(_name, MAX_NAMED)
value_of = Remembered(_value)
vias_of = Remembered(_vias)
_frames = Remembered(_frame)  # by the line with a "*" for its branch
from_of = Remembered(_from)
to_of = Remembered(_to)
contacts_of = Remembered(_contacts)
routes_of = Remembered(_routes)
call_id_of = Remembered(_call_id)
cseq_of = Remembered(_cseq)
max_forwards_of = Remembered(_max_forwards)
expires_of = Remembered(_expires)
length_of = Remembered(_length)
