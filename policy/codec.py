"""Policy data as msgpack, one value per hash field, for Redis.

Pure. Maps with field names, so that a newer version's additional fields are skipped by an older one. The field of a line is
its id, of an account its user, of a number or range its text, of a block rule its id, of PSAP routes `psap_field`.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from policy.model import Account, BlockRule, Line, PsapRoute

__all__ = [
    "Owner",
    "decode_account",
    "decode_block",
    "decode_line",
    "decode_owner",
    "decode_psap",
    "encode",
    "encode_psap",
    "psap_field",
]

T = TypeVar("T")


class Owner(msgspec.Struct, frozen=True):
    """Whom a number or range is assigned to."""

    account: str
    line: str


_encoder = msgspec.msgpack.Encoder()
_lines = msgspec.msgpack.Decoder(Line)
_accounts = msgspec.msgpack.Decoder(Account)
_blocks = msgspec.msgpack.Decoder(BlockRule)
_psap = msgspec.msgpack.Decoder(tuple[PsapRoute, ...])
_owners = msgspec.msgpack.Decoder(Owner)
_ANY = msgspec.msgpack.Decoder()


def encode(value: Line | Account | BlockRule | Owner) -> bytes:
    """One value as msgpack."""
    if isinstance(value, Account):
        return _encoder.encode({**{name: getattr(value, name) for name in Account.__slots__}, "ha1": dict(value.ha1)})
    return _encoder.encode(value)


def encode_psap(routes: tuple[PsapRoute, ...]) -> bytes:
    """All routes of one location and service."""
    return _encoder.encode(routes)


def psap_field(location: str, service: str) -> str:
    """The field that holds the routes of a location and service."""
    return f"{service}:{location}"


def decode_line(data: bytes) -> Line:
    """Inverse of `encode`; raises msgspec.DecodeError or msgspec.ValidationError, which is one."""
    return _decoded(_lines, data)


def _decoded(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    try:
        return decoder.decode(data)
    except UnicodeDecodeError as error:  # msgspec lets it out
        raise msgspec.DecodeError(f"text that is not UTF-8: {error.reason}") from None


def decode_account(data: bytes) -> Account:
    """See `decode_line`."""
    return _decoded(_accounts, data)


def decode_block(data: bytes) -> BlockRule:
    """See `decode_line`. Rules from before rules had kinds are prefixes, named so."""
    try:
        return _decoded(_blocks, data)
    except msgspec.ValidationError:
        fields = _decoded(_ANY, data)
        if not isinstance(fields, dict) or "prefix" not in fields:
            raise
        return msgspec.convert({**fields, "value": fields["prefix"]}, BlockRule)


def decode_owner(data: bytes) -> Owner:
    """See `decode_line`."""
    return _decoded(_owners, data)


def decode_psap(data: bytes) -> tuple[PsapRoute, ...]:
    """See `decode_line`."""
    return _decoded(_psap, data)
