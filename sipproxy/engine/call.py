"""One call: from its INVITE's admission to its one CDR (design: words, invariants 2, 3 and 4).

Pure. A `Call` is the user of its INVITE's server transaction and of the client transactions of its branches. It ends exactly
once, in `end`, which journals the END fact, gives every slot back, and leaves the dialogs known for as long as retransmissions
of the last messages can arrive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from dataclasses import replace as change
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from cdr.assemble import final
from cdr.facts import Answer, End, EndReason, Record, ReleasedBy
from sipproxy.engine import carrier, deadlines, ending, fail_over, final_response, forwarding, keep, liveness, session
from sipproxy.engine.actions import Now, Slot, new_journal, new_note
from sipproxy.engine.causes import NORMAL_CLEARING, NORMAL_UNSPECIFIED
from sipproxy.engine.dialogs import Dialog, Phase
from sipproxy.engine.edge import SILENT_S
from sipproxy.engine.forward import CALL_PARAM, Target, forward_request
from sipproxy.engine.privacy import PLAIN, Face, Faces, KnownFaces, forward_response
from sipproxy.engine.reduced import reduced
from sipproxy.engine.response_context import Branch, Progress, ResponseContext
from sipproxy.engine.state import Headers, reason_header
from sipproxy.sip.build import Editor
from sipproxy.sip.dialog import sides_of_2xx, target_of
from sipproxy.sip.matching import client_key
from sipproxy.sip.timers import Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from sipproxy.engine.calls import Calls
    from sipproxy.engine.recover import Resumed
    from sipproxy.engine.state import Desk
    from sipproxy.engine.transactions import Server
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.message import Request, Response

__all__ = ["Call", "Dialog", "Phase"]

EARLY_DIALOGS = 32  # To tags remembered for one call; a forking UAS beyond that is refused its early requests


@dataclass(eq=False, slots=True)
class Call(Timer):
    """See the module. `record` is the CDR as far as it is known; `calls` is told once that it is over."""

    desk: Desk
    id: str
    server: Server
    flow: Flow  # the caller's
    from_customer: bool
    record: Record
    started: float  # monotonic seconds; its record has it in UTC
    calls: Calls
    groups: list[list[Target]] = field(default_factory=list)
    retry_on: frozenset[int] | None = None
    edit: Callable[[Editor, Target], None] | None = None
    faces: Faces | KnownFaces | None = None  # how the caller looks to whom; None: as he says
    phase: Phase = Phase.ADMITTING
    slots: tuple[Slot, ...] = ()  # by `Channels` alone
    store_wait_s: float = 0.0  # for how much longer it may wait for the store
    dialogs: tuple[Dialog, ...] = ()  # each with a To tag of its own
    answer: Answer | None = None  # without its dialogs
    answer_mark: int = 0  # of what the journal has of these (engine.keep)
    ringing_at_ms: int | None = None
    last_seen: Now | None = None
    maximum_at: float = inf  # monotonic seconds: when it has lasted for as long as any may
    reap_at: float = inf  # and when nothing was heard of it for too long
    proof: Now | None = None  # when both parties of the answered call were last known to be there
    resumed: Resumed | None = None  # taken up again after a restart
    asked: session.Asked | None = None  # the session timer that our INVITE asks for
    gave_up: EndReason | None = None  # why we cancelled the branches ourselves
    was_cancelled: bool = False
    met_full: bool = False  # a trunk route had no place for this call
    head: Call | None = None  # the call that this one is the forwarded part of
    parts: tuple[Call, ...] = ()  # the forwarded parts of this one
    token: bytes = b""  # of our Record-Route, once it was written
    dismissed: frozenset[bytes] = frozenset()  # To tags of late dialogs that were ended
    context: ResponseContext[Target] = field(default_factory=lambda: ResponseContext([]))
    due: dict[str, float] | None = None  # its deadlines by kind (engine.deadlines), None when it was answered
    bound_at: float = inf  # and one that has no place there
    call_id: bytes = field(init=False)  # of its INVITE, and the tag in that one's From
    caller_tag: bytes | None = field(init=False)
    is_emergency: bool = field(init=False)  # by the decision on it

    def __post_init__(self) -> None:
        self.unset()
        request = self.request
        self.call_id, self.caller_tag = request.call_id, request.from_.tag
        self.store_wait_s = self.desk.settings.store_wait_s
        self.is_emergency = self.record.verdict == "emergency"

    @property
    def request(self) -> Request:
        return self.server.request

    @property
    def mark(self) -> bytes:
        """The parameter of our Record-Route by which requests find this call."""
        self.token = self.token or self.desk.call_mark(self.id, self.call_id)
        return CALL_PARAM + b"=" + self.token

    def face(self, target: Target) -> Face:
        """How the caller looks to this target."""
        return self.faces.to(target.kind) if self.faces is not None else PLAIN

    def dialog(self, tag: bytes) -> Dialog | None:
        """The dialog with this To tag. There is hardly ever a second one, for which a table would take four times the room."""
        for dialog in self.dialogs:
            if dialog.to_tag == tag:
                return dialog
        return None

    @property
    def is_answered(self) -> bool:
        """Between its answer and its end."""
        return self.phase is Phase.ANSWERED

    @property
    def is_live(self) -> bool:
        """Whether the call is not over yet."""
        return self.phase is not Phase.ENDED

    @property
    def is_lost(self) -> bool:
        """Whether the answer could not be sent on the caller's connection, and he was not heard since."""
        return deadlines.awaits(self, "lost")

    # Set-up

    def proceed(self) -> None:
        """Journal the admission and send the INVITE to the first group of targets."""
        desk = self.desk
        if not self.is_emergency and session.is_too_short(self.request, desk.settings.session_terms):
            headers = [session.refusal(desk.settings.session_terms)]
            self.refuse(422, NORMAL_UNSPECIFIED, end_reason="refused", headers=headers)
            return
        self.phase = Phase.PROCEEDING
        carrier.arrived(self)
        self.context.groups, self.context.retry_on = list(self.groups), self.retry_on
        keep.admit(self)
        desk.answer(self.server, 100)
        deadlines.await_until(self, "setup", desk.now.mono + desk.settings.setup_s)
        self._try_next()

    def _try_next(self) -> None:
        if not self.context.groups:
            self.go_on(self.context.progress())  # a branch that is overdue may still be answered
            return
        group = self.context.next_group()
        carrier.enter(self, group[0], partial(self._start, group))

    def _start(self, group: Sequence[Target], *, has_place: bool) -> None:
        """Send the INVITE to a group, or go on behind one that has no place for it."""
        desk = self.desk
        if not self.context.may_start:  # something final came while the store was asked
            carrier.left(self, group[0])
            self.go_on(self.context.progress())
            return
        self.met_full = self.met_full or not has_place
        sent = [self.send(target) for target in group] if has_place else []
        if not any(sent):
            carrier.left(self, group[0])
            self._try_next()
            return
        if any(branch.target.route for branch in self.context.branches.values()):
            deadlines.await_until(self, "edge", desk.now.mono + SILENT_S)
        # Once a branch is under way the ring bound runs for the whole call (§16.6 step 11, Timer C).
        deadlines.await_until(self, "ring", desk.now.mono + desk.settings.ring_s)
        fail_over.arm(self)

    def send(self, target: Target) -> bool:
        """Send the INVITE to a target; False when no listener of ours reaches it."""
        target, request = fail_over.located(self, target), self.server.request
        editor = Editor(request)
        editor.request_uri(target.uri)
        editor.remove(b"route")  # §16.4 for what leads to us; where else it goes is not for the caller to say (invariant 6)
        change = self.edit
        if not self.is_emergency:
            self.asked = session.ask(request, editor, self.desk.settings.session_terms)
        built = forward_request(
            self.desk,
            request,
            target,
            editor=editor,
            mark=self.mark,
            received_on=self.flow,
            edit=(lambda e: change(e, target)) if change is not None else None,
        )
        if built is None:
            self.desk.note("error", "no_listener", transport=target.to.transport, target=target.name)
            return False
        sent, branch = built
        carrier.tried(self, target)
        self.context.add(client_key(branch, b"INVITE"), target)
        self.desk.transactions.new_client(sent, branch, target.to, self, self.desk.now.mono, urgent=self.is_emergency)
        return True

    # The branches' responses

    def response(self, key: Hashable, response: Response, /) -> None:
        """A response of a branch (RFC 3261 §16.7)."""
        branch = self.context.branches.get(key)
        if branch is None:
            return
        self.seen()
        if fail_over.has_moved_on(self, branch, response):
            return
        status = carrier.status_of(self, branch, response)
        if not status:
            return
        final = response if status == response.status else None
        if status // 100 == 3:
            if forwarding.follow(self, branch, response):
                self._try_next()
                return
            status, final = forwarding.UNFOLLOWED, None
        if status < 200:
            self._provisional(branch, response)
        elif status < 300:
            self._success(branch, response)
        elif (progress := self.context.final(key, status, final)) is not Progress.WAIT:
            self.go_on(progress)
        elif status >= 600:
            self._cancel_branches()

    def failed(self, key: Hashable, /, *, timed_out: bool) -> None:
        """A branch timed out (like 408) or could not be sent (like 503), §16.9."""
        if key in self.context.branches:
            self.desk.count("branch_failures", "timeout" if timed_out else "transport")
            branch = self.context.branches[key]
            if fail_over.silent(self, branch, timed_out=timed_out):
                return
            self.go_on(self.context.final(key, carrier.failed(self, branch, timed_out=timed_out), None))

    def go_on(self, progress: Progress) -> None:
        """Do what the response context wants done."""
        if self.phase is not Phase.PROCEEDING:
            return
        if progress is Progress.NEXT:
            self._try_next()
        elif progress is Progress.FINISH:
            final_response.send(self)

    def _provisional(self, branch: Branch[Target], response: Response) -> None:
        desk = self.desk
        branch.provisional = True
        branch.overdue = False
        if branch.cancelled:
            self._cancel_branches()  # §9.1: the CANCEL had to wait for a provisional response
        if response.status == 100 or self.phase is not Phase.PROCEEDING:
            return
        deadlines.await_until(self, "ring", desk.now.mono + desk.settings.ring_s)  # §16.7 step 2
        deadlines.drop(self, "setup")
        deadlines.drop(self, "route")
        if self.ringing_at_ms is None and response.status in (180, 183):
            self.ringing_at_ms = desk.now.utc_ms
        self._dialog(branch, response)
        data = self.upstream(response, branch.target)
        desk.transactions.respond(self.server, response.status, data, desk.now.mono)

    def _success(self, branch: Branch[Target], response: Response) -> None:
        """§16.7 step 5: every 2xx goes upstream at once, also after a CANCEL and from a second branch."""
        desk = self.desk
        if self.phase is Phase.ENDED:
            ending.dismiss(self, branch.target, response)
            return
        first = self.context.answered(branch.key, response.status)
        dialog = self._dialog(branch, response)
        if dialog is not None:
            self._confirm(dialog, branch, response)
        if first:
            self._answered(branch, response)
        else:
            keep.refreshed(self)  # a forked call's further dialog
        agreed = session.agreed(response, self.asked)
        data = self.upstream(response, branch.target, edit=partial(session.tell, response, agreed))
        if dialog is not None and dialog.watch is None and dialog.sides is not None:
            liveness.watch(self, dialog, agreed)
        elif first:
            self.await_bound()
        desk.transactions.respond(self.server, response.status, data, desk.now.mono)

    def _answered(self, branch: Branch[Target], response: Response) -> None:
        desk = self.desk
        self.phase = Phase.ANSWERED
        self.due = None
        if not self.is_emergency and self.head is None:
            # Whoever called for help is not cut off by a bound that guards against charges.
            self.maximum_at = desk.now.mono + desk.settings.maximum_s
        if self.head is None:  # whose bounds are those of its parts too
            self.reap_at = desk.now.mono + desk.settings.reap_s
        if self.gave_up in final_response.STOPPED:
            # The answer crossed our CANCEL. RFC 3261 §15: no BYE to the caller before it has acknowledged the 2xx.
            deadlines.await_until(self, "stop", desk.now.mono + 4 * desk.settings.timers.t1)
        ending.settle(self)
        keep.answered(self, branch.target, response)
        desk.count("responses", "INVITE", str(response.status))
        self._cancel_branches()

    def _dialog(self, branch: Branch[Target], response: Response) -> Dialog | None:
        tag = response.to.tag
        if tag is None:
            return None
        dialog, target, by = self.dialog(tag), branch.target, self.desk.heard_by
        # A customer whose connection ended after the INVITE answers by another one, where he is reached from now on.
        moved = target.is_customer and not target.route and by is not None and by.connection and by != target.to
        to = by if moved and by is not None else target.to
        if dialog is None and len(self.dialogs) < EARLY_DIALOGS:
            dialog = Dialog(tag, target, to, response, shift=carrier.shift_of(self))
            self.dialogs += (dialog,)
        elif dialog is not None and moved:
            dialog.to = to
        return dialog

    def _confirm(self, dialog: Dialog, branch: Branch[Target], response: Response) -> None:
        client = self.desk.transactions.clients.get(branch.key)
        if dialog.confirmed or client is None:
            return
        received = self.server.request
        caller, callee = sides_of_2xx(
            response,
            client.raw.count(b";lr;%b>" % self.mark),  # our Record-Route values
            caller_routes=received.record_routes,
            caller_target=target_of(received),
            cseq=client.request.cseq.number if client.challenged else received.cseq.number,
        )
        if self.face(dialog.target).address:
            # The callee's messages name the caller by the face that he has there; to himself he is who he said.
            caller = change(caller, remote=received.first(b"from") or b"")
        dialog.caller, dialog.callee, dialog.first = caller, callee, None
        dialog.kept = (client.kept, reduced(response))

    def is_answer(self, dialog: Dialog, response: Response) -> bool:
        """Whether the 2xx is the one that confirmed the dialog: to an INVITE of ours, with the number of the first."""
        own = self.desk.is_own_branch(response.via.branch or b"")
        return own and dialog.confirmed and response.cseq.number == dialog.shift.of(self.request.cseq.number)

    def upstream(self, response: Response, target: Target, *, edit: Callable[[Editor], None] | None = None) -> bytes:
        """The response of a branch as the caller gets it."""
        return forward_response(
            response,
            self.server.request,
            self.face(target),
            self.desk.settings,
            self.server.target,
            from_customer=target.is_customer,
            to_customer=self.from_customer,
            edit=edit,
        )

    # Ending

    def cancel(self) -> None:
        """The caller's CANCEL (§16.10): pending branches are cancelled, and no further target is tried."""
        if self.phase is Phase.ADMITTING:
            self.refuse(487, NORMAL_CLEARING, end_reason="cancelled", released_by="caller")
        elif self.phase is Phase.PROCEEDING:
            self.was_cancelled = True
            self._stop()

    def give_up(self, reason: EndReason) -> None:
        """A bound of ours was reached before an answer."""
        if self.phase is Phase.PROCEEDING:
            self.gave_up = reason
            self._stop()

    def stop(self, reason: EndReason) -> None:
        """Somebody with the right to it ends the call, whatever phase it is in."""
        if self.phase is Phase.ADMITTING:
            self.refuse(480, NORMAL_UNSPECIFIED, end_reason=reason)
        elif self.phase is Phase.PROCEEDING:
            self.give_up(reason)
        else:
            ending.hang_up(self, reason, cause=NORMAL_UNSPECIFIED)

    def _stop(self) -> None:
        self.context.stopped = True
        self._cancel_branches()
        self.go_on(self.context.progress())

    def _cancel_branches(self) -> None:
        desk = self.desk
        for branch in self.context.to_cancel():
            if (client := desk.transactions.clients.get(branch.key)) is not None:
                desk.transactions.cancel(client, desk.now.mono)

    def refuse(
        self,
        status: int,
        cause: int,
        *,
        end_reason: EndReason,
        released_by: ReleasedBy = "proxy",
        headers: Headers = (),
        reason: bytes = b"",
    ) -> None:
        """End the call with a final response of our own."""
        if self.head is not None and end_reason in ("refused", "unreachable") and status != 482:
            status = 480  # why a line may not forward, or cannot, is not for its callers to know; the cause tells the kind
        self.end(end_reason, released_by=released_by, status=status, cause=cause)
        self.desk.answer(self.server, status, headers=(*reason_header(cause), *headers), reason=reason)

    def end(
        self,
        reason: EndReason,
        *,
        released_by: ReleasedBy,
        status: int = 0,
        cause: int,
        certain: bool = True,
        at: Now | None = None,
    ) -> None:
        """Journal the END, give the slots back and let the call go, with its answered parts. A second call does nothing.

        `at` is when the end was, where that is not now and not the last proof of life.
        """
        if self.phase is Phase.ENDED:
            return
        desk = self.desk
        self.phase = Phase.ENDED
        # An end that nobody observed is the last proof of life (design: invariant 4).
        known = at is not None
        at = at or (desk.now if certain else self.proof or self.last_seen or desk.now)
        if certain and not known and self.resumed is not None:
            at, certain = self.resumed.end(at, self.proof or at, by_us=released_by == "proxy")
        record = final(
            self.record,
            answer=self.answer,
            seq=self.calls.number(),
            end_at_ms=at.utc_ms,
            after_ms=self.after_ms(at),
            status=status,
            cause=cause,
            released_by=released_by,
            end_reason=reason,
            certain=certain,
            last_seen_at_ms=self.last_seen.utc_ms if self.last_seen is not None else self.record.setup_at_ms,
        )
        record.ringing_at_ms = self.ringing_at_ms
        desk.out.append(new_journal((End(record),)))
        desk.channels.give_back(self)
        desk.count("calls_ended", reason)
        level = "warning" if self.is_emergency and self.answer is None and reason != "cancelled" else "info"
        desk.out.append(new_note((level, "call_ended", {"call": self.id, "reason": reason, "status": record.status})))
        # Retransmissions of the last messages still find the dialog (64*T1), as for a transaction.
        deadlines.await_only(self, "forget", desk.now.mono + 64 * desk.settings.timers.t1)
        self.calls.ended(self)
        for part in self.parts:
            if part.is_answered:  # one that still rings is cancelled by its INVITE's CANCEL
                part.end(reason, released_by=released_by, cause=cause, certain=certain, at=at)

    def unheard(self) -> None:
        """A response could not be sent on the caller's connection. When that is the answer, and he does not acknowledge it from
        elsewhere in half the time that the callee repeats it for (RFC 3261 §13.3.1.4), the call is over, and was never one."""
        if self.phase is Phase.ANSWERED and not self.is_lost and not self.is_emergency:
            deadlines.await_until(self, "lost", self.desk.now.mono + 32 * self.desk.settings.timers.t1)

    def heard(self) -> None:
        """The caller is there."""
        deadlines.drop(self, "lost")

    def seen(self) -> None:
        """A message of this call arrived."""
        self.last_seen = self.desk.now

    def alive(self, proof: Now) -> None:
        """A message of the answered call arrived. Where it moves the proof that both parties are there, that is journalled."""
        self.seen()
        desk = self.desk
        if self.phase is Phase.ANSWERED:
            if self.proof is None or proof > self.proof:
                self.proof = proof
                desk.out.append(new_journal((keep.proof_of_life(self, proof),)))
            if self.head is None:
                self.reap_at = desk.now.mono + desk.settings.reap_s  # the timer that is set comes too early, and is set again

    def await_bound(self) -> None:
        """Have the answered call looked at when the first of its bounds is reached, those of its dialogs among them: most calls
        end before."""
        if not self.is_answered:
            return
        at = min(self.maximum_at, self.reap_at)
        for dialog in self.dialogs:
            if dialog.watch is not None and not dialog.ended:
                at = min(at, dialog.watch.next_at)
        deadlines.await_bound(self, at)

    def after_ms(self, at: Now) -> int:
        return round((at.mono - self.started) * 1000)
