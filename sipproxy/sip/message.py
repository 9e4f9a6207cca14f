"""A SIP message as its bytes plus an index of its header lines (RFC 3261 §7); views are parsed when they are asked for.

`parse_message` reads the structure only, in one scan: start line, header lines, Content-Length. `check_message` reads what
every message needs (§8.1.1, §16.3 item 1). A message has one reading: a line ends with CRLF and nothing else, no control
character stands outside a quoted pair, and a header that can come only once does. Left out: building (build.py), streams
(framing.py), bodies.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import COMMA, CR, QUOTED, SPACE, TAB, TOKEN, shown
from sipproxy.sip.headers import MAX_ELEMENTS, CSeq, NameAddr, Via, parse_via, split_commas
from sipproxy.sip.lines import (
    call_id_of,
    contacts_of,
    cseq_of,
    expires_of,
    from_of,
    length_of,
    max_forwards_of,
    read,
    routes_of,
    to_of,
    value_of,
    vias_of,
)
from sipproxy.sip.shape import Shape, key_of, names_of, read_shape, remembered, shape_of
from sipproxy.sip.uri import CACHED, Uri, parse_uri

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_HEADERS",
    "Message",
    "Request",
    "Response",
    "check_head",
    "check_message",
    "message_of",
    "parse_message",
    "salvage",
]

MAX_HEADERS = 200
"""Header lines of one message. Real ones stay below 60."""
MAX_METHOD = 64
"""Bytes of a method; the registered ones have at most 9, RFC 4475's longest 44."""
T = TypeVar("T")
_CRLF = b"\r\n"
_LINE_END = re.compile(rb"\r\n(?![ \t])")
_CONTROLS = bytes([*range(9), *range(10, 32), 127])  # all but HTAB
_QUOTED = re.compile(QUOTED, re.DOTALL)
_QUOTED_PAIR = re.compile(rb"\\[\x00-\x09\x0b\x0c\x0e-\x7f]")  # §25.1 quoted-pair
_VERSION = re.compile(rb"[sS][iI][pP]/[0-9]+\.[0-9]+\Z")


