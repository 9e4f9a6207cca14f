"""What single header lines say, remembered: the readers of the headers that every message is looked at for.

The messages of a call, of a device and of a carrier repeat most of their lines byte for byte. Each reader depends on the
line alone, folds inside, and its values are never changed; it raises ParseError, the same way each time. Left out: headers that
may be spread over several lines (message.py puts those together), and all others.
"""

from __future__ import annotations

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import COMMA, CR, LESS, SPACE, TAB, parse_number, shown, unfold
from sipproxy.sip.headers import CSeq, NameAddr, Via, parse_cseq, parse_name_addr, parse_via, split_commas
from sipproxy.sip.memo import Remembered

__all__ = [
    "MAX_BODY",
    "call_id_of",
    "contacts_of",
    "cseq_of",
    "expires_of",
    "from_of",
    "length_of",
    "max_forwards_of",
    "routes_of",
    "to_of",
    "value_of",
    "vias_of",
]

MAX_EXPIRES = 2**32 - 1  # §20.19 delta-seconds
MAX_BODY = 2**31 - 1  # of a claimed Content-Length; nothing is ever allocated by it.


def _value(line: bytes) -> bytes:
    """What stands behind the colon, unfolded and stripped."""
    value = line[line.find(b":") + 1 :]
    return (unfold(value) if CR in value else value).strip(b" \t")


def _person(value: bytes, name: bytes) -> NameAddr:
    address = parse_name_addr(value)
    if address.is_star:
        raise ParseError(f"* is not a {name.decode('ascii')}", section="RFC 3261 §20.20")
    tag = address.param(b"tag")
    if tag is not None and (not tag or tag[:1] == b'"'):
        # §25.1 tag-param: a token. Without a value it would be neither a tag nor room for one.
        raise ParseError(f"not a tag in {name.decode('ascii')}", section="RFC 3261 §19.3")
    return address


def _route(value: bytes) -> NameAddr:
    address = parse_name_addr(value)
    if address.is_star or LESS not in value:
        raise ParseError(f"not a route: {shown(value)}", section="RFC 3261 §20.34")  # name-addr only
    return address


def _vias(line: bytes) -> tuple[Via, ...]:
    value = _value(line)
    return tuple(map(parse_via, split_commas(value))) if COMMA in value or not value else (parse_via(value),)


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
value_of = Remembered(_value)
vias_of = Remembered(_vias)
from_of = Remembered(_from)
to_of = Remembered(_to)
contacts_of = Remembered(_contacts)
routes_of = Remembered(_routes)
call_id_of = Remembered(_call_id)
cseq_of = Remembered(_cseq)
max_forwards_of = Remembered(_max_forwards)
expires_of = Remembered(_expires)
length_of = Remembered(_length)
