"""A planned change in words: what is added, removed and changed, and from what to what.

Pure. For `--dry-run`, the answer to an import, and the history. No HA1 value is in it: of a secret it is said that it was set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policy.export import block_cells, line_cells, psap_cells
from policy.history import LoggedAccount
from policy.model import Account, BlockRule, Line

if TYPE_CHECKING:
    from collections.abc import Iterable

    from policy.change import Item
    from policy.history import Side

__all__ = ["changes_of", "differences", "words_of"]

_KEYS = {"lines": "line", "blocks": "id"}  # cells that repeat the id
_NAMES = {"lines": "line", "accounts": "account", "psap": "routes", "blocks": "rule"}


def changes_of(items: Iterable[Item]) -> list[dict[str, Any]]:
    """Each item as {"what", "id", "change": added|changed|removed, "fields": {name: [before, after]}}, by table."""
    order = list(_NAMES)
    found = sorted(items, key=lambda item: (order.index(item.table), item.key))
    return [_change(item.table, item.key, item.before, item.after) for item in found]


def differences(before: Side, after: Side) -> list[dict[str, Any]]:
    """The same of a log entry."""
    found = []
    for name in _NAMES:
        old, new = before.table(name), after.table(name)
        found += [_change(name, key, old.get(key), new.get(key)) for key in sorted({*old, *new})]
    return found


def _change(table: str, key: str, before: object, after: object) -> dict[str, Any]:
    old, new = _cells(before), _cells(after)
    if isinstance(before, Account) and isinstance(after, Account) and dict(before.ha1) != dict(after.ha1):
        new["password"] = "set anew"  # noqa: S105  that it was, not what it is
    if isinstance(after, LoggedAccount) and after.renewed:
        new["password"] = "set anew"  # noqa: S105
    word = "added" if before is None else "removed" if after is None else "changed"
    names = [name for name in {**old, **new} if old.get(name, "") != new.get(name, "")]
    fields = {name: [old.get(name, ""), new.get(name, "")] for name in names if name != _KEYS.get(table)}
    return {"what": _NAMES[table], "id": key, "change": word, "fields": fields}


def _cells(value: object) -> dict[str, str]:
    if isinstance(value, Line):
        return {**line_cells(value), "accounts": " ".join(value.accounts)}
    if isinstance(value, BlockRule):
        return block_cells(value)
    if isinstance(value, Account | LoggedAccount):
        channels = "" if value.channels is None else str(value.channels)
        return {"line": value.line, "kind": str(value.kind), "numbers": " ".join(value.numbers), "account_channels": channels}
    if isinstance(value, tuple):
        cells = map(psap_cells, value)
        return {f"{row['uri']} from {row['valid_from'] or 'ever'}": f"{row['priority']} {row['name']}".strip() for row in cells}
    return {}


def words_of(change: dict[str, Any]) -> str:
    """One change as a line for people: "~ line V1001: status active -> barred_out"."""
    sign = {"added": "+", "removed": "-", "changed": "~"}[change["change"]]
    parts = []
    for name, (before, after) in change["fields"].items():
        if change["change"] == "changed":
            parts.append(f"{name} {before or 'none'} -> {after or 'none'}")
        else:
            parts.append(f"{name} {after or before}")
    return f"{sign} {change['what']} {change['id']}: {', '.join(parts)}" if parts else f"{sign} {change['what']} {change['id']}"
