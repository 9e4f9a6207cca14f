"""Whether a neighbour is there: what OPTIONS and calls say about a trunk route, or a PBX that the configuration registers.

Pure. A neighbour is up, suspect after one failure, and down after the next one; up again by an answered OPTIONS or call. Of a
name each address is asked: one that answers is enough for the neighbour, and each is known to be dead or alive by itself
(addresses.py). Failures are silence, transport failures and 503. Left out: what being down means for whoever sends calls there.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from sipproxy.engine.forward import hop_uri, via_of
from sipproxy.sip.build import Sent, write_request
from sipproxy.sip.timers import Alarm

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sipproxy.engine.state import Desk
    from sipproxy.sip.flow import Hop
    from sipproxy.sip.message import Response

__all__ = ["Health", "HealthState"]

DOWN_AFTER = 2  # failures in a row
PING_ANSWER_S = 4.0  # of silence until a ping has failed: four transmissions over UDP
FIRST_BACKOFF_S, MAX_BACKOFF_S = 5.0, 300.0
SPREAD = 2**16


class HealthState(StrEnum):
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


class Health:
    """What is known of one neighbour. Times ending in `_at` and `_until` are monotonic seconds, in `_at_ms` UTC.

    `kind` and `name` say which one it is, in counters and notes. `ping_s` is the time between two
    OPTIONS, 0 for none.
    """

    def __init__(self, desk: Desk, kind: str, name: str, hop: Hop, ping_s: float) -> None:
        self._desk = desk
        self.kind, self.name, self._hop, self._ping_s = kind, name, hop, ping_s
        self.state = HealthState.UP
        self.since_ms: int | None = None  # None: since the node's start
        self.failures = 0  # in a row
        self.failure = ""  # the last one: timeout, transport, no_ping, 503, credentials
        self.failure_at_ms: int | None = None
        self.hold_until = 0.0  # until then an answered ping, or a probing call, is not wanted
        self.backoff_s = FIRST_BACKOFF_S
        self.ping_ms: int | None = None
        self._asked: dict[Hop, float] = {}  # the addresses that a ping is on its way to, and since when
        self._answered = False  # whether one of this round was
        self._next_ping, self._silence = Alarm(self._ping), Alarm(self._was_silent)
        if ping_s:
            desk.queue.set(self._next_ping, 0.0)

    @property
    def is_asked(self) -> bool:
        """Whether OPTIONS are sent to it."""
        return bool(self._ping_s)

    # What is learnt

    def heard(self, status: int, hold_s: float | None = None) -> None:
        """A call was answered with this status; `hold_s` is what a 503 asks for."""
        if status == 503:
            self.failed("503", hold_s=hold_s)
        elif self.failures and (status != 100 or self.failure != "503"):
            # A 100 says that somebody is there, and not that he takes calls.
            self._works()

    def failed(self, why: str, *, hold_s: float | None = None) -> None:
        """No answer (`timeout`, `no_ping`), nothing could be sent (`transport`), or `503`."""
        desk = self._desk
        self.failures += 1
        self.failure, self.failure_at_ms = why, desk.now.utc_ms
        desk.count(f"{self.kind}_failures", self.name, why)
        if self.failures >= DOWN_AFTER or hold_s is not None:
            # RFC 3261 §21.5.4: a 503 with Retry-After means no further request for that long.
            if desk.now.mono >= self.hold_until or hold_s is not None:
                self.hold_until = desk.now.mono + (hold_s if hold_s is not None else self.backoff_s)
                self.backoff_s = min(2 * self.backoff_s, MAX_BACKOFF_S)
            self._enter(HealthState.DOWN)
        else:
            self._enter(HealthState.SUSPECT)
        if self._ping_s and not self._asked and self.state is HealthState.SUSPECT:
            desk.queue.set(self._next_ping, desk.now.mono)  # is it so? ask at once

    def there(self, status: int) -> None:
        """Something that is no call was answered: any answer but 503 shows that somebody is there."""
        if status == 503:
            self.failed("503")
        elif self.failure != "503" or (self.state is HealthState.DOWN and self._desk.now.mono >= self.hold_until):
            self._works()  # who refuses calls and answers pings is up again only when its time is over

    def probes(self) -> bool:
        """Whether a call is to find out if a neighbour that is not pinged works again; one call for each back-off."""
        now = self._desk.now.mono
        if self._ping_s or now < self.hold_until:
            return False
        self.hold_until = now + self.backoff_s
        self.backoff_s = min(2 * self.backoff_s, MAX_BACKOFF_S)
        return True

    def _works(self) -> None:
        if self.state is HealthState.UP and not self.failures:
            return  # as after nearly every answer
        self.failures, self.hold_until, self.backoff_s = 0, 0.0, FIRST_BACKOFF_S
        self._enter(HealthState.UP)

    def _enter(self, state: HealthState) -> None:
        if self.state is state:
            return
        desk, before = self._desk, self.state
        self.state, self.since_ms = state, desk.now.utc_ms
        if HealthState.DOWN in (state, before):
            level, failure = ("error", self.failure) if state is HealthState.DOWN else ("info", "")
            desk.note(level, f"{self.kind}_state", **{self.kind: self.name}, state=str(state), failure=failure)

    # Pings

    def _was_silent(self) -> None:
        """Some pings were not answered in time."""
        for hop in list(self._asked):
            self.ping_failed(hop, "no_ping")

    def _ping(self) -> None:
        """Ask each address, unless answers of the last round are still awaited."""
        desk = self._desk
        jitter = int.from_bytes(desk.new_token(2), "big") / SPREAD / 5
        desk.queue.set(self._next_ping, desk.now.mono + self._ping_s * (0.9 + jitter))
        if self._asked:
            return
        self._answered = False
        hops = [hop for hop in desk.addresses.choose(self._hop, every=True) if via_of(desk, hop) is not None]
        self._asked = dict.fromkeys(hops, desk.now.mono)
        if hops:
            desk.queue.set(self._silence, desk.now.mono + PING_ANSWER_S)
        for hop in hops:
            self._ask(hop)

    def _ask(self, hop: Hop) -> None:
        desk = self._desk
        via = via_of(desk, hop)
        assert via is not None
        value, branch = via
        uri = hop_uri(self._hop)
        headers = [
            (b"Via", value),
            (b"Max-Forwards", b"70"),
            (b"From", b"<sip:%s>;tag=%s" % (desk.settings.realm.encode(), desk.token().encode())),
            (b"To", b"<%s>" % uri),
            (b"Call-ID", desk.token().encode()),
            (b"CSeq", b"1 OPTIONS"),
            (b"Accept", b"application/sdp"),
        ]
        request = Sent(b"OPTIONS", write_request(b"OPTIONS", uri, headers))
        desk.transactions.new_client(request, branch, hop, _Ping(self, hop), desk.now.mono)

    def ping_answered(self, hop: Hop, status: int) -> None:
        """One address answered; an answer that is late counts, too."""
        desk = self._desk
        if status == 503:
            self.ping_failed(hop, "503")
            return
        desk.addresses.heard(hop, 0)
        at = self._asked.pop(hop, None)
        if at is not None:
            self.ping_ms = round((desk.now.mono - at) * 1000)
        self._answered = True
        self._ended()
        self.there(status)

    def ping_failed(self, hop: Hop, why: str) -> None:
        """One address was silent, could not be sent to, or refuses: the neighbour has failed where none answered."""
        if self._asked.pop(hop, None) is None:
            return
        self._desk.addresses.failed(hop, why)
        self._ended()
        if not self._asked and not self._answered:
            self.failed(why)

    def _ended(self) -> None:
        if not self._asked:
            self._desk.queue.cancel(self._silence)


class _Ping:
    """User of a ping's client transaction."""

    def __init__(self, health: Health, hop: Hop) -> None:
        self._health, self._hop = health, hop

    def response(self, _key: Hashable, response: Response, /) -> None:
        if response.is_final:
            self._health.ping_answered(self._hop, response.status)

    def failed(self, _key: Hashable, /, *, timed_out: bool) -> None:
        if not timed_out:  # silence was counted long before Timer F
            self._health.ping_failed(self._hop, "transport")
