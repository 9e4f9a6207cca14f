"""The CDR of a call as far as its INVITE and the policy's decision tell (design §7). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdr.facts import Record
from sipproxy.engine.privacy import Face, secrets_of
from sipproxy.sip.errors import ParseError
from sipproxy.sip.sdp import media_kinds
from sipproxy.sip.text import shared_text, text

if TYPE_CHECKING:
    from policy.model import Decision
    from sipproxy.engine.actions import Now
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.message import Request

__all__ = ["draft"]

MAX_DIVERSIONS = 20
MAX_TEXT = 512
# What most records have in common is there once: their lists are replaced, never changed.
_NONE: list[str] = []
_NOTHING: dict[str, object] = {}


def draft(
    request: Request,
    flow: Flow,
    decision: Decision,
    *,
    call: str,
    node: str,
    now: Now,
    from_customer: bool,
    hidden: bool = False,
) -> Record:
    """The record with everything that is known when the INVITE is decided on. Texts are cut to 512 characters.

    Of a hidden caller on a trunk (`hidden`, or the decision says so) the record keeps no number: nobody bills by it, TDDDG
    § 9(1), and it belongs to the customer's called line. A customer's own number is billing data, § 10(2), hidden or not.
    """
    destination, line, account = decision.destination, decision.line, decision.account
    hidden = not from_customer and (hidden or decision.restricted)
    asserted = _values(request, b"p-asserted-identity")[:1]
    calling = decision.asserted if from_customer else _user_of(asserted[0] if asserted else b"")
    diversions = [*_values(request, b"diversion"), *_values(request, b"history-info")]
    presented = _presented(request)
    if hidden:
        secrets = Face(secrets=secrets_of((calling, presented)))
        calling = presented = ""
        diversions = [value for value in diversions if not secrets.is_told_by(value)]
    return Record(
        id=call,
        node=node,
        direction=("internal" if decision.callee is not None else "outgoing") if from_customer else "incoming",
        line=line.id if line is not None else "",
        account=account.user if account is not None else "",
        profile=line.profile if line is not None else "",
        calling=calling,
        presented=presented,
        privacy=_text(request.first(b"privacy")),
        dialled=_text(request.uri),
        canonical=destination.canonical,
        destination_class=str(destination.kind),
        tariff_prefix=destination.prefix,
        forwarded_to=_NONE,
        diversions=[_text(value) for value in diversions[:MAX_DIVERSIONS]] or _NONE,
        call_id=_text(request.call_id),
        from_tag=_text(request.from_.tag),
        source=f"{flow.host}:{flow.port}",
        transport=flow.transport,
        user_agent=shared_text(request.first(b"user-agent"))[:MAX_TEXT],
        setup_at_ms=now.utc_ms,
        verdict=decision.verdict.value,
        rule=decision.rule,
        snapshot=decision.snapshot,
        slots_limit=decision.channels,
        over_soft=_NONE,
        media=media_kinds(request.body, request.first(b"content-type") or b""),
        unknown=_NOTHING,
    )


def _values(request: Request, name: bytes) -> list[bytes]:
    """The elements of a header; none of one that cannot be read, which is no reason to refuse a call."""
    if name not in request.first_line:
        return []
    try:
        return request.values(name)
    except ParseError:
        return []


def _presented(request: Request) -> str:
    uri = request.from_.uri
    return _text(uri.user if uri.is_sip else uri.raw)


def _text(value: bytes | None) -> str:
    return text(value)[:MAX_TEXT]


def _user_of(value: bytes) -> str:
    """The user part of a P-Asserted-Identity value (a SIP or tel URI, RFC 3325 §9.1)."""
    _, _, rest = value.partition(b":")
    user = rest.partition(b"@")[0].partition(b";")[0]
    return _text(user.strip(b"<> "))
