"""UDP sockets of a load generator, and SIP messages as bytes: what is read is found by a scan, what is sent is put together.

The moment that a datagram came is the kernel's stamp (SO_TIMESTAMPNS, Linux), so that a generator that is late itself does not
charge that to the system under test. The peers here write header names in the usual long form. Leaves out: TCP.
"""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["BRANCH", "BUFFER", "RETRY", "Head", "Wire", "body_of", "head_of", "hop_of", "receiver_of", "response_to", "tag_of"]

BRANCH = re.compile(rb"\r\nVia:[^\r]*branch=([^;,\r]+)")
RETRY = re.compile(rb"\r\nRetry-After: *([0-9]+)")
BUFFER = 8 * 1024 * 1024
READ_AT_ONCE = 64
ANCILLARY = 64
MAX_DATAGRAM = 65_535
_SO_TIMESTAMPNS = 35  # <asm-generic/socket.h>; not in Python's socket module
_SO_RCVBUFFORCE = 33  # the same; needs CAP_NET_ADMIN
_STAMP = struct.Struct("=qq")

Address = tuple[str, int]
Handler = Callable[["Wire", bytes, Address, int], None]


class Wire:
    """One UDP socket. `handle` is called with the wire, each datagram, where it came from and its stamp (UTC ns)."""

    def __init__(self, handle: Handler, host: str = "127.0.0.1") -> None:
        self._handle = handle
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, BUFFER)
        except OSError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.bind((host, 0))
        self._socket.settimeout(0)
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self.place = b"%b:%d" % (host.encode(), self.port)
        self.blocked = 0  # datagrams that did not fit into the socket's buffer

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes, to: Address) -> int:
        """Send, and return the moment just before (UTC ns). What does not fit is counted and lost, as on a full link."""
        at = time.time_ns()
        try:
            self._socket.sendto(data, to)
        except BlockingIOError:
            self.blocked += 1
        return at

    def read(self) -> None:
        """Handle what is there, at most so much that timers get their turn."""
        receive, handle = self._socket.recvmsg, self._handle
        for _ in range(READ_AT_ONCE):
            try:
                data, ancillary, _, source = receive(MAX_DATAGRAM, ANCILLARY)
            except (BlockingIOError, ConnectionRefusedError):
                return
            seconds, nanoseconds = _STAMP.unpack(ancillary[0][2])
            handle(self, data, source, seconds * 1_000_000_000 + nanoseconds)


class Head(NamedTuple):
    """What a request or response holds that the other side needs again. `kept` are the lines that a response copies."""

    kept: bytes
    routes: list[bytes]  # the values of Record-Route, in order
    sender: bytes  # value of From
    receiver: bytes  # value of To
    call_id: bytes
    cseq: bytes
    contact: bytes  # URI


def head_of(data: bytes) -> Head:
    """The lines of a message's head that matter here."""
    kept, routes = [], []
    sender = receiver = call_id = cseq = contact = b""
    for line in data[: data.find(b"\r\n\r\n")].split(b"\r\n"):
        name, _, value = line.partition(b": ")
        if name == b"Via":
            kept.append(line)
        elif name == b"Record-Route":
            kept.append(line)
            routes.extend(value.split(b", "))
        elif name == b"From":
            sender = value
            kept.append(line)
        elif name == b"To":
            receiver = value
        elif name == b"Call-ID":
            call_id = value
            kept.append(line)
        elif name == b"CSeq":
            cseq = value
            kept.append(line)
        elif name == b"Contact":
            contact = value[value.find(b"<") + 1 : value.find(b">")]
    return Head(b"\r\n".join(kept), routes, sender, receiver, call_id, cseq, contact)


def receiver_of(data: bytes) -> bytes:
    """The To value of a message, "" where it has none."""
    at = data.find(b"\r\nTo: ")
    return data[at + 6 : data.find(b"\r\n", at + 6)] if at >= 0 else b""


def response_to(head: Head, status: bytes, *, tag: bytes = b"", more: bytes = b"", body: bytes = b"") -> bytes:
    """A response with this status and reason; `more` are whole header lines, `tag` of the To line where it has none."""
    receiver = head.receiver + b";tag=" + tag if tag and b";tag=" not in head.receiver else head.receiver
    return b"SIP/2.0 %b\r\n%b\r\nTo: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status,
        head.kept,
        receiver,
        more,
        len(body),
        body,
    )


def tag_of(value: bytes) -> bytes:
    """The tag of a From or To value, "" where there is none."""
    return value.partition(b";tag=")[2].partition(b";")[0]


def hop_of(uri: bytes, otherwise: Address) -> Address:
    """Host and port of a SIP URI (with or without <>) that names an IPv4 address; `otherwise` where it does not."""
    place = uri.partition(b"sip:")[2].partition(b">")[0].partition(b";")[0].rpartition(b"@")[2]
    host, _, port = place.partition(b":")
    return (host.decode(), int(port)) if port.isdigit() else otherwise


def body_of(host: str) -> bytes:
    """An audio offer or answer (PCMA, PCMU)."""
    return (
        b"v=0\r\no=- 1 1 IN IP4 %b\r\ns=-\r\nc=IN IP4 %b\r\nt=0 0\r\nm=audio 40000 RTP/AVP 8 0 101\r\n"
        b"a=rtpmap:8 PCMA/8000\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:101 telephone-event/8000\r\n"
        b"a=fmtp:101 0-15\r\na=sendrecv\r\n"
    ) % (host.encode(), host.encode())
