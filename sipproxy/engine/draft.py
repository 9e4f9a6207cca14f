"""The CDR of a call as far as its INVITE and the policy's decision tell (design §7). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdr.facts import Record
from sipproxy.sip.sdp import media_kinds
from sipproxy.sip.text import text

if TYPE_CHECKING:
    from policy.model import Decision
    from sipproxy.engine.actions import Now
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.message import Request

__all__ = ["draft"]

MAX_DIVERSIONS = 20
MAX_TEXT = 512


def draft(request: Request, flow: Flow, decision: Decision, *, call: str, node: str, now: Now, from_customer: bool) -> Record:
    """The record with everything that is known when the INVITE is decided on. Texts are cut to 512 characters."""
    destination, line, account = decision.destination, decision.line, decision.account
    asserted = request.values(b"p-asserted-identity")[:1]
    calling = decision.asserted if from_customer else _user_of(asserted[0] if asserted else b"")
    diversions = [value for name in (b"diversion", b"history-info") for value in request.values(name)]
    return Record(
        id=call,
        node=node,
        direction=("internal" if decision.callee is not None else "outgoing") if from_customer else "incoming",
        line=line.id if line is not None else "",
        account=account.user if account is not None else "",
        profile=line.profile if line is not None else "",
        calling=calling,
        presented=_text(request.from_.uri.user),
        privacy=_text(request.first(b"privacy")),
        dialled=_text(request.uri),
        canonical=destination.canonical,
        destination_class=str(destination.kind),
        tariff_prefix=destination.prefix,
        diversions=[_text(value) for value in diversions[:MAX_DIVERSIONS]],
        call_id=_text(request.call_id),
        from_tag=_text(request.from_.tag),
        source=f"{flow.host}:{flow.port}",
        transport=flow.transport,
        user_agent=_text(request.first(b"user-agent")),
        setup_at_ms=now.utc_ms,
        verdict=decision.verdict.value,
        rule=decision.rule,
        snapshot=decision.snapshot,
        slots_limit=decision.channels,
        media=media_kinds(request.body, request.first(b"content-type") or b""),
    )


def _text(value: bytes | None) -> str:
    return text(value)[:MAX_TEXT]


def _user_of(value: bytes) -> str:
    """The user part of a P-Asserted-Identity value (a SIP or tel URI, RFC 3325 §9.1)."""
    _, _, rest = value.partition(b":")
    user = rest.partition(b"@")[0].partition(b";")[0]
    return _text(user.strip(b"<> "))
