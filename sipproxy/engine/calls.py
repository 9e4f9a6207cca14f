"""The table of calls: by our call id and by SIP Call-ID.

Pure. A call stays findable for 64*T1 after its end, so that retransmissions meet its dialog; it counts as live only until then.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING

from sipproxy.engine.call import Call, Dialog, Phase
from sipproxy.engine.ending import let_go
from sipproxy.sip.flow import LOOP, source_of
from sipproxy.sip.matching import response_key

if TYPE_CHECKING:
    from sipproxy.engine.actions import Now
    from sipproxy.engine.forward import Target
    from sipproxy.sip.flow import Flow, Hop
    from sipproxy.sip.message import Message, Request, Response

__all__ = ["Calls", "Found"]


class Found:
    """Where an in-dialog request belongs, and whether who sends it, and who gets it, is a customer."""

    __slots__ = ("call", "dialog", "from_caller", "from_customer", "to_customer")

    def __init__(self, call: Call, dialog: Dialog, *, from_caller: bool) -> None:
        self.call, self.dialog, self.from_caller = call, dialog, from_caller
        caller, callee = call.from_customer, dialog.target.kind == "binding"
        self.from_customer, self.to_customer = (caller, callee) if from_caller else (callee, caller)


class Calls:
    """All calls of a node, and its CDR sequence."""

    def __init__(self, *, next_seq: int) -> None:
        self._next_seq = next_seq
        self.by_id: dict[str, Call] = {}
        self._by_call_id: dict[bytes, tuple[Call, ...]] = {}
        self.live = 0
        self.over: list[Call] = []  # that ended in the event that is being handled

    def number(self) -> int:
        """The next sequence number of this node's CDRs, without gaps."""
        seq = self._next_seq
        self._next_seq += 1
        return seq

    def add(self, call: Call) -> None:
        self.by_id[call.id] = call
        self._by_call_id[call.call_id] = (*self._by_call_id.get(call.call_id, ()), call)
        self.live += 1

    def ended(self, call: Call) -> None:
        """The call is over."""
        self.over.append(call)
        self.live -= 1

    def let_go(self) -> None:
        """The event is over too: calls that ended in it keep what a late message can need, until they are forgotten."""
        for call in self.over:
            let_go(call)
        self.over.clear()

    def remove(self, call: Call) -> None:
        self.by_id.pop(call.id, None)
        call.desk.queue.cancel(call)
        same = tuple([other for other in self._by_call_id.get(call.call_id, ()) if other is not call])
        if same:
            self._by_call_id[call.call_id] = same
        else:
            self._by_call_id.pop(call.call_id, None)
        for part in call.parts:
            part.head = None
        call.parts = ()  # calls that refer to each other would wait for the garbage collector

    def has(self, call_id: bytes) -> bool:
        """Whether a call with this Call-ID is known."""
        return call_id in self._by_call_id

    def protects(self, source: str) -> str:
        """Why the kernel is not to drop the source: a party of a live call is there; "" otherwise."""
        flows = (
            flow
            for call in self.by_id.values()
            if call.phase is not Phase.ENDED
            for flow in (call.flow, *(dialog.to for dialog in call.dialogs))
        )
        return "call" if any(source_of(flow.host) == source for flow in flows) else ""

    def has_help_by(self, flow: Flow) -> bool:
        """Whether a live call for help came by this flow."""
        return any(call.is_emergency and call.is_live and call.flow == flow for call in self.by_id.values())

    def marked(self, token: bytes, call_id: bytes) -> Call | None:
        """The call whose Record-Route has this token; None where none has, or it was not written yet."""
        for call in self._by_call_id.get(call_id, ()):
            if call.token and hmac.compare_digest(call.token, token):
                return call
        return None

    def of(self, call_id: bytes) -> list[Call]:
        """The calls with this Call-ID, those included that ended less than 64*T1 ago."""
        return list(self._by_call_id.get(call_id, ()))

    def is_merged(self, request: Request) -> bool:
        """Whether a new INVITE is a live call's, which came by another path (RFC 3261 §8.2.2.2).

        With another Request-URI it is no copy: a proxy before us asks for somebody else, or it is a spiral (RFC 5393 §3).
        """
        calls = self._by_call_id.get(request.call_id)
        if not calls:
            return False
        tag, number = request.from_.tag, request.cseq.number
        return any(
            call.is_live and (call.request.from_.tag, call.request.cseq.number, call.request.uri) == (tag, number, request.uri)
            for call in calls
        )

    def late(self, response: Response) -> tuple[Call, Target] | None:
        """The call and target of a response whose client transaction is over; None when nobody knows of it."""
        calls = self._by_call_id.get(response.call_id)
        if calls is None:
            return None
        key = response_key(response)
        for call in calls:
            branch = call.context.branches.get(key)
            if branch is not None:
                return call, branch.target
            if (dialog := call.dialog(response.to.tag or b"")) is not None and call.is_answer(dialog, response):
                return call, dialog.target
        return None

    def find(self, message: Message, call: Call | None, flow: Flow) -> Found | None:
        """The call and dialog that an in-dialog request belongs to, and whether it comes from the caller (§12.2).

        `call` is the one that the token of our Record-Route URI names; without one (a peer that drops parameters) Call-ID and
        tags decide, and `flow` between a forwarded call and its part.
        """
        from_tag, to_tag, call_id = message.from_.tag, message.to.tag, message.call_id
        for found in (call,) if call is not None else self._by_call_id.get(call_id, ()):
            if found.call_id != call_id:
                continue
            dialog = found.dialog(to_tag or b"") if from_tag == found.caller_tag else None
            if dialog is not None and (call is not None or _comes_to(found.flow, flow)):
                return Found(found, dialog, from_caller=True)
            dialog = found.dialog(from_tag or b"") if to_tag == found.caller_tag else None
            if dialog is not None and (call is not None or _comes_to(dialog.to, flow)):
                return Found(found, dialog, from_caller=False)
        return None

    def view(self, now: Now) -> list[dict[str, object]]:
        """The live calls for operators."""
        return [
            {
                "id": call.id,
                "node": call.record.node,
                "state": str(call.phase),
                "direction": call.record.direction,
                "line": call.record.line,
                "account": call.record.account,
                "calling": call.record.calling,
                "dialled": call.record.canonical,
                "trunk": call.answer.trunk if call.answer is not None else call.record.trunk,
                "verdict": call.record.verdict,
                "slots": [
                    {
                        "kind": slot.kind,
                        "of": slot.owner,
                        "account": call.desk.channels.holder(slot).account,
                        "role": slot.member.partition(":")[2],
                        "since_ms": call.desk.channels.holder(slot).since_ms,
                    }
                    for slot in call.slots
                ],
                "setup_at_ms": call.record.setup_at_ms,
                "for_s": call.after_ms(now) // 1000,
            }
            for call in self.by_id.values()
            if call.phase is not Phase.ENDED
        ]


def _comes_to(party: Flow | Hop, flow: Flow) -> bool:
    """Whether what came by `flow` can be of that party: what a call of ours sends to its part is of no other."""
    return party == flow if LOOP in (party.transport, flow.transport) else True
