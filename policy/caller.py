"""What becomes of the caller's number of one attempt: the seam between the rules' order and `policy.identity`.

Pure; never raises. Rule ids:

    caller.not_allowed      the profile refuses calls that show a number which is not the line's: 403
    caller.forbidden        incoming, showing 110, 112, 0900, 0137, 118xy or a short code: 403, § 120(3) TKG
    caller.anonymous        incoming with a hidden number, to a line that rejects such calls: 433, RFC 5079

Left out: emergency calls are not refused here, whatever the number; `policy.evaluate` sees to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.identity import ALWAYS_SHOWN, canonical_caller, forbidden_caller, german_from_abroad, screen
from policy.model import Caller, Screening

if TYPE_CHECKING:
    from policy.model import CallAttempt, Destination, Line, Snapshot

__all__ = ["incoming_caller", "outgoing_caller"]

CALLER_REFUSED = (403, 21)  # status and Q.850 cause
ANONYMITY_DISALLOWED = (433, 21)  # RFC 5079 §4


def outgoing_caller(snapshot: Snapshot, attempt: CallAttempt, destination: Destination) -> Caller:
    """What becomes of the number of a customer who calls `destination`."""
    line = attempt.line
    screened = screen(snapshot, line, attempt.account, attempt.caller, attempt.preferred)
    why = ""
    if attempt.privacy:
        why = "asked for by Privacy"
    elif attempt.anonymous:
        why = "From is anonymous"
    elif destination.clir:
        why = "*31# in front of the number"
    elif line is not None and line.clir:
        why = "always, by the line"
    restricted = bool(why) and not destination.service and destination.canonical not in ALWAYS_SHOWN
    profile = snapshot.profiles.get(line.profile) if screened.fault and line is not None else None
    if profile is not None and profile.screening is Screening.REFUSE:
        refusal = ("caller.not_allowed", screened.fault, *CALLER_REFUSED)
        return Caller(screened.asserted, screened.presented, restricted, refusal=refusal, said=screened.fault)
    said = f"{screened.fault}: replaced" if screened.fault else f"{screened.presented or 'no number'} is shown"
    if why:
        said = f"{screened.asserted or 'no number'} is hidden: {why}" if restricted else f"shown to {destination.canonical}"
    return Caller(screened.asserted, screened.presented, restricted, "", None, said)


def incoming_caller(snapshot: Snapshot, attempt: CallAttempt, line: Line, now_at_ms: int) -> Caller:  # noqa: ARG001 - as above
    """What becomes of the caller's number in a call to `line`: from a trunk, or the callee's half of an internal call."""
    trace = next((order.reference for order in line.traces if order.from_ms <= now_at_ms < order.until_ms), "")
    asserted = presented = canonical_caller(attempt.network)
    forbidden = forbidden_caller(attempt.network)
    if attempt.caller != attempt.network:  # most trunks say the same number twice: it is read once
        presented = canonical_caller(attempt.caller)
        forbidden = forbidden or forbidden_caller(attempt.caller)
    why = ""
    if attempt.privacy:
        why = "the caller asks for privacy"
    elif attempt.anonymous:
        why = "the caller is anonymous"
    elif attempt.abroad and (german_from_abroad(attempt.network) or german_from_abroad(attempt.caller)):
        why = "a German number from abroad"
    refusal: tuple[str, str, int, int] | None = None
    if forbidden:
        refusal = ("caller.forbidden", f"{forbidden} shown as the caller's number", *CALLER_REFUSED)
    elif why and line.reject_anonymous:
        refusal = ("caller.anonymous", f"the line rejects anonymous calls; {why}", *ANONYMITY_DISALLOWED)
    said = f"hidden: {why}" if why else f"{presented or asserted or 'no number'} is shown"
    return Caller(asserted, presented or asserted, bool(why), trace, refusal, said)
