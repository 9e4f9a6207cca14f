"""Messages that are kept for long: only what later messages of their dialog or transaction can need, as bytes.

Pure. A message that was read whole takes some kilobytes, most of them for its header lines one by one. What an INVITE, its 2xx
or a request that was answered is still asked for is little, and hardly ever: it is read anew then.
"""

from __future__ import annotations

import functools
import zlib

from sipproxy.sip.build import top_via
from sipproxy.sip.message import Request, Response, parse_message
from sipproxy.sip.shape import MAX_SHAPES, Shape

__all__ = ["KEPT_OF_REQUESTS", "packed", "reduced", "request_of", "unpacked"]

KEPT = frozenset(b"from to call-id cseq contact record-route".split())  # RFC 3261 §12.1: what a dialog is made of
KEPT_OF_REQUESTS = KEPT | {b"via"}
CACHED = 64  # requests that were read anew lately: one message asks several times
# What such messages have in common besides what they repeat of each other; and a small window, for what is packed is small.
_COMMON = b"SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP ;branch=z9hG4bK\r\nRecord-Route: <sip:;lr;c=>\r\nTo: <sip:;tag="
_WINDOW, _LEVEL, _MEMORY = -12, 1, 4


def reduced(message: Request | Response) -> bytes:
    """The message without its body and without the header lines that no dialog needs.

    A request keeps its Via values, the top one stamped: its transactions are matched by them (§17.1.3, §17.2.3).
    """
    is_request = isinstance(message, Request)
    kept_of = _kept_of if message.shape.is_short else _kept_of.__wrapped__
    kept = list(map(message.lines_raw.__getitem__, kept_of(message.shape, vias=is_request)))
    if is_request and (top := top_via(message)) is not None:
        kept[1] = top
    kept += (b"", b"")
    return b"\r\n".join(kept)


@functools.lru_cache(maxsize=MAX_SHAPES)
def _kept_of(shape: Shape, *, vias: bool) -> tuple[int, ...]:
    """Which lines of messages of this shape are kept: the start line, the Via lines if these are, and the others."""
    others = [number for number, key in enumerate(shape.keys) if key in KEPT]
    return 0, *(shape.places.get(b"via", ()) if vias else ()), *others


@functools.lru_cache(maxsize=CACHED)
def request_of(kept: bytes) -> Request:
    """The request that was reduced. It is shared: nobody changes it."""
    request = parse_message(kept, max_headers=kept.count(b"\r\n"))
    assert isinstance(request, Request)
    return request


def packed(first: bytes, second: bytes, like: bytes) -> bytes:
    """Two reduced messages in a fifth of their room, for when they are hardly asked for. `like` is one that they repeat."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW, _MEMORY, zlib.Z_DEFAULT_STRATEGY, _COMMON + like)
    return packer.compress(b"%d %b%b" % (len(first), first, second)) + packer.flush()


def unpacked(data: bytes, like: bytes) -> tuple[bytes, bytes]:
    """The messages that were packed with the same `like`."""
    length, _, both = zlib.decompressobj(_WINDOW, _COMMON + like).decompress(data).partition(b" ")
    return both[: int(length)], both[int(length) :]
