"""Where a message came from or goes to (RFC 3261 §18; a flow as in RFC 5626 §3)."""

from __future__ import annotations

import functools
import ipaddress
from typing import NamedTuple

__all__ = ["CONNECTION_STEP", "LOOP", "Flow", "Hop", "is_literal", "source_of", "version_of"]

KNOWN_HOSTS, KNOWN_SOURCES = 4096, 32_768  # addresses of which is kept what they are, and what they are counted as
CONNECTION_STEP = 256  # between the numbers of two connections of one worker of a node

LOOP = "LOOP"
"""The transport of what one call of the engine sends to another one, the forwarded part of it: it never leaves the engine.

`host` of such a flow is the id of the call that was forwarded.
"""


class Flow(NamedTuple):
    """One 5-tuple towards a peer, as seen by the listener that received from it.

    `transport` is "UDP", "TCP" or "TLS"; `listener` the index of our listener in the configuration; `host` an IP literal
    without brackets; `connection` the stream connection's number, 0 for UDP; `names` the SIP domains that the peer's
    certificate has proved (RFC 5922 §7.1).
    """

    transport: str
    listener: int
    host: str
    port: int
    connection: int = 0
    names: tuple[str, ...] = ()

    @property
    def worker(self) -> int:
        """In a node of several workers the one whose connection it is; 0 where it is no connection."""
        return self.connection % CONNECTION_STEP

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport.lower()}:{host}:{self.port}"


class Hop(NamedTuple):
    """A next hop to be reached, not yet bound to a flow: `host` may be a name, `port` 0 means "by RFC 3263".

    `listener` is the index of ours that it is sent from; -1 leaves that to transport and IP version. `domain` is the name that
    an address was found by, "" for one that nobody looked up: over TLS its certificate has to prove that name (RFC 5922 §4).
    `is_open` says that the URI left the transport open, so that NAPTR records may name another one (RFC 3263 §4.1).
    """

    transport: str
    host: str
    port: int = 0
    listener: int = -1
    domain: str = ""
    is_open: bool = False

    @property
    def version(self) -> int:
        """The IP version of a literal `host`; 0 for a name."""
        return version_of(self.host)


@functools.lru_cache(maxsize=KNOWN_HOSTS)
def version_of(host: str) -> int:
    """The IP version of a literal without brackets; 0 for a name."""
    if ":" in host:
        return 6
    return 4 if host.replace(".", "").isdecimal() else 0


@functools.lru_cache(maxsize=KNOWN_HOSTS)
def is_literal(host: str) -> bool:
    """Whether it is an IP address, without brackets, and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def source_of(host: str) -> str:
    """What limits count a peer by: its IPv4 address, or an IPv6 address's /64, which one customer has whole."""
    return network_of(host) if ":" in host else host


@functools.lru_cache(maxsize=KNOWN_SOURCES)
def network_of(host: str) -> str:
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
