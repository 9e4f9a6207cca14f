"""Messages of a load generator that are sent again over UDP until they are answered, or given up after 64*T1.

RFC 3261 §17.1.1.2 (INVITE), §17.1.2.2 (other requests), §13.3.1.4 and §17.2.1 (final responses to an INVITE).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtest.attempt import Attempt, Side
    from loadtest.boxes import Box
    from loadtest.clockwork import Clockwork
    from loadtest.wire import Address

__all__ = ["LIFETIME_S", "T1", "T2", "Repeat", "Repeater"]

T1, T2, LIFETIME_S = 0.5, 4.0, 32.0  # RFC 3261 §17.1.1.1


@dataclass(slots=True)
class Repeat:
    """A message that is sent again until its side takes its next step; `until` is in monotonic seconds."""

    subject: Attempt | Box
    side: Side | Box
    step: int
    data: bytes = field(repr=False)
    to: Address
    interval: float
    longest: float
    until: float


class Repeater:
    """Sends again what is not answered, and tells `gave_up` what never was. `count` are the messages that were sent again."""

    def __init__(self, clock: Clockwork, gave_up: Callable[[Repeat], None]) -> None:
        self._clock, self._gave_up = clock, gave_up
        self.count = 0

    def start(self, subject: Attempt | Box, side: Side | Box, data: bytes, to: Address, longest: float) -> None:
        """The message was just sent; the time between two repetitions doubles up to `longest` seconds."""
        now = time.monotonic()
        self._clock.at(now + T1, self._again, Repeat(subject, side, side.step, data, to, T1, longest, now + LIFETIME_S))

    def _again(self, repeat: Repeat) -> None:
        side = repeat.side
        if side.step != repeat.step:
            return
        now = time.monotonic()
        if now >= repeat.until:
            self._gave_up(repeat)
            return
        self.count += 1
        side.wire.send(repeat.data, repeat.to)
        repeat.interval = min(2 * repeat.interval, repeat.longest)
        self._clock.at(min(now + repeat.interval, repeat.until), self._again, repeat)
