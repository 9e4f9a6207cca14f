"""Header field values that a proxy or registrar reads (RFC 3261 §20, RFC 3581).

A value handed in has been unfolded. Left out: credentials and challenges (digest.py), and every header that is only forwarded.
"""

from __future__ import annotations

import re

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import (
    COMMA,
    HOST,
    LESS,
    MAX_PARAMS,
    PAREN,
    QUOTE,
    QUOTED,
    TOKEN,
    TOKEN_CHARS,
    Params,
    find_param,
    is_token,
    parse_number,
    parse_params,
    shown,
    unquote,
)
from sipproxy.sip.memo import Remembered
from sipproxy.sip.uri import STAR, Uri, parse_uri

__all__ = [
    "COMPACT",
    "MAX_ELEMENTS",
    "CSeq",
    "NameAddr",
    "Via",
    "ViaFrame",
    "canonical_name",
    "element_end",
    "parse_cseq",
    "parse_frame",
    "parse_name_addr",
    "parse_via",
    "split_commas",
]

MAX_ELEMENTS = 200
"""Comma-separated elements of one value; as many as a message may have header lines."""

COMPACT = {
    # RFC 3261 §7.3.3 and the registry of SIP header fields (RFC 3265, 3515, 3841, 3892, 4028, 4474, 6665).
    b"a": b"accept-contact",
    b"b": b"referred-by",
    b"c": b"content-type",
    b"d": b"request-disposition",
    b"e": b"content-encoding",
    b"f": b"from",
    b"i": b"call-id",
    b"j": b"reject-contact",
    b"k": b"supported",
    b"l": b"content-length",
    b"m": b"contact",
    b"n": b"identity-info",
    b"o": b"event",
    b"r": b"refer-to",
    b"s": b"subject",
    b"t": b"to",
    b"u": b"allow-events",
    b"v": b"via",
    b"x": b"session-expires",
    b"y": b"identity",
}


class NameAddr:
    """A From, To, Contact, Route, Record-Route or identity value, never changed. `display` is what the display name means,
    without quotes. Equal ones are those that are written alike.

    Parameter values are as written, so a quoted one keeps its quotes (grammar.unquote takes them off).
    """

    __slots__ = ("display", "params", "raw", "tag", "uri")

    def __init__(self, display: bytes, uri: Uri, params: Params, raw: bytes) -> None:
        self.display = display
        self.uri = uri
        self.params = params
        self.raw = raw
        self.tag: bytes | None = find_param(params, b"tag") or None
        """None when there is none, or an empty one."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NameAddr) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"<NameAddr {shown(self.raw)}>"

    def param(self, name: bytes) -> bytes | None:
        """The value of a header parameter: b"" when it has none, None when it is absent."""
        return find_param(self.params, name)

    @property
    def is_star(self) -> bool:
        return self.uri is STAR


class ViaFrame:
    """What the Via values of one sender have in common, never changed: all but the branch, in whose place `params` and `raw`
    have "*" (`has_gap`); or one Via value whose branch is not written as nearly all are, or that has none."""

    __slots__ = ("has_gap", "has_rport", "host", "params", "port", "raw", "sent_by", "transport")

    def __init__(self, transport: str, host: bytes, port: int | None, params: Params, raw: bytes, *, has_gap: bool) -> None:
        self.transport = transport
        self.host = host
        self.port = port
        self.params = params
        self.raw = raw
        self.has_gap = has_gap
        self.has_rport = find_param(params, b"rport") is not None
        """Whether answers are asked for to the port that the request came from (RFC 3581 §3)."""
        self.sent_by = (host.lower(), port or (5061 if transport.startswith("TLS") else 5060))
        """As compared: host in lower case, the transport's default port made explicit (§18.1.1, §20.42)."""


