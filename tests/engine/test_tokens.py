"""Tokens that others carry: nobody makes, changes or reads one (RFC 5626 §5.2)."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sipproxy.engine.tokens import Tokens


class Note(msgspec.Struct, frozen=True, array_like=True):
    text: str
    number: int


class Other(msgspec.Struct, frozen=True, array_like=True):
    text: str
    number: int


OURS, OTHERS = Tokens(b"k" * 32), Tokens(b"o" * 32)
NOTE = Note("alice over udp:203.0.113.1", 7)


@given(st.text(max_size=200), st.integers(0, 2**60), st.binary(max_size=40))
def test_token_opens_to_what_was_sealed_and_fits_a_uri_parameter(text: str, number: int, context: bytes) -> None:
    note = Note(text, number)
    token = OURS.seal(note, context)
    assert OURS.open(Note, token, context) == note
    assert all(chr(byte).isalnum() or byte in b"-_" for byte in token)  # RFC 3261 §25.1, token
    assert OURS.seal(note, context) == token


def test_token_of_another_kind_context_or_node_does_not_open() -> None:
    token = OURS.seal(NOTE, b"call-1")
    assert OURS.open(Note, token, b"call-1") == NOTE
    assert OURS.open(Other, token, b"call-1") is None
    assert OURS.open(Note, token, b"call-2") is None
    assert OTHERS.open(Note, token, b"call-1") is None


@given(st.data())
def test_token_with_one_byte_changed_does_not_open(data: st.DataObject) -> None:
    token = OURS.seal(NOTE)
    at = data.draw(st.integers(0, len(token) - 1))
    byte = data.draw(st.sampled_from(sorted(set(b"ABCDwxyz0189-_") - {token[at]})))
    changed = token[:at] + bytes([byte]) + token[at + 1 :]
    # The last character has bits that say nothing: another spelling of the same bytes is the same token.
    assert OURS.open(Note, changed) in ((None, NOTE) if at == len(token) - 1 else (None,))


@given(st.binary(max_size=1500))
def test_token_that_somebody_made_up_does_not_open(token: bytes) -> None:
    assert OURS.open(Note, token) is None


def test_token_hides_what_it_holds() -> None:
    one, other = OURS.seal(NOTE), OURS.seal(Note(NOTE.text, 8))
    assert b"alice" not in one
    assert sum(a == b for a, b in zip(one, other, strict=True)) < len(one) // 4  # nothing of two like ones is alike
