"""The truth about the calls, from what the parties did and from what the wire carried to and from a living node.

Nothing here is read from the engine. An attempt begins when an INVITE arrives that the node does not ask credentials for, and
is over when its final response leaves, or when each of its answered dialogs has seen a BYE. A node that is killed takes the
unanswered attempts with it; a caller that repeats its INVITE after the restart begins another one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from tests.sim.mix.endpoint import call_id_of

if TYPE_CHECKING:
    from tests.sim.mix.plan import Plan
    from tests.sim.world import Address

__all__ = ["Attempt", "Ledger", "Story"]

_CSEQ = re.compile(rb"\r\nCSeq: (\d+) (\w+)")
_FROM_TAG = re.compile(rb"\r\nFrom:[^\r]*;tag=([^;\r]+)")
_BRANCH = re.compile(rb"\r\nVia:[^\r]*;branch=([^;\r]+)")
_TO_TAG = re.compile(rb"\r\nTo:[^\r]*;tag=([^;\r]+)")


@dataclass(slots=True, eq=False)
class Attempt:
    """Monotonic seconds. `answered` are the dialogs by the callee's tag; `ended` what became of each, and who said so."""

    setup_at: float
    upstream: bytes = b""  # the branch of the INVITE that it came by
    forwarded_at: float | None = None
    branches: set[bytes] = field(default_factory=set)  # of its INVITEs
    routes: dict[bytes, str] = field(default_factory=dict)  # trunk routes by branch, until their final response
    rung: set[bytes] = field(default_factory=set)  # branches that have said something, and were not cancelled
    route: str = ""  # that it was answered on
    passed: set[int] = field(default_factory=set)  # how often forwarded it has reached somebody
    final: int = 0  # that the caller was sent
    answered: dict[bytes, float] = field(default_factory=dict)
    ended: dict[bytes, tuple[float, str]] = field(default_factory=dict)  # caller, callee or proxy
    over_at: float | None = None
    kills: int = 0  # while it lived
    cut: bool = False  # ended with the node
    doubtful: bool = False  # the node died while it did something about it
    old: bool = False  # of before a kill

    @property
    def answer_at(self) -> float | None:
        return min(self.answered.values()) if self.answered else None

    @property
    def lives(self) -> bool:
        return self.over_at is None and not self.cut


@dataclass(slots=True, eq=False)
class Story:
    """All about one Call-ID; `ladder` are its messages: when, from, to, what, and whether it arrived."""

    plan: Plan
    call_id: bytes
    caller_tag: bytes
    attempts: dict[int, list[Attempt]] = field(default_factory=dict)  # by CSeq number
    missed: dict[tuple[bytes, str], float] = field(default_factory=dict)  # when a dialog's BYE of a side met no living node
    ladder: list[tuple[float, Address | str, Address | str, bytes]] = field(default_factory=list)

    @property
    def current(self) -> Attempt | None:
        last = [attempts[-1] for attempts in self.attempts.values() if attempts]
        return last[-1] if last else None

    @property
    def all(self) -> list[Attempt]:
        return [attempt for attempts in self.attempts.values() for attempt in attempts]

    def bound(self, attempt: Attempt) -> float:
        """Until when the call can have lasted, dialog by dialog.

        That is until a BYE was heard, or the first was sent while the node was away; else until the first party left.
        """
        parts = {"caller": self.plan.caller_parts, "callee": self.plan.callee_parts}
        ends = []
        for tag in attempt.answered:
            at, by = attempt.ended.get(tag, (inf, ""))
            left = {side: found[tag].left_at for side, found in parts.items() if tag in found}
            if by in left:
                # An emergency call goes on while one of its parties is there.
                sides = [by] if self.plan.kind == "emergency" else list(left)
                unheard = [left[side] for side in sides if self.missed.get((tag, side), inf) < at]
                ends.append(min(unheard, default=at))
            else:
                ends.append(min(left.values(), default=inf))
        return max(ends, default=inf)


