"""SIP, SIPS and other URIs (RFC 3261 §19.1 and §25.1, RFC 3966 for tel comparison).

The user part keeps its escapes: `sips%3Auser` is a user, not a scheme (RFC 4475 §3.1.1.3). Left out: resolving a URI to an
address, and what a user part means as a number.
"""

from __future__ import annotations

import ipaddress
import re

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import EQUALS, HOST, MAX_PARAMS, PERCENT, Params, find_param, shown
from sipproxy.sip.memo import Remembered
from sipproxy.sip.text import text

__all__ = ["STAR", "Uri", "parse_uri", "unescape", "uris_equal"]


class Uri:
    """One URI, never changed. `raw` is what was parsed, and equal URIs are those that are written alike (`uris_equal` compares
    what they mean); `params` have their names in lower case.

    A plain class because messages build several of them: a frozen dataclass costs five times as much.
    """

    __slots__ = (
        "headers",
        "host",
        "host_text",
        "is_sip",
        "opaque",
        "params",
        "password",
        "port",
        "raw",
        "scheme",
        "user",
        "user_text",
    )

    def __init__(  # noqa: PLR0917  the parts of a URI in their order
        self,
        scheme: bytes,
        user: bytes | None,
        password: bytes | None,
        host: bytes,
        port: int | None,
        params: Params,
        headers: bytes,
        raw: bytes,
        opaque: bytes = b"",
    ) -> None:
        self.scheme = scheme
        self.user = user
        self.password = password
        self.host = host
        self.port = port
        self.params = params
        self.headers = headers
        self.raw = raw
        self.opaque = opaque
        self.is_sip = scheme in {b"sip", b"sips"}
        self.host_text = host.strip(b"[]").lower().decode("ascii")
        """The host in lower case and without brackets, for comparing and connecting."""
        self.user_text = text(user)
        """The user as text for people and records; "" for none."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Uri) and self.raw == other.raw

    def __hash__(self) -> int:
        return hash(self.raw)

    def __repr__(self) -> str:
        return f"<Uri {shown(self.raw)}>"

    def param(self, name: bytes) -> bytes | None:
        """The value of a URI parameter: b"" when it has none, None when it is absent."""
        return find_param(self.params, name)


STAR = Uri(b"*", None, None, b"", None, (), b"", b"*")
"""What a Contact of `*` has as its URI (RFC 3261 §20.10)."""

_ESCAPED = rb"%[0-9A-Fa-f]{2}"
# §25.1 user: unreserved, escaped, user-unreserved; and '#', which telephones dial unescaped.
_USER = rb"(?:[A-Za-z0-9\-_.!~*'()&=+$,;?/#]++|" + _ESCAPED + rb")+"
_PASSWORD = rb"(?:[A-Za-z0-9\-_.!~*'()&=+$,]++|" + _ESCAPED + rb")*"
_PARAM = rb";(?:[A-Za-z0-9\-_.!~*'()\[\]/:&+$=]++|" + _ESCAPED + rb")+"
_HEADERS = rb"(?:[A-Za-z0-9\-_.!~*'()\[\]/?:+$=&]++|" + _ESCAPED + rb")+"
_SIP = re.compile(
    rb"([sS][iI][pP][sS]?):(?:(" + _USER + rb")(?::(" + _PASSWORD + rb"))?@)?(" + HOST + rb")(?::([0-9]{1,5}))?"
    rb"((?:" + _PARAM + rb")*)(?:\?(" + _HEADERS + rb"))?\Z"
)
_OTHER = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*+):([!#-;=?-~]++)\Z")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_VISUAL = re.compile(rb"[\-.()]")
# §19.1.4: a parameter that decides where or how a request goes never matches its absence.
_NEVER_IGNORED = (b"user", b"ttl", b"method", b"maddr", b"transport")


def parse_uri(data: bytes) -> Uri:
    """A URI of any scheme. Raises ParseError."""
    return _parsed[data]


def _parse(data: bytes) -> Uri:
    found = _SIP.match(data)
    if found is None:
        return _parse_other(data)
    scheme, user, password, host, port_text, params_text, headers = found.groups()
    port = None
    if port_text is not None:
        port = int(port_text)
        if port > 65535:
            raise ParseError(f"port out of range: {shown(data)}", offset=found.start(5), section="RFC 3261 §19.1.1")
    params = _split_params(params_text, found.start(6)) if params_text else ()
    return Uri(scheme.lower(), user, password, host, port, params, headers or b"", data)


_parsed = Remembered(_parse)


def _parse_other(data: bytes) -> Uri:
    found = _OTHER.match(data)
    if found is None:
        raise ParseError(f"not a URI: {shown(data)}", section="RFC 3261 §19.1.1")
    scheme = found[1].lower()
    if scheme in {b"sip", b"sips"}:
        raise ParseError(f"not a SIP URI: {shown(data)}", offset=len(scheme) + 1, section="RFC 3261 §19.1.1")
    return Uri(scheme, None, None, b"", None, (), b"", data, found[2])


def _split_params(text: bytes, offset: int) -> Params:
    params: list[tuple[bytes, bytes]] = []
    if text.count(b";") > MAX_PARAMS:
        raise ParseError("too many URI parameters", offset=offset, section="RFC 3261 §19.1.1")
    for part in text[1:].split(b";"):
        name, equals, value = part.partition(b"=")
        if not name or (equals and not value) or EQUALS in value:
            raise ParseError(f"not a URI parameter: {shown(part)}", offset=offset, section="RFC 3261 §19.1.1")
        params.append((name.lower(), value))
    if len(params) > 1 and len({name for name, _ in params}) != len(params):
        # §19.1.1: any given parameter-name MUST NOT appear more than once.
        raise ParseError("a URI parameter comes twice", offset=offset, section="RFC 3261 §19.1.1")
    return tuple(params)


def unescape(data: bytes) -> bytes:
    """`data` with %HH turned into bytes, once; a % without two hex digits stays."""
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode("ascii")), data) if PERCENT in data else data


def _normal(data: bytes) -> bytes:
    """§19.1.4: characters outside the reserved set equal their escape; the others keep theirs, in upper case."""
    return _ESCAPE.sub(_normal_escape, data) if PERCENT in data else data


_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()")


def _normal_escape(found: re.Match[bytes]) -> bytes:
    value = int(found[1], 16)
    return bytes((value,)) if value in _UNRESERVED else b"%%%02X" % value


def uris_equal(a: Uri, b: Uri) -> bool:
    """Whether two URIs are equivalent (RFC 3261 §19.1.4; tel by RFC 3966 §5; any other scheme byte for byte)."""
    if a.scheme != b.scheme:
        return False
    if not a.is_sip:
        return _tel(a.opaque) == _tel(b.opaque) if a.scheme == b"tel" else a.opaque == b.opaque
    if a.port != b.port or _host(a) != _host(b):
        return False  # §19.1.4: an absent port does not equal 5060.
    if _part(a.user) != _part(b.user) or _part(a.password) != _part(b.password):
        return False
    return _params_equal(a, b) and _headers(a.headers) == _headers(b.headers)


def _part(part: bytes | None) -> bytes | None:
    return None if part is None else _normal(part)


def _host(uri: Uri) -> str:
    text = uri.host_text
    if ":" in text:
        try:
            return str(ipaddress.IPv6Address(text))
        except ValueError:
            return text
    return text


def _params_equal(a: Uri, b: Uri) -> bool:
    left = {_normal(name): value for name, value in a.params}
    right = {_normal(name): value for name, value in b.params}
    if any((name in left) is not (name in right) for name in _NEVER_IGNORED):
        return False
    return all(_normal(left[name]).lower() == _normal(right[name]).lower() for name in left.keys() & right.keys())


def _headers(headers: bytes) -> list[tuple[bytes, bytes]]:
    """§19.1.4: header components are never ignored; their order does not count."""
    parts = (part.partition(b"=") for part in headers.split(b"&")) if headers else ()
    return sorted((_normal(name).lower(), _normal(value)) for name, _, value in parts)


def _tel(opaque: bytes) -> tuple[bytes, list[bytes]]:
    number, *params = opaque.lower().split(b";")
    return _VISUAL.sub(b"", number), sorted(params)
