"""Session timers as a proxy keeps them (RFC 4028 §8): ask for one, refuse one that is too short, tell the caller of it.

Pure rules over one request and its 2xx; what follows from an agreed interval is in liveness.py. A proxy may put in and change
Session-Expires, put in and raise Min-SE where the sender does not know them, and add `timer` to the Require of a 2xx: nothing
else is touched, and a header that cannot be read leaves as it came. Left out: emergency calls, which are never asked.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.engine.options import has_option
from sipproxy.sip.errors import ParseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sipproxy.sip.build import Editor
    from sipproxy.sip.message import Message, Request, Response

__all__ = ["LEAST_S", "REFRESHES", "Agreed", "Asked", "Terms", "agreed", "ask", "is_too_short", "refusal", "tell"]

LEAST_S = 90  # RFC 4028 §4, §5: no interval and no Min-SE is below 90 s
REFRESHES = frozenset([b"INVITE", b"UPDATE"])  # §1: the session refresh requests
TIMER = b"timer"

# §4: delta-seconds, then parameters. A number of more digits than any interval has is not read.
_INTERVAL = re.compile(rb"[ \t]*+([0-9]{1,10})(?=[ \t]*+(?:;|\Z))")
_REFRESHER = re.compile(rb";[ \t]*+refresher[ \t]*+=[ \t]*+(ua[cs])(?=[ \t]*+(?:;|\Z))", re.IGNORECASE)


class Terms(NamedTuple):
    """What this node wants, in seconds: the interval that it asks for, 0 for not asking, and the shortest that it accepts."""

    interval_s: int
    least_s: int


class Asked(NamedTuple):
    """What is remembered of a request until its final response (§8.1): the interval that left, and who knows timers."""

    interval_s: int
    uac_supports: bool


class Agreed(NamedTuple):
    """The session interval in seconds that a 2xx told the caller, and who refreshes: `uac` or `uas`, "" when it is not said."""

    interval_s: int
    refresher: str


_asked: Callable[[tuple[int, bool]], Asked] = partial(tuple.__new__, Asked)  # as those of `actions`
_agreed: Callable[[tuple[int, str]], Agreed] = partial(tuple.__new__, Agreed)


def is_too_short(request: Request, terms: Terms) -> bool:
    """Whether the request is to be refused with 422 (§8.1): only a sender that supports timers can make use of that."""
    if request.method not in REFRESHES:
        return False
    wanted = _seconds(request, b"session-expires")
    return wanted is not None and wanted < terms.least_s and _has_option(request, b"supported")


def refusal(terms: Terms) -> tuple[bytes, bytes]:
    """The header that a 422 MUST have (§8.1)."""
    return b"Min-SE", b"%d" % terms.least_s


def ask(request: Request, editor: Editor, terms: Terms) -> Asked | None:
    """Make the forwarded copy of a session refresh request ask for a timer (§8.1). None when none was asked for.

    `editor` holds the copy. The `refresher` parameter is never written or changed: the parties settle that between them.
    """
    if request.method not in REFRESHES:
        return None
    supports = _has_option(request, b"supported")
    wanted, least = _seconds(request, b"session-expires"), _seconds(request, b"min-se")
    if request.has(b"min-se") and least is None:
        return None  # its sender means something that we cannot read: no promise on top of it
    floor = least or 0
    if wanted is None:
        if request.has(b"session-expires") or not terms.interval_s:
            return None
        interval = max(terms.interval_s, floor)  # §8.1: not below the request's Min-SE
        editor.append(b"Session-Expires", b"%d" % interval)
        return _asked((interval, supports))
    if not supports and wanted < terms.least_s:
        # §8.1: who does not know timers cannot repair a 422, so the interval is made longer on the way. MUST NOT with `timer`.
        floor = max(floor, terms.least_s)
        if floor != least:
            before = request.first(b"min-se") or b"0"
            editor.set(b"Min-SE", _INTERVAL.sub(b"%d" % floor, before, count=1))
    interval = wanted
    if wanted < floor:
        interval = floor  # §8.1 MUST
    elif terms.interval_s and wanted > terms.interval_s:
        interval = max(terms.interval_s, floor)  # §8.1: MAY reduce, not below Min-SE
    if interval != wanted:
        value = request.first(b"session-expires") or b""
        editor.set(b"Session-Expires", _INTERVAL.sub(b"%d" % interval, value, count=1))
    return _asked((interval, supports))


def agreed(response: Response, asked: Asked | None) -> Agreed | None:
    """The interval that the receiver of this 2xx knows of (§8.2); None for a session without one.

    A 2xx without Session-Expires comes from a UAS that knows no timers. When the sender of the request does, we are the first
    proxy on the way back that knows them, and what we asked for holds, with that sender as the refresher.
    """
    value = response.first(b"session-expires")
    if value is None:
        return _agreed((asked.interval_s, "uac")) if asked is not None and asked.uac_supports else None
    interval, refresher = _seconds(response, b"session-expires"), _REFRESHER.search(value)
    if interval is None:
        return None
    return _agreed((interval, refresher[1].lower().decode("ascii") if refresher else ""))


def tell(response: Response, agreed: Agreed | None, editor: Editor) -> None:
    """Put what was agreed into the copy of the 2xx that goes upstream, where the UAS did not (§8.2 MUST)."""
    if agreed is None or response.has(b"session-expires"):
        return  # §8.2: MUST NOT modify the value that was received
    editor.append(b"Session-Expires", b"%d;refresher=%s" % (agreed.interval_s, agreed.refresher.encode()))
    if not _has_option(response, b"require"):
        editor.append(b"Require", TIMER)


def _seconds(message: Message, name: bytes) -> int | None:
    value = message.first(name)
    found = _INTERVAL.match(value) if value is not None else None
    return int(found[1]) if found else None


def _has_option(message: Message, name: bytes) -> bool:
    try:
        return has_option(message, name, TIMER)
    except ParseError:
        return False
