"""Requests inside a call's dialogs: who may send them, where they go, and their responses (RFC 3261 §12.2, §16).

Pure. A request without a live dialog of ours is answered 481 and goes nowhere (design: invariant 6).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sipproxy.engine.actions import SendTo
from sipproxy.engine.call import Phase
from sipproxy.engine.causes import cause_of
from sipproxy.engine.forward import forward_request, loosen, next_hop, strict_next, strip_trust
from sipproxy.engine.privacy import forward_in_dialog, forward_response, is_mask, strip_for_customer
from sipproxy.sip.build import Editor
from sipproxy.sip.dialog import after_2xx, after_request

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.engine.calls import Calls, Found
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
    found: Found
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
        found, dialog = self.found, self.found.dialog
        if response.is_success and dialog.sides is not None:
            dialog.sides = after_2xx(dialog.sides, self.server.request, response)
        if response.status == 503:
            self.desk.answer(self.server, 500)  # §16.7 step 6: a 503 speaks of the hop that sent it, not of us
            return
        data = forward_response(
            response,
            self.server.request,
            found.call.face(dialog.target),
            self.desk.settings,
            self.server.target,
            from_customer=found.to_customer,
            to_customer=found.from_customer,
            from_caller=not found.from_caller,
        )
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
        uri = self._unmask(editor, found, uri)
        to = self._next(found, strict_next(editor, routes, uri), uri)
        self._present(editor, request, found, to)
        self._observe(found, request)
        if request.method == b"ACK":
            built = forward_request(desk, request, to, editor=editor, call=found.call.id, stateless=True)
            if built is not None:
                desk.out.append(SendTo(to, built[0].raw))
        else:
            self._forward(request, flow, editor, found, to)

    def _forward(self, request: Request, flow: Flow, editor: Editor, found: Found, to: Flow | Hop) -> None:
        desk = self._desk
        server = desk.transactions.new_server(request, desk.reply_target(request, flow), desk.now.mono)
        relay = Relay(desk, server, found)
        server.user = relay
        record_route = flow if request.method in (b"INVITE", b"UPDATE") else None
        built = forward_request(desk, request, to, editor=editor, call=found.call.id, received_on=record_route)
        if built is None:
            desk.answer(server, 500)
            return
        sent, branch = built
        if request.method == b"INVITE":
            desk.answer(server, 100)
            desk.queue.set(("relay", (branch, b"INVITE")), desk.now.mono + desk.settings.ring_s)  # Timer C
        relay.key = (branch, request.method)
        desk.transactions.new_client(sent, branch, to, relay, desk.now.mono)

    def _unmask(self, editor: Editor, found: Found, uri: bytes) -> bytes:
        """The caller's real remote target, where the callee was given another one instead."""
        call, dialog = found.call, found.dialog
        if found.from_caller or not call.face(dialog.target).hidden or not is_mask(uri, self._desk.settings):
            return uri
        target = dialog.sides[0].remote_target if dialog.sides is not None else call.contact
        editor.request_uri(target)
        return target

    def _present(self, editor: Editor, request: Request, found: Found, to: Flow | Hop) -> None:
        """The parties as the receiving side knows them, and nothing that the sender may not say."""
        call, face = found.call, found.call.face(found.dialog.target)
        if found.from_customer:
            strip_trust(editor, request)
        elif found.to_customer:
            strip_for_customer(editor, request)
        forward_in_dialog(editor, request, call.request, from_caller=found.from_caller, face=face, strict=found.from_customer)
        if found.from_caller:
            face.put_on_request(editor, request, self._desk.settings, to)

    def _next(self, found: Found, next_uri: Uri | None, uri: bytes) -> Flow | Hop:
        """Where the request goes: a customer by the flow of its binding or INVITE, anyone else by the Route set or the remote
        target (§16.6 step 6)."""
        known = found.dialog.to if found.from_caller else found.call.flow
        if found.to_customer:
            # DEVIATION: RFC 3261 §16.6 step 6, the remote target is not where it goes, because NAT hides what it names.
            return known
        return next_hop(self._desk.settings, next_uri if next_uri is not None else uri, known)

    def _observe(self, found: Found, request: Request) -> None:
        """What the request says about the call: proof of life, or its end."""
        call, dialog = found.call, found.dialog
        call.alive()
        if dialog.sides is not None:
            dialog.sides = after_request(dialog.sides, request)
        if request.method != b"BYE" or call.phase is not Phase.ANSWERED:
            return
        dialog.ended = True
        if any(d.confirmed and not d.ended for d in call.dialogs.values()):
            return  # a forked call with a second dialog still up
        call.end("normal", released_by="caller" if found.from_caller else "callee", cause=cause_of(request, 200))
