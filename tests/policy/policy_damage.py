"""Good policy files of every kind, and more than two hundred ways to damage them, each with the place that is to be named."""

from __future__ import annotations

import csv
import io
import re
from typing import NamedTuple

__all__ = ["GOOD", "Damaged", "damaged_files"]

_LINE_HEAD = (
    "line,profile,status,channels,location,area_code,account,kind,password,number,"
    "status_reason,status_at,barred_since,clir,reject_anonymous,traces\n"
)
LINES = f"""{_LINE_HEAD}L1,velbert,active,3,town,02051,a1,single,secret-1,+492051988111,,,,yes,no,2026-01-01/2026-02-01/A-1
L1,,,,,,a2,single,secret-2,+492051988112,,,,,,
L2,velbert,barred_out,,town,02053,b1,single,secret-3,+492053988113,unpaid,2026-03-01,2026-03-01,,,
T1,badnauheim,active,30,hill,06032,t1,trunk,secret-4,+496032555*,,,,,,
"""
PSAP = """location,service,priority,uri,name,valid_from
town,110,1,sip:110@psap.example:5060,police,
town,112,1,sip:112@psap.example:5060,centre,
town,112,2,sip:112@second.example,second,
town,112,1,sip:112@new.example,new centre,2027-01-01
*,110,1,sip:110@psap.example,police,
*,112,1,sip:112@psap.example,centre,
"""
BLOCKS = """id,kind,value,action,direction,level,reason,profile,line,owner,ticket,valid_from,valid_until,windows,public
r1,prefix,+43900,block,outgoing,admin,fraud abroad,,,noc,T-1,2026-01-01,2027-01-01,mo-fr 08:00-17:00,yes
r2,number,+43900123456,allow,outgoing,admin,a customer's own,velbert,,noc,T-2,,,,no
r3,class,mobile,block,both,customer,asked for,,L1,,,,,,
r4,country,+44,block,outgoing,admin,fraud,,,,,,,,
"""
GOOD = {"lines": LINES, "psap": PSAP, "blocks": BLOCKS}
TABLE = {"lines": "line", "psap": "psap", "blocks": "block"}

# Kind of file -> column -> cells that nobody can mean.
WRONG: dict[str, dict[str, tuple[str, ...]]] = {
    "lines": {
        "line": ("", "L 1", "-x", "x" * 65, "L\u00e4"),
        "profile": ("", "nobody", "Velbert"),
        "status": ("asleep", "ACTIVE", "barred"),
        "channels": ("0", "-1", "many", "10001", "1.5", "\u0663"),
        "location": ("", "*", "#town"),
        "area_code": ("", "2051", "030", "0205x", "020512345"),
        "account": ("", "a 1", "a@b", "x" * 65),
        "kind": ("double", "TRUNK"),
        "password": ("", "ha1:123", "ha1:SHA-1:" + "a" * 40, "ha1:" + "g" * 32, f"ha1:{'a' * 32} more"),
        "number": ("", "112", "988111", "09001234567", "+43664123456", "0112", "+49205198811199999", "*31#02051988111"),
        "status_at": ("soon", "2026-13-01", "1999-01-01"),
        "barred_since": ("2026-02-30", "0"),
        "clir": ("maybe", "2"),
        "reject_anonymous": ("ja", "-"),
        "traces": ("A-1", "2026-01-01/2026-02-01", "2026-02-01/2026-01-01/A", "2026-01-01/2026-02-01/ ", "x/y/z"),
    },
    "psap": {
        "location": ("",),
        "service": ("", "113", "911", "urn:service:sos"),
        "priority": ("", "-1", "first", "1000000", "1.0"),
        "uri": ("", "psap.example", "tel:112", "sip:psap.example", "sip:112@ps ap", "http://a@b", "sip:112@a:port"),
        "valid_from": ("never", "2027-00-01", "01.01.2027"),
    },
    "blocks": {
        "id": ("", "r 1", "../r", "x" * 65),
        "kind": ("suffix", "Prefix"),
        "value": ("", "112", "110", "11", "service:1", "900", "abc", "\u0660900", "+0", "00"),
        "action": ("deny", "BLOCK"),
        "direction": ("out", "sideways"),
        "level": ("root", "customers"),
        "reason": ("",),
        "profile": ("nobody", "Velbert"),
        "line": ("L 1", "x" * 65),
        "valid_from": ("yesterday", "2028-01-01T99:00"),
        "valid_until": ("later", "2025-01-01"),
        "windows": ("always", "mo-fr", "mo-fr 8-17", "xx 08:00-17:00", "mo 24:00-25:00", "mo 08:00-08:00"),
        "public": ("perhaps", "?"),
    },
}


class Damaged(NamedTuple):
    """A file of a kind, and where its fault is: `row` 0 stands for the file, `column` "" for the row."""

    name: str
    kind: str
    form: str
    content: bytes
    row: int
    column: str


