"""The one error that reading a message, URI, header or credential raises."""

from __future__ import annotations

__all__ = ["ParseError"]


class ParseError(ValueError):
    """Bytes from a peer that the grammar does not allow.

    `detail` says what is wrong (lower case, peer input cut to 80 characters), `offset` is the position in bytes within
    what was parsed, `section` the rule broken (such as "RFC 3261 §20.42"), `status` the response that a request with
    this fault gets (RFC 3261 §8.2, §16.3), or 0 where it is dropped without one.
    """

    def __init__(self, detail: str, *, offset: int = 0, section: str = "RFC 3261 §25", status: int = 400) -> None:
        super().__init__(f"{detail} at byte {offset} ({section})")
        self.detail = detail
        self.offset = offset
        self.section = section
        self.status = status
