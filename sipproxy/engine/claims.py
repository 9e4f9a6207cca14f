"""What a customer's address says of its caller that only a network may say, as parameters: taken out of From.

Pure. P-Asserted-Identity and its kin are removed whole (`forward.strip_trust`); From stays, and may hold the same claims: that
the number was verified (`verstat`, 3GPP TS 24.229 §7.2A.20), what kind of caller it is (`cpc`, §7.2A.12: a prison, a test set,
a priority line), of which line or trunk group (`oli` and its spellings, `otg`). They stand as parameters of a tel URI, of a SIP
URI or of the telephone number in its user part (RFC 3261 §19.1.6), or behind the angle brackets; in any case, with any escapes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sipproxy.sip.grammar import GREATER, PERCENT
from sipproxy.sip.memo import Remembered
from sipproxy.sip.uri import unescape

if TYPE_CHECKING:
    from sipproxy.sip.headers import NameAddr
    from sipproxy.sip.uri import Uri

__all__ = ["has_claims", "without_claims"]

_NAMES = rb"verstat|cpc|oli|(?:isup|ss7)-oli|otg"
_CLAIM = re.compile(rb"[;?&,]\s*(?:" + _NAMES + rb")\s*(?:[=;?&,@>:]|\Z)", re.IGNORECASE)
_NAME = re.compile(rb"\s*(?:" + _NAMES + rb")\s*\Z", re.IGNORECASE)
_NESTED = 4  # escapes within escapes that are looked through: nobody honest has two


def has_claims(address: NameAddr) -> bool:
    """Whether the address claims something, in its URI or behind it."""
    if _claiming[address.uri.raw]:
        return True
    rest = address.raw.rpartition(b">")[2] if GREATER in address.raw else b""
    # A tag alone, of characters that begin no parameter, claims nothing.
    return not (rest.startswith(b";tag=") and rest[5:].isalnum()) and _claims(rest)


def without_claims(uri: Uri) -> bytes:
    """The URI without its claims; what is left is as it came. One that hides them in escapes keeps no parameters at all."""
    if not _claims(uri.raw):
        return uri.raw
    head, at, tail = uri.raw.partition(b"@") if uri.is_sip and uri.user is not None else (b"", b"", uri.raw)
    kept = _kept(head) + at + _kept(tail)
    if not _claims(kept):
        return kept
    user = head.partition(b";")[0]
    bare = user + at + re.split(rb"[;?]", tail, maxsplit=1)[0]
    return bare if not _claims(bare) else uri.scheme + b":" + (uri.host or b"anonymous.invalid")


def _claims(text: bytes) -> bool:
    for _ in range(_NESTED):
        if _CLAIM.search(text):
            return True
        if PERCENT not in text:
            return False
        text = unescape(text)
    return _CLAIM.search(text) is not None


_claiming = Remembered(_claims)  # addresses that lines call with


def _kept(text: bytes) -> bytes:
    first, *params = text.split(b";")
    return b";".join([first, *(param for param in params if not _NAME.match(unescape(param.partition(b"=")[0])))])