class Ledger:
    """What the wire has seen, by Call-ID. `live` are the attempts that a living node has forwarded and that are not over.

    `routes` are the trunk routes by address.
    """

    def __init__(self, routes: dict[Address, str]) -> None:
        self.routes = routes
        self.stories: dict[bytes, Story] = {}
        self.live: dict[bytes, Attempt] = {}

    def heard(self, data: bytes, source: Address, now: float) -> None:
        """A datagram has been handled by a living node."""
        story = self.stories.get(call_id_of(data))
        if story is None:
            return
        number, method = _cseq(data)
        if data.startswith(b"INVITE ") and tag_of(_TO_TAG, data) == b"" and source == story.plan.caller.address:
            self._invited(story, number, branch_of(data), now)
        elif data.startswith(b"SIP/2.0 ") and method == b"INVITE" and not data.startswith(b"SIP/2.0 2"):
            self._answered_otherwise(story, number, data)
        elif data.startswith(b"SIP/2.0 2") and method == b"INVITE" and tag_of(_FROM_TAG, data) == story.caller_tag:
            attempt = (story.attempts.get(number) or [None])[-1]
            tag = tag_of(_TO_TAG, data)
            # Another attempt's, or another process's branch: nobody takes its answer any more.
            known = attempt is not None and attempt.lives and branch_of(data) in attempt.branches and not attempt.kills
            if attempt is not None and known and tag not in attempt.answered:
                attempt.answered[tag] = now
                attempt.route = attempt.route or attempt.routes.get(branch_of(data), "")
        elif data.startswith(b"BYE "):
            self._left(story, data, now)

    def _invited(self, story: Story, number: int, branch: bytes, now: float) -> None:
        attempts = story.attempts.setdefault(number, [])
        last = attempts[-1] if attempts else None
        copied = branch == story.plan.copied and last is not None and last.upstream != branch  # of a call that is over
        if last is None or (not last.lives and (last.old or copied)):
            attempts.append(Attempt(now, branch, doubtful=last is not None and last.doubtful))

    @staticmethod
    def _answered_otherwise(story: Story, number: int, data: bytes) -> None:
        """A response of a callee other than a 2xx."""
        attempt, branch = (story.attempts.get(number) or [None])[-1], branch_of(data)
        if attempt is None or branch not in attempt.branches:
            return
        if data.startswith(b"SIP/2.0 1"):
            attempt.rung.add(branch)
        else:
            attempt.rung.discard(branch)
            attempt.routes.pop(branch, None)

    def _left(self, story: Story, data: bytes, now: float, by: str = "") -> None:
        tags = tag_of(_FROM_TAG, data), tag_of(_TO_TAG, data)
        attempt = story.current
        if attempt is None or not attempt.lives:
            return
        by = by or ("caller" if tags[0] == story.caller_tag else "callee")
        for tag in tags:
            if tag in attempt.answered and tag not in attempt.ended:
                attempt.ended[tag] = now, by
                if len(attempt.ended) == len(attempt.answered):
                    self._over(story, attempt, now)

    def missed(self, data: bytes, now: float) -> None:
        """A datagram has arrived while the node was away."""
        story = self.stories.get(call_id_of(data)) if data.startswith(b"BYE ") else None
        if story is not None:
            tags = tag_of(_FROM_TAG, data), tag_of(_TO_TAG, data)
            side = "caller" if tags[0] == story.caller_tag else "callee"
            for tag in tags:
                story.missed.setdefault((tag, side), now)

    def _over(self, story: Story, attempt: Attempt, now: float) -> None:
        attempt.over_at = now
        self.live.pop(story.call_id, None)

    def said(self, data: bytes, to: Address, now: float) -> None:
        """A datagram has left a living node, whether or not it arrives."""
        story = self.stories.get(call_id_of(data))
        if story is None:
            return
        if data.startswith(b"SIP/2.0 "):
            self._responded(story, data, to, now)
        elif data.startswith(b"INVITE ") and tag_of(_TO_TAG, data) == b"":
            attempt = (story.attempts.get(_cseq(data)[0]) or [None])[-1]
            if attempt is not None and attempt.lives:
                branch = branch_of(data)
                attempt.branches.add(branch)
                if to in self.routes:
                    attempt.routes.setdefault(branch, self.routes[to])
                if story.plan.hops.get(to):
                    attempt.passed.add(story.plan.hops[to])
                if attempt.forwarded_at is None:
                    attempt.forwarded_at = now
                    self.live[story.call_id] = attempt
        elif data.startswith(b"CANCEL ") and story.current is not None:
            story.current.rung.discard(branch_of(data))
        elif data.startswith(b"BYE ") and data.count(b"\r\nVia: ") == 1:
            self._left(story, data, now, by="proxy")

    def _responded(self, story: Story, data: bytes, to: Address, now: float) -> None:
        number, method = _cseq(data)
        status = int(data[8:11])
        if method != b"INVITE" or to != story.plan.caller.address or status < 200:
            return
        attempts = story.attempts.get(number)
        if not attempts or tag_of(_FROM_TAG, data) != story.caller_tag:
            return
        last = attempts[-1]
        if branch_of(data) != last.upstream:
            return  # to a copy of its INVITE
        if status == 407 and last.forwarded_at is None:
            attempts.pop()  # our challenge: no attempt yet
        elif not last.final and not last.cut:
            last.final = status
            if status >= 300 and last.over_at is None:
                self._over(story, last, now)

    def killed(self, doubtful: set[bytes]) -> None:
        """The node died; what it was about to do for these Call-IDs it may have done or not."""
        for story in self.stories.values():
            for attempt in story.all:
                attempt.old = True
                if attempt.lives:
                    attempt.kills += 1
                    attempt.routes = {b"": attempt.route} if attempt.route else {}
                    attempt.doubtful |= story.call_id in doubtful
                    if not attempt.answered:
                        attempt.cut = True
                        self.live.pop(story.call_id, None)
        for call_id in doubtful & self.stories.keys():
            for attempt in self.stories[call_id].all:
                attempt.doubtful = True
            self.live.pop(call_id, None)


def _cseq(data: bytes) -> tuple[int, bytes]:
    found = _CSEQ.search(data)
    return (int(found[1]), found[2]) if found is not None else (0, b"")


def branch_of(data: bytes) -> bytes:
    """The branch of the topmost Via."""
    return tag_of(_BRANCH, data)


def tag_of(pattern: re.Pattern[bytes], data: bytes) -> bytes:
    found = pattern.search(data)
    return found[1] if found is not None else b""
