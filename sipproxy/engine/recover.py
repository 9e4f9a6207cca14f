"""Calls that lived when the node died, taken up again from their facts in the journal (design: invariants 2 to 4).

An answered call whose dialogs the journal has is a call again: requests within it are forwarded, its slot is held, its bounds
run on from its answer. Its parties are asked soon whether they are still there, because what they said meanwhile is lost. Any
other call ends here, as its INVITE's transactions are gone; its end was not observed, and its record says so. Of a call that
had just ended, the last BYE may have been lost on the wire, and its repetition with the node: it is said once more.

Pure. Left out: flows over streams, whose connections died with the process; a customer behind one is followed to the connection
that its next request comes by (sources.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, cast

from cdr.assemble import recovered
from cdr.facts import End, LineSlot
from sipproxy.engine import carrier, deadlines, ending, keep, liveness
from sipproxy.engine.actions import Holder, Journal, Now, ReleaseSlot, Slot
from sipproxy.engine.call import Call, Dialog, Phase
from sipproxy.engine.channels import trunk_slot
from sipproxy.engine.cseq import UNSHIFTED, Shift
from sipproxy.engine.dialogs import Side
from sipproxy.engine.forward import Target, own_routes
from sipproxy.engine.privacy import ANONYMOUS, PLAIN, Face, KnownFaces
from sipproxy.engine.response_context import ResponseContext
from sipproxy.engine.structs import Mask
from sipproxy.sip.build import Editor
from sipproxy.sip.dialog import from_invite_2xx
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import LOOP, Flow, Hop
from sipproxy.sip.matching import client_key
from sipproxy.sip.message import Request, Response, check_message, parse_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal

    from cdr.facts import Admit, Alive, Answer, Confirmed, Place, Record
    from sipproxy.engine.calls import Calls
    from sipproxy.engine.settings import TrunkRoute
    from sipproxy.engine.state import Desk

__all__ = ["Ended", "Resumed", "Unfinished", "recover", "say_bye_again", "slots_of"]

Unfinished = tuple["Admit", "Answer | None", "Alive | None"]
Ended = tuple["Admit", "Answer", "Alive | None", "Record"]

ASK_MARGIN_S = 1.0  # after T2 of RFC 3261 §17.1.2.1: a BYE that was sent meanwhile has been repeated by then, and tells more
LAST_WORDS_S = 8.0  # before the last sign of the node: five BYEs within it (§17.1.2.1), of which one arrived
ASKED_PER_S = 500  # dialogs whose parties are asked in one second


@dataclass(slots=True)
class Resumed:
    """That and when a call was taken up again, and what follows for the honesty of its end.

    `measured` is whether the monotonic clock ran on since the set-up: not over a reboot, after which the wall clock has to do.
    `node_seen` is the last instant at which a node is known to have lived that watched over the call without a break since it
    was heard: the one that died, or an earlier one where that one had not heard of the call yet. `bound_at` is when this one
    bound its sockets, in which messages wait until it has started.
    """

    at: Now
    measured: bool
    node_seen: Now
    bound_at: Now
    left_at: Now | None = None

    def sent(self, now: Now, *, repeated_s: float) -> Now:
        """The earliest time at which a request can have been sent first that comes now: it may be the repetition of one that
        nobody was there to take, and may have waited in the socket."""
        return now if now.mono >= self.at.mono + repeated_s else self._earliest(repeated_s)

    def _earliest(self, repeated_s: float) -> Now:
        """When a request can have been sent first whose last repetition came as soon as somebody listened."""
        return Now(self.bound_at.mono - repeated_s, self.bound_at.utc_ms - round(1000 * repeated_s))

    def leaving(self, proof: Now, others: Now, now: Now, *, repeated_s: float) -> None:
        """A party hangs up. `proof` is its own last proof of life and `others` the other party's; `repeated_s` is for how long
        a BYE is repeated.

        When it was not heard since the restart, its BYE may be the repetition of one that nobody was there to take: it was
        there at least until the first one can have been sent. The other one was there for as long as the node was, which would
        have been told; not heard since, it may have hung up too, and have given up repeating that.
        """
        if min(proof, others).mono >= self.at.mono or now.mono >= self.at.mono + repeated_s:
            return
        self.left_at = min(max(proof, self._earliest(repeated_s)), max(others, self.node_seen))

    def end(self, now: Now, proof: Now, *, by_us: bool) -> tuple[Now, bool]:
        """When the call ended that a party, or we, end now, and whether that is certain."""
        if self.left_at is not None:
            return self.left_at, False
        if by_us and proof.mono < self.at.mono:
            return proof, False  # nobody was heard since the restart: the call may have been over before it
        return now, self.measured


class Outcome(NamedTuple):
    """How many calls live again, and how many ended with the node."""

    resumed: int
    cut: int


def recover(desk: Desk, calls: Calls, unfinished: Sequence[Unfinished], ended: Sequence[Ended], bound_at: Now) -> Outcome:
    """Take up what can be taken up, end the rest, and know what has `ended` last. To be called once, before the first message
    since `bound_at`."""
    found = []
    node_seen = max((_proof(desk, *facts)[1] for facts in unfinished), default=desk.now)  # in the life that ended, or before it
    for admit, answer, alive in unfinished:
        call = _call(desk, calls, (admit, answer, alive), node_seen, bound_at)
        if call is None:
            _cut(desk, calls, admit, answer, alive)
        else:
            found.append(call)
    _join(found, calls)
    live = [call for call in found if call.is_answered]
    for number, call in enumerate(live):
        _start(call, number)
    _remember(desk, calls, ended)
    return Outcome(len(live), len(unfinished) - len(live))


def _remember(desk: Desk, calls: Calls, ended: Sequence[Ended]) -> None:
    """Know the calls again that ended last before the node died, for as long as a BYE is repeated.

    Their records are written and their slots given back. What may be missing is that both parties know.
    """
    latest_ms = max((record.end_at_ms for *_, record in ended), default=0)
    late = [facts for facts in ended if facts[3].end_at_ms >= latest_ms - 1000 * LAST_WORDS_S]
    for number, (admit, answer, alive, record) in enumerate(late):
        call = _rebuilt(desk, calls, (admit, answer, alive))
        if call is None or call.id in calls.by_id:
            continue
        call.record, call.phase = record, Phase.ENDED
        calls.add(call)
        calls.ended(call)
        at = desk.now.mono + number / ASKED_PER_S
        deadlines.await_until(call, "bye", at + desk.settings.timers.t2 + ASK_MARGIN_S)
        deadlines.await_until(call, "forget", at + 64 * desk.settings.timers.t1)


def say_bye_again(call: Call) -> None:
    """Tell whoever did not hang up that the call is over, unless who did has repeated that meanwhile."""
    for dialog in call.dialogs:
        if dialog.sides is None or dialog.ended:
            continue
        for side in Side:
            if call.record.released_by != side.name.lower() and ending.reach(call, dialog, side).transport != LOOP:
                call.desk.count("byes_again", side.name.lower())
                ending.bye(call, dialog, side, cause=call.record.cause)


def _join(found: list[Call], calls: Calls) -> None:
    """Give forwarded calls their parts back. A part whose call ended with the node ends too: nobody else watches over it."""
    for call in found:
        call.head = calls.by_id.get(call.record.forwarded_from)
        if call.head is not None:
            call.head.parts += (call,)
            call.desk.loops = True
    for call in found:
        if call.record.forwarded_from and call.head is None:
            call.end("node_restart", released_by="unknown", cause=0, certain=False)


def _cut(desk: Desk, calls: Calls, admit: Admit, answer: Answer | None, alive: Alive | None) -> None:
    record = recovered(admit, answer, alive, calls.number())
    desk.out.append(Journal(End(record)))
    desk.count("calls_ended", record.end_reason)
    had = [slot for slot, _ in _slots(desk, admit)]
    desk.out += [ReleaseSlot(slot) for slot in dict.fromkeys((*had, *slots_of(record, desk.settings.trunks)))]


def slots_of(record: Record, routes: Iterable[TrunkRoute]) -> list[Slot]:
    """Every slot that the call of this record may still have in the store, in case nobody gave it back.

    Which of its slots a call had is in its ADMIT; the record alone does not name the routes that were tried, nor the lines
    that forwarded the call on.
    """
    found = []
    if record.verdict != "emergency":
        found += [Slot("line", line, record.id) for line in (record.line, record.callee_line) if line]
    for route in routes:
        if route.calls:
            found += [Slot("trunk", route.name, record.id), Slot("trunk", route.name, f"{record.id}:in")]
    return found


def _slots(desk: Desk, admit: Admit) -> list[tuple[Slot, Holder]]:
    """The line slots that the call had, with their holders."""
    record = admit.record
    taken = admit.slots or tuple(LineSlot(line) for line in admit.lines)
    return [
        (
            Slot("line", slot.line, record.id),
            Holder(desk.settings.node, record.setup_at_ms, slot.account, record.direction),
        )
        for slot in taken
    ]


def _call(desk: Desk, calls: Calls, facts: Unfinished, node_seen: Now, bound_at: Now) -> Call | None:
    """The call as it was, in the table of calls; None when its facts do not make one."""
    admit, answer, alive = facts
    call = _rebuilt(desk, calls, facts)
    if call is None or answer is None:
        return None
    started, _, measured = _proof(desk, admit, answer, alive)
    if alive is not None and alive.watched_ms is not None:
        node_seen = Now(started.mono + alive.watched_ms / 1000, started.utc_ms + alive.watched_ms)
    call.resumed = Resumed(desk.now, measured, node_seen, bound_at)
    calls.add(call)
    carrier.arrived(call)
    if answer.trunk:
        desk.channels.occupy(call, trunk_slot(call, answer.trunk))
    for slot, holder in _slots(desk, admit):
        desk.channels.hold(call, slot, holder)
    return call


def _rebuilt(desk: Desk, calls: Calls, facts: Unfinished) -> Call | None:
    """The answered call with its dialogs, in no table and without slots; None when its facts do not make one."""
    admit, answer, alive = facts
    if answer is None or answer.source is None or not answer.dialogs:
        return None
    flow = _flow(desk, answer.source)
    if not isinstance(flow, Flow):
        return None
    try:
        dialogs = [_dialog(desk, admit.record.id, confirmed, alive) for confirmed in answer.dialogs]
        request = _received(desk, admit.record.id, answer.dialogs[0], admit.record.dialled)
    except (ParseError, ValueError):
        desk.note("error", "call_not_resumed", call=admit.record.id)
        return None
    if any(dialog is None for dialog in dialogs):
        return None
    started, proof, _ = _proof(desk, admit, answer, alive)
    server = desk.transactions.accepted_server(request, desk.reply_target(request, flow))
    from_customer = admit.record.direction != "incoming" and not admit.record.forwarded_from
    call = Call(desk, admit.record.id, server, flow, from_customer, admit.record, started.mono, calls)
    server.user = call
    call.faces = KnownFaces({fact.kind: _face(desk, admit.record.id, fact) for fact in answer.dialogs})
    call.phase, call.ringing_at_ms = Phase.ANSWERED, answer.ringing_at_ms
    keep.written(call, answer)
    call.last_seen, call.proof = proof, proof
    call.context = ResponseContext([])
    for dialog in dialogs:
        assert dialog is not None
        call.dialogs += (dialog,)
    return call


def _start(call: Call, number: int) -> None:
    """Let the call's bounds run, and its transactions where messages of its set-up can still arrive (RFC 6026 §7)."""
    desk, answer = call.desk, call.answer
    assert answer is not None
    settings, now = desk.settings, desk.now
    answered_at = call.started + answer.after_ms / 1000
    late_s = number / ASKED_PER_S
    if call.head is None:  # whose bounds are those of its parts too
        if not call.is_emergency:
            call.maximum_at = answered_at + settings.maximum_s
        # Whoever called for help may still speak where the signalling is lost: only the usual bound is for them.
        reap_s = settings.reap_s if call.is_emergency else min(settings.recovered_reap_s, settings.reap_s)
        call.reap_at = now.mono + late_s + reap_s
    young = now.mono < answered_at + 64 * settings.timers.t1
    if young:
        desk.transactions.put_server(call.server, now.mono)
    else:
        call.server.rest()
        ending.rest(call)
    ask_after_s = settings.timers.t2 + ASK_MARGIN_S + late_s
    for dialog in call.dialogs:
        if young and dialog.kept is not None:
            _expect_2xx(call, dialog)
        _watch(call, dialog, ask_after_s)
    call.await_bound()
    assert call.proof is not None
    desk.out.append(
        Journal(keep.proof_of_life(call, call.proof))
    )  # for the next node, should this one die before it hears of it


