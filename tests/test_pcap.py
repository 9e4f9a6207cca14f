"""Packet files: read back as the formats say, by code of its own."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from sipproxy.pcap import HEADER, write_packet


def parsed(record: bytes) -> tuple[int, str, int, str, int, bytes]:
    """Time in ns, source, destination and UDP payload of one record; every length and checksum is looked at."""
    seconds, nanoseconds, kept, whole = struct.unpack("<IIII", record[:16])
    packet = record[16:]
    assert kept == whole == len(packet) <= 65_535
    if packet[0] >> 4 == 4:
        length, protocol, udp, addresses = struct.unpack("!H", packet[2:4])[0], packet[9], packet[20:], packet[12:20]
        assert length == len(packet)
        total = sum(struct.unpack("!10H", packet[:20]))
        while total > 0xFFFF:
            total = (total & 0xFFFF) + (total >> 16)
        assert total == 0xFFFF  # RFC 791 §3.1: with its checksum a header adds up to ones
    else:
        length, protocol, udp, addresses = struct.unpack("!H", packet[4:6])[0], packet[6], packet[40:], packet[8:40]
        assert length == len(udp)
    half = len(addresses) // 2
    source, destination, size, _ = struct.unpack("!HHHH", udp[:8])
    assert (protocol, size) == (17, len(udp))
    at_ns = seconds * 1_000_000_000 + nanoseconds
    here, there = str(ipaddress.ip_address(addresses[:half])), str(ipaddress.ip_address(addresses[half:]))
    return at_ns, here, source, there, destination, udp[8:]


@pytest.mark.parametrize(
    ("source", "destination"), [(("192.0.2.1", 5060), ("198.51.100.7", 65535)), (("2001:db8::1", 1), ("2001:db8::2", 5061))]
)
@pytest.mark.parametrize("message", [b"", b"OPTIONS sip:a SIP/2.0\r\n\r\n", b"x" * 60_001])
def test_packet_holds_message_addresses_and_time(source: tuple[str, int], destination: tuple[str, int], message: bytes) -> None:
    record = write_packet(1_700_000_000_987_654_321, source, destination, message)
    assert parsed(record) == (1_700_000_000_987_654_321, *source, *destination, message)


def test_packet_longer_than_a_packet_can_be_is_cut() -> None:
    assert len(parsed(write_packet(0, ("192.0.2.1", 1), ("192.0.2.2", 2), b"x" * 70_000))[5]) == 65_475


def test_header_says_raw_ip_in_nanoseconds() -> None:
    assert struct.unpack("<IHHiIII", HEADER) == (0xA1B23C4D, 2, 4, 0, 0, 65_535, 101)
