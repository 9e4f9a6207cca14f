"""Messages that are kept for long: only what later messages of their dialog or transaction can need, as bytes.

Pure. A message that was read whole takes some kilobytes, most of them for its header lines one by one. What an INVITE, its 2xx
or a request that was answered is still asked for is little, and hardly ever: it is read anew then.
"""

from __future__ import annotations

import functools

from sipproxy.sip.build import top_via
from sipproxy.sip.message import Request, Response, parse_message

__all__ = ["reduced", "request_of"]

# RFC 3261 §12.1: what a dialog is made of, and may stand on several lines.
KEPT = (b"record-route", b"from", b"to", b"call-id", b"cseq", b"contact")
CACHED = 64  # requests that were read anew lately: one message asks several times


def reduced(message: Request | Response) -> bytes:
    """The message without its body and without the header lines that no dialog needs.

    A request keeps its Via values, the top one stamped: its transactions are matched by them (§17.1.3, §17.2.3).
    """
    kept = [message.start_line]
    if isinstance(message, Request) and (top := top_via(message)) is not None:
        kept += message.lines_of(b"via")
        kept[1] = top
    for name in KEPT:
        kept += message.lines_of(name)
    kept += (b"", b"")
    return b"\r\n".join(kept)


@functools.lru_cache(maxsize=CACHED)
def request_of(kept: bytes) -> Request:
    """The request that was reduced. It is shared: nobody changes it."""
    request = parse_message(kept, max_headers=kept.count(b"\r\n"))
    assert isinstance(request, Request)
    return request
