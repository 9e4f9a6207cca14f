"""SIP messages as a packet file that Wireshark and sngrep open: each one a UDP packet of its own, whatever carried it.

The classic pcap format (draft-ietf-opsawg-pcap) with raw IP packets and nanosecond stamps; addresses and ports are those of the
message, so that a TCP or TLS message is read like the others. Left out: reading such files.
"""

from __future__ import annotations

import ipaddress
import struct

__all__ = ["HEADER", "write_packet"]

NANOSECONDS = 0xA1B23C4D  # the magic number of files with nanosecond stamps
RAW_IP = 101  # LINKTYPE_RAW
SNAPLEN = 65_535
MAX_MESSAGE = SNAPLEN - 60  # what is longer is cut

HEADER = struct.pack("<IHHiIII", NANOSECONDS, 2, 4, 0, 0, SNAPLEN, RAW_IP)


def write_packet(at_ns: int, source: tuple[str, int], destination: tuple[str, int], message: bytes) -> bytes:
    """One record of the file: IP literals and ports, both of one IP version."""
    payload = message[:MAX_MESSAGE]
    here, there = ipaddress.ip_address(source[0]), ipaddress.ip_address(destination[0])
    udp = struct.pack("!HHHH", source[1], destination[1], 8 + len(payload), 0) + payload  # RFC 768: checksum 0 is none
    if here.version == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + here.packed + there.packed
        packet = head[:10] + _checksum(head) + head[12:] + udp
    else:
        packet = struct.pack("!IHBB", 6 << 28, len(udp), 17, 64) + here.packed + there.packed + udp
    seconds, nanoseconds = divmod(at_ns, 1_000_000_000)
    return struct.pack("<IIII", seconds, nanoseconds, len(packet), len(packet)) + packet


def _checksum(head: bytes) -> bytes:
    """The checksum of an IPv4 header (RFC 791 §3.1)."""
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
