"""A SIP message as its bytes plus an index of its header lines (RFC 3261 §7); views are parsed when they are asked for.

`parse_message` reads the structure only, in one scan: start line, header lines, Content-Length. `check_message` reads what
every message needs (§8.1.1, §16.3 item 1). A message has one reading: a line ends with CRLF and nothing else, no control
character stands outside a quoted pair, and a header that can come only once does. Left out: building (build.py), streams
(framing.py), bodies.
"""

from __future__ import annotations

import re
from typing import cast

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import QUOTED, TOKEN, parse_number, shown, unfold
from sipproxy.sip.headers import (
    MAX_ELEMENTS,
    CSeq,
    NameAddr,
    Via,
    canonical_name,
    parse_cseq,
    parse_name_addr,
    parse_via,
    split_commas,
)
from sipproxy.sip.uri import Uri, parse_uri

__all__ = ["MAX_HEADERS", "SINGLE", "Message", "Request", "Response", "check_head", "check_message", "parse_message", "salvage"]

MAX_HEADERS = 200
"""Header lines of one message. Real ones stay below 60."""
MAX_METHOD = 64
"""Bytes of a method; the registered ones have at most 9, RFC 4475's longest 44."""
MAX_EXPIRES = 2**32 - 1  # §20.19 delta-seconds
MAX_BODY = 2**31 - 1  # of a claimed Content-Length; nothing is ever allocated by it.

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
_CRLF = b"\r\n"
_LINE_END = re.compile(rb"\r\n(?![ \t])")
_FOLD = re.compile(rb"\r\n[ \t]")
_NAME = re.compile(rb"\n([^:]*+:)")
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
        "version",
    )

    def __init__(self, raw: bytes, body_at: int, lines: list[bytes], keys: list[bytes], version: bytes) -> None:
        self.raw = raw
        """Exactly this message."""
        self.body_at = body_at
        self.start_line = lines[0]
        self.lines_raw = lines
        """The start line and the header lines as they came, folds inside, without the CRLF at the end."""
        self.keys = keys
        """For each of `lines_raw` the header's name in its long form and lower case; b"" for the start line."""
        self.first_line = dict(zip(keys, range(len(keys))))  # noqa: B905 (equally long, and strict costs a third)
        if len(self.first_line) != len(keys):
            self.first_line = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))
        """Where in `lines_raw` each name comes first."""
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
        return None if number is None else _value(self.lines_raw[number])

    def lines(self, name: bytes) -> list[bytes]:
        """The values of all lines of that name, in order."""
        number = self.first_line.get(name)
        if number is None:
            return []
        if len(self.first_line) == len(self.keys):
            return [_value(self.lines_raw[number])]  # no name comes twice
        return [_value(line) for key, line in zip(self.keys, self.lines_raw, strict=True) if key == name]

    def values(self, name: bytes) -> list[bytes]:
        """The comma-separated elements over all lines of that name. Raises ParseError."""
        values: list[bytes] = []
        for line in self.lines(name):
            values += split_commas(line)
            if len(values) > MAX_ELEMENTS:
                raise ParseError(f"more than {MAX_ELEMENTS} values of {name.decode('latin-1')}", section="RFC 3261 §7.3.1")
        return values

    @property
    def via(self) -> Via:
        """The topmost Via, as received."""
        if self._via is None:
            value = self._needed(b"via")
            elements = split_commas(value) if b"," in value else [value]
            self._via = parse_via(elements[0])
        return self._via

    @property
    def vias(self) -> list[Via]:
        if self._vias is None:
            values = self.values(b"via")
            self._vias = [self.via, *map(parse_via, values[1:])] if len(values) > 1 else [self.via]
        return self._vias

    @property
    def from_(self) -> NameAddr:
        if self._from is None:
            self._from = _person(self._needed(b"from"), b"From")
        return self._from

    @property
    def to(self) -> NameAddr:
        if self._to is None:
            self._to = _person(self._needed(b"to"), b"To")
        return self._to

    @property
    def call_id(self) -> bytes:
        if self._call_id is None:
            value = self._needed(b"call-id")
            if not value or b" " in value or b"\t" in value:
                raise ParseError(f"not a Call-ID: {shown(value)}", section="RFC 3261 §20.8")
            self._call_id = value
        return self._call_id

    @property
    def cseq(self) -> CSeq:
        if self._cseq is None:
            self._cseq = parse_cseq(self._needed(b"cseq"))
        return self._cseq

    @property
    def contacts(self) -> list[NameAddr]:
        """The Contact values; [] when there is none."""
        if self._contacts is None:
            self._contacts = [parse_name_addr(value) for value in self.values(b"contact")]
        return self._contacts

    @property
    def routes(self) -> list[NameAddr]:
        if self._routes is None:
            self._routes = [_route(value) for value in self.values(b"route")]
        return self._routes

    @property
    def record_routes(self) -> list[NameAddr]:
        if self._record_routes is None:
            self._record_routes = [_route(value) for value in self.values(b"record-route")]
        return self._record_routes

    @property
    def max_forwards(self) -> int | None:
        return self._number(b"max-forwards", 255, "RFC 3261 §20.22")

    @property
    def expires(self) -> int | None:
        return self._number(b"expires", MAX_EXPIRES, "RFC 3261 §20.19")

    @property
    def content_length(self) -> int | None:
        return self._number(b"content-length", MAX_BODY, "RFC 3261 §20.14")

    def _number(self, name: bytes, maximum: int, section: str) -> int | None:
        value = self.first(name)
        return None if value is None else parse_number(value, maximum, name.decode("ascii"), section)

    def _needed(self, name: bytes) -> bytes:
        number = self.first_line.get(name)
        if number is None:
            raise ParseError(f"no {name.decode('ascii')}", section="RFC 3261 §8.1.1")
        return _value(self.lines_raw[number])


