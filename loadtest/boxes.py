"""Customer routers as rows of a table: many share one socket, and what they send is put together from bytes.

A box has one account; it registers, refreshes and answers challenges (RFC 7616: MD5 and SHA-256, qop auth). Its calls are in
generator.py. Leaves out: connections, several contacts, challenges without qop.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.wire import Wire

__all__ = ["Box"]

_HASHES: dict[str, Callable[[bytes], str]] = {
    "MD5": lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest(),
    "SHA-256": lambda data: hashlib.sha256(data).hexdigest(),
}
NONCE = re.compile(rb'nonce="([^"]+)"')
AGENT = b"User-Agent: AVM FRITZ!Box 7590 154.07.57\r\n"
ALLOW = b"Allow: INVITE,ACK,OPTIONS,CANCEL,BYE,UPDATE,PRACK,INFO,SUBSCRIBE,NOTIFY,REFER,MESSAGE\r\n"
CNONCE = b"6f2a91c3"


@dataclass(slots=True)
class Box:
    """One router. `secret` is its HA1 as hexadecimal text once a challenge told the realm it belongs to."""

    index: int
    user: bytes
    password: bytes = field(repr=False)
    number: str
    domain: bytes
    algorithm: str
    wire: Wire
    nonce: bytes = b""
    count: int = 0  # nonce count
    cseq: int = 0
    step: int = 0  # of its registration; what was to be repeated for an earlier one is not
    challenges: int = 0
    began_ns: int = 0
    registered: bool = False
    secret: bytes = field(default=b"", repr=False)

    @property
    def contact(self) -> bytes:
        return b"sip:%b@%b" % (self.user, self.wire.place)

    def challenged(self, response: bytes) -> bool:
        """Take a challenge with the algorithm of this router; whether there was one."""
        end = response.find(b"\r\n\r\n")
        for line in response[:end].split(b"\r\n"):
            if not line.startswith((b"Proxy-Authenticate:", b"WWW-Authenticate:")):
                continue
            named = b"algorithm=" + self.algorithm.encode()
            found = NONCE.search(line)
            if found is not None and (named in line or (self.algorithm == "MD5" and b"algorithm=" not in line)):
                self.nonce, self.count = found[1], 0
                return True
        return False

    def credentials(self, header: bytes, method: bytes, uri: bytes) -> bytes:
        """The header line that answers the challenge at hand for this request; "" before the first one."""
        if not self.nonce:
            return b""
        digest = _HASHES[self.algorithm]
        if not self.secret:
            self.secret = digest(b"%b:%b:%b" % (self.user, self.domain, self.password)).encode()
        self.count += 1
        asked = digest(b"%b:%b" % (method, uri)).encode()
        answer = digest(b"%b:%b:%08x:%b:auth:%b" % (self.secret, self.nonce, self.count, CNONCE, asked)).encode()
        return (
            b'%b: Digest username="%b", realm="%b", nonce="%b", uri="%b", response="%b", algorithm=%b, qop=auth, nc=%08x, '
            b'cnonce="%b"\r\n'
        ) % (header, self.user, self.domain, self.nonce, uri, answer, self.algorithm.encode(), self.count, CNONCE)

    def register(self, run: bytes, expires_s: int) -> bytes:
        """The next REGISTER."""
        self.cseq += 1
        uri = b"sip:" + self.domain
        aor = b"<sip:%b@%b>" % (self.user, self.domain)
        return (
            b"REGISTER %b SIP/2.0\r\nVia: SIP/2.0/UDP %b;branch=z9hG4bKr%d.%d;rport\r\nMax-Forwards: 70\r\nFrom: %b;tag=r%d\r\n"
            b"To: %b\r\nCall-ID: r%d-%b\r\nCSeq: %d REGISTER\r\nContact: <%b>\r\nExpires: %d\r\n"
            b"Supported: 100rel,replaces,timer\r\nAllow-Events: telephone-event,refer,reg\r\n%b%b%bContent-Length: 0\r\n\r\n"
        ) % (
            uri, self.wire.place, self.index, self.cseq, aor, self.cseq, aor, self.index, run, self.cseq, self.contact,
            expires_s, AGENT, ALLOW, self.credentials(b"Authorization", b"REGISTER", uri),
        )  # fmt: skip
