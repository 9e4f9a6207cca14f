"""The node's configuration: TOML sections as structs. Every key is described, with unit and default, in config.example.toml.

Each bound stands beside its key. Reading a file and telling all of its faults at once is in config_file.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

__all__ = [
    "Calls",
    "Cdr",
    "Config",
    "Dns",
    "Emergency",
    "Hep",
    "Kernel",
    "Limits",
    "Listen",
    "Log",
    "Metrics",
    "Node",
    "Policy",
    "Registrar",
    "Section",
    "Store",
    "Tls",
    "Trunk",
    "load",
]

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Text = Annotated[str, msgspec.Meta(max_length=255)]
Filled = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
Many = msgspec.Meta(max_length=1000)
Seconds = Annotated[int, msgspec.Meta(ge=1, le=7 * 86400)]
Count = Annotated[int, msgspec.Meta(ge=1, le=10_000_000)]
PerSecond = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]


class Section(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of all sections: an unknown key is an error."""


class Node(Section, frozen=True):
    id: Name = "node1"
    data_dir: Filled = "data"
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1  # processes that share the addresses
    drain_s: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 60  # that live calls may go on after SIGTERM


class Listen(Section, frozen=True):
    transport: Literal["udp", "tcp", "tls"] = "udp"
    address: Filled = "127.0.0.1:5060"
    advertised: Text = ""  # host[:port] for Via, Record-Route and Contact; "" = address


class Tls(Section, frozen=True):
    certificate: Text = ""  # PEM file; needed by a listener of transport "tls"
    key: Text = ""  # PEM file without a passphrase; "" = in the certificate's file
    ca: Text = ""  # PEM file of the authorities that prove peers; "" = the system's
    clients: Literal["none", "optional", "required"] = "none"  # whether who connects has to show a certificate


class Store(Section, frozen=True):
    url: Text = ""  # "" = embedded
    deadline_ms: Annotated[int, msgspec.Meta(ge=10, le=5000)] = 250
    slots: Literal["local", "refuse"] = "local"
    lease_s: Annotated[int, msgspec.Meta(ge=5, le=3600)] = 90
    refresh_s: Annotated[int, msgspec.Meta(ge=1, le=1200)] = 30


class Registrar(Section, frozen=True):
    realm: Filled = "sip.example"
    domains: Annotated[tuple[Filled, ...], Many] = ()  # further host names in Request-URIs that mean us
    algorithms: Annotated[tuple[Literal["SHA-512-256", "SHA-256", "MD5"], ...], msgspec.Meta(min_length=1, max_length=3)] = (
        "SHA-256",
        "MD5",
    )
    default_expires_s: Seconds = 3600
    min_expires_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60  # RFC 3261 §10.3: below one hour
    max_expires_s: Seconds = 7200
    max_contacts: Annotated[int, msgspec.Meta(ge=1, le=100)] = 10
    path_sources: Annotated[tuple[Filled, ...], Many] = ()  # networks of proxies that may add a Path (RFC 3327)
    service_routes: Annotated[tuple[Filled, ...], Many] = ()  # URIs told to routers in Service-Route (RFC 3608)
    static: Annotated[tuple[Filled, ...], Many] = ()  # "ACCOUNT URI" each: PBXs with a fixed address
    static_ping_s: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 30  # between two OPTIONS that ask each of them; 0 = none
    flow_timer_s: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 0  # RFC 5626 §4.4: between keep-alives of a flow; 0 = not told
    nonce_lifetime_s: Seconds = 300
    contact_networks: Annotated[tuple[Filled, ...], Many] = ()  # that contacts may name although no router is there
    carrier_headers: Annotated[tuple[Filled, ...], Many] = ()  # beginnings of header names that no customer may send


class Policy(Section, frozen=True):
    lines: Annotated[tuple[Filled, ...], Many] = ()  # CSV or TOML files, relative to the config file, imported at start
    psap: Annotated[tuple[Filled, ...], Many] = ()
    blocks: Annotated[tuple[Filled, ...], Many] = ()