class Request(Message):
    __slots__ = ("_parsed_uri", "method", "source", "stamped_via", "uri")

    def __init__(
        self, raw: bytes, body_at: int, lines: list[bytes], keys: list[bytes], start: tuple[bytes, bytes, bytes]
    ) -> None:
        super().__init__(raw, body_at, lines, keys, start[2])
        self.method, self.uri = start[0], start[1]
        self.source: tuple[str, int] | None = None
        self.stamped_via: bytes | None = None
        """build.py keeps the stamped top Via line here once it was needed."""
        self._parsed_uri: Uri | None = None

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

    def __init__(
        self, raw: bytes, body_at: int, lines: list[bytes], keys: list[bytes], start: tuple[bytes, int, bytes]
    ) -> None:
        super().__init__(raw, body_at, lines, keys, start[0])
        self.status, self.reason = start[1], start[2]

    @property
    def is_final(self) -> bool:
        return self.status >= 200

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    def __repr__(self) -> str:
        return f"<Response {shown(self.start_line)}>"


def _value(line: bytes) -> bytes:
    value = line.partition(b":")[2]
    return (unfold(value) if b"\r" in value else value).strip(b" \t")


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
    if address.is_star or b"<" not in value:
        raise ParseError(f"not a route: {shown(value)}", section="RFC 3261 §20.34")  # name-addr only
    return address


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
    lines = check_head(head)
    if len(lines) - 1 > max_headers:
        raise ParseError(f"more than {max_headers} header lines", offset=begin, section="RFC 3261 §7.3")
    start = _parse_start(lines[0])
    keys = _header_keys(head, lines)
    body_at = end + 4 - begin
    length = _claimed_length(keys, lines)
    available = len(data) - begin - body_at
    if length is None:
        length = available  # §20.14: over UDP the body reaches to the end of the datagram.
    elif length > available:
        raise ParseError(f"Content-Length {length}, but {available} bytes of body", offset=end + 4, section="RFC 3261 §18.3")
    raw = data[begin : begin + body_at + length]
    if len(start) == 2:
        return Response(raw, body_at, lines, keys, (lines[0][:7], start[0], start[1]))
    return Request(raw, body_at, lines, keys, start)


