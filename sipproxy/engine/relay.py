"""Requests inside a call's dialogs: who may send them, where they go, and their responses (RFC 3261 §12.2, §16).

Pure. A request without a live dialog of ours is answered 481 and goes nowhere (design: invariant 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sipproxy.engine.actions import SendTo
from sipproxy.engine.call import Call, Dialog, Phase
from sipproxy.engine.causes import cause_of
from sipproxy.engine.forward import forward_request, forward_response, hop_of, is_ours, loosen, strict_next, strip_trust
from sipproxy.sip.build import Editor
from sipproxy.sip.errors import ParseError
from sipproxy.sip.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.engine.calls import Calls
    from sipproxy.engine.state import Desk
    from sipproxy.engine.transactions import Server
    from sipproxy.sip.flow import Flow, Hop
    from sipproxy.sip.message import Request, Response
    from sipproxy.sip.uri import Uri

__all__ = ["IN_DIALOG", "Relays"]

# What a party may send within its dialog. REFER and SUBSCRIBE are left out: each would start something of its own.
IN_DIALOG = frozenset([b"ACK", b"BYE", b"INVITE", b"UPDATE", b"PRACK", b"INFO", b"OPTIONS"])


@dataclass(eq=False)
class Relay:
    """User of the two transactions that carry one in-dialog request through."""

    desk: Desk
    server: Server
    to_customer: bool
    key: Hashable = None
    provisional: bool = False
    cancelled: bool = False
    done: bool = False

    def response(self, _key: Hashable, response: Response, /) -> None:
        self.provisional = True
        if self.cancelled and response.status < 200:
            self._send_cancel()
        if response.status == 100:
            return
        if response.status >= 200 and not self.done:
            self.done = True
            self.desk.queue.cancel(("relay", self.key))
        if response.status == 503:
            self.desk.answer(self.server, 500)  # §16.7 step 6: a 503 speaks of the hop that sent it, not of us
            return
        data = forward_response(response, from_customer=self.to_customer)
        self.desk.transactions.respond(self.server, response.status, data, self.desk.now.mono)

    def failed(self, _key: Hashable, /, *, timed_out: bool) -> None:
        if not self.done:
            self.done = True
            self.desk.queue.cancel(("relay", self.key))
            self.desk.answer(self.server, 408 if timed_out else 500)

    def cancel(self) -> None:
        """The sender's CANCEL of a re-INVITE, or Timer C."""
        self.cancelled = True
        if self.provisional:
            self._send_cancel()

    def _send_cancel(self) -> None:
        client = self.desk.transactions.clients.get(self.key)
        if client is not None and not self.done and client.request.method == b"INVITE":
            self.cancelled = False
            self.desk.transactions.cancel(client, self.desk.now.mono)


class Relays:
    """Forwards requests within dialogs."""

    def __init__(self, desk: Desk, calls: Calls) -> None:
        self._desk = desk
        self._calls = calls

    def request(self, request: Request, flow: Flow) -> None:
        """Take a request with a To tag that no transaction absorbed."""
        desk = self._desk
        editor = Editor(request)
        routes, uri, token = loosen(request, editor, desk.settings)
        found = self._calls.find(request, token)
        if found is None:
            desk.count("requests_refused", "no_dialog")
            desk.reply(request, flow, 481)
            return
        if request.method not in IN_DIALOG:
            desk.count("requests_refused", "method")
            desk.reply(request, flow, 405, headers=[(b"Allow", b", ".join(sorted(IN_DIALOG | {b"CANCEL"})))])
            return
        if request.max_forwards == 0:
            desk.reply(request, flow, 483)
            return
        call, dialog, from_caller = found
        next_uri = strict_next(editor, routes, uri)
        to = self._next(call, dialog, next_uri, uri, from_caller=from_caller)
        if call.from_customer if from_caller else dialog.target.is_customer:
            strip_trust(editor, request)
        self._observe(call, dialog, request, from_caller=from_caller)
        if request.method == b"ACK":
            built = forward_request(desk, request, to, editor=editor, call=call.id, stateless=True)
            if built is not None:
                desk.out.append(SendTo(to, built[0].raw))
            return
        to_customer = dialog.target.is_customer if from_caller else call.from_customer
        self._forward(request, flow, editor, call, to, to_customer=to_customer)

    def _forward(self, request: Request, flow: Flow, editor: Editor, call: Call, to: Flow | Hop, *, to_customer: bool) -> None:
        desk = self._desk
        server = desk.transactions.new_server(request, desk.reply_target(request, flow), desk.now.mono)
        relay = Relay(desk, server, to_customer)
        server.user = relay
        record_route = flow if request.method in (b"INVITE", b"UPDATE") else None
        built = forward_request(desk, request, to, editor=editor, call=call.id, received_on=record_route)
        if built is None:
            desk.answer(server, 500)
            return
        sent, branch = built
        if request.method == b"INVITE":
            desk.answer(server, 100)
            desk.queue.set(("relay", (branch, b"INVITE")), desk.now.mono + desk.settings.ring_s)  # Timer C
        relay.key = (branch, request.method)
        desk.transactions.new_client(sent, branch, to, relay, desk.now.mono)

    def _next(self, call: Call, dialog: Dialog, next_uri: Uri | None, uri: bytes, *, from_caller: bool) -> Flow | Hop:
        """Where the request goes: a customer by the flow of its binding or INVITE, since NAT hides what its Contact names;
        anyone else by the Route set or the remote target (§16.6 step 6)."""
        customer, known = (dialog.target.is_customer, dialog.to) if from_caller else (call.from_customer, call.flow)
        if customer:
            return known
        if next_uri is None:
            try:
                next_uri = parse_uri(uri)
            except ParseError:
                return known
        if not next_uri.is_sip or not next_uri.host or is_ours(next_uri, self._desk.settings):
            return known
        return hop_of(next_uri)

    def _observe(self, call: Call, dialog: Dialog, request: Request, *, from_caller: bool) -> None:
        """What the request says about the call: proof of life, or its end."""
        call.alive()
        if request.method != b"BYE" or call.phase is not Phase.ANSWERED:
            return
        dialog.ended = True
        if any(d.confirmed and not d.ended for d in call.dialogs.values()):
            return  # a forked call with a second dialog still up
        call.end("normal", released_by="caller" if from_caller else "callee", cause=cause_of(request, 200))
