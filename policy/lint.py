"""What is wrong with block rules, without a call: rules that would stand between a caller and help, and rules that do nothing.

Pure. An error refuses a change, a warning goes with it. Checks, by their code, warnings but for the first two:

    emergency   error: would catch 110 or 112; useless, since an emergency call never comes to the rules
    protected   error (a customer's own rule: warning): would catch 116xyz, or the carrier's own hotline
    never       no call can match it, it is never valid, or it is an exception from nothing
    duplicate   the same rule stands there under another id
    shadowed    a rule that counts before it, a shorter one, or the product decides every call of it alike
    expired     its time is over
    reason      nothing says why
    selective   a line that is barred in part has no rule of its own

Left out: whether a file can be read (`policy.parse`), and what a change would have done to calls (`policy.replay`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from policy.model import BlockRule, DestinationClass, LineStatus, RuleAction, RuleDirection, RuleKind, RuleLevel
from policy.numbers import classify, classify_incoming
from policy.plan.world import COUNTRY_CODES, HOME
from policy.windows import covers, write_windows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from policy.model import Destination, Line, Profile, Snapshot

__all__ = ["Finding", "Severity", "check", "check_rules"]

MINUTE_MS = 60_000
KNOWN_VALUES = 32_768  # of rules, of which is kept what they are as numbers
WEEK_MIN = 7 * 24 * 60


class Protected(NamedTuple):
    """A number that no rule may catch: as dialled, canonical, its class, and what it is."""

    number: str
    canonical: str
    kind: DestinationClass
    what: str


# Social services of European value in service (116xyz), each a proof that a rule catches some of them.
_SOCIAL = tuple(
    Protected(number, f"service:{number}", DestinationClass.SOCIAL, "the social service")
    for number in ("116117", "116111", "116116", "116000", "116006", "116123")
)
_EMERGENCY = ("112", "110")
_NO_CLASS = frozenset({DestinationClass.EMERGENCY, DestinationClass.INVALID})


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: of the rule with id `rule` ("" where a line is meant), `number` proves it and `other` is the rule that it
    is compared with, where there is one."""

    severity: Severity
    code: str
    rule: str
    message: str
    number: str = ""
    other: str = ""

    def __str__(self) -> str:
        return f"{self.severity}: {f'rule {self.rule}: ' if self.rule else ''}{self.message}"


def check(snapshot: Snapshot, now_at_ms: int) -> tuple[Finding, ...]:
    """All findings for a snapshot: errors first, then by rule."""
    found = list(check_rules(snapshot.blocks, snapshot.profiles, snapshot.lines, now_at_ms))
    with_rules = {rule.line for rule in snapshot.blocks if rule.line}
    for line in snapshot.lines.values():
        if line.status is LineStatus.SELECTIVE and line.id not in with_rules:
            message = f"line {line.id} is selective, but has no rule of its own: nothing is barred"
            found.append(Finding(Severity.WARNING, "selective", "", message))
    return tuple(found)


def check_rules(
    rules: Iterable[BlockRule], profiles: Mapping[str, Profile], lines: Mapping[str, Line] | None, now_at_ms: int
) -> tuple[Finding, ...]:
    """Findings for `rules` together. `lines` None: which lines there are is not known, and is not checked."""
    ordered = sorted(rules, key=lambda rule: rule.id)
    never = {rule.id: _never(rule, profiles, lines) for rule in ordered}
    among = _Among([rule for rule in ordered if not never[rule.id]], profiles)
    found: list[Finding] = []
    for rule in ordered:
        found += _catches(rule, among)
        if reason := never[rule.id]:
            found.append(_warning("never", rule, f"can never match: {reason}"))
        elif rule.valid_until_ms is not None and rule.valid_until_ms <= now_at_ms:
            found.append(_warning("expired", rule, "its time is over"))
        else:
            found += among.without_effect(rule)
        if not rule.reason.strip():
            found.append(_warning("reason", rule, "no reason: it is what a caller's complaint is answered with"))
    found.sort(key=lambda item: (item.severity is not Severity.ERROR, item.rule))
    return tuple(found)


def _warning(code: str, rule: BlockRule, message: str, *, other: str = "") -> Finding:
    return Finding(Severity.WARNING, code, rule.id, message, other=other)


# Help, and the way back


