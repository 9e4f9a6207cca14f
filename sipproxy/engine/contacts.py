"""Which contacts a REGISTER may name (RFC 3261 §10.3), by the address in them.

Pure. Requests for a binding go by the flow that its REGISTER came by and never to the address in its contact, so nothing here
keeps a packet from going anywhere: it keeps out what can only be a fault or an attempt, before another element believes it.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from sipproxy.sip.grammar import unquote

if TYPE_CHECKING:
    from sipproxy.engine.settings import Settings
    from sipproxy.sip.flow import Flow
    from sipproxy.sip.headers import NameAddr

__all__ = ["MAX_CONTACT_BYTES", "fault_of", "place_of"]

MAX_CONTACT_BYTES = 512  # of the URI
MAX_VALUE_BYTES = 1024  # of the whole value, with its display name and parameters
KNOWN_CONTACTS = 4096  # hosts and URIs of contacts of which is kept what they are

_NAMES = {
    "localhost": "loopback",
    "localhost.localdomain": "loopback",
    "ip6-localhost": "loopback",
    "ip6-loopback": "loopback",
    "broadcasthost": "broadcast",
    "metadata.google.internal": "metadata",
}
_METADATA = (ipaddress.ip_address("169.254.169.254"), ipaddress.ip_address("fd00:ec2::254"))
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def fault_of(contact: NameAddr) -> str:
    """Why a contact cannot be stored at all, "" when it can."""
    uri = contact.uri
    if not uri.is_sip or not uri.host:
        return "scheme"
    if len(uri.raw) > MAX_CONTACT_BYTES or len(contact.raw) > MAX_VALUE_BYTES:
        return "length"
    for host in _hosts(contact):
        if _named(host).is_misspelt:
            return "host"
    return ""


def place_of(contact: NameAddr, flow: Flow, settings: Settings) -> str:
    """What a contact names that no router is reached at from here, "" when it may be registered.

    The address that the REGISTER came from is always good, unless it is a listener of ours; so is loopback from loopback, and
    what `contact_networks` holds.
    """
    host, port = contact.uri.host_text, contact.uri.port
    if settings.is_ours(host, port) or host.rstrip(".") in settings.domains:
        return "ours"
    for host in _hosts(contact):
        named = _named(host)
        if named.kind and (place := _place(named, _literal(flow.host), settings)):
            return place
    return ""


def _hosts(contact: NameAddr) -> list[str]:
    """The host of the URI and its maddr, which would stand for it (§19.1.1)."""
    if not contact.uri.params:
        return [contact.uri.host_text]
    maddr = contact.uri.param(b"maddr")
    more = [unquote(maddr).decode("latin-1").strip("[]").lower()] if maddr else []
    return [contact.uri.host_text, *more]


def _place(named: _Named, source: Address, settings: Settings) -> str:
    """What a host is that no router is reached at, "" where this one may be named."""
    address = named.address
    if address is not None and (address == source or any(address in network for network in settings.contact_networks)):
        return ""
    return "" if named.kind == "loopback" and source.is_loopback else named.kind


@lru_cache(maxsize=KNOWN_CONTACTS)  # devices register again and again
def _literal(host: str) -> Address:
    """The address of a peer, whose zone is left out."""
    return ipaddress.ip_address(host.partition("%")[0])


class _Named(NamedTuple):
    """What a host comes down to. `kind` is why no router is reached there, "" for nothing against it."""

    address: Address | None
    kind: str
    is_misspelt: bool


@lru_cache(maxsize=KNOWN_CONTACTS)
def _named(host: str) -> _Named:
    name = host.rstrip(".")
    address, kind = _address(name)
    if address is None:
        kind = _NAMES.get(name, "loopback" if name.endswith(".localhost") else "")
    return _Named(address, kind, address is None and _is_misspelt(name))


def _address(host: str) -> tuple[Address | None, str]:
    """The address that a literal comes down to, the IPv4 one that an IPv6 one stands for, where it does; and its kind."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None, ""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64 or (address in _COMPATIBLE and int(address) > 1):
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        else:
            address = address.ipv4_mapped or address.sixtofour or address
    return address, _kind(address)


def _kind(address: Address) -> str:
    if address in _METADATA:
        return "metadata"
    if address.is_unspecified or address in _THIS_NETWORK:
        return "unspecified"
    if address.is_loopback:
        return "loopback"
    if address.is_link_local:
        return "link_local"
    if address.is_multicast:
        return "multicast"
    # 240.0.0.0/4, the limited broadcast 255.255.255.255 included (RFC 1112 §4, RFC 919 §7)
    return "broadcast" if address.version == 4 and address.is_reserved else ""


def _is_misspelt(name: str) -> bool:
    """Whether what is no address ends like an IPv4 one (§25.1 toplabel begins with a letter): `127.1`, `0x7f.1`, `21307064` are
    read as addresses by some, and as which one is their secret."""
    return name.rpartition(".")[2][:1].isdigit()
