"""Tracing of malicious calls (TDDDG § 14): what is kept of a call or attempt to a line with an order.

Pure. Leaves out the orders, which policy has, and where the records lie.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.engine.actions import KeepTrace
from sipproxy.engine.structs import MaliciousCall
from sipproxy.sip.text import text

if TYPE_CHECKING:
    from cdr.facts import Record
    from policy.model import Decision
    from sipproxy.engine.state import Desk
    from sipproxy.sip.message import Request

__all__ = ["keep_trace"]

MAX_TRACED = 512  # characters of a header that is kept


def keep_trace(desk: Desk, request: Request, record: Record, decision: Decision, network: str) -> None:
    """Keep it with the caller's number, hidden or not, where `decision`, the called line's, names an order. `record` is the
    attempt's own; `network` is the number that the trunk, or we, vouch for."""
    if not decision.trace or decision.line is None:
        return
    is_incoming = record.direction == "incoming"
    desk.out.append(
        KeepTrace(
            MaliciousCall(
                call=record.id,
                node=record.node,
                line=decision.line.id,
                reference=decision.trace,
                at_ms=record.setup_at_ms,
                called=decision.destination.canonical,
                network=network[:MAX_TRACED],
                given=text(request.first(b"from"))[:MAX_TRACED],
                asserted=[text(value)[:MAX_TRACED] for value in request.lines(b"p-asserted-identity")[:4]],
                privacy=text(request.first(b"privacy"))[:MAX_TRACED],
                trunk=record.trunk,
                caller_line="" if is_incoming else record.line,
                caller_account="" if is_incoming else record.account,
                source=record.source,
                call_id=record.call_id,
                verdict=decision.verdict.value,
                rule=decision.rule,
            )
        )
    )
