"""What the simulated parties themselves did and saw: the truth that call detail records are compared with.

Every event has a monotonic stamp (for durations) and a UTC one (for order against the records). Leaves out: the comparison,
which is in reconcile.py.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["CallTruth", "Event", "Ledger", "Role"]

Role = Literal["caller", "callee"]
MAX_EVENTS = 100_000  # the newest are kept; a minute of load makes about this many


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a party did or saw on the wire."""

    at: float  # monotonic seconds
    at_ms: int  # UTC
    party: str
    what: str
    call_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.at:.3f} {self.party:<12} {self.what:<10} {self.call_id} {self.text}".rstrip()


@dataclass(slots=True)
class CallTruth:
    """One call as one of its parties saw it. Times are monotonic seconds; `started_at_ms` is UTC.

    `status` is the final response of the INVITE as this party sent or got it (0: none came), `released_by` who ended an
    answered call with a BYE, or who gave up before the answer ("" while it lives).
    """

    party: str
    role: Role
    call_id: str
    dialled: str
    started_at: float
    started_at_ms: int
    challenged: int = 0
    ringing_at: float | None = None
    answered_at: float | None = None
    ended_at: float | None = None
    status: int = 0
    released_by: Literal["", "caller", "callee"] = ""
    tags: tuple[str, str] = ("", "")  # ours, theirs

    @property
    def setup_ms(self) -> float | None:
        """Milliseconds from the (last, authenticated) INVITE to the first ringing or the answer; None when neither came."""
        first = self.ringing_at if self.ringing_at is not None else self.answered_at
        return None if first is None else (first - self.started_at) * 1000

    @property
    def talk_ms(self) -> int | None:
        """Milliseconds from the answer to the end; None when it was not answered or still lives."""
        if self.answered_at is None or self.ended_at is None:
            return None
        return round((self.ended_at - self.answered_at) * 1000)


@dataclass(slots=True)
class Ledger:
    """Collects events and calls of all parties of one run."""

    events: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    calls: dict[tuple[str, str], CallTruth] = field(default_factory=dict)

    def note(self, party: str, what: str, call_id: str = "", text: str = "") -> Event:
        """Record an event that happens now."""
        event = Event(time.monotonic(), time.time_ns() // 1_000_000, party, what, call_id, text)
        self.events.append(event)
        return event

    def open(self, party: str, role: Role, call_id: str, dialled: str) -> CallTruth:
        """Record that a call begins at this party."""
        event = self.note(party, "begins", call_id, f"{role} {dialled}")
        truth = CallTruth(party, role, call_id, dialled, event.at, event.at_ms)
        self.calls[party, call_id] = truth
        return truth

    def placed(self) -> dict[str, CallTruth]:
        """The calls as their callers saw them, by Call-ID."""
        return {call_id: truth for (_, call_id), truth in self.calls.items() if truth.role == "caller"}

    def of(self, call_id: str) -> list[Event]:
        """Everything that is known of one call, in order."""
        return [event for event in self.events if event.call_id == call_id]

    def tail(self, count: int = 60) -> str:
        """The last events as text, for an error message."""
        return "\n".join(str(event) for event in list(self.events)[-count:])
