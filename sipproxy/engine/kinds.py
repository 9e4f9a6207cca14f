"""What a message is, as far as its bytes tell before anything is parsed, for what stands before the engine.

Pure, and never raises. Where a message can be read in two ways it is taken for the more urgent one.
"""

from __future__ import annotations

import re
from enum import IntEnum
from hashlib import sha256
from typing import TYPE_CHECKING

from policy.emergency import service_of
from sipproxy.sip.grammar import SEMICOLON
from sipproxy.sip.matching import MAGIC_COOKIE
from sipproxy.sip.memo import Remembered

if TYPE_CHECKING:
    from sipproxy.sip.flow import Flow

__all__ = [
    "CALL_ID",
    "MAX_NAME",
    "Copy",
    "Kind",
    "branch_of",
    "copy_of",
    "has_authorization",
    "has_credentials",
    "is_new_call",
    "kind_of",
    "may_be_emergency",
    "nonce_in",
]

# What scanners of the internet call themselves. Anybody can call himself otherwise: this is only who goes first. It is looked
# for in every line of every request: one letter after the other tells a line apart sooner than two whole names do.
_SCANNER = re.compile(
    rb"\n[uUsS][sSeE][eErR](?:[rR]-[aA][gG][eE][nN][tT]|[vV][eE][rR])[ \t]*:[ \t]*(?=[efginpsvEFGINPSV])"
    rb"(?i:friendly-(?:scanner|request)|sipvicious|sip-?scan|sipcli|sundayddr|iwar|pplsip|vaxsip|smap|sipsak|gulp|nm@nm|"
    rb"eyebeam release 3006o)"
)
_FIRST_LINE = re.compile(rb"[A-Za-z0-9.!%*_+`'~-]{1,32} \S{1,4096} (?i:SIP)/2\.0\r?\n")
# In runs that end where a tag may begin: a step for each character would cost three times as much.
_TO_TAG = re.compile(rb"\n[tT][oO]?[ \t]*:(?:[^\r\n;]++|\r?\n[ \t]|;(?!\s*[tT][aA][gG]\s*=))*;\s*[tT][aA][gG]\s*=")
# The first Via, and its branch where that is unique by itself (RFC 3261 §17.2.3). In runs as above.
_RUN = rb"[^\r\n;,\"]*+(?:\r\n[ \t][^\r\n;,\"]*+)*"
CALL_ID = re.compile(rb"\n(?:call-id|i)[ \t]*:\s*(\S+)", re.IGNORECASE)
_BRANCH = re.compile(
    rb"\n[vV](?:[iI][aA])?[ \t]*+:" + _RUN + rb"(?:;(?!\s*+[bB][rR][aA][nN][cC][hH]\s*+=)" + _RUN + rb")*"
    rb"(?:;\s*+[bB][rR][aA][nN][cC][hH]\s*+=\s*+(" + MAGIC_COOKIE + rb"[^\s;,]+))?"
)
_ADMITTED = b";lr;e="  # in the Route of a call that another node brings (`edge.target_at`), or who writes like one
_CREDENTIALS = re.compile(rb"\nproxy-authorization[ \t]*:", re.IGNORECASE)
_NONCE = re.compile(  # in a line with its folds
    rb"\nauthorization[ \t]*:[^\n]*?(?:\n[ \t][^\n]*?)*?\bnonce[ \t]*=[ \t]*\"([^\"\r\n]{1,200})\"", re.IGNORECASE
)
_FOLDS = (b" ", b"\t")  # what a line begins with that goes on with the one above
_HELP = re.compile(rb"[sS][oO][sS]|%|[\x80-\xff]|1[-.() ]*1[-.() ]*[02]")
_PLAIN = re.compile(rb"INVITE (\S+) SIP/2\.0\r?\n")


Copy = tuple[str, int, bytes]  # what an INVITE has in common with its copies: host and port, and its branch
MAX_NAME = 100  # bytes of that: it is kept for each INVITE that was turned away, and a branch may be as long as a datagram


