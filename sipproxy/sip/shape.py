"""The names of a message's header lines: which lines are which header (RFC 3261 §7.3.1, §7.3.3).

The messages of one device name the same headers in the same order, so that what a row of names says is kept for the next
message with that row. Left out: what the lines say (lines.py, message.py).
"""

from __future__ import annotations

from sipproxy.sip.errors import ParseError
from sipproxy.sip.headers import canonical_name

__all__ = [
    "KNOWN",
    "MAX_SHAPES",
    "MAX_SHAPE_BYTES",
    "MAX_SHAPE_NAMES",
    "SINGLE",
    "Shape",
    "Shapes",
    "key_of",
    "remembered",
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

_SPELLINGS = (
    b"Accept Accept-Encoding Accept-Language Allow Allow-Events Authorization Call-ID Contact Content-Disposition "
    b"Content-Length Content-Type CSeq Date Diversion Event Expires From Max-Forwards Min-Expires Min-SE "
    b"P-Access-Network-Info P-Asserted-Identity P-Preferred-Identity Path Privacy Proxy-Authenticate Proxy-Authorization "
    b"Proxy-Require RAck Reason Record-Route Refer-To Require Route RSeq Server Session-Expires Subject Supported "
    b"Timestamp To Unsupported User-Agent Via Warning WWW-Authenticate"
).split()
KNOWN = {
    spelling: canonical_name(name)
    for name in (*_SPELLINGS, *(bytes((letter,)) for letter in b"abcdefijklmnorstuvxy"))
    for spelling in (name, name.lower(), name.upper())
}
"""Ways to write the names that real messages hold, so that most lines need one look into a dictionary."""
NEEDED = (b"via", b"from", b"to", b"call-id", b"cseq")
"""What every message has (§8.1.1), in the order in which a fault is told."""
LOOKED_AT = (b"max-forwards", b"expires")
"""What is read of every message that has it."""


class Shape:
    """What the names of a message's header lines say, which the messages of one device have in common; never changed."""

    __slots__ = (
        "copied", "first_line", "has_one_via", "is_complete", "is_short", "keys", "length_at", "needed", "places", "twice",
    )  # fmt: skip

    def __init__(self, keys: tuple[bytes, ...]) -> None:
        """`keys` are the names of all lines but the start line, in their long form and lower case."""
        self.keys = [b"", *keys]
        """With b"" for the start line."""
        self.is_short = len(keys) <= MAX_SHAPE_NAMES and sum(map(len, keys)) <= MAX_SHAPE_BYTES
        """Whether it, and what follows from it, is kept."""
        self.places: dict[bytes, list[int]] = {}
        """Where each name comes."""
        for number, key in enumerate(self.keys):
            self.places.setdefault(key, []).append(number)
        self.first_line = {key: numbers[0] for key, numbers in self.places.items()}
        """Where each name comes first."""
        self.twice = b""
        """A name of SINGLE that comes more than once; b"" for none."""
        self.is_complete = all(name in self.places for name in NEEDED)
        via, from_, to, call_id, cseq, hops, expires = (self.first_line.get(name, 0) for name in (*NEEDED, *LOOKED_AT))
        self.copied = tuple([number for number in (from_, to, call_id, cseq) if number])
        """Where what a response has of its request is, without Via (§8.2.6.2)."""
        self.needed = via, from_, to, call_id, cseq, hops, expires
        """Where NEEDED, all of which are there when the shape is complete, and LOOKED_AT come first; 0 for nowhere."""
        self.has_one_via = len(self.places.get(b"via", ())) == 1
        self.length_at = self.first_line.get(b"content-length", 0)
        """Where Content-Length is; 0 where it is not."""
        if len(self.places) != len(self.keys):
            self.twice = next((name for name in SINGLE.intersection(keys) if len(self.places[name]) > 1), b"")


class Shapes(dict[tuple[bytes, ...], Shape]):
    """Shapes by their keys, made when they are asked for; emptied when it is full."""

    __slots__ = ("forgotten", "most")

    def __init__(self) -> None:
        super().__init__()
        self.most = MAX_SHAPES
        self.forgotten = 0
        """How many went for lack of room."""

    @property
    def kept(self) -> int:
        """How many there are."""
        return len(self)

    def __missing__(self, keys: tuple[bytes, ...]) -> Shape:
        shape = Shape(keys)
        if shape.is_short:
            if len(self) >= self.most:
                self.forgotten += len(self)
                self.clear()
            self[keys] = shape
        return shape


remembered = Shapes()  # to be asked by the names: `remembered[keys]`


def key_of(line: bytes) -> bytes:
    """The name of a header line in its long form and lower case. Raises ParseError."""
    end = line.find(b":")
    if end < 0:
        raise ParseError("header line without a colon", section="RFC 3261 §7.3.1")
    return canonical_name(line[:end].rstrip(b" \t"))  # §25.1 HCOLON: spaces before the colon
