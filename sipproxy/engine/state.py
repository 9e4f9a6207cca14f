"""What the parts of the engine share: settings, snapshot, tables, the instant being handled and the actions it causes.

Pure. `Desk` is the engine's working surface for one event at a time; nothing in it outlives the node but what the actions say.
"""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from policy.emergency import service_of
from sipproxy.engine.actions import Action, Now, new_note, new_send
from sipproxy.engine.addresses import Addresses
from sipproxy.engine.channels import Channels
from sipproxy.engine.drops import Drops
from sipproxy.engine.forward import BRANCH, LOOP_MARK, loop_mark_of
from sipproxy.engine.location import Location
from sipproxy.engine.long_requests import LongRequests
from sipproxy.engine.peers import Peers
from sipproxy.engine.statics import Statics
from sipproxy.engine.steering import mark_of
from sipproxy.engine.structs import CallMark
from sipproxy.engine.tokens import Tokens
from sipproxy.engine.transactions import Server, Transactions
from sipproxy.engine.trunks import Trunks
from sipproxy.sip.build import write_response
from sipproxy.sip.timers import TimerQueue

if TYPE_CHECKING:
    from policy.model import Snapshot
    from sipproxy.engine.settings import Settings
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.headers import Via
    from sipproxy.sip.message import Request

__all__ = ["Desk", "reason_header"]

Headers = Sequence[tuple[bytes, bytes]]
_64_BITS = (1 << 64) - 1
OPTIONAL = frozenset([b"Allow", b"Accept", b"Reason"])  # what a stranger's answer goes without where it would be too long


def reason_header(cause: int) -> Headers:
    """The Reason line of a refusal (RFC 3326, in responses RFC 6432); none for cause 0."""
    return ((b"Reason", b"Q.850;cause=%d" % cause),) if cause else ()


