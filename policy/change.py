"""A change of the policy data: what it sets and removes, checked against what is kept, as items and as writes to hash fields.

Pure. A change is planned on a snapshot that `policy.store` has read and written only if nothing was changed in between. What a
change would leave as it is becomes neither an item nor a write.
Left out: the form of files (`policy.parse`), whether the result is wise (`policy.review`), Redis (`policy.store`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, cast

from policy import codec
from policy.build import snapshot_of
from policy.codec import Owner
from policy.model import Account, BlockRule, Line, LineStatus, PsapRoute, Snapshot
from policy.table import Fault, PolicyError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OUT_BARRED", "Change", "Item", "Plan", "Value", "Write", "after_plan", "empty_snapshot", "plan"]

Value = Line | Account | BlockRule | tuple[PsapRoute, ...]
OUT_BARRED = (LineStatus.BARRED_OUT, LineStatus.BARRED_FULL, LineStatus.FRAUD_HOLD)


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be set and removed.

    A line keeps those of its former accounts that its `accounts` still names; the others go, with their numbers. An account
    without HA1 values keeps those that are kept for it. Routes of one location, service and day are set together, and so are
    an account's numbers. `rows` says where "line <id>", "account <user>", "rule <id>" stand in files: file and line.
    """

    lines: tuple[Line, ...] = ()
    accounts: tuple[Account, ...] = ()
    psap: tuple[PsapRoute, ...] = ()
    blocks: tuple[BlockRule, ...] = ()
    remove_lines: tuple[str, ...] = ()
    remove_psap: tuple[tuple[str, str], ...] = ()  # (location, service), of every day
    remove_blocks: tuple[str, ...] = ()
    rows: Mapping[str, tuple[str, int]] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    def line_ids(self) -> tuple[str, ...]:
        """All lines that it touches."""
        return tuple(dict.fromkeys((*(line.id for line in self.lines), *self.remove_lines)))

    def fault(self, what: str, column: str, reason: str) -> Fault:
        """A fault of an item, at its place in a file where it has one."""
        place = self.rows.get(what)
        return Fault(what, 0, column, reason) if place is None else Fault(*place, column, f"{what}: {reason}")


class Item(NamedTuple):
    """One thing that a change changes. `table` is lines, accounts, psap or blocks; None stands for absence."""

    table: str
    key: str
    before: Value | None
    after: Value | None


class Write(NamedTuple):
    """One hash field: `table` is that of an item, or numbers; `value` None removes the field."""

    table: str
    field: str
    value: bytes | None


class Plan(NamedTuple):
    """What a change changes, and its writes."""

    items: tuple[Item, ...]
    writes: tuple[Write, ...]


def empty_snapshot() -> Snapshot:
    """Policy data with nothing in it."""
    return snapshot_of(0, (), (), {}, (), ())