class Kind(IntEnum):
    """What a message is, in the order in which it is refused; PART, of a call or of a transaction, only where it floods."""

    SCANNER = 1
    OPTIONS = 2  # whatever is asked outside a call
    REGISTER = 3
    INVITE = 4
    PART = 5


SCANNER, OPTIONS, REGISTER, INVITE, PART = Kind  # to name one by its class costs ten times as much as this


def may_be_emergency(data: bytes) -> bool:
    """Whether an INVITE can be a call for help, from the bytes of its first line; in doubt it is.

    For a well-formed first line policy has the word; any other is none that has no sign of it in any spelling.
    """
    plain = _PLAIN.match(data)
    if plain is not None:
        return bool(service_of(plain[1]))
    end = data.find(b"\n")
    return _HELP.search(data, 0, end if end >= 0 else len(data)) is not None


def kind_of(data: bytes) -> Kind:
    """What a message is that begins with its first line (line ends before it are for the caller to strip)."""
    end = data.find(b"\n")
    kind = _kind_by[data[: end + 1] if end >= 0 else data]
    if kind is PART:
        return PART
    if not data.startswith(b"REGISTER ") and _has_to_tag(data):  # it is outside every dialog, To tag or not (RFC 3261 §10.2)
        return PART
    return SCANNER if kind is SCANNER or _SCANNER.search(data) is not None else kind


def _kind_by_line(line: bytes) -> Kind:
    """What a message is by its first line, with its end: PART where nothing else of it counts, SCANNER where it is none."""
    if line.startswith((b"ACK ", b"CANCEL ")) or line[:8].upper() == b"SIP/2.0 ":
        return PART
    if line.startswith(b"INVITE ") and may_be_emergency(line):
        return PART
    if _FIRST_LINE.match(line) is None:
        return SCANNER
    return INVITE if line.startswith(b"INVITE ") else REGISTER if line.startswith(b"REGISTER ") else OPTIONS


_kind_by = Remembered(_kind_by_line)  # numbers are dialled again, and an INVITE that was challenged comes again


def is_new_call(data: bytes) -> bool:
    """Whether it is an INVITE outside every dialog, without credentials, not for help and of no call that a node admitted, a
    scanner's too: less is looked for than by `kind_of`, since it is asked of each of thousands a second."""
    return (
        _kind_by[data[: data.find(b"\n") + 1]] is INVITE
        and not has_credentials(data)
        and not _has_to_tag(data)
        and _ADMITTED not in data
    )


def has_credentials(data: bytes) -> bool:
    """Whether a request answers a proxy's challenge, or tries to."""
    return _CREDENTIALS.search(data) is not None


def has_authorization(data: bytes) -> bool:
    """Whether a REGISTER answers a challenge, or tries to."""
    return nonce_in(data) is not None


def nonce_in(data: bytes) -> bytes | None:
    """The nonce of the challenge that a REGISTER answers, or tries to."""
    found = _NONCE.search(data)
    return found[1] if found is not None else None


def copy_of(data: bytes, flow: Flow) -> Copy:
    """What an INVITE has in common with its copies, its CANCEL and the ACK of its refusal (RFC 3261 §17.2.3, §9.1)."""
    name = branch_of(data) or data  # what has no such branch is repeated byte for byte
    return flow.host, flow.port, name if len(name) <= MAX_NAME else sha256(name).digest()


def branch_of(data: bytes) -> bytes | None:
    """The branch of the first Via, None where it is not unique by itself (RFC 3261 §17.2.3)."""
    found = _BRANCH.search(data)
    return found[1] if found is not None else None


def _has_to_tag(data: bytes) -> bool:
    """Whether the first To has a tag. Where it is written as nearly all write it, nothing else is searched."""
    at = data.find(b"\nTo:")
    if at < 0 or data.find(b"\n\r\n", 0, at) >= 0:  # one in a body is that of another message
        return _TO_TAG.search(data) is not None
    end = data.find(b"\n", at + 1)
    if data.find(b";tag=", at, end) >= 0:
        return True
    if SEMICOLON not in data[at:end] and data[end + 1 : end + 2] not in _FOLDS:
        return False
    return _TO_TAG.match(data, at) is not None
