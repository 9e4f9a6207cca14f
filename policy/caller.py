"""What becomes of the caller's number of one attempt: the seam between the rules' order and `policy.identity`.

Pure; never raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from policy.identity import asserted_number
from policy.model import Caller

if TYPE_CHECKING:
    from policy.model import CallAttempt, Destination, Line, Snapshot

__all__ = ["incoming_caller", "outgoing_caller"]


def outgoing_caller(snapshot: Snapshot, attempt: CallAttempt, destination: Destination) -> Caller:
    """The caller of an outgoing call or emergency call, whose line may be unknown."""
    asserted = asserted_number(snapshot, attempt.line, attempt.account, attempt.caller)
    return Caller(asserted, "" if destination.clir else asserted, destination.clir)


def incoming_caller(snapshot: Snapshot, attempt: CallAttempt, line: Line, now_at_ms: int) -> Caller:  # noqa: ARG001 - its orders
    """The caller of a call to `line`."""
    number = attempt.network or attempt.caller
    return Caller("", "" if attempt.privacy else number, attempt.privacy)
