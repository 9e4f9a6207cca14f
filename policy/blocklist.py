"""Which block rule counts for a number: an index of the rules, built once per snapshot, and the look-up in it.

Pure. Of the rules that are valid at the moment the longest match counts: a whole number before a prefix, a longer prefix before
a shorter one, any prefix before a class. Of equally long ones that for the line and its profile comes before that for the
line, the profile, and all; then a block before an exception; then the lower id. What a call costs does not grow with the
number of rules: a look-up per scope and length, and only rules that match have their times looked at.
Left out: what follows from a rule (`policy.evaluate`), checking rules when they are entered (`policy.parse`, `policy.lint`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from policy.rules import BlockRule, RuleAction, RuleDirection, RuleKind, RuleLevel
from policy.windows import covers

__all__ = ["BlockIndex", "BlockTable", "candidates", "index_of", "is_active", "rule_for"]

Scope = tuple[str, str]  # (line, profile); "" for all
DestinationKind = StrEnum  # `policy.model.DestinationClass`, which this module comes before
_WHOLE = 1_000  # rank of a whole number, above every prefix's length
_CLASS = 0

_POSITIONS = {RuleDirection.OUTGOING: (0,), RuleDirection.INCOMING: (1,), RuleDirection.BOTH: (0, 1)}


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The rules of one scope by value, each tuple in the order they count, and the prefixes' lengths, longest first."""

    numbers: Mapping[str, tuple[BlockRule, ...]]
    prefixes: Mapping[str, tuple[BlockRule, ...]]
    classes: Mapping[str, tuple[BlockRule, ...]]
    lengths: tuple[int, ...]


Scopes = Mapping[Scope, BlockTable]


class BlockIndex(NamedTuple):
    """The rules' tables by scope, for each level and direction."""

    admin_outgoing: Scopes
    admin_incoming: Scopes
    customer_outgoing: Scopes
    customer_incoming: Scopes

    def of(self, level: RuleLevel, direction: RuleDirection) -> Scopes:
        """The tables of a level, for calls that go out or come in."""
        if direction is RuleDirection.OUTGOING:
            return self.admin_outgoing if level is RuleLevel.ADMIN else self.customer_outgoing
        return self.admin_incoming if level is RuleLevel.ADMIN else self.customer_incoming


def index_of(rules: Iterable[BlockRule]) -> BlockIndex:
    """The index of `rules`. A customer's rule without a line, and an empty value, are left out: they would be for everybody,
    and for everything, which no slip of the hand may cause."""
    parts: list[dict[Scope, tuple[dict[str, list[BlockRule]], ...]]] = [{}, {}, {}, {}]
    for rule in sorted(rules, key=lambda rule: (rule.action is RuleAction.ALLOW, rule.id)):
        if not rule.value or (rule.level is RuleLevel.CUSTOMER and not rule.line):
            continue
        part = 0 if rule.kind is RuleKind.NUMBER else 2 if rule.kind is RuleKind.CLASS else 1
        first = 2 if rule.level is RuleLevel.CUSTOMER else 0
        for position in _POSITIONS[rule.direction]:
            tables = parts[first + position].setdefault((rule.line, rule.profile), ({}, {}, {}))
            tables[part].setdefault(rule.value, []).append(rule)
    return BlockIndex(*({scope: _table(*tables) for scope, tables in scopes.items()} for scopes in parts))


def _table(
    numbers: dict[str, list[BlockRule]], prefixes: dict[str, list[BlockRule]], classes: dict[str, list[BlockRule]]
) -> BlockTable:
    lengths = tuple(sorted({len(value) for value in prefixes}, reverse=True))
    return BlockTable(_frozen(numbers), _frozen(prefixes), _frozen(classes), lengths)


def _frozen(rules: dict[str, list[BlockRule]]) -> dict[str, tuple[BlockRule, ...]]:
    return {value: tuple(found) for value, found in rules.items()}


def is_active(rule: BlockRule, now_at_ms: int) -> bool:
    """Whether a rule's validity and windows hold at that UTC time."""
    if rule.valid_from_ms is not None and now_at_ms < rule.valid_from_ms:
        return False
    if rule.valid_until_ms is not None and now_at_ms >= rule.valid_until_ms:
        return False
    return not rule.windows or covers(rule.windows, now_at_ms)


def rule_for(  # noqa: PLR0917 - the question, in its own order
    scopes: Scopes, line: str, profile: str, canonical: str, kind: DestinationKind, now_at_ms: int
) -> BlockRule | None:
    """Of one level's rules (`BlockIndex.of`) the one that counts for a number, a block or an exception; None: there is none."""
    if not scopes:
        return None
    found: BlockRule | None = None
    best = -1
    for scope in ((line, profile), (line, ""), ("", profile), ("", "")):
        table = scopes.get(scope)
        if table is None:
            continue
        first = _first(table, canonical, kind, now_at_ms, best)
        if first is not None:
            best, found = first
    return found


def _first(
    table: BlockTable, canonical: str, kind: DestinationKind, now_at_ms: int, above: int
) -> tuple[int, BlockRule] | None:
    """Rank and rule of the first of `_matches` that is valid, when its rank is above that of another scope's."""
    whole = table.numbers.get(canonical)
    if whole is not None and above < _WHOLE:
        for rule in whole:
            if is_active(rule, now_at_ms):
                return _WHOLE, rule
    prefixes, size = table.prefixes, len(canonical)
    for length in table.lengths:
        if length <= above:
            return None
        rules = prefixes.get(canonical[:length]) if length <= size else None
        if rules is not None:
            for rule in rules:
                if is_active(rule, now_at_ms):
                    return length, rule
    if table.classes and above < _CLASS:
        for rule in table.classes.get(str(kind), ()):
            if is_active(rule, now_at_ms):
                return _CLASS, rule
    return None


def _matches(table: BlockTable, canonical: str, kind: DestinationKind) -> list[tuple[int, BlockRule]]:
    """The rules of a table that match, the longest first, with their ranks."""
    found: list[tuple[int, BlockRule]] = []
    whole = table.numbers.get(canonical)
    if whole is not None:
        found += [(_WHOLE, rule) for rule in whole]
    prefixes, size = table.prefixes, len(canonical)
    for length in table.lengths:
        if length <= size:
            rules = prefixes.get(canonical[:length])
            if rules is not None:
                found += [(length, rule) for rule in rules]
    if table.classes:
        found += [(_CLASS, rule) for rule in table.classes.get(str(kind), ())]
    return found


def candidates(scopes: Scopes, line: str, profile: str, canonical: str, kind: DestinationKind) -> list[BlockRule]:
    """Every rule of one level that matches a number at whatever time, in the order in which they count."""
    ranked: list[tuple[int, int, BlockRule]] = []
    for position, scope in enumerate(((line, profile), (line, ""), ("", profile), ("", ""))):
        table = scopes.get(scope)
        if table is not None:
            ranked += [(-rank, position, rule) for rank, rule in _matches(table, canonical, kind)]
    ranked.sort(key=lambda item: item[:2])  # stable: within a scope and rank the table's order stays
    return [rule for _, _, rule in ranked]
