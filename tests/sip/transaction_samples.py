"""Messages for the tests of transactions, matching and dialogs."""

from __future__ import annotations

from sipproxy.sip.build import write_response
from sipproxy.sip.message import Request, Response, parse_message

__all__ = ["BRANCH", "make_request", "make_response", "reply"]

BRANCH = b"z9hG4bK776asdhds"


def make_request(
    method: bytes = b"INVITE",
    *,
    uri: bytes = b"sip:bob@biloxi.example",
    via: bytes = b"SIP/2.0/UDP pc33.atlanta.example;branch=" + BRANCH,
    from_: bytes = b"Alice <sip:alice@atlanta.example>;tag=1928301774",
    to: bytes = b"Bob <sip:bob@biloxi.example>",
    call_id: bytes = b"a84b4c76e66710@pc33.atlanta.example",
    cseq: bytes = b"314159",
    cseq_method: bytes = b"",
    more: bytes = b"",
) -> Request:
    message = parse_message(
        b"%b %b SIP/2.0\r\nVia: %b\r\nMax-Forwards: 70\r\n" % (method, uri, via)
        + b"From: %b\r\nTo: %b\r\nCall-ID: %b\r\n" % (from_, to, call_id)
        + b"CSeq: %b %b\r\n%bContent-Length: 0\r\n\r\n" % (cseq, cseq_method or method, more)
    )
    assert isinstance(message, Request)
    return message


def reply(data: bytes) -> Response:
    message = parse_message(data)
    assert isinstance(message, Response)
    return message


def make_response(
    request: Request, status: int, *, to_tag: bytes = b"a6c85cf", headers: tuple[tuple[bytes, bytes], ...] = ()
) -> Response:
    return reply(write_response(request, status, to_tag=to_tag, headers=headers))
