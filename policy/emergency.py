"""Which targets are emergency calls, and which routes they have.

Decided from the target alone: no line, no list, no limit and no store is looked at. NotrufV § 4(5): digits *behind* 110 and
112 are ignored, digits *before* them forbid the connection, carrier-selection codes excepted. RFC 5031 §4.2 (urn:service:sos).
Where sources are silent the reading that brings help wins, as long as no valid number has that spelling: `+112`, `*31#112`,
`sip:sos@...`, digits of other scripts.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from policy.dialled import KNOWN_LENGTH, KNOWN_TARGETS, read

if TYPE_CHECKING:
    from policy.dialled import Dialled
    from policy.model import PsapRoute, Snapshot

__all__ = ["ANY_LOCATION", "routes_of", "service_in", "service_of"]

ANY_LOCATION = "*"  # PSAP routes for lines whose location has none

_NUMBERS = frozenset({"110", "112"})
_EXACT = {"+110": "110", "+112": "112"}  # "+" is no digit, so § 4(5) s. 1 does not apply; only the exact form
_BEHIND_CARRIER = re.compile(r"010(?:0[0-9]{2}|[1-9][0-9])(11[02])")  # § 4(5) s. 2
_URN = re.compile(r"urn:service:sos(?![a-z0-9_-])(?:\.([a-z0-9-]*))?")


def service_of(target: bytes) -> str:
    """ "110" or "112" when a call to `target` is an emergency call, else "". Never raises."""
    return _service_of(target) if len(target) <= KNOWN_LENGTH else service_in(read(target))


@lru_cache(maxsize=KNOWN_TARGETS)  # an INVITE is asked about some five times, and comes twice
def _service_of(target: bytes) -> str:
    return service_in(read(target))


def service_in(dialled: Dialled) -> str:
    """The same for a target that is taken apart already."""
    spoken = dialled.spoken
    if spoken[:3] in _NUMBERS:  # no subscriber number starts with 11, whatever follows
        return spoken[:3]
    head = spoken[:1]
    if head == "0":
        behind = _BEHIND_CARRIER.match(spoken)
        return behind[1] if behind else ""
    if head == "+":
        return _EXACT.get(spoken, "")
    if head in ("s", "S"):
        return "112" if spoken.lower() == "sos" else ""
    if head == "u":
        # NotrufV § 4(8) no. 6: police is 110, every other service, known or not, 112.
        urn = _URN.match(spoken)
        return "" if urn is None else "110" if urn[1] == "police" else "112"
    return ""


def routes_of(snapshot: Snapshot, location: str, service: str, now_at_ms: int) -> tuple[PsapRoute, ...]:
    """PSAP routes of a location in order, else those of any location ("*"), else none.

    Of dated entries those of the latest day that has come count (NotrufV § 3(3): the table changes with notice); where no
    day has come yet the first one's do, since any route is better than none.
    """
    routes = snapshot.psap.get((location, service)) or snapshot.psap.get((ANY_LOCATION, service), ())
    days = {route.valid_from_ms or 0 for route in routes}
    if len(days) <= 1:
        return routes
    day = max((day for day in days if day <= now_at_ms), default=min(days))
    return tuple(route for route in routes if (route.valid_from_ms or 0) == day)
