"""What each message of the corpora may bring about, read out of the manifests' own words."""

from __future__ import annotations

import re
from typing import NamedTuple

FORWARD = "forward"
SILENCE = "silence"
_STATUS = re.compile(r"\b([2-6][0-9][0-9])\b")
_SILENT = re.compile(r"\bdrop|\bwait|keep-alive|optional|close")
_LENGTH = re.compile(rb"\n(?:content-length|l)[ \t]*:", re.IGNORECASE)

# Where another outcome than the words name is the right one, and why.
BESIDES = {
    "wsinv.dat": "481",  # it has a To tag and no dialog, as to_tag_fake_dialog.dat has, whose manifest wants 481 or 403
    "regescrt.dat": "403",  # its contact names a domain that is the node's own here; contacts with header fields are taken
    "raw_leading_crlf.dat": "200",  # RFC 3261 §7.5: the line ends before a good OPTIONS are ignored
    "badbranch.dat": "200",  # matched as RFC 2543 has it, which the manifest leaves open, it is an OPTIONS like any other
}
# The Request-URI, or the address, is what these are about: they are not aimed anew.
UNAIMED = {
    "ipv6-good.dat", "port-unambiguous.dat", "ruri_foreign.dat", "ruri_urn.dat", "ruri_urn_sos.dat", "unksm2.dat",
    "route_self_loop.dat", "raw_leading_crlf.dat",
}  # fmt: skip


class Case(NamedTuple):
    """A message and what may come of it; `words` and `kind` are the manifest's."""

    name: str
    data: bytes
    words: str
    kind: str


def has_length(data: bytes) -> bool:
    """Whether a message says where it ends."""
    return _LENGTH.search(data) is not None


def allowed(case: Case, data: bytes, *, tcp: bool, trusted: bool, proven: bool) -> frozenset[str]:
    """The outcomes that the manifest's words allow for `data`: statuses, `forward`, `silence`. Empty: nothing is said, all are.

    Who is not proven may be challenged or refused wherever a message may be forwarded or taken ("an authentication challenge is
    a fine answer"), and a REGISTER before its contacts are looked at (RFC 3261 §10.3). A message without Content-Length cannot
    be told from the next one on a stream (§18.3).
    """
    words = case.words
    if (
        "anything but" in words
        or "normal;" in words
        or not (_STATUS.search(words) or _SILENT.search(words) or FORWARD in words)
    ):
        return frozenset()
    udp, found_tcp = re.match(r"UDP:? ([^;(]*)", words), re.search(r"TCP:? ([^;)]*)", words)
    text = words
    if udp is not None and not tcp:
        text = udp[1]
    elif found_tcp is not None and tcp:
        text = found_tcp[1] + (" 400" if "TCP close" in words else "")
    found = set(_STATUS.findall(text)) | {BESIDES.get(case.name, "")} - {""}
    if "forward" in text or "route" in text:
        found.add(FORWARD)
    if _SILENT.search(text):
        found.add(SILENCE)
    if found & {FORWARD, "200"} and not proven:
        found |= {"401", "403", "404", "405", "407"}
    if case.kind == "registrar" and not proven:
        found |= {"401", "403", "404"}
    if case.kind == "auth coverage" and trusted:
        found.add("405")  # nobody has to challenge whom he knows
    if tcp and not has_length(data):
        found |= {"400", SILENCE}
    return frozenset(found)
