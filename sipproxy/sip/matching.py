"""Which transaction a message belongs to: RFC 3261 §17.1.3 (responses), §17.2.3 (requests), §9.2 (CANCEL).

Pure: keys for the engine's tables, no tables. A key is a tuple to be compared for equality only; keys of server and client
transactions never meet in one table. ACK for a 2xx is a request of its own (§13.2.2.4): from a client that follows
RFC 3261 its branch is new, so that its key finds nothing. All functions are for messages without `faults`. Tables keep keys for
longer than messages: what is long in one is replaced by its digest, which nobody can give two of.
"""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sipproxy.sip.message import Request, Response

__all__ = [
    "MAGIC_COOKIE",
    "MAX_KEY",
    "branch_key",
    "cancel_target_key",
    "client_key",
    "is_rfc3261_branch",
    "response_key",
    "server_key",
]

MAGIC_COOKIE = b"z9hG4bK"  # §8.1.1.7
MAX_KEY = 200  # bytes of branch and host in a key: a real branch has some 40, and may be as long as a datagram

Key = tuple[object, ...]


def is_rfc3261_branch(branch: bytes | None) -> bool:
    """Whether a branch is unique by itself: the magic cookie and something after it (§17.2.3, RFC 4475 §3.2.1)."""
    return branch is not None and branch.startswith(MAGIC_COOKIE) and branch != MAGIC_COOKIE


def server_key(request: Request) -> Key:
    """Key of the server transaction that `request` starts, repeats or, being an ACK for a non-2xx, belongs to."""
    if request.key is None:
        method = request.method
        request.key = _server_key(request, b"INVITE" if method == b"ACK" else method)
    return request.key


def branch_key(branch: bytes, sent_by: tuple[bytes, int], method: bytes) -> Key:
    """Key of the server transaction of a branch that is unique by itself (§17.2.3)."""
    if len(branch) + len(sent_by[0]) <= MAX_KEY:
        return (branch, sent_by, method)
    return (_digest((branch, sent_by)), method)


def cancel_target_key(cancel: Request) -> Key:
    """Key of the INVITE server transaction that `cancel` is for.

    §9.2: matched by §17.2.3 as if the method were the one to be cancelled; CANCEL has no effect on any but INVITE.
    """
    return _server_key(cancel, b"INVITE")


def client_key(branch: bytes, method: bytes) -> Key:
    """Key of the client transaction that sends `method` with our `branch` (§17.1.3)."""
    return (branch, method)


def response_key(response: Response) -> Key:
    """Key of the client transaction that `response` answers; without a branch one that no client transaction has."""
    return (response.via.branch, response.cseq.method)


def _digest(parts: tuple[object, ...]) -> bytes:
    return sha256(repr(parts).encode()).digest()


def _server_key(request: Request, method: bytes) -> Key:
    via = request.via
    branch = via.branch
    if is_rfc3261_branch(branch):
        # §17.2.3: branch, sent-by and method. The branch is compared as written: a client's is repeated byte for byte, and
        # two that differ in case alone are two transactions.
        assert branch is not None
        return branch_key(branch, via.frame.sent_by, method)
    # §17.2.3, for clients of RFC 2543: Request-URI, tags, Call-ID, CSeq and the top Via. An ACK bears the To tag of the
    # response and not that of the INVITE, so the key of an INVITE goes without; CSeq keeps a re-INVITE apart.
    to_tag = None if method == b"INVITE" else request.to.tag
    parts = (request.uri, request.from_.tag, to_tag, request.call_id, request.cseq.number, via.raw)
    return (_digest(parts), method)
