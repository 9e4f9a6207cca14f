"""The rules in their order: one attempt and one snapshot in, one decision out.

Pure; never raises. Order: destination, **emergency**, line status, caller's number, product (class) and block rules, the
numbering plan's own refusals, set-up rate, channels. Every rule that is looked at leaves a step. Refusals follow RFC 3398
§8.2.6.1 read backwards: status and Q.850 cause.

Rule ids, stable; `rule_family` gives the bounded set for counters:

    emergency.target        110 or 112 is meant: routed to the PSAP
    line.unknown            outgoing, not an emergency call, without a line
    line.status.<status>    the line's status refuses the call: terminated, barred_out, barred_full, fraud_hold
    line.rate               the line started too many calls within its profile's window
    line.channels           all channels of the line are in use
    account.channels        the account has a limit of its own, and uses as many
    profile.unknown         the line's profile is not in the snapshot
    caller.<...>            the caller's number refuses the call (`policy.identity`)
    plan.malformed          syntax: 400
    plan.scheme             a URI scheme that is no number: 416
    plan.invalid            no number: 404
    plan.reserved           a range that is not assigned: 404
    plan.incomplete         too few digits: 484
    block.class.<class>     the profile does not offer this class
    block.rule.<id>         the operator's or the customer's rule with that id
    allow.rule.<id>         allowed, by an exception with that id from what would have refused it
    number.unassigned       incoming, to a number that is nobody's
    allow                   nothing refused it
"""

from __future__ import annotations

from policy.blocklist import rule_for
from policy.caller import incoming_caller, outgoing_caller
from policy.emergency import routes_of
from policy.model import (
    Account,
    BlockRule,
    CallAttempt,
    Caller,
    Decision,
    Destination,
    DestinationClass,
    Direction,
    Line,
    LineStatus,
    Profile,
    RuleAction,
    RuleKind,
    Snapshot,
    Verdict,
)
from policy.numbers import classify, classify_incoming

__all__ = ["evaluate", "rule_family"]

Steps = list[tuple[str, str]]
Refusal = tuple[str, str, int, int]  # rule, reason, status, cause

_REFUSES_OUTGOING = frozenset({LineStatus.BARRED_OUT, LineStatus.BARRED_FULL, LineStatus.FRAUD_HOLD, LineStatus.TERMINATED})
_PLAN_RULES = {400: "plan.malformed", 404: "plan.invalid", 416: "plan.scheme", 484: "plan.incomplete"}
_NOBODY = Caller()
ALLOW, DENY, EMERGENCY = Verdict.ALLOW, Verdict.DENY, Verdict.EMERGENCY  # to name one by its class costs ten times as much
TERMINATED, BARRED_FULL = LineStatus.TERMINATED, LineStatus.BARRED_FULL
INCOMING = Direction.INCOMING


def evaluate(attempt: CallAttempt, snapshot: Snapshot, now_at_ms: int) -> Decision:
    """Decide about one call attempt at a UTC time in milliseconds."""
    if attempt.direction is INCOMING:
        return _incoming(attempt, snapshot, now_at_ms)
    return _outgoing(attempt, snapshot, now_at_ms)


def rule_family(rule: str) -> str:
    """A rule id without the operator's own part: what a counter may use as a label."""
    return rule[:10] if rule.startswith(("block.rule.", "allow.rule.")) else rule


