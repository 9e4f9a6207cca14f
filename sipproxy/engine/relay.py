"""Requests inside a call's dialogs: who may send them, where they go, and their responses (RFC 3261 §12.2, §16).

Pure. A request without a live dialog of ours, or from elsewhere than its party, is answered 481 and goes nowhere (design:
invariant 6). It changes nothing about the call.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from sipproxy.engine import carrier, keep, liveness, session, timer_c
from sipproxy.engine.addresses import retry_after_s
from sipproxy.engine.authenticate import Proven
from sipproxy.engine.call import Phase
from sipproxy.engine.causes import cause_of
from sipproxy.engine.ending import reach
from sipproxy.engine.forward import forward_request, loosen, next_hop, strict_next, strip_trust, via_of, write_loose
from sipproxy.engine.privacy import forward_in_dialog, forward_response, is_mask, strip_for_customer
from sipproxy.engine.sources import Standing, account_of, follow, may_reach, standing
from sipproxy.engine.takeover import names_a_dialog
from sipproxy.engine.trunk_auth import answer_challenge
from sipproxy.sip.build import Editor
from sipproxy.sip.dialog import after_2xx, after_request, target_of
from sipproxy.sip.flow import LOOP, Hop

if TYPE_CHECKING:
    from collections.abc import Hashable

    from cdr.facts import ReleasedBy
    from sipproxy.engine.actions import Now
    from sipproxy.engine.authenticate import Authenticator
    from sipproxy.engine.calls import Calls, Found
    from sipproxy.engine.state import Desk
    from sipproxy.engine.transactions import Server
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.message import Request, Response
    from sipproxy.sip.timers import Alarm
    from sipproxy.sip.uri import Uri

__all__ = ["IN_DIALOG", "Relays"]

# What a party may send within its dialog. REFER and SUBSCRIBE are left out: each would start something of its own.
IN_DIALOG = frozenset([b"ACK", b"BYE", b"INVITE", b"UPDATE", b"PRACK", b"INFO", b"OPTIONS"])


@dataclass(eq=False, slots=True)
class Relay:
    """User of the two transactions that carry one in-dialog request through."""

    desk: Desk
    server: Server
    found: Found
    begun: Now
    asked: session.Asked | None = None  # the session timer that the forwarded request asks for
    route: str = ""  # the trunk route that it goes to
    others: list[Hop] = field(default_factory=list)  # further addresses of its next hop (RFC 3263 §4.3)
    key: Hashable = None
    provisional: bool = False
    cancelled: bool = False
    done: bool = False
    bound: Alarm | None = None  # Timer C

    def response(self, key: Hashable, response: Response, /) -> None:
        status = response.status
        if status == 503 and self._goes_elsewhere(key, "503", hold_s=retry_after_s(response.first(b"retry-after"))):
            return
        if status in (401, 407) and self._authenticate(response):
            return
        self.provisional = True
        if self.cancelled and status < 200:
            self._send_cancel()
        if status == 100:
            return
        found, request, is_success = self.found, self.server.request, response.is_success
        if status not in liveness.GONE:
            side = liveness.Side.CALLEE if found.from_caller else liveness.Side.CALLER
            liveness.heard(found.call, found.dialog, side, sent=self.begun)
        if status >= 200 and not self.done:
            timer_c.finish(self)
        if is_success and request.method in session.REFRESHES and (sides := found.dialog.sides) is not None:
            found.dialog.caller, found.dialog.callee = after_2xx(sides, request, response)
            keep.refreshed(found.call)
        if status == 503 or (status in (401, 407) and self.desk.trunks.has_credentials(self.route)):
            # §16.7 step 6: a 503 speaks of the hop that sent it, not of us. A challenge to us is no business of the sender's.
            self.desk.answer(self.server, 500)
            return
        if carrier.keeps(self.desk, response, from_customer=found.to_customer):
            self.desk.answer(self.server, 403)
            return
        edit = None
        if is_success and request.method in session.REFRESHES:
            agreed = session.agreed(response, self.asked)
            liveness.refreshed(found.call, found.dialog, agreed)
            edit = partial(session.tell, response, agreed)
        data = forward_response(
            response,
            request,
            found.call.face(found.dialog.target),
            self.desk.settings,
            self.server.target,
            from_customer=found.to_customer,
            to_customer=found.from_customer,
            from_caller=not found.from_caller,
            edit=edit,
        )
        self.desk.transactions.respond(self.server, status, data, self.desk.now.mono)

    def _authenticate(self, response: Response) -> bool:
        """Answer a carrier's challenge with its route's credentials: True when the request is on its way again."""
        found, desk = self.found, self.desk
        answered = None
        if not self.done and not self.cancelled and self.route:
            answered = answer_challenge(desk, self.route, response, self)
        if answered is None:
            return False
        request, shift = answered.request, found.dialog.shift
        if request.method == b"INVITE":
            timer_c.begin(self)
            shift = replace(shift, credentials=(answered.credentials,))
        self.key, self.provisional = answered.key, False
        found.dialog.shift = shift.sent(self.server.request.cseq.number, request.cseq.number)
        if (sides := found.dialog.sides) is not None:
            found.dialog.caller, found.dialog.callee = after_request(sides, request)
        keep.refreshed(found.call)
        return True

    def _goes_elsewhere(self, key: Hashable, why: str, *, hold_s: float | None = None) -> bool:
        """The request could not be served there: whether it is on its way to the next address, by a branch of its own."""
        desk, client = self.desk, self.desk.transactions.told
        if client is None or client.key != key or not isinstance(client.target, Hop):
            return False
        desk.addresses.failed(client.target, why, hold_s=hold_s)
        via = via_of(desk, self.others[0]) if self.others and not self.done and not self.cancelled else None
        if via is None:
            return False
        value, branch = via
        editor = Editor(client.request)
        editor.replace_first(b"Via", value)
        request = editor.to_request(max_headers=desk.settings.max_headers + 16)
        desk.count("addresses_failed_over")
        if request.method == b"INVITE":
            timer_c.begin(self)
        self.key, self.provisional = (branch, request.method), False
        desk.transactions.new_client(request, branch, self.others.pop(0), self, desk.now.mono, challenged=client.challenged)
        return True

    def failed(self, key: Hashable, /, *, timed_out: bool) -> None:
        """The request had no answer, or could not be sent. Whoever waited for Timer F has given up by the next address."""
        if not timed_out and self._goes_elsewhere(key, "transport"):
            return
        if not self.done:
            timer_c.finish(self)
            # A call that asks through its part whether the callee is there has to tell a failure of the way from an answer.
            failed = 503 if self.server.target.transport == LOOP else 500
            self.desk.answer(self.server, 408 if timed_out else failed)

    def cancel(self) -> None:
        """The sender's CANCEL of a re-INVITE, or Timer C."""
        self.cancelled = True
        if self.provisional:
            self._send_cancel()

    def _send_cancel(self) -> None:
        client = self.desk.transactions.clients.get(self.key)
        if client is not None and not self.done and client.method == b"INVITE":
            self.cancelled = False
            self.desk.transactions.cancel(client, self.desk.now.mono)


