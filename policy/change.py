"""A change of the policy data: what it sets and removes, checked against what is kept, as writes to hash fields.

Pure. A change is planned on what `policy.store` has read and written only if nothing was changed in between.
Left out: the form of files (`policy.parse`), Redis (`policy.store`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from policy import codec
from policy.codec import Owner
from policy.table import Fault, PolicyError

if TYPE_CHECKING:
    from policy.model import Account, BlockRule, Line, PsapRoute

__all__ = ["Change", "Kept", "Plan", "Write", "plan"]

SUMMARY_ITEMS = 50  # items that a log entry names one by one; the rest is counted


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be set and removed.

    A line keeps those of its former accounts that its `accounts` still names; the others go, with their numbers. The
    routes of one location and service are set together, and so are an account's numbers.
    """

    lines: tuple[Line, ...] = ()
    accounts: tuple[Account, ...] = ()
    psap: tuple[PsapRoute, ...] = ()
    blocks: tuple[BlockRule, ...] = ()
    remove_lines: tuple[str, ...] = ()
    remove_psap: tuple[tuple[str, str], ...] = ()  # (location, service)
    remove_blocks: tuple[str, ...] = ()

    def line_ids(self) -> tuple[str, ...]:
        """All lines that it touches."""
        return tuple(dict.fromkeys((*(line.id for line in self.lines), *self.remove_lines)))

    def psap_fields(self) -> tuple[str, ...]:
        """All PSAP fields that it touches."""
        pairs = (*((route.location, route.service) for route in self.psap), *self.remove_psap)
        return tuple(dict.fromkeys(codec.psap_field(location, service) for location, service in pairs))

    def block_ids(self) -> tuple[str, ...]:
        """All block rules that it touches."""
        return tuple(dict.fromkeys((*(rule.id for rule in self.blocks), *self.remove_blocks)))


@dataclass(frozen=True, slots=True)
class Kept:
    """What the store holds of what a change touches, by hash field; what it does not hold is missing."""

    lines: Mapping[str, Line] = field(default_factory=lambda: MappingProxyType({}))
    accounts: Mapping[str, Account] = field(default_factory=lambda: MappingProxyType({}))
    owners: Mapping[str, Owner] = field(default_factory=lambda: MappingProxyType({}))
    blocks: Mapping[str, BlockRule] = field(default_factory=lambda: MappingProxyType({}))
    psap: Mapping[str, tuple[PsapRoute, ...]] = field(default_factory=lambda: MappingProxyType({}))


class Write(NamedTuple):
    """One hash field: `table` is lines, accounts, numbers, blocks or psap; `value` None removes the field."""

    table: str
    field: str
    value: bytes | None


class Plan(NamedTuple):
    """The writes of a change, and what it changes in words for the log, without secrets."""

    writes: tuple[Write, ...]
    before: dict[str, Any]
    after: dict[str, Any]


def plan(change: Change, kept: Kept) -> Plan:
    """The writes of `change`. Raises PolicyError, with all faults, when it takes what belongs to another line."""
    faults: list[Fault] = []
    writes: dict[tuple[str, str], bytes | None] = {}
    new = {account.user: account for account in change.accounts}
    _drop_former(change, kept, new, writes)
    for line in change.lines:
        writes["lines", line.id] = codec.encode(line)
        for user in line.accounts:
            holder = new.get(user) or kept.accounts.get(user)
            if holder is None or holder.line != line.id:
                faults.append(_fault(f"line {line.id}", "account", f"{user} is not an account of this line"))
    leaving = set(change.remove_lines)
    lines = {
        **{key: line for key, line in kept.lines.items() if key not in leaving},
        **{line.id: line for line in change.lines},
    }
    for account in change.accounts:
        holder = kept.accounts.get(account.user)
        if holder is not None and holder.line != account.line and holder.line not in leaving:
            faults.append(_fault(f"account {account.user}", "account", f"taken by line {holder.line}"))
        if not _names(lines.get(account.line), account.user):
            faults.append(_fault(f"account {account.user}", "line", f"line {account.line} does not name this account"))
        writes["accounts", account.user] = codec.encode(account)
        for number in account.numbers:
            faults.extend(_take(number, account, kept, writes))
    for rule in change.blocks:
        writes["blocks", rule.id] = codec.encode(rule)
    for key in change.remove_blocks:
        writes["blocks", key] = None
    routes = _by_field(change.psap)
    for name in change.psap_fields():
        writes["psap", name] = codec.encode_psap(tuple(routes[name])) if name in routes else None
    if faults:
        raise PolicyError(tuple(faults))
    return Plan(tuple(Write(*key, value) for key, value in writes.items()), *_summary(change, kept))


