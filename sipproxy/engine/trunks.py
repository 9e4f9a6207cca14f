"""The trunk routes: in which order calls try them, what is known of each, and how many calls each has (design §5).

Pure. Whether a route is there is found out by pings and by calls (health.py). A route that is down is tried last, never not at
all. It comes back by an answered OPTIONS, or by a call: any that gets to it because the others failed, and, where it is not
pinged, one call for each back-off period that tries it in its usual place.

Limits count the calls of all nodes in both directions (`Channels`), and refuse outgoing ones alone: whether one more comes in
is the carrier's to say. An emergency call is counted and never refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sipproxy.engine.addresses import retry_after_s
from sipproxy.engine.health import Health, HealthState
from sipproxy.engine.trunk_register import Registration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sipproxy.engine.settings import TrunkRoute
    from sipproxy.engine.state import Desk
    from sipproxy.sip.message import Response

__all__ = ["RouteHealth", "Trunks"]

NOT_REGISTERING: dict[str, object] = {"registration": "", "expires_at_ms": None}

T = TypeVar("T")


class RouteHealth(Health):
    """What is known of one route."""

    def __init__(self, desk: Desk, route: TrunkRoute) -> None:
        super().__init__(desk, "trunk", route.name, route.hop, route.ping_s)
        self.route = route
        self.registration: Registration | None = None
        if route.register:
            self.registration = Registration(desk, route, self.there)


class Trunks:
    """All trunk routes of a node, by name."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._routes = {route.name: RouteHealth(desk, route) for route in desk.settings.trunks}

    def route(self, name: str) -> TrunkRoute | None:
        health = self._routes.get(name)
        return health.route if health is not None else None

    def has_credentials(self, name: str) -> bool:
        """Whether challenges of the route are answered here."""
        health = self._routes.get(name)
        return health is not None and bool(health.route.user)

    def __iter__(self) -> Iterator[RouteHealth]:
        return iter(self._routes.values())

    # What is learnt

    def heard(self, name: str, response: Response) -> None:
        """The route answered a call of ours so."""
        health, status = self._routes.get(name), response.status
        if health is not None:
            health.heard(status, retry_after_s(response.first(b"retry-after")) if status == 503 else None)

    def failed(self, name: str, why: str) -> None:
        """A call got no answer (`timeout`) or could not be sent (`transport`)."""
        health = self._routes.get(name)
        if health is not None:
            health.failed(why)

    def challenged(self, name: str, outcome: str) -> None:
        """A challenge of the route was `answered`, or what it wants is `refused` to us."""
        self._desk.count("trunk_challenges", name, outcome)
        health = self._routes.get(name)
        if health is not None and outcome == "refused":
            health.failure, health.failure_at_ms = "credentials", self._desk.now.utc_ms
            self._desk.note("error", "trunk_credentials_refused", trunk=name)

    # Order and limits

    def arrange(self, groups: list[list[T]], name_of: Callable[[T], str], *, probe: bool) -> list[list[T]]:
        """The groups with routes that are down behind the others; with `probe` one that is due keeps its place."""
        first: list[list[T]] = []
        last: list[list[T]] = []
        for group in groups:
            health = self._routes.get(name_of(group[0]))
            down = health is not None and health.state is HealthState.DOWN and not (probe and health.probes())
            (last if down else first).append(group)
        return first + last

    def calls(self, name: str) -> int:
        """How many of this node's calls are on the route."""
        return self._desk.channels.held("trunk", name)

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
                "addresses": self._desk.addresses.view(health.route.hop),
                **(health.registration.view() if health.registration is not None else NOT_REGISTERING),
            }
            for health in self._routes.values()
        ]
