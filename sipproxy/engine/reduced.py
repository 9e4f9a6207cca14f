"""Messages that are kept for long: only what later messages of their dialog or transaction can need, as bytes.

Pure. A message that was read whole takes some kilobytes, most of them for its header lines one by one. What an INVITE, its 2xx
or a request that was answered is still asked for is little, and hardly ever: it is read anew then.
"""

from __future__ import annotations

import functools

from sipproxy.sip.build import via_values
from sipproxy.sip.message import Request, Response, parse_message

__all__ = ["reduced", "request_of"]

# RFC 3261 §12.1: what a dialog is made of; b"" stands for the start line.
KEPT = frozenset([b"", *b"from to call-id cseq contact record-route".split()])
CACHED = 64  # requests that were read anew lately: one message asks several times


def reduced(message: Request | Response) -> bytes:
    """The message without its body and without the header lines that no dialog needs.

    A request keeps its Via values, the top one stamped: its transactions are matched by them (§17.1.3, §17.2.3).
    """
    lines = [line for key, line in zip(message.keys, message.lines_raw, strict=True) if key in KEPT]
    if isinstance(message, Request):
        lines[1:1] = [b"Via: " + value for value in via_values(message)]
    return b"\r\n".join((*lines, b"", b""))


@functools.lru_cache(maxsize=CACHED)
def request_of(kept: bytes) -> Request:
    """The request that was reduced. It is shared: nobody changes it."""
    request = parse_message(kept, max_headers=kept.count(b"\r\n"))
    assert isinstance(request, Request)
    return request
