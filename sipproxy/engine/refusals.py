"""Call attempts that the node itself has no room or no time for: 503, and one record for each (design: invariant 3).

Their rules are `node.full` (calls or transactions), `node.overload` (engine.shed), `line.messages` (the line's own budget
there) and `node.disk`. Only attempts whose sender was proven come here: by a trunk route's source, by digest, or by the flow of
a live binding. They get no transaction, for which there may be no room: what is repeated is known by its key for as long as it
may be.

While the journal takes nothing but what belongs to live calls, the records wait in memory without a number, which follows the
order of writing. Pure. Left out: whether the disk takes records, which the shell says.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from cdr.assemble import final
from cdr.facts import End, Record
from policy import evaluate
from policy.emergency import service_of
from policy.model import CallAttempt, Direction, Verdict
from sipproxy.engine.actions import Journal, SendTo
from sipproxy.engine.carrier import called
from sipproxy.engine.causes import TEMPORARY_FAILURE
from sipproxy.engine.draft import draft
from sipproxy.engine.kinds import has_credentials
from sipproxy.engine.malicious import keep_trace
from sipproxy.engine.privacy import Said, said_by
from sipproxy.engine.settings import TrunkRoute
from sipproxy.engine.state import reason_header
from sipproxy.sip.brief import parse_brief, write_unavailable
from sipproxy.sip.matching import server_key
from sipproxy.sip.timers import Alarm

if TYPE_CHECKING:
    from collections.abc import Hashable

    from policy.model import Account, Decision
    from sipproxy.engine.calls import Calls
    from sipproxy.engine.shed import Verdict as Shed
    from sipproxy.engine.state import Desk
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.message import Request

__all__ = ["MAX_HELD", "MAX_KNOWN", "Refusals", "incoming_attempt", "internal_attempt", "outgoing_attempt"]

MAX_KNOWN = 20_000  # refused INVITEs, and challenged ones, of which a repetition is told: 64*T1 at 600 a second
MAX_HELD = 10_000  # records that wait for the disk, some 10 MB


def outgoing_attempt(desk: Desk, request: Request, account: Account, *, setups: int | None = None) -> tuple[Said, CallAttempt]:
    """A customer's call as policy sees it."""
    said = said_by(request, from_customer=True)
    return said, CallAttempt(
        Direction.OUTGOING,
        request.uri,
        desk.snapshot.lines.get(account.line),
        account,
        caller=said.given,
        preferred=said.preferred,
        privacy=said.hides,
        anonymous=said.anonymous,
        setups=setups,
    )


def incoming_attempt(request: Request, trunk: TrunkRoute) -> tuple[Said, CallAttempt]:
    """A trunk route's call as policy sees it."""
    said = said_by(request, from_customer=False)
    return said, CallAttempt(
        Direction.INCOMING,
        called(request, trunk),
        caller=said.given,
        network=said.network,
        privacy=said.hides,
        anonymous=said.anonymous,
        abroad=trunk.foreign,
    )


def internal_attempt(number: str, caller: Decision) -> CallAttempt:
    """The callee's half of a customer's call to another, whom his own decision shows as calling."""
    return CallAttempt(
        Direction.INCOMING, number.encode(), caller=caller.presented, network=caller.asserted, privacy=caller.restricted
    )


class _Known(NamedTuple):
    """An INVITE without a transaction: until when it may be repeated (monotonic seconds), and when it was to come again."""

    until: float
    retry_s: int


def _is_brief(verdict: Shed) -> bool:
    """Whether an INVITE may be refused as a customer's that came too late, or as a copy of one that was turned away."""
    return (verdict.reason == "late" and verdict.user != "") or verdict.reason == "repeated"