def _outgoing(attempt: CallAttempt, snapshot: Snapshot, now_at_ms: int) -> Decision:
    line = attempt.line
    destination = classify(attempt.target, line.area_code if line is not None else "")
    steps: Steps = [("destination", destination.said)]
    if destination.service and (line is None or line.status is not TERMINATED):
        return _emergency(attempt, snapshot, destination, steps, now_at_ms)
    if line is None:
        return _deny(snapshot, destination, ("line.unknown", "no line for this caller", 403, 21), steps)
    profile = snapshot.profiles.get(line.profile)
    refusal = _barred(line, profile, destination, steps)
    caller = outgoing_caller(snapshot, attempt, destination)
    exception: BlockRule | None = None
    if refusal is None and profile is None:
        refusal = ("profile.unknown", f"profile {line.profile} is not loaded", 403, 21)
    elif refusal is None and profile is not None:
        refusal = _caller_step(caller, steps)
        if refusal is None:
            refusal, exception = _blocked(snapshot, line, profile, destination, steps, now_at_ms)
        refusal = (
            refusal
            or _too_fast(attempt, snapshot, line, profile.setup_out, steps)
            or _full(attempt, snapshot, line, attempt.account, profile.channels_out, steps)
        )
    if refusal is not None:
        return _deny(snapshot, destination, refusal, steps, line=line, account=attempt.account, caller=caller)
    callee = snapshot.account_of(destination.canonical) if destination.canonical[0] == "+" else None
    why = _allowance(exception, "on-net" if callee is not None else "no rule refuses it")
    return _allow(snapshot, destination, why, steps, line=line, account=attempt.account, callee=callee, caller=caller)


def _emergency(attempt: CallAttempt, snapshot: Snapshot, destination: Destination, steps: Steps, now_at_ms: int) -> Decision:
    """NotrufV § 4(3) s. 2, § 164(1) TKG: before and without every other rule; without a channel; the number always shown."""
    line = attempt.line
    routes = routes_of(snapshot, line.location if line is not None else "", destination.service, now_at_ms)
    reason = f"emergency call to {destination.service}, {len(routes)} PSAP routes"
    steps.append(("emergency.target", reason))
    caller = outgoing_caller(snapshot, attempt, destination)
    return Decision(
        EMERGENCY,
        "emergency.target",
        reason,
        snapshot.version,
        destination,
        line=line,
        account=attempt.account,
        asserted=caller.asserted,
        psap=routes,
        steps=tuple(steps),
        presented=caller.asserted,
    )


def _barred(line: Line, profile: Profile | None, destination: Destination, steps: Steps) -> Refusal | None:
    """The line's status. The carrier's own hotline is how a barred customer gets his line back."""
    status = line.status
    if status not in _REFUSES_OUTGOING:
        steps.append(("line.status", str(status)))
        return None
    words = f"line is {status}" + (f": {line.status_reason}" if line.status_reason else "")
    if status is not TERMINATED and profile is not None and destination.canonical in profile.hotlines:
        steps.append(("line.status", f"{words}; {destination.canonical} is the carrier's own hotline"))
        return None
    return (f"line.status.{status}", words, 403, 21)


def _caller_step(caller: Caller, steps: Steps) -> Refusal | None:
    if caller.refusal is None and caller.said:
        steps.append(("caller", caller.said))
    return caller.refusal


def _blocked(  # noqa: PLR0917 - a call and the snapshot it is judged by
    snapshot: Snapshot, line: Line, profile: Profile, destination: Destination, steps: Steps, now_at_ms: int
) -> tuple[Refusal | None, BlockRule | None]:
    """The product and the operator's rules, the customer's, then the plan's own refusal, and the exception that lifted one.

    A blocked class is named before a missing digit.
    """
    kind, canonical = destination.kind, destination.canonical
    index = snapshot.block_index
    rule = rule_for(index.admin_outgoing, line.id, line.profile, canonical, kind, now_at_ms)
    exception = rule if rule is not None and rule.action is RuleAction.ALLOW else None
    if kind not in profile.blocked:
        steps.append(("block.class", f"{kind} is offered"))
    elif _is_excepted(profile, canonical):
        steps.append(("block.class", f"{canonical} is excepted in {profile.name}"))
    elif exception is not None and _lies_within(exception, kind):
        steps.append(("block.class", f"{kind} is not offered by {profile.name}, but for rule {exception.id}"))
    else:
        return (f"block.class.{kind}", f"{profile.name} does not offer {kind}", *profile.refusal), None
    if rule is not None and exception is None:
        return _refusal_of(rule, profile), None
    own = rule_for(index.customer_outgoing, line.id, line.profile, canonical, kind, now_at_ms)
    if own is not None and own.action is RuleAction.BLOCK:
        return _refusal_of(own, profile), None
    if destination.status:
        name = (
            "plan.reserved"
            if kind is DestinationClass.RESERVED and destination.status == 404
            else _PLAN_RULES[destination.status]
        )
        return (name, destination.how, destination.status, destination.cause), None
    exception = exception or own
    steps.append(("block.rule", _words(exception) if exception is not None else "none"))
    return None, exception


