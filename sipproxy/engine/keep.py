"""What the journal keeps of a call, so that another process can take it up again (design: invariant 3, and §5 on restarts).

Pure. Bodies and header lines that no dialog is made of are left out. `recover` is the other half.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from cdr.facts import Admit, Alive, Answer, Confirmed, LineSlot, PartySide, Place
from sipproxy.engine.actions import new_journal
from sipproxy.engine.reduced import unpacked
from sipproxy.engine.structs import Mask
from sipproxy.sip.build import via_values
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.sdp import media_kinds
from sipproxy.sip.text import text

if TYPE_CHECKING:
    from sipproxy.engine.actions import Now
    from sipproxy.engine.call import Call, Dialog
    from sipproxy.engine.forward import Target
    from sipproxy.engine.privacy import Face
    from sipproxy.sip.message import Response

__all__ = ["admission", "admit", "answered", "proof_of_life", "refreshed", "written"]

MAX_MASK = 700  # bytes that are sealed: the longest token that is opened again holds some more


def admission(call: Call) -> Admit:
    """The ADMIT fact. Of one that is appended again, because the call took a slot later, the last one counts."""
    holder = call.desk.channels.holder
    held = tuple([LineSlot(slot.owner, holder(slot).account) for slot in call.slots if slot.kind == "line"])
    return Admit(call.record, call.desk.settings.boot, round(call.started * 1000), slots=held)


def admit(call: Call) -> None:
    """Journal the ADMIT. Only then a 100 may leave, after which the caller repeats his INVITE no more (RFC 3261 §17.1.1.2): a
    node that died before it leaves a call that the next one gets again, and one that died after it leaves a record."""
    call.desk.out.append(new_journal((admission(call),)))


def answered(call: Call, target: Target, response: Response) -> None:
    """Journal the ANSWER: the first 2xx came now, from this target."""
    now = call.desk.now
    answer = Answer(
        id=call.id,
        at_ms=now.utc_ms,
        after_ms=call.after_ms(now),
        ringing_at_ms=call.ringing_at_ms,
        status=response.status,
        to_tag=text(response.to.tag),
        trunk=target.name if target.kind == "trunk" else "",
        psap=target.name if target.kind == "psap" else "",
        callee_account=target.name if target.kind == "binding" else "",
        media=media_kinds(response.body, response.first(b"content-type") or b""),
        source=_place(call.flow),
        dialogs=_dialogs(call),
    )
    written(call, answer)
    call.desk.out.append(new_journal((answer,)))


def written(call: Call, answer: Answer) -> None:
    """This is what the journal has of the answer. The call keeps what its record needs, and a mark of the rest: most calls end
    without another word about their dialogs."""
    call.answer = replace(answer, source=None, dialogs=())
    call.answer_mark = _mark(answer)


def refreshed(call: Call) -> None:
    """Journal the ANSWER again when a dialog came or ended, or a party has a new target or flow; CSeq numbers go with proofs of
    life."""
    if call.answer is None or not call.is_answered:
        return
    answer = replace(call.answer, dialogs=_dialogs(call), source=_place(call.flow))
    if _mark(answer) != call.answer_mark:
        written(call, answer)
        call.desk.out.append(new_journal((answer,)))


def proof_of_life(call: Call, proof: Now) -> Alive:
    """The ALIVE fact. Of a call with several dialogs the CSeq numbers are those of the first that has not ended.

    Of a call that was not heard since the node died, it says how long that node watched over it: the life of the next one,
    which may be shorter than the time between two repetitions of a BYE, tells nothing about it.
    """
    sides = next((d.sides for d in call.dialogs if d.sides is not None and not d.ended), None)
    caller, callee = (sides[0].cseq, sides[1].cseq) if sides is not None else (0, 0)
    resumed = call.resumed
    unheard = resumed is not None and proof.mono < resumed.at.mono
    watched_ms = call.after_ms(resumed.node_seen) if resumed is not None and unheard else None
    return Alive(call.id, proof.utc_ms, call.after_ms(proof), caller, callee, watched_ms)


def _mark(answer: Answer) -> int:
    """The same for answers that another process would make the same of: 60 bits, which take a third less memory than 64."""
    return hash((answer.source, *map(_lasting, answer.dialogs))) >> 4


def _lasting(dialog: Confirmed) -> tuple[object, ...]:
    return dialog.response, dialog.to, dialog.caller.target, dialog.mask, dialog.callee.target, dialog.ended, dialog.shift


def _place(to: Flow | Hop) -> Place:
    """A flow without its connection, which does not outlive the process, or a hop."""
    if isinstance(to, Flow):
        return Place(to.transport, to.host, to.port, to.listener)
    return Place(to.transport, to.host, to.port, domain=to.domain)


def _dialogs(call: Call) -> tuple[Confirmed, ...]:
    return tuple([found for dialog in call.dialogs if (found := _confirmed(call, dialog)) is not None])


def _confirmed(call: Call, dialog: Dialog) -> Confirmed | None:
    if dialog.kept is None or dialog.sides is None:
        return None
    if isinstance(dialog.kept, bytes):
        dialog.kept = unpacked(dialog.kept, call.server.kept)
    caller, callee = dialog.sides
    invite, response = dialog.kept
    face, own_from, target, mask = call.face(dialog.target), b"", caller.remote_target, b""
    if face.address:
        own_from = call.request.first(b"from") or b""
    if face.hidden:
        mask = _sealed(call, face, own_from, target)
        if not mask:
            return None  # without it a restart would show who he is
        own_from = target = b""
    return Confirmed(
        invite=invite,
        response=response,
        kind=dialog.target.kind,
        name=dialog.target.name,
        to=_place(dialog.to),
        caller=PartySide(target, caller.cseq),
        callee=PartySide(callee.remote_target, callee.cseq),
        ended=dialog.ended,
        shift=dialog.shift.steps,
        own_from=own_from,
        mask=mask,
    )


def _sealed(call: Call, face: Face, own_from: bytes, target: bytes) -> bytes:
    """The mask for the journal, which holds no number that is hidden; b"" for one that is too long to be a caller's."""
    vias = tuple(via_values(call.request)) if face.veiled else ()
    if sum(map(len, (own_from, target, *face.secrets, *vias))) > MAX_MASK:
        return b""
    return call.desk.tokens.seal(Mask(own_from, target, face.secrets, face.veiled, vias), call.id.encode())