def _catches(rule: BlockRule, among: _Among) -> Iterator[Finding]:
    """A block that would catch 110, 112, 116xyz or a hotline of the carriers it is for."""
    if rule.action is not RuleAction.BLOCK or rule.direction is RuleDirection.INCOMING:
        return
    for number in _EMERGENCY:
        if _matches(rule, f"service:{number}", DestinationClass.EMERGENCY):
            message = (
                f"{_words(rule)} would catch {number}; nothing that is entered here stands in the way of an emergency call"
            )
            yield Finding(Severity.ERROR, "emergency", rule.id, message, number)
            return
    severity = Severity.ERROR if rule.level is RuleLevel.ADMIN else Severity.WARNING
    for number, canonical, kind, what in among.protected(rule):
        if _matches(rule, canonical, kind) and not among.is_excepted(rule, canonical):
            yield Finding(severity, "protected", rule.id, f"{_words(rule)} would catch {what} {number}", number)
            return


def _matches(rule: BlockRule, canonical: str, kind: str) -> bool:
    """Whether a rule is about a number, whatever the time and the line; an empty or cut value is about all that it begins."""
    if rule.kind is RuleKind.CLASS:
        return rule.value == kind
    return canonical == rule.value or (rule.kind is not RuleKind.NUMBER and canonical.startswith(rule.value))


def _words(rule: BlockRule) -> str:
    return f"{rule.kind.value} {rule.value!r}"


# Rules that no call meets


def _never(rule: BlockRule, profiles: Mapping[str, Profile], lines: Mapping[str, Line] | None) -> str:
    """Why no call can ever match a rule, or ""."""
    if rule.level is RuleLevel.CUSTOMER and not rule.line:
        return "a customer's rule names no line"
    if rule.profile and rule.profile not in profiles:
        return f"there is no profile {rule.profile}"
    if rule.line and lines is not None:
        line = lines.get(rule.line)
        if line is None:
            return f"there is no line {rule.line}"
        if rule.profile and line.profile != rule.profile:
            return f"line {rule.line} is of profile {line.profile}, not {rule.profile}"
    return _never_in_time(rule) or _never_by_value(rule)


