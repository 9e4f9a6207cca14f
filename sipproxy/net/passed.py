"""A SIP message that passed a listener, as those see it who watch the wire: HEP collectors, traces, packet files."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Passed", "without_credentials"]

_LINES = re.compile(rb"^(?:proxy-)?authorization[ \t]*:[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*", re.IGNORECASE | re.MULTILINE)
_PROOF = re.compile(rb'(response[ \t\r\n]*=[ \t\r\n]*"?)([0-9a-f]+)', re.IGNORECASE)


class Passed(NamedTuple):
    """One message, when it passed (UTC, ns), and between whom: (IP, port) of our listener and of the peer."""

    at_ns: int
    outgoing: bool
    transport: str
    local: tuple[str, int]
    remote: tuple[str, int]
    data: bytes

    @property
    def source(self) -> tuple[str, int]:
        return self.local if self.outgoing else self.remote

    @property
    def destination(self) -> tuple[str, int]:
        return self.remote if self.outgoing else self.local


def without_credentials(data: bytes) -> bytes:
    """The message as long as before, with zeros for what proves a password in its credentials (RFC 7616 §3.4.1).

    Whoever has the proof and what it was made of can try passwords at leisure.
    """
    if b"uthorization" not in data and b"UTHORIZATION" not in data:
        return data
    return _LINES.sub(lambda line: _PROOF.sub(lambda proof: proof[1] + b"0" * len(proof[2]), line[0]), data)