def _expect_2xx(call: Call, dialog: Dialog) -> None:
    """A callee that has not got its ACK repeats its 2xx, which the caller then acknowledges."""
    assert isinstance(dialog.kept, tuple)
    sent = parse_message(dialog.kept[0])
    assert isinstance(sent, Request)
    assert sent.via.branch is not None
    key = client_key(sent.via.branch, b"INVITE")
    if key not in call.context.branches:
        call.context.add(key, dialog.target)
        call.context.answered(key, 200)
        call.desk.transactions.accepted_client(sent, sent.via.branch, dialog.to, call, call.desk.now.mono)


def _watch(call: Call, dialog: Dialog, ask_after_s: float) -> None:
    """Ask both parties once, also where that is otherwise off; the session interval counts again from its next refresh on."""
    if dialog.ended:
        return
    settings, now = call.desk.settings, call.desk.now
    assert call.proof is not None
    asks = call.head is None  # a forwarded call asks for its parts
    watch = liveness.Watch.start(now, probe_s=ask_after_s if asks else 0, longest_s=settings.session_expires_s if asks else 0)
    watch.probe_s = settings.probe_s if asks else 0
    watch.caller = watch.callee = call.proof
    dialog.watch = watch


def _proof(desk: Desk, admit: Admit, answer: Answer | None, alive: Alive | None) -> tuple[Now, Now, bool]:
    """The call's set-up on our clock, its last proof of life, and whether the monotonic clock ran on since.

    Within one boot of the machine it has. After another the wall clock tells how long the node was away: it may have been set
    meanwhile, so that no duration over the gap is certain.
    """
    now = desk.now
    proofs = [(fact.after_ms, fact.at_ms) for fact in (answer, alive) if fact is not None]
    after_ms, at_ms = max(proofs, default=(0, admit.record.setup_at_ms))
    boot = desk.settings.boot
    measured = bool(boot) and boot == admit.boot and admit.mono_ms + after_ms <= now.mono * 1000
    begun = admit.mono_ms / 1000 if measured else now.mono - (after_ms + max(0, now.utc_ms - at_ms)) / 1000
    return Now(begun, admit.record.setup_at_ms), Now(begun + after_ms / 1000, at_ms), measured


