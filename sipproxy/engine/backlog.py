"""Messages that were read and wait to be looked at: the most urgent first, so that what is begun is finished.

Pure. A call that goes on is worth more than one that begins, since its messages are repeated, and all that was done for it is
lost, when they wait behind thousands that will be refused (RFC 6357 §3, RFC 5390 §4: goodput). Within a rank messages keep
their order. One of STEP goes to whoever has waited longest, so that no rank waits forever. Copies of an INVITE that still waits
are dropped, and a CANCEL stays behind the INVITE that it is for.

While new calls stand in a queue that does not get shorter (`Shedder.has_queue`) the latest of them is looked at first: its
caller still waits, and its answer comes in time, which those of the others would not. The turns of who has waited longest then
bring refusals, so that no more than one of STEP messages is one. ROOM of them wait, for STALE_S at most, and what comes besides
is dropped once it is known what it is: refusing costs half as much as a message of a call, and with ten times as many calls as
can be carried there would be time for nothing else (RFC 5390 §4, RFC 6357 §3). Who sent it repeats it, as if the socket had
been full. Leaves out: what is refused (`shed`), and when to read ahead.
"""

from __future__ import annotations

from collections import Counter, deque
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.engine.kinds import (
    INVITE,
    PART,
    REGISTER,
    Kind,
    copy_of,
    has_authorization,
    has_credentials,
    is_new_call,
    kind_of,
    may_be_emergency,
)

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.engine.shed import Shedder
    from sipproxy.sip.flow import Flow

__all__ = ["HELD", "HELD_BYTES", "ROOM", "STALE_S", "Backlog", "Rank", "Waiting"]

HELD = 4096  # messages: a second of ten times what a node can carry, and then those of the least urgent rank go
HELD_BYTES = 16 * 1024 * 1024
STEP = 4
ROOM = 256  # new calls in a queue that stands: those refused out of it waited for as long as STEP * ROOM messages take, 0.3 s
STALE_S = 0.5  # T1 (RFC 3261 §17.1.1.2): a copy of what waited for longer in that queue has come since


class Rank(IntEnum):
    """How urgent a message is. A stranger's is last, whatever it says, and so are parts of calls of a customer who floods; but
    not calls for help, and what names a live call."""

    HELP = 0
    PART = 1  # of a call or a transaction
    BEGUN = 2  # INVITE with credentials: its caller was challenged; of another node: it has admitted the call
    REGISTER = 3  # that answers a challenge
    NEW = 4  # other INVITEs, a trunk's too
    OTHER = 5
    STRANGER = 6


_RANKS = tuple(Rank)
NEW, OTHER = Rank.NEW, Rank.OTHER  # to name one by its class costs more
_LOWEST_FIRST = tuple(rank for rank in reversed(_RANKS) if rank > Rank.HELP)


class Waiting(NamedTuple):
    """A message, its way, the monotonic second in which it arrived, and what it is."""

    data: bytes
    flow: Flow
    at: float
    kind: Kind
    size: int
    copy: Hashable  # what it is known by while it waits, None but for an INVITE


