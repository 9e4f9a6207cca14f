"""Messages to send: forwarded copies by slicing and joining, and responses, ACK, CANCEL and requests of our own.

RFC 3261 §8.2.6 (responses), §9.1 (CANCEL), §16.6 and §16.7 (forwarding), §17.1.1.3 (ACK), §18.2.1 with RFC 3581 §4 (stamping).
A forwarded copy keeps every line that it was not told to change byte for byte and in order. A line end in a value that is
ours to write is our own fault and raises ValueError: nothing a peer sent can become a header line of its own.
Left out: which lines a proxy changes, and where a message goes (engine).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from itertools import compress
from typing import TYPE_CHECKING

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import COMMA, CR, LF, unfold
from sipproxy.sip.headers import COMPACT, ViaFrame, element_end
from sipproxy.sip.memo import CACHED_LENGTH, Remembered
from sipproxy.sip.message import MAX_HEADERS, Message, Request, Response, message_of, parse_message

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "REASONS",
    "Editor",
    "Sent",
    "top_via",
    "via_values",
    "whole",
    "write_ack",
    "write_cancel",
    "write_request",
    "write_response",
]

REASONS: dict[int, bytes] = {
    100: b"Trying", 180: b"Ringing", 181: b"Call Is Being Forwarded", 182: b"Queued", 183: b"Session Progress",
    199: b"Early Dialog Terminated", 200: b"OK", 202: b"Accepted", 204: b"No Notification",
    300: b"Multiple Choices", 301: b"Moved Permanently", 302: b"Moved Temporarily",
    305: b"Use Proxy", 380: b"Alternative Service",
    400: b"Bad Request", 401: b"Unauthorized", 402: b"Payment Required", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 406: b"Not Acceptable", 407: b"Proxy Authentication Required", 408: b"Request Timeout",
    410: b"Gone", 412: b"Conditional Request Failed", 413: b"Request Entity Too Large", 414: b"Request-URI Too Long",
    415: b"Unsupported Media Type", 416: b"Unsupported URI Scheme", 420: b"Bad Extension", 421: b"Extension Required",
    422: b"Session Interval Too Small", 423: b"Interval Too Brief", 424: b"Bad Location Information", 425: b"Bad Alert Message",
    428: b"Use Identity Header", 429: b"Provide Referrer Identity", 430: b"Flow Failed", 433: b"Anonymity Disallowed",
    436: b"Bad Identity Info", 437: b"Unsupported Credential", 438: b"Invalid Identity Header",
    439: b"First Hop Lacks Outbound Support", 440: b"Max-Breadth Exceeded", 469: b"Bad Info Package", 470: b"Consent Needed",
    480: b"Temporarily Unavailable", 481: b"Call/Transaction Does Not Exist", 482: b"Loop Detected", 483: b"Too Many Hops",
    484: b"Address Incomplete", 485: b"Ambiguous", 486: b"Busy Here", 487: b"Request Terminated", 488: b"Not Acceptable Here",
    489: b"Bad Event", 491: b"Request Pending", 493: b"Undecipherable", 494: b"Security Agreement Required",
    500: b"Server Internal Error", 501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable",
    504: b"Server Time-out", 505: b"Version Not Supported", 513: b"Message Too Large",
    555: b"Push Notification Service Not Supported",
    580: b"Precondition Failure", 600: b"Busy Everywhere", 603: b"Decline", 604: b"Does Not Exist Anywhere",
    606: b"Not Acceptable", 607: b"Unwanted", 608: b"Rejected",
}  # fmt: skip
"""Reason phrases of the registry of SIP response codes."""

_CLASS_REASONS = {1: b"Trying", 2: b"OK", 3: b"Redirection", 4: b"Request Failure", 5: b"Server Failure", 6: b"Global Failure"}
_LWS = b" \t\r\n"
STAMPS = 1024  # senders of which is kept how their Via values leave
_CONTROL = re.compile(rb"[\x00-\x20\x7f]")
_NOT_IN_URI = re.compile(rb"[\x00-\x20\x7f-\xff]")


def _line(name: bytes, value: bytes) -> bytes:
    if CR in value or LF in value:
        raise ValueError(f"line end in a header to be written: {name!r}")
    return _prefix_of[name] + value


def _prefix(name: bytes) -> bytes:
    """What stands before the value of a line of ours."""
    if CR in name or LF in name:
        raise ValueError(f"line end in a header to be written: {name!r}")
    return name + b": "


def _key(name: bytes) -> bytes:
    name = name.lower()
    return COMPACT.get(name, name)


# Names that we write: those in this program and in the configuration.
_prefix_of = Remembered(_prefix, 1024)
_key_of = Remembered(_key, 1024)


def _split_first(line: bytes) -> tuple[bytes, bytes, bytes]:
    """A header line as name with colon and white space, first element, and the rest from its comma on; all byte for byte.

    Raises ParseError when the line's quotes or brackets do not balance.
    """
    value = line.partition(b":")[2]
    start = len(line) - len(value.lstrip(_LWS))
    end = element_end(line, start)
    return line[:start], line[start:end], line[end:]


def _stamped(request: Request, line: bytes, source: tuple[str, int]) -> bytes:
    """The top Via line, its first element saying where the request came from. An unreadable one is left as it is: the answer to
    it goes to the source address anyway."""
    if "via" in request.faults:
        return line
    try:
        name, rest = (line.partition(b":")[0] + b": ", b"") if COMMA not in line else _split_first(line)[::2]
    except ParseError:
        return line
    host, port = source
    via = request.via
    frame = via.frame
    before, behind = (_stamp_of if len(frame.raw) <= CACHED_LENGTH else _halves)(frame, host, port)
    if not before:
        return line
    return name + before + via.branch + behind + rest if frame.has_gap and via.branch else name + before + rest


def _halves(frame: ViaFrame, host: str, port: int) -> tuple[bytes, bytes]:
    """What stands before the branch and behind it in a Via value of a frame that says where it came from; the value and nothing
    where there is no gap for a branch, b"" and nothing where there is nothing to say."""
    value = _stamp(frame, host, port)
    if not value or not frame.has_gap:
        return value, b""
    before, _, behind = value.partition(b";branch=*")
    return before + b";branch=", behind


_stamp_of = functools.lru_cache(maxsize=STAMPS)(_halves)  # of the senders' frames, which are kept themselves


def _stamp(via: ViaFrame, host: str, port: int) -> bytes:
    """The Via value of a frame, saying where it came from; b"" when there is nothing to say."""
    wants_port = received = False
    parts = [via.raw.partition(b";")[0].rstrip(b" \t")]
    for key, value in via.params:
        if key == b"received":
            received = True  # dropped: a sender that writes its own could send answers elsewhere
        elif key == b"rport":
            wants_port = True
            parts.append(b"rport=%d" % port)
        else:
            parts.append(key + b"=" + value if value else key)
    # RFC 3581 §4: with rport, received MUST be there even when it equals the sent-by.
    if wants_port or not _same_host(via.host, host):
        parts.append(b"received=" + host.encode("ascii"))  # §25.1 via-received: an IPv6 address without brackets
    elif not received:
        return b""
    return b";".join(parts)


def _same_host(sent_by: bytes, host: str) -> bool:
    text = sent_by.strip(b"[]").lower().decode("ascii")
    if text == host:
        return True
    if ":" not in text or ":" not in host:
        return False
    try:
        return ipaddress.ip_address(text) == ipaddress.ip_address(host)
    except ValueError:
        return False


def top_via(message: Message) -> bytes | None:
    """The first Via line, stamped when the message is a request that was stamped; None when there is no Via."""
    number = message.first_line.get(b"via")
    if number is None:
        return None
    line = message.lines_raw[number]
    if not isinstance(message, Request) or message.source is None:
        return line
    if message.stamped_via is None:
        message.stamped_via = _stamped(message, line, message.source)
    return message.stamped_via


class Sent:
    """A request as it goes out, of which nothing but the method is known: for most the bytes are all that is asked for.

    `kept` is what is left of it when only some of its header lines are, b"" where nobody said which.
    """

    __slots__ = ("kept", "method", "raw")

    def __init__(self, method: bytes, raw: bytes, kept: bytes = b"") -> None:
        self.method, self.raw, self.kept = method, raw, kept


def whole(sent: Request | Sent) -> Request:
    """The request that goes out, parsed; it has no more header lines than its sender gave it."""
    if isinstance(sent, Request):
        return sent
    request = parse_message(sent.raw, max_headers=sent.raw.count(b"\r\n"))
    assert isinstance(request, Request)
    return request


class Editor:
    """A copy of a message in the making (RFC 3261 §16.6, §16.7). Header names in any case; compact forms mean the same.

    Values written must be without line ends (ValueError).
    """

    __slots__ = ("_body", "_keys", "_lines")

    def __init__(self, message: Request | Response) -> None:
        self._lines = message.lines_raw.copy()
        self._keys = message.shape.keys.copy()
        self._body = message.raw[message.body_at :]
        if message.version != b"SIP/2.0":
            self._write_version(message)
        if isinstance(message, Request) and (via := top_via(message)) is not None:
            self._lines[message.first_line[b"via"]] = via

    def _write_version(self, message: Request | Response) -> None:
        # §7.1: the version is case-insensitive, but implementations MUST send upper case.
        if isinstance(message, Request):
            self._lines[0] = message.method + b" " + message.uri + b" SIP/2.0"
        else:
            self._lines[0] = b"SIP/2.0 %d %b" % (message.status, message.reason)

    def request_uri(self, uri: bytes) -> None:
        """Replace the Request-URI."""
        if not uri or _NOT_IN_URI.search(uri) is not None:
            raise ValueError(f"not a Request-URI: {uri[:80]!r}")
        method, _, rest = self._lines[0].partition(b" ")
        self._lines[0] = method + b" " + uri + b" " + rest.partition(b" ")[2]

    def push(self, name: bytes, value: bytes) -> None:
        """A new line above the first line of that name; at the top of the headers when there is none."""
        key, keys = _key_of[name], self._keys
        number = keys.index(key) if key in keys else 1
        self._lines.insert(number, _line(name, value))
        keys.insert(number, key)

    def pop(self, name: bytes) -> None:
        """Remove the first comma-separated element of the first line of that name, and the line when it was the only one.

        Raises ParseError when the elements of the line cannot be told apart.
        """
        key, keys = _key_of[name], self._keys
        if key not in keys:
            return
        number = keys.index(key)
        line = self._lines[number]
        if COMMA in line:
            head, _, rest = _split_first(line)
            if rest:
                self._lines[number] = head.rstrip(_LWS) + b" " + rest[1:].lstrip(_LWS)
                return
        del self._lines[number], keys[number]

    def replace_first(self, name: bytes, value: bytes) -> None:
        """Replace the first comma-separated element of the first line of that name; a new line at the top when there is none.

        Raises ParseError when the elements of the line cannot be told apart.
        """
        key = _key_of[name]
        if key not in self._keys:
            self.push(name, value)
            return
        number = self._keys.index(key)
        _line(name, value)
        head, _, rest = _split_first(self._lines[number])
        self._lines[number] = head.rstrip(_LWS) + b" " + value + rest

    def set(self, name: bytes, value: bytes) -> None:
        """Replace all lines of that name by one, at the first one's place; at the end of the headers when there is none."""
        key, keys, line = _key_of[name], self._keys, _line(name, value)
        if key not in keys:
            self._lines.append(line)
            keys.append(key)
            return
        number = keys.index(key)
        self._lines[number] = line
        if key in keys[number + 1 :]:
            self._drop(key, number + 1)

    def remove(self, name: bytes) -> None:
        """Remove all lines of that name."""
        key = _key_of[name]
        if key in self._keys:
            self._drop(key, 1)

    def append(self, name: bytes, value: bytes) -> None:
        """A new line below the last line of that name; at the end of the headers when there is none."""
        key, keys = _key_of[name], self._keys
        number = len(keys)
        if key in keys:
            while keys[number - 1] != key:
                number -= 1
        self._lines.insert(number, _line(name, value))
        keys.insert(number, key)

    def to_bytes(self) -> bytes:
        """The copy as it goes out."""
        return b"\r\n".join((*self._lines, b"", self._body))

    def kept(self, names: frozenset[bytes]) -> bytes:
        """The start line and the header lines of these names, as they go out."""
        lines = compress(self._lines, map(names.__contains__, self._keys))
        return b"\r\n".join((self._lines[0], *lines, b"", b""))

    def to_request(self, *, max_headers: int = MAX_HEADERS) -> Request:
        """The copy of a request as it goes out, parsed; no change may follow. Raises ParseError, as parsing it would."""
        found = message_of(self._lines, self._body, max_headers=max_headers)
        assert isinstance(found, Request)
        return found

    def _drop(self, key: bytes, start: int) -> None:
        lines, keys = self._lines, self._keys
        for _ in range(keys.count(key)):
            try:
                number = keys.index(key, start)
            except ValueError:  # what is left stands above
                return
            del lines[number], keys[number]