class Message:
    """What requests and responses have in common. A view that fails raises ParseError, the same way each time."""

    __slots__ = (
        "_call_id",
        "_contacts",
        "_cseq",
        "_from",
        "_record_routes",
        "_routes",
        "_to",
        "_via",
        "_vias",
        "body_at",
        "first_line",
        "keys",
        "lines_raw",
        "raw",
        "start_line",
        "twice",
        "version",
    )

    def __init__(self, raw: bytes, body_at: int, lines: list[bytes], shape: Shape, version: bytes) -> None:
        self.raw = raw
        """Exactly this message."""
        self.body_at = body_at
        self.start_line = lines[0]
        self.lines_raw = lines
        """The start line and the header lines as they came, folds inside, without the CRLF at the end."""
        self.keys, self.first_line, self.twice = shape
        """See Shape, which is shared between messages: not to be changed."""
        self.version = version
        self._via: Via | None = None
        self._vias: list[Via] | None = None
        self._from: NameAddr | None = None
        self._to: NameAddr | None = None
        self._call_id: bytes | None = None
        self._cseq: CSeq | None = None
        self._contacts: list[NameAddr] | None = None
        self._routes: list[NameAddr] | None = None
        self._record_routes: list[NameAddr] | None = None

    @property
    def body(self) -> bytes:
        return self.raw[self.body_at :]

    def has(self, name: bytes) -> bool:
        """Whether a header line of that name (long form, lower case) is there."""
        return name in self.first_line

    def first(self, name: bytes) -> bytes | None:
        """The value of the first line of that name, unfolded and stripped; None when there is none."""
        number = self.first_line.get(name)
        return None if number is None else value_of(self.lines_raw[number])

    def lines(self, name: bytes) -> list[bytes]:
        """The values of all lines of that name, in order."""
        return [value_of(line) for line in self.lines_of(name)]

    def lines_of(self, name: bytes) -> list[bytes]:
        """The lines of that name as they came."""
        number = self.first_line.get(name)
        if number is None:
            return []
        found = [self.lines_raw[number]]
        keys = self.keys
        if len(self.first_line) != len(keys):  # some name comes twice
            for _ in range(keys.count(name) - 1):
                number = keys.index(name, number + 1)
                found.append(self.lines_raw[number])
        return found

    def values(self, name: bytes) -> list[bytes]:
        """The comma-separated elements over all lines of that name. Raises ParseError."""
        values: list[bytes] = []
        for line in self.lines(name):
            values += split_commas(line)
            if len(values) > MAX_ELEMENTS:
                raise _too_many(name)
        return values

    @property
    def via(self) -> Via:
        """The topmost Via, as received."""
        if self._via is None:
            line = self._needed(b"via")
            # What stands behind the first element need not be sound to know it.
            found = read(vias_of, line) if COMMA not in line else (parse_via(split_commas(value_of(line))[0]),)
            self._via = found[0] if found else parse_via(b"")
        return self._via

    @property
    def vias(self) -> list[Via]:
        if self._vias is None:
            via = self.via
            self._vias = [via, *self._all(vias_of, b"via")[1:]]
        return self._vias

    @property
    def from_(self) -> NameAddr:
        if self._from is None:
            self._from = read(from_of, self._needed(b"from"))
        return self._from

    @property
    def to(self) -> NameAddr:
        if self._to is None:
            self._to = read(to_of, self._needed(b"to"))
        return self._to

    @property
    def call_id(self) -> bytes:
        if self._call_id is None:
            self._call_id = read(call_id_of, self._needed(b"call-id"))
        return self._call_id

    @property
    def cseq(self) -> CSeq:
        if self._cseq is None:
            self._cseq = read(cseq_of, self._needed(b"cseq"))
        return self._cseq

    @property
    def contacts(self) -> list[NameAddr]:
        """The Contact values; [] when there is none."""
        if self._contacts is None:
            self._contacts = self._all(contacts_of, b"contact")
        return self._contacts

    @property
    def routes(self) -> list[NameAddr]:
        if self._routes is None:
            self._routes = self._all(routes_of, b"route")
        return self._routes

    @property
    def record_routes(self) -> list[NameAddr]:
        if self._record_routes is None:
            self._record_routes = self._all(routes_of, b"record-route")
        return self._record_routes

    @property
    def max_forwards(self) -> int | None:
        return self._number(max_forwards_of, b"max-forwards")

    @property
    def expires(self) -> int | None:
        return self._number(expires_of, b"expires")

    @property
    def content_length(self) -> int | None:
        return self._number(length_of, b"content-length")

    def _number(self, reader: Callable[[bytes], int], name: bytes) -> int | None:
        number = self.first_line.get(name)
        return None if number is None else read(reader, self.lines_raw[number])

    def _needed(self, name: bytes) -> bytes:
        """The first line of that name."""
        number = self.first_line.get(name)
        if number is None:
            raise ParseError(f"no {name.decode('ascii')}", section="RFC 3261 §8.1.1")
        return self.lines_raw[number]

    def _all(self, reader: Callable[[bytes], tuple[T, ...]], name: bytes) -> list[T]:
        """The elements of all lines of that name."""
        if name not in self.first_line:
            return []
        found: list[T] = []
        for line in self.lines_of(name):
            found += read(reader, line)
            if len(found) > MAX_ELEMENTS:
                raise _too_many(name)
        return found


class Request(Message):
    __slots__ = ("_parsed_uri", "key", "method", "source", "stamped_via", "uri")

    def __init__(self, raw: bytes, body_at: int, lines: list[bytes], shape: Shape, start: tuple[bytes, bytes, bytes]) -> None:
        super().__init__(raw, body_at, lines, shape, start[2])
        self.method, self.uri = start[0], start[1]
        self.source: tuple[str, int] | None = None
        self.stamped_via: bytes | None = None
        """build.py keeps the stamped top Via line here once it was needed."""
        self._parsed_uri: Uri | None = None
        self.key: tuple[object, ...] | None = None
        """matching.py keeps the key of its server transaction here once it was needed."""

    @property
    def parsed_uri(self) -> Uri:
        if self._parsed_uri is None:
            self._parsed_uri = parse_uri(self.uri)
        return self._parsed_uri

    def stamp(self, host: str, port: int) -> None:
        """Remember where the request came from (an IP literal without brackets): writers then emit the top Via with
        received= (RFC 3261 §18.2.1), and rport= when the sender asked for it (RFC 3581 §4)."""
        self.source = (host, port)
        self.stamped_via = None

    def __repr__(self) -> str:
        return f"<Request {shown(self.start_line)}>"


class Response(Message):
    __slots__ = ("reason", "status")

    def __init__(self, raw: bytes, body_at: int, lines: list[bytes], shape: Shape, start: tuple[bytes, int, bytes]) -> None:
        super().__init__(raw, body_at, lines, shape, start[0])
        self.status, self.reason = start[1], start[2]

    @property
    def is_final(self) -> bool:
        return self.status >= 200

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def __repr__(self) -> str:
        return f"<Response {shown(self.start_line)}>"


