"""Policy data written as the files that `policy.parse` and `policy.parse_rules` read: CSV or TOML, and back without loss.

Pure. Passwords are not known, only HA1 values are; they are written when asked for by name, and the cell is empty otherwise: a
file without them, read into the store it came from, leaves the secrets there as they are.
Left out: the list that customers may see has fewer columns on purpose (`write_public`).
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from policy.model import Account, BlockRule, Line, PsapRoute, RuleAction, RuleLevel
from policy.parse import LINE_COLUMNS
from policy.parse_rules import BLOCK_COLUMNS, PSAP_COLUMNS
from policy.stamp import write_stamp
from policy.windows import write_windows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from policy.model import Snapshot

__all__ = [
    "PUBLIC_COLUMNS",
    "block_cells",
    "line_cells",
    "psap_cells",
    "write_blocks",
    "write_lines",
    "write_psap",
    "write_public",
]

Cells: TypeAlias = dict[str, str]
PUBLIC_COLUMNS = ("value", "kind", "action", "direction", "profile", "reason", "valid_from", "valid_until", "windows")


def _yes(flag: object) -> str:
    return "yes" if flag else ""


def line_cells(line: Line) -> Cells:
    """The cells of a line, without its accounts."""
    return {
        "line": line.id,
        "profile": line.profile,
        "status": str(line.status),
        "channels": "" if line.channels is None else str(line.channels),
        "location": line.location,
        "area_code": line.area_code,
        "status_reason": line.status_reason,
        "status_at": write_stamp(line.status_at_ms or None),
        "barred_since": write_stamp(line.barred_since_ms or None),
        "clir": _yes(line.clir),
        "reject_anonymous": _yes(line.reject_anonymous),
        "soft_channels": "" if line.soft_channels is None else str(line.soft_channels),
        "traces": "; ".join(f"{write_stamp(t.from_ms)}/{write_stamp(t.until_ms)}/{t.reference}" for t in line.traces),
    }


def psap_cells(route: PsapRoute) -> Cells:
    """The cells of a PSAP route."""
    cells = {name: str(getattr(route, name)) for name in PSAP_COLUMNS[:5]}
    return {**cells, "valid_from": write_stamp(route.valid_from_ms)}


def block_cells(rule: BlockRule) -> Cells:
    """The cells of a block rule."""
    return {
        **{name: str(getattr(rule, name)) for name in BLOCK_COLUMNS[:11]},
        "valid_from": write_stamp(rule.valid_from_ms),
        "valid_until": write_stamp(rule.valid_until_ms),
        "windows": write_windows(rule.windows),
        "public": _yes(rule.public),
    }


def _secret(account: Account) -> str:
    return " ".join(f"ha1:{name}:{value}" for name, value in sorted(account.ha1.items()))


def write_lines(snapshot: Snapshot, lines: Sequence[Line], *, form: str, secrets: bool = False) -> str:
    """Lines with their accounts and numbers; `form` is "csv" or "toml"."""
    if form == "toml":
        return "".join(_line_toml(snapshot, line, secrets=secrets) for line in lines)
    rows = []
    for line in lines:
        head = line_cells(line)
        for account in _accounts(snapshot, line):
            for index, number in enumerate(account.numbers):
                cells = {"account": account.user, "kind": str(account.kind), "number": number}
                if index == 0 and account.channels is not None:  # as the password: in the account's first row
                    cells["account_channels"] = str(account.channels)
                password = _secret(account) if secrets and index == 0 else ""
                rows.append({"line": line.id, **head, **cells, "password": password})
                head = {}  # what belongs to the line stands in its first row
    return _csv(LINE_COLUMNS, rows)


def _accounts(snapshot: Snapshot, line: Line) -> list[Account]:
    return [snapshot.accounts[user] for user in line.accounts if user in snapshot.accounts]


def _line_toml(snapshot: Snapshot, line: Line, *, secrets: bool) -> str:
    cells: dict[str, Any] = {name: cell for name, cell in line_cells(line).items() if cell}
    if line.channels is not None:
        cells["channels"] = line.channels
    if line.soft_channels is not None:
        cells["soft_channels"] = line.soft_channels
    if line.traces:
        cells["traces"] = cells["traces"].split("; ")
    text = _toml_table("line", cells)
    for account in _accounts(snapshot, line):
        of_it: dict[str, Any] = {"account": account.user, "kind": str(account.kind)}
        if account.channels is not None:
            of_it["account_channels"] = account.channels
        if secrets:
            of_it["password"] = _secret(account)
        text += _toml_table("line.account", {**of_it, "numbers": list(account.numbers)})
    return text


def write_psap(routes: Iterable[PsapRoute], *, form: str) -> str:
    """PSAP routes; `form` is "csv" or "toml"."""
    rows = [psap_cells(route) for route in routes]
    if form == "toml":
        return "".join(_toml_table("psap", {**_filled(row), "priority": int(row["priority"])}) for row in rows)
    return _csv(PSAP_COLUMNS, rows)


def write_blocks(rules: Iterable[BlockRule], *, form: str) -> str:
    """Block rules with all that is known of them; `form` is "csv" or "toml"."""
    rows = [block_cells(rule) for rule in rules]
    if form == "toml":
        return "".join(_toml_table("block", _rule_values(row)) for row in rows)
    return _csv(BLOCK_COLUMNS, rows)


def _rule_values(row: Cells) -> dict[str, Any]:
    values: dict[str, Any] = _filled(row)
    if "windows" in values:
        values["windows"] = values["windows"].split("; ")
    if "public" in values:
        values["public"] = True
    return values


def write_public(rules: Iterable[BlockRule], now_at_ms: int, *, form: str) -> str:
    """The list of blocked numbers that a customer may ask for: public rules that are not over yet.

    No ids, owners, tickets or lines, and nothing that concerns a single line or that a customer set.
    """
    shown = [
        {name: cell for name, cell in block_cells(rule).items() if name in PUBLIC_COLUMNS}
        for rule in rules
        if rule.public and rule.level is RuleLevel.ADMIN and not rule.line and not _is_over(rule, now_at_ms)
    ]
    shown.sort(key=lambda row: (row["profile"], row["value"], row["action"] == RuleAction.ALLOW))
    if form == "toml":
        return "".join(_toml_table("block", _rule_values(row)) for row in shown)
    return _csv(PUBLIC_COLUMNS, shown)


def _is_over(rule: BlockRule, now_at_ms: int) -> bool:
    return rule.valid_until_ms is not None and now_at_ms >= rule.valid_until_ms


def _filled(row: Cells) -> Cells:
    return {name: cell for name, cell in row.items() if cell}


def _csv(columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _toml_table(name: str, values: Mapping[str, Any]) -> str:
    lines = [f"{key} = {_toml_value(value)}\n" for key, value in values.items()]
    return f"[[{name}]]\n{''.join(lines)}\n"


def _toml_value(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    # TOML's basic strings take every escape that JSON writes; characters that JSON leaves alone are printable here.
    return json.dumps(value, ensure_ascii=False)
