"""What is recorded of a call: the facts that the journal keeps and the record that billing receives.

Pure data. Stamps are UTC milliseconds since the epoch and end in `_at_ms`; durations are integer milliseconds measured on a
monotonic clock. A fact is appended and never changed; a record with a higher `schema` may have fields that this version
does not know, which `cdr.codec` carries through.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "SCHEMA",
    "Admit",
    "Alive",
    "Answer",
    "Confirmed",
    "End",
    "EndReason",
    "Fact",
    "LineSlot",
    "PartySide",
    "Place",
    "Record",
    "ReleasedBy",
]

SCHEMA = 1

EndReason = Literal[
    "normal",  # BYE from a party after an answer
    "cancelled",  # CANCEL before an answer
    "rejected",  # a final response other than 2xx from downstream
    "refused",  # our policy refused the attempt
    "no_answer",  # ring or set-up bound, Timer B or C
    "unreachable",  # no binding, no route, or transport failure
    "maximum",  # longest duration reached
    "session_expired",  # no proof of life within the bound
    "operator",  # ended by an operator's command
    "fraud_hold",  # its line was put on hold for fraud while it lived
    "node_restart",  # the node died while the call was live; its end was not observed
    "error",  # our own fault
]
ReleasedBy = Literal["caller", "callee", "proxy", "unknown"]


class Record(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """One call detail record. Texts are what the peer sent, decoded as UTF-8 with replacement.

    The garbage collector looks at neither records nor answers: they hold nothing that could refer back to them.
    """

    id: str  # ours; never built from Call-ID or tags
    node: str
    seq: int = 0  # gapless per node, from 1, given when the call ends; 0 while it lives
    schema: int = SCHEMA
    type: Literal["start", "interim", "final"] = "final"

    direction: Literal["outgoing", "incoming", "internal"]
    line: str = ""  # outgoing and internal: the caller's; incoming: the callee's
    account: str = ""
    profile: str = ""
    callee_line: str = ""  # internal calls only
    callee_account: str = ""
    trunk: str = ""  # route that the call came from or was answered on; of an unanswered one the last that was tried
    psap: str = ""  # PSAP route, likewise

    calling: str = ""  # network-asserted number, +E.164
    presented: str = ""  # user-provided number (From or P-Preferred-Identity) as received
    privacy: str = ""  # Privacy header as received, "" for none
    dialled: str = ""  # Request-URI as received
    canonical: str = ""  # +E.164, service:NNN, carrier:010xy or "-"
    destination_class: str = ""
    tariff_prefix: str = ""
    forwarded_from: str = ""  # of the forwarded part of a call: the id of the call that its callee's line forwarded
    forwarded_to: list[str] = []  # of a call that its callee's line forwarded: the ids of the forwarded parts, in order
    diversions: list[str] = []  # Diversion and History-Info values, and porting parameters, in order

    call_id: str = ""  # the SIP Call-ID
    from_tag: str = ""
    to_tag: str = ""
    source: str = ""  # address:port
    transport: str = ""
    user_agent: str = ""

    setup_at_ms: int = 0  # INVITE received
    ringing_at_ms: int | None = None  # first 180 or 183
    answer_at_ms: int | None = None  # first 2xx relayed
    end_at_ms: int = 0
    duration_ms: int = 0  # from set-up to the end
    billable_ms: int = 0  # from answer to the end; 0 when not answered
    duration_certain: bool = True  # False: the end was not observed, end_at_ms is the last proof of life
    last_seen_at_ms: int = 0  # last message of the call from either party

    status: int = 0  # SIP status that the caller got
    cause: int = 0  # Q.850
    released_by: ReleasedBy = "unknown"
    end_reason: EndReason = "error"

    verdict: Literal["allow", "deny", "emergency"] = "deny"
    rule: str = ""
    snapshot: int = 0
    slots_used: int | None = None  # after taking ours; None where no slot was asked for
    slots_limit: int | None = None
    over_soft: list[str] = []  # lines whose soft limit of channels this call went beyond
    media: list[str] = []  # "audio", "video", "image" (T.38), "text" in order of appearance

    # What a newer schema wrote and this one does not know, by field name. `cdr.codec` writes it back as fields of the map.
    unknown: dict[str, object] = {}


class LineSlot(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """A slot that a call holds of a line, and for which account."""

    line: str
    account: str = ""


class Admit(msgspec.Struct, tag="admit", frozen=True, omit_defaults=True):
    """The call was let in and its INVITE is about to leave. `record` is the record as far as it is known.

    `mono_ms` is the set-up on the monotonic clock, which means something within the same `boot` of the machine alone;
    `boot` is "" where that is not known. `slots` are those that the call holds; facts of an earlier version have `lines`, one
    slot of each.
    """

    record: Record
    boot: str = ""
    mono_ms: int = 0
    lines: tuple[str, ...] = ()
    slots: tuple[LineSlot, ...] = ()


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a party is reached: a flow with its listener's index, or, with `listener` -1, a next hop, which may be a name.

    `domain` is the name that the address of a next hop was found by.
    """

    transport: str
    host: str
    port: int
    listener: int = -1
    domain: str = ""


class PartySide(msgspec.Struct, frozen=True, array_like=True):
    """What changes about one party of a dialog: its remote target, and the last CSeq used towards it."""

    target: bytes
    cseq: int


class Confirmed(msgspec.Struct, frozen=True, omit_defaults=True):
    """A confirmed dialog as another process needs it to go on: the INVITE as it was sent and the 2xx as it came, both
    without their bodies and with the header lines alone that a dialog is made of; the target and its place."""

    invite: bytes
    response: bytes
    kind: str  # of the target: trunk, psap, binding
    name: str
    to: Place
    caller: PartySide
    callee: PartySide
    ended: bool = False
    shift: tuple[tuple[int, int], ...] = ()  # from which CSeq number on the callee sees one that is higher by how much
    own_from: bytes = b""  # the caller's From value as it came, where the callee was shown another
    mask: bytes = (
        b""  # of a caller hidden from the callee: who he is, sealed by the node; own_from and his target are empty then
    )


class Answer(msgspec.Struct, tag="answer", frozen=True, omit_defaults=True, gc=False):
    """A 2xx is about to go upstream. Written again, with the stamps of the first, when a dialog comes or changes.

    `source` is the caller's flow; without `dialogs`, as in journals of earlier versions, the call cannot be taken up again.
    """

    id: str
    at_ms: int
    after_ms: int  # since set-up, monotonic
    ringing_at_ms: int | None
    status: int
    to_tag: str
    trunk: str
    psap: str
    callee_account: str
    media: list[str]
    source: Place | None = None
    dialogs: tuple[Confirmed, ...] = ()


class Alive(msgspec.Struct, tag="alive", frozen=True, omit_defaults=True):
    """Proof of life: a message of an answered call arrived. `after_ms` is since set-up, monotonic.

    The CSeq numbers are the last ones used towards caller and callee, 0 where they are not known. `watched_ms`, since set-up
    too, is written where the node died after this proof: until then it was there and would have been told of an end. Whatever
    came after it is no word of this call until it is heard again, and has a fact without it.
    """

    id: str
    at_ms: int
    after_ms: int
    caller_cseq: int = 0
    callee_cseq: int = 0
    watched_ms: int | None = None


class End(msgspec.Struct, tag="end", frozen=True):
    """The call ended: the whole final record, with its sequence number. Attempts that were refused have only this fact."""

    record: Record


Fact = Admit | Answer | Alive | End
