"""A SIP message as its bytes plus an index of its header lines (RFC 3261 §7), and what is read of them.

`parse_message` reads the structure in one scan, start line, header lines, Content-Length, and what every message needs
(§8.1.1); `check_message` refuses one that lacks any of that (§16.3 item 1). A message has one reading: a line ends with CRLF
and nothing else, no control character stands outside a quoted pair, and a header that can come only once does. Left out:
building (build.py), streams (framing.py), bodies.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from sipproxy.sip import shape as shapes
from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import COMMA, CR, SPACE, TAB, TOKEN, shown
from sipproxy.sip.headers import MAX_ELEMENTS, CSeq, NameAddr, Via, parse_via, split_commas
from sipproxy.sip.lines import (
    LINE_END,
    call_id_of,
    check_head,
    check_line,
    contacts_of,
    cseq_of,
    expires_of,
    from_of,
    length_of,
    max_forwards_of,
    name_of,
    routes_of,
    to_of,
    value_of,
    vias_of,
)
from sipproxy.sip.memo import Remembered
from sipproxy.sip.uri import Uri, parse_uri

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_HEADERS",
    "Message",
    "Request",
    "Response",
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
Start = tuple[bytes, bytes, bytes, int, Uri | None]
"""Version, method, Request-URI, 0 and the URI read, None for one that cannot be; or version, b"", reason, status and None."""
Needed = tuple[Via, tuple[Via, ...], NameAddr, NameAddr, bytes, CSeq, int | None, int | None]  # as in _VIEWS
_VIEWS = ("via", "vias", "from_", "to", "call_id", "cseq", "max_forwards", "expires")
_CRLF = b"\r\n"
_VERSION = re.compile(rb"[sS][iI][pP]/[0-9]+\.[0-9]+\Z")


class Message:
    """What requests and responses have in common. What every message needs (§8.1.1) is read at once; `faults` says which of it
    is not there, `read_again` why. Else a view is read when it is asked for, and one that fails raises ParseError each time."""

    __slots__ = (
        "_contacts",
        "_record_routes",
        "body_at",
        "call_id",
        "cseq",
        "expires",
        "faults",
        "first_line",
        "from_",
        "lines_raw",
        "max_forwards",
        "raw",
        "shape",
        "to",
        "version",
        "via",
        "vias",
    )
    raw: bytes
    """Exactly this message."""
    body_at: int
    lines_raw: list[bytes]
    """The start line and the header lines as they came, folds inside, without the CRLF at the end."""
    shape: shapes.Shape
    """Shared between messages, with all that is in it: not to be changed."""
    first_line: dict[bytes, int]
    version: bytes
    via: Via
    """The topmost Via, as received."""
    vias: tuple[Via, ...]
    from_: NameAddr
    to: NameAddr
    call_id: bytes
    cseq: CSeq
    max_forwards: int | None
    expires: int | None
    faults: tuple[str, ...]
    """Which of these views are not there; none of a message that passed `check_message`."""
    _contacts: tuple[NameAddr, ...] | None
    _record_routes: tuple[NameAddr, ...] | None

    @property
    def start_line(self) -> bytes:
        return self.lines_raw[0]

    @property
    def keys(self) -> list[bytes]:
        """The name of each line, in its long form and lower case; b"" for the start line."""
        return self.shape.keys

    @property
    def body(self) -> bytes:
        return self.raw[self.body_at :]

    def has(self, name: bytes) -> bool:
        """Whether a header line of that name (long form, lower case) is there."""
        return name in self.first_line

    def first(self, name: bytes) -> bytes | None:
        """The value of the first line of that name, unfolded and stripped; None when there is none."""
        number = self.first_line.get(name)
        return None if number is None else value_of[self.lines_raw[number]]

    def lines(self, name: bytes) -> list[bytes]:
        """The values of all lines of that name, in order."""
        return list(map(value_of.__getitem__, self.lines_of(name)))

    def lines_of(self, name: bytes) -> list[bytes]:
        """The lines of that name as they came."""
        return list(map(self.lines_raw.__getitem__, self.shape.places.get(name, ())))

    def values(self, name: bytes) -> list[bytes]:
        """The comma-separated elements over all lines of that name. Raises ParseError."""
        values: list[bytes] = []
        for line in self.lines(name):
            values += split_commas(line)
            if len(values) > MAX_ELEMENTS:
                raise _too_many()
        return values

    @property
    def contacts(self) -> tuple[NameAddr, ...]:
        """The Contact values; () when there is none."""
        if self._contacts is None:
            self._contacts = self._all(contacts_of, b"contact")
        return self._contacts

    @property
    def record_routes(self) -> tuple[NameAddr, ...]:
        if self._record_routes is None:
            self._record_routes = self._all(routes_of, b"record-route")
        return self._record_routes

    @property
    def content_length(self) -> int | None:
        return self._number(length_of, b"content-length")

    def _number(self, reader: Remembered[int], name: bytes) -> int | None:
        number = self.first_line.get(name)
        return None if number is None else reader[self.lines_raw[number]]

    def _needed(self, name: bytes) -> bytes:
        """The first line of that name."""
        number = self.first_line.get(name)
        if number is None:
            raise ParseError(f"no {name.decode('ascii')}", section="RFC 3261 §8.1.1")
        return self.lines_raw[number]

    def _all(self, reader: Remembered[tuple[T, ...]], name: bytes) -> tuple[T, ...]:
        """The elements of all lines of that name."""
        numbers = self.shape.places.get(name)
        if numbers is None:
            return ()
        found = reader[self.lines_raw[numbers[0]]]
        return found if len(numbers) == 1 else _and_more(found, reader, self.lines_raw, numbers)

    def read_again(self, view: str) -> object:
        """What one of the views is that every message needs. Raises ParseError for one of `faults`."""
        readers: dict[str, Callable[[], object]] = {
            "via": self._top_via,
            "vias": lambda: self._top_via() and self._all(vias_of, b"via"),
            "from_": lambda: from_of[self._needed(b"from")],
            "to": lambda: to_of[self._needed(b"to")],
            "call_id": lambda: call_id_of[self._needed(b"call-id")],
            "cseq": lambda: cseq_of[self._needed(b"cseq")],
            "max_forwards": lambda: self._number(max_forwards_of, b"max-forwards"),
            "expires": lambda: self._number(expires_of, b"expires"),
            "routes": lambda: self._all(routes_of, b"route"),
        }
        return readers[view]()

    def _read_singly(self, views: tuple[str, ...]) -> tuple[str, ...]:
        """Read one after the other what every message needs; the views that are not there. An error is not kept: it refers to
        who caught it, and so to the message."""
        faults: list[str] = []
        for view in views:
            try:
                setattr(self, view, self.read_again(view))
            except ParseError:
                faults.append(view)
        return tuple(faults)

    def _top_via(self) -> Via:
        line = self._needed(b"via")
        # What stands behind the first element need not be sound to know it.
        found = vias_of[line] if COMMA not in line else (parse_via(split_commas(value_of[line])[0]),)
        return found[0] if found else parse_via(b"")


class Request(Message):
    __slots__ = ("key", "method", "parsed_uri", "routes", "source", "stamped_via", "uri")
    routes: tuple[NameAddr, ...]
    parsed_uri: Uri

    def __init__(self, raw: bytes, body_at: int, lines: list[bytes], shape: shapes.Shape, start: Start) -> None:
        self.raw, self.body_at, self.lines_raw = raw, body_at, lines
        self.shape, self.first_line = shape, shape.first_line
        self.version, self.method, self.uri, _, uri = start
        self.source: tuple[str, int] | None = None
        self.stamped_via: bytes | None = None
        """build.py keeps the stamped top Via line here once it was needed."""
        self.key: tuple[object, ...] | None = None
        """matching.py keeps the key of its server transaction here once it was needed."""
        self._contacts = self._record_routes = None
        try:
            needed = _needed_of(lines, shape)
            self.routes = self._all(routes_of, b"route") if b"route" in shape.first_line else ()
            self.parsed_uri = uri if uri is not None else parse_uri(self.uri)
        except ParseError:
            self.faults = self._read_singly((*_VIEWS, "routes", "parsed_uri"))
        else:
            self.via, self.vias, self.from_, self.to, self.call_id, self.cseq, self.max_forwards, self.expires = needed
            self.faults = ()

    def read_again(self, view: str) -> object:
        return parse_uri(self.uri) if view == "parsed_uri" else Message.read_again(self, view)

    def stamp(self, host: str, port: int) -> None:
        """Remember where the request came from (an IP literal without brackets): writers then emit the top Via with
        received= (RFC 3261 §18.2.1), and rport= when the sender asked for it (RFC 3581 §4)."""
        self.source = (host, port)
        self.stamped_via = None

    def __repr__(self) -> str:
        return f"<Request {shown(self.start_line)}>"


class Response(Message):
    __slots__ = ("reason", "status")

    def __init__(self, raw: bytes, body_at: int, lines: list[bytes], shape: shapes.Shape, start: Start) -> None:
        # As in Request, and not in common: the interpreter is fast where a line meets one class only.
        self.raw, self.body_at, self.lines_raw = raw, body_at, lines
        self.shape, self.first_line = shape, shape.first_line
        self.version, _, self.reason, self.status, _ = start
        self._contacts = self._record_routes = None
        try:
            needed = _needed_of(lines, shape)
        except ParseError:
            self.faults = self._read_singly(_VIEWS)
        else:
            self.via, self.vias, self.from_, self.to, self.call_id, self.cseq, self.max_forwards, self.expires = needed
            self.faults = ()

    @property
    def is_final(self) -> bool:
        return self.status >= 200

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def __repr__(self) -> str:
        return f"<Response {shown(self.start_line)}>"


def _needed_of(lines: list[bytes], shape: shapes.Shape) -> Needed:
    """What every message needs. Raises ParseError where any of it is not there."""
    if not shape.is_complete:
        raise ParseError("a needed header is not there", section="RFC 3261 §8.1.1")
    via, from_, to, call_id, cseq, hops, expires = shape.needed
    vias = vias_of[lines[via]] or (parse_via(b""),)
    return (
        vias[0],
        vias if shape.has_one_via else _and_more(vias, vias_of, lines, shape.places[b"via"]),
        from_of[lines[from_]],
        to_of[lines[to]],
        call_id_of[lines[call_id]],
        cseq_of[lines[cseq]],
        max_forwards_of[lines[hops]] if hops else None,
        expires_of[lines[expires]] if expires else None,
    )


def _and_more(found: tuple[T, ...], reader: Remembered[tuple[T, ...]], lines: list[bytes], places: list[int]) -> tuple[T, ...]:
    """These elements of a header's first line, and those of the further ones."""
    for number in places[1:]:
        found += reader[lines[number]]
        if len(found) > MAX_ELEMENTS:
            raise _too_many()
    return found


