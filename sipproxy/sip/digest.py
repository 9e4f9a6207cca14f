"""Digest access authentication for SIP (RFC 3261 §22, RFC 7616, RFC 8760): challenges, credentials, nonces.

Offered and accepted is qop "auth". A response without qop (RFC 2069) is accepted for MD5 only, which is all that clients of
that age know; `NonceSource` then lets each nonce pass once. auth-int, the -sess algorithms, userhash and username* are neither
offered nor accepted, so that a body is not covered (a body that has to be is TLS' to protect). `opaque` is not sent, and read
past when it comes. Whether a digest `uri` belongs to the request is the engine's to decide: SIPp's is not the Request-URI.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache, partial

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import QUOTED, TOKEN_CHARS, quote, unquote
from sipproxy.sip.mac import Mac

__all__ = [
    "ALGORITHMS",
    "NONCE_WINDOW",
    "Challenge",
    "Credentials",
    "NonceSource",
    "NonceState",
    "ha1",
    "parse_challenge",
    "parse_credentials",
    "verify",
    "write_challenge",
    "write_credentials",
]

ALGORITHMS = ("SHA-512-256", "SHA-256", "MD5")
"""Best first, as RFC 8760 §2.3 wants the challenges ordered."""
_HASHES = {
    "SHA-512-256": partial(hashlib.new, "sha512_256", usedforsecurity=False),
    "SHA-256": partial(hashlib.sha256, usedforsecurity=False),
    "MD5": partial(hashlib.md5, usedforsecurity=False),
}

MAX_VALUE = 8192
"""Bytes of one Authorization value; a real one stays below 1,000."""
MAX_AUTH_PARAMS = 32
NONCE_WINDOW = 32
"""How far below the highest count of a nonce an unused one is still taken: requests overtake one another over UDP."""

_AUTH_PARAM = re.compile(
    rb"[ \t]*+([" + TOKEN_CHARS + rb"]++)[ \t]*+=[ \t]*+(" + QUOTED + rb'|[^\x00-\x20\x7f",]++)[ \t]*+(?:,|\Z)', re.DOTALL
)
_NC = re.compile(rb"[0-9a-fA-F]{8}\Z")
_HEX = re.compile(rb"[0-9a-fA-F]{1,128}\Z")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Credentials:
    """An Authorization or Proxy-Authorization value. `algorithm` is as in ALGORITHMS when it is one of them."""

    username: str
    realm: str
    nonce: bytes
    uri: bytes
    response: str
    algorithm: str
    qop: str | None
    nc: int | None
    nc_text: bytes
    """The count as written: the digest is over these eight bytes."""
    cnonce: bytes
    opaque: bytes


@dataclass(frozen=True, slots=True)
class Challenge:
    """A WWW-Authenticate or Proxy-Authenticate value. `qop` holds the options offered, () for RFC 2069."""

    realm: str
    nonce: bytes
    algorithm: str
    qop: tuple[str, ...]
    opaque: bytes
    stale: bool


def _digest(algorithm: str, data: bytes) -> str:
    return _HASHES[algorithm](data).hexdigest()


def ha1(algorithm: str, user: str, realm: str, password: str) -> str:
    """H(user:realm:password) in hex (RFC 7616 §3.4.2), over UTF-8 (§4). Raises KeyError for an unknown algorithm."""
    return _digest(algorithm, f"{user}:{realm}:{password}".encode())


def _response(algorithm: str, secret: str, method: bytes, credentials: tuple[bytes, bytes, str | None, bytes, bytes]) -> str:
    """The request-digest of RFC 7616 §3.4.1; without qop that of RFC 2069 §2.1.2."""
    nonce, uri, qop, nc, cnonce = credentials
    ha2 = _digest(algorithm, method + b":" + uri).encode("ascii")
    middle = nonce if qop is None else b":".join((nonce, nc, cnonce, qop.encode("ascii")))
    return _digest(algorithm, b":".join((secret.encode("ascii"), middle, ha2)))


def verify(credentials: Credentials, method: bytes, ha1: str) -> bool:
    """Whether the response fits the stored H(A1) (hex, of the same algorithm), compared in constant time.

    False for an algorithm that is not in ALGORITHMS, a qop other than auth, and no qop with anything but MD5.
    """
    algorithm, qop = credentials.algorithm, credentials.qop
    if algorithm not in _HASHES or (qop != "auth" and not (qop is None and algorithm == "MD5")):
        return False
    parts = (credentials.nonce, credentials.uri, qop, credentials.nc_text, credentials.cnonce)
    wanted = _response(algorithm, ha1.lower(), method, parts)
    return hmac.compare_digest(wanted.encode("ascii"), credentials.response.encode("ascii"))


def _auth_params(value: bytes, section: str) -> dict[bytes, bytes]:
    """The auth-params behind the scheme `Digest`, by name in lower case; quotes kept. Raises ParseError."""
    scheme, _, rest = value.strip(b" \t").partition(b" ")
    if scheme.lower() != b"digest" or len(value) > MAX_VALUE:
        raise ParseError("not a Digest value", section=section)  # not shown: a Basic value holds a password
    params: dict[bytes, bytes] = {}
    position = 0
    while position < len(rest):
        found = _AUTH_PARAM.match(rest, position)
        if found is None or len(params) == MAX_AUTH_PARAMS:
            # Not shown either: what stands here may be a credential.
            raise ParseError("malformed Digest value", offset=position, section=section)
        name = found[1].lower()
        if name in params:
            raise ParseError("a Digest parameter comes twice", offset=position, section=section)  # §3.4: MUST NOT
        params[name] = found[2]
        position = found.end()
    if rest.rstrip(b" \t").endswith(b","):
        raise ParseError("malformed Digest value", offset=len(rest), section=section)
    return params


def _text(params: dict[bytes, bytes], name: bytes, section: str) -> str:
    try:
        return _needed(params, name, section).decode("utf-8")
    except UnicodeDecodeError:
        raise ParseError(f"{name.decode('ascii')} is not UTF-8", section=section) from None


def _needed(params: dict[bytes, bytes], name: bytes, section: str) -> bytes:
    value = params.get(name)
    if value is None:
        raise ParseError(f"no {name.decode('ascii')} in a Digest value", section=section)
    value = unquote(value)
    if _CONTROL.search(value) is not None:
        raise ParseError(f"control character in {name.decode('ascii')}", section=section)
    return value


def _algorithm(params: dict[bytes, bytes]) -> str:
    # §3.3: MD5 when absent. Quotes around it are a common mistake and harmless.
    name = unquote(params.get(b"algorithm", b"MD5")).decode("latin-1")
    return next((known for known in ALGORITHMS if known == name.upper()), name)


@lru_cache(maxsize=64)  # an INVITE's are read to prove who it is of, and again to take them out of its copy
def parse_credentials(value: bytes) -> Credentials:
    """Digest credentials (RFC 7616 §3.4). Raises ParseError, also for a scheme other than Digest."""
    section = "RFC 7616 §3.4"
    params = _auth_params(value, section)
    response = _needed(params, b"response", section)
    if not _HEX.match(response):
        raise ParseError("response is not hexadecimal", section=section)
    qop = None
    nc = None
    nc_text = unquote(params.get(b"nc", b""))
    if b"qop" in params:
        qop = _text(params, b"qop", section).lower()
        if not _NC.match(nc_text) or b"cnonce" not in params:
            raise ParseError("qop without a sound nc and cnonce", section=section)
        nc = int(nc_text, 16)
    return Credentials(
        username=_text(params, b"username", section),
        realm=_text(params, b"realm", section),
        nonce=_needed(params, b"nonce", section),
        uri=_needed(params, b"uri", section),
        response=response.decode("ascii").lower(),
        algorithm=_algorithm(params),
        qop=qop,
        nc=nc,
        nc_text=nc_text if qop is not None else b"",
        cnonce=_needed(params, b"cnonce", section) if b"cnonce" in params else b"",
        opaque=_needed(params, b"opaque", section) if b"opaque" in params else b"",
    )


def write_challenge(realm: str, nonce: bytes, algorithm: str, *, stale: bool) -> bytes:
    """A challenge value (RFC 7616 §3.3) with qop "auth"."""
    if algorithm not in _HASHES:
        raise ValueError(f"no such algorithm: {algorithm!r}")
    value = b"Digest realm=%b, nonce=%b, algorithm=%b, qop=%b"
    value %= quote(realm.encode()), quote(nonce), algorithm.encode("ascii"), quote(b"auth")
    return value + b", stale=true" if stale else value


def parse_challenge(value: bytes) -> Challenge:
    """A Digest challenge. Raises ParseError, also for a scheme other than Digest."""
    section = "RFC 7616 §3.3"
    params = _auth_params(value, section)
    qop = unquote(params.get(b"qop", b"")).decode("latin-1").lower()
    return Challenge(
        realm=_text(params, b"realm", section),
        nonce=_needed(params, b"nonce", section),
        algorithm=_algorithm(params),
        qop=tuple(option.strip(" \t") for option in qop.split(",") if option.strip(" \t")),
        opaque=_needed(params, b"opaque", section) if b"opaque" in params else b"",
        stale=unquote(params.get(b"stale", b"")).lower() == b"true",
    )


def write_credentials(
    challenge: Challenge, *, method: bytes, uri: bytes, user: str, password: str, cnonce: bytes, nc: int
) -> bytes:
    """The answer to a challenge. Raises ValueError for one that this module cannot answer (algorithm or qop unknown)."""
    if challenge.algorithm not in _HASHES or (challenge.qop and "auth" not in challenge.qop):
        raise ValueError(f"cannot answer {challenge.algorithm!r} with qop {challenge.qop!r}")
    qop = "auth" if challenge.qop else None
    nc_text = b"%08x" % nc
    secret = ha1(challenge.algorithm, user, challenge.realm, password)
    response = _response(challenge.algorithm, secret, method, (challenge.nonce, uri, qop, nc_text, cnonce))
    parts = [
        b"Digest username=" + quote(user.encode()),
        b"realm=" + quote(challenge.realm.encode()),
        b"nonce=" + quote(challenge.nonce),
        b"uri=" + quote(uri),
        b"response=" + quote(response.encode("ascii")),
        b"algorithm=" + challenge.algorithm.encode("ascii"),
    ]
    if qop:
        parts += [b"qop=auth", b"nc=" + nc_text, b"cnonce=" + quote(cnonce)]
    if challenge.opaque:
        parts.append(b"opaque=" + quote(challenge.opaque))
    return b", ".join(parts)


class NonceState(Enum):
    """What `NonceSource` says of a nonce. All but OK get a new challenge with stale=true (RFC 7616 §3.3)."""

    OK = "ok"
    STALE = "stale"
    REPLAYED = "replayed"
    FORGED = "forged"


class NonceSource:
    """Nonces that carry their own proof, and a bounded table of the counts used with them.

    A nonce is the time, a random part and a MAC over both and over who asked for it, so that any node with the key, and this
    one after a restart, knows it, and that it is good for nobody else. Counts are remembered for nonces that were used, at most
    `max_tracked`. When the table is full its oldest entry goes, and from then on an unknown nonce counts as stale unless it was
    issued later than that entry: what was forgotten cannot be replayed, its owner gets a new challenge.

    A request that carries a count for the second time is REPLAYED, also when its CSeq is new: to be told from a replay it would
    need a new count. A retransmission never gets here, its transaction absorbs it; a client that does not count up gets a new
    challenge with stale=true and answers it unasked.

    After a restart, and at another node with the key, the table is empty: a request that was recorded before passes once more
    there, for its own source alone, until its nonce's lifetime ends.
    """

    def __init__(self, key: bytes, *, lifetime_s: int, max_tracked: int) -> None:
        if len(key) < 16 or lifetime_s < 1 or max_tracked < 1:
            raise ValueError("nonces need a key of 16 bytes or more, a lifetime and a table")
        self._keys = [(key, Mac(key))]  # the one that issues first
        self._lifetime_s = lifetime_s
        self._max_tracked = max_tracked
        self._seen: dict[bytes, int] = {}  # the highest count that was used, and below it bit n for "n less was used, too"
        self._forgotten_until = -1

    def __len__(self) -> int:
        return len(self._seen)

    def rekey(self, key: bytes) -> None:
        """Issue with this key from now on; what was issued with the one before stays good."""
        if len(key) < 16:
            raise ValueError("nonces need a key of 16 bytes or more")
        if key != self._keys[0][0]:
            self._keys = [(key, Mac(key)), self._keys[0]]

    def issue(self, now: int, random: bytes, owner: bytes) -> bytes:
        """A new nonce for `owner` alone. `now` is UTC in seconds, `random` at least 8 unpredictable bytes, of which 12 are
        used."""
        if len(random) < 8:
            raise ValueError("a nonce needs 8 random bytes or more")
        text = now.to_bytes(6, "big") + random[:12].ljust(12, b"\0")
        return urlsafe_b64encode(text + self._keys[0][1].digest(text + owner)[:_MAC_LENGTH])

    def inspect(self, nonce: bytes, now: int, owner: bytes) -> NonceState:
        """Whether the nonce was issued to `owner` and has not expired: OK, STALE or FORGED. Uses nothing up."""
        if len(nonce) != _NONCE_LENGTH:
            return NonceState.FORGED
        try:
            data = urlsafe_b64decode(nonce)
        except ValueError:
            return NonceState.FORGED
        text, mac = data[:_TEXT_LENGTH], data[_TEXT_LENGTH:]
        proven = any(hmac.compare_digest(own.digest(text + owner)[:_MAC_LENGTH], mac) for _, own in self._keys)
        # Compared as written too: base64 has several spellings of the same bytes.
        if not proven or urlsafe_b64encode(data) != nonce:
            return NonceState.FORGED
        issued = int.from_bytes(text[:6], "big")
        if not now - self._lifetime_s <= issued <= now + _CLOCK_SKEW_S:
            self._seen.pop(text, None)
            return NonceState.STALE
        return NonceState.OK

    def use(self, nonce: bytes, nc: int | None, now: int) -> NonceState:
        """Use up the count of a nonce that `inspect` found OK (None, for credentials without qop, uses up the whole nonce).

        Call it after `verify` said yes: a stranger must not use up the counts, or the table, of others.
        """
        text = urlsafe_b64decode(nonce)[:_TEXT_LENGTH]
        return self._use(text, int.from_bytes(text[:6], "big"), nc, now)

    def _use(self, text: bytes, issued: int, nc: int | None, now: int) -> NonceState:
        count = _EVERY_COUNT if nc is None else nc
        seen = self._seen.get(text)
        if seen is None:
            if issued <= self._forgotten_until:
                return NonceState.STALE
            if count < 1:
                return NonceState.REPLAYED  # RFC 7616 §3.4: the first count is 1.
            self._make_room(now)
            self._seen[text] = _FIRST if count == 1 else count << NONCE_WINDOW | 1
            return NonceState.OK
        if nc is None or count < 1:
            return NonceState.REPLAYED
        highest, window = seen >> NONCE_WINDOW, seen & _WINDOW_MASK
        ahead = count - highest
        if ahead > 0:
            window = (window << ahead if ahead < NONCE_WINDOW else 0) & _WINDOW_MASK | 1
            self._seen[text] = count << NONCE_WINDOW | window
            return NonceState.OK
        bit = 1 << -ahead if -ahead < NONCE_WINDOW else 0
        if not bit or window & bit:
            return NonceState.REPLAYED
        self._seen[text] = seen | bit
        return NonceState.OK

    def _make_room(self, now: int) -> None:
        """Drop entries from the front: those whose nonce has expired, and one more when that is not enough."""
        while self._seen:
            text = next(iter(self._seen))
            issued = int.from_bytes(text[:6], "big")
            if issued >= now - self._lifetime_s:
                if len(self._seen) < self._max_tracked:
                    return
                self._forgotten_until = max(self._forgotten_until, issued)
            del self._seen[text]


_TEXT_LENGTH = 18
_MAC_LENGTH = 18
_NONCE_LENGTH = 48  # base64 of 18 bytes of time and random and 18 of MAC
_CLOCK_SKEW_S = 60  # between nodes that share the key
_EVERY_COUNT = 2**32
_WINDOW_MASK = 2**NONCE_WINDOW - 1
_FIRST = 1 << NONCE_WINDOW | 1  # one number for all nonces that were used once: most are
