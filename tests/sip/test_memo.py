"""What was read is kept by its bytes, up to a bound, and never what failed."""

from __future__ import annotations

import pytest

from sipproxy.sip.errors import ParseError
from sipproxy.sip.memo import CACHED_LENGTH, Remembered


def reader() -> tuple[Remembered[int], list[bytes]]:
    """Lengths of at most four different values, and what was read for them."""
    read: list[bytes] = []

    def length(data: bytes) -> int:
        read.append(data)
        if data == b"bad":
            raise ParseError("bad")
        return len(data)

    return Remembered(length, 4), read


def test_value_is_read_once() -> None:
    lengths, read = reader()
    assert [lengths[b"abc"], lengths[bytes(bytearray(b"abc"))]] == [3, 3]
    assert read == [b"abc"]


def test_fault_is_told_each_time_and_not_kept() -> None:
    lengths, read = reader()
    faults = []
    for _ in range(2):
        with pytest.raises(ParseError) as fault:
            lengths[b"bad"]
        faults.append(fault.value)
    assert faults[0] is not faults[1]
    assert (read, dict(lengths)) == ([b"bad", b"bad"], {})


def test_long_data_are_not_kept() -> None:
    lengths, read = reader()
    for size in (CACHED_LENGTH, CACHED_LENGTH + 1):
        assert [lengths[b"x" * size], lengths[b"x" * size]] == [size, size]
    assert [len(data) for data in read] == [CACHED_LENGTH, CACHED_LENGTH + 1, CACHED_LENGTH + 1]


def test_what_comes_once_pushes_out_its_like_and_not_what_is_asked_for_often() -> None:
    lengths, read = reader()
    for number in range(20):
        assert lengths[b"often"] == 5
        assert lengths[b"%d" % number] == len(str(number))
        assert len(lengths) <= 2
    assert read.count(b"often") == 1
    assert lengths[b"0"] == 1
    assert read.count(b"0") == 2


def test_kept_and_forgotten_values_are_counted() -> None:
    """Of all that was read each value is kept or forgotten; one that was forgotten counts again when it is read again."""
    lengths, read = reader()
    for number in range(60):
        assert lengths[b"%d" % (number * number % 7)] == 1
        lengths[b"often"]
        held = lengths.keys() | generation_before(lengths).keys()
        assert (lengths.kept, lengths.forgotten) == (len(held), len(read) - len(held))
    assert lengths.forgotten > 10


def generation_before(lengths: Remembered[int]) -> dict[bytes, int]:
    """The generation before."""
    return lengths._before  # asking for what is there would read it anew
