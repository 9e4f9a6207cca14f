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
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import BACKSLASH, SPACE, TOKEN, quote, telltale
from sipproxy.sip.lines import value_of
from sipproxy.sip.memo import Remembered

__all__ = [
    "ALGORITHMS",
    "NONCE_WINDOW",
    "Challenge",
    "Credentials",
    "NonceSource",
    "NonceState",
    "credentials_of",
    "ha1",
    "parse_challenge",
    "parse_credentials",
    "verify",
    "write_challenge",
    "write_credentials",
]

ALGORITHMS = ("SHA-512-256", "SHA-256", "MD5")
"""Best first, as RFC 8760 §2.3 wants the challenges ordered."""
_HASHES = {  # to be copied: to look an algorithm up takes longer than to hash what a digest is made of
    "SHA-512-256": hashlib.new("sha512_256", usedforsecurity=False),
    "SHA-256": hashlib.sha256(usedforsecurity=False),
    "MD5": hashlib.md5(usedforsecurity=False),
}

MAX_VALUE = 8192
"""Bytes of one Authorization value; a real one stays below 1,000."""
MAX_AUTH_PARAMS = 32
KNOWN_CREDENTIALS, KNOWN_CHALLENGES = 64, 16  # values of which is kept what was read, or is written around their nonces
NONCE_WINDOW = 32
"""How far below the highest count of a nonce an unused one is still taken: requests overtake one another over UDP."""

_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_HAS_CONTROL = telltale(bytes([*range(32, 127), *range(128, 256)]))
_QUOTE_INSIDE = b"\x01"  # stands for a quote within quotes while values are told apart; no value holds one
_HEX_DIGITS = b"0123456789abcdefABCDEF"
MAX_RESPONSE = 128  # hexadecimal digits: those of SHA-512


@dataclass(slots=True)
class Credentials:
    """An Authorization or Proxy-Authorization value. `algorithm` is as in ALGORITHMS when it is one of them.

    Not to be changed, although nothing keeps it from that: to make a frozen one takes five times as long.
    """

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
    found = _HASHES[algorithm].copy()
    found.update(data)
    return found.hexdigest()


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
    """The auth-params behind the scheme `Digest`, by name in lower case, without their quotes. Raises ParseError."""
    scheme, _, rest = value.strip(b" \t").partition(b" ")
    if scheme.lower() != b"digest" or len(value) > MAX_VALUE:
        raise ParseError("not a Digest value", section=section)  # not shown: a Basic value holds a password
    has_pairs = BACKSLASH in rest
    pieces = (b"," + (_PAIR.sub(_unpaired, rest) if has_pairs else rest)).split(b'"')  # outside quotes and inside, in turn
    names, bare = _frames[b'"'.join(pieces[::2])]
    quoted = pieces[1::2]
    if len(quoted) != len(names) or rest.translate(_HAS_CONTROL) != rest:
        raise ParseError("malformed Digest value", section=section)  # not shown either: it may hold a credential
    if has_pairs:
        quoted = [text.replace(_QUOTE_INSIDE, b'"') for text in quoted]
    params = bare.copy()
    params.update(zip(names, quoted, strict=True))
    return params


def _unpaired(found: re.Match[bytes]) -> bytes:
    """What a quoted pair means, and a quote by another sign, as long as the quotes around it tell where values end."""
    return found[1] if found[1] != b'"' else _QUOTE_INSIDE


def _read_frame(frame: bytes) -> tuple[list[bytes], dict[bytes, bytes]]:
    """What stands outside quotes, a quote for each value in them: the names of those values in order, and the parameters
    without quotes. There is a comma before each parameter. Raises ParseError."""
    quoted: list[bytes] = []
    bare: dict[bytes, bytes] = {}
    sound, count, pieces = True, 0, frame.split(b'"')
    for number, piece in enumerate(pieces, start=1):
        behind, *elements = piece.split(b",")
        before_quotes = elements.pop() if elements and number < len(pieces) else b""
        sound = sound and not behind.strip(b" \t") and bool(before_quotes) is (number < len(pieces))
        if before_quotes:
            name, equals, rest = before_quotes.partition(b"=")
            quoted.append(name.strip(b" \t").lower())
            sound = sound and bool(equals) and TOKEN.match(quoted[-1]) is not None and not rest.strip(b" \t")
        for element in elements:
            name, value = (part.strip(b" \t") for part in element.partition(b"=")[::2])
            bare[name.lower()] = value
            sound = (
                sound and TOKEN.match(name) is not None and bool(value) and SPACE not in value and _QUOTE_INSIDE not in value
            )
        count += len(elements)
    if not sound or count + len(quoted) > MAX_AUTH_PARAMS:
        raise ParseError("malformed Digest value", section="RFC 7616 §3.3")  # not shown either: it may hold a credential
    if len(bare.keys() | set(quoted)) != count + len(quoted):
        raise ParseError("a Digest parameter comes twice", section="RFC 7616 §3.4")  # MUST NOT
    return quoted, bare