def _too_many(name: bytes) -> ParseError:
    return ParseError(f"more than {MAX_ELEMENTS} values of {name.decode('latin-1')}", section="RFC 3261 §7.3.1")


def parse_message(data: bytes, *, max_headers: int = MAX_HEADERS) -> Request | Response:
    """The message at the start of a datagram (or exactly one taken from a stream). Reads the structure only.

    Empty lines before the start line are skipped (§7.5), bytes behind Content-Length are cut off (§18.3). Raises ParseError;
    its status is 0 where nothing can or may be answered. `salvage` finds what an answer to the others needs.
    """
    begin = 0
    while data.startswith(_CRLF, begin):
        begin += 2
    end = data.find(b"\r\n\r\n", begin)
    if end < 0:
        detail = "no message" if begin == len(data) else "no empty line after the headers"
        status = _start_status(data[begin:].partition(_CRLF)[0])
        raise ParseError(detail, offset=len(data), section="RFC 3261 §7", status=status)
    head = data[begin:end]
    lines = head.split(_CRLF)
    names = names_of(head)
    shape = remembered.get(names)
    # A row of names that is remembered has no folds in it: each is then the name of one line.
    if shape is None or len(lines) != len(shape.keys) or _has_controls(head, lines):
        lines, shape = check_head(head), None
    if len(lines) - 1 > max_headers:
        raise ParseError(f"more than {max_headers} header lines", offset=begin, section="RFC 3261 §7.3")
    start = read(_parse_start, lines[0])
    if shape is None:
        shape = read_shape(names, lines, folds=head.count(_CRLF) + 1 != len(lines))
    body_at = end + 4 - begin
    length = _claimed_length(shape, lines)
    available = len(data) - begin - body_at
    if length is None:
        length = available  # §20.14: over UDP the body reaches to the end of the datagram.
    elif length > available:
        raise ParseError(f"Content-Length {length}, but {available} bytes of body", offset=end + 4, section="RFC 3261 §18.3")
    raw = data[begin : begin + body_at + length]
    if len(start) == 2:
        return Response(raw, body_at, lines, shape, (lines[0][:7], start[0], start[1]))
    return Request(raw, body_at, lines, shape, start)


def message_of(lines: list[bytes], keys: list[bytes], body: bytes, *, max_headers: int = MAX_HEADERS) -> Request | Response:
    """What `parse_message` makes of these lines and the body, where the names of the lines are known already.

    `lines` and `keys` are the message's from now on. Raises ParseError.
    """
    head = _CRLF.join(lines)
    raw = b"\r\n\r\n".join((head, body))
    if _has_controls(head, lines) or len(lines) - 1 > max_headers:
        return parse_message(raw, max_headers=max_headers)  # it has folds, or is not sound
    start, shape = read(_parse_start, lines[0]), shape_of(keys)
    length = _claimed_length(shape, lines)
    if length is not None and length != len(body):
        return parse_message(raw, max_headers=max_headers)
    if len(start) == 2:
        return Response(raw, len(head) + 4, lines, shape, (lines[0][:7], start[0], start[1]))
    return Request(raw, len(head) + 4, lines, shape, start)


def check_head(head: bytes) -> list[bytes]:
    """The start line and the header lines, folds kept. Raises ParseError for any line end but CRLF and any stray control."""
    lines = head.split(_CRLF)
    if _has_controls(head, lines):
        _check_controls(head)
    return _LINE_END.split(head) if b"\r\n " in head or b"\r\n\t" in head else lines


def _has_controls(head: bytes, lines: list[bytes]) -> bool:
    """Whether there are others than the CR and LF of the CRLFs between the lines: `translate` has to delete exactly those."""
    return len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(lines) - 2


def _check_controls(head: bytes) -> None:
    """Raise ParseError unless every control character is a quoted pair in a quoted string (RFC 4475 §3.1.1.2 has some)."""
    ends = head.count(_CRLF)
    if head.count(b"\r") != ends or head.count(b"\n") != ends:
        raise ParseError("a line end that is not CRLF", section="RFC 3261 §7")
    for line in _LINE_END.split(head):
        rest = _QUOTED.sub(lambda quoted: _QUOTED_PAIR.sub(b"", quoted[0]), line).replace(_CRLF, b"")
        if len(rest) != len(rest.translate(None, _CONTROLS)):
            # The line is not shown, nor is any other that cannot be read: it may be a piece of a credential.
            raise ParseError("control character in a header line", section="RFC 3261 §25.1")


