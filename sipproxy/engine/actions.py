"""What the engine asks its shell to do. Actions are performed in the order given; the engine never waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Hashable

    from cdr.facts import Fact
    from sipproxy.engine.location import Binding
    from sipproxy.sip.flow import Flow, Hop

__all__ = ["Action", "Journal", "Note", "Now", "ReleaseSlot", "RemoveBinding", "SaveBinding", "SendTo", "TakeSlot"]


class Now(NamedTuple):
    """The instant an event is handled at: monotonic seconds for deadlines and durations, UTC milliseconds for stamps."""

    mono: float
    utc_ms: int


class SendTo(NamedTuple):
    """Send `data`. A failure is reported by `Engine.transport_failed(key)` when `key` is not None."""

    target: Flow | Hop
    data: bytes
    key: Hashable | None = None


class TakeSlot(NamedTuple):
    """Take a channel of `line`; the answer comes once, by `Engine.slot_result`."""

    line: str
    call: str
    limit: int


class ReleaseSlot(NamedTuple):
    """Give a channel back. Idempotent."""

    line: str
    call: str


class Journal(NamedTuple):
    """Append the fact to the journal before any later action of the same list is performed."""

    fact: Fact


class SaveBinding(NamedTuple):
    user: str
    binding: Binding


class RemoveBinding(NamedTuple):
    user: str
    key: str


class Note(NamedTuple):
    """An event for the log: `level` is debug, info, warning or error."""

    level: str
    event: str
    fields: dict[str, object]


Action = SendTo | TakeSlot | ReleaseSlot | Journal | SaveBinding | RemoveBinding | Note
