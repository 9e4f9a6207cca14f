"""STUN Binding requests (RFC 5389), against the test vectors of RFC 5769 where they apply."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.sip.stun import MAX_ATTRIBUTES, MAX_BYTES, answer, is_stun

TRANSACTION = bytes.fromhex("b7e7a701bc34d686fa87dfae")
PLAIN = bytes.fromhex("000100002112a442") + TRANSACTION
# RFC 5769 §2.1: a request of an ICE agent, whose PRIORITY (0x0024) nobody has to know who is asked for the address alone.
ICE = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b151263b36"
    "000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf"
)


def request(*attributes: tuple[int, bytes], kind: int = 1) -> bytes:
    body = b"".join(struct.pack("!HH", name, len(value)) + value + bytes(-len(value) % 4) for name, value in attributes)
    return struct.pack("!HH", kind, len(body)) + PLAIN[4:] + body


def test_binding_request_is_answered_with_the_source_in_no_more_than_it_takes() -> None:
    """RFC 5769 §2.2 and §2.3 have these very attributes."""
    response = answer(PLAIN, "192.0.2.1", 32853)
    assert response == bytes.fromhex("0101000c2112a442") + TRANSACTION + bytes.fromhex("002000080001a147e112a643")
    response = answer(PLAIN, "2001:db8:1234:5678:11:2233:4455:6677", 32853)
    mapped = bytes.fromhex("002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9")
    assert response == bytes.fromhex("010100182112a442") + TRANSACTION + mapped


def test_request_with_a_fingerprint_is_verified_and_answered_with_one() -> None:
    """The vector's checksum is right, and one that is wrong by a bit makes the message none of STUN's (RFC 5389 §7.3)."""
    response = answer(ICE, "192.0.2.1", 1)
    assert response is not None
    assert response[:2] == b"\x01\x11"
    assert bytes.fromhex("0009000400000414") in response
    assert bytes.fromhex("000a000200240000") in response
    length = struct.unpack("!H", response[2:4])[0]
    assert length == len(response) - 20
    assert response[-8:-4] == bytes.fromhex("80280004")
    assert answer(ICE[:-1] + b"\xce", "192.0.2.1", 1) is None


def test_fingerprint_that_is_not_last_is_refused() -> None:
    assert answer(request((0x8028, b"abcd"), (0x8022, b"x")), "192.0.2.1", 1) is None


@pytest.mark.parametrize(
    "data",
    [
        request(kind=0x0011),  # an indication
        request(kind=0x0101),  # a response
        request(kind=0x0003),  # TURN's Allocate
        PLAIN[:2] + b"\0\4" + PLAIN[4:],  # a length that is not there
        PLAIN[:2] + b"\0\2" + PLAIN[4:] + b"ab",  # no multiple of four
        request() + b"\0\6\0\x40",  # an attribute beyond the end, not counted in the length
        PLAIN[:2] + b"\0\4" + PLAIN[4:] + b"\0\6\0\x40",  # the same, counted
        request(*[(0x8022, b"")] * (MAX_ATTRIBUTES + 1)),
        request((0x8022, bytes(MAX_BYTES))),
    ],
)
def test_what_is_no_sound_binding_request_gets_no_answer(data: bytes) -> None:
    assert is_stun(data)
    assert answer(data, "192.0.2.1", 1) is None


@pytest.mark.parametrize(
    "data", [b"", b"\0\1\0\0", PLAIN[:19], b"OPTIONS sip:a SIP/2.0\r\n\r\n", b"\r\n\r\n", PLAIN[:4] + bytes(16)]
)
def test_sip_keepalives_and_requests_without_the_cookie_are_no_stun(data: bytes) -> None:
    assert not is_stun(data)


def test_credentials_are_neither_asked_for_nor_looked_at() -> None:
    """RFC 5626 §8: the SIP port's STUN server has no users."""
    response = answer(request((0x0006, b"user"), (0x0008, bytes(20))), "192.0.2.1", 1)
    assert response is not None
    assert response[:2] == b"\x01\x01"


@given(st.binary(max_size=600), st.sampled_from(["192.0.2.1", "2001:db8::1"]))
def test_any_bytes_are_answered_or_not_and_never_with_more_than_a_bound(data: bytes, host: str) -> None:
    found = PLAIN[:2] + struct.pack("!H", len(data)) + PLAIN[4:] + data
    response = answer(found, host, 5060)
    assert response is None or len(response) <= max(len(found), 20) + 32