@lru_cache(maxsize=CACHED)
def _parse_start(line: bytes) -> tuple[bytes, bytes, bytes] | tuple[int, bytes]:
    parts = line.split(b" ", 2)
    if len(parts) == 3 and _VERSION.match(parts[0]):
        status = parts[1]
        if len(status) != 3 or not status.isdigit() or not 100 <= int(status) <= 699 or CR in line:
            raise ParseError(f"not a status line: {shown(line)}", section="RFC 3261 §7.2", status=0)
        return int(status), parts[2]
    # §7.1: single spaces, no other white space; <> around the Request-URI is judged by check_message.
    if len(parts) != 3 or not parts[1] or SPACE in parts[2] or TAB in line or CR in line or not TOKEN.match(parts[0]):
        raise ParseError(f"not a start line: {shown(line)}", section="RFC 3261 §7.1", status=_start_status(line))
    if parts[2][:4].upper() != b"SIP/" or len(parts[0]) > MAX_METHOD:
        raise ParseError(f"not a request line: {shown(line)}", section="RFC 3261 §7.1", status=_start_status(line))
    return parts[0], parts[1], parts[2]


def _start_status(line: bytes) -> int:
    """400 for what was meant as a request; 0 for a response, an ACK (never answered, §17.1.1.3) or another protocol."""
    upper = line.upper()
    return 0 if upper.startswith((b"SIP/", b"ACK ")) or b"SIP/" not in upper else 400


def _claimed_length(shape: Shape, lines: list[bytes]) -> int | None:
    if shape.twice and shape.keys.count(b"content-length") > 1:
        # Even when equal: the next hop may read the other one.
        raise ParseError("more than one Content-Length", section="RFC 3261 §20.14")
    number = shape.first_line.get(b"content-length")
    return None if number is None else read(length_of, lines[number])


def check_message(message: Request | Response) -> None:
    """Raise ParseError unless the message has what every message needs, well formed (§8.1.1, §16.3 item 1).

    `status` of the error is the response a request gets: 505 for another SIP version, else 400; 0 for responses and ACK, which
    are dropped (§17.1.1.3, §18.1.2). To, From and Via are read whole, so that later reading of those views does not fail.
    """
    try:
        _check_common(message)
        if isinstance(message, Request):
            _check_request(message)
    except ParseError as error:
        if isinstance(message, Response) or message.method == b"ACK":
            error.status = 0
        raise


def _check_common(message: Message) -> None:
    if message.version != b"SIP/2.0" and message.version.upper() != b"SIP/2.0":
        status = 505 if _VERSION.match(message.version) else 400
        raise ParseError(f"version {shown(message.version)}", section="RFC 3261 §21.5.6", status=status)
    if message.twice:
        raise ParseError(f"more than one {message.twice.decode('ascii')}", section="RFC 3261 §7.3.1")
    _ = message.vias, message.from_, message.to, message.call_id
    _ = message.cseq, message.max_forwards, message.expires


def _check_request(request: Request) -> None:
    if request.cseq.method != request.method:
        raise ParseError(f"CSeq says {shown(request.cseq.method)}", section="RFC 3261 §8.1.1.5")
    if request.parsed_uri.headers:
        raise ParseError("header fields in the Request-URI", section="RFC 3261 §19.1.1")  # table 1: not allowed there
    _ = request.contacts, request.routes


def salvage(data: bytes) -> Request | None:
    """A stand-in for a request that `parse_message` refused with a status, good for `write_response` and nothing else.

    Holds the lines that a response copies (§8.2.6.2), as far as they are sound, and a made-up Request-URI. None when not even a
    method and one Via can be made out, or when the method is ACK.
    """
    begin = 0
    while data.startswith(_CRLF, begin):
        begin += 2
    end = data.find(b"\r\n\r\n", begin)
    head = data[begin:] if end < 0 else data[begin:end]
    lines = _LINE_END.split(head, MAX_HEADERS)[:MAX_HEADERS]
    method = lines[0].partition(b" ")[0]
    if not TOKEN.match(method) or len(method) > MAX_METHOD or not _start_status(lines[0]):
        return None
    start = (method, b"sip:unreadable.invalid", b"SIP/2.0")
    kept, keys = [b" ".join(start)], [b""]
    for line in lines[1:]:
        key = _copied_key(line)
        if key and (key == b"via" or key not in keys):
            kept.append(line)
            keys.append(key)
    if b"via" not in keys:
        return None
    raw = _CRLF.join([*kept, b"", b""])
    return Request(raw, len(raw), kept, shape_of(keys), start)


def _copied_key(line: bytes) -> bytes:
    """The header's name when a response copies it and the line is sound, else b""."""
    try:
        key = key_of(line)
        check_head(line)
    except ParseError:
        return b""
    return key if key in {b"via", b"from", b"to", b"call-id", b"cseq", b"timestamp"} else b""
