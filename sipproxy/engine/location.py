"""Location service: the bindings of each account, in memory, with their flows (RFC 3261 §10.3, RFC 5626 §3).

Pure. The node's memory is what calls are routed by; the store keeps a copy for the next start. Times are UTC milliseconds,
because a binding outlives the process whose monotonic clock stamped it.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING

import msgspec

from sipproxy.sip.flow import Flow  # noqa: TC001  msgspec reads the annotations

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Binding", "Location"]


class Binding(msgspec.Struct, frozen=True):
    """One contact of an account.

    `contact` is the URI's bytes as Latin-1, which loses none of them; `q` is in thousandths; `key` identifies the binding
    within its account.
    """

    key: str
    contact: str
    flow: Flow
    path: tuple[str, ...]
    call_id: str
    cseq: int
    expires_at_ms: int
    user_agent: str = ""
    q: int = 1000
    instance: str = ""
    reg_id: int = 0
    node: str = ""


class Location:
    """Bindings by account and by flow. At most `limit` bindings in all; `put` refuses what would exceed it."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_user: dict[str, dict[str, Binding]] = {}
        self._by_flow: dict[Flow, set[str]] = {}
        self._expiries: list[tuple[int, str, str]] = []  # heap; stale entries are skipped when due
        self.count = 0

    @property
    def is_full(self) -> bool:
        return self.count >= self._limit

    def bindings(self, user: str, now_ms: int) -> list[Binding]:
        """The unexpired bindings of the account, best q first."""
        found = [b for b in self._by_user.get(user, {}).values() if b.expires_at_ms > now_ms]
        return found if len(found) < 2 else sorted(found, key=lambda b: -b.q)

    def users_at(self, flow: Flow, now_ms: int) -> list[str]:
        """The accounts with an unexpired binding over this very flow."""
        return [
            user
            for user in self._by_flow.get(flow, ())
            if any(b.flow == flow and b.expires_at_ms > now_ms for b in self._by_user.get(user, {}).values())
        ]

    def put(self, user: str, binding: Binding) -> bool:
        """Add or replace the binding. False when the table is full and the binding is new."""
        of_user = self._by_user.setdefault(user, {})
        old = of_user.get(binding.key)
        if old is None and self.is_full:
            if not of_user:
                del self._by_user[user]
            return False
        if old is None:
            self.count += 1
        of_user[binding.key] = binding
        if old is not None and old.flow != binding.flow:
            self._forget_flow(user, old.flow)
        self._by_flow.setdefault(binding.flow, set()).add(user)
        heapq.heappush(self._expiries, (binding.expires_at_ms, user, binding.key))
        if len(self._expiries) > 2 * self.count + 1024:
            self._expiries = [(b.expires_at_ms, u, b.key) for u, b in self.items()]
            heapq.heapify(self._expiries)
        return True

    def remove(self, user: str, key: str) -> bool:
        of_user = self._by_user.get(user)
        if of_user is None or key not in of_user:
            return False
        old = of_user.pop(key)
        self.count -= 1
        if not of_user:
            del self._by_user[user]
        self._forget_flow(user, old.flow)
        return True

    def _forget_flow(self, user: str, flow: Flow) -> None:
        if any(b.flow == flow for b in self._by_user.get(user, {}).values()):
            return
        users = self._by_flow.get(flow)
        if users is not None:
            users.discard(user)
            if not users:
                del self._by_flow[flow]

    def expire(self, now_ms: int) -> list[tuple[str, Binding]]:
        """Remove and return what has expired."""
        gone = []
        while self._expiries and self._expiries[0][0] <= now_ms:
            _, user, key = heapq.heappop(self._expiries)
            binding = self._by_user.get(user, {}).get(key)
            if binding is not None and binding.expires_at_ms <= now_ms:
                self.remove(user, key)
                gone.append((user, binding))
        return gone

    @property
    def next_expiry_at_ms(self) -> int | None:
        """When `expire` is worth calling next; may be early, never late."""
        return self._expiries[0][0] if self._expiries else None

    def items(self) -> Iterator[tuple[str, Binding]]:
        for user, of_user in self._by_user.items():
            for binding in of_user.values():
                yield user, binding
