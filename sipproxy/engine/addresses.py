"""The addresses of next hops: where names lead, which failed lately, and in which order they are tried (RFC 3263 §4.3).

Pure. The shell looks names up ahead and tells where they lead, so that no request waits for a name server. An address that is
silent, cannot be sent to or answers 503 is dead for a bounded time: tried after the others, and after the other routes, but
never not at all while nothing else is left. What a call does about a failed address is in fail_over.py.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from sipproxy.sip.flow import Flow, Hop, version_of
from sipproxy.sip.places import Place, in_order
from sipproxy.sip.timers import Alarm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sipproxy.engine.state import Desk

__all__ = ["MAX_TRIED", "Addresses", "retry_after_s"]

MAX_NAMES = 1024  # of next hops; the one that was looked up least recently goes first, and its branch then has to do
MAX_DEAD = 10_000  # addresses that are known to be dead; the one that failed first is forgotten
MAX_TRIED = 4  # of one name by one request; emergency calls try all that the name has
MAX_RETRY_AFTER_S = 3600  # a 503 that asks for more is not believed


@dataclass(frozen=True, slots=True)
class Dead:
    """Why an address is put aside, since when (UTC) and until when (monotonic seconds)."""

    why: str  # timeout, transport, no_ping, 503
    since_ms: int
    until: float


class Addresses:
    """See the module."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._places: dict[Hop, tuple[Place, ...]] = {}
        self._hosts: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}  # name -> where it led before, and where it does
        self._dead: OrderedDict[tuple[str, str, int], Dead] = OrderedDict()
        self._alarm = Alarm(self._forget)

    # What is learnt

    def leads(self, hop: Hop, places: Iterable[Place]) -> None:
        """A next hop's name leads to these places; their hosts, and those of the answer before, may answer for it."""
        key, found = hop._replace(listener=-1, domain=""), tuple(places)
        self._places.pop(key, None)
        self._places[key] = found
        former, latest = self._hosts.pop(hop.host, ((), ()))
        hosts = tuple(sorted({place.host for place in found}))
        self._hosts[hop.host] = (latest, hosts) if hosts != latest else (former, latest)
        if len(self._places) > MAX_NAMES:
            del self._places[next(iter(self._places))]
            self._desk.count("names_forgotten", "places")
        if len(self._hosts) > MAX_NAMES:
            del self._hosts[next(iter(self._hosts))]
            self._desk.count("names_forgotten", "full")

    def heard(self, to: Flow | Hop, status: int) -> None:
        """Somebody answered there. A 503 is for `failed`; after one, nothing but its time's end says that calls are taken."""
        dead = self._dead.get(_key(to)) if status != 503 and self._dead else None
        if dead is not None and (dead.why != "503" or status >= 200):
            del self._dead[_key(to)]
            self._desk.note("info", "address_alive", address=_shown(_key(to)))

    def failed(self, to: Flow | Hop, why: str, *, hold_s: float | None = None) -> None:
        """What was sent there had no answer, could not be sent, or was answered 503 with a Retry-After of `hold_s`."""
        desk, key = self._desk, _key(to)
        known = self._dead.pop(key, None)
        since_ms = known.since_ms if known is not None else desk.now.utc_ms
        until = desk.now.mono + (hold_s if hold_s is not None else desk.settings.dead_s)
        self._dead[key] = Dead(why, since_ms, max(until, known.until if known is not None and known.why == "503" else 0.0))
        desk.count("address_failures", why)
        if known is None:
            desk.note("warning", "address_dead", address=_shown(key), why=why)
        if len(self._dead) > MAX_DEAD:
            self._dead.popitem(last=False)
            desk.count("addresses_forgotten", "full")
        if self._alarm.at == inf:
            desk.queue.set(self._alarm, self._dead[key].until)

    def _forget(self) -> None:
        """Forget those whose time is over."""
        now = self._desk.now.mono
        for key in [key for key, dead in self._dead.items() if dead.until <= now]:
            del self._dead[key]
        if self._dead:
            self._desk.queue.set(self._alarm, min(dead.until for dead in self._dead.values()))

    # What follows from it

    def choose(self, to: Hop, *, every: bool = False) -> list[Hop]:
        """Where to send, in order: living addresses first, dead ones last. `to` itself when it is an address, or is not known
        yet; then the transport layer looks it up. With `every` as many as there are, else `MAX_TRIED` at most."""
        if to.domain or version_of(to.host):
            return [to]
        places = in_order(self._known(to), self._draw)
        found = dict.fromkeys(self._reached(to, place) for place in places)  # two records may lead to one address
        hops = sorted((hop for hop in found if hop is not None), key=self.is_dead)
        return hops[: None if every else MAX_TRIED] or [to]

    def first(self, to: Flow | Hop) -> Flow | Hop:
        """The one that is tried first."""
        return self.choose(to)[0] if isinstance(to, Hop) else to

    def is_dead(self, to: Flow | Hop) -> bool:
        dead = self._dead.get(_key(to)) if self._dead else None
        return dead is not None and dead.until > self._desk.now.mono

    def hosts_of(self, name: str) -> tuple[str, ...]:
        """The IP addresses that a name led to lately; () for one that was not looked up."""
        former, latest = self._hosts.get(name, ((), ()))
        return former + latest

    @property
    def dead(self) -> int:
        """How many addresses are dead now."""
        return sum(dead.until > self._desk.now.mono for dead in self._dead.values())

    def view(self, to: Hop) -> list[dict[str, object]]:
        """The addresses of a next hop as operators see them, in the order of preference; a name that is not known has none."""
        known = (Place(to.transport, to.host, to.port or _port(to.transport), "uri"),) if to.version else self._known(to)
        rows: list[dict[str, object]] = []
        for place in sorted(known, key=lambda place: (place.rank, place.entry)):
            dead = self._dead.get(place[:3])
            is_dead = dead is not None and dead.until > self._desk.now.mono
            rows.append(
                {
                    "address": f"[{place.host}]:{place.port}" if ":" in place.host else f"{place.host}:{place.port}",
                    "transport": place.transport.lower(),
                    "record": place.record,
                    "reachable": to.version != 0 or self._reached(to, place) is not None,
                    "dead": is_dead,
                    "dead_since_ms": dead.since_ms if dead is not None and is_dead else None,
                    "dead_for_s": round(dead.until - self._desk.now.mono) if dead is not None and is_dead else None,
                    "why": dead.why if dead is not None and is_dead else "",
                }
            )
        return rows

    def _known(self, to: Hop) -> Sequence[Place]:
        return self._places.get(to._replace(listener=-1, domain=""), ())

    def _reached(self, to: Hop, place: Place) -> Hop | None:
        """The place as a next hop that a listener of ours reaches: the hop's own, else any of its transport and IP version."""
        settings = self._desk.settings
        hop = Hop(place.transport, place.host, place.port, to.listener, to.host)
        listener = settings.listener_for(hop)
        fits = listener is not None and (listener.transport, listener.version) == (hop.transport, hop.version)
        return hop if fits else None

    def _draw(self, most: int) -> int:
        return int.from_bytes(self._desk.new_token(4), "big") % (most + 1)


def retry_after_s(value: bytes | None) -> float | None:
    """Seconds of a Retry-After (RFC 3261 §20.33), bounded; None when there is none that can be read."""
    digits = (value or b"").partition(b";")[0].partition(b"(")[0].strip()
    return float(min(int(digits), MAX_RETRY_AFTER_S)) if digits.isdigit() and len(digits) <= 10 else None


def _key(to: Flow | Hop) -> tuple[str, str, int]:
    return to.transport, to.host, to.port or _port(to.transport)


def _port(transport: str) -> int:
    return 5061 if transport == "TLS" else 5060


def _shown(key: tuple[str, str, int]) -> str:
    return f"{key[0].lower()}:[{key[1]}]:{key[2]}" if ":" in key[1] else f"{key[0].lower()}:{key[1]}:{key[2]}"