def _too_many() -> ParseError:
    return ParseError(f"more than {MAX_ELEMENTS} values of one header", section="RFC 3261 §7.3.1")


def parse_message(data: bytes, *, max_headers: int = MAX_HEADERS) -> Request | Response:
    """The message at the start of a datagram (or exactly one taken from a stream). What
    every message needs is read with its structure, and what cannot be is among its `faults`.

    Empty lines before the start line are skipped (§7.5), bytes behind Content-Length are cut off (§18.3). Raises ParseError;
    its status is 0 where nothing can or may be answered. `salvage` finds what an answer to the others needs.
    """
    raw = data if data[:1] != b"\r" else data[_start_at(data) :]
    end = raw.find(b"\r\n\r\n")
    if end < 0:
        detail = "no empty line after the headers" if raw else "no message"
        raise ParseError(detail, offset=len(data), section="RFC 3261 §7", status=_start_status(raw.partition(_CRLF)[0]))
    head = raw[:end]
    lines = head.split(_CRLF)
    if len(lines) - 1 > max_headers:
        lines = check_head(head)
        _check_count(lines, max_headers)
    try:
        start, shape = _start_of[lines[0]], _shape_at(tuple(map(_name_at, lines[1:])))
    except ParseError:
        lines = check_head(head)  # there are folds, or a fault
        start, shape = _start_of[lines[0]], _shape_of(lines)
    body_at = end + 4
    if shape.length_at:  # §20.14: without it, over UDP, the body reaches to the end of the datagram.
        if shape.twice:
            _check_length(shape)
        size, available = body_at + length_of[lines[shape.length_at]], len(raw)
        if size != available:
            if size > available:
                detail = f"Content-Length {size - body_at}, but {available - body_at} bytes of body"
                raise ParseError(detail, offset=len(data) - available + body_at, section="RFC 3261 §18.3")
            raw = raw[:size]
    if start[3]:
        return Response(raw, body_at, lines, shape, start)
    return Request(raw, body_at, lines, shape, start)


