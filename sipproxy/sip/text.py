"""Bytes of a message as text for people and records: UTF-8, with the replacement character where it is not."""

from __future__ import annotations

__all__ = ["text"]


def text(value: bytes | None) -> str:
    """The value decoded; "" for None. Never raises."""
    return (value or b"").decode("utf-8", "replace")
