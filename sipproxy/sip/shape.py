"""The names of a message's header lines: which lines are which header (RFC 3261 §7.3.1, §7.3.3).

The messages of one device name the same headers in the same order, so that what a row of names says is kept for the next
message with that row. Left out: what the lines say (lines.py, message.py).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sipproxy.sip.errors import ParseError
from sipproxy.sip.headers import canonical_name

__all__ = [
    "MAX_SHAPES",
    "MAX_SHAPE_BYTES",
    "MAX_SHAPE_NAMES",
    "SINGLE",
    "Shape",
    "key_of",
    "names_of",
    "read_shape",
    "remembered",
    "shape_of",
]

MAX_SHAPES = 512
"""Different rows of header names that are remembered: some for each kind of device and method."""
MAX_SHAPE_NAMES, MAX_SHAPE_BYTES = 64, 1024  # of one row

SINGLE = frozenset(
    b"call-id content-disposition content-length content-type cseq date event expires from max-breadth max-forwards "
    b"min-expires min-se rack refer-to referred-by replaces rseq session-expires sip-etag sip-if-match target-dialog "
    b"timestamp to".split()
)
"""Headers that come at most once (§7.3.1 and the RFC of each): two would have two readings."""

# Ways to write the names that real messages hold, so that most lines need one dictionary look-up. The key has the colon.
_SPELLINGS = (
    b"Accept Accept-Encoding Accept-Language Allow Allow-Events Authorization Call-ID Contact Content-Disposition "
    b"Content-Length Content-Type CSeq Date Diversion Event Expires From Max-Forwards Min-Expires Min-SE "
    b"P-Access-Network-Info P-Asserted-Identity P-Preferred-Identity Path Privacy Proxy-Authenticate Proxy-Authorization "
    b"Proxy-Require RAck Reason Record-Route Refer-To Require Route RSeq Server Session-Expires Subject Supported "
    b"Timestamp To Unsupported User-Agent Via Warning WWW-Authenticate"
).split()
_KNOWN = {
    spelling + b":": canonical_name(name)
    for name in (*_SPELLINGS, *(bytes((letter,)) for letter in b"abcdefijklmnorstuvxy"))
    for spelling in (name, name.lower(), name.upper())
}
_NAME = re.compile(rb"\n([^:\r\n]*+:)")  # to the end of its line at most: many folds without a colon would take their square


class Shape(NamedTuple):
    """What the names of a message's header lines say, which the messages of one device have in common."""

    keys: list[bytes]
    """For each line the header's name in its long form and lower case; b"" for the start line."""
    first_line: dict[bytes, int]
    """Where each name comes first."""
    twice: bytes
    """A name of SINGLE that comes more than once; b"" for none."""


def shape_of(keys: list[bytes]) -> Shape:
    """What this row of names says, b"" for the start line in front."""
    first_line = dict(zip(keys, range(len(keys)), strict=True))
    twice = b""
    if len(first_line) != len(keys):
        first_line = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
        twice = next((name for name in SINGLE.intersection(keys) if keys.count(name) > 1), b"")
    return Shape(keys, first_line, twice)


remembered: dict[tuple[bytes, ...], Shape] = {}
"""Shapes of heads without folds by the names as written; emptied when it is full."""


def names_of(head: bytes) -> tuple[bytes, ...]:
    """What stands before the first colon of each line of a head, colon and spaces included.

    A line without a colon has none; a fold with one has what stands before it, white space first.
    """
    return tuple(_NAME.findall(head))


def read_shape(names: tuple[bytes, ...], lines: list[bytes], *, folds: bool) -> Shape:
    """The shape of these lines, the start line first, whose head has the names. Raises ParseError for a line without a sound
    name."""
    shape = shape_of([b"", *map(key_of, lines[1:])])
    # With as many names as lines, and no folds, each is what its line begins with.
    if not folds and len(names) + 1 == len(lines) <= MAX_SHAPE_NAMES and sum(map(len, names)) <= MAX_SHAPE_BYTES:
        if len(remembered) >= MAX_SHAPES:
            remembered.clear()
        remembered[names] = shape
    return shape


def key_of(line: bytes) -> bytes:
    """The name of a header line in its long form and lower case. Raises ParseError."""
    name, colon, _ = line.partition(b":")
    if not colon:
        raise ParseError("header line without a colon", section="RFC 3261 §7.3.1")
    return _KNOWN.get(name + colon) or canonical_name(name.rstrip(b" \t"))  # §25.1 HCOLON: spaces before the colon