class Trunk(Section, frozen=True):
    name: Name
    uri: Filled  # next hop, such as sip:192.0.2.10:5060;transport=udp
    addresses: Annotated[
        tuple[Filled, ...], Many
    ] = ()  # sources of incoming calls: IP, IP:port or network; default: the uri's host
    names: Annotated[tuple[Filled, ...], Many] = ()  # SIP domains of the carrier's certificate; then no other source over TLS
    listen: Text = ""  # address of the [[listen]] of the uri's transport that it is sent from; "" = the first that fits
    priority: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0  # lower first
    weight: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 1
    foreign: bool = False  # calls come from abroad by it
    ping_s: Annotated[int, msgspec.Meta(ge=0, le=3600)] = 30  # between two OPTIONS; 0 = none
    calls: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0  # at once, over all nodes; 0 = unbounded
    user: Text = ""  # answers the carrier's digest challenges
    password: Text = ""
    realm: Text = ""  # of the challenges that are answered; "" = any
    register: bool = False
    domain: Text = ""  # of the registered address; "" = the uri's host
    expires_s: Annotated[int, msgspec.Meta(ge=60, le=7 * 86400)] = 3600  # asked for in REGISTER

    def __repr__(self) -> str:
        return f"Trunk({self.name!r}, {self.uri!r})"  # what shows a configuration does not show passwords


class Emergency(Section, frozen=True):
    access_networks: Annotated[tuple[Filled, ...], Many] = ()  # networks from which 110/112 needs no challenge


class Calls(Section, frozen=True):
    setup_s: Seconds = 60  # INVITE to the first 18x, over all routes
    route_s: Seconds = 6  # no answer at all from one route: the next is tried
    ring_s: Annotated[int, msgspec.Meta(ge=10, le=7200)] = 180  # Timer C; RFC 3261 §16.6 asks for three minutes
    maximum_s: Seconds = 43200
    reap_s: Seconds = 7200  # answered, without a message from either party
    recovered_reap_s: Annotated[int, msgspec.Meta(ge=10, le=86400)] = 90  # the same, after a restart of the node
    session_expires_s: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 1800  # RFC 4028 asked for; 0 = not asked
    min_se_s: Annotated[int, msgspec.Meta(ge=90, le=86400)] = 90  # RFC 4028 §4: at least 90
    probe_s: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 600  # a party not heard for so long is asked; 0 = never


class Dns(Section, frozen=True):
    servers: Annotated[tuple[Filled, ...], msgspec.Meta(max_length=8)] = ()  # name servers: IP or IP:port; none = the system's
    dead_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 60  # that an address which failed is tried after the others


class Limits(Section, frozen=True):
    message_bytes: Annotated[int, msgspec.Meta(ge=2048, le=65535)] = 65535
    udp_bytes: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 1300  # of a request over UDP (RFC 3261 §18.1.1); 0 = any length
    headers: Annotated[int, msgspec.Meta(ge=20, le=2000)] = 200
    transactions: Count = 200_000
    calls: Count = 50_000
    bindings: Count = 200_000
    nonces: Count = 100_000
    source_per_s: PerSecond = 100
    source_burst: Count = 1000
    line_per_s: PerSecond = 50
    line_burst: Count = 500
    strangers_per_s: PerSecond = 500
    strangers_burst: Count = 2000
    registers_per_s: PerSecond = 2000
    registers_burst: Count = 400
    credit_bytes: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 2048
    sources: Count = 65_536
    lag_ms: Annotated[int, msgspec.Meta(ge=20, le=10_000)] = 250
    guesses_pair: Count = 10  # wrong passwords looked at within guess_window_s, of one account name from one source
    guesses_user: Count = 50
    guesses_source: Count = 100
    guesses_answered: Count = 1000  # requests of a source over its limits that are answered within the window
    guess_window_s: Annotated[int, msgspec.Meta(ge=10, le=86400)] = 600
    guess_entries: Count = 50_000


