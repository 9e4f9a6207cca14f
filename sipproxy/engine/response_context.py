"""Response context of a forwarded request (RFC 3261 §16.7): which responses go upstream, and which branches are cancelled.

Pure decisions over the branches' states; it sends nothing. Targets come in groups: the targets of one group are tried at the
same time, the groups one after another (serial forking, trunk fail-over).
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Generic, TypeVar

from sipproxy.sip.build import Editor
from sipproxy.sip.message import Response, parse_message

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

__all__ = ["Branch", "Progress", "ResponseContext", "best_of", "with_all_challenges"]

T = TypeVar("T")


class Progress(StrEnum):
    """What the context wants done after a branch moved."""

    WAIT = "wait"
    NEXT = "next"  # every branch so far failed and another group is left to try
    FINISH = "finish"  # no branch is pending and none is left to try: the best response goes upstream


class Branch(Generic[T]):
    """One client transaction of the context. `status` is its final status, 408 for a time-out, 503 for a transport failure.

    A plain class, as the context is: dataclasses that are generic cannot be compiled.
    """

    __slots__ = ("cancel_sent", "cancelled", "cause", "final", "key", "overdue", "provisional", "status", "target")

    def __init__(self, key: Hashable, target: T) -> None:
        self.key, self.target = key, target
        self.provisional = False
        self.cancelled = False  # a CANCEL was sent or is owed
        self.cancel_sent = False
        self.status = 0
        self.final: Response | None = None
        self.cause = 0  # Q.850, where `status` is what we make of a response that does not go upstream
        self.overdue = False  # gave no sign within its bound: the next group was started beside it


class ResponseContext(Generic[T]):
    """Branches of one request. `retry_on` are final statuses after which the next group is tried; None: any failure."""

    __slots__ = ("asking", "branches", "groups", "retry_on", "stopped", "winner")

    def __init__(self, groups: list[Sequence[T]], retry_on: frozenset[int] | None = None) -> None:
        self.groups, self.retry_on = groups, retry_on
        self.branches: dict[Hashable, Branch[T]] = {}
        self.winner: Branch[T] | None = None
        self.stopped = False  # CANCEL or 6xx: no further group
        self.asking = False  # whether the group that was taken last may be tried; as good as a pending branch

    def add(self, key: Hashable, target: T) -> Branch[T]:
        branch = self.branches[key] = Branch(key, target)
        return branch

    def rekey(self, branch: Branch[T], key: Hashable) -> None:
        """The branch goes on as another transaction, of which nothing was heard yet."""
        del self.branches[branch.key]
        branch.key, branch.provisional = key, False
        self.branches[key] = branch

    def next_group(self) -> Sequence[T]:
        return self.groups.pop(0)

    def final(self, key: Hashable, status: int, response: Response | None) -> Progress:
        """A branch ended with a final non-2xx, a time-out (408) or a transport failure (503)."""
        branch = self.branches[key]
        if branch.status:
            return Progress.WAIT
        branch.status, branch.final = status, response
        if status >= 600:
            self.stopped = True  # §16.7 step 5: a 6xx ends the search, the pending branches are cancelled
        return self.progress()

    def answered(self, key: Hashable, status: int) -> bool:
        """A branch ended with a 2xx. True for the first of the context."""
        branch = self.branches[key]
        branch.status = status
        first = self.winner is None
        if first:
            self.winner = branch
            self.stopped = True
        return first

    def progress(self) -> Progress:
        """What is to be done now."""
        if self.winner is not None:
            return Progress.WAIT
        if self.asking and not self.stopped:
            return Progress.WAIT
        pending = [b for b in self.branches.values() if not b.status]
        waiting_for = [b for b in pending if not b.overdue]
        if waiting_for:
            return Progress.WAIT
        if self.groups and not self.stopped and self._may_retry():
            return Progress.NEXT
        return Progress.WAIT if pending else Progress.FINISH

    @property
    def may_start(self) -> bool:
        """Whether a further group is still wanted."""
        return self.winner is None and not self.stopped and self._may_retry()

    def _may_retry(self) -> bool:
        ended = [b.status for b in self.branches.values() if b.status]
        return self.retry_on is None or not ended or all(status in self.retry_on for status in ended)

    def to_cancel(self) -> list[Branch[T]]:
        """Branches that a CANCEL is owed to: marked, and returned once a provisional response allows it (§9.1)."""
        owed = []
        for branch in self.branches.values():
            if branch.status:
                continue
            branch.cancelled = True
            if branch.provisional and not branch.cancel_sent:
                branch.cancel_sent = True
                owed.append(branch)
        return owed

    def best(self) -> Branch[T] | None:
        """§16.7 step 6: a 6xx, else from the lowest class, preferring what tells the caller how to do better."""
        return best_of([b for b in self.branches.values() if b.status])


PREFERRED = (401, 407, 415, 420, 484)  # §16.7 step 6: responses that let the caller try again with success


def best_of(ended: Sequence[Branch[T]]) -> Branch[T] | None:
    """The branch whose response goes upstream; None when none ended."""
    if not ended:
        return None
    sixes = [b for b in ended if b.status >= 600]
    if sixes:
        return sixes[0]
    lowest = min(b.status // 100 for b in ended)
    of_class = [b for b in ended if b.status // 100 == lowest]
    # What a peer said outranks what we made up for its silence.
    return min(of_class, key=lambda b: (b.status not in PREFERRED, b.final is None, b.status == 503))


def with_all_challenges(context: ResponseContext[T], response: Response, data: bytes) -> bytes:
    """§16.7 step 7: the challenges of every 401 and 407 go upstream together, in `response`, which leaves as `data`."""
    upstream = parse_message(data)
    assert isinstance(upstream, Response)
    editor = Editor(upstream)
    for branch in context.branches.values():
        if branch.final is None or branch.final is response or branch.status not in (401, 407):
            continue
        for name, header in ((b"www-authenticate", b"WWW-Authenticate"), (b"proxy-authenticate", b"Proxy-Authenticate")):
            for value in branch.final.lines(name)[:8]:
                editor.append(header, value)
    return editor.to_bytes()
