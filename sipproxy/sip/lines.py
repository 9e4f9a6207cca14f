"""What single header lines say, remembered: the readers of the headers that every message is looked at for.

The messages of a call, of a device and of a carrier repeat most of their lines byte for byte. Each reader is a function of the
line alone, folds inside, whose values are never changed; it raises ParseError, the same way each time. Left out: headers that
may be spread over several lines (message.py puts those together), and all others.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar, cast

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import CR, LESS, SPACE, TAB, parse_number, shown, unfold
from sipproxy.sip.headers import CSeq, NameAddr, Via, parse_cseq, parse_name_addr, parse_via, split_commas
from sipproxy.sip.uri import CACHED, CACHED_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_BODY",
    "call_id_of",
    "contacts_of",
    "cseq_of",
    "expires_of",
    "from_of",
    "length_of",
    "max_forwards_of",
    "read",
    "routes_of",
    "to_of",
    "value_of",
    "vias_of",
]

MAX_EXPIRES = 2**32 - 1  # §20.19 delta-seconds
MAX_BODY = 2**31 - 1  # of a claimed Content-Length; nothing is ever allocated by it.

T = TypeVar("T")


def read(reader: Callable[[bytes], T], line: bytes) -> T:
    """What the line says; a long one is read anew each time."""
    if len(line) <= CACHED_LENGTH:
        return reader(line)
    return cast("Callable[[bytes], T]", reader.__wrapped__)(line)  # type: ignore[attr-defined]


def value_of(line: bytes) -> bytes:
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


@lru_cache(maxsize=CACHED)
def vias_of(line: bytes) -> tuple[Via, ...]:
    return tuple(map(parse_via, split_commas(value_of(line))))


@lru_cache(maxsize=CACHED)
def from_of(line: bytes) -> NameAddr:
    return _person(value_of(line), b"From")


@lru_cache(maxsize=CACHED)
def to_of(line: bytes) -> NameAddr:
    return _person(value_of(line), b"To")


@lru_cache(maxsize=CACHED)
def contacts_of(line: bytes) -> tuple[NameAddr, ...]:
    return tuple(map(parse_name_addr, split_commas(value_of(line))))


@lru_cache(maxsize=CACHED)
def routes_of(line: bytes) -> tuple[NameAddr, ...]:
    return tuple(map(_route, split_commas(value_of(line))))


@lru_cache(maxsize=CACHED)
def call_id_of(line: bytes) -> bytes:
    value = value_of(line)
    if not value or SPACE in value or TAB in value:
        raise ParseError(f"not a Call-ID: {shown(value)}", section="RFC 3261 §20.8")
    return value


@lru_cache(maxsize=CACHED)
def cseq_of(line: bytes) -> CSeq:
    return parse_cseq(value_of(line))


@lru_cache(maxsize=CACHED)
def max_forwards_of(line: bytes) -> int:
    return parse_number(value_of(line), 255, "max-forwards", "RFC 3261 §20.22")


@lru_cache(maxsize=CACHED)
def expires_of(line: bytes) -> int:
    return parse_number(value_of(line), MAX_EXPIRES, "expires", "RFC 3261 §20.19")


@lru_cache(maxsize=CACHED)
def length_of(line: bytes) -> int:
    return parse_number(value_of(line), MAX_BODY, "Content-Length", "RFC 3261 §20.14")