def _by_field(routes: tuple[PsapRoute, ...]) -> dict[str, list[PsapRoute]]:
    found: dict[str, list[PsapRoute]] = {}
    for route in routes:
        found.setdefault(codec.psap_field(route.location, route.service), []).append(route)
    return found


def _fault(where: str, column: str, reason: str) -> Fault:
    return Fault(where, 0, column, reason)


def _names(line: Line | None, user: str) -> bool:
    return line is not None and user in line.accounts


def _drop_former(change: Change, kept: Kept, new: Mapping[str, Account], writes: dict[tuple[str, str], bytes | None]) -> None:
    """Remove what the touched lines and accounts had and have no longer; what stays is written again afterwards."""
    staying = {line.id: set(line.accounts) for line in change.lines}
    for key in change.remove_lines:
        writes["lines", key] = None
    for key in change.line_ids():
        former = kept.lines.get(key)
        for user in former.accounts if former is not None else ():
            account = kept.accounts.get(user)
            if account is None or account.line != key:
                continue
            if user not in staying.get(key, ()):
                writes["accounts", user] = None
            elif user not in new:
                continue
            for number in account.numbers:
                writes["numbers", number] = None
    for user in new:
        account = kept.accounts.get(user)
        for number in account.numbers if account is not None else ():
            writes["numbers", number] = None


def _take(number: str, account: Account, kept: Kept, writes: dict[tuple[str, str], bytes | None]) -> list[Fault]:
    """Assign a number to an account, unless it is another's that does not give it up in the same change."""
    key = ("numbers", number)
    owner = kept.owners.get(number)
    given_up = key in writes and writes[key] is None
    if writes.get(key) is not None:
        return [_fault(f"account {account.user}", "number", f"{number} is assigned twice")]
    if owner is not None and owner.account != account.user and not given_up:
        return [_fault(f"account {account.user}", "number", f"{number} taken by account {owner.account} of line {owner.line}")]
    writes[key] = codec.encode(Owner(account.user, account.line))
    return []


def _summary(change: Change, kept: Kept) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was and what will be, by table, cut to `SUMMARY_ITEMS` each; hashes of passwords are left out."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    lines = {line.id: line for line in change.lines}
    _note(before, "lines", {key: _line_words(kept.lines[key], kept.accounts) for key in change.line_ids() if key in kept.lines})
    users = {account.user: account for account in change.accounts}
    _note(
        after,
        "lines",
        {key: _line_words(line, {**kept.accounts, **users} if len(lines) == 1 else users) for key, line in lines.items()},
    )
    _note(before, "blocks", {key: _rule_words(kept.blocks[key]) for key in change.block_ids() if key in kept.blocks})
    _note(after, "blocks", {rule.id: _rule_words(rule) for rule in change.blocks})
    _note(
        before, "psap", {name: [route.uri for route in kept.psap[name]] for name in change.psap_fields() if name in kept.psap}
    )
    _note(after, "psap", {name: [route.uri for route in routes] for name, routes in _by_field(change.psap).items()})
    return before, after


def _note(summary: dict[str, Any], table: str, items: dict[str, Any]) -> None:
    if len(items) > SUMMARY_ITEMS:
        items = {**dict(list(items.items())[:SUMMARY_ITEMS]), "...": f"{len(items) - SUMMARY_ITEMS} more"}
    if items:
        summary[table] = items


def _line_words(line: Line, accounts: Mapping[str, Account]) -> dict[str, Any]:
    return {
        "profile": line.profile,
        "status": line.status.value,
        "channels": line.channels,
        "location": line.location,
        "area_code": line.area_code,
        "accounts": {user: list(accounts[user].numbers[:SUMMARY_ITEMS]) if user in accounts else [] for user in line.accounts},
    }


def _rule_words(rule: BlockRule) -> dict[str, Any]:
    return {"value": rule.value, "reason": rule.reason, "profile": rule.profile, "line": rule.line, "owner": rule.owner}
