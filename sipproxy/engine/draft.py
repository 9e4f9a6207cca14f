"""The CDR of a call as far as its INVITE and the policy's decision tell (design §7). Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cdr.facts import Record
from sipproxy.engine.privacy import Face, secrets_of
from sipproxy.sip.errors import ParseError
from sipproxy.sip.sdp import media_kinds
from sipproxy.sip.text import shared_text

if TYPE_CHECKING:
    from policy.model import Decision
    from sipproxy.engine.actions import Now
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.message import Request

__all__ = ["MAX_TEXT", "draft"]

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
    direction: Literal["outgoing", "incoming", "internal"] = "incoming"
    if from_customer:
        direction = "internal" if decision.callee is not None else "outgoing"
    record = Record(id=call, node=node, direction=direction, forwarded_to=_NONE, over_soft=_NONE, unknown=_NOTHING)
    # One by one: a field given by name costs three times as much.
    if line is not None:
        record.line, record.profile = line.id, line.profile
    if account is not None:
        record.account = account.user
    record.calling, record.presented = calling, presented
    record.privacy, record.dialled = _text(request.first(b"privacy")), _text(request.uri)
    record.canonical, record.tariff_prefix = destination.canonical, destination.prefix
    record.destination_class = destination.kind.value
    record.diversions = [_text(value) for value in diversions[:MAX_DIVERSIONS]] or _NONE
    record.call_id, record.from_tag = _text(request.call_id), _text(request.from_.tag)
    record.source, record.transport = f"{flow.host}:{flow.port}", flow.transport
    record.user_agent = shared_text(request.first(b"user-agent"))[:MAX_TEXT]
    record.setup_at_ms = now.utc_ms
    record.verdict, record.rule = decision.verdict.value, decision.rule
    record.snapshot, record.slots_limit = decision.snapshot, decision.channels
    record.media = media_kinds(request.body, request.first(b"content-type") or b"")
    return record


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
    return uri.user_text[:MAX_TEXT] if uri.is_sip else _text(uri.raw)


def _text(value: bytes | None) -> str:
    return value.decode("utf-8", "replace")[:MAX_TEXT] if value else ""


def _user_of(value: bytes) -> str:
    """The user part of a P-Asserted-Identity value (a SIP or tel URI, RFC 3325 §9.1)."""
    _, _, rest = value.partition(b":")
    user = rest.partition(b"@")[0].partition(b";")[0]
    return _text(user.strip(b"<> "))
