"""Which block rule counts for a number: an index of the rules, built once per snapshot, and the look-up in it.

Pure. Of the rules that are valid at the moment the longest match counts: a whole number before a prefix, a longer prefix before
a shorter one, any prefix before a class. Of equally long ones that for the line and its profile comes before that for the
line, the profile, and all; then a block before an exception; then the lower id. What a call costs does not grow with the
number of rules: a look-up per scope and length, and only rules that match have their times looked at.
Left out: what follows from a rule (`policy.evaluate`), checking rules when they are entered (`policy.parse`, `policy.lint`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from policy.rules import BlockRule, RuleAction, RuleDirection, RuleKind, RuleLevel
from policy.windows import covers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["BlockIndex", "BlockTable", "candidates", "index_of", "is_active", "rule_for"]

Scope = tuple[str, str]  # (line, profile); "" for all
_WHOLE = 1_000  # rank of a whole number, above every prefix's length
_CLASS = 0

_DIRECTIONS = {
    RuleDirection.OUTGOING: (RuleDirection.OUTGOING,),
    RuleDirection.INCOMING: (RuleDirection.INCOMING,),
    RuleDirection.BOTH: (RuleDirection.OUTGOING, RuleDirection.INCOMING),
}


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The rules of one scope by value, each tuple in the order they count, and the prefixes' lengths, longest first."""

    numbers: Mapping[str, tuple[BlockRule, ...]]
    prefixes: Mapping[str, tuple[BlockRule, ...]]
    classes: Mapping[str, tuple[BlockRule, ...]]
    lengths: tuple[int, ...]


BlockIndex = MappingProxyType[tuple[RuleDirection, RuleLevel], MappingProxyType[Scope, BlockTable]]


def index_of(rules: Iterable[BlockRule]) -> BlockIndex:
    """Rules by direction and level, then scope. A customer's rule without a line, and an empty value, are left out: they
    would be for everybody, and for everything, which no slip of the hand may cause."""
    parts: dict[tuple[RuleDirection, RuleLevel], dict[Scope, tuple[dict[str, list[BlockRule]], ...]]] = {}
    for rule in sorted(rules, key=lambda rule: (rule.action is RuleAction.ALLOW, rule.id)):
        if not rule.value or (rule.level is RuleLevel.CUSTOMER and not rule.line):
            continue
        part = 0 if rule.kind is RuleKind.NUMBER else 2 if rule.kind is RuleKind.CLASS else 1
        for direction in _DIRECTIONS[rule.direction]:
            scopes = parts.setdefault((direction, rule.level), {})
            tables = scopes.setdefault((rule.line, rule.profile), ({}, {}, {}))
            tables[part].setdefault(rule.value, []).append(rule)
    return MappingProxyType(
        {key: MappingProxyType({scope: _table(*tables) for scope, tables in scopes.items()}) for key, scopes in parts.items()}
    )


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
    index: BlockIndex,
    level: RuleLevel,
    direction: RuleDirection,
    line: str,
    profile: str,
    canonical: str,
    kind: str,
    now_at_ms: int,
) -> BlockRule | None:
    """The rule of one level that counts for a number of class `kind`, a block or an exception; None when there is none."""
    scopes = index.get((direction, level))
    if scopes is None:
        return None
    found: BlockRule | None = None
    best = -1
    for scope in ((line, profile), (line, ""), ("", profile), ("", "")):
        table = scopes.get(scope)
        if table is None:
            continue
        for rank, rule in _matches(table, canonical, kind):
            if rank <= best:
                break
            if is_active(rule, now_at_ms):
                found, best = rule, rank
                break
    return found


def _matches(table: BlockTable, canonical: str, kind: str) -> Iterator[tuple[int, BlockRule]]:
    """The rules of a table that match, the longest first, with their ranks."""
    for rule in table.numbers.get(canonical, ()):
        yield _WHOLE, rule
    prefixes, size = table.prefixes, len(canonical)
    for length in table.lengths:
        if length <= size:
            for rule in prefixes.get(canonical[:length], ()):
                yield length, rule
    for rule in table.classes.get(kind, ()):
        yield _CLASS, rule


def candidates(  # noqa: PLR0917 - the question, in its own order
    index: BlockIndex, level: RuleLevel, direction: RuleDirection, line: str, profile: str, canonical: str, kind: str
) -> list[BlockRule]:
    """Every rule of one level that matches a number at whatever time, in the order in which they count."""
    scopes = index.get((direction, level), MappingProxyType({}))
    ranked: list[tuple[int, int, BlockRule]] = []
    for position, scope in enumerate(((line, profile), (line, ""), ("", profile), ("", ""))):
        table = scopes.get(scope)
        if table is not None:
            ranked += [(-rank, position, rule) for rank, rule in _matches(table, canonical, kind)]
    ranked.sort(key=lambda item: item[:2])  # stable: within a scope and rank the table's order stays
    return [rule for _, _, rule in ranked]
