"""Every entry point with damaged input, for seconds: the short form of `make fuzz`; and what `make fuzz` once found."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from random import Random

import pytest

from tests.fuzz.linear import LIMIT, PIECES, SIZES, framed, stream
from tests.fuzz.seeds import WORDS
from tests.fuzz.targets import TARGETS

INPUTS = {
    "bindings": 60,
    "registration": 200,
    "policy": 60,
    "journal": 100,
    "engine": 250,
    "config": 60,
}  # of those that take longest
SQUARE = (SIZES[-1] // SIZES[0]) * 4  # 16 sizes: linear time is 16 times as long, that of a square 256 times


def damaged(data: bytes, random: Random, others: tuple[bytes, ...]) -> bytes:
    """`data` after some of what a fuzzer does: bytes changed, cut out, doubled, words of the grammar put in, others' parts."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        at, end = sorted(random.randrange(len(out) + 1) for _ in range(2))
        end = min(end, at + random.choice((1, 2, 8, 200)))
        kind = random.randrange(6)
        if kind == 0:
            out[at:at] = random.choice(WORDS)
        elif kind == 1:
            out[at:end] = b""
        elif kind == 2:
            out[at:end] = out[at:end] * random.choice((2, 3, 40))
        elif kind == 3:
            out[at:end] = random.randbytes(end - at)
        elif kind == 4:
            other = random.choice(others)
            out[at:end] = other[at : at + random.choice((1, 10, 200))]
        elif at < len(out):
            out[at] ^= 1 << random.randrange(8)
    return bytes(out[:8192])


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_raises_only_what_its_entry_point_may_raise(name: str) -> None:
    target, random = TARGETS[name], Random(name)
    for seed in target.seeds:
        target.run(seed)
    for number in range(INPUTS.get(name, 400)):
        data = damaged(random.choice(target.seeds), random, target.seeds)
        try:
            target.run(data)
        except Exception as error:
            error.add_note(f"input {number}: {data!r}")
            raise


def calls_of(run: Callable[[bytes], None], data: bytes) -> int:
    """How many functions, built-in ones included, are called for an input: the same on every machine."""
    count = 0

    def seen(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        run(data)
    finally:
        sys.setprofile(before)
    return count


def growth(
    run: Callable[[bytes], object], made: Callable[[str, bytes], bytes], name: str, filling: bytes, runs: int = 5
) -> float:
    """How much longer the largest size takes than the smallest one, of this thread's CPU time, the least of several."""
    best = []
    for size in (SIZES[0], SIZES[-1]):
        data, seconds = made(name, filling * (size // len(filling))), []
        for _ in range(runs):
            began = time.thread_time()
            run(data)
            seconds.append(time.thread_time() - began)
        best.append(min(seconds))
    return best[1] / best[0]


@pytest.mark.parametrize(
    "name", ["message", "uri", "digest", "framing", "sdp", "store", "config", "files", "capture", "facts", "journal"]
)
def test_work_at_most_doubles_when_the_input_does(name: str) -> None:
    """`make linear` has the time; this counts calls, which a loop within a loop shows."""
    run = stream if name == "framing" else TARGETS[name].run
    for piece, filling in PIECES.items():
        counts = []
        for size in (1024, 2048, 4096):
            data = framed(name, filling * (size // len(filling)))
            run(data)  # caches and imports are filled
            counts.append(calls_of(run, data))
        for before, after in pairwise(counts):
            assert after < LIMIT * before + 50, (piece, counts)


@pytest.mark.parametrize("name", ["message", "registration", "framing"])
@pytest.mark.parametrize("piece", ["folds", "spaces", "quotes", "brackets", "lines", "crlf"])
def test_time_of_a_message_does_not_grow_by_the_square(name: str, piece: str) -> None:
    """What one call of a regular expression takes is in no count. `make linear` looks closer."""
    run = stream if name == "framing" else TARGETS[name].run
    assert growth(run, framed, name, PIECES[piece]) < SQUARE


def test_growth_of_time_shows_an_expression_that_searches_anew_from_each_character() -> None:
    """The test above can fail."""
    careless = re.compile(rb"a+b")
    assert growth(careless.search, lambda _name, filling: filling, "", b"a", runs=1) > SQUARE


def test_count_of_calls_shows_a_loop_within_a_loop() -> None:
    """The test above can fail."""

    def careless(data: bytes) -> None:
        for at in range(len(data)):
            for end in range(at):
                max(at, end)

    assert calls_of(careless, b"x" * 200) > 3.5 * calls_of(careless, b"x" * 100)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("policy", b"\x81\xa7\xa7SHA-25\xa1x"),  # a name that is not UTF-8: msgspec raises UnicodeDecodeError
        ("store", b"%3\r\n:1\r\n:2\r\n>0\r\n"),  # a map with a key that is no plain value: hiredis raises TypeError
        ("store", b"*2\r\n$1\r\n1\r\n$-1\r\n"),  # a reply of the slot script that is none
        ("store", b"at_ms\nsoon"),
        ("store", b"calls\n\xc2\xb2\nat_ms\n1"),  # a digit by `str.isdigit` that `int` does not take
    ],
)
def test_what_once_was_found_stays_found(name: str, data: bytes) -> None:
    TARGETS[name].run(data)
