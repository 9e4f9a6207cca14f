"""The engine: one event in, the actions that it causes out (design §4, §5).

Pure: `Now` comes with each event, random bytes from the function given at construction. The shell performs the actions in
order, arms one timer for `next_at`, and reports slot results and transport failures back.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from policy.emergency import service_of
from policy.model import LineStatus
from sipproxy.engine import deadlines
from sipproxy.engine.actions import SendTo
from sipproxy.engine.authenticate import Authenticator
from sipproxy.engine.call import Call, Phase
from sipproxy.engine.call_timers import before_trying, bound_reached
from sipproxy.engine.calls import Calls
from sipproxy.engine.crew import Crew
from sipproxy.engine.edge import Edges, Passage
from sipproxy.engine.ending import dismiss
from sipproxy.engine.flows import Flows
from sipproxy.engine.forwarding import Forwarding
from sipproxy.engine.recover import recover
from sipproxy.engine.refusals import Refusals
from sipproxy.engine.registrar import Registrar
from sipproxy.engine.relay import IN_DIALOG, Relay, Relays
from sipproxy.engine.replicas import Replicas
from sipproxy.engine.setup import Setup
from sipproxy.engine.shed import Shedder
from sipproxy.engine.sources import is_source, may_answer
from sipproxy.engine.state import KNOWN_METHODS, Desk, request_label
from sipproxy.engine.transactions import Server
from sipproxy.sip.digest import NonceSource
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import LOOP, Flow, Hop
from sipproxy.sip.matching import cancel_target_key
from sipproxy.sip.message import Request, Response, check_message, parse_message, salvage
from sipproxy.sip.stun import is_stun
from sipproxy.sip.timers import Alarm

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from policy.model import Snapshot
    from sipproxy.engine.actions import Action, Now, Slot
    from sipproxy.engine.kinds import Kind
    from sipproxy.engine.peers import Peer
    from sipproxy.engine.recover import Ended, Unfinished
    from sipproxy.engine.settings import Settings
    from sipproxy.engine.shed import Signals, Verdict
    from sipproxy.engine.structs import Binding
    from sipproxy.sip.places import Place

__all__ = ["Engine"]

REGISTER_OPTIONS = frozenset([b"path", b"outbound", b"gin"])
ALLOW = b", ".join(sorted(IN_DIALOG | {b"CANCEL", b"REGISTER"}))


class Engine:
    """One node's registrar and proxy."""

    def __init__(
        self,
        settings: Settings,
        snapshot: Snapshot,
        *,
        new_token: Callable[[int], bytes],
        key: bytes,
        next_seq: int = 1,
        nonce_lifetime_s: int = 300,
        max_nonces: int = 100_000,
    ) -> None:
        """`key` is secret and stays the same over restarts: nonces that a router holds stay good. `next_seq` comes from the
        journal."""
        self.desk = Desk(settings, snapshot, new_token=new_token, key=key)
        self.channels = self.desk.channels
        self.calls = Calls(next_seq=next_seq)
        nonces = NonceSource(key, lifetime_s=nonce_lifetime_s, max_tracked=max_nonces)
        self.auth = Authenticator(self.desk, nonces, key)
        self._registrar = Registrar(self.desk)
        self.refusals = Refusals(self.desk, self.calls)
        self._setup = Setup(self.desk, self.calls, self.auth, self.refusals)
        self._forwarding = Forwarding(self.desk, self._setup)
        self._relays = Relays(self.desk, self.calls, self.auth)
        self._edges = Edges(self.desk, IN_DIALOG)
        self._replicas = Replicas(self.desk)
        self.shedder = Shedder(self.desk, self.calls, settings.rates)
        self._flows = Flows(self.desk, self.shedder)
        self.crew = Crew(self.desk, self.auth, self._setup, self._flows, self.shedder, act=self._actions)
        self.desk.drops.protectors = [self.auth.guesses.protects, self.calls.protects]

    # Events

    def receive(self, data: bytes, flow: Flow, now: Now, waited_s: float = 0.0, kind: Kind | None = None) -> list[Action]:
        """One whole message from the network, where it waited for so long (0.0: not known). `kind` is what the shedder said."""
        self.desk.now = now
        if data[:1] < b"@" and is_stun(data) and flow.transport == "UDP":  # a SIP message begins with a letter
            self._flows.ping(data, flow)
            return self.desk.take_actions()
        verdict = self.shedder.check(data, flow, waited_s, kind)
        if verdict is None:
            self._deliver(data, flow)
        elif verdict.retry_s:
            self._turn_away(data, flow, verdict)
        else:
            return []
        return self._actions()

    def observe(self, signals: Signals, now: Now) -> list[Action]:
        """How the node is doing, told every 0.1 s. A change of its state is logged."""
        self.desk.now = now
        before = self.shedder.load
        after = self.shedder.observe(signals)
        if after is not None:
            level = "warning" if after > before else "info"
            fields = {"lag_ms": round(1000 * signals.lag_s), "drops": signals.drops, "calls": self.calls.live}
            self.desk.note(level, "load", state=after.name.lower(), before=before.name.lower(), **fields)
        return self.desk.take_actions()

    def _deliver(self, data: bytes, flow: Flow) -> None:
        try:
            message = parse_message(data, max_headers=self.desk.settings.max_headers + (16 if flow.transport == LOOP else 0))
        except ParseError as fault:
            self._salvage(data, flow, fault)
            return
        if isinstance(message, Request):
            self._request(message, flow)
        else:
            self._response(message, flow)

    def _actions(self) -> list[Action]:
        """What the event caused. What calls of ours sent to each other is handled here, in order, to its end."""
        done = self.desk.take_actions()
        if not self.desk.loops:
            if self.calls.over:
                self.calls.let_go()
            return done
        todo, done = deque(done), []
        while todo:
            action = todo.popleft()
            if isinstance(action, SendTo) and action.target.transport == LOOP:
                assert isinstance(action.target, Flow)
                self._deliver(action.data, action.target)
                todo.extend(self.desk.take_actions())
            else:
                done.append(action)
        self.calls.let_go()
        return done

    def fire(self, now: Now) -> list[Action]:
        """Run what is due. Early, late and repeated calls are harmless."""
        desk, mono = self.desk, now.mono
        desk.now = now
        for timer in desk.queue.due(mono):
            if isinstance(timer, Call):
                self._call_timer(timer)
            elif isinstance(timer, Alarm):
                timer.run()
            else:
                if isinstance(timer, Server):
                    before_trying(timer)
                desk.transactions.fire(timer, mono)
        return self._actions()

    @property
    def next_at(self) -> float | None:
        """Monotonic seconds of the earliest deadline."""
        return self.desk.queue.next_at

    def slot_result(
        self, slot: Slot, *, taken: bool | None, used: int, now: Now, of_account: int = 0, waited_s: float = 0.0
    ) -> list[Action]:
        """The answer to a `TakeSlot`, for which the store was waited for so long; `taken` None when it did not say in time."""
        self.desk.now = now
        self.channels.result(slot, taken=taken, used=used, of_account=of_account, waited_s=waited_s)
        return self._actions()

    def transport_failed(self, key: Hashable, now: Now) -> list[Action]:
        """A `SendTo` with this key could not be sent."""
        self.desk.now = now
        self.desk.transactions.transport_failed(key, now.mono)
        return self._actions()

    def flow_closed(self, flow: Flow, now: Now) -> list[Action]:
        """A connection that messages came by, or went by, has ended."""
        self.desk.now = now
        self._flows.closed(flow)
        return self._actions()

    def resolved(self, hop: Hop, places: Iterable[Place]) -> None:
        """The shell looked a next hop's name up: these are where requests to it go, and where responses come from."""
        self.desk.addresses.leads(hop, places)

    def end_call(self, call_id: str, now: Now, *, emergency_too: bool = False) -> tuple[str, list[Action]]:
        """End a call for an operator: the phase that it was in, `unknown` where none is live, `emergency` where it is refused.

        Whoever called for help is cut off only by somebody who says that this is meant.
        """
        self.desk.now = now
        call = self.calls.by_id.get(call_id)
        if call is None or call.phase is Phase.ENDED:
            return "unknown", []
        if call.is_emergency and not emergency_too:
            return "emergency", []
        state = str(call.phase)
        call.stop("operator")
        self.desk.note("warning", "call_ended_by_operator", call=call_id, state=state)
        return state, self._actions()

    def close(self, reason: str) -> None:
        """Take no new calls but emergencies, for this reason: they get 503. Others may have closed for reasons of their own."""
        self.desk.closed.add(reason)

    def open(self, reason: str) -> None:
        """This reason is over."""
        self.desk.closed.discard(reason)

    def refuse_stream(self, head: bytes, fault: ParseError, flow: Flow, now: Now) -> list[Action]:
        """The head of a message whose stream cannot be read on: answered where it can be."""
        self.desk.now = now
        self._salvage(head, flow, fault)
        return self._actions()

    def recover(
        self, unfinished: Sequence[Unfinished], now: Now, *, ended: Sequence[Ended] = (), bound_at: Now | None = None
    ) -> list[Action]:
        """Take up the calls that the journal has no end of, and know those that `ended` last. To be called once, before the
        first message. `bound_at` is since when messages may have been waiting (None: none has)."""
        self.desk.now = now
        recover(self.desk, self.calls, unfinished, ended, bound_at or now)
        return self._actions()

    def swap_snapshot(self, snapshot: Snapshot, now: Now) -> list[Action]:
        """Decide with this snapshot from now on. What a line has going out ends when the line is put on hold for fraud."""
        desk = self.desk
        before, desk.snapshot, desk.now = desk.snapshot, snapshot, now
        for call in list(self.calls.by_id.values()):
            if call.phase is Phase.ENDED or call.is_emergency or call.record.direction == "incoming":
                continue
            if _is_held(snapshot, call.record.line) and not _is_held(before, call.record.line):
                desk.note("warning", "call_ended_by_fraud_hold", call=call.id, line=call.record.line)
                call.stop("fraud_hold")
        return self._actions()

    # Other nodes

    def peers_seen(self, peers: Sequence[Peer]) -> None:
        """The nodes that show a sign of life."""
        self.desk.peers.heard(peers)

    def bindings_read(self, bindings: Sequence[tuple[str, Binding]], now: Now, *, own_too: bool) -> list[Action]:
        """Some of the bindings that the store has; with `own_too` this node's own are taken back, as after a restart."""
        self.desk.now = now
        self._replicas.read(bindings, own_too=own_too)
        return self.desk.take_actions()

    def bindings_elsewhere(self) -> list[tuple[str, str]]:
        """Account and key of each binding of other nodes."""
        return self._replicas.elsewhere()

    def bindings_lacking(self, idents: Sequence[tuple[str, str]], now: Now) -> bool:
        """Of other nodes' bindings the store lacks these. True: read again later to see whether they are gone for good."""
        self.desk.now = now
        return self._replicas.lacking(idents)

    def binding_seen(self, user: str, binding: Binding, now: Now, *, is_told: bool = False) -> list[Action]:
        """Another node registered this. `is_told` by that worker itself, ahead of the store."""
        self.desk.now = now
        self._replicas.seen(user, binding, is_told=is_told)
        return self.desk.take_actions()

    def binding_gone(self, user: str, key: str, at_ms: int, now: Now, *, is_told: bool = False) -> list[Action]:
        """Another node removed this binding, at `at_ms` (UTC). `is_told` as in `binding_seen`."""
        self.desk.now = now
        self._replicas.gone(user, key, at_ms, is_told=is_told)
        return self.desk.take_actions()

    def expire_bindings(self, now: Now) -> int:
        """Drop bindings whose time is over; how many."""
        return len(self.desk.location.expire(now.utc_ms))

    # Requests

    def _request(self, request: Request, flow: Flow) -> None:
        desk, came_in = self.desk, flow.transport != LOOP
        if came_in:
            request.stamp(flow.host, flow.port)
        try:
            is_stray = request.method == b"ACK" and "call_id" not in request.faults and self._is_stray(request)
            if not is_stray:
                check_message(request)
        except ParseError as fault:
            desk.count("malformed", "headers")
            self._refuse_malformed(request, flow, fault)
            return
        if came_in:
            desk.counters["requests", request_label(request)] += 1
        if is_stray:
            desk.count("requests_refused", "stray_ack")
            return
        server = desk.transactions.find_server(request)
        if server is not None:
            if request.method == b"ACK" and not server.is_accepted and not is_source(desk, server, request, flow):
                desk.count("requests_refused", "ack_source")
                return
            if server.target.connection and flow != server.target and is_source(desk, server, request, flow):
                server.target = flow  # who repeats it by another connection is answered there
            passed = desk.transactions.receive_request(server, request, desk.now.mono)
            if passed is not None and (flow.transport == LOOP or not self._edges.take(passed, flow)):
                self._relays.request(passed, flow)
            return
        try:
            self._new_request(request, flow)
        except ParseError as fault:
            # A header that only now was needed turns out malformed.
            desk.count("malformed", "late")
            self._refuse_malformed(request, flow, fault)

    def _is_stray(self, ack: Request) -> bool:
        """Whether an ACK, which nobody answers, is of no call here nor for another node's: that of a challenge, as a rule."""
        return not self.calls.has(ack.call_id) and b"route" not in ack.first_line

    def _turn_away(self, data: bytes, flow: Flow, verdict: Verdict) -> None:
        """503 for a customer's request that comes at the wrong time. A copy of one that was taken or challenged is none."""
        if self.refusals.briefly(data, flow, verdict):
            return
        request: Request | Response | None
        try:  # as a whole: its record says who called whom
            request = parse_message(data, max_headers=self.desk.settings.max_headers)
        except ParseError:
            request = salvage(data)
        if not isinstance(request, Request):
            return
        request.stamp(flow.host, flow.port)
        try:
            check_message(request)
            known = self.desk.transactions.find_server(request) is not None or self.refusals.was_challenged(request)
            if not known and self.refusals.shed(request, flow, verdict):
                return
        except ParseError as fault:
            self.desk.count("malformed", "headers")
            self._refuse_malformed(request, flow, fault)
            return
        self.shedder.take_back(data, flow)
        self._deliver(data, flow)

    def _salvage(self, data: bytes, flow: Flow, fault: ParseError) -> None:
        self.desk.count("malformed", "structure")
        if fault.status and (request := salvage(data)) is not None:
            request.stamp(flow.host, flow.port)
            self._refuse_malformed(request, flow, fault)

    def _refuse_malformed(self, request: Request, flow: Flow, fault: ParseError) -> None:
        if fault.status == 0 or request.method == b"ACK":
            return
        try:
            self.desk.reply(request, flow, fault.status)
        except ParseError:
            self.desk.count("malformed", "unanswerable")  # without a usable Via or From there is nowhere to answer to

    def _new_request(self, request: Request, flow: Flow) -> None:
        desk, method = self.desk, request.method
        if method == b"CANCEL":
            self._cancel(request, flow)
        elif flow.transport != LOOP and self._edges.take(request, flow):
            return
        elif request.to.tag is not None and method != b"REGISTER":
            self._relays.request(request, flow)
        elif method == b"ACK":
            desk.count("requests_refused", "stray_ack")
        elif options := self._unsupported(request):
            desk.reply(request, flow, 420, headers=[(b"Unsupported", options)])  # RFC 3261 §16.3 step 5
        elif method == b"OPTIONS":
            known = request.parsed_uri.scheme in (b"sip", b"sips", b"tel")  # §16.3 step 2
            desk.reply(request, flow, 200 if known else 416, headers=[(b"Allow", ALLOW), (b"Accept", b"application/sdp")])
        elif request.max_forwards == 0:
            desk.reply(request, flow, 483)  # §16.3 step 3
        elif method == b"REGISTER":
            self._register(request, flow)
        elif method == b"INVITE" and (why := self._copy_of(request, flow)):
            desk.count("requests_refused", why)
            desk.reply(request, flow, 482)
        elif method == b"INVITE" and flow.transport == LOOP:
            self._forwarding.invite(request, flow)
        elif method == b"INVITE":
            self._setup.invite(request, flow)
        else:
            self._refuse_method(request, flow)

    def _refuse_method(self, request: Request, flow: Flow) -> None:
        """Design: invariant 6. No method outside a dialog unless somebody decided so; strangers are asked who they are."""
        desk, known = self.desk, request.method in KNOWN_METHODS
        is_trusted = not known or desk.settings.trunk_of(flow) is not None
        if not is_trusted and self.auth.account(request, flow, request.from_.uri, proxy=True) is None:
            return
        desk.count("requests_refused", "method")
        desk.reply(request, flow, 405 if known else 501, headers=[(b"Allow", ALLOW)])

    def _copy_of(self, request: Request, flow: Flow) -> str:
        """`loop` (§16.3 step 4) or `merged` (§8.2.2.2) for an INVITE that was here before, else "". Calls for help pass."""
        if service_of(request.uri):
            return ""
        if self.desk.has_looped(request):
            return "loop"
        # One call, one slot, one record, by however many paths its INVITE comes. The first one goes on.
        return "merged" if flow.transport != LOOP and self.calls.is_merged(request) else ""

    @staticmethod
    def _unsupported(request: Request) -> bytes:
        """The options that Proxy-Require asks for and that are not served here, b"" for none. `privacy` is RFC 3323 §4.3's."""
        if not request.has(b"proxy-require") or (request.method == b"INVITE" and service_of(request.uri)):
            return b""  # design: invariant 1, nothing stands between a caller and help
        known = {b"privacy"} | ({b"gin"} if request.method == b"REGISTER" else set())  # RFC 6140 §5.1
        return b", ".join(option for option in request.values(b"proxy-require")[:20] if option.lower() not in known)

    def _cancel(self, request: Request, flow: Flow) -> None:
        """§9.2: answered here whatever becomes of the INVITE."""
        desk = self.desk
        target = desk.transactions.servers.get(cancel_target_key(request))
        user = target.user if target is not None else None
        account = user.record.account if isinstance(user, Call) and user.from_customer else ""
        if target is None or not is_source(desk, target, request, flow, account=account):
            desk.count("requests_refused", "no_invite" if target is None else "cancel_source")
            desk.reply(request, flow, 481)
            return
        desk.reply(request, flow, 200)
        if isinstance(target.user, (Call, Passage, Relay)) and not target.is_final:
            target.user.cancel()

    def _register(self, request: Request, flow: Flow) -> None:
        desk, uri = self.desk, request.parsed_uri
        host = uri.host_text
        if not uri.is_sip or not (host in desk.settings.domains or desk.settings.is_ours(host, uri.port)):
            desk.reply(request, flow, 404)  # §10.3 step 1: not our domain, and we forward no REGISTER
            return
        required = request.values(b"require")[:20] if b"require" in request.first_line else ()
        if unknown := [option for option in required if option.lower() not in REGISTER_OPTIONS]:
            desk.reply(request, flow, 420, headers=[(b"Unsupported", b", ".join(unknown))])  # §10.3 step 2
            return
        account = self.auth.account(request, flow, request.to.uri, proxy=False)
        if account is None:
            return
        if desk.transactions.is_full:
            desk.count("requests_refused", "table_full")
            desk.reply(request, flow, 503, headers=[(b"Retry-After", b"10")])
            return
        # Through a transaction: a retransmission must not meet the CSeq rule of §10.3 step 7.
        server = desk.transactions.new_server(request, desk.reply_target(request, flow), desk.now.mono)
        status, reason, headers = self._registrar.register(request, account, flow)
        desk.answer(server, status, reason=reason, headers=headers)

    # Responses

    def _response(self, response: Response, flow: Flow) -> None:
        desk = self.desk
        try:
            check_message(response)
            client = desk.transactions.find_client(response)
            if client is not None:
                if self._comes_from(client.target, client.user, flow):
                    desk.heard_by = flow
                    desk.transactions.receive_response(client, response, desk.now.mono)
                return
            late = self.calls.late(response) if response.is_success and response.cseq.method == b"INVITE" else None
            if late is not None:
                if self._comes_from(late[1].to, late[0], flow):
                    dismiss(*late, response)
            else:
                # RFC 6026 §7.2: not forwarded statelessly any more
                own = flow.transport == LOOP or desk.is_own_branch(response.via.branch or b"")
                desk.count("responses_dropped", "no_transaction" if own else "branch")
        except ParseError:
            desk.count("malformed", "response")

    def _comes_from(self, target: Flow | Hop, user: object, flow: Flow) -> bool:
        """Whether a response comes from where its request went; if not it is counted, and dropped."""
        desk = self.desk
        if may_answer(desk, target, flow):
            return True
        call = user.found.call if isinstance(user, Relay) else user
        helps = isinstance(call, Call) and call.is_emergency  # design: invariant 1, its branch is proof enough
        desk.count("responses_elsewhere", "emergency" if helps else "dropped")
        desk.note("warning", "response_from_elsewhere", source=str(flow), sent_to=str(target), dropped=not helps)
        return helps

    # Timers

    def _call_timer(self, call: Call) -> None:
        for kind in deadlines.due(call):
            if kind == "forget":
                self.calls.remove(call)
            else:
                bound_reached(call, kind)


def _is_held(snapshot: Snapshot, line: str) -> bool:
    return (found := snapshot.lines.get(line)) is not None and found.status is LineStatus.FRAUD_HOLD