class Via:
    """One Via value (RFC 3261 §20.42), never changed. `transport` is in upper case; `host` as written, brackets kept."""

    __slots__ = ("branch", "frame")

    def __init__(self, frame: ViaFrame, branch: bytes | None) -> None:
        self.frame = frame
        self.branch = branch

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Via) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"<Via {shown(self.raw)}>"

    @property
    def transport(self) -> str:
        return self.frame.transport

    @property
    def host(self) -> bytes:
        return self.frame.host

    @property
    def port(self) -> int | None:
        return self.frame.port

    @property
    def raw(self) -> bytes:
        """As it was written."""
        return self.fill(self.frame.raw)

    @property
    def params(self) -> Params:
        branch = self.branch
        return tuple((key, branch if branch and key == b"branch" else value) for key, value in self.frame.params)

    def param(self, name: bytes) -> bytes | None:
        """The value of a parameter: b"" when it has none (`;rport`), None when it is absent."""
        return self.branch if self.branch and name == b"branch" else find_param(self.frame.params, name)

    def fill(self, text: bytes) -> bytes:
        """A text that was made of the frame's, with the branch in its place."""
        branch = self.branch
        if branch is None or not self.frame.has_gap:
            return text
        before, _, behind = text.partition(b";branch=*")
        return b"%b;branch=%b%b" % (before, branch, behind)


class CSeq:
    """A CSeq value, never changed."""

    __slots__ = ("method", "number")

    def __init__(self, number: int, method: bytes) -> None:
        self.number = number
        self.method = method

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CSeq) and (self.number, self.method) == (other.number, other.method)

    def __hash__(self) -> int:
        return hash((self.number, self.method))

    def __repr__(self) -> str:
        return f"<CSeq {self.number} {shown(self.method)}>"


_MAX_CSEQ = 2**31 - 1  # §8.1.1.5: MUST be less than 2**31.
# §25.1 display-name is tokens or a quoted string; unquoted UTF-8 is common and unambiguous.
# The space before "<" may be missing (RFC 4475 §3.1.1.6).
_NAME_ADDR = re.compile(
    rb"(?:(" + QUOTED + rb")[ \t]*+|([" + TOKEN_CHARS + rb" \t\x80-\xff]*+))<([^\x00-\x20\x7f<>\"]++)>[ \t]*+", re.DOTALL
)
# §20: a URI that holds a comma, question mark or semicolon MUST be in angle brackets: what follows ";" is the header's.
_ADDR_SPEC = re.compile(rb"([^\x00-\x20\x7f<>\",;?]++)[ \t]*+")
_VIA = re.compile(
    rb"[%b]++[ \t]*+/[ \t]*+[%b]++[ \t]*+/[ \t]*+([%b]++)[ \t]++(%b)[ \t]*+(?::[ \t]*+([0-9]{1,5})[ \t]*+)?\Z"
    % (TOKEN_CHARS, TOKEN_CHARS, TOKEN_CHARS, HOST)
)
_CSEQ = re.compile(rb"([0-9]++)[ \t]++([" + TOKEN_CHARS + rb"]++)\Z")
_COMMENT = rb"\((?:[^()\\]++|\\.|\((?:[^()\\]++|\\.)*\))*\)"
# One element: up to a comma that is not inside quotes, angle brackets or a comment (one level of nesting).
_ELEMENT = re.compile(rb"(?:[^,\"<(]++|" + QUOTED + rb"|<[^>]*+>|" + _COMMENT + rb")*", re.DOTALL)
_LWS = b" \t\r\n"


def canonical_name(name: bytes) -> bytes:
    """A header name in its long form and lower case. Raises ParseError when it is not a token."""
    if not TOKEN.match(name):
        raise ParseError("not a header name", section="RFC 3261 §7.3.1")
    name = name.lower()  # bytes.lower folds ASCII only: KELVIN SIGN stays what it is
    return COMPACT.get(name, name)


