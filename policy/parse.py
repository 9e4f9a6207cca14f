"""The operators' files of lines, CSV or TOML, read into lines and accounts. A CSV file has one row per number.

Pure: nothing is applied here, and nothing is returned while there is a fault; all faults are raised at once. Numbers come
out as +E.164, ranges end in "*". Passwords become HA1 values and are never part of a message.
Left out: PSAP routes and block rules (`policy.parse_rules`), whether a number or an account is taken by a line that is not in
the file (`policy.change`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from policy.model import Account, AccountKind, DestinationClass, Line, LineStatus, Profile, Trace
from policy.numbers import classify
from policy.parse_rules import ID, flag_of, read_any, stamp_of
from policy.secret import secret_of
from policy.stamp import parse_stamp
from policy.table import Fault, PolicyError, Row, Table, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "LINE_COLUMNS",
    "NEEDED_LINE_COLUMNS",
    "Fault",
    "LinesImport",
    "PolicyError",
    "assigned_number",
    "read_lines",
    "traces_of",
]

NEEDED_LINE_COLUMNS = (
    *("line", "profile", "status", "channels", "location", "area_code", "account", "kind", "password", "number"),
)
LINE_COLUMNS = (
    *NEEDED_LINE_COLUMNS,
    *("status_reason", "status_at", "barred_since", "clir", "reject_anonymous", "traces", "soft_channels"),
    "account_channels",
)

MAX_SINGLE_ACCOUNTS = 10  # of a line; above it the product is a trunk
MAX_NUMBERS = 10_000  # of an account
MAX_CHANNELS = 10_000
MAX_TRACES = 10  # of a line
LEAST_ASSIGNED = 6  # national digits of a number or a range: a shorter range would swallow whole cities

# What a SIP user part holds without escapes (RFC 3261 §25.1 unreserved, and "+"), so that the digest user is one spelling.
_USER = re.compile(r"[A-Za-z0-9+_.!~*'()-]{1,64}\Z")
_AREA_CODE = re.compile(r"0[2-9][0-9]{1,4}\Z")
_SMALL_NUMBER = re.compile(r"[0-9]{1,6}\Z")
# § 120(1) TKG: these are shown as a caller's number; the short codes, 0900 and 0137 never are.
_ASSIGNABLE = frozenset(
    {DestinationClass.GEOGRAPHIC, DestinationClass.NATIONAL, DestinationClass.MOBILE, DestinationClass.PERSONAL}
)
_LINE_FIELDS = ("profile", "status", "channels", "location", "area_code", *LINE_COLUMNS[len(NEEDED_LINE_COLUMNS) : -1])
_REFERENCE = re.compile(r"[^;/\s](?:[^;/]{0,62}[^;/\s])?\Z")


class LinesImport(NamedTuple):
    """What a line file holds, and the lines of the file that "line <id>" and "account <user>" begin at."""

    lines: tuple[Line, ...]
    accounts: tuple[Account, ...]
    rows: dict[str, int]


@dataclass(slots=True)
class _Account:
    row: int
    line: str
    kind: str
    password: str = field(repr=False)
    channels: int | None = None
    numbers: list[str] = field(default_factory=list)


class _Marks(NamedTuple):
    """What a line's further cells say."""

    status_at_ms: int = 0
    barred_since_ms: int = 0
    clir: bool = False
    reject_anonymous: bool = False
    traces: tuple[Trace, ...] = ()
    soft_channels: int | None = None


@dataclass(slots=True)
class _Line:
    row: int
    cells: dict[str, str]
    marks: _Marks = field(default_factory=_Marks)
    accounts: list[str] = field(default_factory=list)


def read_lines(text: str, *, file: str, realm: str, profiles: Mapping[str, Profile], keep_secrets: bool = False) -> LinesImport:
    """Lines and accounts of a file with `LINE_COLUMNS`, one row per number. Raises PolicyError with all faults.

    A cell that belongs to a line or an account is given in its first row; further rows repeat it or leave it empty. With
    `keep_secrets` an account may come without a password, and without HA1 values then: the one that is kept stays.
    """
    table = read_any(text, file, "line", LINE_COLUMNS, NEEDED_LINE_COLUMNS)
    lines: dict[str, _Line] = {}
    accounts: dict[str, _Account] = {}
    owners: dict[str, tuple[str, int]] = {}  # number -> line and row
    for row in table.rows:
        line = _take_line(table, row, lines, profiles)
        user = _take_account(table, row, lines, accounts) if line else ""
        _take_number(table, row, accounts[user] if user else None, owners)
    _check_overlaps(table, owners)
    found = tuple(_line_of(key, line) for key, line in lines.items())
    secrets = _accounts_of(table, lines, accounts, realm, keep_secrets=keep_secrets)
    rows = {f"line {key}": line.row for key, line in lines.items()}
    rows |= {f"account {user}": account.row for user, account in accounts.items()}
    table.finish()
    return LinesImport(found, secrets, rows)


