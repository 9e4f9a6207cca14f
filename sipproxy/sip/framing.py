"""Messages out of a byte stream (RFC 3261 §18.3) and the keep-alives between them (RFC 5626 §3.5.1).

Content-Length decides where a message ends and is required (§18.3); it is read under the same rules as in message.py, so that
framing and parsing never disagree. Nothing is reserved by a length that a peer claims. Left out: sockets, time-outs, and what
the messages mean.
"""

from __future__ import annotations

import re
from enum import Enum

from sipproxy.sip.errors import ParseError
from sipproxy.sip.grammar import TOKEN_CHARS, parse_number, unfold
from sipproxy.sip.lines import MAX_BODY, check_head

__all__ = ["Keepalive", "StreamFramer"]


class Keepalive(Enum):
    """What stands between messages. A PING (CRLF CRLF) is answered with one CRLF by the side that accepted the connection."""

    PING = "ping"


_LENGTH = re.compile(rb"\r\n(?:content-length|l)[ \t]*+:((?:[^\r\n]++|\r\n[ \t])*)", re.IGNORECASE)
_START = re.compile(rb"[" + TOKEN_CHARS + rb"]")


class StreamFramer:
    """Cuts one connection's bytes into messages. The result does not depend on how the stream was cut into chunks.

    When the stream breaks behind messages that are whole, `feed` returns those and the next call raises; `failed` tells at
    once. After it raised, every further call raises the same error, and `refused` holds the head of the message that broke
    the stream (for `salvage`, to answer it before the connection is closed).
    """

    def __init__(self, max_message: int) -> None:
        self._max_message = max_message
        self._buffer = bytearray()
        self._searched = 0  # no end of headers begins before this
        self._needed = 0  # length of the message whose head is known, else 0
        self.failed: ParseError | None = None
        self.refused = b""

    @property
    def buffered(self) -> int:
        """Bytes held that are not a whole message yet: at most `max_message` and one chunk."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes | Keepalive]:
        """The messages and keep-alives that `data` completes. Raises ParseError when the rest cannot be told apart."""
        if self.failed is not None:
            raise self.failed
        self._buffer += data
        done: list[bytes | Keepalive] = []
        try:
            while (item := self._next()) is not None:
                done.append(item)
        except ParseError as error:
            # Not the one that is raised: with it goes this frame, which holds the framer, which holds the fault.
            self.failed = ParseError(error.detail, offset=error.offset, section=error.section, status=error.status)
            self._buffer.clear()
            if not done:
                raise
        return done

    def _next(self) -> bytes | Keepalive | None:
        buffer = self._buffer
        if not self._needed:
            if buffer.startswith(b"\r\n\r\n"):
                del buffer[:4]
                return Keepalive.PING
            if buffer.startswith(b"\r\n") and bytes(buffer[2:4]) not in {b"", b"\r"}:
                del buffer[:2]  # §7.5: a CRLF before the start line is ignored
            if not buffer or b"\r\n\r\n".startswith(bytes(buffer[:4])):
                return None
            self._read_head()
        if not self._needed or len(buffer) < self._needed:
            return None
        message = bytes(buffer[: self._needed])
        del buffer[: self._needed]
        self._needed = self._searched = 0
        return message

    def _read_head(self) -> None:
        buffer = self._buffer
        if not _START.match(buffer):
            raise ParseError("not a start line", section="RFC 3261 §7.1", status=0)  # such as TLS on a TCP port
        end = buffer.find(b"\r\n\r\n", self._searched)
        if end < 0:
            self._searched = max(len(buffer) - 3, 0)
            if len(buffer) > self._max_message:
                self._refuse(self._max_message)
                raise self._too_large()
            return
        head = bytes(buffer[:end])
        if end + 4 > self._max_message:
            self._refuse(end + 4)
            raise self._too_large()
        try:
            check_head(head)
            length = self._claimed_length(head)
        except ParseError:
            self._refuse(end + 4)
            raise
        if end + 4 + length > self._max_message:
            self._refuse(end + 4)
            raise self._too_large()
        self._needed = end + 4 + length

    @staticmethod
    def _claimed_length(head: bytes) -> int:
        values = _LENGTH.findall(head)
        section = "RFC 3261 §18.3"
        if len(values) != 1:
            detail = "more than one Content-Length" if values else "no Content-Length on a stream"
            raise ParseError(detail, section=section)
        return parse_number(unfold(values[0]).strip(b" \t"), MAX_BODY, "Content-Length", section)

    def _refuse(self, end: int) -> None:
        self.refused = bytes(self._buffer[:end])

    def _too_large(self) -> ParseError:
        return ParseError(f"message above {self._max_message} bytes", section="RFC 3261 §21.5.7", status=513)