def element_end(value: bytes, position: int = 0) -> int:
    """Where the element that starts at `position` ends: at a comma or the end. Folds may still be in `value`."""
    found = _ELEMENT.match(value, position)
    end = found.end() if found else position
    if end < len(value) and value[end] != 0x2C:
        raise ParseError("unbalanced quotes, brackets or comment", offset=end, section="RFC 3261 §7.3.1")
    return end


def split_commas(value: bytes) -> list[bytes]:
    """The comma-separated elements of a value, stripped; [] for an empty value. Raises ParseError, so for an empty element."""
    if COMMA not in value:
        value = value.strip(_LWS)
        return [value] if value else []
    if QUOTE not in value and LESS not in value and PAREN not in value:
        elements = value.split(b",", MAX_ELEMENTS)
    else:
        elements = []
        position = 0
        while position <= len(value) and len(elements) <= MAX_ELEMENTS:
            end = element_end(value, position)
            elements.append(value[position:end])
            position = end + 1
    if len(elements) > MAX_ELEMENTS:
        raise ParseError(f"more than {MAX_ELEMENTS} elements", section="RFC 3261 §7.3.1")
    elements = [element.strip(_LWS) for element in elements]
    if b"" in elements:
        raise ParseError("empty element in a list", section="RFC 3261 §7.3.1")
    return elements


def parse_name_addr(data: bytes) -> NameAddr:
    """A name-addr or addr-spec with header parameters, or `*`. Raises ParseError."""
    head, found, tag = data.partition(b";tag=")
    if found and is_token(tag):
        # A party names itself alike in each call, only its tag is new. What stands last is a parameter of the header's.
        known = _parsed[head]
        if known.uri is not STAR and len(known.params) < MAX_PARAMS and find_param(known.params, b"tag") is None:
            return NameAddr(known.display, known.uri, (*known.params, (b"tag", tag)), data)
    return _parsed[data]


def _parse_address(data: bytes) -> NameAddr:
    data = data.strip(b" \t")
    found = _NAME_ADDR.match(data)
    if found is not None:
        quoted, display, uri = found.groups()
        name = unquote(quoted) if quoted is not None else display.strip(b" \t")
        return NameAddr(name, parse_uri(uri), parse_params(data, found.end()), data)
    if data == b"*":
        return NameAddr(b"", STAR, (), data)
    found = _ADDR_SPEC.match(data)
    if found is None:
        raise ParseError(f"not an address: {shown(data)}", section="RFC 3261 §20")
    return NameAddr(b"", parse_uri(found[1]), parse_params(data, found.end()), data)


_parsed = Remembered(_parse_address)


def parse_via(data: bytes) -> Via:
    """One Via value. Raises ParseError."""
    frame = parse_frame(data.strip(b" \t"))
    return Via(frame, find_param(frame.params, b"branch") or None)


def parse_frame(data: bytes, *, has_gap: bool = False) -> ViaFrame:
    """A Via value, or with `has_gap` what stands around the branch of one, which has "*" for it. Raises ParseError."""
    end = data.find(b";")
    if end < 0:
        end = len(data)
    found = _VIA.match(data[:end])
    if found is None:
        raise ParseError(f"not a Via: {shown(data)}", section="RFC 3261 §20.42")
    transport, host, port_text = found.groups()
    port = None
    if port_text is not None:
        port = int(port_text)
        if port > 65535:
            raise ParseError(f"port out of range: {shown(data)}", offset=found.start(3), section="RFC 3261 §20.42")
    return ViaFrame(transport.decode("ascii").upper(), host, port, parse_params(data, end), data, has_gap=has_gap)


def parse_cseq(data: bytes) -> CSeq:
    """A CSeq value. Raises ParseError."""
    found = _CSEQ.match(data)
    if found is None:
        raise ParseError(f"not a CSeq: {shown(data)}", section="RFC 3261 §20.16")
    return CSeq(parse_number(found[1], _MAX_CSEQ, "CSeq", "RFC 3261 §8.1.1.5"), found[2])
