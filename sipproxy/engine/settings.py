"""The engine's settings: what `app` derives from the configuration. Immutable, pure values."""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sipproxy.engine.guesses import GuessLimits
from sipproxy.engine.session import Terms
from sipproxy.sip.flow import version_of
from sipproxy.sip.timers import Timers

if TYPE_CHECKING:
    from sipproxy.sip.flow import Flow, Hop

__all__ = ["DropRules", "Listener", "Rates", "Settings", "TrunkRoute"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

KNOWN_ADDRESSES = 4096  # of the same peers with every message
_address_of = functools.lru_cache(maxsize=KNOWN_ADDRESSES)(ipaddress.ip_address)


@dataclass(frozen=True, slots=True)
class Listener:
    """One of our listeners: `sent_by` is what Via, Record-Route and Contact say (`host:port`)."""

    index: int
    transport: str
    sent_by: bytes
    hosts: frozenset[tuple[str, int]]  # (host, port) pairs in a URI that mean this listener
    version: int = 4  # of IP
    via: bytes = field(init=False)  # what a Via value of ours begins with, up to its branch

    def __post_init__(self) -> None:
        object.__setattr__(self, "via", b"SIP/2.0/%b %b;branch=" % (self.transport.encode(), self.sent_by))


@dataclass(frozen=True, slots=True)
class TrunkRoute:
    """A next hop towards the carrier and the sources that its incoming calls arrive from."""

    name: str
    hop: Hop
    networks: tuple[tuple[Network, int], ...]  # (network, source port or 0 for any)
    priority: int = 0
    weight: int = 1
    names: tuple[str, ...] = ()  # domains that its certificate proves, for calls over TLS; lower case
    foreign: bool = False  # calls come from abroad by it: German numbers are hidden, § 120(4) TKG
    ping_s: float = 0.0  # between two OPTIONS; 0: none are sent
    calls: int = 0  # at once, over all nodes and both directions; 0: unbounded
    user: str = ""  # "": challenges are not answered
    password: str = field(default="", repr=False)
    realm: str = ""  # "": whatever realm the challenge names
    register: bool = False
    domain: str = ""  # of the address that is registered; "": the hop
    expires_s: int = 3600

    def matches(self, flow: Flow) -> bool:
        """Whether a message that came on this flow is the carrier's (RFC 5922 §7.3 over TLS, else by its address)."""
        if flow.transport == "TLS" and self.names:
            return any(name in flow.names for name in self.names)
        if self.hop.transport == "TLS" and flow.transport == "UDP":
            return False  # its address alone would do, which anybody can write into a datagram
        address = _address_of(flow.host)
        for network, port in self.networks:  # noqa: SIM110  most are asked about one: a generator costs more than the question
            if address in network and port in (0, flow.port):
                return True
        return False

    def is_from(self, flow: Flow) -> bool:
        """Whether what came on this flow may be the carrier's, from whatever port: it is then not counted as a stranger's."""
        address = _address_of(flow.host)
        return any(name in flow.names for name in self.names) or any(address in network for network, _ in self.networks)


@dataclass(frozen=True, slots=True)
class Rates:
    """Messages outside calls a second, and how many at once; see [limits] of config.example.toml."""

    source_per_s: int = 100
    source_burst: int = 1000
    line_per_s: int = 50
    line_burst: int = 500
    strangers_per_s: int = 500
    strangers_burst: int = 2000
    registers_per_s: int = 2000
    registers_burst: int = 400
    credit_bytes: int = 2048  # that a stranger may be answered with beyond what he sent
    sources: int = 65_536  # remembered sources, and as many lines
    lag_s: float = 0.25  # lateness of the event loop from which on the node is under load


@dataclass(frozen=True, slots=True)
class DropRules:
    """When a source is dropped by the kernel; see [kernel] of config.example.toml."""

    mode: str = "off"  # "off", "dry_run" or "on"
    offences: int = 200
    window_s: int = 60
    drop_s: int = 600
    entries: int = 10_000
    allow: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Settings:
    """Durations in seconds; see config.example.toml for what each bound means."""

    node: str
    realm: str
    domains: frozenset[str]  # lower case host names that mean us, the realm included
    listeners: tuple[Listener, ...]
    trunks: tuple[TrunkRoute, ...]  # by priority
    algorithms: tuple[str, ...] = ("SHA-256", "MD5")
    access_networks: tuple[Network, ...] = ()
    default_expires_s: int = 3600
    min_expires_s: int = 60
    max_expires_s: int = 7200
    max_contacts: int = 10
    path_sources: tuple[Network, ...] = ()  # of REGISTERs with a Path
    service_routes: tuple[bytes, ...] = ()  # name-addr values
    static: tuple[tuple[str, bytes], ...] = ()  # account and contact URI of PBXs with a fixed address
    static_ping_s: float = 0.0  # between two OPTIONS that ask each of them; 0: none
    flow_timer_s: int = 0  # RFC 5626 §4.4, told to devices that keep flows apart; 0: not told
    setup_s: float = 60.0
    route_s: float = 6.0
    dead_s: float = 60.0  # that an address which failed is tried after the others
    ring_s: float = 180.0
    maximum_s: float = 43200.0
    reap_s: float = 7200.0
    recovered_reap_s: float = 90.0
    boot: str = ""  # which boot of the machine this is, "" where that is not known
    session_expires_s: int = 1800
    min_se_s: int = 90
    probe_s: float = 600.0
    slots: str = "local"
    store_wait_s: float = 0.25  # of all that one call may wait for the store
    udp_bytes: int = 1300  # of a request that leaves over UDP; 0: whatever its length
    max_headers: int = 200
    max_transactions: int = 200_000
    max_calls: int = 50_000
    max_bindings: int = 200_000
    rates: Rates = field(default_factory=Rates)
    guesses: GuessLimits = field(default_factory=GuessLimits)
    drops: DropRules = field(default_factory=DropRules)
    clients_proven: bool = False  # whether who connects over TLS is asked for a certificate
    contact_networks: tuple[Network, ...] = ()  # that contacts may name although no router is reached there
    carrier_headers: tuple[bytes, ...] = ()  # beginnings of header names, lower case, that customers may not send
    timers: Timers = field(default_factory=Timers)
    worker: int = 0  # which of the node's workers this is, counted from 1; 0: the node is one process
    siblings: frozenset[str] = frozenset()  # the names of all of them in the store
    session_terms: Terms = field(init=False)
    own_hosts: frozenset[tuple[str, int]] = field(init=False)  # (host, port) pairs in a URI that mean one of our listeners
    first: dict[tuple[str, int], Listener] = field(init=False, compare=False)  # by transport and IP version, 0 for whichever

    def __post_init__(self) -> None:
        object.__setattr__(self, "session_terms", Terms(self.session_expires_s, self.min_se_s))
        object.__setattr__(self, "own_hosts", frozenset().union(*(listener.hosts for listener in self.listeners)))
        by_kind = ((listener.transport, version, listener) for listener in self.listeners for version in (0, listener.version))
        first: dict[tuple[str, int], Listener] = {}
        for transport, version, listener in by_kind:
            first.setdefault((transport, version), listener)
        object.__setattr__(self, "first", first)

    def is_ours(self, host: str, port: int | None) -> bool:
        """Whether host and port of a URI name one of our listeners."""
        return (host, 5060 if port is None else port) in self.own_hosts

    def in_access_network(self, host: str) -> bool:
        """Whether an IP address is inside a network from which 110 and 112 need no challenge."""
        return bool(self.access_networks) and any(_address_of(host) in n for n in self.access_networks)

    def may_be(self, host: str, flow: Flow) -> bool:
        """Whether who sends by this flow may be `host`, as far as certificates say: over TLS, where clients are asked for them,
        only who has shown one for that name or address."""
        return flow.transport != "TLS" or not self.clients_proven or host.lower() in flow.names

    def trunk_of(self, flow: Flow) -> TrunkRoute | None:
        """The first trunk route that a message which came on this flow is of; None when it is not the carrier's."""
        for route in self.trunks:
            if route.matches(flow):
                return route
        return None

    def listener_for(self, to: Hop) -> Listener | None:
        """The listener that a hop is sent from: its own, else the first of its transport and IP version."""
        if 0 <= to.listener < len(self.listeners):
            return self.listeners[to.listener]
        return self.first.get((to.transport, version_of(to.host)))
