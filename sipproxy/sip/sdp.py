"""What kinds of media a session description asks for (RFC 8866 §5.14). Read only, for call records; never raises.

Bodies are forwarded untouched whatever they hold. Left out: everything but the media lines.
"""

from __future__ import annotations

import re
from itertools import permutations

__all__ = ["KINDS", "media_kinds"]

KINDS = ("audio", "video", "image", "text")
"""The kinds that are told apart; `image` is T.38 fax, `text` T.140."""

_NAMES = {name.encode(): name for name in KINDS}
# Line ends of both kinds are seen. A port of 0 refuses or removes the stream (RFC 3264 §6, §8.2).
_MEDIA = re.compile(rb"m=(audio|video|image|text)[ \t]+0*+[1-9]")
_LISTS = {names: list(names) for count in range(len(KINDS) + 1) for names in permutations(KINDS, count)}  # 65
_ENDS = frozenset(b"\r\n")
_SCANNED = 65536  # bytes; a datagram's worth


def media_kinds(body: bytes, content_type: bytes) -> list[str]:
    """The kinds of the streams in use, in order of first appearance; [] when the body is no session description.

    A multipart body (RFC 5621) is searched as a whole. There is one list of the same kinds, which nobody changes.
    """
    if content_type != b"application/sdp":
        kind = content_type.partition(b";")[0].strip(b" \t").lower()
        if kind != b"application/sdp" and not kind.startswith(b"multipart/"):
            return _LISTS[()]
    names: tuple[str, ...] = ()
    at = body.find(b"m=", 0, _SCANNED)
    while at >= 0:
        found = _MEDIA.match(body, at, _SCANNED) if at == 0 or body[at - 1] in _ENDS else None
        if found is not None and (name := _NAMES[found[1]]) not in names:
            names = (*names, name)
        at = body.find(b"m=", at + 2, _SCANNED)
    return _LISTS[names]