def _never_in_time(rule: BlockRule) -> str:
    begin, end = rule.valid_from_ms, rule.valid_until_ms
    if begin is not None and end is not None:
        if begin >= end:
            return "it ends before it begins"
        minutes = range(-(-begin // MINUTE_MS), -(-end // MINUTE_MS))
        if rule.windows and len(minutes) < WEEK_MIN and not any(covers(rule.windows, at * MINUTE_MS) for at in minutes):
            return f"none of its windows ({write_windows(rule.windows)}) opens while it is valid"
    return ""


def _never_by_value(rule: BlockRule) -> str:
    value = rule.value
    if not value:
        return "it is for nothing"
    if rule.kind is RuleKind.CLASS:
        known = value in tuple(DestinationClass) and DestinationClass(value) not in _NO_CLASS
        return "" if known else f"there is no class {value!r} that a call could have"
    if rule.kind is RuleKind.COUNTRY:
        return "" if value[:1] == "+" and (value[1:] in COUNTRY_CODES or value[1:] == HOME) else f"{value!r} is no country code"
    if rule.kind is RuleKind.NUMBER:
        number = (value.partition(":")[2] or value).encode()
        found = classify_incoming(number) if rule.direction is RuleDirection.INCOMING else classify(number, "")
        return "" if found.canonical == value else f"no number is written {value!r}"
    return _never_by_prefix(value)


def _never_by_prefix(value: str) -> str:
    head, colon, digits = value.partition(":")
    if not colon:
        head, digits = value[:1], value[1:]
    if not (digits.isascii() and digits.isdigit()) and digits:
        return f"{value!r} is no beginning of a number"
    if head == "service":
        known = any(
            digits.startswith(code) or code.startswith(digits) for code in ("110", "112", "115", "116", "118", "124124")
        )
        return "" if known and len(digits) <= 6 else f"no short code begins with {digits}"
    if head == "carrier":
        known = digits.startswith("010") or "010".startswith(digits)
        return "" if known and len(digits) <= 6 else f"no carrier code begins with {digits}"
    if head != "+" or digits.startswith("0"):
        return f"{value!r} is no beginning of a number; numbers are written +49..., service:118, carrier:010"
    meaning = _read(value)
    if meaning.canonical == "-":
        return "" if meaning.status == 484 and not value.startswith("+490") else f"no number begins with {value}"
    if meaning.canonical != value:
        return f"numbers that begin so are written {meaning.canonical}"
    return ""


# Rules beside each other


class _Among:
    """Rules that some call may meet, by level, direction and value, to ask what one of them does beside the others."""

    def __init__(self, rules: list[BlockRule], profiles: Mapping[str, Profile]) -> None:
        self._profiles = profiles
        self._hotlines = [
            (profile.name, Protected(number, number, _read(number).kind, f"the hotline of {profile.name}"))
            for profile in profiles.values()
            for number in profile.hotlines
        ]
        self._by_value: dict[tuple[RuleLevel, RuleDirection, str], dict[tuple[str, str], list[BlockRule]]] = {}
        self._narrow: set[tuple[RuleLevel, RuleDirection, str, RuleAction]] = set()  # with a line or a profile
        self._of_classes = {
            (rule.level, direction, rule.action)
            for rule in rules
            if rule.kind is RuleKind.CLASS
            for direction in _directions(rule)
        }
        self._opened = {  # classes of which an exception lets some number pass, for whomever and whenever
            _within(rule)
            for rule in rules
            if rule.action is RuleAction.ALLOW and rule.level is RuleLevel.ADMIN and RuleDirection.OUTGOING in _directions(rule)
        }
        for rule in sorted(rules, key=lambda rule: (rule.action is RuleAction.ALLOW, rule.id)):
            for direction in _directions(rule):
                key = (rule.level, direction, _key(rule))
                self._by_value.setdefault(key, {}).setdefault((rule.line, rule.profile), []).append(rule)
                if rule.line or rule.profile:
                    self._narrow.add((*key, rule.action))

    def protected(self, rule: BlockRule) -> Iterator[Protected]:
        """Numbers that this rule may not catch."""
        yield from _SOCIAL
        value = rule.value
        if rule.kind is not RuleKind.CLASS and value.startswith("service:116") and len(value) == len("service:116117"):
            yield Protected(value[8:], value, DestinationClass.SOCIAL, "the social service")
        for profile, hotline in self._hotlines:
            if rule.profile in ("", profile):
                yield hotline

    def is_excepted(self, rule: BlockRule, canonical: str) -> bool:
        """Whether an exception that always holds, for all that the rule is for, lets a number pass."""
        keys = ["=" + canonical, *(canonical[:end] for end in range(len(canonical), 0, -1))]
        own = _rank(rule)
        for key in keys:
            for other in self._covering(rule, RuleDirection.OUTGOING, key):
                if other.action is RuleAction.ALLOW and _rank(other) > own and _is_permanent(other):
                    return True
        return False

    def without_effect(self, rule: BlockRule) -> list[Finding]:
        """A rule that changes no call: the same again, never asked, or decided alike without it."""
        found: list[Finding] = []
        for direction in _directions(rule)[:1]:
            twin = self._before(rule, direction)
            if twin is not None and _same_but_id(twin, rule):
                return [_warning("duplicate", rule, f"the same as rule {twin.id}", other=twin.id)]
            if twin is not None:
                message = f"rule {twin.id} for the same {_words(rule)} always counts before it"
                return [_warning("shadowed", rule, message, other=twin.id)]
        others = [self._next(rule, direction) for direction in _directions(rule)]
        if all(other is not None for other in others):
            other = others[0]
            if other is not None:
                verb = "blocks" if rule.action is RuleAction.BLOCK else "allows"
                message = f"rule {other.id} ({_words(other)}) {verb} all of it already"
                found.append(_warning("shadowed", rule, message, other=other.id))
        elif product := self._by_product(rule):
            found.append(_warning("shadowed", rule, product))
        elif rule.action is RuleAction.ALLOW and not self._excepts(rule):
            found.append(_warning("never", rule, "an exception, but nothing that it is an exception from is blocked"))
        return found

    def _before(self, rule: BlockRule, direction: RuleDirection) -> BlockRule | None:
        """A rule of the same scope and value that always counts first."""
        for other in self._by_value[rule.level, direction, _key(rule)][rule.line, rule.profile]:
            if other is rule:
                break
            if set(_directions(rule)) <= set(_directions(other)) and _holds_whenever(other, rule):
                return other
        return None

    def _next(self, rule: BlockRule, direction: RuleDirection) -> BlockRule | None:
        """The rule that would decide every call of `rule` alike if that were not there; None when that is not certain."""
        keys = _wider_keys(rule)
        opposite = RuleAction.ALLOW if rule.action is RuleAction.BLOCK else RuleAction.BLOCK
        for key in keys:
            if (rule.level, direction, key, opposite) in self._narrow:
                return None  # some line or profile may be decided otherwise in between
            for other in self._covering(rule, direction, key):
                if other is rule or (_rank(other) == _rank(rule) and not _is_wider(other, rule)):
                    continue
                if other.action is not rule.action or (rule.action is RuleAction.ALLOW and _within(other) != _within(rule)):
                    return None  # "+49900" opens premium numbers, "+49" does not
                if _is_permanent(other):
                    return other
        return None

    def _excepts(self, rule: BlockRule) -> bool:
        """Whether there is anything that an exception could lift: a shorter block, or a class that a product does not offer."""
        keys, kind = _wider_keys(rule), _within(rule)
        for direction in _directions(rule):
            if not kind and (rule.level, direction, RuleAction.BLOCK) in self._of_classes:
                return True  # it is for numbers of several classes, and one of them may be blocked
            for key in keys:
                scopes = self._by_value.get((rule.level, direction, key), {})
                if any(other.action is RuleAction.BLOCK for others in scopes.values() for other in others):
                    return True
        if rule.level is RuleLevel.CUSTOMER or rule.direction is RuleDirection.INCOMING:
            return False
        if not kind and (rule.level, RuleDirection.OUTGOING, RuleAction.ALLOW) in self._of_classes:
            return True  # it counts before the exception for a class, and opens none itself: it takes that one's effect
        return any(kind in profile.blocked for profile in self._profiles.values() if rule.profile in ("", profile.name))

    def _covering(self, rule: BlockRule, direction: RuleDirection, key: str) -> Iterator[BlockRule]:
        """Rules with a value whose scope holds all of a rule's, the narrower scope first."""
        scopes = self._by_value.get((rule.level, direction, key))
        if scopes is None:
            return
        for scope in dict.fromkeys(((rule.line, rule.profile), (rule.line, ""), ("", rule.profile), ("", ""))):
            yield from scopes.get(scope, ())

    def _by_product(self, rule: BlockRule) -> str:
        """Why the product itself makes a block needless, or "". What an exception opens, a block for fewer lines may close."""
        if rule.action is not RuleAction.BLOCK or rule.direction is not RuleDirection.OUTGOING:
            return ""
        kind = _within(rule)
        concerned = [profile for profile in self._profiles.values() if rule.profile in ("", profile.name)]
        if kind and kind not in self._opened and concerned and all(_closes(profile, kind, rule) for profile in concerned):
            return f"{' and '.join(profile.name for profile in concerned)} offer no {kind}"
        return ""


def _closes(profile: Profile, kind: str, rule: BlockRule) -> bool:
    """Whether a product refuses every number that a rule of class `kind` is for."""
    if kind not in profile.blocked:
        return False
    excepted = [number.removesuffix("*") for number in profile.allowed_numbers]
    if rule.kind is RuleKind.CLASS:
        return not any(_read(number).kind.value == kind for number in excepted)
    return not any(number.startswith(rule.value) or rule.value.startswith(number) for number in excepted)


def _directions(rule: BlockRule) -> tuple[RuleDirection, ...]:
    return (RuleDirection.OUTGOING, RuleDirection.INCOMING) if rule.direction is RuleDirection.BOTH else (rule.direction,)


def _key(rule: BlockRule) -> str:
    """A rule's value among others: a country is a prefix, a whole number and a class are something else."""
    return {RuleKind.NUMBER: "=", RuleKind.CLASS: "@"}.get(rule.kind, "") + rule.value


def _rank(rule: BlockRule) -> int:
    return 0 if rule.kind is RuleKind.CLASS else 1_000 if rule.kind is RuleKind.NUMBER else len(rule.value)


def _is_wider(other: BlockRule, rule: BlockRule) -> bool:
    return (other.line, other.profile) != (rule.line, rule.profile)


def _is_permanent(rule: BlockRule) -> bool:
    return rule.valid_from_ms is None and rule.valid_until_ms is None and not rule.windows


def _holds_whenever(other: BlockRule, rule: BlockRule) -> bool:
    """Whether `other` is valid at any time that `rule` is; certain cases only."""
    return _is_permanent(other) or (other.valid_from_ms, other.valid_until_ms, other.windows) == (
        rule.valid_from_ms,
        rule.valid_until_ms,
        rule.windows,
    )


def _same_but_id(one: BlockRule, other: BlockRule) -> bool:
    return one.action is other.action and (one.valid_from_ms, one.valid_until_ms, one.windows) == (
        other.valid_from_ms,
        other.valid_until_ms,
        other.windows,
    )


def _wider_keys(rule: BlockRule) -> list[str]:
    """The values that hold all of a rule's, its own first, in the order in which they count."""
    if rule.kind is RuleKind.CLASS:
        return [_key(rule)]
    kind = _within(rule)
    own = [_key(rule)] if rule.kind is RuleKind.NUMBER else []
    return [*own, *(rule.value[:end] for end in range(len(rule.value), 0, -1)), *([f"@{kind}"] if kind else [])]


@lru_cache(maxsize=KNOWN_VALUES)
def _read(value: str) -> Destination:
    """What a value is as a number. Kept: a change is looked at together with all the rules that it does not touch."""
    return classify((value.partition(":")[2] or value).encode(), "")


def _within(rule: BlockRule) -> str:
    """The class of every number that a rule is for, where there is one: "+49900" is premium; "+4" is nothing yet."""
    if rule.kind is RuleKind.CLASS:
        return rule.value
    meaning = _read(rule.value)
    return meaning.kind.value if meaning.prefix and rule.value.startswith(meaning.prefix) else ""
