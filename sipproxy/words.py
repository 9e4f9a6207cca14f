"""What the workers of a node say to each other, and how it is written. See `siblings` for what becomes of it."""

from __future__ import annotations

import msgspec

from sipproxy.engine.crew import Told
from sipproxy.engine.structs import Binding  # noqa: TC001  msgspec reads the annotations
from sipproxy.sip.flow import Flow  # noqa: TC001  as above

__all__ = [
    "Asked",
    "Bound",
    "Closed",
    "Confirmed",
    "Failed",
    "Followed",
    "Kept",
    "Known",
    "Passed",
    "Send",
    "Unbound",
    "Unreachable",
    "Word",
    "decode",
    "encode",
]


class Passed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A message that is yours, as it came by this flow, after so many seconds in the kernel's buffer. Where there is an `ident`
    that worker is to be told by it that you have taken it."""

    flow: Flow
    data: bytes
    waited_s: float
    worker: int = 0
    ident: int = 0


class Confirmed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """I have taken what you passed to me."""

    ident: int


class Send(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Send this on your connection; `ident` is what a failure is told by to that worker, 0 for nothing."""

    flow: Flow
    data: bytes
    worker: int
    ident: int


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What you had sent did not go out."""

    ident: int


class Closed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A connection of mine has ended."""

    flow: Flow


class Unreachable(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """ICMP told me of a datagram that I did not send."""

    listener: int
    quoted: bytes
    host: str
    port: int


class Bound(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """I registered this."""

    user: str
    binding: Binding


class Unbound(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """I removed this."""

    user: str
    key: str
    at_ms: int


class Asked(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Tell me the bindings: the store does not."""

    worker: int


class Known(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A binding that you asked for; your own of before are among them."""

    user: str
    binding: Binding


class Kept(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Exceptions of the steering: all, for a worker that comes back, or what I took just now."""

    worker: int
    exceptions: list[tuple[bytes, int]]
    last: bool


class Followed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """An operator's watch follows this call."""

    ident: int
    call_id: str


Word = Passed | Confirmed | Send | Failed | Closed | Unreachable | Bound | Unbound | Asked | Known | Kept | Followed | Told

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Word).decode
