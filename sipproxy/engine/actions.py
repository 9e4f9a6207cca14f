"""What the engine asks its shell to do. Actions are performed in the order given; the engine never waits for them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from cdr.facts import Fact
    from sipproxy.engine.structs import Binding, MaliciousCall
    from sipproxy.sip.flow import Flow, Hop

__all__ = [
    "Action",
    "DropSource",
    "HoldSlot",
    "Holder",
    "Journal",
    "KeepTrace",
    "Note",
    "Now",
    "ReleaseSlot",
    "RemoveBinding",
    "SaveBinding",
    "SendTo",
    "Slot",
    "SpareSource",
    "TakeSlot",
    "new_holder",
    "new_journal",
    "new_note",
    "new_release",
    "new_send",
    "new_slot",
    "new_take",
]


class Now(NamedTuple):
    """The instant an event is handled at: monotonic seconds for deadlines and durations, UTC milliseconds for stamps."""

    mono: float
    utc_ms: int


class SendTo(NamedTuple):
    """Send `data`. A failure is reported by `Engine.transport_failed(key)` when `key` is not None.

    With `connect_s` a connection that is not open after so many seconds is a failure: the data then does not leave any more.
    """

    target: Flow | Hop
    data: bytes
    key: Hashable | None = None
    connect_s: float = 0.0


class Slot(NamedTuple):
    """One slot's identity: whose it is, a line or a trunk route with a limit, and which one. `member` is the call's id; on the
    route that the call came by ":in" follows."""

    kind: Literal["line", "trunk"]
    owner: str
    member: str

    @property
    def call(self) -> str:
        """The id of the call that has it."""
        return self.member.partition(":")[0]


class Holder(NamedTuple):
    """What the store keeps beside a slot, for limits of accounts and for operators. `since_ms` is UTC."""

    node: str
    since_ms: int
    account: str = ""  # of the line; "" on trunk routes
    direction: str = ""  # of the call, as in its record


class TakeSlot(NamedTuple):
    """Take a slot if its owner, and the holder's account where it has a limit of its own, has one left.

    The answer comes once, after `wait_s` at the latest, by `Engine.slot_result`.
    """

    slot: Slot
    holder: Holder
    limit: int
    account_limit: int | None
    wait_s: float


class HoldSlot(NamedTuple):
    """Have the store count a slot that is in use whatever the limit says. No answer comes."""

    slot: Slot
    holder: Holder


class ReleaseSlot(NamedTuple):
    """Give a slot back. Idempotent."""

    slot: Slot


class Journal(NamedTuple):
    """Append the fact to the journal before any later action of the same list is performed."""

    fact: Fact


class SaveBinding(NamedTuple):
    user: str
    binding: Binding


class RemoveBinding(NamedTuple):
    """Remove what was registered under the key until `at_ms` (UTC), wherever it was."""

    user: str
    key: str
    at_ms: int


class KeepTrace(NamedTuple):
    """Keep the record of a malicious call, apart from CDRs and logs."""

    record: MaliciousCall


class DropSource(NamedTuple):
    """Have the kernel drop what this source, an IPv4 address or an IPv6 /64, sends to our ports, for so many seconds."""

    source: str
    for_s: int


class SpareSource(NamedTuple):
    """Have the kernel let a dropped source through again. Idempotent."""

    source: str


class EndSilent(NamedTuple):
    """End this connection when nothing comes by it for so many seconds, from now on; 0: no more."""

    flow: Flow
    silent_s: float


class Note(NamedTuple):
    """An event for the log: `level` is debug, info, warning or error."""

    level: str
    event: str
    fields: dict[str, object]


Action = (
    SendTo
    | TakeSlot
    | HoldSlot
    | ReleaseSlot
    | Journal
    | SaveBinding
    | RemoveBinding
    | KeepTrace
    | DropSource
    | SpareSource
    | EndSilent
    | Note
)

# Of each of these a call makes one or several, from all of its fields: to call the class itself takes four times as long.
new_send: Callable[[tuple[Flow | Hop, bytes, Hashable | None, float]], SendTo] = partial(tuple.__new__, SendTo)
new_slot: Callable[[tuple[Literal["line", "trunk"], str, str]], Slot] = partial(tuple.__new__, Slot)
new_holder: Callable[[tuple[str, int, str, str]], Holder] = partial(tuple.__new__, Holder)
new_take: Callable[[tuple[Slot, Holder, int, int | None, float]], TakeSlot] = partial(tuple.__new__, TakeSlot)
new_release: Callable[[tuple[Slot]], ReleaseSlot] = partial(tuple.__new__, ReleaseSlot)
new_journal: Callable[[tuple[Fact]], Journal] = partial(tuple.__new__, Journal)
new_note: Callable[[tuple[str, str, dict[str, object]]], Note] = partial(tuple.__new__, Note)
