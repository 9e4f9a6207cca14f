"""The operators' files of PSAP routes and block rules, CSV or TOML, read into values.

Pure: nothing is applied here, and nothing is returned while there is a fault; all faults are raised at once. Values of rules
come out canonical. Left out: lines (`policy.parse`), what a rule would do among the others (`policy.lint`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from policy.model import BlockRule, DestinationClass, Profile, PsapRoute, RuleAction, RuleDirection, RuleKind, RuleLevel, Window
from policy.numbers import canonical_prefix, classify
from policy.stamp import parse_stamp
from policy.table import Row, Table, quoted, read_table
from policy.toml_table import read_toml
from policy.windows import parse_windows

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BLOCK_COLUMNS",
    "ID",
    "PSAP_COLUMNS",
    "flag_of",
    "read_any",
    "read_blocks",
    "read_psap",
    "rule_value",
    "stamp_of",
]

PSAP_COLUMNS = ("location", "service", "priority", "uri", "name", "valid_from")
BLOCK_COLUMNS = (
    *("id", "kind", "value", "action", "direction", "level", "reason", "profile", "line", "owner", "ticket"),
    *("valid_from", "valid_until", "windows", "public"),
)
OLD_VALUE = "prefix"  # the value's column in files from before rules had kinds

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_SMALL_NUMBER = re.compile(r"[0-9]{1,6}\Z")
_ROUTE = re.compile(r"sips?:[^@\s<>\"]+@(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:;[^\s<>\"]*)?\Z")
_FLAGS = {"": False, "no": False, "false": False, "0": False, "yes": True, "true": True, "1": True}
_COUNTRY = re.compile(r"\+[1-9][0-9]{0,2}\Z")
_NEVER = frozenset({DestinationClass.EMERGENCY, DestinationClass.INVALID})  # classes that no rule is about

E = TypeVar("E", bound=StrEnum)


def read_any(text: str, file: str, name: str, columns: tuple[str, ...], required: tuple[str, ...]) -> Table:
    """Rows of a file: TOML tables `[[name]]` where its name ends in .toml, else CSV. Raises PolicyError as those do."""
    if file.lower().endswith(".toml"):
        return read_toml(text, file, name, columns)
    return read_table(text, file, columns, required=required)


def stamp_of(table: Table, row: Row, column: str) -> int | None:
    """The time in a cell, UTC ms; None for an empty one, and for a faulty one, which is noted."""
    text = row.cells.get(column, "")
    found = parse_stamp(text) if text else None
    if text and found is None:
        table.fault(row.number, column, f"not a day or time from 2000 to 2100 such as 2026-04-01T08:00: {quoted(text)}")
    return found


def flag_of(table: Table, row: Row, column: str) -> bool:
    """What a yes-or-no cell says; an empty one is no."""
    text = row.cells.get(column, "")
    found = _FLAGS.get(text.lower())
    if found is None:
        table.fault(row.number, column, f"neither yes nor no: {quoted(text)}")
    return bool(found)


def _word(table: Table, row: Row, column: str, kind: type[E], default: E) -> E:
    text = row.cells.get(column, "")
    if text and text not in tuple(kind):
        table.fault(row.number, column, f"{quoted(text)} is none of {' '.join(kind)}")
        return default
    return kind(text) if text else default


def read_psap(text: str, *, file: str) -> tuple[PsapRoute, ...]:
    """Routes of a file with `PSAP_COLUMNS` (name and valid_from may be missing). Raises PolicyError with all faults.

    Location "*" serves where a location has none. Routes with `valid_from` are the table from that day on.
    """
    table = read_any(text, file, "psap", PSAP_COLUMNS, PSAP_COLUMNS[:4])
    found: dict[tuple[str, str, int | None, str], PsapRoute] = {}
    for row in table.rows:
        cells = row.cells
        location, service, uri = cells["location"], cells["service"], cells["uri"]
        if not location or location.startswith("#"):
            table.fault(row.number, "location", f"not a location: {quoted(location)}" if location else "no location")
        if service not in ("110", "112"):
            table.fault(row.number, "service", f"{quoted(service)} is neither 110 nor 112")
        priority = int(cells["priority"]) if _SMALL_NUMBER.match(cells["priority"]) else -1
        if priority < 0:
            table.fault(row.number, "priority", f"not a number from 0 to 999999: {quoted(cells['priority'])}")
        if _ROUTE.match(uri) is None:
            table.fault(row.number, "uri", f"not a SIP URI with user and host: {quoted(uri)}")
        day = stamp_of(table, row, "valid_from")
        if (location, service, day, uri) in found:
            table.fault(row.number, "uri", "the same route twice")
        found[location, service, day, uri] = PsapRoute(location, service, priority, uri, cells.get("name", ""), day)
    table.finish()
    return tuple(found.values())


def read_blocks(
    text: str, *, file: str, profiles: Mapping[str, Profile], rows: dict[str, int] | None = None
) -> tuple[BlockRule, ...]:
    """Rules of a file with `BLOCK_COLUMNS`: id, value and reason are needed. Raises PolicyError with all faults.

    The columns id,prefix,reason,profile,line,owner of older files are taken too. `rows` gets each rule's line of the file.
    """
    table = read_any(text, file, "block", (*BLOCK_COLUMNS, OLD_VALUE), ("id", "reason"))
    found: dict[str, BlockRule] = {}
    for row in table.rows:
        rule = _rule(table, row, profiles)
        if rule.id in found:
            table.fault(row.number, "id", f"{quoted(rule.id)} twice")
        found[rule.id] = rule
        if rows is not None:
            rows[rule.id] = row.number
    table.finish()
    return tuple(found.values())


def _rule(table: Table, row: Row, profiles: Mapping[str, Profile]) -> BlockRule:
    """The rule of a row; faulty cells are noted, and the rule is of no use then."""
    cells, number = row.cells, row.number
    key, profile, line = cells["id"], cells.get("profile", ""), cells.get("line", "")
    if ID.match(key) is None:
        table.fault(number, "id", f"not an id of letters, digits, '.', '_' and '-': {quoted(key)}")
    if not cells["reason"]:
        table.fault(number, "reason", "no reason: it is what a caller's complaint is answered with")
    if profile and profile not in profiles:
        table.fault(number, "profile", f"unknown profile {quoted(profile)}; known: {' '.join(profiles)}")
    if line and ID.match(line) is None:
        table.fault(number, "line", f"not a line id: {quoted(line)}")
    level = _word(table, row, "level", RuleLevel, RuleLevel.ADMIN)
    if level is RuleLevel.CUSTOMER and not line:
        table.fault(number, "line", "a customer's rule names the customer's line")
    kind = _word(table, row, "kind", RuleKind, RuleKind.PREFIX)
    action = _word(table, row, "action", RuleAction, RuleAction.BLOCK)
    start, end = stamp_of(table, row, "valid_from"), stamp_of(table, row, "valid_until")
    if start is not None and end is not None and end <= start:
        table.fault(number, "valid_until", "is not after valid_from")
    return BlockRule(
        id=key,
        value=_value(table, row, kind, action),
        reason=cells["reason"],
        profile=profile,
        line=line,
        owner=cells.get("owner", ""),
        kind=kind,
        action=action,
        direction=_word(table, row, "direction", RuleDirection, RuleDirection.OUTGOING),
        level=level,
        ticket=cells.get("ticket", ""),
        valid_from_ms=start,
        valid_until_ms=end,
        windows=_windows(table, row),
        public=flag_of(table, row, "public"),
    )


def _windows(table: Table, row: Row) -> tuple[Window, ...]:
    try:
        return parse_windows(row.cells.get("windows", ""))
    except ValueError as error:
        table.fault(row.number, "windows", str(error))
        return ()


def _value(table: Table, row: Row, kind: RuleKind, action: RuleAction) -> str:
    new, old = row.cells.get("value", ""), row.cells.get(OLD_VALUE, "")
    column = OLD_VALUE if old or "value" not in row.cells else "value"
    if new and old:
        table.fault(row.number, OLD_VALUE, "value and prefix: one of them says it")
        return new
    value, fault = rule_value(kind, new or old)
    if not fault and action is RuleAction.BLOCK and kind is not RuleKind.CLASS and _touches_emergency(value):
        fault = "110 and 112 cannot be blocked"
    if fault:
        table.fault(row.number, column, fault)
    return value


def rule_value(kind: RuleKind, text: str) -> tuple[str, str]:
    """The canonical value of a rule of that kind, and a fault or ""."""
    if kind is RuleKind.CLASS:
        known = [name for name in DestinationClass if name not in _NEVER]
        return text, "" if text in known else f"{quoted(text)} is none of the classes {' '.join(known)}"
    value = canonical_prefix(text)
    if not value:
        return "", f"not a number or its beginning with +, 0 or 1: {quoted(text)}"
    if kind is RuleKind.COUNTRY:
        return value, "" if _COUNTRY.match(value) else f"not a country code such as +43: {quoted(text)}"
    if kind is RuleKind.NUMBER and ":" not in text:
        meaning = classify(text.encode(), "")
        if meaning.canonical[:1] not in ("+", "s", "c"):
            return "", f"not a whole number: {quoted(text)} ({meaning.how})"
        value = meaning.canonical
    return value, ""


def _touches_emergency(value: str) -> bool:
    return any(value.startswith(number) or number.startswith(value) for number in ("service:110", "service:112"))
