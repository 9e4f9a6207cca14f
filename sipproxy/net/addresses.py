"""The machine's addresses that come and go under the listeners (a virtual address that moves, DHCP, a link that is renumbered).

The kernel tells each change by netlink; whether a listener's address is there is then asked of the kernel by a bind, which also
knows of 127/8, of addresses that are still being checked for doubles, and of wildcards. The socket is Python's own: it takes no
right, no thread and no library. Leaves out: what a listener does with it (udp.py, stream.py), and routes.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import structlog

    from sipproxy.net.transports import Transports

__all__ = ["follow_addresses", "is_here"]

# <linux/rtnetlink.h>, <linux/netlink.h>: not in Python's socket module.
_GROUPS = 0x10 | 0x100  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_CHUNK = 65536
RETRY_S = 1.0  # between two tries to open a listener whose address is there again, and whose port is not


def is_here(host: str) -> bool:
    """Whether this machine has the address, an IP literal, so that a socket may be bound to it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((host, 0))
    except OSError as error:
        return error.errno != errno.EADDRNOTAVAIL
    return True


async def follow_addresses(transports: Transports, log: structlog.stdlib.BoundLogger) -> None:
    """Close and open the listeners as their addresses go and come, until cancelled; returns where netlink is not to be had,
    which is logged once, as soon as all are open."""
    for listener in transports.away:
        log.warning("listener", listener=listener, change="absent")  # its address was not there at the start
    try:
        sock = _netlink()
    except (OSError, AttributeError) as error:  # no such family: not Linux, or a unit that does not allow it
        log.warning("addresses_not_watched", problem=str(error))
        while transports.away:  # those that were not there at the start would never be opened
            await asyncio.sleep(RETRY_S)
            for listener, change in await transports.match_addresses():
                log.warning("listener", listener=listener, change=change)
        return
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    changed.set()  # an address may have gone since its listener was bound

    def wake() -> None:
        _drain(sock)
        changed.set()

    loop.add_reader(sock.fileno(), wake)
    told: set[tuple[str, str]] = set()
    try:
        while True:
            await changed.wait()
            changed.clear()
            changes = await transports.match_addresses()
            for listener, change in changes:
                if (listener, change) not in told:
                    log.warning("listener", listener=listener, change=change)
            told = {one for one in changes if one[1] not in ("opened", "closed")}
            if told:
                loop.call_later(RETRY_S, changed.set)
    finally:
        loop.remove_reader(sock.fileno())
        sock.close()


def _netlink() -> socket.socket:
    """A socket that is readable when an address came or went. Raises OSError, and AttributeError elsewhere than on Linux."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    try:
        sock.settimeout(0)
        sock.bind((0, _GROUPS))
    except BaseException:
        sock.close()
        raise
    return sock


def _drain(sock: socket.socket) -> None:
    """Read what is there. That there was something is all that counts, and messages that did not fit (ENOBUFS) say the same."""
    while True:
        try:
            sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