class Cdr(Section, frozen=True):
    sync: Literal["group", "wait"] = "group"
    fsync_interval_ms: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 10
    segment_bytes: Annotated[int, msgspec.Meta(ge=65536, le=256 * 1024 * 1024)] = 16 * 1024 * 1024
    stream: Filled = "sp:cdr"
    stream_max: Annotated[int, msgspec.Meta(ge=0)] = 200_000  # entries that groups have acknowledged go beyond it; 0 = none go
    sinks: Annotated[tuple[Filled, ...], Many] = ()  # consumer groups that confirm records; none = the stream does
    interim_s: Annotated[int, msgspec.Meta(ge=0, le=86400)] = 900  # between two records of a live call; 0 = none
    batch: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 100
    keep_unbilled_h: Annotated[int, msgspec.Meta(ge=0, le=24 * 366)] = 24  # TDDDG § 9: what billing does not need
    keep_billed_months: Annotated[int, msgspec.Meta(ge=0, le=6)] = 3  # after the invoice was sent; TDDDG § 10(2): six at most
    keep_fraud_days: Annotated[int, msgspec.Meta(ge=1, le=366)] = 90  # set apart, TDDDG § 12(4)
    keep_trace_days: Annotated[int, msgspec.Meta(ge=1, le=366)] = 90  # malicious calls, TDDDG § 14
    keep_exports_h: Annotated[int, msgspec.Meta(ge=1, le=24 * 366)] = 72  # export files, for billing to fetch them
    keep_access_days: Annotated[int, msgspec.Meta(ge=1, le=366)] = 90  # who looked at records
    unbilled: Annotated[tuple[Filled, ...], Many] = ("freephone", "social", "emergency")  # classes that are not charged


class Metrics(Section, frozen=True):
    address: Text = "127.0.0.1:9464"  # "" = off


class Hep(Section, frozen=True):
    address: Text = ""  # IP:port of a collector of SIP messages (Homer, sngrep); "" = none
    capture_id: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)] = 2001  # of this node at the collector
    password: Text = ""

    def __repr__(self) -> str:
        return f"Hep({self.address!r})"


class Kernel(Section, frozen=True):
    drop: Literal["off", "dry_run", "on"] = "off"  # sources that only scan or flood, by nftables; "dry_run" says who would be
    drop_offences: Annotated[int, msgspec.Meta(ge=10, le=1_000_000)] = 200  # of one source within drop_window_s
    drop_window_s: Annotated[int, msgspec.Meta(ge=10, le=3600)] = 60
    drop_s: Annotated[int, msgspec.Meta(ge=10, le=7 * 86400)] = 600  # that a source is dropped
    drop_entries: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 10_000
    drop_allow: Annotated[tuple[Filled, ...], Many] = ()  # networks that are never dropped


class Log(Section, frozen=True):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Config(Section, frozen=True):
    """The whole file."""

    node: Node = Node()
    listen: Annotated[tuple[Listen, ...], msgspec.Meta(min_length=1, max_length=32)] = (Listen(),)
    tls: Tls = Tls()
    store: Store = Store()
    registrar: Registrar = Registrar()
    policy: Policy = Policy()
    trunk: Annotated[tuple[Trunk, ...], Many] = ()
    emergency: Emergency = Emergency()
    calls: Calls = Calls()
    dns: Dns = Dns()
    limits: Limits = Limits()
    cdr: Cdr = Cdr()
    metrics: Metrics = Metrics()
    hep: Hep = Hep()
    kernel: Kernel = Kernel()
    log: Log = Log()


def load(path: str | Path) -> Config:
    """The configuration in the TOML file `path`, with every path in it absolute.

    Raises `config_file.ConfigError`, which holds every fault of the file with its key and line.
    """
    from sipproxy import config_file  # noqa: PLC0415  the reader needs the structs above

    return config_file.load(Path(path))
