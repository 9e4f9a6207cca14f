"""The node's configuration: TOML sections as structs. Every key is described, with unit and default, in config.example.toml.

Reading a file, its checks and its error messages are `load`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = [
    "Calls",
    "Cdr",
    "Config",
    "Emergency",
    "Limits",
    "Listen",
    "Metrics",
    "Node",
    "Policy",
    "Registrar",
    "Store",
    "Trunk",
]


class Section(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Base of all sections: an unknown key is an error."""


class Node(Section):
    id: str = "node1"
    data_dir: str = "data"


class Listen(Section):
    transport: Literal["udp", "tcp"] = "udp"
    address: str = "127.0.0.1:5060"
    advertised: str = ""  # host[:port] for Via, Record-Route and Contact; "" = address


class Store(Section):
    url: str = ""  # "" = embedded
    deadline_ms: int = 250
    slots: Literal["local", "refuse"] = "local"
    lease_s: int = 90
    refresh_s: int = 30


class Registrar(Section):
    realm: str = "sip.example"
    domains: tuple[str, ...] = ()  # further host names in Request-URIs that mean us
    algorithms: tuple[Literal["SHA-512-256", "SHA-256", "MD5"], ...] = ("SHA-256", "MD5")
    default_expires_s: int = 3600
    min_expires_s: int = 60
    max_expires_s: int = 7200
    max_contacts: int = 10
    nonce_lifetime_s: int = 300


class Policy(Section):
    lines: tuple[str, ...] = ()  # CSV files, relative to the config file, imported at start
    psap: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()


class Trunk(Section):
    name: str
    uri: str  # next hop, such as sip:192.0.2.10:5060;transport=udp
    addresses: tuple[str, ...] = ()  # sources of incoming calls: IP, IP:port or network; default: the uri's host
    priority: int = 0  # lower first
    weight: int = 1
    ping_s: int = 30


class Emergency(Section):
    provider_code: str = ""
    access_networks: tuple[str, ...] = ()  # networks from which 110/112 needs no challenge


class Calls(Section):
    setup_s: int = 60  # INVITE to the first 18x, over all routes
    route_s: int = 6  # no answer at all from one route: the next is tried
    ring_s: int = 180  # Timer C
    maximum_s: int = 43200
    reap_s: int = 7200  # answered, without a message from either party


class Limits(Section):
    message_bytes: int = 65535
    headers: int = 200
    transactions: int = 200_000
    calls: int = 50_000
    bindings: int = 200_000
    nonces: int = 100_000


class Cdr(Section):
    sync: Literal["group", "wait"] = "group"
    fsync_interval_ms: int = 10
    segment_bytes: int = 16 * 1024 * 1024
    stream: str = "sp:cdr"
    stream_max: int = 1_000_000  # entries; 0 = unbounded
    batch: int = 500


class Metrics(Section):
    address: str = "127.0.0.1:9464"  # "" = off


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Config(Section):
    """The whole file."""

    node: Node = Node()
    listen: tuple[Listen, ...] = (Listen(),)
    store: Store = Store()
    registrar: Registrar = Registrar()
    policy: Policy = Policy()
    trunk: tuple[Trunk, ...] = ()
    emergency: Emergency = Emergency()
    calls: Calls = Calls()
    limits: Limits = Limits()
    cdr: Cdr = Cdr()
    metrics: Metrics = Metrics()
    log: Log = Log()