def write_response(
    request: Request,
    status: int,
    reason: bytes = b"",
    *,
    to_tag: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (),
    body: bytes = b"",
) -> bytes:
    """A response to `request` (§8.2.6): its Via lines with the top one stamped, From, To, Call-ID, CSeq, then `headers`.

    Lines that the request lacks are not invented; unreadable ones are copied as they came. `to_tag` is added to a readable To
    without a tag. Content-Length is always added.
    """
    lines = [_STATUS_LINES[status] if not reason and status in _STATUS_LINES else _status_line(status, reason)]
    lines += _via_lines(request)
    raw, shape = request.lines_raw, request.shape
    lines += map(raw.__getitem__, shape.copied)
    if to_tag and "to" not in request.faults and request.to.tag is None:
        lines[shape.copied.index(request.first_line[b"to"]) - len(shape.copied)] += b";tag=" + to_tag
    if status == 100 and b"timestamp" in request.first_line:
        lines.append(raw[request.first_line[b"timestamp"]])  # §8.2.6.1 MUST
    for name, value in headers:
        lines.append(_line(name, value))
    lines.append(b"Content-Length: %d\r\n\r\n" % len(body) if body else _NO_BODY)
    return b"\r\n".join(lines) + body


def _status_line(status: int, reason: bytes) -> bytes:
    reason = reason or _CLASS_REASONS[status // 100]
    if CR in reason or LF in reason:
        raise ValueError("line end in a reason phrase")
    return b"SIP/2.0 %d %b" % (status, reason)


_STATUS_LINES = {status: _status_line(status, reason) for status, reason in REASONS.items()}
_NO_BODY = b"Content-Length: 0\r\n\r\n"


def _via_lines(request: Request) -> list[bytes]:
    top = top_via(request)
    if top is None:
        return []
    return [top] if request.shape.has_one_via else [top, *request.lines_of(b"via")[1:]]


def via_values(request: Request) -> list[bytes]:
    """The values of the request's Via lines, in order, the top one stamped: what a response to it has (§8.2.6.2)."""
    return [unfold(line.partition(b":")[2]).strip(b" \t") for line in _via_lines(request)]


def write_ack(invite: Request, response: Response) -> bytes:
    """The ACK to a non-2xx `response` (§17.1.1.3). `invite` is the request as it was sent."""
    to = response.lines_raw[response.first_line[b"to"]]
    return _derived(invite, b"ACK", to)


def write_cancel(invite: Request) -> bytes:
    """The CANCEL of a request as it was sent (§9.1)."""
    return _derived(invite, b"CANCEL", invite.lines_raw[invite.first_line[b"to"]])


def _derived(invite: Request, method: bytes, to: bytes) -> bytes:
    """What ACK and CANCEL share: Request-URI, one Via equal to the top one, From, Call-ID, CSeq number and Route."""
    raw, at = invite.lines_raw, invite.first_line
    _, via, _ = _split_first(raw[at[b"via"]])
    lines = [method + b" " + invite.uri + b" SIP/2.0", _line(b"Via", unfold(via).strip(b" \t"))]
    lines += invite.lines_of(b"route")
    lines += [
        b"Max-Forwards: 70",
        raw[at[b"from"]],
        to,
        raw[at[b"call-id"]],
        b"CSeq: %d %b" % (invite.cseq.number, method),
        b"Content-Length: 0",
    ]
    return b"\r\n".join((*lines, b"", b""))


def write_request(method: bytes, uri: bytes, headers: Sequence[tuple[bytes, bytes]], body: bytes = b"") -> bytes:
    """A request of our own. Content-Length is added."""
    if not method or not uri or _CONTROL.search(method + uri) is not None:
        raise ValueError(f"not a request line: {method!r} {uri[:80]!r}")
    lines = [method + b" " + uri + b" SIP/2.0"]
    for name, value in headers:
        lines.append(_line(name, value))
    lines.append(b"Content-Length: %d\r\n\r\n" % len(body))
    return b"\r\n".join(lines) + body
