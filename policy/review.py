"""Whether the result of a change is wise: what refuses it, and what an operator is told before or after.

Pure. A line that may call has a PSAP route for 110 and for 112: a change neither activates a line without one nor takes the
last one from under a line. Block rules are looked at by `policy.lint`. Only what a change brings about is held against it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from policy import lint
from policy.emergency import ANY_LOCATION
from policy.model import Line, LineStatus
from policy.table import Fault

if TYPE_CHECKING:
    from policy.change import Change, Plan
    from policy.model import Snapshot

__all__ = ["SERVICES", "Review", "has_route", "review"]

SERVICES = ("110", "112")


class Review(NamedTuple):
    """`faults` refuse the change, `warnings` are told."""

    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]


def has_route(snapshot: Snapshot, location: str, service: str) -> bool:
    """Whether calls to `service` from a location go anywhere, now or from some day on."""
    return bool(snapshot.psap.get((location, service)) or snapshot.psap.get((ANY_LOCATION, service)))


def review(change: Change, planned: Plan, before: Snapshot, after: Snapshot, now_at_ms: int) -> Review:
    """What is to be said of the planned change that makes `after` of `before`."""
    faults = [*_activations(change, planned, after), *_removals(planned, before, after)]
    new_faults, warnings = _lint(change, planned, before, after, now_at_ms)
    return Review((*faults, *new_faults), tuple(warnings))


def _lint(change: Change, planned: Plan, before: Snapshot, after: Snapshot, now_at_ms: int) -> tuple[list[Fault], list[str]]:
    """Errors and warnings of the rules that were not there before."""
    changed = {item.key for item in planned.items if item.table == "blocks"}
    if not after.blocks or not (changed or any(item.table == "lines" and item.after is None for item in planned.items)):
        return [], []
    found = list(lint.check_rules(after.blocks, after.profiles, after.lines, now_at_ms))
    if any(item.rule not in changed for item in found):
        # What was wrong before is not held against this change; most lists have nothing wrong, and are looked at once.
        known = set(lint.check_rules(before.blocks, before.profiles, before.lines, now_at_ms))
        found = [item for item in found if item not in known]
    faults = [
        change.fault(f"rule {item.rule}", "value", item.message) for item in found if item.severity is lint.Severity.ERROR
    ]
    return faults, [f"rule {item.rule}: {item.message}" for item in found if item.severity is not lint.Severity.ERROR]


def _activations(change: Change, planned: Plan, after: Snapshot) -> list[Fault]:
    """Lines that begin to be used, or move, where 110 or 112 lead nowhere."""
    found = []
    for item in planned.items:
        line, former = item.after, item.before
        if not isinstance(line, Line) or line.status is LineStatus.TERMINATED:
            continue
        known = isinstance(former, Line) and former.status is not LineStatus.TERMINATED and former.location == line.location
        if known and not (line.status is LineStatus.ACTIVE and former.status is not LineStatus.ACTIVE):  # type: ignore[union-attr]
            continue
        missing = [service for service in SERVICES if not has_route(after, line.location, service)]
        if missing:
            reason = (
                f"{line.location!r} has no PSAP route for {' and '.join(missing)}: set one first, or the line cannot be used"
            )
            found.append(change.fault(f"line {line.id}", "location", reason))
    return found


def _removals(planned: Plan, before: Snapshot, after: Snapshot) -> list[Fault]:
    """Routes whose removal leaves lines that could reach 110 or 112 before without any."""
    if not any(item.table == "psap" and item.after is None for item in planned.items):
        return []
    users: dict[tuple[str, str], list[str]] = {}
    for line in after.lines.values():
        if line.status is LineStatus.TERMINATED:
            continue
        for service in SERVICES:
            if not has_route(after, line.location, service) and has_route(before, line.location, service):
                users.setdefault((line.location, service), []).append(line.id)
    return [
        Fault(
            f"routes {service}:{location}",
            0,
            "location",
            f"{len(lines)} lines would have no way to {service}, {lines[0]} first",
        )
        for (location, service), lines in sorted(users.items())
    ]
