"""What a call has to do with its trunk routes: a place on each, what their answers say about them, and their challenges.

Pure. Functions over a call and its branches; the routes' state is in trunks.py, the answer to a challenge in trunk_auth.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from sipproxy.engine.channels import trunk_slot
from sipproxy.engine.cseq import UNSHIFTED, Shift
from sipproxy.engine.edge import ABSENT
from sipproxy.engine.transactions import Ignored
from sipproxy.engine.trunk_auth import AuthenticatedBye, answer_challenge
from sipproxy.sip.digest import parse_challenge
from sipproxy.sip.errors import ParseError

if TYPE_CHECKING:
    from sipproxy.engine.call import Call, Dialog
    from sipproxy.engine.channels import Grant
    from sipproxy.engine.forward import Target
    from sipproxy.engine.response_context import Branch
    from sipproxy.engine.settings import TrunkRoute
    from sipproxy.engine.state import Desk
    from sipproxy.engine.transactions import Client, ClientUser
    from sipproxy.sip.message import Request, Response

__all__ = [
    "FULL",
    "arrived",
    "bye_user",
    "called",
    "enter",
    "failed",
    "is_flow_failure",
    "keeps",
    "left",
    "overdue",
    "route_of",
    "shift_of",
    "status_of",
]

FULL = "trunk.calls"  # the rule that a call is refused by when every route has all its calls
UNAVAILABLE = 480  # what a binding behind another node counts as that the node cannot reach
FLOW_FAILED = frozenset([408, 430])  # RFC 5626 §5.3
REFUSED = 503  # what a route counts as that does not take our credentials, or sends a call for help elsewhere
NOT_FOLLOWED = {301: (410, 22)}  # a trunk's 3xx and what it means to the caller: 301 that the number has changed (Q.850 22)
CHALLENGED = (403, 21)  # what a challenge counts as that is kept: Q.850 call rejected
MAX_CHALLENGES = 8  # of one response that are passed
ELSEWHERE = (480, 31)  # any other: Q.850 normal, unspecified


class Go(Protocol):
    """What is told whether the call has its place."""

    def __call__(self, *, has_place: bool) -> None: ...


def enter(call: Call, target: Target, go: Go) -> None:
    """Take a place for the call on its target's route, and tell `go` whether it has one: at once, or when the store has said.

    Emergency calls are counted and never refused. A route without a limit has a place for everybody.
    """
    desk, route = call.desk, call.desk.trunks.route(target.name) if target.kind == "trunk" else None
    if route is None:
        go(has_place=True)
        return
    slot = trunk_slot(call, route.name)
    if call.is_emergency or not route.calls:
        desk.channels.occupy(call, slot)
        go(has_place=True)
        return

    def answered(grant: Grant) -> None:
        call.context.asking = False
        if grant.refusal:
            desk.count("trunk_full", route.name)
        go(has_place=not grant.refusal)

    call.context.asking = True
    desk.channels.ask(call, slot, answered, limit=route.calls)


def left(call: Call, target: Target, branch: Branch[Target] | None = None) -> None:
    """The call is not on its target's route, or no longer: unless a branch besides this one is at another address of it."""
    if target.kind == "trunk" and not any(
        other is not branch and other.target.name == target.name and other.status < 300 and other.target.kind == "trunk"
        for other in call.context.branches.values()
    ):
        call.desk.channels.leave(call, trunk_slot(call, target.name))


def tried(call: Call, target: Target) -> None:
    """Put the route into the record: the figures of a call that nobody answers are counted under the one that failed."""
    if call.from_customer and target.kind == "trunk":
        call.record.trunk = target.name
    elif call.from_customer and target.kind == "psap":
        call.record.psap = target.name


def called(request: Request, route: TrunkRoute) -> bytes:
    """What a call from the route is for: its Request-URI, or its To where the carrier calls the address that we registered."""
    user = request.parsed_uri.user if route.register else None
    return request.to.uri.raw if user is not None and user == route.user.encode() else request.uri


def arrived(call: Call) -> None:
    """Count a call that came from a trunk on its route, full or not: it is there already."""
    if not call.from_customer and call.record.trunk:
        call.desk.channels.occupy(call, trunk_slot(call, call.record.trunk, incoming=True))