def _lies_within(exception: BlockRule, kind: DestinationClass) -> bool:
    """Whether an exception is meant for this class: "+49900" is for premium numbers, "+49" opens nothing that is closed."""
    if exception.kind is RuleKind.PREFIX:
        return classify(exception.value.partition(":")[2].encode() or exception.value.encode(), "").kind is kind
    return exception.kind is not RuleKind.COUNTRY


def _refusal_of(rule: BlockRule, profile: Profile) -> Refusal:
    return (f"block.rule.{rule.id}", _words(rule), *profile.refusal)


def _words(rule: BlockRule) -> str:
    return f"{rule.kind} {rule.value}: {rule.reason}"


def _allowance(exception: BlockRule | None, otherwise: str) -> tuple[str, str]:
    """Rule and reason of an allowed call."""
    return ("allow", otherwise) if exception is None else (f"allow.rule.{exception.id}", _words(exception))


def _is_excepted(profile: Profile, canonical: str) -> bool:
    return any(
        canonical.startswith(number[:-1]) if number.endswith("*") else canonical == number for number in profile.allowed_numbers
    )


def _too_fast(attempt: CallAttempt, snapshot: Snapshot, line: Line, answer: tuple[int, int], steps: Steps) -> Refusal | None:
    """Both carriers forbid automated dialling: so many calls, started within so many seconds, and no more."""
    limit, window_s = snapshot.setup_limit(line)
    if attempt.setups is None or not limit:
        return None
    words = f"{attempt.setups} of {limit} calls started within {window_s} s"
    if attempt.setups < limit:
        steps.append(("line.rate", words))
        return None
    return ("line.rate", words, *answer)


def _full(  # noqa: PLR0917 - a call and the snapshot it is judged by
    attempt: CallAttempt, snapshot: Snapshot, line: Line, account: Account | None, answer: tuple[int, int], steps: Steps
) -> Refusal | None:
    """The line's channels, then the account's own share of them."""
    used = attempt.slots_used
    if used is None:
        return None  # left to the atomic take that follows
    limit = snapshot.channels_of(line)
    if used >= limit:
        return ("line.channels", f"{used} of {limit} channels in use", *answer)
    steps.append(("line.channels", f"{used} of {limit} in use"))
    soft = snapshot.soft_channels_of(line)
    if soft and used >= soft:
        steps.append(("line.soft_channels", f"with this call {used + 1} in use, above {soft}: reported, not refused"))
    of_account = attempt.account_used
    if account is None or account.channels is None or of_account is None:
        return None
    words = f"{account.user} uses {of_account} of its {account.channels} channels"
    if of_account >= account.channels:
        return ("account.channels", words, *answer)
    steps.append(("account.channels", words))
    return None


def _incoming(attempt: CallAttempt, snapshot: Snapshot, now_at_ms: int) -> Decision:
    destination = classify_incoming(attempt.target)  # 110 and 112 are nobody's number: NotrufV § 4(5) s. 4
    steps: Steps = [("destination", destination.said)]
    if destination.status in (400, 416):
        return _deny(snapshot, destination, (_PLAN_RULES[destination.status], destination.how, destination.status, 28), steps)
    account = snapshot.account_of(destination.canonical) if destination.canonical[0] == "+" else None
    line = snapshot.lines.get(account.line) if account is not None else None
    if account is None or line is None:
        return _deny(snapshot, destination, ("number.unassigned", "number is not assigned", 404, 1), steps)
    steps.append(("number", f"{account.user} of line {line.id}"))
    caller = incoming_caller(snapshot, attempt, line, now_at_ms)
    refusal, exception = _refused_incoming(attempt, snapshot, line, account, caller, steps, now_at_ms)
    if refusal is not None:
        return _deny(snapshot, destination, refusal, steps, line=line, account=account, caller=caller)
    why = _allowance(exception, "number is assigned")
    return _allow(snapshot, destination, why, steps, line=line, account=account, callee=account, caller=caller)


