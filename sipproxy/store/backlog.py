"""What must reach the store in the end: the latest wish per key, sent in windows, kept until the store confirmed it.

While the store is away or refuses, wishes wait here, each new one for a key replacing the older. Wishes must be idempotent:
one whose reply was lost is sent again. An error that is about the one command and not about the server (WRONGTYPE) drops
its wish, counted under the error's name. Leaves out what the commands are.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from sipproxy.store.connection import State
from sipproxy.store.errors import ReplyError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sipproxy.store.connection import Command, Store

__all__ = ["Backlog"]

K = TypeVar("K")
V = TypeVar("V")

# Wishes in flight at once when there are many, which half of leave together: at about 20 us each here, and 10 us in the server,
# they delay a message or a slot by 0.3 ms.
WINDOW = 32
# At 200 calls a second nearly all releases leave with another call's take, and node and store are not woken for them alone. A
# take of this node does not overtake them, and no caller dials again sooner by another one.
LINGER_S = 0.02
_RETRY_S = 0.1


class Backlog(Generic[K, V]):
    """`command(key, wish)` builds what is sent, at the time it is sent; None means that the wish has become moot."""

    def __init__(
        self,
        store: Store,
        command: Callable[[K, V], Command | bytes | None],
        *,
        limit: int,
        window: int = WINDOW,
        linger_s: float = LINGER_S,
        observe: Callable[[V, object], None] | None = None,
        group: Callable[[K], Hashable] | None = None,
    ) -> None:
        """A wish waits for others to leave with, `linger_s` at most. `observe` sees each wish's reply before anything else is
        sent; `group` says what `hurry` finds a key's wish by."""
        self._store = store
        self._command = command
        self._limit = limit
        self._window = window
        self._linger_s = linger_s
        self._observe = observe
        self._group = group
        self._waiting: OrderedDict[K, V] = OrderedDict()  # a plain dict's first item costs as much as was taken from it before
        self._groups: dict[Hashable, dict[K, None]] = {}  # the keys of those that wait
        self._flight: dict[K, object] = {}
        self._in_flight = 0
        self._held = False  # after a refusal, until the store is up again
        self.confirmed = 0
        self.dropped: dict[str, int] = {}
        store.on_state(self._on_state)

    def __len__(self) -> int:
        """Wishes that the store has not confirmed; one in flight and one waiting for the same key are two."""
        return len(self._waiting) + self._in_flight

    def __contains__(self, key: K) -> bool:
        return key in self._waiting or key in self._flight

    def put(self, key: K, wish: V, *, at_once: bool = False) -> bool:
        """Wish for `wish`; `at_once` overtakes the window. False when the backlog is full and the wish was dropped.

        It leaves with what has to leave at once, with half a window of others, or when it has waited for these.
        """
        if key in self._waiting:
            self._take_out(key)  # the order is that of the latest wishes
        elif len(self._waiting) >= self._limit:
            self._drop("FULL")
            return False
        if at_once and self._sendable:
            self._send(key, wish, self._linger_s)
            return True
        self._put_in(key, wish)
        self._pump(self._linger_s)
        return True

    def discard(self, key: K) -> None:
        """Forget the wish. One that has left already may still be executed, but is not repeated."""
        if key in self._waiting:
            self._take_out(key)
        self._flight.pop(key, None)

    def _pump(self, linger_s: float = 0.0) -> None:
        """Send what the window allows; `linger_s` is that of `Store.submit`."""
        while self._waiting and self._in_flight < self._window and self._sendable:
            key = next(iter(self._waiting))
            self._send(key, self._take_out(key), linger_s if self._in_flight < self._window // 2 else 0.0)

    def hurry(self, group: Hashable) -> bool:
        """Send what waits of a group, beyond window and hold too; whether any of it is on its way now.

        For who was just told that the store takes such commands, and did not take into account what had not been sent.
        """
        for key in list(self._groups.get(group, ())):
            self._send(key, self._take_out(key))
        return self._group is not None and any(self._group(key) == group for key in self._flight)

    def resume(self) -> None:
        """The store was just seen to take such commands: what is held since a refusal leaves before the state says so."""
        if self._held:
            self._held = False
            self._pump()

    def _put_in(self, key: K, wish: V) -> None:
        self._waiting[key] = wish
        if self._group is not None:
            self._groups.setdefault(self._group(key), {})[key] = None

    def _take_out(self, key: K) -> V:
        if self._group is not None:
            group = self._group(key)
            keys = self._groups[group]
            del keys[key]
            if not keys:
                del self._groups[group]
        return self._waiting.pop(key)

    @property
    def _sendable(self) -> bool:
        return not self._held and self._store.state is not State.AWAY

    def _send(self, key: K, wish: V, linger_s: float = 0.0) -> None:
        command = self._command(key, wish)
        if command is None:
            self._flight.pop(key, None)
            return
        token = object()
        self._flight[key] = token
        self._in_flight += 1
        self._store.submit(command, lambda reply: self._on_reply(key, wish, token, reply), linger_s=linger_s)

    def _on_reply(self, key: K, wish: V, token: object, reply: object) -> None:
        self._in_flight -= 1
        if self._observe is not None:
            self._observe(wish, reply)
        latest = self._flight.get(key) is token
        if latest:
            del self._flight[key]
        if not isinstance(reply, StoreError):
            self.confirmed += 1
        elif isinstance(reply, ReplyError) and not reply.is_server_state and reply.name != "NOSCRIPT":
            self._drop(reply.name)
        else:
            if latest and key not in self._waiting:
                self._put_in(key, wish)
            if reply.name != "NOSCRIPT":  # that one is cured by sending the script with the command, at once
                self._hold()
        if self._in_flight <= self._window // 2:  # half windows, so that many leave in one pipeline
            self._pump()

    def _hold(self) -> None:
        """Send nothing until the store comes up, or, when it does not say that it was down (FULL), for a moment."""
        if not self._held and self._store.state is State.UP and not self._store.closed:
            asyncio.get_running_loop().call_later(_RETRY_S, self._on_state, State.UP, "")
        self._held = True

    def _drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def _on_state(self, state: State, reason: str) -> None:
        if state is State.UP:
            self._held = False
            self._pump()
        del reason
