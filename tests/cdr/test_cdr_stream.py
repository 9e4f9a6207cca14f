"""cdr.stream: where the mark lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cdr.stream import mark_key

if TYPE_CHECKING:
    import redis.asyncio


@pytest.mark.parametrize(
    ("stream", "key"),
    [("sp:cdr", "sp:{sp:cdr}:mark:n1"), ("sp:{cdr:0}", "sp:{cdr:0}:mark:n1"), ("{a}{b}", "{a}{b}:mark:n1")],
)
async def test_mark_key_is_in_the_slot_of_the_stream(client: redis.asyncio.Redis, stream: str, key: str) -> None:
    assert mark_key(stream, "n1") == key
    from redis.crc import key_slot

    assert key_slot(key.encode()) == key_slot(stream.encode())


@pytest.mark.parametrize("stream", ["a}b", "a{}b", "{"])
def test_mark_key_braces_that_are_no_hash_tag_raise(stream: str) -> None:
    with pytest.raises(ValueError, match="hash tag"):
        mark_key(stream, "n1")
