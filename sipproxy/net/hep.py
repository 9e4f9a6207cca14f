"""Copies of all SIP messages for a collector, in the HEP version 3 format that Homer and sngrep read.

The format: draft of the HEP/EEP protocol, version 3 (a header "HEP3" and the length, then chunks of vendor, type, length and
value; vendor 0). Datagrams are sent and forgotten: what the kernel does not take at once is dropped and counted. Left out: what
a collector does with them, and the law's limits to that (docs/operation.md).
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from typing import TYPE_CHECKING

from sipproxy.net.passed import without_credentials

if TYPE_CHECKING:
    from sipproxy.net.passed import Passed

__all__ = ["HepSender", "write_hep"]

SIP = 1  # protocol type
PROTOCOLS = {"UDP": 17, "TCP": 6, "TLS": 6}  # IP's
MAX_PAYLOAD = 65_000  # bytes of a message; with the chunks it still is a datagram
_CALL_ID = re.compile(rb"^(?:call-id|i)[ \t]*:[ \t]*([^\r\n]{1,255})", re.IGNORECASE | re.MULTILINE)


def _chunk(kind: int, value: bytes) -> bytes:
    return struct.pack("!HHH", 0, kind, 6 + len(value)) + value


def write_hep(passed: Passed, *, capture_id: int, password: str = "") -> bytes:
    """One HEP3 datagram. Credentials in the message are blinded."""
    source, destination = ipaddress.ip_address(passed.source[0]), ipaddress.ip_address(passed.destination[0])
    four = source.version == 4
    seconds, nanoseconds = divmod(passed.at_ns, 1_000_000_000)
    call = _CALL_ID.search(passed.data)
    chunks = [
        _chunk(1, bytes([socket.AF_INET if four else 10])),  # 10: Linux' AF_INET6, which the format names
        _chunk(2, bytes([PROTOCOLS[passed.transport]])),
        _chunk(3 if four else 5, source.packed),
        _chunk(4 if four else 6, destination.packed),
        _chunk(7, passed.source[1].to_bytes(2, "big")),
        _chunk(8, passed.destination[1].to_bytes(2, "big")),
        _chunk(9, seconds.to_bytes(4, "big")),
        _chunk(10, (nanoseconds // 1000).to_bytes(4, "big")),
        _chunk(11, bytes([SIP])),
        _chunk(12, capture_id.to_bytes(4, "big")),
        *([_chunk(14, password.encode())] if password else []),
        *([_chunk(17, call[1].strip())] if call is not None else []),
        _chunk(15, without_credentials(passed.data)[:MAX_PAYLOAD]),
    ]
    body = b"".join(chunks)
    return b"HEP3" + (6 + len(body)).to_bytes(2, "big") + body


class HepSender:
    """Sends to one collector. `counters` and `dropped` hold plain integers."""

    def __init__(self, host: str, port: int, *, capture_id: int, password: str = "") -> None:
        """Raises OSError when there is no way to the address, an IP literal."""
        self.counters = {"sent": 0, "dropped": 0}
        self._capture_id, self._password = capture_id, password
        self._socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setblocking(False)  # noqa: FBT003
            self._socket.connect((host, port))
        except OSError:
            self._socket.close()
            raise

    def send(self, passed: Passed) -> None:
        """Send a copy, or count it as dropped: the collector is away, or the kernel's buffer full."""
        try:
            self._socket.send(write_hep(passed, capture_id=self._capture_id, password=self._password))
            self.counters["sent"] += 1
        except OSError:
            self.counters["dropped"] += 1

    def close(self) -> None:
        """Harmless when repeated."""
        self._socket.close()