class Relays:
    """Forwards requests within dialogs."""

    def __init__(self, desk: Desk, calls: Calls, auth: Authenticator) -> None:
        self._desk = desk
        self._calls = calls
        self._auth = auth

    def request(self, request: Request, flow: Flow) -> None:
        """Take a request with a To tag that no transaction absorbed."""
        desk = self._desk
        routes, uri, token = loosen(request, desk.settings)
        found = self._found(request, flow, token)
        if found is None:
            return
        if request.method not in IN_DIALOG:
            desk.count("requests_refused", "method")
            desk.reply(request, flow, 405, headers=[(b"Allow", b", ".join(sorted(IN_DIALOG | {b"CANCEL"})))])
            return
        if request.max_forwards == 0:
            desk.reply(request, flow, 483)
            return
        if request.method == b"INVITE" and names_a_dialog(request):
            desk.count("requests_refused", "replaces")
            desk.reply(request, flow, 400)  # RFC 3891 §3, RFC 3911 §4: they begin a dialog, a re-INVITE has its own
            return
        editor = Editor(request)
        write_loose(editor, request, routes, uri)
        uri = self._unmask(editor, found, uri)
        to = self._next(found, strict_next(editor, routes, uri), uri)
        if not may_reach(desk, found, to):
            desk.count("requests_refused", "target")
            desk.reply(request, flow, 403)
            return
        self._present(editor, request, found, to)
        steps = found.dialog.shift.steps
        shifted = bool(steps and carrier.route_of(found.call, found.dialog, to_caller=not found.from_caller))
        self._observe(found, request, shifted=shifted)
        if shifted:
            found.dialog.shift.apply(editor, request)
        if request.method == b"ACK":
            to = desk.addresses.first(to)
            built = forward_request(desk, request, to, editor=editor, mark=found.call.mark, stateless=True)
            if built is not None:
                desk.transactions.send_ack(built[0], to)
        else:
            self._forward(request, flow, editor, found, to)
        if request.method == b"BYE":
            self._leave(found, request)

    def _found(self, request: Request, flow: Flow, token: bytes) -> Found | None:
        """The dialog of a request by one of its parties; None for any other, which is answered."""
        desk = self._desk
        call = self._calls.marked(token, request.call_id) if token else None
        marked = call.id if call is not None else desk.marked_call(token, request.call_id) if token else ""
        if call is None:  # taken up after a restart, or no call of ours
            call = self._calls.by_id.get(marked or "")
        found = self._calls.find(request, call, flow) if marked is not None else None
        if found is None:
            desk.count("requests_refused", "no_dialog" if marked is not None else "token")
            desk.reply(request, flow, 481)
            return None
        source = standing(desk, found, request, flow, marked=call is not None)
        if source is Standing.UNPROVEN:
            account = account_of(found)
            outcome = self._auth.check(request, flow, proxy=True, user_hint=account)
            if not isinstance(outcome, Proven):
                desk.count("requests_refused", "unproven_source")
                if outcome.status:
                    desk.reply(request, flow, outcome.status, headers=outcome.headers)
                return None
            source = Standing.PARTY if outcome.account.user == account else Standing.STRANGER
        if source is Standing.STRANGER:
            desk.count("requests_refused", "source")
            desk.reply(request, flow, 481)  # as for no dialog: whether there is one is not for strangers to know
            return None
        known = found.call.flow if found.from_caller else found.dialog.to
        if flow != known and found.from_customer:
            follow(found, flow)
            keep.refreshed(found.call)
        return found

    def _forward(self, request: Request, flow: Flow, editor: Editor, found: Found, to: Flow | Hop) -> None:
        desk = self._desk
        server = desk.transactions.new_server(request, desk.reply_target(request, flow), desk.now.mono)
        route = carrier.route_of(found.call, found.dialog, to_caller=not found.from_caller)
        others: list[Hop] = []
        if isinstance(to, Hop):
            to, *others = desk.addresses.choose(to)
        relay = Relay(desk, server, found, desk.now, route=route, others=others)
        server.user = relay
        refreshes = request.method in session.REFRESHES
        if refreshes and found.call.phase is Phase.ANSWERED and not found.call.is_emergency:
            terms = desk.settings.session_terms
            if session.is_too_short(request, terms):
                desk.answer(server, 422, headers=[session.refusal(terms)])
                return
            relay.asked = session.ask(request, editor, terms)
        record_route = flow if refreshes else None  # target refresh requests are the same ones
        built = forward_request(desk, request, to, editor=editor, mark=found.call.mark, received_on=record_route)
        if built is None:
            desk.answer(server, 500)
            return
        sent, branch = built
        if request.method == b"INVITE":
            desk.answer(server, 100)
            timer_c.begin(relay)
        relay.key = (branch, request.method)
        desk.transactions.new_client(sent, branch, to, relay, desk.now.mono)

    def _unmask(self, editor: Editor, found: Found, uri: bytes) -> bytes:
        """The caller's real remote target, where the callee was given another one instead."""
        call, dialog = found.call, found.dialog
        if found.from_caller or not call.face(dialog.target).hidden or not is_mask(uri, self._desk.settings):
            return uri
        target = dialog.caller.remote_target if dialog.caller is not None else target_of(call.request)
        editor.request_uri(target)
        return target

    def _present(self, editor: Editor, request: Request, found: Found, to: Flow | Hop) -> None:
        """The parties as the receiving side knows them, and nothing that the sender may not say."""
        call, face = found.call, found.call.face(found.dialog.target)
        if found.from_customer:
            strip_trust(editor, request, self._desk.settings)
        elif found.to_customer:
            strip_for_customer(editor, request, self._desk.settings)
        forward_in_dialog(
            editor, request, call.server.request, from_caller=found.from_caller, face=face, strict=found.from_customer
        )
        if found.from_caller:
            face.put_on_request(editor, request, self._desk.settings, to)

    def _next(self, found: Found, next_uri: Uri | None, uri: bytes) -> Flow | Hop:
        """Where the request goes: a customer by the flow of its binding or INVITE, anyone else by the Route set or the remote
        target (§16.6 step 6)."""
        known = found.dialog.to if found.from_caller else found.call.flow
        if found.to_customer:
            # DEVIATION: RFC 3261 §16.6 step 6, the remote target is not where it goes, because NAT hides what it names.
            return reach(found.call, found.dialog, liveness.Side.CALLEE if found.from_caller else liveness.Side.CALLER)
        return next_hop(self._desk.settings, next_uri if next_uri is not None else uri, known)

    def _observe(self, found: Found, request: Request, *, shifted: bool) -> None:
        """What the request says about the call: proof of life, or its end. `shifted` is whether its peer sees another CSeq."""
        call, dialog = found.call, found.dialog
        if found.from_caller:
            call.heard()
        side = liveness.Side.CALLER if found.from_caller else liveness.Side.CALLEE
        resumed, sent = call.resumed, None
        if resumed is not None and request.method != b"ACK":
            now, repeated_s = self._desk.now, 64 * self._desk.settings.timers.t1
            if request.method == b"BYE" and dialog.watch is not None:
                proof, others = (liveness.known(call, dialog, of) for of in (side, liveness.Side(1 - side)))
                resumed.leaving(proof, others, now, repeated_s=repeated_s)
            sent = resumed.sent(now, repeated_s=repeated_s)
        if request.method == b"ACK":
            call.seen()  # no proof: who has hung up still repeats it for each 2xx that comes (RFC 3261 §13.2.2.4)
        else:
            liveness.heard(call, dialog, side, sent=sent)
        if request.method != b"ACK" and (sides := dialog.sides) is not None:
            seen = dialog.shift.of(request.cseq.number) if shifted else None
            dialog.caller, dialog.callee = after_request(sides, request, seen=seen)

    @staticmethod
    def _leave(found: Found, request: Request) -> None:
        """The BYE of a party is on its way to the other: the dialog is over, and with the last one the call.

        In this order: a node that dies between the two forgets an end that it is told again, and not the party that waits.
        """
        call, dialog = found.call, found.dialog
        dialog.ended = True
        if call.phase is not Phase.ANSWERED:
            return
        if any(d.confirmed and not d.ended for d in call.dialogs):
            keep.refreshed(call)
            return  # a forked call with a second dialog still up
        by: ReleasedBy = "caller" if found.from_caller else "callee"
        # An answer that the caller never had made no call: what the callee repeats it for is no talk time.
        call.end("normal", released_by=by, cause=cause_of(request, 200), certain=not call.is_lost)