def _refused_incoming(  # noqa: PLR0917 - a call and the snapshot it is judged by
    attempt: CallAttempt, snapshot: Snapshot, line: Line, account: Account, caller: Caller, steps: Steps, now_at_ms: int
) -> tuple[Refusal | None, BlockRule | None]:
    """What refuses a call to `line`, and the exception that let it in: status, caller's number, block rules, channels."""
    profile = snapshot.profiles.get(line.profile)
    if line.status is TERMINATED:
        return ("line.status.terminated", "line is terminated", 404, 1), None
    if line.status is BARRED_FULL and now_at_ms >= line.incoming_until_ms:
        return ("line.status.barred_full", "line is barred_full", 403, 21), None
    if profile is None:
        return ("profile.unknown", f"profile {line.profile} is not loaded", 403, 21), None
    steps.append(("line.status", str(line.status)))
    refusal = _caller_step(caller, steps)
    if refusal is not None:
        return refusal, None
    refusal, exception = _blocked_caller(snapshot, line, profile, caller, steps, now_at_ms)
    return refusal or _full(attempt, snapshot, line, account, profile.channels_in, steps), exception


def _blocked_caller(  # noqa: PLR0917 - a call and the snapshot it is judged by
    snapshot: Snapshot, line: Line, profile: Profile, caller: Caller, steps: Steps, now_at_ms: int
) -> tuple[Refusal | None, BlockRule | None]:
    """The rules for callers' numbers, of both that the call has: the network's and the one shown."""
    found: BlockRule | None = None
    if snapshot.has_incoming_rules:
        for number in dict.fromkeys((caller.asserted, caller.presented)):
            if not number:
                continue
            kind = classify_incoming(number.encode()).kind
            for scopes in (snapshot.block_index.admin_incoming, snapshot.block_index.customer_incoming):
                rule = rule_for(scopes, line.id, line.profile, number, kind, now_at_ms)
                if rule is not None and rule.action is RuleAction.BLOCK:
                    return _refusal_of(rule, profile), None
                found = found or rule
        steps.append(("block.rule", _words(found) if found is not None else "none"))
    return None, found


def _allow(
    snapshot: Snapshot,
    destination: Destination,
    why: tuple[str, str],
    steps: Steps,
    *,
    line: Line,
    account: Account | None,
    callee: Account | None,
    caller: Caller,
) -> Decision:
    rule, reason = why
    return Decision(  # by position, which takes a fifth of the time
        ALLOW,
        rule,
        reason,
        snapshot.version,
        destination,
        0,
        0,
        line,
        account,
        callee,
        snapshot.channels_of(line),
        caller.asserted,
        (),
        tuple(steps),
        caller.presented,
        caller.restricted,
        caller.trace,
    )


def _deny(
    snapshot: Snapshot,
    destination: Destination,
    refusal: Refusal,
    steps: Steps,
    *,
    line: Line | None = None,
    account: Account | None = None,
    caller: Caller = _NOBODY,
) -> Decision:
    rule, reason, status, cause = refusal
    steps.append((rule, reason))
    known = line is not None and (line.channels is not None or line.profile in snapshot.profiles)
    return Decision(
        DENY,
        rule,
        reason,
        snapshot.version,
        destination,
        status=status,
        cause=cause,
        line=line,
        account=account,
        channels=snapshot.channels_of(line) if line is not None and known else None,
        asserted=caller.asserted,
        steps=tuple(steps),
        presented=caller.presented,
        restricted=caller.restricted,
        trace=caller.trace,
    )