_frames = Remembered(_read_frame)  # clients of one kind write the same between their values, counts and all


def _text(params: dict[bytes, bytes], name: bytes, section: str) -> str:
    try:
        return _needed(params, name, section).decode()
    except UnicodeDecodeError:
        raise ParseError(f"{name.decode('ascii')} is not UTF-8", section=section) from None


def _needed(params: dict[bytes, bytes], name: bytes, section: str) -> bytes:
    value = params.get(name)
    if value is None:
        raise ParseError(f"no {name.decode('ascii')} in a Digest value", section=section)
    return value


def _algorithm(params: dict[bytes, bytes]) -> str:
    # §3.3: MD5 when absent. Quotes around it are a common mistake and harmless.
    name = params.get(b"algorithm", b"MD5").decode("latin-1")
    return name if name in _HASHES or (upper := name.upper()) not in _HASHES else upper


@lru_cache(maxsize=KNOWN_CREDENTIALS)  # an INVITE's are read to prove who it is of, and again to take them out of its copy
def credentials_of(line: bytes) -> Credentials:
    """What a header line says, its folds inside. Raises ParseError as `parse_credentials`."""
    return parse_credentials(value_of[line])


def parse_credentials(value: bytes) -> Credentials:
    """Digest credentials (RFC 7616 §3.4). Raises ParseError, also for a scheme other than Digest."""
    section = "RFC 7616 §3.4"
    params = _auth_params(value, section)
    response = _needed(params, b"response", section)
    if response.translate(None, _HEX_DIGITS) or not 1 <= len(response) <= MAX_RESPONSE:
        raise ParseError("response is not hexadecimal", section=section)
    qop = nc = None
    nc_text = b""
    if b"qop" in params:
        qop, nc_text = _text(params, b"qop", section).lower(), params.get(b"nc", b"")
        if nc_text.translate(None, _HEX_DIGITS) or len(nc_text) != 8 or b"cnonce" not in params:
            raise ParseError("qop without a sound nc and cnonce", section=section)
        nc = int(nc_text, 16)
    return Credentials(
        _text(params, b"username", section),
        _text(params, b"realm", section),
        _needed(params, b"nonce", section),
        _needed(params, b"uri", section),
        response.decode("ascii").lower(),
        _algorithm(params),
        qop,
        nc,
        nc_text,
        params.get(b"cnonce", b""),
        params.get(b"opaque", b""),
    )


@lru_cache(maxsize=KNOWN_CHALLENGES)  # realms and algorithms of the configuration
def _challenge_of(realm: str, algorithm: str) -> tuple[bytes, bytes]:
    """A challenge's beginning and end, with the nonce between them."""
    if algorithm not in _HASHES:
        raise ValueError(f"no such algorithm: {algorithm!r}")
    return b'Digest realm=%b, nonce="' % quote(realm.encode()), b'", algorithm=%b, qop="auth"' % algorithm.encode("ascii")


def write_challenge(realm: str, nonce: bytes, algorithm: str, *, stale: bool) -> bytes:
    """A challenge value (RFC 7616 §3.3) with qop "auth" and a nonce of `NonceSource`."""
    before, behind = _challenge_of(realm, algorithm)
    return before + nonce + behind + (b", stale=true" if stale else b"")