class Refusals:
    """See the module."""

    def __init__(self, desk: Desk, calls: Calls) -> None:
        self._desk, self._calls = desk, calls
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._challenged: OrderedDict[Hashable, _Known] = OrderedDict()
        self._alarm = Alarm(self._forget)
        self._held: deque[Record] = deque()
        self.holding = False

    @property
    def held(self) -> int:
        """Records that wait for the disk."""
        return len(self._held)

    def answer_again(self, request: Request, flow: Flow) -> bool:
        """Answer the repetition of an INVITE that was refused here, as it was; False for any other. Raises ParseError."""
        known = self._known.get(server_key(request))
        if known is None or known.until <= self._desk.now.mono or service_of(request.uri):
            return False
        self._reply(request, flow, known.retry_s)
        return True

    def challenged(self, request: Request, flow: Flow) -> None:
        """The INVITE is asked for its credentials, which leaves no transaction: the attempt is the next one, that has them.
        Only what comes by the flow of a live binding could be taken for another attempt (`shed`)."""
        if self._desk.location.accounts_at(flow, self._desk.now.utc_ms)[1]:
            self._remember(self._challenged, request)

    def was_challenged(self, request: Request) -> bool:
        """Whether the request is the repetition of an INVITE that was asked for its credentials. Raises ParseError."""
        known = self._challenged.get(server_key(request))
        return known is not None and known.until > self._desk.now.mono

    def turn_away(self, request: Request, flow: Flow, by: Account | TrunkRoute, rule: str, *, retry_s: int) -> bool:
        """Refuse an attempt, with a record before the answer; False for a call for help, which is left to others.

        Raises ParseError.
        """
        if self.answer_again(request, flow):
            return True
        record = self._record(request, flow, by, rule)
        if record is None:
            return False
        self._remember(self._known, request, retry_s)
        if self.holding:
            self._hold(record)
        else:
            self._write(record)
        self._desk.count("calls_ended", record.end_reason)
        self._reply(request, flow, retry_s)
        return True

    def _reply(self, request: Request, flow: Flow, retry_s: int) -> None:
        headers = [*reason_header(TEMPORARY_FAILURE), (b"Retry-After", b"%d" % retry_s)]
        self._desk.reply(request, flow, 503, headers=headers)

    def briefly(self, data: bytes, flow: Flow, verdict: Shed) -> bool:
        """Refuse over UDP what the node has no time for, at the price of little more than its answer: a REGISTER, of which
        thousands come at once after a power cut, and a customer's INVITE that waited too long, where he has not proven yet who
        he is. That is no attempt yet, and has no record, as when it is challenged. False where that cannot be done, or where
        it was taken before."""
        desk = self._desk
        if data.startswith(b"REGISTER "):
            method = "REGISTER"
        elif data.startswith(b"INVITE ") and _is_brief(verdict) and not has_credentials(data):
            method = "INVITE"
        else:
            return False
        if flow.transport != "UDP" or (brief := parse_brief(data)) is None:
            return False
        if brief.key in desk.transactions.servers or brief.key in self._challenged or brief.key in self._known:
            return False
        answer = write_unavailable(brief, flow, tag=desk.tokens.sign(b"tag", brief.branch), retry_s=verdict.retry_s)
        if not desk.may_send(flow, len(answer)):
            desk.count("unanswered", method)
            return True
        desk.out.append(SendTo(flow, answer))
        desk.count("responses", method, "503")
        return True

    def _route(self, flow: Flow) -> TrunkRoute | None:
        return next((route for route in self._desk.settings.trunks if route.matches(flow)), None)

    def shed(self, request: Request, flow: Flow, verdict: Shed) -> bool:
        """Refuse what the node has no time for, with a record for an INVITE that came by the flow of a live binding or from a
        trunk route; False for a call for help. Raises ParseError."""
        desk = self._desk
        by: Account | TrunkRoute | None = None
        if request.method == b"INVITE":
            by = self._route(flow)
            if by is None and verdict.user:
                claimed = request.from_.uri.user_text
                user = claimed if desk.location.is_at(claimed, flow, desk.now.utc_ms) else verdict.user
                by = desk.snapshot.accounts.get(user)
        if by is None:
            desk.reply(request, flow, 503, headers=[(b"Retry-After", b"%d" % verdict.retry_s)])
            return True
        rule = "line.messages" if verdict.reason == "line" else "node.overload"
        return self.turn_away(request, flow, by, rule, retry_s=verdict.retry_s)

    def hold(self, *, on: bool) -> None:
        """Whether records have to wait for the disk from now on. Those that waited are written when they have not."""
        self.holding = on
        while self._held and not on:
            self._write(self._held.popleft())

    def _record(self, request: Request, flow: Flow, by: Account | TrunkRoute, rule: str) -> Record | None:
        desk = self._desk
        trunk = by if isinstance(by, TrunkRoute) else None
        said, attempt = incoming_attempt(request, by) if isinstance(by, TrunkRoute) else outgoing_attempt(desk, request, by)
        decision = evaluate(attempt, desk.snapshot, desk.now.utc_ms)
        if decision.verdict is Verdict.EMERGENCY:
            return None
        known = draft(
            request,
            flow,
            decision,
            call=desk.token(),
            node=desk.settings.node,
            now=desk.now,
            from_customer=trunk is None,
            hidden=trunk is not None and (said.hides or said.anonymous),
        )
        known.verdict, known.rule, known.trunk = "deny", rule, trunk.name if trunk is not None else ""
        self._trace(request, known, decision, said.network)
        return final(
            known,
            answer=None,
            seq=0,
            end_at_ms=desk.now.utc_ms,
            after_ms=0,
            status=503,
            cause=TEMPORARY_FAILURE,
            released_by="proxy",
            end_reason="refused",
        )

    def _trace(self, request: Request, record: Record, decision: Decision, network: str) -> None:
        """An attempt that was refused before it reached a line is one to that line all the same (TDDDG § 14)."""
        if decision.callee is not None:
            desk, number = self._desk, decision.destination.canonical
            network = decision.asserted
            decision = evaluate(internal_attempt(number, decision), desk.snapshot, desk.now.utc_ms)
        if decision.trace:
            keep_trace(self._desk, request, record, decision._replace(verdict=Verdict.DENY, rule=record.rule), network)

    def _write(self, record: Record) -> None:
        self._desk.out.append(Journal(End(replace(record, seq=self._calls.number()))))

    def _hold(self, record: Record) -> None:
        if len(self._held) < MAX_HELD:
            self._held.append(record)
        else:
            self._desk.count("records_dropped", record.rule)

    def _remember(self, known: OrderedDict[Hashable, _Known], request: Request, retry_s: int = 0) -> None:
        if len(known) >= MAX_KNOWN:
            known.popitem(last=False)
            self._desk.count("refusals_forgotten", "full" if known is self._known else "challenged")
        key = server_key(request)
        known.pop(key, None)  # the latest last
        known[key] = _Known(self._desk.now.mono + 64 * self._desk.settings.timers.t1, retry_s)
        if self._alarm.at == inf:
            self._desk.queue.set(self._alarm, known[key].until)

    def _forget(self) -> None:
        """Forget what is not repeated any more."""
        for known in (self._known, self._challenged):
            while known and next(iter(known.values())).until <= self._desk.now.mono:
                known.popitem(last=False)
        left = [next(iter(known.values())).until for known in (self._known, self._challenged) if known]
        if left:
            self._desk.queue.set(self._alarm, min(left))