def message_of(lines: list[bytes], body: bytes, *, max_headers: int = MAX_HEADERS) -> Request | Response:
    """What `parse_message` makes of these lines, each with its folds, and the body. The lines are the message's from now on.

    Raises ParseError.
    """
    start, shape = _start_of[lines[0]], _shape_of(lines)
    _check_count(lines, max_headers)
    head = _CRLF.join(lines)
    raw = b"\r\n\r\n".join((head, body))
    if shape.length_at:
        _check_length(shape)
        if length_of[lines[shape.length_at]] != len(body):
            return parse_message(raw, max_headers=max_headers)
    if start[3]:
        return Response(raw, len(head) + 4, lines, shape, start)
    return Request(raw, len(head) + 4, lines, shape, start)


def _shape_of(lines: list[bytes]) -> shapes.Shape:
    """The shape of a message of these lines. Raises ParseError for one that is not sound, or that is the rest of a fold."""
    return _shape_at(tuple(map(_name_at, lines[1:])))


_shape_at, _name_at = shapes.remembered.__getitem__, name_of.__getitem__


def _start_at(data: bytes) -> int:
    """Where the start line is: behind empty lines (§7.5)."""
    begin = 0
    while data.startswith(_CRLF, begin):
        begin += 2
    return begin


def _check_count(lines: list[bytes], max_headers: int) -> None:
    if len(lines) - 1 > max_headers:
        raise ParseError(f"more than {max_headers} header lines", section="RFC 3261 §7.3")


