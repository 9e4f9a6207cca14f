"""What a changed list would have done to calls that were recorded.

Pure. Each call is decided twice by the live `evaluate`, with the policy data as they are and as they would be, at the time it
was set up; channels and set-up rate, which no list changes, are left out of both. A call that was let in, and would be now,
but not with the change, would have been refused; one that was refused, and would be now, but not with the change, would be
newly allowed. Emergency calls are counted apart: no list reaches them.
Left out: calls of lines and numbers that are gone; what records look like elsewhere (`cdr`), which the caller translates.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from policy.evaluate import evaluate
from policy.model import CallAttempt, Decision, Direction, Verdict

if TYPE_CHECKING:
    from policy.model import Account, Line, Snapshot

__all__ = ["Effect", "Recorded", "Replay"]

MAX_EXAMPLES = 10  # calls that an effect names


class Recorded(NamedTuple):
    """What a record says of one call; numbers and target as received, the time in UTC ms."""

    id: str
    direction: str  # "outgoing", "incoming" or "internal"
    line: str  # the caller's, of an incoming call the callee's
    account: str
    dialled: str  # Request-URI
    calling: str  # number that the network asserts
    presented: str
    setup_at_ms: int
    verdict: str  # "allow", "deny" or "emergency"


@dataclass(slots=True)
class Effect:
    """Calls that a change decides otherwise: how many, of which lines, to which destinations, by which rules."""

    calls: int = 0
    lines: Counter[str] = field(default_factory=Counter)
    destinations: Counter[str] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    examples: list[Recorded] = field(default_factory=list)

    def note(self, call: Recorded, decision: Decision, rule: str) -> None:
        """Count a call; `rule` is the one that makes the difference."""
        self.calls += 1
        self.lines[call.line] += 1
        self.destinations[decision.destination.canonical] += 1
        self.rules[rule] += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(call)


class Replay:
    """Recorded calls against two snapshots, one call after the other."""

    def __init__(self, before: Snapshot, after: Snapshot) -> None:
        self._before = before
        self._after = after
        self.calls = 0  # that were looked at
        self.emergencies = 0  # of them: never touched
        self.unknown = 0  # of them: of a line or to a number that there is no more
        self.refused = Effect()
        self.allowed = Effect()

    def take(self, call: Recorded) -> None:
        """Look at one call."""
        self.calls += 1
        if call.verdict == "emergency":
            self.emergencies += 1
            return
        before, after = self._decide(call, self._before), self._decide(call, self._after)
        if before is None or after is None:
            self.unknown += 1
        elif before.verdict is Verdict.EMERGENCY:
            self.emergencies += 1
        elif before.verdict is Verdict.ALLOW and after.verdict is Verdict.DENY and call.verdict == "allow":
            self.refused.note(call, after, after.rule)
        elif before.verdict is Verdict.DENY and after.verdict is Verdict.ALLOW and call.verdict == "deny":
            self.allowed.note(call, after, before.rule)

    def _decide(self, call: Recorded, snapshot: Snapshot) -> Decision | None:
        """The first refusal of a call's halves, else the decision on its first half; None when its line is gone."""
        target = call.dialled.encode("utf-8", "surrogateescape")
        at_ms = call.setup_at_ms
        if call.direction == "incoming":
            attempt = CallAttempt(Direction.INCOMING, target, caller=call.presented, network=call.calling)
            found = evaluate(attempt, snapshot, at_ms)
            return found if found.line is not None else None
        line = snapshot.lines.get(call.line)
        if line is None:
            return None
        account = _account(snapshot, line, call.account)
        own = evaluate(CallAttempt(Direction.OUTGOING, target, line, account, caller=call.calling), snapshot, at_ms)
        if own.verdict is not Verdict.ALLOW or own.callee is None:
            return own
        number = own.destination.canonical.encode()
        half = evaluate(CallAttempt(Direction.INCOMING, number, caller=call.calling, network=call.calling), snapshot, at_ms)
        return half if half.verdict is Verdict.DENY else own


def _account(snapshot: Snapshot, line: Line, user: str) -> Account | None:
    users = (user, *line.accounts)
    return next((account for name in users if (account := snapshot.accounts.get(name)) and account.line == line.id), None)