def damaged_files() -> list[Damaged]:
    """All of them, always the same."""
    found: list[Damaged] = []
    for kind, columns in WRONG.items():
        for column, cells in columns.items():
            for index, cell in enumerate(cells):
                found += [_csv_cell(kind, column, cell, index), *_toml_cell(kind, column, cell, index)]
    for kind, text in GOOD.items():
        found += _structure(kind, text)
    return found


def _rows(kind: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(GOOD[kind], newline="")))


def _csv(rows: list[list[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _csv_cell(kind: str, column: str, cell: str, index: int) -> Damaged:
    """The cell of the first row that has one of its own."""
    rows = _rows(kind)
    rows[1][rows[0].index(column)] = cell
    return Damaged(f"{kind}-{column}-{index}", kind, "csv", _csv(rows), 2, column)


def toml_of(kind: str) -> list[str]:
    """The good file of a kind as lines of TOML, one table to a row and one key to a line."""
    head, *rows = _rows(kind)
    lines = []
    for row in rows:
        lines.append(f"[[{TABLE[kind]}]]")
        lines += [f"{name} = '''{cell}'''" for name, cell in zip(head, row, strict=True) if cell]
    return lines


def _toml_cell(kind: str, column: str, cell: str, index: int) -> list[Damaged]:
    lines = toml_of(kind)
    place = next((number for number, line in enumerate(lines) if line.startswith(f"{column} = ")), None)
    if place is None or place > lines.index(f"[[{TABLE[kind]}]]", 1) or not cell:
        return []
    lines[place] = f"{column} = '''{cell}'''"
    return [Damaged(f"{kind}-{column}-{index}-toml", kind, "toml", "\n".join(lines).encode(), place + 1, column)]


def _structure(kind: str, text: str) -> list[Damaged]:
    raw = text.encode()
    head, first, *_ = text.splitlines(keepends=True)
    toml = toml_of(kind)
    needed = {"lines": "number", "psap": "uri", "blocks": "reason"}[kind]

    def csv_file(name: str, content: bytes, row: int, column: str = "") -> Damaged:
        return Damaged(f"{kind}-{name}", kind, "csv", content, row, column)

    def toml_file(name: str, lines: list[str], row: int, column: str = "") -> Damaged:
        return Damaged(f"{kind}-{name}-toml", kind, "toml", "\n".join(lines).encode(), row, column)

    key = toml[1].partition(" = ")[0]
    return [
        csv_file("empty", b"", 0),
        csv_file("blank", b"\n\n# nothing\n", 0),
        csv_file("semicolons", raw.replace(b",", b";"), 1),
        csv_file("no-header", raw.removeprefix(head.encode()), 1, ""),
        csv_file("unknown-column", raw.replace(b"\n", b",colour\n", 1), 1, "colour"),
        csv_file("missing-column", re.sub(rb"\b%s\b" % needed.encode(), b"colour", raw, count=1), 1, needed),
        csv_file("column-twice", raw.replace(b"\n", b"," + needed.encode() + b"\n", 1), 1, needed),
        csv_file("short-row", raw + b"x,y\n", text.count("\n") + 1),
        csv_file("long-row", raw + first.strip().encode() + b",,more\n", text.count("\n") + 1),
        csv_file("open-quote", raw + b'"never closed', text.count("\n") + 1),
        csv_file("stray-quote", raw + b'"a"b,c\n', text.count("\n") + 1),
        csv_file("control", raw.replace(b"town" if kind != "blocks" else b"noc", b"to\x07wn", 1), 2),
        csv_file("latin-1", raw.replace(b"town" if kind != "blocks" else b"noc", b"t\xf6wn", 1), 2),
        csv_file("utf-16", text.encode("utf-16"), 1),
        csv_file("nul", raw.replace(b"\n", b"\n\x00", 1), 2),
        csv_file("long-cell", raw.replace(b"town" if kind != "blocks" else b"noc", b"x" * 3000, 1), 2),
        csv_file("twice", raw + first.encode(), text.count("\n") + 1),
        toml_file("no-table", ["# nothing"], 0),
        toml_file("other-table", [*toml, "[[other]]", "a = 1"], len(toml) + 1, "other"),
        toml_file("not-toml", [*toml[:2], "what is this"], 3),
        toml_file("open-text", [toml[0], f'{key} = "never closed'], 2),
        toml_file("key-twice", [toml[0], toml[1], toml[1], *toml[2:]], 3),
        toml_file("unknown-key", [toml[0], "colour = 1", *toml[1:]], 2, "colour"),
        toml_file("table-for-text", [toml[0], f"{key} = {{ a = 1 }}", *toml[2:]], 2, key),
        toml_file("float", [toml[0], f"{key} = 1.5", *toml[2:]], 2, key),
        toml_file("nested-list", [toml[0], f"{key} = [[1]]", *toml[2:]], 2, key),
        toml_file("no-array", [f"{TABLE[kind]} = 1"], 0, TABLE[kind]),
        toml_file("deep", ["x = " + "[" * 3000], 0),
    ]