class Backlog:
    """See the module. `counts` are messages that were dropped here, by reason."""

    def __init__(self, shedder: Shedder) -> None:
        self._shedder = shedder
        self._lines: tuple[deque[Waiting], ...] = tuple(deque() for _ in _RANKS)
        self._new = self._lines[Rank.NEW]
        self._invites: dict[Hashable, Rank] = {}  # that wait, by what a copy or CANCEL has in common with them
        self._turn = 0
        self.waiting = 0
        self.bytes = 0
        self.counts: Counter[str] = Counter()

    def waiting_of(self, rank: Rank) -> int:
        """How many of this rank wait."""
        return len(self._lines[rank])

    @property
    def dropped(self) -> int:
        """How many found no room here so far."""
        return self.counts["crowded"] + self.counts["unread"]

    @property
    def room(self) -> int:
        """How many more can be read: one at a time where something has to go for it, none where only calls for help wait."""
        if self.waiting < HELD and self.bytes < HELD_BYTES:
            return HELD - self.waiting
        return int(len(self._lines[Rank.HELP]) < self.waiting)

    def make_room(self, now: float) -> None:
        """Drop the new calls for which a queue that stays has no room: those that came before it was known that it stays, and
        those that have been repeated since."""
        line = self._new
        while self._shedder.has_queue and line and (now - line[0].at > STALE_S or len(line) > ROOM):
            self._out(line)
            self.counts["unread"] += 1

    def passes_over(self, data: bytes) -> bool:
        """Whether this is a new call, whosever it is, that finds no room in a queue that stays: it is counted, and not to be
        `put`. To be asked before anything is made of a datagram. One behind line ends (RFC 3261 §7.5) is put, and another one
        goes."""
        if not self._shedder.has_queue or len(self._new) < ROOM or not is_new_call(data):
            return False
        self.counts["unread"] += 1
        return True

    def put(self, data: bytes, flow: Flow, at: float) -> None:
        """A message that arrived in this monotonic second."""
        text = data.lstrip(b"\r\n") if data[:1] in (b"\r", b"\n") else data
        kind = kind_of(text)
        rank, copy = self._rank(text, flow, kind), None
        if kind is INVITE:
            copy = copy_of(text, flow)
            if copy in self._invites:
                self.counts["repeated"] += 1
                return
            self._invites[copy] = rank
        elif self._invites and kind is PART and text.startswith(b"CANCEL "):
            # RFC 3261 §9.2: before its INVITE there is nothing to cancel. New ones are not always looked at in their order.
            behind = self._invites.get(copy_of(text, flow), rank)
            rank = OTHER if behind is NEW else behind
        size = len(data)
        self._lines[rank].append(Waiting(data, flow, at, kind, size, copy))
        self.waiting += 1
        self.bytes += size
        while self.waiting > HELD or self.bytes > HELD_BYTES:
            if not self._drop():
                return

    def take(self) -> Waiting | None:
        """The next one; None when nothing waits."""
        if not self.waiting:
            return None
        self._turn = (self._turn + 1) % STEP
        if not self._turn:
            return self._out(min((line for line in self._lines if line), key=lambda line: line[0].at))
        line = next(line for line in self._lines if line)
        return self._out(line, latest=line is self._new and self._shedder.has_queue)

    def clear(self) -> None:
        """Forget all that waits."""
        while self.take() is not None:
            self.counts["closed"] += 1

    def _out(self, line: deque[Waiting], *, latest: bool = False) -> Waiting:
        one = line.pop() if latest else line.popleft()
        self.waiting -= 1
        self.bytes -= one.size
        if one.copy is not None:
            del self._invites[one.copy]
        return one

    def _drop(self) -> bool:
        """Drop what has waited longest of the least urgent rank; False where only calls for help wait. Of what is part of calls
        the latest goes, as if the socket had been full: it would be, and calls for help with it, were no more read."""
        rank = next((rank for rank in _LOWEST_FIRST if self._lines[rank]), None)
        if rank is None:
            return False
        self._out(self._lines[rank], latest=rank is Rank.PART)
        self.counts["crowded"] += 1
        return True

    def _rank(self, data: bytes, flow: Flow, kind: Kind) -> Rank:
        if kind is PART:
            if data.startswith(b"INVITE ") and may_be_emergency(data):
                return Rank.HELP
            if self._shedder.is_known(flow):
                return Rank.PART if not self._shedder.floods(data, flow) else Rank.STRANGER
            return Rank.PART if self._shedder.is_live(data) else Rank.STRANGER
        if not self._shedder.is_known(flow):
            return Rank.STRANGER
        if kind is INVITE:
            return Rank.BEGUN if has_credentials(data) or self._shedder.is_node(flow) else Rank.NEW
        if kind is REGISTER and has_authorization(data):
            return Rank.REGISTER
        return Rank.OTHER