def check_head(head: bytes) -> list[bytes]:
    """The start line and the header lines, folds kept. Raises ParseError for any line end but CRLF and any stray control."""
    lines = head.split(_CRLF)
    # One equation for all of them: what `translate` deletes must be exactly the CR and LF of the CRLFs.
    if len(head) - len(head.translate(None, _CONTROLS)) != 2 * len(lines) - 2:
        _check_controls(head)
    return _LINE_END.split(head) if _FOLD.search(head) else lines


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


def _parse_start(line: bytes) -> tuple[bytes, bytes, bytes] | tuple[int, bytes]:
    parts = line.split(b" ", 2)
    if len(parts) == 3 and _VERSION.match(parts[0]):
        status = parts[1]
        if len(status) != 3 or not status.isdigit() or not 100 <= int(status) <= 699 or b"\r" in line:
            raise ParseError(f"not a status line: {shown(line)}", section="RFC 3261 §7.2", status=0)
        return int(status), parts[2]
    # §7.1: single spaces, no other white space; <> around the Request-URI is judged by check_message.
    if len(parts) != 3 or not parts[1] or b" " in parts[2] or b"\t" in line or b"\r" in line or not TOKEN.match(parts[0]):
        raise ParseError(f"not a start line: {shown(line)}", section="RFC 3261 §7.1", status=_start_status(line))
    if parts[2][:4].upper() != b"SIP/" or len(parts[0]) > MAX_METHOD:
        raise ParseError(f"not a request line: {shown(line)}", section="RFC 3261 §7.1", status=_start_status(line))
    return parts[0], parts[1], parts[2]


def _start_status(line: bytes) -> int:
    """400 for what was meant as a request; 0 for a response, an ACK (never answered, §17.1.1.3) or another protocol."""
    upper = line.upper()
    return 0 if upper.startswith((b"SIP/", b"ACK ")) or b"SIP/" not in upper else 400


def _header_keys(head: bytes, lines: list[bytes]) -> list[bytes]:
    """For each line the canonical name of its header, b"" for the start line. Raises ParseError."""
    # Fast when all names are usual ones. What precedes a colon in a fold, or spans a line without one, is never among them.
    keys = [b"", *map(_KNOWN.get, _NAME.findall(head))]
    if None in keys or len(keys) != len(lines):
        keys = [b"", *map(_key, lines[1:])]
    return cast("list[bytes]", keys)


def _key(line: bytes) -> bytes:
    name, colon, _ = line.partition(b":")
    if not colon:
        raise ParseError("header line without a colon", section="RFC 3261 §7.3.1")
    return _KNOWN.get(name + colon) or canonical_name(name.rstrip(b" \t"))  # §25.1 HCOLON: spaces before the colon


def _claimed_length(keys: list[bytes], lines: list[bytes]) -> int | None:
    if b"content-length" not in keys:
        return None
    if keys.count(b"content-length") > 1:
        # Even when equal: the next hop may read the other one.
        raise ParseError("more than one Content-Length", section="RFC 3261 §20.14")
    value = _value(lines[keys.index(b"content-length")])
    return parse_number(value, MAX_BODY, "Content-Length", "RFC 3261 §20.14")


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
    if len(message.first_line) != len(message.keys):
        for name in SINGLE.intersection(message.keys):
            if message.keys.count(name) > 1:
                raise ParseError(f"more than one {name.decode('ascii')}", section="RFC 3261 §7.3.1")
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
    return Request(raw, len(raw), kept, keys, start)


def _copied_key(line: bytes) -> bytes:
    """The header's name when a response copies it and the line is sound, else b""."""
    try:
        key = _key(line)
        check_head(line)
    except ParseError:
        return b""
    return key if key in {b"via", b"from", b"to", b"call-id", b"cseq", b"timestamp"} else b""
