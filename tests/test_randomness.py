"""Random bytes in blocks: as many as are asked for, and none twice."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipproxy import randomness
from sipproxy.randomness import BLOCK, RandomBytes


@given(st.lists(st.one_of(st.integers(0, 40), st.integers(BLOCK - 40, 3 * BLOCK)), max_size=60))
def test_random_bytes_are_of_the_length_asked_for_and_never_given_twice(counts: list[int]) -> None:
    drawn = bytearray()

    def draw(count: int) -> bytes:
        fresh = len(drawn).to_bytes(4, "big") * (count // 4 + 1)  # no two blocks have a part of four bytes in common, aligned
        drawn.extend(fresh[:count])
        return fresh[:count]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(randomness.os, "urandom", draw)
        source = RandomBytes()
        given_out = [source(count) for count in counts]
    assert [len(data) for data in given_out] == counts
    at = 0
    for data in given_out:  # each is a part of what was drawn, behind the one before
        at = drawn.index(data, at) + len(data)


def test_random_bytes_are_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = os.urandom
    monkeypatch.setattr(randomness.os, "urandom", lambda count: asked.append(count) or real(count))
    source = RandomBytes()
    tokens = [source(12) for _ in range(1000)]
    assert len(set(tokens)) == 1000
    assert len(asked) <= 12 * 1000 // (BLOCK - 12) + 1
