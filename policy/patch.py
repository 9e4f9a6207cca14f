"""A snapshot made from the one before it and what was changed since, without building all of it anew.

Pure. Left out: what was changed (`policy.history`), reading it (`policy.store`).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from policy.model import Account, BlockRule, Line, PsapRoute, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from policy.history import Entry

__all__ = ["Touched", "Values", "patched", "touched_by"]


class Touched(NamedTuple):
    """Hash fields by table."""

    lines: tuple[str, ...]
    accounts: tuple[str, ...]
    psap: tuple[str, ...]
    blocks: tuple[str, ...]


class Values(NamedTuple):
    """What those fields hold now; None for what is gone."""

    lines: Mapping[str, Line | None]
    accounts: Mapping[str, Account | None]
    psap: Mapping[str, tuple[PsapRoute, ...] | None]
    blocks: Mapping[str, BlockRule | None]


def touched_by(entries: Iterable[Entry]) -> Touched | None:
    """All that the entries changed; None when one of them does not say it."""
    found: tuple[dict[str, None], ...] = ({}, {}, {}, {})
    for entry in entries:
        if entry.sides is None:
            return None
        for names, table in zip(found, Touched._fields, strict=True):
            for side in entry.sides:
                names.update(dict.fromkeys(side.table(table)))
    return Touched(*(tuple(names) for names in found))


def patched(snapshot: Snapshot, version: int, new: Values) -> Snapshot:
    """`snapshot` with the values of `new`, at `version`."""
    lines = {**snapshot.lines, **{key: line for key, line in new.lines.items() if line is not None}}
    accounts = {**snapshot.accounts, **{key: account for key, account in new.accounts.items() if account is not None}}
    for removed, table in ((new.lines, lines), (new.accounts, accounts)):
        for key, value in removed.items():
            if value is None:
                table.pop(key, None)
    numbers, ranges = dict(snapshot.numbers), dict(snapshot.ranges)
    for user in new.accounts:
        former = snapshot.accounts.get(user)
        for number in former.numbers if former is not None else ():
            owners, key = (ranges, number[:-1]) if number.endswith("*") else (numbers, number)
            if owners.get(key) == user:
                del owners[key]
    for account in new.accounts.values():
        for number in account.numbers if account is not None else ():
            owners, key = (ranges, number[:-1]) if number.endswith("*") else (numbers, number)
            owners[key] = account.user  # type: ignore[union-attr]
    psap = dict(snapshot.psap)
    for field, routes in new.psap.items():
        service, _, location = field.partition(":")
        psap.pop((location, service), None)
        if routes:
            psap[location, service] = tuple(sorted(routes, key=lambda route: (route.priority, route.uri)))
    blocks = snapshot.blocks
    if new.blocks:
        rules = {rule.id: rule for rule in blocks} | {rule.id: rule for rule in new.blocks.values() if rule is not None}
        blocks = tuple(rules[key] for key in sorted(rules) if new.blocks.get(key, rules[key]) is not None)
    return Snapshot(
        version=version,
        lines=MappingProxyType(lines),
        accounts=MappingProxyType(accounts),
        profiles=snapshot.profiles,
        psap=MappingProxyType(psap),
        blocks=blocks,
        numbers=MappingProxyType(numbers),
        ranges=MappingProxyType(ranges),
    )