def _dialog(desk: Desk, call: str, fact: Confirmed, alive: Alive | None) -> Dialog | None:
    """The dialog; None when it leads to a listener that is no more. Raises ParseError, and ValueError where it cannot be read
    who the caller is."""
    sent, response = parse_message(fact.invite), parse_message(fact.response)
    to = _flow(desk, fact.to)
    if not isinstance(sent, Request) or not isinstance(response, Response) or to is None:
        return None
    check_message(sent)
    mask = _mask(desk, call, fact)
    caller, callee = from_invite_2xx(sent, response, own_routes=own_routes(desk, sent, call))
    heard = (alive.caller_cseq, alive.callee_cseq) if alive is not None else (0, 0)
    own_from, contact = (mask.own_from, mask.target) if mask is not None else (fact.own_from, fact.caller.target)
    if own_from:
        caller = replace(caller, remote=own_from)
    sides = (
        replace(caller, remote_target=contact, cseq=max(fact.caller.cseq, heard[0])),
        replace(callee, remote_target=fact.callee.target, cseq=max(fact.callee.cseq, heard[1])),
    )
    kind = cast("Literal['trunk', 'psap', 'binding', 'forward']", fact.kind)
    target = Target(sent.uri, to, kind, fact.name)
    kept = (fact.invite, fact.response)
    dialog = Dialog(response.to.tag or b"", target, to, ended=fact.ended, caller=sides[0], callee=sides[1], kept=kept)
    dialog.shift = Shift(fact.shift) if fact.shift else UNSHIFTED
    return dialog


