"""What is recorded of a call: the facts that the journal keeps and the record that billing receives.

Pure data. Stamps are UTC milliseconds since the epoch and end in `_at_ms`; durations are integer milliseconds measured on a
monotonic clock. A fact is appended and never changed; a record with a higher `schema` may have fields that this version
does not know, which `cdr.codec` carries through.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["SCHEMA", "Admit", "Alive", "Answer", "End", "EndReason", "Fact", "Record", "ReleasedBy"]

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
    "node_restart",  # the node died while the call was live; its end was not observed
    "error",  # our own fault
]
ReleasedBy = Literal["caller", "callee", "proxy", "unknown"]


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One call detail record. Texts are what the peer sent, decoded as UTF-8 with replacement."""

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
    trunk: str = ""  # route that the call came from or was answered on
    psap: str = ""  # PSAP route used

    calling: str = ""  # network-asserted number, +E.164
    presented: str = ""  # user-provided number (From or P-Preferred-Identity) as received
    privacy: str = ""  # Privacy header as received, "" for none
    dialled: str = ""  # Request-URI as received
    canonical: str = ""  # +E.164, service:NNN, carrier:010xy or "-"
    destination_class: str = ""
    tariff_prefix: str = ""
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
    media: list[str] = []  # "audio", "video", "image" (T.38), "text" in order of appearance

    # What a newer schema wrote and this one does not know, by field name. `cdr.codec` writes it back as fields of the map.
    unknown: dict[str, object] = {}


class Admit(msgspec.Struct, tag="admit", frozen=True):
    """The call was let in and its INVITE is about to leave. `record` is the record as far as it is known."""

    record: Record


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """A 2xx is about to go upstream."""

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


class Alive(msgspec.Struct, tag="alive", frozen=True):
    """Proof of life: a message of an answered call arrived. `after_ms` is since set-up, monotonic."""

    id: str
    at_ms: int
    after_ms: int


class End(msgspec.Struct, tag="end", frozen=True):
    """The call ended: the whole final record, with its sequence number. Attempts that were refused have only this fact."""

    record: Record


Fact = Admit | Answer | Alive | End