class _Kept:
    """What is kept, by the hash fields of the store."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.lines: dict[str, Line] = dict(snapshot.lines)
        self.accounts: dict[str, Account] = dict(snapshot.accounts)
        self.blocks: dict[str, BlockRule] = {rule.id: rule for rule in snapshot.blocks}
        self.psap = {codec.psap_field(*key): _in_order(routes) for key, routes in snapshot.psap.items()}
        self._snapshot = snapshot

    def table(self, name: str) -> dict[str, Value]:
        """One of the tables."""
        tables = {"lines": self.lines, "accounts": self.accounts, "blocks": self.blocks, "psap": self.psap}
        return cast("dict[str, Value]", tables[name])

    def owner(self, number: str) -> Owner | None:
        """Whom a number or range is assigned to."""
        user = self._snapshot.ranges.get(number[:-1]) if number.endswith("*") else self._snapshot.numbers.get(number)
        return Owner(user, self.accounts[user].line) if user is not None else None


class _Draft(NamedTuple):
    """A change being planned: values by (table, key), owners by number, None for what goes; faults so far."""

    change: Change
    kept: _Kept
    after: dict[tuple[str, str], Value | None]
    numbers: dict[str, Owner | None]
    faults: list[Fault]


def _in_order(routes: Iterable[PsapRoute]) -> tuple[PsapRoute, ...]:
    return tuple(sorted(routes, key=lambda route: (route.priority, route.uri, route.valid_from_ms or 0)))


def plan(change: Change, snapshot: Snapshot, *, secrets: bool = True) -> Plan:
    """The items and writes of `change` on what is kept.

    Raises PolicyError, with all faults, when it takes what belongs to another line, or when an account has no HA1 values
    (which passes without `secrets`).
    """
    kept = _Kept(snapshot)
    draft = _Draft(change, kept, {}, {}, [])
    accounts = {account.user: _with_secret(draft, account, needed=secrets) for account in change.accounts}
    _drop_former(draft, accounts)
    for line in change.lines:
        draft.after["lines", line.id] = _with_dates(line, kept.lines.get(line.id))
        for user in line.accounts:
            holder = accounts.get(user) or kept.accounts.get(user)
            if holder is None or holder.line != line.id:
                draft.faults.append(change.fault(f"line {line.id}", "account", f"{user} is not an account of this line"))
    _take_accounts(draft, accounts)
    draft.after.update({("blocks", key): None for key in change.remove_blocks})
    draft.after.update({("blocks", rule.id): rule for rule in change.blocks})
    _set_routes(draft)
    if draft.faults:
        raise PolicyError(tuple(draft.faults))
    items = [Item(table, key, kept.table(table).get(key), value) for (table, key), value in draft.after.items()]
    changed = tuple(item for item in items if item.before != item.after)
    owned = (
        Write("numbers", number, codec.encode(owner) if owner is not None else None)
        for number, owner in draft.numbers.items()
        if owner != kept.owner(number)
    )
    return Plan(changed, (*map(_write, changed), *owned))


def after_plan(snapshot: Snapshot, planned: Plan) -> Snapshot:
    """The snapshot that the planned change makes of `snapshot`; its version stays."""
    kept = _Kept(snapshot)
    for item in planned.items:
        table = kept.table(item.table)
        if item.after is None:
            table.pop(item.key, None)
        else:
            table[item.key] = item.after
    routes = (route for found in kept.psap.values() for route in found)
    parts = (kept.lines.values(), kept.accounts.values(), snapshot.profiles, routes, kept.blocks.values())
    return snapshot_of(snapshot.version, *parts)


def _write(item: Item) -> Write:
    if item.after is None:
        return Write(item.table, item.key, None)
    if isinstance(item.after, tuple):
        return Write(item.table, item.key, codec.encode_psap(item.after))
    return Write(item.table, item.key, codec.encode(item.after))


def _with_secret(draft: _Draft, account: Account, *, needed: bool) -> Account:
    if account.ha1:
        return account
    former = draft.kept.accounts.get(account.user)
    if former is not None and former.ha1 and former.line == account.line:
        return replace(account, ha1=former.ha1)
    if needed:
        reason = "no password, and none is kept for this account"
        draft.faults.append(draft.change.fault(f"account {account.user}", "password", reason))
    return account


def _with_dates(line: Line, former: Line | None) -> Line:
    """A line that stays barred keeps since when, unless the change says it."""
    if line.status in OUT_BARRED and not line.barred_since_ms and former is not None and former.status in OUT_BARRED:
        return replace(line, barred_since_ms=former.barred_since_ms)
    return line


def _drop_former(draft: _Draft, new: Mapping[str, Account]) -> None:
    """Remove what the touched lines and accounts had and have no longer; what stays is set again afterwards."""
    change, kept, after, numbers, _ = draft
    staying = {line.id: set(line.accounts) for line in change.lines}
    for key in change.remove_lines:
        after["lines", key] = None
    for key in change.line_ids():
        former = kept.lines.get(key)
        for user in former.accounts if former is not None else ():
            account = kept.accounts.get(user)
            if account is not None and account.line == key and user not in staying.get(key, ()):
                after["accounts", user] = None
                numbers.update(dict.fromkeys(account.numbers))
    for user in new:
        account = kept.accounts.get(user)
        numbers.update(dict.fromkeys(account.numbers if account is not None else ()))


def _take_accounts(draft: _Draft, new: Mapping[str, Account]) -> None:
    """Set the change's accounts and assign their numbers, unless that takes what another line does not give up."""
    change, kept, after, numbers, faults = draft
    leaving = set(change.remove_lines)
    naming = {line.id: set(line.accounts) for line in change.lines}
    taken: set[str] = set()
    for account in new.values():
        what = f"account {account.user}"
        holder = kept.accounts.get(account.user)
        if holder is not None and holder.line != account.line and holder.line not in leaving:
            faults.append(change.fault(what, "account", f"taken by line {holder.line}"))
        former = kept.lines.get(account.line) if account.line not in leaving else None
        if account.user not in naming.get(account.line, former.accounts if former is not None else ()):
            faults.append(change.fault(what, "line", f"line {account.line} does not name this account"))
        after["accounts", account.user] = account
        for number in account.numbers:
            owner = None if number in numbers else kept.owner(number)
            if number in taken:
                faults.append(change.fault(what, "number", f"{number} is assigned twice"))
            elif owner is not None and owner.account != account.user:
                reason = f"{number} taken by account {owner.account} of line {owner.line}"
                faults.append(change.fault(what, "number", reason))
            else:
                numbers[number] = Owner(account.user, account.line)
                taken.add(number)


def _set_routes(draft: _Draft) -> None:
    """Routes replace those of their location, service and day; those of other days stay."""
    change, kept, after, _, _ = draft
    new: dict[str, list[PsapRoute]] = {codec.psap_field(*key): [] for key in change.remove_psap}
    removed = set(new)
    for route in change.psap:
        new.setdefault(codec.psap_field(route.location, route.service), []).append(route)
    for key, routes in new.items():
        days = {route.valid_from_ms for route in routes}
        staying = () if key in removed else kept.psap.get(key, ())
        found = _in_order((*(route for route in staying if route.valid_from_ms not in days), *routes))
        after["psap", key] = found or None
