"""The kernel's choice between the sockets of one address is the one of `engine.steering`, by the Call-ID wherever it stands."""

from __future__ import annotations

import select
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sipproxy.engine.steering import HASHED, Steering, modulus_of
from sipproxy.net.spread import MAX_SEARCHED, spread
from sipproxy.net.udp import bind_udp

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a program for the kernel's choice is Linux's")
KEY = b"k" * 32
WORKERS = 3
NAMES = (b"Call-ID:", b"Call-ID: ", b"call-id:  ", b"CALL-ID: ", b"Call-Id:")
CALL_IDS = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=","), min_size=1, max_size=2 * HASHED
)
OTHERS = (b"", b"X: y\r\n", b"From: <sip:call@ids.example>\r\n", b"User-Agent: Caller ID\r\n")


@pytest.fixture(name="sockets", scope="module")
def group() -> Iterator[list[socket.socket]]:
    """The sockets of one address, with the program."""
    with ExitStack() as stack:
        first = bind_udp("127.0.0.1", 0, shared=True)
        further = [bind_udp("127.0.0.1", first.getsockname()[1], shared=True) for _ in range(WORKERS - 1)]
        for sock in (first, *further):
            stack.callback(sock.close)
        assert spread(first, WORKERS, modulus_of(KEY), HASHED)
        yield [first, *further]


def taken_by(sockets: list[socket.socket], data: bytes) -> int:
    """The number of the worker that the kernel gives it to, sent from a port of its own."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(data, sockets[0].getsockname())
    (ready,), _, _ = select.select(sockets, [], [], 30)
    assert ready.recv(65_536) == data
    return sockets.index(ready) + 1


def message(name: bytes, call_id: bytes, before: bytes) -> bytes:
    return (
        b"BYE sip:a@b SIP/2.0\r\n" + before + name + call_id + b"\r\nCSeq: 1 BYE\r\n" + b"Content-Length: 0\r\n" * 4 + b"\r\n"
    )


@settings(max_examples=100)
@given(name=st.sampled_from(NAMES), call_id=CALL_IDS, far=st.integers(0, MAX_SEARCHED - 300), other=st.sampled_from(OTHERS))
def test_datagram_is_given_to_the_worker_that_its_call_id_leads_to(
    sockets: list[socket.socket], name: bytes, call_id: str, far: int, other: bytes
) -> None:
    data = message(name, call_id.encode(), other + b"V: " + b"v" * far + b"\r\n")
    steering = Steering(1, WORKERS, KEY)
    steering.alive = frozenset((1, 2, 3))
    assert taken_by(sockets, data) == steering.owner(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        b"x" * 15 + b"\r",
        b"\0\1\0\0" * 200,
        message(b"i: ", b"abc", b""),
        message(b"Call-ID: ", b"abc", b"V: " + b"v" * MAX_SEARCHED + b"\r\n"),
        message(b"Call-Info: ", b"<sip:x>", b""),
        message(b"Call-ID: ", b"abc", b"X: all-in\r\nXY: all-in\r\nXYZ: all-in\r\nXYZA: all-in\r\n"),
        b"BYE sip:a@b SIP/2.0\r\nCall-ID: abc",
        b"BYE sip:a@b SIP/2.0\r\nCall-ID:",
        b"Call-ID: abc\r\n\r\n",
        b"x" * 65_000,
    ],
)
def test_datagram_without_a_call_id_in_its_place_goes_to_some_worker(sockets: list[socket.socket], data: bytes) -> None:
    assert taken_by(sockets, data) in (1, 2, 3)


def test_calls_of_one_source_are_spread_over_all_workers(sockets: list[socket.socket]) -> None:
    took = [taken_by(sockets, message(b"Call-ID: ", b"%d-4711@192.0.2.1" % number, b"")) for number in range(120)]
    assert min(took.count(worker) for worker in (1, 2, 3)) > 15


def test_socket_that_shares_its_address_with_none_has_no_program() -> None:
    with bind_udp("127.0.0.1", 0) as alone:
        assert not spread(alone, 2, modulus_of(KEY), HASHED) or taken_by([alone], message(b"Call-ID: ", b"a", b"")) == 1


def test_modulus_is_a_prime_that_the_secret_draws() -> None:
    found = {modulus_of(bytes([number]) * 32) for number in range(20)}
    assert len(found) == 20
    assert all((1 << 23) - 400 < one < 1 << 24 and all(one % divisor for divisor in range(2, 4097)) for one in found)
