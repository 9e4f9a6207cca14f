"""Messages out of a byte stream (RFC 3261 §18.3): the same whatever the chunks, bounded, in linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sip_strategies import Model, models

from sipproxy.sip.errors import ParseError
from sipproxy.sip.framing import Keepalive, StreamFramer
from sipproxy.sip.message import parse_message, salvage

LIMIT = 65536


def message(body: bytes = b"", extra: bytes = b"") -> bytes:
    return b"OPTIONS sip:a@h SIP/2.0\r\nVia: SIP/2.0/TCP h\r\n" + extra + b"Content-Length: %d\r\n\r\n" % len(body) + body


def fed(chunks: list[bytes], limit: int = LIMIT) -> tuple[list[bytes | Keepalive], str]:
    """Everything that came out, and the error that ended it ("" for none)."""
    framer, out = StreamFramer(limit), []
    try:
        for chunk in [*chunks, b""]:
            out += framer.feed(chunk)
    except ParseError as error:
        return out, str(error)
    return out, ""


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks, position = [], 0
    for size in sizes:
        chunks.append(data[position : position + size])
        position += size
    return [*chunks, data[position:]]


sizes = st.one_of(st.lists(st.integers(0, 120), max_size=12), st.just([1] * 600))
streams = st.lists(
    st.one_of(
        st.binary(max_size=40).map(message),
        st.sampled_from(
            [
                b"\r\n",
                b"\r\n\r\n",
                b"\r\n\r\n\r\n",
                b"\r",
                b"x\r\n\r\n",
                b"\x16",
                message(b"\r\n\r\n"),
                message(extra=b"l: 0\r\n"),
                message(extra=b"X: a\n"),
                message(extra=b"Y:" + b"y" * 400 + b"\r\n"),
                message(b"z" * 400),
            ]
        ),
    ),
    max_size=5,
)


@settings(max_examples=300)
@given(streams, sizes)
def test_framer_any_chunking_gives_the_same(parts: list[bytes], chunk_sizes: list[int]) -> None:
    data = b"".join(parts)
    assert fed(cut(data, chunk_sizes), 300) == fed([data], 300)


@given(st.lists(models(), max_size=3), sizes)
def test_framer_generated_messages_come_out_whole(drawn: list[Model], chunk_sizes: list[int]) -> None:
    wanted = []
    for model in drawn:
        model.lines = [line for line in model.lines if line.key != b"content-length"]
        data = model.write()
        head, _, _ = data.partition(b"\r\n\r\n")
        wanted.append(head + b"\r\nl\t:\r\n %d \r\n\r\n" % len(model.body) + model.body)
    out, error = fed(cut(b"".join(wanted), chunk_sizes))
    assert (out, error) == (wanted, "")
    assert [parse_message(data).raw for data in out if isinstance(data, bytes)] == wanted


def test_framer_empty_lines_between_messages_are_pings_or_ignored() -> None:
    one = message()
    assert fed([b"\r\n\r\n" + one + b"\r\n" + one + b"\r\n\r\n\r\n" + one]) == (
        [Keepalive.PING, one, one, Keepalive.PING, one],
        "",
    )
    assert fed([b"\r\n", b"\r\n", b"\r"]) == ([Keepalive.PING], "")


@pytest.mark.parametrize(
    ("data", "status", "answerable"),
    [
        (message().replace(b"Content-Length: 0\r\n", b""), 400, True),
        (message(extra=b"l: 0\r\n"), 400, True),
        (message(extra=b"Content-Length: 5\r\n"), 400, True),
        (message().replace(b"Length: 0", b"Length: -1"), 400, True),
        (message().replace(b"Length: 0", b"Length:"), 400, True),
        (message().replace(b"Length: 0", b"Length: 0, 0"), 400, True),
        (message().replace(b"Length: 0", b"Length: 0\r\n 5"), 400, True),
        (message().replace(b"Length: 0", b"Length: 99999"), 513, True),
        (message().replace(b"Length: 0", b"Length: 99999999999"), 400, True),
        (message(extra=b"X: a\nb\r\n"), 400, True),
        (message(extra=b"X: a\rContent-Length: 9\r\n"), 400, True),
        (message(extra=b"Y: " + b"y" * LIMIT + b"\r\n"), 513, True),
        (b"\x16\x03\x01", 0, False),
        (b"\rOPTIONS", 0, False),
        (b" OPTIONS", 0, False),
    ],
)
def test_framer_stream_that_cannot_go_on_raises(data: bytes, status: int, answerable: bool) -> None:
    framer = StreamFramer(LIMIT)
    with pytest.raises(ParseError) as error:
        framer.feed(data)
    assert error.value.status == status
    assert framer.failed is not None
    assert (framer.failed.status, framer.failed.detail) == (status, error.value.detail)
    assert framer.failed.__traceback__ is None  # whose frames hold the framer: nothing but the garbage collector would free it
    assert (salvage(framer.refused) is not None) is answerable
    with pytest.raises(ParseError):
        framer.feed(message())
    assert framer.buffered == 0


def test_framer_whole_messages_before_the_fault_are_not_lost() -> None:
    framer = StreamFramer(LIMIT)
    assert framer.feed(message() + b"\x00") == [message()]
    assert framer.failed is not None
    with pytest.raises(ParseError):
        framer.feed(b"")


def test_framer_names_that_only_look_like_content_length_do_not_count() -> None:
    data = message(extra=b"X-Content-Length: 7\r\nll: 7\r\nX: y\r\n Content-Length: 7\r\n")
    assert fed([data]) == ([data], "")


def test_framer_claimed_length_reserves_nothing() -> None:
    framer = StreamFramer(10_000_000)
    assert framer.feed(message().replace(b"Length: 0", b"Length: 9000000")) == []
    assert framer.buffered < 100


def test_framer_message_of_exactly_the_limit_passes() -> None:
    data = message(b"b" * 100)
    assert fed([data], len(data)) == ([data], "")
    assert fed([data], len(data) - 1)[1] != ""


@pytest.mark.parametrize("data", [message() * 3000, b"\r\n" * 100_000, message(extra=b"X: " + b"\r\n y" * 15000 + b"\r\n") * 2])
def test_framer_many_small_chunks_take_linear_time(data: bytes) -> None:
    start = time.thread_time()
    out, error = fed([data[at : at + 7] for at in range(0, len(data), 7)])
    assert out
    assert error == ""
    assert time.thread_time() - start < 10


@pytest.mark.parametrize("chunk", [1000, LIMIT])
def test_framer_headers_without_an_end_are_bounded(chunk: int) -> None:
    framer = StreamFramer(LIMIT)
    framer.feed(b"OPTIONS sip:a@h SIP/2.0\r\nX: ")
    for _ in range((LIMIT - 30) // chunk):
        assert framer.feed(b"y" * chunk) == []
    with pytest.raises(ParseError) as error:
        framer.feed(b"y" * chunk)
    assert error.value.status == 513
    assert framer.buffered == 0
