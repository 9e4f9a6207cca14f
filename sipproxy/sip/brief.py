"""An answer to a request that is read no further than an answer needs (RFC 3261 §8.2.6.2, §8.2.7): what a node has no time for.

Pure. Only for requests over UDP that are written as nearly all are: lines of their own, one Via with `rport` on top, one each
of what an answer repeats. For others there is `salvage`, at several times the cost.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.sip.matching import MAGIC_COOKIE, branch_key

if TYPE_CHECKING:
    from sipproxy.sip.flow import Flow

__all__ = ["Brief", "parse_brief", "write_unavailable"]

_VIA = re.compile(
    rb"(?:[Vv]ia|v):[ \t]*(SIP/2\.0/UDP ([A-Za-z0-9.\-\[\]]+?)(?::([0-9]{1,5}))?)((?:;[A-Za-z0-9.\-_~!%*+`'=]+)+)"
)
_COPIED = {b"from": 0, b"f": 0, b"to": 1, b"t": 1, b"call-id": 2, b"i": 2, b"cseq": 3}
# The lines of these names and of Via, by name; and what is the rest of the line before (§7.3.1).
_LINES = re.compile(rb"\r\n(?:([ \t])|((via|v|from|f|to|t|call-id|i|cseq)[ \t]*:[^\r\n]*))", re.IGNORECASE)
_BRANCH = b"branch=" + MAGIC_COOKIE


class Brief(NamedTuple):
    """`key` is that of its transaction (`matching.server_key`), `before` and `after` what is around rport in the top Via."""

    key: tuple[object, ...]
    branch: bytes
    before: bytes
    after: bytes
    others: list[bytes]  # Via lines
    copied: list[bytes]  # From, To, Call-ID and CSeq


def parse_brief(data: bytes) -> Brief | None:
    """What an answer needs of a request outside a dialog; None where that takes more than this."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    breaks = data.count(b"\r\n", 0, end)
    if data.count(b"\n", 0, end) != breaks or data.count(b"\r", 0, end) != breaks:
        return None
    vias, copied = list[bytes](), [b"", b"", b"", b""]
    for folded, line, name in _LINES.findall(data, 0, end):
        if folded:
            return None
        place = _COPIED.get(name.lower(), -1)
        if place < 0:
            vias.append(line)
        elif copied[place]:
            return None
        else:
            copied[place] = line
    if not vias or not all(copied) or b"tag" in copied[1].lower():
        return None
    return _of(data[: data.find(b" ")], vias, copied)


def _of(method: bytes, vias: list[bytes], copied: list[bytes]) -> Brief | None:
    top = _VIA.fullmatch(vias[0])
    if top is None:
        return None
    before, found, branch = list[bytes](), False, b""
    params = top[4].split(b";")[1:]
    for at, param in enumerate(params):
        if param == b"rport" and not found:
            found, before, params = True, params[:at], params[at + 1 :]
        elif param.startswith(_BRANCH) and not branch and len(param) > len(_BRANCH):
            branch = param[len(b"branch=") :]
        elif param.lower().startswith((b"rport", b"received", b"branch", b"maddr")):
            return None
    if not found or not branch:
        return None
    key = branch_key(branch, (top[2].lower(), int(top[3] or 0) or 5060), method)
    return Brief(key, branch, b";".join([top[1], *before]), b"".join(b";" + param for param in params), vias[1:], copied)


def write_unavailable(brief: Brief, flow: Flow, *, tag: bytes, retry_s: int) -> bytes:
    """A 503 to who sent by this flow (RFC 3581 §4), who should come again after so many seconds (RFC 3261 §21.5.4)."""
    from_, to, call_id, cseq = brief.copied
    via = b"Via: %b;rport=%d;received=%b%b" % (brief.before, flow.port, flow.host.encode("ascii"), brief.after)
    lines = (b"SIP/2.0 503 Service Unavailable", via, *brief.others, from_, to + b";tag=" + tag, call_id, cseq)
    return b"\r\n".join(lines) + b"\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n" % retry_s
