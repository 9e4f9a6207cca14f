"""Admission of a new INVITE: its source, the policy's decision, the slots, and the target set (design §5, steps 1 to 4).

Pure. Emergency calls are recognised from their target alone, before anything that could refuse them (design: invariant 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from policy import evaluate, rule_family
from policy.emergency import service_of
from policy.fraud import SetupGuard
from policy.model import CallAttempt, Verdict
from sipproxy.engine.authenticate import Proven
from sipproxy.engine.call import Call
from sipproxy.engine.causes import SUBSCRIBER_ABSENT, TEMPORARY_FAILURE
from sipproxy.engine.channels import line_slot
from sipproxy.engine.draft import draft
from sipproxy.engine.malicious import keep_trace
from sipproxy.engine.privacy import Faces, unsupported_privacy
from sipproxy.engine.refusals import incoming_attempt, internal_attempt, outgoing_attempt
from sipproxy.engine.takeover import UNKNOWN, may_take_over
from sipproxy.engine.targets import binding_groups, emergency_groups, incoming_edit, outgoing_edit, trunk_groups

if TYPE_CHECKING:
    from collections.abc import Callable

    from policy.model import Account, Decision, Line
    from sipproxy.engine.authenticate import Authenticator
    from sipproxy.engine.calls import Calls
    from sipproxy.engine.channels import Grant
    from sipproxy.engine.privacy import Said
    from sipproxy.engine.refusals import Refusals
    from sipproxy.engine.settings import TrunkRoute
    from sipproxy.engine.state import Desk
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.message import Request

__all__ = ["Setup"]

FAIL_OVER = frozenset([408, 503])  # design §5 step 4: after these the next trunk route is tried
JOURNAL = "journal"  # why a node is closed: its disk takes no more than the ends of live calls
RETRY_S = 10  # the Retry-After of a closed or full node
AGAIN = (b"Retry-After", b"%d" % RETRY_S)
NOT_IMPLEMENTED = 79  # Q.850: service or option not implemented
ALLOW, DENY, EMERGENCY = Verdict.ALLOW, Verdict.DENY, Verdict.EMERGENCY


@dataclass(slots=True)
class Need:
    """A channel that a call still has to get: of this line and account, by this attempt and its decision. Not to be changed."""

    line: Line
    account: Account
    attempt: CallAttempt
    decision: Decision

    @property
    def limit(self) -> int:
        return self.decision.channels or 0


class Setup:
    """Takes new INVITEs to their calls."""

    def __init__(self, desk: Desk, calls: Calls, auth: Authenticator, refusals: Refusals) -> None:
        self._desk = desk
        self.calls = calls
        self._auth = auth
        self._refusals = refusals
        self._guard = SetupGuard()
        self.tell_started: Callable[[str], None] = lambda line: None  # noqa: ARG005  # for the node's other workers

    def invite(self, request: Request, flow: Flow) -> None:
        """A new INVITE without a To tag, syntactically sound."""
        desk = self._desk
        if self._refusals.answer_again(request, flow):  # before its credentials, which are used up
            return
        trunk = desk.settings.trunk_of(flow)
        service = service_of(request.uri) if trunk is None else ""
        account = self._known(request, flow) if service else None
        if trunk is None and account is None:
            caller = request.from_.uri.user_text
            outcome = self._auth.check(request, flow, proxy=True, user_hint=caller, emergency=bool(service))
            if not isinstance(outcome, Proven):
                if service:
                    desk.note("warning", "emergency_challenged", source=str(flow), service=service)
                if outcome.status:
                    self._refusals.challenged(request, flow)
                    desk.reply(request, flow, outcome.status, headers=outcome.headers)
                return
            account = outcome.account
        full = self.is_full
        if not service and (full or JOURNAL in desk.closed):
            by = trunk or account
            assert by is not None
            desk.count("requests_refused", "table_full" if full else f"closed_{JOURNAL}")
            if self._refusals.turn_away(request, flow, by, "node.full" if full else "node.disk", retry_s=RETRY_S):
                return
        if trunk is not None:
            self._incoming(request, flow, trunk)
        elif account is not None:
            self._outgoing(request, flow, account)

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another call."""
        return self._desk.transactions.is_full or self.calls.live >= self._desk.settings.max_calls

    def _known(self, request: Request, flow: Flow) -> Account | None:
        """The account whose emergency call needs no challenge: a live binding's flow, or the line's access network."""
        desk = self._desk
        accounts = desk.snapshot.accounts
        caller = request.from_.uri.user_text
        named = accounts.get(caller) or (desk.snapshot.account_of(caller) if caller.startswith("+") else None)
        if named is not None and desk.location.is_at(named.user, flow, desk.now.utc_ms):
            return named
        users = desk.location.users_at(flow, desk.now.utc_ms)
        if users:
            return next((accounts[user] for user in sorted(users) if user in accounts), None)
        return named if desk.settings.in_access_network(flow.host) else None

    # The policy's decision

    def _outgoing(self, request: Request, flow: Flow, account: Account) -> None:
        desk = self._desk
        line = desk.snapshot.lines.get(account.line)
        said, attempt = outgoing_attempt(desk, request, account, setups=self.started(line))
        decision = evaluate(attempt, desk.snapshot, desk.now.utc_ms)
        call = self.open(request, flow, decision, from_customer=True)
        call.faces = Faces(request, said, decision, desk.settings, from_customer=True)
        call.edit = outgoing_edit(desk, request, decision, said, call.faces)
        if decision.verdict is EMERGENCY:
            call.groups = emergency_groups(desk, decision)
            self._decide(call, decision, [])
        elif self._is_leaving(call) or (decision.verdict is ALLOW and self._cannot_serve(call, said)):
            return
        else:
            self.outgoing(call, attempt, decision, decision, needs_slot=True)

    def outgoing(self, call: Call, attempt: CallAttempt, decision: Decision, caller: Decision, *, needs_slot: bool) -> None:
        """Take a line's call, other than an emergency one, to where its decision says. `caller` holds who is shown as calling;
        `needs_slot` is whether the call takes a channel of the line's."""
        desk, line, account = self._desk, decision.line, decision.account
        if decision.verdict is DENY or line is None or account is None:
            self._decide(call, decision, [])
            return
        if attempt.setups is not None:
            for _ in range(self._guard.start(line.id, desk.now.mono)):
                desk.count("setups_forgotten", "full")
            self.tell_started(line.id)
        needs = [Need(line, account, attempt, decision)] if needs_slot else []
        if decision.callee is not None:
            self._internal(call, decision, caller, needs)
        else:
            call.groups = trunk_groups(desk, decision.destination.canonical.removeprefix("service:"))
            call.retry_on = FAIL_OVER
            self._decide(call, decision, needs)

    def started_elsewhere(self, line: str) -> None:
        """A line started a call at another worker of this node."""
        for _ in range(self._guard.start(line, self._desk.now.mono)):
            self._desk.count("setups_forgotten", "full")

    def started(self, line: Line | None) -> int | None:
        """How many calls the line started within its window; None where there is no limit to them."""
        limit, window_s = self._desk.snapshot.setup_limit(line) if line is not None else (0, 0)
        return self._guard.started(line.id, window_s, self._desk.now.mono) if line is not None and limit else None

    def _internal(self, call: Call, own: Decision, caller: Decision, needs: list[Need]) -> None:
        """On-net: the callee's line has its say and gives a channel, as for any incoming call."""
        desk, number = self._desk, own.destination.canonical
        attempt = internal_attempt(number, caller)
        decision = evaluate(attempt, desk.snapshot, desk.now.utc_ms)
        keep_trace(desk, call.request, call.record, decision, caller.asserted)
        if decision.verdict is DENY or decision.line is None or decision.account is None:
            self._decide(call, decision, [])
            return
        call.record.callee_line, call.record.callee_account = decision.line.id, decision.account.user
        call.groups = binding_groups(desk, decision.account.user, decision.destination.canonical)
        self._decide(call, own, [*needs, Need(decision.line, decision.account, attempt, decision)])

    def _incoming(self, request: Request, flow: Flow, trunk: TrunkRoute) -> None:
        desk = self._desk
        said, attempt = incoming_attempt(request, trunk)
        decision = evaluate(attempt, desk.snapshot, desk.now.utc_ms)
        call = self.open(request, flow, decision, from_customer=False, hidden=said.hides or said.anonymous)
        call.record.trunk = trunk.name
        call.faces = Faces(request, said, decision, desk.settings, from_customer=False)
        call.edit = incoming_edit(desk, request, decision, said, call.faces)
        keep_trace(desk, request, call.record, decision, said.network)
        if self._is_leaving(call) or (decision.verdict is ALLOW and self._cannot_serve(call, said)):
            return
        needs = []
        if decision.verdict is ALLOW and decision.line is not None and decision.account is not None:
            needs = [Need(decision.line, decision.account, attempt, decision)]
            call.groups = binding_groups(desk, decision.account.user, decision.destination.canonical)
        self._decide(call, decision, needs)

    def _is_leaving(self, call: Call) -> bool:
        """A node that is closed takes no new call, and records that it was asked. True when it is closed."""
        closed = self._desk.closed
        if closed:
            why = min(closed)
            self._desk.count("requests_refused", f"closed_{why}")
            call.record.verdict, call.record.rule = "deny", f"node.{why}"
            call.refuse(503, TEMPORARY_FAILURE, end_reason="refused", headers=[AGAIN])
        return bool(closed)

    def _cannot_serve(self, call: Call, said: Said) -> bool:
        """RFC 3323 §5: privacy that is asked for as critical and cannot be given fails the call. So does a wish to take over a
        dialog of others. True when it did."""
        missing = unsupported_privacy(said.privacy)
        if missing:
            self._desk.count("decisions", "deny", "privacy.critical")
            call.record.verdict, call.record.rule = "deny", "privacy.critical"
            names = " ".join(sorted(missing)).encode("ascii", "replace")
            reason = b"Privacy not available: " + names[:80]
            call.refuse(500, NOT_IMPLEMENTED, end_reason="refused", reason=reason)
            return True
        if may_take_over(self.calls, call):
            return False
        self._desk.count("decisions", "deny", UNKNOWN)
        call.record.verdict, call.record.rule = "deny", UNKNOWN
        call.refuse(481, TEMPORARY_FAILURE, end_reason="refused")
        return True

    def open(self, request: Request, flow: Flow, decision: Decision, *, from_customer: bool, hidden: bool = False) -> Call:
        """A call in its first phase, with its record as far as it is known, in the table of calls."""
        desk = self._desk
        server = desk.transactions.new_server(request, desk.reply_target(request, flow), desk.now.mono)
        call_id = desk.token()
        record = draft(
            request,
            flow,
            decision,
            call=call_id,
            node=desk.settings.node,
            now=desk.now,
            from_customer=from_customer,
            hidden=hidden,
        )
        calls = self.calls
        call = Call(desk, call_id, server, flow, from_customer, record, desk.now.mono, calls)
        server.user = call
        calls.add(call)
        return call

    def _decide(self, call: Call, decision: Decision, needs: list[Need]) -> None:
        desk = self._desk
        desk.count("decisions", decision.verdict.value, rule_family(decision.rule))
        if decision.verdict is DENY:
            self._deny(call, decision)
        elif needs:
            self._take(call, needs)
        else:
            self._go(call)

    def _deny(self, call: Call, decision: Decision) -> None:
        call.record.verdict, call.record.rule = "deny", decision.rule
        warning = b'399 %s "%s"' % (self._desk.settings.realm.encode(), decision.rule.encode("ascii", "replace"))
        headers = [(b"Warning", warning)] if call.head is None else []  # a line's rules are not for its callers to know
        call.refuse(decision.status, decision.cause, end_reason="refused", headers=headers)

    # Slots

    def _take(self, call: Call, needs: list[Need]) -> None:
        """Take a slot for each need in turn, then go on."""
        need = needs[0]
        self._desk.channels.ask(
            call,
            line_slot(call, need.line.id),
            partial(self._answered, call, needs),
            limit=need.limit,
            account=need.account.user,
            account_limit=need.account.channels,
        )

    def _answered(self, call: Call, needs: list[Need], grant: Grant) -> None:
        if grant.refusal == "away":
            call.record.verdict, call.record.rule = "deny", "store.away"
            call.refuse(500, TEMPORARY_FAILURE, end_reason="refused")
        elif grant.refusal:
            self._refuse_full(call, needs[0], grant)
        else:
            if call.record.slots_used is None:
                call.record.slots_used = grant.used
            self._report(call, needs[0].line, grant.used)
            if needs[1:]:
                self._take(call, needs[1:])
            else:
                self._go(call)

    def _report(self, call: Call, line: Line, used: int) -> None:
        """Say that the line uses more channels than its soft limit, which refuses nothing."""
        desk = self._desk
        soft = desk.snapshot.soft_channels_of(line)
        if soft and used > soft:
            desk.count("soft_limit", line.profile)
            desk.note("warning", "line_over_soft_limit", call=call.id, line=line.id, used=used, soft=soft)
            call.record.over_soft = [*call.record.over_soft, line.id]

    def _refuse_full(self, call: Call, need: Need, grant: Grant) -> None:
        """The same evaluation again with every channel in use: policy words the refusal."""
        desk = self._desk
        attempt = replace(need.attempt, slots_used=grant.used, account_used=grant.of_account)
        full = evaluate(attempt, desk.snapshot, desk.now.utc_ms)
        if not call.slots:
            call.record.slots_used = grant.used
        desk.count("decisions", full.verdict.value, rule_family(full.rule))
        if full.verdict is DENY:
            self._deny(call, full)
        else:
            # The snapshot changed while the slot was being taken, and now allows more: the caller may try again.
            call.record.verdict, call.record.rule = "deny", "line.channels"
            call.refuse(480, 34, end_reason="refused")

    def _go(self, call: Call) -> None:
        if call.groups:
            call.proceed()
        elif call.is_emergency:
            self._desk.note("error", "emergency_no_route", call=call.id, line=call.record.line)
            call.refuse(480, 41, end_reason="unreachable")
        elif call.record.direction == "outgoing":
            self._desk.note("error", "no_route", call=call.id, destination=call.record.canonical)
            call.refuse(500, 38, end_reason="unreachable")
        else:
            call.refuse(480, SUBSCRIBER_ABSENT, end_reason="unreachable")
