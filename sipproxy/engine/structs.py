"""What the engine has stored by others, or carried: in the store, in tokens that stand in messages, in the journal.

msgspec makes these classes, which no compiler of Python knows how to: this module is plain Python also where the rest of the
engine is compiled.
"""

from __future__ import annotations

import msgspec

from sipproxy.sip.flow import Flow, Hop  # noqa: TC001  msgspec reads the annotations

__all__ = ["Binding", "CallMark", "MaliciousCall", "Mask", "Reach", "Way"]


class Binding(msgspec.Struct, frozen=True, gc=False):
    """One contact of an account.

    `contact` is the URI's bytes as Latin-1, which loses none of them; `q` is in thousandths; `key` identifies the binding
    within its account. `instance` is the device as its parameter says it, `reg_id` which of the device's flows this is, 0 for a
    device that has but one (RFC 5626 §4.2).
    `node` is whose flow it is; `token` is what that node knows the flow by when another one brings a call for it: it makes
    it for the store and keeps none in memory (`edge.with_token`). `at_ms` is when the REGISTER came.

    The garbage collector does not look at bindings: they hold nothing that could refer back to them.
    """

    key: str
    contact: str
    flow: Flow
    path: tuple[str, ...]
    call_id: str
    cseq: int
    expires_at_ms: int
    user_agent: str = ""
    q: int = 1000
    instance: str = ""
    reg_id: int = 0
    node: str = ""
    token: str = ""
    at_ms: int = 0


class Reach(msgspec.Struct, frozen=True, array_like=True):
    """Token of a binding: the flow, and until when it may be used for new calls (UTC seconds)."""

    user: str
    flow: Flow
    until_s: int


class Way(msgspec.Struct, frozen=True, array_like=True):
    """Token of a dialog: the customer's side, and the node on the other: the address it sends from, and where it is reached."""

    user: str
    flow: Flow
    peer: str
    hop: Hop


class CallMark(msgspec.Struct, frozen=True, array_like=True):
    """Content of the token in Record-Route: our call id."""

    call: str


class Mask(msgspec.Struct, frozen=True, array_like=True):
    """Who a hidden caller is, as the process needs it that goes on with his call: what he said of himself in From, Contact and,
    where these were taken out too, Via; and the digits that no line to the callee may hold."""

    own_from: bytes
    target: bytes
    secrets: tuple[bytes, ...]
    veiled: bool
    vias: tuple[bytes, ...] = ()


class MaliciousCall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A call or attempt to a line with an order to trace malicious calls (TDDDG § 14): the one place that keeps a hidden
    caller's number. Texts are what the peer sent; `network` is the number that the trunk, or we, vouch for."""

    call: str  # our call id, as in the CDR
    node: str
    line: str  # the called one
    reference: str  # of the order
    at_ms: int  # UTC
    called: str
    network: str
    given: str  # From
    asserted: list[str] = []  # P-Asserted-Identity, whole lines
    privacy: str = ""
    trunk: str = ""
    caller_line: str = ""  # when the caller is a customer of ours
    caller_account: str = ""
    source: str = ""
    call_id: str = ""
    verdict: str = ""
    rule: str = ""