class Desk:
    """Shared state of the engine. `new_token(n)` returns n random bytes and is the only source of randomness."""

    def __init__(self, settings: Settings, snapshot: Snapshot, *, new_token: Callable[[int], bytes], key: bytes) -> None:
        self.settings = settings
        self.snapshot = snapshot
        self.new_token = new_token
        self.now = Now(0.0, 0)
        self.out: list[Action] = []
        self.counters: defaultdict[tuple[str, ...], int] = defaultdict(int)  # a Counter takes four times as long
        self.queue = TimerQueue()
        self.loops = False  # whether calls have been forwarded, so that actions may be for ourselves
        # Whether so many bytes may go to whoever sent from this flow (engine.shed).
        self.may_send: Callable[[Flow, int], bool] = lambda flow, size: True  # noqa: ARG005
        self.heard_by: Flow | None = None  # the flow of the response that is being handled
        # Whether this nonce was given to whoever sends from this flow (engine.authenticate).
        self.gave_nonce: Callable[[bytes, Flow], bool] = lambda nonce, flow: False  # noqa: ARG005
        self.closed: set[str] = set()  # reasons for taking no new calls but emergencies
        self.addresses = Addresses(self)
        self.location = Location(settings.max_bindings, settings.node, settings.siblings)
        self.peers = Peers(settings)
        self._worker = mark_of(settings.worker)
        self.tokens = Tokens(key, self._worker)
        self.long_requests = LongRequests(self)
        self.transactions = Transactions(
            settings.timers,
            limit=settings.max_transactions,
            emit=self.out.append,
            queue=self.queue,
            long_requests=self.long_requests,
        )
        self.channels = Channels(self)
        self.trunks = Trunks(self)
        self.statics = Statics(self)
        self.drops = Drops(self)

    def take_actions(self) -> list[Action]:
        actions = self.out[:]
        self.out.clear()  # the same list stays: the transaction layer holds its append
        return actions

    def count(self, *name: str) -> None:
        self.counters[name] += 1

    def note(self, level: str, event: str, **fields: object) -> None:
        self.out.append(new_note((level, event, fields)))

    def token(self) -> str:
        """96 random bits in hexadecimal: call ids, tags, branches."""
        return self.new_token(12).hex()

    def to_tag(self, request: Request) -> bytes:
        """A To tag that is the same for each retransmission of the request (RFC 3261 §8.2.7)."""
        parts: tuple[bytes, ...]
        if request.faults:  # what is refused because it lacks them is answered all the same (RFC 4475 §3.3.1)
            parts = (request.raw,)
        else:
            parts = request.call_id, request.from_.tag or b"", request.via.branch or request.via.raw
        return self.tokens.sign(b"to-tag", *parts)[:16]

    def loop_mark(self, request: Request, uri: bytes) -> bytes:
        """What the branch of a request of this dialog carries that goes to `uri`: one for one target (RFC 5393 §4.2)."""
        user = uri.partition(b";")[0].rpartition(b"@")[0].partition(b":")[2] or uri  # the host is rewritten by every hop
        return LOOP_MARK + self.tokens.sign(b"loop", request.call_id, request.from_.tag or b"", user)[:16]

    def branch(self, mark: bytes = b"", seed: tuple[bytes, ...] | None = None) -> bytes:
        """A branch of ours with `mark` at its end; random, or with `seed` the same for the same while this process lives."""
        unique = self._worker + (b"%016x" % (hash(seed) & _64_BITS) if seed is not None else self.token().encode())
        return BRANCH + unique + self.tokens.sign(b"branch", unique, mark) + mark

    def is_own_branch(self, branch: bytes) -> bool:
        """Whether this node made the branch, in whatever process."""
        mark = loop_mark_of(branch)
        if len(branch) < len(BRANCH) + 20 + len(mark):
            return False  # and no slice ends before it begins, which compiled code does not bear
        unique, signature = branch[len(BRANCH) : -20 - len(mark)], branch[-20 - len(mark) : len(branch) - len(mark)]
        return hmac.compare_digest(signature, self.tokens.sign(b"branch", unique, mark))

    def call_mark(self, call: str, call_id: bytes) -> bytes:
        """What our Record-Route carries for the call: only in requests with its Call-ID it names the call."""
        return self.tokens.seal(CallMark(call), call_id)

    def marked_call(self, token: bytes, call_id: bytes) -> str | None:
        """The call that a mark names; None where this node did not make it for that Call-ID."""
        found = self.tokens.open(CallMark, token, call_id)
        return found.call if found is not None else None

    def has_looped(self, request: Request) -> bool:
        """Whether we sent this request to this very target before: one of its Via values is ours and says so (§16.3 step 4).

        With another target it is a spiral, which is no fault.
        """
        vias = request.vias
        marked = [via for via in vias[1:] if LOOP_MARK in (via.branch or b"")] if len(vias) > 1 else None
        if not marked:
            return False
        ours = {listener.sent_by.lower() for listener in self.settings.listeners}
        mark = self.loop_mark(request, request.uri)
        return any(loop_mark_of(via.branch) == mark and _sent_by(via) in ours for via in marked)

    def reply_target(self, request: Request, flow: Flow) -> Flow:
        """Where responses go: the connection, or for UDP the source address and, without `rport`, the sent-by port.

        RFC 3261 §18.2.2, RFC 3581 §4.
        """
        # DEVIATION: RFC 3261 §18.2.2, a Via's maddr is ignored, because it would let a stranger aim our responses at others.
        if "via" in request.faults:
            if not request.has(b"via"):
                request.read_again("via")
            return flow  # where it came from is told what is wrong with it (RFC 4475 §3.1.2.1)
        via = request.via
        if flow.transport != "UDP" or via.frame.has_rport:
            return flow
        return flow._replace(port=via.port if via.port is not None else 5060)

    def reply(self, request: Request, flow: Flow, status: int, *, headers: Headers = (), reason: bytes = b"") -> None:
        """Answer without a transaction: the same request gets the same answer again (RFC 3261 §8.2.7)."""
        if request.method == b"ACK":
            return
        tag = self.to_tag(request)
        data = write_response(request, status, reason, to_tag=tag, headers=headers)
        if not self.may_send(flow, len(data)):
            needed = [header for header in headers if header[0] not in OPTIONAL]
            data = write_response(request, status, reason, to_tag=tag, headers=needed)
            if not self.may_send(flow, len(data)) and not (request.method == b"INVITE" and service_of(request.uri)):
                self.count("unanswered", request_label(request))
                return
        self.out.append(new_send((self.reply_target(request, flow), data, None, 0.0)))
        self.count("responses", request_label(request), str(status))

    def answer(self, server: Server, status: int, *, headers: Headers = (), reason: bytes = b"") -> None:
        """Answer through the server transaction."""
        request = server.request
        tag = b"" if status == 100 else self.to_tag(request)
        data = write_response(request, status, reason, to_tag=tag, headers=headers)
        if status > 100:
            self.count("responses", request_label(request), str(status))
        self.transactions.respond(server, status, data, self.now.mono)


def _sent_by(via: Via) -> bytes:
    return via.host.lower() + (b":%d" % (via.port or 5060))


KNOWN_METHODS = frozenset(
    b"INVITE ACK BYE CANCEL REGISTER OPTIONS UPDATE PRACK INFO REFER MESSAGE SUBSCRIBE NOTIFY PUBLISH".split()
)
_LABELS = {method: method.decode("ascii") for method in KNOWN_METHODS}


def request_label(request: Request) -> str:
    """The method as a metric label; whatever a peer invents is "other", so that the set of labels stays bounded."""
    return _LABELS.get(request.method, "other")