def status_of(call: Call, branch: Branch[Target], response: Response) -> int:
    """What a branch's response counts as: its status, 0 for a challenge that is answered now.

    What it says about the trunk route is noted. A challenge of a route with credentials never goes further: the customer is not
    the one who is asked (RFC 3261 §22.2).
    """
    target = branch.target
    if target.route and response.status in ABSENT:
        return UNAVAILABLE
    desk, status = call.desk, response.status
    if status // 100 == 3 and target.kind in ("trunk", "psap"):
        # Whoever sends calls elsewhere has no say in whom a customer calls: it is a refusal like others, without its Contacts.
        desk.count("redirections_refused", target.kind)
        if target.kind == "psap" or call.is_emergency:
            status = REFUSED
        else:
            status, branch.cause = NOT_FOLLOWED.get(status, ELSEWHERE)
    if target.kind != "trunk":
        return _kept(branch, response, status, desk)
    desk.trunks.heard(target.name, response)
    if status in (401, 407) and desk.trunks.has_credentials(target.name):
        answered = None
        if not branch.cancelled and not call.context.stopped:
            answered = answer_challenge(desk, target.name, response, call)
        if answered is not None:
            call.context.rekey(branch, answered.key)
            return 0
        status = REFUSED
    if status >= 300:
        status = _kept(branch, response, status, desk)
        left(call, target, branch)
    return status


def is_flow_failure(branch: Branch[Target], response: Response) -> bool:
    """Whether a response says that the flow, and not the device, has failed (RFC 5626 §5.3)."""
    return response.status in FLOW_FAILED or bool(branch.target.route and response.status in ABSENT)


def _kept(branch: Branch[Target], response: Response, status: int, desk: Desk) -> int:
    """The status, or what a challenge counts as that the caller must not see."""
    if status in (401, 407) and keeps(desk, response, from_customer=branch.target.is_customer):
        status, branch.cause = CHALLENGED
    return status


def keeps(desk: Desk, response: Response, *, from_customer: bool) -> bool:
    """Whether a challenge ends here, which is counted: any that a customer's device makes, and those for our own realm.

    Many clients answer a challenge of whatever realm. Their answer proves the account's password to us, or lets whoever made
    the challenge try passwords at leisure; with a nonce of ours it could even register in the caller's place.
    """
    # DEVIATION: RFC 3261 §16.7 step 7, challenges of customers' devices, and any for our own realm, do not go upstream: the
    # answer would be worth more to who challenges than the call to who is asked. The caller gets 403.
    if response.status not in (401, 407):
        return False
    values = [*response.lines(b"www-authenticate"), *response.lines(b"proxy-authenticate")]
    why = "customer" if from_customer else "many" if len(values) > MAX_CHALLENGES else ""
    if not why and any(_names(value, desk.settings.realm) for value in values):
        why = "own_realm"
    if why:
        desk.count("challenges_kept", why)
    return bool(why)


def _names(challenge: bytes, realm: str) -> bool:
    """Whether a challenge is for the realm, or cannot be read."""
    try:
        return parse_challenge(challenge).realm.lower() == realm.lower()
    except ParseError:
        return True


def failed(call: Call, branch: Branch[Target], *, timed_out: bool) -> int:
    """What a branch counts as that had no answer (408), or could not be sent (503, RFC 3261 §16.9).

    Silence that was noted as overdue is not noted twice.
    """
    if branch.target.route:
        return UNAVAILABLE
    if branch.target.kind == "trunk":
        left(call, branch.target, branch)
        if not (timed_out and (branch.overdue or branch.provisional)):
            call.desk.trunks.failed(branch.target.name, "timeout" if timed_out else "transport")
    return 408 if timed_out else 503


def overdue(call: Call, branch: Branch[Target]) -> None:
    """The branch's route gave no sign of life within its bound."""
    if branch.target.kind == "trunk":
        call.desk.trunks.failed(branch.target.name, "timeout")


def shift_of(call: Call) -> Shift:
    """The numbers of a new dialog, made by the response that the call is being told of."""
    client = call.desk.transactions.told
    if client is None or not client.challenged:
        return UNSHIFTED
    return Shift(credentials=credentials_of(client)).sent(call.request.cseq.number, client.request.cseq.number)


def credentials_of(client: Client) -> tuple[tuple[bytes, bytes], ...]:
    """The credential lines of a request that answers a challenge."""
    names = ((b"authorization", b"Authorization"), (b"proxy-authorization", b"Proxy-Authorization"))
    return tuple((header, value) for name, header in names for value in client.request.lines(name))


def route_of(call: Call, dialog: Dialog, *, to_caller: bool) -> str:
    """The trunk route behind which that party of the dialog is; "" for none."""
    if to_caller:
        return "" if call.from_customer else call.record.trunk
    return dialog.target.name if dialog.target.kind == "trunk" else ""


def bye_user(call: Call, dialog: Dialog, *, to_caller: bool) -> ClientUser:
    """Who is told of the answers to a BYE of ours."""
    name = route_of(call, dialog, to_caller=to_caller)
    return AuthenticatedBye(call.desk, name) if name else Ignored()
