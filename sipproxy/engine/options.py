"""Headers that list options: Supported, Require (RFC 3261 §20.32, §20.37).

Pure. Devices write the same lists into all their messages: what a line says is remembered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sipproxy.sip.headers import split_commas
from sipproxy.sip.memo import Remembered

if TYPE_CHECKING:
    from sipproxy.sip.message import Message

__all__ = ["has_option"]


def has_option(message: Message, header: bytes, option: bytes) -> bool:
    """Whether a header that lists options has this one, in lower case. Raises ParseError."""
    if header not in message.first_line:
        return False
    found = False
    for value in message.lines(header):
        found = option in _options[value] or found
    return found


def _read(value: bytes) -> frozenset[bytes]:
    return frozenset(option.lower() for option in split_commas(value))


_options = Remembered(_read)
