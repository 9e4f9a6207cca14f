"""Location service: the bindings of each account, in memory, with their flows (RFC 3261 §10.3, RFC 5626 §3).

Pure. The node's memory is what calls are routed by: its own bindings and those of the other nodes, whose flows are theirs.
The store keeps a copy for the next start. Times are UTC milliseconds, because a binding outlives the process whose monotonic
clock stamped it.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from hashlib import sha256
from typing import TYPE_CHECKING

from sipproxy.engine.forward import hop_of
from sipproxy.sip.flow import Flow, source_of
from sipproxy.sip.headers import parse_name_addr
from sipproxy.sip.uri import parse_uri

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from sipproxy.engine.structs import Binding
    from sipproxy.sip.flow import Hop
    from sipproxy.sip.message import Request

__all__ = ["MAX_ID", "MAX_LEFT", "MAX_REMOVED", "STATIC", "Location", "first_proxy", "ident_of", "supersedes"]

STATIC = "static "  # begins the key of a binding that the configuration made, and no REGISTER may touch

MAX_ID = 200  # bytes of a REGISTER's Call-ID, of which a binding keeps a digest where it is longer: it may fill a datagram
MAX_LEFT = 65_536  # flows that bindings left, remembered for calls that still know them
MAX_REMOVED = 8192  # removals that workers told each other; the store's log, which tells of them too, is some 0.2 s behind
LOOKED_AT_MS = 10_000  # how often an expired binding of another node is looked at while nothing is heard of them
EXPIRY_STEP_MS = 1000  # of UTC: accounts whose bindings expire within the same step are looked at together, at its end


def request_uri(contact: str) -> bytes:
    """The Request-URI for a contact: without the header fields that it may ask for (RFC 3261 §19.1.1); nobody has them added to
    requests by registering (RFC 4475 §3.3.14). Raises ParseError."""
    raw = contact.encode("latin-1")
    headers = parse_uri(raw).headers
    return raw[: -len(headers) - 1] if headers else raw


def ident_of(register: Request) -> str:
    """The Call-ID of a REGISTER as bindings have it: to be compared, and for nothing else."""
    call_id = register.call_id
    return call_id.decode("utf-8", "replace") if len(call_id) <= MAX_ID else sha256(call_id).hexdigest()


def first_proxy(binding: Binding) -> Hop:
    """Where requests for a binding with a Path go first (RFC 3327 §5.3). Raises ParseError, not for one that was taken in."""
    return hop_of(parse_name_addr(binding.path[0].encode("latin-1")).uri)


def supersedes(new: Binding, old: Binding) -> bool:
    """Whether a binding of any node takes the place of another: within one Call-ID the CSeq decides (RFC 3261 §10.3 step 7),
    else the later REGISTER, and at the same instant the node's name, so that all nodes agree. `store.bindings` has the same
    rule in its script."""
    if new.call_id == old.call_id and new.cseq != old.cseq:
        return new.cseq > old.cseq
    return (new.at_ms, new.node) >= (old.at_ms, old.node)


class Location:
    """Bindings by account and by flow. At most `limit` bindings in all; `put` refuses what would exceed it.

    `node` is the one whose location service this is; `siblings` are the workers that it shares its flows with.
    """

    def __init__(self, limit: int, node: str = "", siblings: frozenset[str] = frozenset()) -> None:
        self._limit = limit
        self._node = node
        self._near = siblings | {node, ""}
        self._by_user: dict[str, tuple[Binding, ...]] = {}  # few each: a dict of them would take more than they do
        self._by_flow: dict[Flow, str | set[str]] = {}  # an account, or several behind one proxy of theirs
        self._flows_at: Counter[str] = Counter()  # flows by source
        # By account and flow, key and instance of the binding that was there last.
        self._left: OrderedDict[tuple[str, Flow], tuple[str, str]] = OrderedDict()
        self._removed: OrderedDict[tuple[str, str], int] = OrderedDict()  # account and key, when registered (UTC ms)
        self.proxies: Counter[Hop] = Counter()  # first proxies of Path values, by how many bindings
        self._bindings_at: Counter[str] = Counter()  # all bindings by source, those of other nodes' connections too
        # Accounts by when (UTC) their bindings are looked at: none expires much before that; and these times, a heap.
        self._looked_at: dict[int, list[str]] = {}
        self._looks: list[int] = []
        self._awaited = 0  # accounts in all of `_looked_at`, each as often as it is there
        self.unheard_ms: int | None = (
            None  # since when (UTC) nothing is heard of other nodes' bindings, which stay as they were
        )
        self.count = 0
        self.elsewhere = 0  # of them, those with a flow of another node

    def is_own(self, binding: Binding) -> bool:
        """Whether the binding's flow is one of this node."""
        return binding.node in (self._node, "")

    def is_near(self, binding: Binding) -> bool:
        """Whether the binding's flow can be used from here: it is this node's, if maybe another worker's."""
        return binding.node in self._near

    def get(self, user: str, key: str) -> Binding | None:
        for binding in self._by_user.get(user, ()):
            if binding.key == key:
                return binding
        return None

    @property
    def left(self) -> int:
        """How many flows that bindings left are remembered."""
        return len(self._left)

    @property
    def removed(self) -> int:
        """How many removals are remembered, for the store may tell of what was there before."""
        return len(self._removed)

    @property
    def is_full(self) -> bool:
        return self.count >= self._limit

    def bindings(self, user: str, now_ms: int) -> list[Binding]:
        """The unexpired bindings of the account, best q first."""
        found = [b for b in self._by_user.get(user, ()) if b.expires_at_ms > now_ms]
        return found if len(found) < 2 else sorted(found, key=lambda b: -b.q)

    def reachable(self, user: str, now_ms: int) -> list[Binding]:
        """The bindings of the account by which a call may reach it: those that have not expired, and those of other nodes that
        had not when these were heard last. They may have been renewed since, which their nodes know."""
        found = self._by_user.get(user, ())
        return [
            b for b in found if b.expires_at_ms > (now_ms if self.unheard_ms is None or self.is_own(b) else self.unheard_ms)
        ]

    def users_at(self, flow: Flow, now_ms: int) -> list[str]:
        """The accounts with an unexpired binding over this very flow; over UDP also one that another node holds."""
        return [user for user in self._users(flow) if self.is_at(user, flow, now_ms)]

    def is_at(self, user: str, flow: Flow, now_ms: int) -> bool:
        """Whether the account is one of `users_at`. Of these there may be hundreds, behind one proxy of theirs."""
        return any(b.flow == flow and b.expires_at_ms > now_ms and self._is_indexed(b) for b in self._by_user.get(user, ()))

    def accounts_at(self, flow: Flow, now_ms: int) -> tuple[str, int]:
        """One account with an unexpired binding over this very flow, "" for none, and how many accounts share the flow."""
        found = self._by_flow.get(flow)
        if found is None:
            return "", 0
        users = (found,) if isinstance(found, str) else found
        for user in users:
            for binding in self._by_user.get(user, ()):
                if binding.flow == flow and binding.expires_at_ms > now_ms:
                    return user, len(users)
        return "", 0

    def _users(self, flow: Flow) -> Collection[str]:
        """The accounts that have, or had until lately, a binding over this very flow."""
        users = self._by_flow.get(flow, ())
        return (users,) if isinstance(users, str) else users

    def at(self, flow: Flow) -> list[tuple[str, Binding]]:
        """This node's bindings over this very flow."""
        return [
            (user, b) for user in self._users(flow) for b in self._by_user.get(user, ()) if b.flow == flow and self.is_own(b)
        ]

    def lose(self, user: str, binding: Binding) -> None:
        """Remove a binding whose flow has failed; what is on its way to that flow finds the device's next one."""
        if self.remove(user, binding.key):
            self._note_left(user, binding)

    def _note_left(self, user: str, binding: Binding) -> None:
        if not self.is_near(binding):
            return
        self._left[user, binding.flow] = binding.key, binding.instance
        self._left.move_to_end((user, binding.flow))
        if len(self._left) > MAX_LEFT:
            self._left.popitem(last=False)

    def successor(self, user: str, flow: Flow, now_ms: int) -> Flow:
        """Where a device is now that was reached by this flow of the account: there, as far as is known, or by the flow of the
        binding that took its binding's place, or of the same device, or else of the only device at its address."""
        own = [b for b in self.bindings(user, now_ms) if self.is_near(b)]
        left = self._left.get((user, flow))
        if left is None or any(b.flow == flow for b in own):
            return flow
        key, instance = left
        same = [b for b in own if b.key == key] or [b for b in own if instance and b.instance == instance]
        if not same:
            near = [b for b in own if b.flow.host == flow.host]
            same = near if len(near) == 1 else []
        return max(same, key=lambda b: b.at_ms).flow if same else flow

    def flows_at(self, host: str) -> int:
        """How many flows of bindings lead to this IP address, or into its IPv6 /64: the routers behind it."""
        return self._flows_at[source_of(host)]

    def has_binding_at(self, source: str) -> bool:
        """Whether any binding leads to this source (`flow.source_of`), at whichever node."""
        return source in self._bindings_at

    def _is_indexed(self, binding: Binding) -> bool:
        """A connection's number means something at its own node alone."""
        return self.is_near(binding) or binding.flow.transport == "UDP"

    def put(self, user: str, binding: Binding) -> bool:
        """Add or replace the binding. False when the table is full and the binding is new."""
        of_user = self._by_user.get(user, ())
        old: Binding | None = None
        kept: tuple[Binding, ...] = ()
        earliest_ms = binding.expires_at_ms + 1
        for known in of_user:
            if known.key == binding.key:
                old = known
            else:
                kept = (*kept, known)
            earliest_ms = min(earliest_ms, known.expires_at_ms)
        if old is None:
            if self.is_full:
                return False
            self.count += 1
        elif not self.is_own(old):
            self.elsewhere -= 1
        self.elsewhere += not self.is_own(binding)
        if binding.expires_at_ms < earliest_ms:
            self._look(user, binding.expires_at_ms)  # else they are looked at early enough
        self._by_user[user] = (*kept, binding)
        if old is not None and (old.flow, old.node, old.path) == (binding.flow, binding.node, binding.path):
            return True  # as nearly all are: by the same way to the same place
        self._bindings_at[source_of(binding.flow.host)] += 1
        if binding.path:
            self.proxies[first_proxy(binding)] += 1
        if old is not None:
            self._leave_source(old)
        if old is not None and old.flow != binding.flow:
            self._forget_flow(user, old.flow)
            self._note_left(user, old)
        if self._is_indexed(binding):
            self._note_flow(user, binding.flow)
        return True

    def _look(self, user: str, at_ms: int) -> None:
        """Have the account looked at when it is so late."""
        at = -(-at_ms // EXPIRY_STEP_MS) * EXPIRY_STEP_MS
        users = self._looked_at.get(at)
        if users is None:
            heapq.heappush(self._looks, at)
            self._looked_at[at] = [user]
        else:
            users.append(user)
        self._awaited += 1
        if self._awaited > 2 * len(self._by_user) + 1024:  # accounts that were removed, or were to be looked at later
            self._looked_at, self._looks, self._awaited = {}, [], 0
            for known, of_user in self._by_user.items():
                self._look(known, min(b.expires_at_ms for b in of_user))

    def remove(self, user: str, key: str, *, is_told: bool = False) -> bool:
        """Remove the binding. What `is_told` by workers is ahead of the store, which may yet tell of it as if it were there."""
        old = self.get(user, key)
        if old is None:
            return False
        if is_told and not self.is_own(old) and self.is_near(old):
            self._removed[user, key] = old.at_ms
            if len(self._removed) > MAX_REMOVED:
                self._removed.popitem(last=False)
        kept = tuple(b for b in self._by_user[user] if b is not old)
        self.count -= 1
        self.elsewhere -= not self.is_own(old)
        self._leave_source(old)
        if kept:
            self._by_user[user] = kept
        else:
            del self._by_user[user]
        self._forget_flow(user, old.flow)
        return True

    def was_removed(self, user: str, binding: Binding) -> bool:
        """Whether this binding of another worker was removed since it was registered."""
        return self.is_near(binding) and binding.at_ms <= self._removed.get((user, binding.key), -1)

    def _leave_source(self, old: Binding) -> None:
        source = source_of(old.flow.host)
        self._bindings_at[source] -= 1
        if not self._bindings_at[source]:
            del self._bindings_at[source]
        if old.path:
            proxy = first_proxy(old)
            self.proxies[proxy] -= 1
            if not self.proxies[proxy]:
                del self.proxies[proxy]

    def _note_flow(self, user: str, flow: Flow) -> None:
        users = self._by_flow.get(flow)
        if users is None:
            self._by_flow[flow] = user
            self._flows_at[source_of(flow.host)] += 1
        elif isinstance(users, set):
            users.add(user)
        elif users != user:
            self._by_flow[flow] = {users, user}

    def _forget_flow(self, user: str, flow: Flow) -> None:
        if any(b.flow == flow for b in self._by_user.get(user, ())):
            return
        users = self._by_flow.get(flow)
        if isinstance(users, set):
            users.discard(user)
        if not users or users == user:
            if self._by_flow.pop(flow, None) is None:
                return
            source = source_of(flow.host)
            self._flows_at[source] -= 1
            if not self._flows_at[source]:
                del self._flows_at[source]

    def expire(self, now_ms: int) -> list[tuple[str, Binding]]:
        """Remove and return what has expired, to the end of the last whole step. Other nodes' bindings stay while nothing is
        heard of them."""
        gone: list[tuple[str, Binding]] = []
        while self._looks and self._looks[0] <= now_ms:
            users = self._looked_at.pop(heapq.heappop(self._looks))
            self._awaited -= len(users)
            for user in users:
                gone += [(user, binding) for binding in self._expire(user, now_ms)]
        return gone

    def _expire(self, user: str, now_ms: int) -> list[Binding]:
        """Remove and return what has expired of the account, and look at the others when the first of them will have."""
        gone, again = [], []
        for binding in self._by_user.get(user, ()):
            if binding.expires_at_ms > now_ms:
                again.append(binding.expires_at_ms)
            elif self.unheard_ms is not None and self.unheard_ms < binding.expires_at_ms and not self.is_own(binding):
                again.append(now_ms + LOOKED_AT_MS)
            else:
                gone.append(binding)
        for binding in gone:
            self.remove(user, binding.key)
        if again:
            self._look(user, min(again))
        return gone

    def registered(self, user: str, now_ms: int) -> list[Binding]:
        """Of the bindings those that a REGISTER made."""
        found = self.bindings(user, now_ms)
        for binding in found:
            if binding.key.startswith(STATIC):
                return [binding for binding in found if not binding.key.startswith(STATIC)]
        return found

    def stored(self) -> list[tuple[str, Binding]]:
        """This node's bindings that belong into the store."""
        return [(user, b) for user, b in self.items() if self.is_own(b) and not b.key.startswith(STATIC)]

    def items(self) -> Iterator[tuple[str, Binding]]:
        for user, of_user in self._by_user.items():
            for binding in of_user:
                yield user, binding