def parse_challenge(value: bytes) -> Challenge:
    """A Digest challenge. Raises ParseError, also for a scheme other than Digest."""
    section = "RFC 7616 §3.3"
    params = _auth_params(value, section)
    qop = params.get(b"qop", b"").decode("latin-1").lower()
    return Challenge(
        realm=_text(params, b"realm", section),
        nonce=_needed(params, b"nonce", section),
        algorithm=_algorithm(params),
        qop=tuple(option.strip(" \t") for option in qop.split(",") if option.strip(" \t")),
        opaque=params.get(b"opaque", b""),
        stale=params.get(b"stale", b"").lower() == b"true",
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


OK, STALE, REPLAYED, FORGED = NonceState  # to name one by its class costs ten times as much as this


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
        self._key = key
        self._marks = [_mark_of(key)]  # the one that issues first
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
        if key != self._key:
            self._key, self._marks = key, [_mark_of(key), self._marks[0]]

    def issue(self, now: int, random: bytes, owner: bytes) -> bytes:
        """A new nonce for `owner` alone. `now` is UTC in seconds, `random` 8 unpredictable bytes."""
        if len(random) != 8:
            raise ValueError("a nonce needs 8 random bytes")
        text = b"%08x%b" % (now & 0xFFFFFFFF, random.hex().encode())
        return text + _proof(self._marks[0], text + owner)

    def inspect(self, nonce: bytes, now: int, owner: bytes) -> NonceState:
        """Whether the nonce was issued to `owner` and has not expired: OK, STALE or FORGED. Uses nothing up."""
        if len(nonce) != _NONCE_LENGTH:
            return FORGED
        text, proof = nonce[:_TEXT_LENGTH], nonce[_TEXT_LENGTH:]
        for mark in self._marks:
            if hmac.compare_digest(_proof(mark, text + owner), proof):
                break
        else:
            return FORGED
        issued = int(text[:8], 16)
        if not now - self._lifetime_s <= issued <= now + _CLOCK_SKEW_S:
            self._seen.pop(text, None)
            return STALE
        return OK

    def use(self, nonce: bytes, nc: int | None, now: int) -> NonceState:
        """Use up the count of a nonce that `inspect` found OK (None, for credentials without qop, uses up the whole nonce).

        Call it after `verify` said yes: a stranger must not use up the counts, or the table, of others.
        """
        text = nonce[:_TEXT_LENGTH]
        return self._use(text, int(text[:8], 16), nc, now)

    def _use(self, text: bytes, issued: int, nc: int | None, now: int) -> NonceState:
        count = _EVERY_COUNT if nc is None else nc
        seen = self._seen.get(text)
        if seen is None:
            if issued <= self._forgotten_until:
                return STALE
            if count < 1:
                return REPLAYED  # RFC 7616 §3.4: the first count is 1.
            self._make_room(now)
            self._seen[text] = _FIRST if count == 1 else count << NONCE_WINDOW | 1
            return OK
        if nc is None or count < 1:
            return REPLAYED
        highest, window = seen >> NONCE_WINDOW, seen & _WINDOW_MASK
        ahead = count - highest
        if ahead > 0:
            window = (window << ahead if ahead < NONCE_WINDOW else 0) & _WINDOW_MASK | 1
            self._seen[text] = count << NONCE_WINDOW | window
            return OK
        bit = 1 << -ahead if -ahead < NONCE_WINDOW else 0
        if not bit or window & bit:
            return REPLAYED
        self._seen[text] = seen | bit
        return OK

    def _make_room(self, now: int) -> None:
        """Drop entries from the front: those whose nonce has expired, and one more when that is not enough."""
        while self._seen:
            text = next(iter(self._seen))
            issued = int(text[:8], 16)
            if issued >= now - self._lifetime_s:
                if len(self._seen) < self._max_tracked:
                    return
                self._forgotten_until = max(self._forgotten_until, issued)
            del self._seen[text]


def _mark_of(key: bytes) -> hashlib.blake2b:
    """Keyed BLAKE2b (RFC 7693) with its key taken in, to be copied for each nonce."""
    mark = hashlib.blake2b(digest_size=_PROOF_BYTES, key=hashlib.sha256(b"nonce" + key).digest())
    mark.update(b"\0")  # the key's block is hashed when something follows it
    return mark


def _proof(mark: hashlib.blake2b, text: bytes) -> bytes:
    proof = mark.copy()
    proof.update(text)
    return proof.hexdigest().encode()


_TEXT_LENGTH = 24  # 8 hexadecimal digits of time, 16 of chance
_PROOF_BYTES = 12  # 96 bits: RFC 2104 §5 asks for no fewer than 80
_NONCE_LENGTH = _TEXT_LENGTH + 2 * _PROOF_BYTES
_CLOCK_SKEW_S = 60  # between nodes that share the key
_EVERY_COUNT = 2**32
_WINDOW_MASK = 2**NONCE_WINDOW - 1
_FIRST = 1 << NONCE_WINDOW | 1  # one number for all nonces that were used once: most are
