"""What a call's parts say of it: its phase, and the callee's side of each of its dialogs (RFC 3261 §12). Pure values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING

from sipproxy.engine.cseq import UNSHIFTED, Shift

if TYPE_CHECKING:
    from sipproxy.engine.forward import Target
    from sipproxy.engine.liveness import Watch
    from sipproxy.sip.dialog import DialogSide
    from sipproxy.sip.flow import Flow, Hop
    from sipproxy.sip.message import Response

__all__ = ["Dialog", "Phase", "Side"]


class Phase(StrEnum):
    ADMITTING = "admitting"  # a slot is being taken
    PROCEEDING = "proceeding"  # the INVITE was forwarded
    ANSWERED = "answered"
    ENDED = "ended"


class Side(IntEnum):
    CALLER = 0
    CALLEE = 1


@dataclass(slots=True)
class Dialog:
    """The callee's side of one dialog of the call (RFC 3261 §12): early until a 2xx confirms it."""

    to_tag: bytes
    target: Target
    to: Flow | Hop  # where in-dialog requests for the callee go
    first: Response | None = None  # its first message, while it is early
    ended: bool = False
    caller: DialogSide | None = None  # both, once confirmed: what a BYE of ours needs
    callee: DialogSide | None = None
    watch: Watch | None = None  # whether both are there, once confirmed
    kept: tuple[bytes, bytes] | bytes | None = None  # INVITE and 2xx as the journal has them; packed when the call rests
    shift: Shift = UNSHIFTED  # of what the customer sends towards a trunk

    @property
    def confirmed(self) -> bool:
        return self.caller is not None

    @property
    def sides(self) -> tuple[DialogSide, DialogSide] | None:
        """Caller and callee, once confirmed."""
        caller, callee = self.caller, self.callee
        return (caller, callee) if caller is not None and callee is not None else None