def _take_line(table: Table, row: Row, lines: dict[str, _Line], profiles: Mapping[str, Profile]) -> str:
    """Note the line of a row; its id, or "" when the row cannot be used."""
    cells = row.cells
    key = cells["line"]
    if ID.match(key) is None:
        table.fault(row.number, "line", f"not an id of letters, digits, '.', '_' and '-': {quoted(key)}")
        return ""
    known = lines.get(key)
    if known is None:
        lines[key] = _Line(row.number, {name: cells.get(name, "") for name in _LINE_FIELDS})
        _check_line(table, row, profiles)
        lines[key].marks = _marks_of(table, row)
        return key
    for name in _LINE_FIELDS:
        if (cell := cells.get(name, "")) and cell != known.cells[name]:
            table.fault(row.number, name, f"{quoted(cell)} differs from row {known.row} of line {key}")
    return key


def _check_line(table: Table, row: Row, profiles: Mapping[str, Profile]) -> None:
    cells, number = row.cells, row.number
    profile = profiles.get(cells["profile"])
    if profile is None:
        table.fault(number, "profile", f"unknown profile {quoted(cells['profile'])}; known: {' '.join(profiles)}")
    if cells["status"] not in ("", *LineStatus):
        table.fault(number, "status", f"{quoted(cells['status'])} is none of {' '.join(LineStatus)}")
    _count_of(table, row, "channels", 1, "empty for the profile's")
    if not cells["location"] or cells["location"] == "*" or cells["location"].startswith("#"):
        table.fault(number, "location", "no location: 110 and 112 are routed by it")
    if _AREA_CODE.match(cells["area_code"]) is None:
        table.fault(number, "area_code", f"not an area code with its 0: {quoted(cells['area_code'])}")
    elif profile is not None and profile.area_codes and cells["area_code"] not in profile.area_codes:
        table.fault(number, "area_code", f"{cells['area_code']} is none of {profile.name}'s: {' '.join(profile.area_codes)}")


def _marks_of(table: Table, row: Row) -> _Marks:
    status_at, barred_since = stamp_of(table, row, "status_at"), stamp_of(table, row, "barred_since")
    traces: tuple[Trace, ...] = ()
    try:
        traces = traces_of(row.cells.get("traces", ""))
    except ValueError as error:
        table.fault(row.number, "traces", str(error))
    return _Marks(
        status_at or 0,
        barred_since or 0,
        flag_of(table, row, "clir"),
        flag_of(table, row, "reject_anonymous"),
        traces,
        _count_of(table, row, "soft_channels", 0, "empty for the profile's"),
    )


def _count_of(table: Table, row: Row, column: str, least: int, otherwise: str) -> int | None:
    """A number of channels from `least` on; None for an empty cell, and for a faulty one, which is noted."""
    text = row.cells.get(column, "")
    if not text:
        return None
    if _SMALL_NUMBER.match(text) and least <= int(text) <= MAX_CHANNELS:
        return int(text)
    table.fault(row.number, column, f"not a number from {least} to {MAX_CHANNELS}, nor {otherwise}: {quoted(text)}")
    return None


def traces_of(text: str) -> tuple[Trace, ...]:
    """Trace orders `FROM/UNTIL/REFERENCE`, separated by ";". Raises ValueError with the reason."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        words = [word.strip() for word in part.split("/")]
        if len(words) != 3:
            raise ValueError(f"not of the form FROM/UNTIL/REFERENCE: {quoted(part)}")
        start, end = parse_stamp(words[0]), parse_stamp(words[1])
        if start is None or end is None or end <= start:
            raise ValueError(f"not two times, the second one later: {quoted(part)}")
        if _REFERENCE.match(words[2]) is None:
            raise ValueError(f"no reference of up to 64 characters: {quoted(part)}")
        found.append(Trace(start, end, words[2]))
    if len(found) > MAX_TRACES:
        raise ValueError(f"more than {MAX_TRACES} orders")
    return tuple(found)


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
        limit = _count_of(table, row, "account_channels", 1, "empty for no limit of its own")
        accounts[user] = _Account(number, line, kind, cells["password"], limit)
        lines[line].accounts.append(user)
        return user
    if known.line != line:
        table.fault(number, "account", f"{user} belongs to line {known.line} by row {known.row}")
        return ""
    if cells["kind"] and cells["kind"] != known.kind:
        table.fault(number, "kind", f"{quoted(cells['kind'])} differs from row {known.row} of account {user}")
    if cells["password"] and cells["password"] != known.password:
        table.fault(number, "password", f"differs from row {known.row} of account {user}")
    cell = cells.get("account_channels", "")
    if cell and cell != ("" if known.channels is None else str(known.channels)):
        table.fault(number, "account_channels", f"{quoted(cell)} differs from row {known.row} of account {user}")
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


def _accounts_of(
    table: Table, lines: Mapping[str, _Line], accounts: Mapping[str, _Account], realm: str, *, keep_secrets: bool
) -> tuple[Account, ...]:
    found = []
    for user, account in accounts.items():
        ha1, fault = secret_of(account.password, user=user, realm=realm)
        if fault and (account.password or not keep_secrets):
            table.fault(account.row, "password", fault)
        found.append(Account(user, account.line, AccountKind(account.kind), ha1, tuple(account.numbers), account.channels))
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
        status_reason=cells["status_reason"],
        **line.marks._asdict(),
    )
