"""Which worker of a node a message is for, read from its bytes before it is parsed.

The workers of a node share one address, and the kernel gives a datagram to whichever it likes. What belongs to a call carries
its owner's number in what we wrote into it: a response in our branch, a request within a dialog in the token of our Route value
(`engine.tokens`). A made-up number leads to a worker that refuses the mark as any other would, so it is not checked here.
Requests without a mark (INVITE, its repetitions, its CANCEL and the ACK of its refusal) go by a keyed hash of their Call-ID, so
that they meet whatever port they come from, and one trunk's calls are spread over all workers. The hash is one that the kernel
can compute as well (`net.spread`): it gives most datagrams to the worker that they are for.

Exceptions are remembered by Call-ID: a call for help is taken by the worker that reads it, and depends on no other; so is a new
call whose worker is not there; a call that names another one (Replaces, Join) goes where that one is. REGISTER, and what is
asked outside a call, stay with who reads them.

Copies of a call for help may be read by several workers, at the same moment too: whoever takes it `first` (`net.taken`) has it,
and tells the others. Where that one cannot take a copy, or does not say that it has, the others settle in the same way which of
them takes the call in its place.

Pure. RFC 3261 §16.11, §17.1.3, §17.2.3, §8.2.2.2, §9.1; RFC 3891 §3.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from hashlib import blake2b
from math import isqrt
from typing import TYPE_CHECKING

from sipproxy.engine.kinds import CALL_ID, may_be_emergency

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

__all__ = ["HASHED", "MAX_KEPT", "MAX_WORKERS", "Steering", "mark_of", "modulus_of"]

MAX_WORKERS = 64
MAX_KEPT = 65_536  # exceptions; the oldest goes first, and what still comes for it then goes by its hash
HASHED = 64  # bytes of a Call-ID that tell its worker
MAX_MODULUS = 1 << 24  # the kernel's program reckons with 32 bits, eight of which are the next byte's

_HEADER = rb"[ \t]*:(?:[^\r\n,]|\r?\n[ \t])*?"
_BRANCH = re.compile(rb"\n(?:via|v)" + _HEADER + rb";\s*branch\s*=\s*z9hG4bK([0-9a-f]{2})", re.IGNORECASE)
_ROUTE = re.compile(rb"\nroute" + _HEADER + rb";[ce]=([0-9a-f]{2})\.", re.IGNORECASE)
_ROUTES = re.compile(rb"\nroute[ \t]*:", re.IGNORECASE)
_TARGET = re.compile(rb"[A-Z]+ [^ \r\n]*;[ce]=([0-9a-f]{2})\.")
_OTHER_CALL = re.compile(rb"\n(?:replaces|join)[ \t]*:\s*([^\s;]+)", re.IGNORECASE)
_TO_TAG = re.compile(rb"\n(?:to|t)[ \t]*:(?:[^\r\n]|\r?\n[ \t])*?;\s*tag\s*=", re.IGNORECASE)
_OF_CALLS = (b"INVITE ", b"ACK ", b"BYE ", b"CANCEL ", b"UPDATE ", b"PRACK ", b"INFO ")


def mark_of(worker: int) -> bytes:
    """What a branch or token of this worker begins with; b"" for a node that is one process."""
    return b"%02x" % worker if worker else b""


def modulus_of(key: bytes) -> int:
    """The prime by which Call-IDs are hashed, drawn by the node's secret: who does not know it cannot tell a call's worker."""
    drawn = int.from_bytes(blake2b(key, digest_size=3, person=b"steering").digest(), "big")
    found = MAX_MODULUS // 2 + drawn // 2 | 1
    while any(found % divisor == 0 for divisor in range(3, isqrt(found) + 1, 2)):
        found -= 2
    return found


class Steering:
    """See the module. `worker` is this one, `count` those that calls are spread over; `key` is the node's secret. Workers of
    before that end their calls are `leaving`: what has their mark is theirs, and nothing else."""

    def __init__(self, worker: int, count: int, key: bytes) -> None:
        self.worker, self._count = worker, count
        self._modulus = modulus_of(key)
        self._kept: OrderedDict[bytes, int] = OrderedDict()  # Call-ID's digest -> its worker, where that is not the hash's
        # By a number that a call for help has: who took it, this worker where nobody had; and who did, 0 where nobody.
        self.first: Callable[[int], int] = lambda number: worker  # noqa: ARG005
        self.first_of: Callable[[int], int] = lambda number: 0  # noqa: ARG005
        self.tell: Callable[[bytes], None] = lambda key: None  # noqa: ARG005  # the others, what this worker took
        self.alive: frozenset[int] = frozenset([worker])
        self.leaving: frozenset[int] = frozenset()
        self.forgotten = 0

    def __len__(self) -> int:
        """How many exceptions are remembered."""
        return len(self._kept)

    def owner(self, data: bytes) -> int:
        """The worker that the message is for."""
        if data[:1] in (b"\r", b"\n"):
            data = data.lstrip(b"\r\n")  # RFC 3261 §7.5: line ends before the first line are ignored
        end = data.find(b"\r\n\r\n") + 2 or len(data)
        if data[:8].upper() == b"SIP/2.0 ":
            return self._marked(_BRANCH.search(data, 0, end)) or self.worker
        if data.startswith(b"REGISTER "):
            return self.worker
        is_new = data.startswith(b"INVITE ") and _TO_TAG.search(data, 0, end) is None
        marked = self._marked(_ROUTE.search(data, 0, end))
        if not marked and _ROUTES.search(data, 0, end) is None:
            marked = self._marked(_TARGET.match(data))  # §16.4: a strict router put our Route value there
        if marked and (marked in self.alive or not is_new):
            return marked
        found = CALL_ID.search(data, 0, end)
        if not data.startswith(_OF_CALLS) or found is None:
            return self.worker
        return self._by_call(data, end, found[1], is_new=is_new)

    def instead(self, data: bytes, tried: Collection[int]) -> int:
        """Who takes a new call of one that was `tried` and cannot: this worker, but for a call for help that another one took
        in the same place; 0 for what belongs to a call that began before."""
        data, call_id = self._new_call(data)
        if call_id is None:
            return 0
        key = _digest(call_id)
        return self._taken(key, self._first(key, tried) if may_be_emergency(data) else self.worker)

    def is_for_help(self, data: bytes) -> bool:
        """Whether this begins a call that may be one for help."""
        data, call_id = self._new_call(data)
        return call_id is not None and may_be_emergency(data)

    def kept(self) -> list[tuple[bytes, int]]:
        """Every exception, for a worker that comes back and has to know them."""
        return list(self._kept.items())

    def learn(self, exceptions: Iterable[tuple[bytes, int]], teller: int) -> None:
        """Take over exceptions of another worker: what it took itself, and of the rest what is not known here."""
        for key, worker in exceptions:
            if worker == teller or key not in self._kept:
                self._remember(key, worker)

    @staticmethod
    def _new_call(data: bytes) -> tuple[bytes, bytes | None]:
        """The message from its first line on, and the Call-ID of a new call, None for anything else."""
        data = data.lstrip(b"\r\n")
        if not data.startswith(b"INVITE "):
            return data, None
        end = data.find(b"\r\n\r\n") + 2 or len(data)
        found = CALL_ID.search(data, 0, end) if _TO_TAG.search(data, 0, end) is None else None
        return data, found[1] if found is not None else None

    def _by_call(self, data: bytes, end: int, call_id: bytes, *, is_new: bool) -> int:
        hashed = self._hashed(call_id)
        kept = self._kept.get(_digest(call_id)) if self._kept else None
        wanted = kept or hashed
        if not is_new:
            # A CANCEL, which has the INVITE's target, may be read before the word of who has the call is; all else comes later.
            if data.startswith(b"CANCEL ") and (kept is None or kept not in self.alive) and may_be_emergency(data):
                wanted = self.first_of(_number(_digest(call_id))) or wanted
            return wanted
        if may_be_emergency(data):
            return kept if kept is not None and kept in self.alive else self._for_help(_digest(call_id))
        if kept is None and (other := _OTHER_CALL.search(data, 0, end)) is not None:
            wanted = self._kept.get(_digest(other[1])) or self._hashed(other[1])
        if wanted not in self.alive:
            wanted = self.worker
        if wanted != (kept or hashed):
            self._remember(_digest(call_id), wanted)
        return wanted

    def _for_help(self, key: bytes) -> int:
        return self._taken(key, self._first(key))

    def _taken(self, key: bytes, worker: int) -> int:
        """That worker, whose the call is from now on; where it is this one the others hear of it before it is begun."""
        self._remember(key, worker)
        if worker == self.worker:
            self.tell(key)
        return worker

    def _first(self, key: bytes, tried: Collection[int] = ()) -> int:
        """Who took the call first of those that are there and were not tried."""
        for turn in range(self._count):  # in each of which another one is first
            worker = self.first(_number(key) + turn)
            if worker == self.worker or (worker in self.alive and worker not in tried):
                return worker
        return self.worker

    def _marked(self, found: re.Match[bytes] | None) -> int:
        worker = int(found[1], 16) if found is not None else 0
        return worker if worker <= self._count or worker in self.leaving else 0

    def _hashed(self, call_id: bytes) -> int:
        return int.from_bytes(call_id[:HASHED], "big") % self._modulus % self._count + 1

    def _remember(self, key: bytes, worker: int) -> None:
        self._kept[key] = worker
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
            self.forgotten += 1


def _digest(call_id: bytes) -> bytes:
    return blake2b(call_id, digest_size=8).digest()


def _number(key: bytes) -> int:
    return int.from_bytes(key, "big")
