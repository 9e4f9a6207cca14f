"""What the caller is told when no branch of his call is left (RFC 3261 §16.7, steps 6 to 9), and the call's end with it.

Pure. The best response of a branch is relayed; where there is none to relay, the answer is of our own, by what became of the
call: given up by us, cancelled, no place or nobody reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.engine import carrier
from sipproxy.engine.causes import NO_CHANNEL, NORMAL_CLEARING, NORMAL_UNSPECIFIED, SUBSCRIBER_ABSENT, cause_of
from sipproxy.engine.response_context import with_all_challenges

if TYPE_CHECKING:
    from cdr.facts import EndReason
    from sipproxy.engine.call import Call
    from sipproxy.engine.forward import Target
    from sipproxy.sip.message import Response

__all__ = ["STOPPED", "send"]

STOPPED: tuple[EndReason, ...] = ("operator", "fraud_hold")  # ends that were ordered, not a bound that was reached


def send(call: Call) -> None:
    """No branch is left: the best response goes upstream (§16.7 steps 6 to 9)."""
    best = call.context.best()
    status = best.status if best is not None else 480
    response = best.final if best is not None else None
    if call.gave_up in STOPPED:
        call.refuse(480, NORMAL_UNSPECIFIED, end_reason=call.gave_up)
    elif call.gave_up is not None:
        call.refuse(408 if status == 487 else status, 102, end_reason=call.gave_up)
    elif call.was_cancelled:
        call.refuse(487, NORMAL_CLEARING, end_reason="cancelled", released_by="caller")
    elif best is None and call.met_full:
        call.record.verdict, call.record.rule = "deny", carrier.FULL
        call.refuse(480, NO_CHANNEL, end_reason="refused")
    elif best is not None and best.cause:
        call.refuse(status, best.cause, end_reason="rejected", released_by="callee")
    elif response is None:
        # 503 would tell the caller that this proxy is overloaded (§16.7 step 6): no route left is our 500.
        unreachable, absent = status in (503, 480), best is not None and status == carrier.UNAVAILABLE
        call.refuse(
            (480 if call.is_emergency or best is None or absent else 500) if unreachable else status,
            (41 if call.is_emergency else SUBSCRIBER_ABSENT if absent else 38) if unreachable else 102,
            end_reason="unreachable" if unreachable else "no_answer",
        )
    else:
        assert best is not None
        _relay(call, status, response, best.target)


def _relay(call: Call, status: int, response: Response, target: Target) -> None:
    cause = cause_of(response, status)
    if status == 503:
        call.refuse(500, cause, end_reason="rejected", released_by="callee")
        return
    carrier.tried(call, target)  # of several the one whose answer the caller gets
    call.end("rejected", released_by="callee", status=status, cause=cause)
    data = call.upstream(response, target)
    if status in (401, 407):
        data = with_all_challenges(call.context, response, data)
    desk = call.desk
    desk.transactions.respond(call.server, status, data, desk.now.mono)
    desk.count("responses", "INVITE", str(status))
