"""How many REGISTERs of customers a node takes a second, and when those come again that it does not take.

Pure. The rate follows what the node has time for: it grows while messages are dealt with at once and REGISTERs have to be
refused, and shrinks while messages wait, for the event loop or in a socket's buffer. Who is refused gets a place in a calendar
of the seconds to come, each with as many places as routers can be registered in it at the rate that was measured (RFC 3261
§20.33), so that a town after a power cut comes back as a queue that fills the node. Leaves out what else is refused (`shed`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.engine.bucket import Bucket

if TYPE_CHECKING:
    from sipproxy.engine.settings import Rates

__all__ = ["MAX_RETRY_S", "MIN_RETRY_S", "Calendar", "Pace"]

MIN_RETRY_S, MAX_RETRY_S = 5, 600  # Retry-After; the longest is well within the life of a binding
START = 0.25  # of the highest rate, before anything was measured
LEAST = 0.05  # never none, or a storm would not drain
SLOWER, FASTER = 0.85, 1.1
LATE = 0.4  # of the lateness at which the node is under load: REGISTERs give way before anything is refused for it
EARLY = 0.5  # of that; what is below leaves time for more
SMOOTH = 0.05  # weight of a sample in the measured rate: some two seconds count
EACH = 2  # REGISTERs that a router needs: one is challenged, the next is proven
CALLED = 1.15  # of the measured rate come again: refusing takes time, too, that is free when they do


class Calendar:
    """How many are to come again in each of the next `MAX_RETRY_S` seconds."""

    def __init__(self) -> None:
        self._due = [0] * (MAX_RETRY_S + 2)  # by second of the monotonic clock, modulo its length
        self._second = 0  # the current one
        self._first = 0  # no second before it has a place at the rate of the last look
        self.waiting = 0  # how many are still to come

    def turn(self, now: float) -> None:
        """Forget the seconds that have passed."""
        second = int(now)
        for past in range(max(self._second, second - len(self._due)), second):
            at = past % len(self._due)
            self.waiting -= self._due[at]
            self._due[at] = 0
        self._second = max(self._second, second)

    def look_again(self) -> None:
        """The rate may have changed: earlier seconds may have places again."""
        self._first = 0

    def place(self, now: float, per_s: float, jitter: float) -> int:
        """Seconds from now until the next free place, where each second has `per_s` of them. `jitter`, from 0 to 1, chooses
        among the seconds of a tenth of the wait. When all are taken it is one of the later half."""
        self.turn(now)
        room, last = max(1, int(per_s)), self._second + MAX_RETRY_S
        first = max(self._first, self._second + MIN_RETRY_S)
        while first <= last and self._due[first % len(self._due)] >= room:
            first += 1
        self._first = first
        if first > last:
            chosen = self._second + MAX_RETRY_S - int(jitter * MAX_RETRY_S / 2)
        else:
            chosen = min(last, first + int(jitter * (1 + (first - self._second) // 10)))
            if self._due[chosen % len(self._due)] >= room:
                chosen = first
        self._due[chosen % len(self._due)] += 1
        self.waiting += 1
        return chosen - self._second


class Pace:
    """`share` is what the node has time for, of the highest rates that are configured."""

    def __init__(self, rates: Rates) -> None:
        self._rates = rates
        self.share = START
        self.calendar = Calendar()
        self.measured = START * rates.registers_per_s  # REGISTERs taken a second while some were refused
        self._bucket = Bucket(rates.registers_burst / 2, 0.0)
        self._taken = self._refused = 0  # since the last sample
        self._sampled_at = 0.0

    def use(self, rates: Rates) -> None:
        """Take so many from now on."""
        self._rates = rates

    @property
    def per_s(self) -> float:
        """REGISTERs a second that are taken now."""
        return self.share * self._rates.registers_per_s

    @property
    def ease(self) -> float:
        """The share of what strangers may ask, and of what may come at once, that there is time for: all of it as a rule."""
        return min(1.0, self.share / START)

    def take(self, now: float, *, answers: bool = False) -> bool:
        """Whether there is time for a REGISTER. Who was challenged (`answers`) may take what will be there only later, half of
        the burst at most, so that his first try was not in vain."""
        half = max(1.0, self.ease * self._rates.registers_burst / 2)
        if not self._bucket.take(now, self.per_s, half, -half if answers else 0.0):
            return False
        self._taken += 1
        return True

    def again_after(self, now: float, jitter: float) -> int:
        """Seconds after which a REGISTER that was not taken should come again; `jitter` from 0 to 1."""
        self._refused += 1
        # What is measured within a storm may be far less than what the node can do behind it: coming in vain costs it little.
        per_s = CALLED * max(self.measured, START * self._rates.registers_per_s)
        return self.calendar.place(now, per_s / EACH, jitter)

    def observe(self, late_s: float, now: float) -> None:
        """Take a sample: for how long a message had to wait before it was looked at."""
        past_s, self._sampled_at = now - self._sampled_at, now
        pressure = late_s / (LATE * self._rates.lag_s)
        if pressure >= 1.0:
            self.share = max(LEAST, self.share * SLOWER)
        elif pressure < EARLY and (self._refused or self.share < START):
            self.share = min(1.0, self.share * FASTER)
        if self._refused and 0.0 < past_s < 1.0:
            self.measured += SMOOTH * (min(self._taken / past_s, self.per_s) - self.measured)
        self._taken = self._refused = 0
        self.calendar.turn(now)
        self.calendar.look_again()
