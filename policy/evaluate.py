"""The rules in their order: one attempt and one snapshot in, one decision out.

Pure; never raises. Order: destination, **emergency**, line status, numbering plan and product (class), operator's block
rules, channels. Every rule that is looked at leaves a step. Refusals follow RFC 3398 §8.2.6.1 read backwards: status and Q.850
cause.

Rule ids, stable; `rule_family` gives the bounded set for counters:

    emergency.target        110 or 112 is meant: routed to the PSAP
    line.unknown            outgoing, not an emergency call, without a line
    line.status.<status>    the line's status refuses the call: terminated, barred_out, barred_full, fraud_hold
    line.channels           all channels of the line are in use
    profile.unknown         the line's profile is not in the snapshot
    plan.malformed          syntax: 400
    plan.scheme             a URI scheme that is no number: 416
    plan.invalid            no number: 404
    plan.reserved           a range that is not assigned: 404
    plan.incomplete         too few digits: 484
    block.class.<class>     the profile does not offer this class
    block.rule.<id>         the operator's rule with that id
    number.unassigned       incoming, to a number that is nobody's
    allow                   nothing refused it

Left out: rates, fraud, the times that `now_at_ms` is there for.
"""

from __future__ import annotations

from policy.blocklist import block_of
from policy.emergency import routes_of
from policy.identity import asserted_number
from policy.model import (
    Account,
    CallAttempt,
    Decision,
    Destination,
    DestinationClass,
    Direction,
    Line,
    LineStatus,
    Profile,
    Snapshot,
    Verdict,
)
from policy.numbers import classify, classify_incoming

__all__ = ["evaluate", "rule_family"]

Steps = list[tuple[str, str]]
Refusal = tuple[str, str, int, int]  # rule, reason, status, cause

_REFUSES_OUTGOING = frozenset({LineStatus.BARRED_OUT, LineStatus.BARRED_FULL, LineStatus.FRAUD_HOLD, LineStatus.TERMINATED})
_PLAN_RULES = {400: "plan.malformed", 404: "plan.invalid", 416: "plan.scheme", 484: "plan.incomplete"}


def evaluate(attempt: CallAttempt, snapshot: Snapshot, now_at_ms: int) -> Decision:  # noqa: ARG001 - the seam for rules by time
    """Decide about one call attempt."""
    if attempt.direction is Direction.INCOMING:
        return _incoming(attempt, snapshot)
    return _outgoing(attempt, snapshot)


def rule_family(rule: str) -> str:
    """A rule id without the operator's own part: what a counter may use as a label."""
    return "block.rule" if rule.startswith("block.rule.") else rule


def _outgoing(attempt: CallAttempt, snapshot: Snapshot) -> Decision:
    line, account = attempt.line, attempt.account
    destination = classify(attempt.target, line.area_code if line is not None else "")
    steps: Steps = [("destination", f"{destination.canonical} {destination.kind.value}: {destination.how}")]
    if destination.service and (line is None or line.status is not LineStatus.TERMINATED):
        return _emergency(attempt, snapshot, destination, steps)
    if line is None:
        return _deny(snapshot, destination, ("line.unknown", "no line for this caller", 403, 21), steps)
    if line.status in _REFUSES_OUTGOING:
        refusal: Refusal | None = (f"line.status.{line.status.value}", f"line is {line.status.value}", 403, 21)
    else:
        steps.append(("line.status", line.status.value))
        profile = snapshot.profiles.get(line.profile)
        if profile is None:
            refusal = ("profile.unknown", f"profile {line.profile} is not loaded", 403, 21)
        else:
            refusal = _blocked(snapshot, line, profile, destination, steps) or _full(
                attempt, snapshot, line, profile.channels_out, steps
            )
    asserted = asserted_number(snapshot, line, account, attempt.caller)
    if refusal is not None:
        return _deny(snapshot, destination, refusal, steps, line=line, account=account, asserted=asserted)
    callee = snapshot.account_of(destination.canonical) if destination.canonical[0] == "+" else None
    return Decision(
        Verdict.ALLOW,
        "allow",
        "on-net" if callee is not None else "no rule refuses it",
        snapshot.version,
        destination,
        line=line,
        account=account,
        callee=callee,
        channels=snapshot.channels_of(line),
        asserted=asserted,
        steps=tuple(steps),
    )


