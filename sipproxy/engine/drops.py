"""Sources that only scan or flood, and until when the kernel is to drop what they send to our ports ([kernel] drop).

Pure. A source is an IPv4 address or an IPv6 /64. It offends by what no customer sends: messages of scanners, messages over its
own budget, passwords over the limit of guesses. Who does so often enough, and for more than a moment, is dropped for a while.

Never dropped is whoever may be a customer, a carrier or one of us: trunk and PSAP routes, other nodes, the node itself, the
emergency access networks, the allow list, sources with a live binding or a live call, who proved a password within a day, and
who called 110 or 112 within an hour. What the kernel drops, nobody sees: an emergency call from a dropped source does not reach
the node (design: invariant 1). That is why none of these is ever dropped, why it ends by itself, and why it is off by default.
Each worker of a node has a list of its own; what another one knows that speaks for a source counts all the same.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sipproxy.engine.actions import DropSource, SpareSource
from sipproxy.sip.errors import ParseError
from sipproxy.sip.flow import source_of
from sipproxy.sip.timers import Alarm
from sipproxy.sip.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Callable

    from sipproxy.engine.state import Desk

__all__ = ["Drops", "Entry"]

RETOLD_S = 60.0  # after which another call for help is told to the node's other workers again
LEAST_S = 5.0  # that a source offends for until it is dropped: all routers behind one address that come at once do not
HELPED_S = 3600.0  # that a source is spared for which called 110 or 112
SWEEP_S = 2.0  # between two looks at who has become a customer since
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(slots=True)
class _Suspect:
    """Offences of one source, which wear off over the window. Times are monotonic seconds."""

    count: float
    at: float
    since: float  # of the first of those that are counted
    helped_at: float = -HELPED_S


@dataclass(frozen=True, slots=True)
class Entry:
    """One source on the list. `by` is "node" or the operator; `until` monotonic seconds, the stamps UTC."""

    source: str
    why: str
    by: str
    until: float
    since_ms: int
    until_ms: int


class Drops:
    """The list. `protectors` tell why a source is not to be dropped, "" when they know of nothing.

    `problem` is why the kernel drops nothing although it should, as the shell found out.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._rules = desk.settings.drops
        self._suspects: OrderedDict[str, _Suspect] = OrderedDict()
        self._entries: dict[str, Entry] = {}
        self.protectors: list[Callable[[str], str]] = []
        self.problem = ""
        self._alarm = Alarm(self._sweep)
        # Are told what the node's other workers have to know too.
        self.tell_helped: Callable[[str], None] = lambda source: None  # noqa: ARG005
        self.tell_dropped: Callable[[str, str], None] = lambda source, by: None  # noqa: ARG005
        self.tell_spared: Callable[[str, str], None] = lambda source, why: None  # noqa: ARG005

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_on(self) -> bool:
        """Whether anything is looked at: also in a dry run, and not while the kernel refuses."""
        return self._rules.mode != "off" and not self.problem

    @property
    def suspects(self) -> int:
        return len(self._suspects)

    # What sources do

    def offended(self, host: str, why: str) -> None:
        """A stranger at this IP address did what customers do not do."""
        if not self.is_on:
            return
        source, now, rules = source_of(host), self._desk.now.mono, self._rules
        if source in self._entries:
            return
        suspect = self._suspect(source)
        left = suspect.count - (now - suspect.at) * rules.offences / rules.window_s
        if left <= 0.0:
            left, suspect.since = 0.0, now
        suspect.count, suspect.at = left + 1.0, now
        if suspect.count < rules.offences or now - suspect.since < LEAST_S:
            return
        suspect.count = 0.0
        spared = self._speaks_for(source)
        if spared:
            self._desk.count("drops_spared", spared)
        else:
            self._drop(source, why, "node", rules.drop_s)

    def called_for_help(self, host: str) -> None:
        """A stranger at this IP address sent an INVITE that may be for 110 or 112."""
        if not self.is_on:
            return
        source, now = source_of(host), self._desk.now.mono
        if now - self._suspect(source).helped_at > RETOLD_S:
            self.tell_helped(source)
        self.helped_elsewhere(source)

    def helped_elsewhere(self, source: str) -> None:
        """A source called for help, here or at another worker of this node."""
        if self.is_on:
            self._suspect(source).helped_at = self._desk.now.mono

    def dropped_elsewhere(self, source: str, by: str) -> None:
        """Another worker of this node drops a source. Who knows what speaks for it says so."""
        why = self._speaks_for(source) if by == "node" else self.protection(source)
        if why:
            self.tell_spared(source, why)

    def spared_elsewhere(self, source: str, why: str) -> None:
        """Another worker of this node knows why a source is not to be dropped."""
        entry = self._entries.get(source)
        if entry is not None:
            self._spare(entry, why, "node")

    def _suspect(self, source: str) -> _Suspect:
        found = self._suspects.get(source)
        if found is not None:
            self._suspects.move_to_end(source)
            return found
        now = self._desk.now.mono
        found = self._suspects[source] = _Suspect(0.0, now, now)
        if len(self._suspects) > self._desk.settings.rates.sources:
            self._suspects.popitem(last=False)
            self._desk.count("drops_forgotten", "full")
        return found

    # Who is never dropped

    def _speaks_for(self, source: str) -> str:
        suspect = self._suspects.get(source)
        if suspect is not None and self._desk.now.mono - suspect.helped_at < HELPED_S:
            return "called_for_help"
        return self.protection(source)

    def protection(self, source: str) -> str:
        """Why the source is not to be dropped; "" when nothing is known that speaks for it."""
        desk = self._desk
        try:
            network = ipaddress.ip_network(source)
        except ValueError:
            return "own"  # no address: a part of a call of ours
        if network.is_loopback or any(_holds(network, host) for one in desk.settings.listeners for host, _ in one.hosts):
            return "own"
        if any(_holds(network, peer) for peer in desk.peers.hosts()):
            return "node"
        if any(_meet(network, known) for route in desk.settings.trunks for known, _ in route.networks):
            return "trunk"
        if any(self._leads_to(route.hop.host, network) for route in desk.settings.trunks):
            return "trunk"
        if any(_meet(network, known) for known in desk.settings.access_networks):
            return "access_network"
        if any(_meet(network, known) for known in self._rules.allow):
            return "allowed"
        if desk.location.has_binding_at(source):
            return "binding"
        if any(self._leads_to(_host(route.uri), network) for routes in desk.snapshot.psap.values() for route in routes):
            return "psap"
        return next((why for protector in self.protectors if (why := protector(source))), "")

    def _leads_to(self, host: str, network: Network) -> bool:
        """Whether a route's host, an address or a name with the addresses that it led to lately, is in the network."""
        return any(_holds(network, place) for place in (host, *self._desk.addresses.hosts_of(host)))

    # The list

    def _drop(self, source: str, why: str, by: str, for_s: int) -> str:
        desk, rules = self._desk, self._rules
        if len(self._entries) >= rules.entries and source not in self._entries:
            desk.count("drops_refused", "full")
            return f"the list holds {rules.entries} sources, which is as many as `drop_entries` of [kernel] allows"
        now = desk.now
        self._entries[source] = Entry(source, why, by, now.mono + for_s, now.utc_ms, now.utc_ms + 1000 * for_s)
        dry = rules.mode == "dry_run"
        desk.count("drops", why if by == "node" else "operator")
        desk.note("warning", "source_dropped", source=source, why=why, by=by, for_s=for_s, dry_run=dry)
        if not dry:
            desk.out.append(DropSource(source, for_s))
        desk.queue.set(self._alarm, now.mono + SWEEP_S)
        self.tell_dropped(source, by)
        return ""

    def _spare(self, entry: Entry, why: str, by: str) -> None:
        desk = self._desk
        del self._entries[entry.source]
        desk.count("drops_ended", why)
        if why != "over":
            desk.note("warning", "source_spared", source=entry.source, why=why, by=by)
        if why != "over" and self._rules.mode == "on":  # the kernel knows by itself when it is over
            desk.out.append(SpareSource(entry.source))

    def _sweep(self) -> None:
        """Forget what is over, and let in who has shown at another node that he belongs to us, and where a route leads now."""
        desk = self._desk
        nodes = {source_of(host) for host in desk.peers.hosts()}
        for entry in list(self._entries.values()):
            if entry.until <= desk.now.mono:
                self._spare(entry, "over", "node")
            elif entry.source in nodes or desk.location.has_binding_at(entry.source):
                self._spare(entry, "node" if entry.source in nodes else "binding", "node")
            elif (route := self.protection(entry.source)) in ("trunk", "psap"):
                self._spare(entry, route, "node")
        if self._entries:
            desk.queue.set(self._alarm, desk.now.mono + SWEEP_S)

    # For operators

    def add(self, address: str, for_s: int, *, why: str, by: str) -> str:
        """Drop an address, or an IPv6 /64, for so many seconds; "" when it is done, else why not."""
        source = _source(address)
        if not source:
            return f"{address[:80]!r} is not an IP address"
        if self._rules.mode == "off":
            return 'the drop list is off; set drop = "on" in [kernel] and start the node again'
        if self.problem:
            return f"the kernel drops nothing: {self.problem}"
        protection = self.protection(source)
        if protection:
            return f"{source} is never dropped: {_WORDS.get(protection, protection)}"
        return self._drop(source, why, by, for_s)

    def remove(self, address: str, *, by: str) -> str:
        """Take an address off the list; "" when it is done, else why not."""
        entry = self._entries.get(_source(address))
        if entry is None:
            return f"{address[:80]} is not on the list"
        self._suspects.pop(entry.source, None)
        self._spare(entry, "operator", by)
        return ""

    def view(self) -> dict[str, object]:
        """The list as operators see it."""
        rows = [
            {
                "source": entry.source,
                "since_ms": entry.since_ms,
                "until_ms": entry.until_ms,
                "why": entry.why,
                "by": entry.by,
            }
            for entry in sorted(self._entries.values(), key=lambda entry: entry.until)
        ]
        return {"mode": self._rules.mode, "problem": self.problem, "drops": rows}


_WORDS = {
    "own": "it is an address of this node",
    "node": "another node sends from there",
    "trunk": "it is a trunk route's",
    "psap": "it is a PSAP route's",
    "access_network": "it is in an access network of [emergency], from where 110 and 112 are called",
    "allowed": "it is in `drop_allow` of [kernel]",
    "binding": "a customer is registered from there",
    "call": "a call is live from there",
    "proven": "an account's password was proven from there within a day",
}


def _source(address: str) -> str:
    """The source that an address, or an IPv6 /64, belongs to; "" for anything else."""
    text = address.strip().removesuffix("/64") if ":" in address else address.strip()
    try:
        return source_of(str(ipaddress.ip_address(text.strip("[]"))))
    except ValueError:
        return ""


def _meet(network: Network, known: Network) -> bool:
    return network.version == known.version and network.overlaps(known)


def _holds(network: Network, host: str) -> bool:
    """Whether an address is in the network; a name is in none."""
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False


def _host(uri: str) -> str:
    try:
        return parse_uri(uri.encode()).host_text
    except ParseError:
        return ""
