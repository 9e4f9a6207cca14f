"""Health and load of the trunk routes: what pings and calls say about each, and in which order calls try them (design §5).

Pure. A route is up, suspect after one failure, and down after the next one. A route that is down is tried last, never not at
all. It comes back by an answered OPTIONS, or by a call: any that gets to it because the others failed, and, where it is not
pinged, one call for each back-off period that tries it in its usual place. Failures are silence, transport failures and 503.

Limits count the calls of all nodes in both directions (`Channels`), and refuse outgoing ones alone: whether one more comes in
is the carrier's to say. An emergency call is counted and never refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from sipproxy.engine.forward import hop_uri, via_of
from sipproxy.engine.trunk_register import Registration
from sipproxy.sip.build import write_request
from sipproxy.sip.message import Request, parse_message

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    from sipproxy.engine.settings import TrunkRoute
    from sipproxy.engine.state import Desk
    from sipproxy.sip.message import Response

__all__ = ["Health", "RouteState", "Trunks"]

DOWN_AFTER = 2  # failures in a row
PING_ANSWER_S = 4.0  # of silence until a ping has failed: four transmissions over UDP
FIRST_BACKOFF_S, MAX_BACKOFF_S = 5.0, 300.0
MAX_RETRY_AFTER_S = 3600  # a 503 that asks for more is not believed
SPREAD = 2**16
NOT_REGISTERING: dict[str, object] = {"registration": "", "expires_at_ms": None}

T = TypeVar("T")


class RouteState(StrEnum):
    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


@dataclass(slots=True)
class Health:
    """What is known of one route. Times ending in `_at` are monotonic seconds, in `_at_ms` UTC."""

    route: TrunkRoute
    registration: Registration | None = None
    state: RouteState = RouteState.UP
    since_ms: int | None = None  # None: since the node's start
    failures: int = 0  # in a row
    failure: str = ""  # the last one: timeout, transport, no_ping, 503
    failure_at_ms: int | None = None
    hold_until: float = 0.0  # until then an answered ping, or a probing call, is not wanted
    backoff_s: float = FIRST_BACKOFF_S
    pinged_at: float | None = None  # of the ping that is under way
    ping_ms: int | None = None


class Trunks:
    """All trunk routes of a node, by name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._routes = {route.name: Health(route) for route in desk.settings.trunks}
        for name, health in self._routes.items():
            if health.route.ping_s:
                desk.queue.set(("trunk", name, "ping"), 0.0)
            if health.route.register:
                health.registration = Registration(desk, health.route, partial(self._there, health))
                desk.queue.set(("trunk", name, "register"), 0.0)

    def route(self, name: str) -> TrunkRoute | None:
        health = self._routes.get(name)
        return health.route if health is not None else None

    def has_credentials(self, name: str) -> bool:
        """Whether challenges of the route are answered here."""
        health = self._routes.get(name)
        return health is not None and bool(health.route.user)

    def __iter__(self) -> Iterator[Health]:
        return iter(self._routes.values())

    # What is learnt

    def heard(self, name: str, status: int, *, retry_after: bytes | None = None) -> None:
        """The route answered a call of ours with this status."""
        health = self._routes.get(name)
        if health is None:
            return
        if status == 503:
            self._failed(health, "503", hold_s=_seconds(retry_after))
        elif status != 100 or health.failure != "503":
            # A 100 says that the route is there, and not that it takes calls.
            self._works(health)

    def failed(self, name: str, why: str) -> None:
        """A call got no answer (`timeout`) or could not be sent (`transport`)."""
        health = self._routes.get(name)
        if health is not None:
            self._failed(health, why)

    def challenged(self, name: str, outcome: str) -> None:
        """A challenge of the route was `answered`, or what it wants is `refused` to us."""
        self._desk.count("trunk_challenges", name, outcome)
        health = self._routes.get(name)
        if health is not None and outcome == "refused":
            health.failure, health.failure_at_ms = "credentials", self._desk.now.utc_ms
            self._desk.note("error", "trunk_credentials_refused", trunk=name)

    def _works(self, health: Health) -> None:
        health.failures, health.hold_until, health.backoff_s = 0, 0.0, FIRST_BACKOFF_S
        self._enter(health, RouteState.UP)

    def _failed(self, health: Health, why: str, *, hold_s: float | None = None) -> None:
        desk = self._desk
        health.failures += 1
        health.failure, health.failure_at_ms = why, desk.now.utc_ms
        desk.count("trunk_failures", health.route.name, why)
        if health.failures >= DOWN_AFTER or hold_s is not None:
            # RFC 3261 §21.5.4: a 503 with Retry-After means no further request for that long.
            if desk.now.mono >= health.hold_until or hold_s is not None:
                health.hold_until = desk.now.mono + (hold_s if hold_s is not None else health.backoff_s)
                health.backoff_s = min(2 * health.backoff_s, MAX_BACKOFF_S)
            self._enter(health, RouteState.DOWN)
        else:
            self._enter(health, RouteState.SUSPECT)
        if health.route.ping_s and health.pinged_at is None and health.state is RouteState.SUSPECT:
            desk.queue.set(("trunk", health.route.name, "ping"), desk.now.mono)  # is it so? ask at once

    def _enter(self, health: Health, state: RouteState) -> None:
        if health.state is state:
            return
        desk, before = self._desk, health.state
        health.state, health.since_ms = state, desk.now.utc_ms
        if RouteState.DOWN in (state, before):
            level, failure = ("error", health.failure) if state is RouteState.DOWN else ("info", "")
            desk.note(level, "trunk_state", trunk=health.route.name, state=str(state), failure=failure)

    # Order and limits

    def arrange(self, groups: list[list[T]], name_of: Callable[[T], str], *, probe: bool) -> list[list[T]]:
        """The groups with routes that are down behind the others; with `probe` one that is due keeps its place."""
        first: list[list[T]] = []
        last: list[list[T]] = []
        for group in groups:
            health = self._routes.get(name_of(group[0]))
            down = health is not None and health.state is RouteState.DOWN and not (probe and self._probe(health))
            (last if down else first).append(group)
        return first + last

    def _probe(self, health: Health) -> bool:
        """Whether this call is to find out if a route that is not pinged works again; one call for each back-off."""
        now = self._desk.now.mono
        if health.route.ping_s or now < health.hold_until:
            return False
        health.hold_until = now + health.backoff_s
        health.backoff_s = min(2 * health.backoff_s, MAX_BACKOFF_S)
        return True

    def calls(self, name: str) -> int:
        """How many of this node's calls are on the route."""
        return self._desk.channels.held("trunk", name)

    # Timers and pings

    def fire(self, name: str, kind: str) -> None:
        """A timer of the route: `ping`, `silent` or `register`."""
        health = self._routes[name]
        if kind == "ping":
            self._ping(health)
        elif kind == "silent":
            if health.pinged_at is not None:
                health.pinged_at = None
                self._failed(health, "no_ping")
        elif health.registration is not None:
            health.registration.send()

    def _ping(self, health: Health) -> None:
        desk, route = self._desk, health.route
        jitter = int.from_bytes(desk.new_token(2), "big") / SPREAD / 5
        desk.queue.set(("trunk", route.name, "ping"), desk.now.mono + route.ping_s * (0.9 + jitter))
        via = via_of(desk, route.hop)
        if health.pinged_at is not None or via is None:
            return
        value, branch = via
        uri = hop_uri(route.hop)
        me = b"<sip:%s>" % desk.settings.realm.encode()
        headers = [
            (b"Via", value),
            (b"Max-Forwards", b"70"),
            (b"From", me + b";tag=" + desk.token().encode()),
            (b"To", b"<%s>" % uri),
            (b"Call-ID", desk.token().encode()),
            (b"CSeq", b"1 OPTIONS"),
            (b"Accept", b"application/sdp"),
        ]
        request = parse_message(write_request(b"OPTIONS", uri, headers))
        assert isinstance(request, Request)
        health.pinged_at = desk.now.mono
        desk.queue.set(("trunk", route.name, "silent"), desk.now.mono + PING_ANSWER_S)
        desk.transactions.new_client(request, branch, route.hop, _Ping(self, health), desk.now.mono)

    def ping_answered(self, health: Health, status: int) -> None:
        """Any answer but 503 shows that somebody is there; one that is late does so, too."""
        desk = self._desk
        if health.pinged_at is not None:
            health.ping_ms = round((desk.now.mono - health.pinged_at) * 1000)
            health.pinged_at = None
        desk.queue.cancel(("trunk", health.route.name, "silent"))
        self._there(health, status)

    def _there(self, health: Health, status: int) -> None:
        """Something that is no call was answered."""
        if status == 503:
            self._failed(health, "503")
        elif health.failure != "503" or (health.state is RouteState.DOWN and self._desk.now.mono >= health.hold_until):
            self._works(health)  # who refuses calls and answers pings is up again only when its time is over

    def ping_failed(self, health: Health) -> None:
        """The ping could not be sent."""
        if health.pinged_at is not None:
            health.pinged_at = None
            self._desk.queue.cancel(("trunk", health.route.name, "silent"))
            self._failed(health, "transport")

    # For operators

    def view(self) -> list[dict[str, object]]:
        """The routes as operators see them; nothing secret."""
        return [
            {
                "trunk": health.route.name,
                "state": str(health.state),
                "since_ms": health.since_ms,
                "calls": self.calls(health.route.name),
                "limit": health.route.calls or None,
                "ping_ms": health.ping_ms,
                "last_failure": health.failure,
                "last_failure_at_ms": health.failure_at_ms,
                **(health.registration.view() if health.registration is not None else NOT_REGISTERING),
            }
            for health in self._routes.values()
        ]


class _Ping:
    """User of a ping's client transaction."""

    def __init__(self, trunks: Trunks, health: Health) -> None:
        self._trunks, self._health = trunks, health

    def response(self, _key: Hashable, response: Response, /) -> None:
        if response.is_final:
            self._trunks.ping_answered(self._health, response.status)

    def failed(self, _key: Hashable, /, *, timed_out: bool) -> None:
        if not timed_out:  # silence was counted long before Timer F
            self._trunks.ping_failed(self._health)


def _seconds(value: bytes | None) -> float | None:
    """Seconds of a Retry-After (§20.33), bounded; None when there is none that can be read."""
    digits = (value or b"").partition(b";")[0].partition(b"(")[0].strip()
    return float(min(int(digits), MAX_RETRY_AFTER_S)) if digits.isdigit() and len(digits) <= 10 else None
