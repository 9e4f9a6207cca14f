"""Generated block rules, and a naive model of which of them counts."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from policy.model import BlockRule, DestinationClass, RuleAction, RuleDirection, RuleKind, RuleLevel, Window

BERLIN = ZoneInfo("Europe/Berlin")
NUMBERS = ("+49900", "+499001", "+4990012", "+49900123456", "+4930", "+493023125001", "+43", "+431", "+43900123456")
VALUES = ("+", "+4", "+49", *NUMBERS, "service:118", "service:11869", "service:115", "carrier:01033")
CLASSES = ("premium", "directory", "geographic", "international", "mobile")
START_MS = int(dt.datetime(2026, 3, 1, tzinfo=dt.UTC).timestamp() * 1000)
HOUR_MS = 3_600_000

WINDOWS = st.builds(
    Window,
    days=st.sets(st.integers(0, 6), min_size=1).map(lambda days: tuple(sorted(days))),
    start_min=st.integers(0, 1439),
    end_min=st.integers(1, 1440),
).filter(lambda window: window.start_min != window.end_min)
TIMES_MS = st.one_of(st.none(), st.integers(0, 10).map(lambda days: START_MS + days * 24 * HOUR_MS))


@st.composite
def rules(draw: st.DrawFn, *, lines: tuple[str, ...] = ("", "L1", "L2"), timed: bool = True) -> BlockRule:
    kind = draw(st.sampled_from([*RuleKind, RuleKind.PREFIX]))
    level = draw(st.sampled_from([RuleLevel.ADMIN, RuleLevel.ADMIN, RuleLevel.CUSTOMER]))
    value = {RuleKind.CLASS: CLASSES, RuleKind.COUNTRY: ("+43", "+49")}.get(kind, VALUES)
    return BlockRule(
        id=draw(st.sampled_from([f"r{number}" for number in range(12)])),
        value=draw(st.sampled_from(value)),
        reason="x",
        profile=draw(st.sampled_from(["", "", "velbert", "badnauheim"])) if level is RuleLevel.ADMIN else "",
        line=draw(st.sampled_from(lines)),
        kind=kind,
        action=draw(st.sampled_from(RuleAction)),
        direction=draw(st.sampled_from(RuleDirection)),
        level=level,
        valid_from_ms=draw(TIMES_MS) if timed else None,
        valid_until_ms=draw(TIMES_MS) if timed else None,
        windows=draw(st.one_of(st.just(()), st.lists(WINDOWS, max_size=2).map(tuple))) if timed else (),
    )


def rule_sets(**options: object) -> st.SearchStrategy[list[BlockRule]]:
    return st.lists(rules(**options), max_size=12, unique_by=lambda rule: rule.id)  # type: ignore[arg-type]


def is_open(windows: tuple[Window, ...], at_ms: int) -> bool:
    """Naive: every minute of every window on a wall that shows Berlin's time."""
    local = dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).astimezone(BERLIN)
    minute_of_week = local.weekday() * 1440 + local.hour * 60 + local.minute
    for window in windows:
        length = (
            (window.end_min - window.start_min)
            if window.end_min > window.start_min
            else window.end_min + 1440 - window.start_min
        )
        for day in window.days:
            begin = day * 1440 + window.start_min
            if any((begin + step) % 10080 == minute_of_week for step in range(length)):
                return True
    return False


def counts(rule: BlockRule, at_ms: int) -> bool:
    return (
        (rule.valid_from_ms is None or rule.valid_from_ms <= at_ms)
        and (rule.valid_until_ms is None or at_ms < rule.valid_until_ms)
        and (not rule.windows or is_open(rule.windows, at_ms))
    )


def naive_rule(
    found: list[BlockRule],
    level: RuleLevel,
    direction: RuleDirection,
    line: str,
    profile: str,
    number: str,
    kind: str,
    at_ms: int,
) -> BlockRule | None:
    """Naive: of all rules those that match, and of them the first by the order that the words of the contract give."""

    def matches(rule: BlockRule) -> bool:
        if rule.level is not level or rule.direction not in (direction, RuleDirection.BOTH):
            return False
        if rule.line not in ("", line) or rule.profile not in ("", profile) or not counts(rule, at_ms):
            return False
        if rule.level is RuleLevel.CUSTOMER and not rule.line:
            return False
        if rule.kind is RuleKind.CLASS:
            return rule.value == kind
        return number == rule.value if rule.kind is RuleKind.NUMBER else number.startswith(rule.value)

    def order(rule: BlockRule) -> tuple[object, ...]:
        length = 0 if rule.kind is RuleKind.CLASS else 1000 if rule.kind is RuleKind.NUMBER else len(rule.value)
        scope = (bool(rule.line), bool(rule.profile))
        return (
            -length,
            [(True, True), (True, False), (False, True), (False, False)].index(scope),
            rule.action == "allow",
            rule.id,
        )

    return min((rule for rule in found if matches(rule)), key=order, default=None)


def kind_of(number: str) -> str:
    if number.startswith("service:118"):
        return DestinationClass.DIRECTORY.value
    return {"+499": "premium", "+493": "geographic", "+43": "international"}.get(
        number[:4] if number[:3] != "+43" else "+43", "mobile"
    )
