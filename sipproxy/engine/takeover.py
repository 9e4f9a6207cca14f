"""INVITEs that want to take the place of a party of another call, or to join it: Replaces (RFC 3891), Join (RFC 3911).

Whom such an INVITE calls is decided like any other: policy, channel and record are its own. What is decided here is whether the
sender has anything to do with the dialog that he names. Only a party of it may: the line, or the trunk route, that has the
call. For anybody else, who would have to know its Call-ID and tags from elsewhere, there is no such dialog: 481, as the called
device would say (RFC 3891 §3). Target-Dialog (RFC 4538) and Refer-To in an INVITE do nothing, and leave as they came.

Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipproxy.engine.call import Call
    from sipproxy.engine.calls import Calls
    from sipproxy.sip.message import Request

__all__ = ["UNKNOWN", "may_take_over", "names_a_dialog"]

UNKNOWN = "replaces.unknown"  # the rule that such a call is refused by
NAMES = (b"replaces", b"join")


def names_a_dialog(request: Request) -> bool:
    """Whether the INVITE has to do with another dialog than its own."""
    return b"replaces" in request.first_line or b"join" in request.first_line


def may_take_over(calls: Calls, call: Call) -> bool:
    """Whether the sender of a new call's INVITE is a party of the dialog that it names. One that names two, or none that can be
    read, is of no use to anybody (RFC 3891 §3)."""
    request = call.request
    if not names_a_dialog(request):
        return True
    values = [value for name in NAMES for value in request.lines(name)]
    if len(values) != 1:
        return False
    call_id, *params = (part.strip() for part in values[0].split(b";"))
    given = {name.strip().lower(): value.strip() for name, _, value in (param.partition(b"=") for param in params)}
    tags = {given.get(b"from-tag"), given.get(b"to-tag")}
    others = [other for other in calls.of(call_id) if other.is_live and other is not call]
    return any(_has(other, tags) and _is_party(other, call) for other in others)


def _has(other: Call, tags: set[bytes | None]) -> bool:
    return any(tags == {other.request.from_.tag, dialog.to_tag} for dialog in other.dialogs)


def _is_party(other: Call, call: Call) -> bool:
    mine, record = call.record, other.record
    if call.from_customer:
        return bool(mine.line) and mine.line in (record.line, record.callee_line)
    return bool(mine.trunk) and mine.trunk in (record.trunk, other.answer.trunk if other.answer is not None else "")
