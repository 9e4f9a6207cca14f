"""Requests by which we end dialogs ourselves: a BYE to both parties of an answered call, and the ACK and BYE of a callee that
answered when nobody was waiting any more (RFC 3261 §13.2.2.4, §15).

Pure. Functions over a call; when an end is due, and what its record says, is decided elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdr.facts import Record
from sipproxy.engine import carrier
from sipproxy.engine.actions import SendTo
from sipproxy.engine.causes import NORMAL_CLEARING
from sipproxy.engine.dialogs import Side
from sipproxy.engine.forward import is_ours, next_hop, via_of
from sipproxy.engine.privacy import Faces
from sipproxy.engine.reduced import packed
from sipproxy.engine.response_context import ResponseContext
from sipproxy.engine.state import reason_header
from sipproxy.engine.transactions import Ignored
from sipproxy.engine.trunk_auth import AuthenticatedBye
from sipproxy.sip.build import Sent
from sipproxy.sip.dialog import DialogSide, callee_of, write_ack_2xx, write_bye
from sipproxy.sip.flow import Flow

if TYPE_CHECKING:
    from cdr.facts import EndReason
    from sipproxy.engine.call import Call, Dialog
    from sipproxy.engine.forward import Target
    from sipproxy.engine.state import Desk
    from sipproxy.engine.transactions import ClientUser
    from sipproxy.sip.flow import Hop
    from sipproxy.sip.message import Response

__all__ = ["bye", "dismiss", "hang_up", "let_go", "reach", "rest", "settle"]

NONE: list[list[Target]] = []  # of every call that tries no target any more
OVER: ResponseContext[Target] = ResponseContext([])  # of every call whose branches are all over
DISMISSED = 32  # late dialogs of one call that are ended; a forking UAS beyond that is acknowledged only


def hang_up(call: Call, reason: EndReason, *, cause: int, certain: bool = True, only: Dialog | None = None) -> None:
    """End an answered call ourselves: a BYE to both parties of each of its dialogs (design §5, step 5).

    With `only` that dialog alone is ended, and the call with it unless a forked call has another one up.
    """
    if not call.is_answered:
        return
    for dialog in call.dialogs if only is None else (only,):
        if dialog.sides is not None and not dialog.ended:
            dialog.ended = True
            for side in Side:
                bye(call, dialog, side, cause=cause)
    if only is not None and any(d.confirmed and not d.ended for d in call.dialogs):
        return
    call.end(reason, released_by="proxy", cause=cause, certain=certain)


def settle(call: Call) -> None:
    """No target is tried any more, and whom the caller's face is shown to is known."""
    call.groups, call.edit = NONE, None
    call.context.groups.clear()
    call.faces = call.faces.known() if isinstance(call.faces, Faces) else call.faces


def rest(call: Call) -> None:
    """No transaction of the INVITE is left: keep of the call, which lives on or is over, what messages within it need.

    Of its branches those stay of which a 2xx would still be news; the one that was answered is known by its dialog.
    """
    context, clients = call.context, call.desk.transactions.clients
    if context.winner is not None and context.winner.key not in clients:
        context.branches.pop(context.winner.key, None)
        if not context.branches:
            call.context = OVER
    call.asked, call.store_wait_s = None, 0.0
    for dialog in call.dialogs:
        if isinstance(dialog.kept, tuple):
            dialog.kept = packed(*dialog.kept, call.server.kept)


def let_go(call: Call) -> None:
    """Keep of a call that is over what a late message of it can need: its dialogs, and whose they are.

    For as long as it can be found a node has many more of these than live calls.
    """
    record = call.record
    call.record = Record(
        id=record.id,
        node=record.node,
        direction=record.direction,
        line=record.line,
        account=record.account,
        trunk=record.trunk,
        canonical=record.canonical,
        forwarded_from=record.forwarded_from,
        verdict=record.verdict,
        rule=record.rule,
        slots_used=record.slots_used,
        released_by=record.released_by,
        cause=record.cause,
    )
    settle(call)
    call.answer = call.asked = None
    for branch in call.context.branches.values():
        branch.final = None
    for dialog in call.dialogs:
        dialog.kept = dialog.watch = dialog.first = None
    call.server.rest()


def bye(call: Call, dialog: Dialog, side: Side, *, cause: int) -> None:
    """A BYE of our own to one party of a confirmed dialog."""
    assert dialog.sides is not None
    user = carrier.bye_user(call, dialog, to_caller=side is Side.CALLER)
    _send_bye(call.desk, dialog.sides[side], reach(call, dialog, side), cause, user)


def reach(call: Call, dialog: Dialog, side: Side) -> Flow | Hop:
    """Where a request of our own to that party goes: a customer's flow, else what its route set or target names."""
    caller = side is Side.CALLER
    known = call.flow if caller else dialog.to
    if call.from_customer if caller else dialog.target.is_customer:
        user = call.record.account if caller else dialog.target.name
        return call.desk.location.successor(user, known, call.desk.now.utc_ms) if isinstance(known, Flow) else known
    if dialog.sides is None:
        return known
    return call.desk.addresses.first(next_hop(call.desk.settings, dialog.sides[side].next_hop, known))


def dismiss(call: Call, target: Target, response: Response) -> None:
    """A 2xx that came when its call, or its branch, was over: acknowledge it, and end the dialog that it made.

    The caller has its final response, and RFC 6026 §7.1 leaves nobody there who would acknowledge this one: the callee would
    stay in a call with nobody (§13.3.1.4), and be billed for it elsewhere. Repetitions are acknowledged again.
    """
    desk, settings = call.desk, call.desk.settings
    desk.count("late_2xx", target.kind)
    tag = response.to.tag
    side = callee_of(response, lambda route: is_ours(route.uri, settings))
    to = target.to if target.is_customer else desk.addresses.first(next_hop(settings, side.next_hop, target.to))
    via = via_of(desk, to)
    if via is None or tag is None:
        return
    desk.out.append(SendTo(to, write_ack_2xx(side, via[0])))
    dialog = call.dialog(tag)
    known = dialog is not None and dialog.confirmed  # its own BYE came or went
    if not known and tag not in call.dismissed and len(call.dismissed) < DISMISSED:
        call.dismissed |= {tag}
        user = AuthenticatedBye(desk, target.name) if target.kind == "trunk" else Ignored()
        _send_bye(desk, side, to, NORMAL_CLEARING, user)


def _send_bye(desk: Desk, side: DialogSide, to: Flow | Hop, cause: int, user: ClientUser) -> None:
    via = via_of(desk, to)
    if via is None:
        return
    value, branch = via
    bye = Sent(b"BYE", write_bye(side, value, headers=reason_header(cause)))
    desk.transactions.new_client(bye, branch, to, user, desk.now.mono)