def _mask(desk: Desk, call: str, fact: Confirmed) -> Mask | None:
    """Who the caller is, where that was hidden from the callee. Raises ValueError when it was sealed with another secret."""
    if not fact.mask:
        return None
    mask = desk.tokens.open(Mask, fact.mask, call.encode())
    if mask is None:
        raise ValueError("sealed with another secret")
    return mask


def _face(desk: Desk, call: str, fact: Confirmed) -> Face:
    """How the caller looked to the callee. Raises ValueError as `_mask`."""
    mask = _mask(desk, call, fact)
    if mask is not None:
        return Face(ANONYMOUS, hidden=True, secrets=mask.secrets, veiled=mask.veiled)
    if not fact.own_from:
        return PLAIN
    shown = parse_message(fact.invite).from_
    return Face(shown.raw.rpartition(b";tag=")[0] if shown.tag is not None else shown.raw)


def _received(desk: Desk, call: str, fact: Confirmed, dialled: str) -> Request:
    """The INVITE as it came, as far as a dialog and its transaction need it. Raises ParseError and ValueError."""
    sent = parse_message(fact.invite)
    assert isinstance(sent, Request)
    editor = Editor(sent)
    editor.pop(b"via")
    for _ in range(own_routes(desk, sent, call)):
        editor.pop(b"record-route")
    editor.request_uri(dialled.encode())
    number = sent.cseq.number
    own = next((first for first, ahead in fact.shift if first + ahead == number), number)
    editor.set(b"CSeq", b"%d INVITE" % own)
    mask = _mask(desk, call, fact)
    own_from = mask.own_from if mask is not None else fact.own_from
    if own_from:
        editor.set(b"From", own_from)
    for value in reversed(mask.vias if mask is not None else ()):
        editor.push(b"Via", value)
    request = parse_message(editor.to_bytes())
    check_message(request)
    assert isinstance(request, Request)
    return request


def _flow(desk: Desk, place: Place) -> Flow | Hop | None:
    """The place with today's listeners; None when none speaks its transport."""
    if place.listener < 0:
        known = place.transport, place.domain or place.host
        routes = (trunk.hop.listener for trunk in desk.settings.trunks if trunk.hop[:2] == known)
        return Hop(place.transport, place.host, place.port, next(routes, -1), place.domain)
    listeners = desk.settings.listeners
    if place.transport == LOOP:
        return Flow(LOOP, min(place.listener, len(listeners) - 1), place.host, 0)
    same = place.listener < len(listeners) and listeners[place.listener].transport == place.transport
    listener = listeners[place.listener] if same else desk.settings.listener_for(Hop(place.transport, place.host))
    return Flow(place.transport, listener.index, place.host, place.port) if listener is not None else None