def _parse_start(line: bytes) -> Start:
    check_line(line)
    parts = line.split(b" ", 2)
    if len(parts) == 3 and _VERSION.match(parts[0]):
        status = parts[1]
        if len(status) != 3 or not status.isdigit() or not 100 <= int(status) <= 699 or CR in line:
            raise ParseError(f"not a status line: {shown(line)}", section="RFC 3261 §7.2", status=0)
        return parts[0], b"", parts[2], int(status), None
    # §7.1: single spaces, no other white space; <> around the Request-URI is judged by check_message.
    if len(parts) != 3 or not parts[1] or SPACE in parts[2] or TAB in line or CR in line or not TOKEN.match(parts[0]):
        raise ParseError(f"not a start line: {shown(line)}", section="RFC 3261 §7.1", status=_start_status(line))
    if parts[2][:4].upper() != b"SIP/" or len(parts[0]) > MAX_METHOD:
        raise ParseError(f"not a request line: {shown(line)}", section="RFC 3261 §7.1", status=_start_status(line))
    try:
        return parts[2], parts[0], parts[1], 0, parse_uri(parts[1])
    except ParseError:
        return parts[2], parts[0], parts[1], 0, None


_start_of = Remembered(_parse_start)


def _start_status(line: bytes) -> int:
    """400 for what was meant as a request; 0 for a response, an ACK (never answered, §17.1.1.3) or another protocol."""
    upper = line.upper()
    return 0 if upper.startswith((b"SIP/", b"ACK ")) or b"SIP/" not in upper else 400


def _check_length(shape: shapes.Shape) -> None:
    """Raise ParseError when Content-Length comes twice, even when equal: the next hop may read the other one."""
    if shape.twice and len(shape.places.get(b"content-length", ())) > 1:
        raise ParseError("more than one Content-Length", section="RFC 3261 §20.14")


def check_message(message: Request | Response) -> None:
    """Raise ParseError unless the message has what every message needs, well formed (§8.1.1, §16.3 item 1).

    `status` of the error is the response a request gets: 505 for another SIP version, else 400; 0 for responses and ACK, which
    are dropped (§17.1.1.3, §18.1.2).
    """
    try:
        if message.version != b"SIP/2.0":
            _check_version(message.version)
        if message.shape.twice:
            raise ParseError(f"more than one {message.shape.twice.decode('ascii')}", section="RFC 3261 §7.3.1")
        if message.faults:
            message.read_again(message.faults[0])
        if isinstance(message, Request):
            if message.cseq.method != message.method:
                raise ParseError(f"CSeq says {shown(message.cseq.method)}", section="RFC 3261 §8.1.1.5")
            if message.parsed_uri.headers:
                raise ParseError("header fields in the Request-URI", section="RFC 3261 §19.1.1")  # table 1: not allowed there
            if b"contact" in message.first_line:
                _ = message.contacts
    except ParseError as error:
        if isinstance(message, Response) or message.method == b"ACK":
            error.status = 0
        raise


def _check_version(version: bytes) -> None:
    if version.upper() != b"SIP/2.0":
        status = 505 if _VERSION.match(version) else 400
        raise ParseError(f"version {shown(version)}", section="RFC 3261 §21.5.6", status=status)


def salvage(data: bytes) -> Request | None:
    """A stand-in for a request that `parse_message` refused with a status, good for `write_response` and nothing else.

    Holds the lines that a response copies (§8.2.6.2), as far as they are sound, and a made-up Request-URI. None when not even a
    method and one Via can be made out, or when the method is ACK.
    """
    begin = _start_at(data)
    end = data.find(b"\r\n\r\n", begin)
    head = data[begin:] if end < 0 else data[begin:end]
    lines = LINE_END.split(head, MAX_HEADERS)[:MAX_HEADERS]
    method = lines[0].partition(b" ")[0]
    if not TOKEN.match(method) or len(method) > MAX_METHOD or not _start_status(lines[0]):
        return None
    start = (b"SIP/2.0", method, b"sip:unreadable.invalid", 0, None)
    kept, keys = [method + b" sip:unreadable.invalid SIP/2.0"], list[bytes]()
    for line in lines[1:]:
        key = _copied_key(line)
        if key and (key == b"via" or key not in keys):
            kept.append(line)
            keys.append(key)
    if b"via" not in keys:
        return None
    raw = _CRLF.join([*kept, b"", b""])
    return Request(raw, len(raw), kept, shapes.remembered[tuple(keys)], start)


def _copied_key(line: bytes) -> bytes:
    """The header's name when a response copies it and the line is sound, else b""."""
    try:
        key = name_of[line]
    except ParseError:
        return b""
    return key if key in {b"via", b"from", b"to", b"call-id", b"cseq", b"timestamp"} else b""
