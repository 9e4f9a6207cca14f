"""Copies for a collector: HEP version 3, and no proof of a password in what leaves."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.net.hep import HepSender, write_hep
from sipproxy.net.passed import Passed, without_credentials

REGISTER = (
    b"REGISTER sip:sip.example SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1\r\nCall-ID: abc@x\r\n"
    b'Authorization: Digest username="u", realm="r", nonce="n",\r\n uri="sip:x", '
    b'response="0123456789abcdef0123456789abcdef"\r\n'
    b"Content-Length: 0\r\n\r\n"
)
FOUR = Passed(1_700_000_000_123_456_789, False, "UDP", ("192.0.2.1", 5060), ("192.0.2.9", 5062), REGISTER)
SIX = FOUR._replace(outgoing=True, transport="TLS", local=("2001:db8::1", 5061), remote=("2001:db8::9", 40000))


def chunks(data: bytes) -> dict[int, bytes]:
    """The chunks of a HEP3 datagram, by type, read as the format says."""
    assert data[:4] == b"HEP3"
    assert struct.unpack("!H", data[4:6])[0] == len(data)
    found, rest = {}, data[6:]
    while rest:
        vendor, kind, length = struct.unpack("!HHH", rest[:6])
        assert vendor == 0
        assert 6 <= length <= len(rest)
        found[kind] = rest[6:length]
        rest = rest[length:]
    return found


def test_hep_of_a_received_datagram_has_its_addresses_time_and_call() -> None:
    found = chunks(write_hep(FOUR, capture_id=7, password="secret"))
    assert (found[1], found[2], found[11]) == (b"\x02", b"\x11", b"\x01")
    assert (socket.inet_ntoa(found[3]), socket.inet_ntoa(found[4])) == ("192.0.2.9", "192.0.2.1")
    assert struct.unpack("!HH", found[7] + found[8]) == (5062, 5060)
    assert struct.unpack("!II", found[9] + found[10]) == (1_700_000_000, 123_456)
    assert (found[12], found[14], found[17]) == (b"\0\0\0\x07", b"secret", b"abc@x")
    assert len(found[15]) == len(REGISTER)
    assert b"0123456789abcdef" not in found[15]


def test_hep_of_a_sent_message_over_tls_has_ipv6_addresses_and_is_tcp() -> None:
    found = chunks(write_hep(SIX, capture_id=1))
    assert (found[1], found[2]) == (b"\x0a", b"\x06")
    assert socket.inet_ntop(socket.AF_INET6, found[5]) == "2001:db8::1"
    assert socket.inet_ntop(socket.AF_INET6, found[6]) == "2001:db8::9"
    assert 14 not in found


def test_hep_sender_counts_what_left_and_what_did_not() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(40)
        sender = HepSender(*collector.getsockname(), capture_id=1)
        sender.send(FOUR)
        assert chunks(collector.recv(65535))[17] == b"abc@x"
        sender.send(FOUR._replace(data=b"x" * 70_000))
        assert len(chunks(collector.recv(65535))[15]) == 65_000
    assert sender.counters == {"sent": 2, "dropped": 0}
    sender.close()
    sender.send(FOUR)
    assert sender.counters == {"sent": 2, "dropped": 1}
    sender.close()


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        (b'Authorization: Digest response="00ff00ff"', b'Authorization: Digest response="00000000"'),
        (b'PROXY-AUTHORIZATION : Digest RESPONSE = "AbCd" ', b'PROXY-AUTHORIZATION : Digest RESPONSE = "0000" '),
        (b"Proxy-Authorization: Digest response=abcd,nc=1", b"Proxy-Authorization: Digest response=0000,nc=1"),
        (b'authorization: Digest a=b,\r\n\tresponse="ff"', b'authorization: Digest a=b,\r\n\tresponse="00"'),
        (b'X-Other: response="ff"', b'X-Other: response="ff"'),
    ],
)
def test_credentials_are_blinded_in_every_spelling_and_nothing_else_is(line: bytes, kept: bytes) -> None:
    message = b"REGISTER sip:a SIP/2.0\r\nA: 1\r\n%s\r\nB: 2\r\n\r\n"
    assert without_credentials(message % line) == message % kept


@given(st.binary(max_size=300))
def test_without_credentials_keeps_the_length_of_anything(data: bytes) -> None:
    assert len(without_credentials(b"Authorization: response=" + data)) == len(data) + 24