def _emergency(attempt: CallAttempt, snapshot: Snapshot, destination: Destination, steps: Steps) -> Decision:
    """NotrufV § 4(3) s. 2, § 164(1) TKG: before and without every other rule; without a channel."""
    line, account = attempt.line, attempt.account
    routes = routes_of(snapshot, line.location if line is not None else "", destination.service)
    reason = f"emergency call to {destination.service}, {len(routes)} PSAP routes"
    steps.append(("emergency.target", reason))
    return Decision(
        Verdict.EMERGENCY,
        "emergency.target",
        reason,
        snapshot.version,
        destination,
        line=line,
        account=account,
        asserted=asserted_number(snapshot, line, account, attempt.caller),
        psap=routes,
        steps=tuple(steps),
    )


def _blocked(snapshot: Snapshot, line: Line, profile: Profile, destination: Destination, steps: Steps) -> Refusal | None:
    """The product, the numbering plan, then the operator's rules. A blocked class is named before a missing digit."""
    kind, canonical = destination.kind, destination.canonical
    if kind in profile.blocked:
        if not _is_excepted(profile, canonical):
            return (f"block.class.{kind.value}", f"{profile.name} does not offer {kind.value}", *profile.refusal)
        steps.append(("block.class", f"{canonical} is excepted in {profile.name}"))
    else:
        steps.append(("block.class", f"{kind.value} is offered"))
    rule = block_of(snapshot, line, canonical)
    if rule is not None:
        return (f"block.rule.{rule.id}", f"prefix {rule.prefix}: {rule.reason}", *profile.refusal)
    if destination.status:
        name = (
            "plan.reserved"
            if kind is DestinationClass.RESERVED and destination.status == 404
            else _PLAN_RULES[destination.status]
        )
        return (name, destination.how, destination.status, destination.cause)
    steps.append(("block.rule", "none"))
    return None


def _is_excepted(profile: Profile, canonical: str) -> bool:
    return any(
        canonical.startswith(number[:-1]) if number.endswith("*") else canonical == number for number in profile.allowed_numbers
    )


def _full(attempt: CallAttempt, snapshot: Snapshot, line: Line, answer: tuple[int, int], steps: Steps) -> Refusal | None:
    used = attempt.slots_used
    if used is None:
        return None  # left to the atomic take that follows
    limit = snapshot.channels_of(line)
    if used < limit:
        steps.append(("line.channels", f"{used} of {limit} in use"))
        return None
    return ("line.channels", f"{used} of {limit} channels in use", *answer)


def _incoming(attempt: CallAttempt, snapshot: Snapshot) -> Decision:
    destination = classify_incoming(attempt.target)  # 110 and 112 are nobody's number: NotrufV § 4(5) s. 4
    steps: Steps = [("destination", f"{destination.canonical} {destination.kind.value}: {destination.how}")]
    if destination.status in (400, 416):
        return _deny(snapshot, destination, (_PLAN_RULES[destination.status], destination.how, destination.status, 28), steps)
    account = snapshot.account_of(destination.canonical) if destination.canonical[0] == "+" else None
    line = snapshot.lines.get(account.line) if account is not None else None
    if account is None or line is None:
        return _deny(snapshot, destination, ("number.unassigned", "number is not assigned", 404, 1), steps)
    steps.append(("number", f"{account.user} of line {line.id}"))
    profile = snapshot.profiles.get(line.profile)
    limit = None
    if line.status is LineStatus.TERMINATED:
        found: Refusal | None = ("line.status.terminated", "line is terminated", 404, 1)
    elif line.status is LineStatus.BARRED_FULL:
        found = ("line.status.barred_full", "line is barred_full", 403, 21)
    elif profile is None:
        found = ("profile.unknown", f"profile {line.profile} is not loaded", 403, 21)
    else:
        limit = snapshot.channels_of(line)
        found = _full(attempt, snapshot, line, profile.channels_in, steps)
    if found is not None:
        return _deny(snapshot, destination, found, steps, line=line, account=account)
    return Decision(
        Verdict.ALLOW,
        "allow",
        "number is assigned",
        snapshot.version,
        destination,
        line=line,
        account=account,
        callee=account,
        channels=limit,
        steps=tuple(steps),
    )


def _deny(
    snapshot: Snapshot,
    destination: Destination,
    refusal: Refusal,
    steps: Steps,
    *,
    line: Line | None = None,
    account: Account | None = None,
    asserted: str = "",
) -> Decision:
    rule, reason, status, cause = refusal
    steps.append((rule, reason))
    known = line is not None and (line.channels is not None or line.profile in snapshot.profiles)
    return Decision(
        Verdict.DENY,
        rule,
        reason,
        snapshot.version,
        destination,
        status=status,
        cause=cause,
        line=line,
        account=account,
        channels=snapshot.channels_of(line) if line is not None and known else None,
        asserted=asserted,
        steps=tuple(steps),
    )
