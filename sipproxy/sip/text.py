"""Bytes of a message as text for people and records: UTF-8, with the replacement character where it is not."""

from __future__ import annotations

import functools

__all__ = ["MAX_TEXTS", "MAX_TEXT_BYTES", "shared_text", "text"]

MAX_TEXTS = 1024
"""Texts that are kept because many messages have them in common: models and versions of routers."""
MAX_TEXT_BYTES = 200  # of one


def text(value: bytes | None) -> str:
    """The value decoded; "" for None. Never raises."""
    return (value or b"").decode("utf-8", "replace")


def shared_text(value: bytes | None) -> str:
    """The same for what is kept for long and many have in common, such as a User-Agent: one text in memory for all of them."""
    return _shared(value) if value and len(value) <= MAX_TEXT_BYTES else text(value)


_shared = functools.lru_cache(maxsize=MAX_TEXTS)(text)
