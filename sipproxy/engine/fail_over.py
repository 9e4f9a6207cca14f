"""What a call does when one of its branches fails: the next address of the same next hop (RFC 3263 §4.3), the next flow of the
same device (RFC 5626 §5.3), or, when these are used up, the next route (design §5 step 4).

Pure. Functions over a call and its branches. Each try is a client transaction of its own. An ordinary call tries a few
addresses and no dead one while another route is left; a call for help tries all there are, dead or not, before it fails.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sipproxy.engine import carrier, deadlines
from sipproxy.engine.addresses import retry_after_s
from sipproxy.engine.dialogs import Phase
from sipproxy.engine.edge import SILENT_S
from sipproxy.sip.flow import Flow, Hop

if TYPE_CHECKING:
    from sipproxy.engine.call import Call
    from sipproxy.engine.forward import Target
    from sipproxy.engine.response_context import Branch
    from sipproxy.sip.message import Response

__all__ = ["arm", "edge_silent", "has_moved_on", "is_going_on", "located", "overdue", "silent"]

HELP_SPAN = 1.5  # bounds of one try that a call for help has at least after its last one began, whatever the set-up's bound


def located(call: Call, target: Target) -> Target:
    """The target at the first address of its next hop, with the other addresses behind it, to be tried in turn."""
    if isinstance(target.to, Flow):
        return target
    first, *rest = call.desk.addresses.choose(target.to, every=call.is_emergency)
    if not rest and first is target.to:
        return target
    return replace(target, to=first, others=(*(replace(target, to=hop, others=()) for hop in rest), *target.others))


def has_moved_on(call: Call, branch: Branch[Target], response: Response) -> bool:
    """Whether a response makes the call go on elsewhere at the same target, and is thereby done with."""
    desk, target, status = call.desk, branch.target, response.status
    desk.addresses.heard(target.to, status)
    if target.is_customer:
        desk.statics.heard(target.name, target.to, status)
    if status < 300:
        return False
    if _is_route(target):
        # Whoever called for help is not content with the refusal of one machine of many; a challenge may be answered yet.
        fails = status == 503 or (call.is_emergency and status < 600 and status not in (401, 407))
    else:
        fails = carrier.is_flow_failure(branch, response) or (status == 503 and isinstance(target.to, Hop))
    if status == 503 and isinstance(target.to, Hop):
        desk.addresses.failed(target.to, "503", hold_s=retry_after_s(response.first(b"retry-after")))
    if not fails or not _goes_elsewhere(call, branch, status if _is_route(target) else carrier.UNAVAILABLE):
        return False
    branch.final = response if _is_route(target) and status != 503 else None
    return True


def silent(call: Call, branch: Branch[Target], *, timed_out: bool) -> bool:
    """A branch had no answer, or could not be sent: whether the call goes on elsewhere at the same target."""
    target = branch.target
    if isinstance(target.to, Hop) and not (timed_out and branch.provisional) and not branch.overdue:
        call.desk.addresses.failed(target.to, "timeout" if timed_out else "transport")
    if target.is_customer and not (timed_out and branch.provisional):
        call.desk.statics.failed(target.name, target.to, "timeout" if timed_out else "transport")
    status = (408 if timed_out else 503) if _is_route(target) else carrier.UNAVAILABLE
    return _goes_elsewhere(call, branch, status)


def overdue(call: Call, *, heard_too: bool = False) -> None:
    """The branches under way gave no sign of life within their bound: the next address, or route, is tried beside them.

    With `heard_too` those that were heard of and do not ring count as well.
    """
    if call.phase is not Phase.PROCEEDING:
        return
    for branch in list(call.context.branches.values()):
        if branch.status or branch.overdue or (branch.provisional and not heard_too):
            continue
        branch.overdue = True
        call.desk.note("warning", "route_overdue", call=call.id, target=branch.target.name, address=str(branch.target.to.host))
        if isinstance(branch.target.to, Hop) and not branch.provisional:
            call.desk.addresses.failed(branch.target.to, "timeout")
        if not (_is_route(branch.target) and _goes_elsewhere(call, branch, 0)):
            carrier.overdue(call, branch)
    call.go_on(call.context.progress())


def is_going_on(call: Call) -> bool:
    """The bound of the whole set-up is reached: a call for help that has something left to try goes on with that."""
    if not call.is_emergency or call.phase is not Phase.PROCEEDING or not _has_more(call):
        return False
    deadlines.await_until(call, "setup", call.desk.now.mono + HELP_SPAN * call.desk.settings.route_s)
    overdue(call, heard_too=True)
    return True


def edge_silent(call: Call) -> None:
    """A node with a binding's flow that gave no sign of life is not there: its bindings are not reached (as 480)."""
    desk = call.desk
    for branch in list(call.context.branches.values()):
        client = desk.transactions.clients.get(branch.key)
        if branch.target.route and not branch.provisional and not branch.status and client is not None:
            desk.count("branch_failures", "node_silent")
            desk.transactions.cancel(client, desk.now.mono)  # should it have heard the INVITE after all
            if not _goes_elsewhere(call, branch, carrier.UNAVAILABLE):
                call.go_on(call.context.final(branch.key, carrier.UNAVAILABLE, None))


def arm(call: Call) -> None:
    """Bound the silence of the branches under way, where there is something else to try.

    The bound of the whole set-up does not cut short what a call for help tries last.
    """
    desk, settings = call.desk, call.desk.settings
    if call.is_emergency and deadlines.awaits(call, "setup"):
        until = max(call.started + settings.setup_s, desk.now.mono + HELP_SPAN * settings.route_s)
        deadlines.await_until(call, "setup", until)
    if _has_more(call):
        deadlines.await_until(call, "route", desk.now.mono + settings.route_s)
    else:
        deadlines.drop(call, "route")


def _is_route(target: Target) -> bool:
    return target.kind in ("trunk", "psap")


def _has_more(call: Call) -> bool:
    """Whether there is a route, or an address of one, that was not tried."""
    context = call.context
    if context.groups:
        return True
    for branch in context.branches.values():  # noqa: SIM110  there is one, as a rule: a generator costs more than the question
        if not branch.status and branch.target.others and _is_route(branch.target):
            return True
    return False


def _goes_elsewhere(call: Call, branch: Branch[Target], status: int) -> bool:
    """Whether the INVITE is on its way to the next address or flow of the branch's target.

    `status` is what the branch then has ended with, 0 for one that may still be answered.
    """
    desk, target = call.desk, branch.target
    others = target.others
    if not others and isinstance(target.to, Hop) and not target.to.version:
        known = desk.addresses.choose(target.to, every=call.is_emergency)  # the transport layer looked it up
        others = tuple(replace(target, to=hop, others=()) for hop in known if hop != target.to)
    branch.target = replace(target, others=())
    while others and call.phase is Phase.PROCEEDING and not call.context.stopped:
        following, others = replace(others[0], others=others[1:]), others[1:]
        dead = _is_route(following) and desk.addresses.is_dead(following.to)
        if dead and call.context.groups and not call.is_emergency:
            continue  # RFC 3263 §4.3: not while another lives, be it another route's
        if not call.send(following):
            continue
        branch.status = status
        desk.count("flows_failed_over" if isinstance(following.to, Flow) else "addresses_failed_over")
        deadlines.await_until(call, "ring", desk.now.mono + desk.settings.ring_s)
        if following.route:
            deadlines.await_until(call, "edge", desk.now.mono + SILENT_S)
        if _is_route(following):
            arm(call)
        return True
    return False
