"""The operators' CSV files read into lines, accounts, PSAP routes and block rules. A line file has one row per number.

Pure: nothing is applied here, and nothing is returned while there is a fault; all faults are raised at once. Numbers come
out as +E.164, ranges end in "*". Passwords become HA1 values and are never part of a message.
Left out: whether a number or an account is taken by a line that is not in the file (`policy.change`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from policy.model import Account, AccountKind, BlockRule, DestinationClass, Line, LineStatus, Profile, PsapRoute
from policy.numbers import canonical_prefix, classify
from policy.secret import secret_of
from policy.table import Fault, PolicyError, Row, Table, quoted, read_table

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BLOCK_COLUMNS",
    "LINE_COLUMNS",
    "PSAP_COLUMNS",
    "Fault",
    "LinesImport",
    "PolicyError",
    "assigned_number",
    "read_blocks_csv",
    "read_lines_csv",
    "read_psap_csv",
]

LINE_COLUMNS = ("line", "profile", "status", "channels", "location", "area_code", "account", "kind", "password", "number")
PSAP_COLUMNS = ("location", "service", "priority", "uri", "name")
BLOCK_COLUMNS = ("id", "prefix", "reason", "profile", "line", "owner")

MAX_SINGLE_ACCOUNTS = 10  # of a line; above it the product is a trunk
MAX_NUMBERS = 10_000  # of an account
MAX_CHANNELS = 10_000
LEAST_ASSIGNED = 6  # national digits of a number or a range: a shorter range would swallow whole cities

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
# What a SIP user part holds without escapes (RFC 3261 §25.1 unreserved, and "+"), so that the digest user is one spelling.
_USER = re.compile(r"[A-Za-z0-9+_.!~*'()-]{1,64}\Z")
_AREA_CODE = re.compile(r"0[2-9][0-9]{1,4}\Z")
_SMALL_NUMBER = re.compile(r"[0-9]{1,6}\Z")
_ROUTE = re.compile(r"sips?:[^@\s<>\"]+@(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:;[^\s<>\"]*)?\Z")
# § 120(1) TKG: these are shown as a caller's number; the short codes, 0900 and 0137 never are.
_ASSIGNABLE = frozenset(
    {DestinationClass.GEOGRAPHIC, DestinationClass.NATIONAL, DestinationClass.MOBILE, DestinationClass.PERSONAL}
)
_LINE_FIELDS = ("profile", "status", "channels", "location", "area_code")


class LinesImport(NamedTuple):
    """What a line file holds."""

    lines: tuple[Line, ...]
    accounts: tuple[Account, ...]


@dataclass(slots=True)
class _Account:
    row: int
    line: str
    kind: str
    password: str = field(repr=False)
    numbers: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Line:
    row: int
    cells: dict[str, str]
    accounts: list[str] = field(default_factory=list)


def read_lines_csv(text: str, *, file: str, realm: str, profiles: Mapping[str, Profile]) -> LinesImport:
    """Lines and accounts of a file with `LINE_COLUMNS`, one row per number. Raises PolicyError with all faults.

    A cell that belongs to a line or an account is given in its first row; further rows repeat it or leave it empty.
    """
    table = read_table(text, file, LINE_COLUMNS)
    lines: dict[str, _Line] = {}
    accounts: dict[str, _Account] = {}
    owners: dict[str, tuple[str, int]] = {}  # number -> line and row
    for row in table.rows:
        line = _take_line(table, row, lines, profiles)
        user = _take_account(table, row, lines, accounts) if line else ""
        _take_number(table, row, accounts[user] if user else None, owners)
    _check_overlaps(table, owners)
    result = LinesImport(tuple(_line_of(key, line) for key, line in lines.items()), _accounts_of(table, lines, accounts, realm))
    table.finish()
    return result


def _take_line(table: Table, row: Row, lines: dict[str, _Line], profiles: Mapping[str, Profile]) -> str:
    """Note the line of a row; its id, or "" when the row cannot be used."""
    cells = row.cells
    key = cells["line"]
    if _ID.match(key) is None:
        table.fault(row.number, "line", f"not an id of letters, digits, '.', '_' and '-': {quoted(key)}")
        return ""
    known = lines.get(key)
    if known is None:
        lines[key] = _Line(row.number, {name: cells[name] for name in _LINE_FIELDS})
        _check_line(table, row, profiles)
        return key
    for name in _LINE_FIELDS:
        if cells[name] and cells[name] != known.cells[name]:
            table.fault(row.number, name, f"{quoted(cells[name])} differs from row {known.row} of line {key}")
    return key


def _check_line(table: Table, row: Row, profiles: Mapping[str, Profile]) -> None:
    cells, number = row.cells, row.number
    profile = profiles.get(cells["profile"])
    if profile is None:
        table.fault(number, "profile", f"unknown profile {quoted(cells['profile'])}; known: {' '.join(profiles)}")
    if cells["status"] not in ("", *LineStatus):
        table.fault(number, "status", f"{quoted(cells['status'])} is none of {' '.join(LineStatus)}")
    channels = cells["channels"]
    if channels and not (_SMALL_NUMBER.match(channels) and 1 <= int(channels) <= MAX_CHANNELS):
        table.fault(
            number, "channels", f"not a number from 1 to {MAX_CHANNELS}, nor empty for the profile's: {quoted(channels)}"
        )
    if not cells["location"] or cells["location"] == "*":
        table.fault(number, "location", "no location: 110 and 112 are routed by it")
    if _AREA_CODE.match(cells["area_code"]) is None:
        table.fault(number, "area_code", f"not an area code with its 0: {quoted(cells['area_code'])}")
    elif profile is not None and profile.area_codes and cells["area_code"] not in profile.area_codes:
        table.fault(number, "area_code", f"{cells['area_code']} is none of {profile.name}'s: {' '.join(profile.area_codes)}")


def _take_account(table: Table, row: Row, lines: dict[str, _Line], accounts: dict[str, _Account]) -> str:
    """Note the account of a row; its user, or "" when the row cannot be used."""
    cells, number = row.cells, row.number
    user, line = cells["account"], cells["line"]
    if _USER.match(user) is None:
        table.fault(number, "account", f"not a SIP user name without escapes: {quoted(user)}")
        return ""
    known = accounts.get(user)
    if known is None:
        kind = cells["kind"] or AccountKind.SINGLE
        if kind not in tuple(AccountKind):
            table.fault(number, "kind", f"{quoted(kind)} is none of {' '.join(AccountKind)}")
            kind = AccountKind.TRUNK  # so that its further rows are judged by themselves
        accounts[user] = _Account(number, line, kind, cells["password"])
        lines[line].accounts.append(user)
        return user
    if known.line != line:
        table.fault(number, "account", f"{user} belongs to line {known.line} by row {known.row}")
        return ""
    if cells["kind"] and cells["kind"] != known.kind:
        table.fault(number, "kind", f"{quoted(cells['kind'])} differs from row {known.row} of account {user}")
    if cells["password"] and cells["password"] != known.password:
        table.fault(number, "password", f"differs from row {known.row} of account {user}")
    return user


def _take_number(table: Table, row: Row, account: _Account | None, owners: dict[str, tuple[str, int]]) -> None:
    number, fault = assigned_number(row.cells["number"])
    if fault:
        table.fault(row.number, "number", fault)
    if fault or account is None:  # a row whose account is faulted has its number checked all the same
        return
    if number.endswith("*") and account.kind != AccountKind.TRUNK:
        table.fault(row.number, "number", "a range needs an account of kind trunk")
    if number in owners:
        table.fault(row.number, "number", f"{number} stands in row {owners[number][1]} already")
        return
    owners[number] = (account.line, row.number)
    if account.kind == AccountKind.SINGLE and account.numbers:
        table.fault(row.number, "number", "a single account has one number")
    elif len(account.numbers) == MAX_NUMBERS:
        table.fault(row.number, "number", f"more than {MAX_NUMBERS} numbers of one account")
    account.numbers.append(number)


def assigned_number(text: str) -> tuple[str, str]:
    """An assigned number or range as +E.164, and a fault or "". `text` starts with +, 00 or 0; a range ends in "*"."""
    if not text:
        return "", "no number"
    is_range = text.endswith("*")
    plain = text.rstrip("* ") if is_range else text
    if text.count("*") > 1 or plain[:1] not in ("+", "0"):
        return "", f"not a number that starts with + or 0: {quoted(text)}"
    meaning = classify(plain.encode(), "")
    digits = meaning.canonical
    if digits[:1] != "+" or meaning.kind not in _ASSIGNABLE:
        return "", f"not a number that a subscriber can have: {quoted(text)} ({meaning.how})"
    if len(digits) < LEAST_ASSIGNED + 3 or (meaning.status and not is_range) or len(digits) > 16:
        return "", f"wrong length: {quoted(text)}"
    return (digits + "*" if is_range else digits), ""


def _check_overlaps(table: Table, owners: Mapping[str, tuple[str, int]]) -> None:
    """A number inside another line's range is a mistake; inside its own line's it is an exception to it."""
    ranges = {number[:-1]: owner for number, owner in owners.items() if number.endswith("*")}
    if not ranges:
        return
    for number, (line, row) in owners.items():
        digits = number.removesuffix("*")
        for end in range(2, len(digits)):
            other = ranges.get(digits[:end])
            if other is not None and other[0] != line:
                table.fault(row, "number", f"{number} lies in {digits[:end]}* of line {other[0]}, row {other[1]}")


def _accounts_of(table: Table, lines: Mapping[str, _Line], accounts: Mapping[str, _Account], realm: str) -> tuple[Account, ...]:
    found = []
    for user, account in accounts.items():
        ha1, fault = secret_of(account.password, user=user, realm=realm)
        if fault:
            table.fault(account.row, "password", fault)
        found.append(Account(user, account.line, AccountKind(account.kind), ha1, tuple(account.numbers)))
    for key, line in lines.items():
        trunks = sum(accounts[user].kind == AccountKind.TRUNK for user in line.accounts)
        if trunks and len(line.accounts) > 1:
            table.fault(line.row, "kind", f"line {key} has a trunk account and others: a trunk carries all numbers")
        elif len(line.accounts) > MAX_SINGLE_ACCOUNTS:
            table.fault(
                line.row,
                "kind",
                f"line {key} has {len(line.accounts)} single accounts, above {MAX_SINGLE_ACCOUNTS} use a trunk",
            )
    return tuple(found)


def _line_of(key: str, line: _Line) -> Line:
    """The line; cells that were faulted give a placeholder, which is never returned to the caller."""
    cells = line.cells
    channels = cells["channels"]
    status = cells["status"]
    return Line(
        id=key,
        profile=cells["profile"],
        status=LineStatus(status) if status in tuple(LineStatus) else LineStatus.ACTIVE,
        channels=int(channels) if _SMALL_NUMBER.match(channels) else None,
        location=cells["location"],
        area_code=cells["area_code"],
        accounts=tuple(line.accounts),
    )


def read_psap_csv(text: str, *, file: str) -> tuple[PsapRoute, ...]:
    """Routes of a file with `PSAP_COLUMNS` (name may be missing). Location "*" serves where a location has none."""
    table = read_table(text, file, PSAP_COLUMNS, required=PSAP_COLUMNS[:-1])
    found: dict[tuple[str, str, str], PsapRoute] = {}
    for row in table.rows:
        cells = row.cells
        location, service, uri = cells["location"], cells["service"], cells["uri"]
        if not location:
            table.fault(row.number, "location", "no location")
        if service not in ("110", "112"):
            table.fault(row.number, "service", f"{quoted(service)} is neither 110 nor 112")
        priority = int(cells["priority"]) if _SMALL_NUMBER.match(cells["priority"]) else -1
        if priority < 0:
            table.fault(row.number, "priority", f"not a number from 0 to 999999: {quoted(cells['priority'])}")
        if _ROUTE.match(uri) is None:
            table.fault(row.number, "uri", f"not a SIP URI with user and host: {quoted(uri)}")
        if (location, service, uri) in found:
            table.fault(row.number, "uri", "the same route twice")
        found[location, service, uri] = PsapRoute(location, service, priority, uri, cells.get("name", ""))
    table.finish()
    return tuple(found.values())


def read_blocks_csv(text: str, *, file: str, profiles: Mapping[str, Profile]) -> tuple[BlockRule, ...]:
    """Rules of a file with `BLOCK_COLUMNS` (profile, line, owner may be missing). Prefixes come out canonical."""
    table = read_table(text, file, BLOCK_COLUMNS, required=BLOCK_COLUMNS[:3])
    found: dict[str, BlockRule] = {}
    for row in table.rows:
        cells = row.cells
        key, profile, line = cells["id"], cells.get("profile", ""), cells.get("line", "")
        prefix = canonical_prefix(cells["prefix"])
        if _ID.match(key) is None:
            table.fault(row.number, "id", f"not an id of letters, digits, '.', '_' and '-': {quoted(key)}")
        elif key in found:
            table.fault(row.number, "id", f"{key} twice")
        if not prefix:
            table.fault(row.number, "prefix", f"not a number's beginning with +, 0 or 1: {quoted(cells['prefix'])}")
        elif _touches_emergency(prefix):
            table.fault(row.number, "prefix", "110 and 112 cannot be blocked")
        if not cells["reason"]:
            table.fault(row.number, "reason", "no reason: it is what a caller's complaint is answered with")
        if profile and profile not in profiles:
            table.fault(row.number, "profile", f"unknown profile {quoted(profile)}; known: {' '.join(profiles)}")
        if line and _ID.match(line) is None:
            table.fault(row.number, "line", f"not a line id: {quoted(line)}")
        found[key] = BlockRule(key, prefix, cells["reason"], profile, line, cells.get("owner", ""))
    table.finish()
    return tuple(found.values())


def _touches_emergency(prefix: str) -> bool:
    return any(prefix.startswith(number) or number.startswith(prefix) for number in ("service:110", "service:112"))
