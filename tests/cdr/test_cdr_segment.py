"""The journal's file format: whatever happens to the bytes, only what was written comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdr.segment import (
    FRAME_SIZE,
    HEADER_SIZE,
    MARKER,
    MAX_PAYLOAD,
    Frame,
    Header,
    Hole,
    frames,
    read_header,
    write_frame,
    write_header,
)

SALT = 0xC0FFEE
HEADER = Header(12, SALT, 34, 33, "nöde")


def written(payloads: list[bytes], position: int = 0) -> bytes:
    data = b""
    for payload in payloads:
        data += write_frame(payload, position + len(data), SALT)
    return data


def payloads_in(data: bytes, position: int = 0, salt: int = SALT) -> list[bytes]:
    return [item.payload for item in frames(data, 0, position, salt) if isinstance(item, Frame)]


PAYLOADS = st.lists(st.binary(min_size=1, max_size=40) | st.just(MARKER * 3), max_size=8)


@given(PAYLOADS, st.integers(0, 2**40))
def test_frames_written_one_after_the_other_are_read(payloads: list[bytes], position: int) -> None:
    items = list(frames(written(payloads, position), 0, position, SALT))
    assert [item.payload for item in items if isinstance(item, Frame)] == payloads
    assert not any(isinstance(item, Hole) for item in items)


@given(PAYLOADS, st.data())
def test_frames_with_a_changed_stretch_lose_only_what_was_hit(payloads: list[bytes], data: st.DataObject) -> None:
    """Any stretch of bytes overwritten with anything: the rest comes back, in order, nothing else, and the hole is told."""
    good = written(payloads)
    start = data.draw(st.integers(0, len(good)))
    noise = data.draw(st.binary(max_size=len(good) - start))
    bad = good[:start] + noise + good[start + len(noise) :]
    kept, offset = [], 0
    for payload in payloads:
        end = offset + FRAME_SIZE + len(payload)
        if bad[offset:end] == good[offset:end]:
            kept.append(payload)
        offset = end
    items = list(frames(bad, 0, 0, SALT))
    assert [item.payload for item in items if isinstance(item, Frame)] == kept
    holes = sum(item.end - item.offset for item in items if isinstance(item, Hole))
    assert holes == len(good) - sum(FRAME_SIZE + len(payload) for payload in kept)


def test_frames_inside_a_payload_are_not_taken_for_records_after_damage() -> None:
    """What a peer sends may look like a frame; without the salt and its position it is none."""
    for salt, position in ((0, 0), (SALT, 0), (SALT + 1, 3 * FRAME_SIZE)):
        forged = write_frame(b"forged", position, salt)
        data = bytearray(written([b"a" * 24, b"x" + forged + b"y", b"last"]))
        data[FRAME_SIZE + 24] ^= 1
        assert payloads_in(bytes(data)) == [b"a" * 24, b"last"]


def test_frames_moved_to_another_place_are_not_read() -> None:
    assert payloads_in(written([b"a", b"b"]), position=1) == []
    assert payloads_in(written([b"a", b"b"]), salt=SALT + 1) == []


@pytest.mark.parametrize("tail", [MARKER[:1], MARKER, MARKER + b"\x05\0\0\0", written([b"abcdef"])[:-1], b"\0" * 50])
def test_frames_unfinished_write_at_the_end_is_torn(tail: bytes) -> None:
    *whole, hole = frames(written([b"a"]) + tail, 0, 0, SALT)
    assert [item.payload for item in whole if isinstance(item, Frame)] == [b"a"]
    assert isinstance(hole, Hole)
    assert hole.torn


@pytest.mark.parametrize("tail", [b"\x01" + MARKER, MARKER + b"\xff" * 60, b"\0" * 20 + b"\1", written([b"abcdef"], 5)])
def test_frames_foreign_bytes_at_the_end_are_damage(tail: bytes) -> None:
    *_, hole = frames(written([b"a"]) + tail, 0, 0, SALT)
    assert isinstance(hole, Hole)
    assert not hole.torn


def test_frames_many_markers_are_read_in_bounded_time() -> None:
    """A payload full of markers, each of which claims the longest payload, behind damage."""
    fake = MARKER + MAX_PAYLOAD.to_bytes(4, "little") + b"\0\0\0\0"
    data = bytearray(written([fake * 500, b"z" * MAX_PAYLOAD, b"end"]))
    data[0] ^= 1
    assert payloads_in(bytes(data)) == [b"z" * MAX_PAYLOAD, b"end"]


@pytest.mark.parametrize("payload", [b"", b"x" * (MAX_PAYLOAD + 1)])
def test_write_frame_of_impossible_length_raises(payload: bytes) -> None:
    with pytest.raises(ValueError, match="journal entry"):
        write_frame(payload, 0, SALT)


def test_header_any_single_bit_flipped_is_read_from_the_other_copy() -> None:
    data = write_header(HEADER)
    assert len(data) == HEADER_SIZE
    assert read_header(data) == HEADER
    for bit in range(8 * len(data)):
        bad = bytearray(data)
        bad[bit // 8] ^= 1 << bit % 8
        assert read_header(bytes(bad)) == HEADER


@given(st.binary(max_size=300))
def test_header_any_other_bytes_are_none(data: bytes) -> None:
    assert read_header(data) is None


@pytest.mark.parametrize("node", ["", "n" * 65, "ö" * 33, "a\0b"])
def test_header_impossible_node_raises(node: str) -> None:
    with pytest.raises(ValueError, match="node id"):
        write_header(Header(0, 0, 0, 0, node))
