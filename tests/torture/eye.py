"""What a node takes and sends, as its own copies for a collector tell (HEP version 3): every message, with both addresses."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from typing import NamedTuple

Address = tuple[str, int]
RECEIVE_BUFFER = 8 * 1024 * 1024


class Seen(NamedTuple):
    """One message. `outgoing` is as the node has it."""

    outgoing: bool
    transport: str
    source: Address
    destination: Address
    data: bytes


class Eye(asyncio.DatagramProtocol):
    """A collector. `seen` is what came since it was last taken."""

    def __init__(self) -> None:
        self.node: Address = ("", 0)
        self.seen: list[Seen] = []
        self.more = asyncio.Event()

    async def open(self) -> Address:
        """Where it listens."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        sock = transport.get_extra_info("socket")
        sock.setsockopt(1, 33, RECEIVE_BUFFER)  # SO_RCVBUFFORCE, where this process may
        self._transport = transport
        address: Address = sock.getsockname()[:2]
        return address

    def close(self) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: object) -> None:
        chunks = dict(_chunks(data))
        source = (str(ipaddress.ip_address(chunks.get(3) or chunks[5])), int.from_bytes(chunks[7], "big"))
        destination = (str(ipaddress.ip_address(chunks.get(4) or chunks[6])), int.from_bytes(chunks[8], "big"))
        transport = "UDP" if chunks[2] == b"\x11" else "TCP"
        self.seen.append(Seen(source == self.node, transport, source, destination, chunks[15]))
        self.more.set()

    def take(self) -> list[Seen]:
        found, self.seen = self.seen, []
        return found


def _chunks(data: bytes) -> list[tuple[int, bytes]]:
    assert data[:4] == b"HEP3"
    found, at = [], 6
    while at < len(data):
        _, kind, length = struct.unpack_from("!HHH", data, at)
        found.append((kind, data[at + 6 : at + length]))
        at += length
    return found
