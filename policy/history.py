"""Entries of the change log: what changed from what to what, exactly, chained by hashes; going back to an earlier version.

Pure. An entry names only what was changed, each thing with the value before and after it, so that a large file that changes
little is a small entry; what is long is compressed. HA1 values are in none of them: an account says only whether its secret
was set anew, and a return to before that is refused.
Left out: where the log is kept (`policy.store`), words for people (`policy.diff`).
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, NoReturn

import msgspec

from policy import codec
from policy.change import Change, Item
from policy.model import Account, AccountKind, BlockRule, Line, PsapRoute, Snapshot
from policy.table import Fault, PolicyError

__all__ = ["FORMAT", "Entry", "LoggedAccount", "Side", "broken_links", "entry_hash", "entry_of", "return_to", "sides_of"]

FORMAT = "2"
PLAIN_BYTES = 4096  # a longer side is compressed
MAX_SIDE_BYTES = 32 * 1024 * 1024  # of one side as it is written; some 400,000 lines at once
MAX_JSON_BYTES = 1024 * 1024 * 1024  # of one side unpacked
_PACKED = "z:"
SHOWN = 20  # accounts that a refusal names


class LoggedAccount(msgspec.Struct, frozen=True):
    """An account without its secret; `renewed` in the side after a change that set the secret of a known account anew."""

    user: str
    line: str
    kind: AccountKind
    numbers: tuple[str, ...]
    renewed: bool = False
    channels: int | None = None


class Side(msgspec.Struct, frozen=True):
    """What was changed, as it was before or after: by line id, account user, `codec.psap_field`, rule id."""

    lines: dict[str, Line] = {}
    accounts: dict[str, LoggedAccount] = {}
    psap: dict[str, tuple[PsapRoute, ...]] = {}
    blocks: dict[str, BlockRule] = {}

    def table(self, name: str) -> Mapping[str, object]:
        """One of the tables by its name."""
        found: Mapping[str, object] = getattr(self, name)
        return found


TABLES = ("lines", "accounts", "psap", "blocks")


class Entry(NamedTuple):
    """One entry of the log. `sides` is (before, after), None when it was written in another format; `fields` are as kept."""

    version: int
    when_ms: int
    who: str
    why: str
    sides: tuple[Side, Side] | None
    fields: Mapping[str, str]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """How many things of each table were added, changed and removed."""
        found: dict[str, dict[str, int]] = {}
        if self.sides is None:
            return found
        for name in TABLES:
            before, after = (side.table(name).keys() for side in self.sides)
            counts = {"added": len(after - before), "changed": len(after & before), "removed": len(before - after)}
            if any(counts.values()):
                found[name] = {word: count for word, count in counts.items() if count}
        return found


def entry_hash(fields: Mapping[str, str]) -> str:
    """SHA-256 of a log entry, which the next one carries as `previous`."""
    text = json.dumps(sorted(fields.items()), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sides_of(items: Iterable[Item]) -> tuple[str, str]:
    """The texts of an entry's before and after. Raises PolicyError when they are longer than an entry may be."""
    before: dict[str, dict[str, object]] = {}
    after: dict[str, dict[str, object]] = {}
    for item in items:
        if item.before is not None:
            before.setdefault(item.table, {})[item.key] = _logged(item.before)
        if item.after is not None:
            after.setdefault(item.table, {})[item.key] = _logged(item.after, former=item.before)
    return _written(before), _written(after)


def _logged(value: object, *, former: object = None) -> object:
    if not isinstance(value, Account):
        return value
    renewed = isinstance(former, Account) and dict(former.ha1) != dict(value.ha1)
    return LoggedAccount(value.user, value.line, value.kind, value.numbers, renewed, value.channels)


def _written(side: Mapping[str, object]) -> str:
    raw = msgspec.json.encode(side)
    text = raw.decode() if len(raw) <= PLAIN_BYTES else _PACKED + base64.b64encode(zlib.compress(raw, 6)).decode()
    if len(text) > MAX_SIDE_BYTES or len(raw) > MAX_JSON_BYTES:
        raise PolicyError((Fault("the change", 0, "", "changes more than one entry of the log can hold; split it"),))
    return text


def _read(text: str) -> Side:
    if not text.startswith(_PACKED):
        return msgspec.json.decode(text, type=Side)
    unpack = zlib.decompressobj()
    raw = unpack.decompress(base64.b64decode(text[len(_PACKED) :], validate=True), MAX_JSON_BYTES)
    if not unpack.eof:
        raise ValueError("cut off, or longer than an entry may be")
    return msgspec.json.decode(raw, type=Side)


def entry_of(fields: Mapping[str, str]) -> Entry:
    """An entry as it is kept. One that cannot be read has no sides."""
    sides: tuple[Side, Side] | None = None
    if fields.get("format") == FORMAT:
        try:
            sides = _read(fields.get("before", "")), _read(fields.get("after", ""))
        except (ValueError, zlib.error):  # msgspec's errors are ValueErrors
            sides = None
    version, when = (int(text) if text.isdecimal() else 0 for text in (fields.get("version", ""), fields.get("when", "")))
    return Entry(version, when, fields.get("who", ""), fields.get("why", ""), sides, fields)


def broken_links(entries: Sequence[Entry]) -> list[str]:
    """Where the chain of hashes and versions is broken; [] when it is whole. The first entry may have followed trimmed ones."""
    found = []
    if entries and entries[0].version == 1 and entries[0].fields.get("previous"):
        found.append("version 1 names an entry before it")
    for former, entry in itertools.pairwise(entries):
        if entry.fields.get("previous") != entry_hash(former.fields):
            found.append(f"version {entry.version} does not follow version {former.version} as it stands in the log")
        elif entry.version != former.version + 1 and entry.fields.get("base") != str(entry.version):
            found.append(f"version {entry.version} comes after version {former.version}")
    return found


def return_to(version: int, entries: Sequence[Entry], now: Snapshot, *, everything: bool) -> Change:
    """The change that makes the block rules, or with `everything` all policy data, what they were at `version`.

    `entries` are the log's, up to the version of `now`. Raises PolicyError when that version cannot be had exactly.
    """
    newest = entries[-1].version if entries else 0
    later = [entry for entry in entries if entry.version > version]
    if not 0 <= version <= now.version:
        _refuse(f"there is no version {version}; the newest is {now.version}")
    if newest != now.version:
        _refuse(f"version {version} cannot be had: the log ends with {newest}, the newest version is {now.version}")
    if [entry.version for entry in later] != list(range(version + 1, newest + 1)):
        _refuse(f"version {version} cannot be had: the log does not hold every change since then")
    if broken := broken_links([entry for entry in entries if entry.version >= version]):
        _refuse(f"the log is not what was written: {broken[0]}")
    tables: dict[str, dict[str, object]] = {
        "lines": dict(now.lines),
        "accounts": {user: _logged(account) for user, account in now.accounts.items()},
        "psap": {codec.psap_field(*key): _sorted(routes) for key, routes in now.psap.items()},
        "blocks": {rule.id: rule for rule in now.blocks},
    }
    lost: set[str] = set()
    for entry in reversed(later):
        _undo(entry, tables if everything else {"blocks": tables["blocks"]}, lost)
    if everything:
        _refuse_lost(lost & tables["accounts"].keys(), version)
        return _whole(tables, now)
    target = tables["blocks"]
    rules = tuple(rule for rule in target.values() if isinstance(rule, BlockRule))
    return Change(blocks=rules, remove_blocks=tuple(rule.id for rule in now.blocks if rule.id not in target))


def _sorted(routes: Iterable[PsapRoute]) -> tuple[PsapRoute, ...]:
    return tuple(sorted(routes, key=lambda route: (route.priority, route.uri, route.valid_from_ms or 0)))


def _undo(entry: Entry, tables: Mapping[str, dict[str, object]], lost: set[str]) -> None:
    """Take one entry back. `lost` gets the accounts whose secret before it is not known."""
    if entry.sides is None:
        _refuse(f"what version {entry.version} changed cannot be read from the log")
    before, after = entry.sides
    for name, table in tables.items():
        old, new = before.table(name), after.table(name)
        for key in (*new, *(key for key in old if key not in new)):
            if _comparable(table.get(key)) != _comparable(new.get(key)):
                _refuse(f"the store does not hold what version {entry.version} says of {name} {key}")
            written = new.get(key)
            if isinstance(written, LoggedAccount) and written.renewed:
                lost.add(key)
            elif written is None and name == "accounts":
                lost.add(key)  # removed: its secret went with it
            if key in old:
                table[key] = old[key]
                continue
            table.pop(key, None)
            if name == "accounts":
                lost.discard(key)


def _comparable(value: object) -> object:
    return msgspec.structs.replace(value, renewed=False) if isinstance(value, LoggedAccount) else value


def _whole(tables: Mapping[str, dict[str, object]], now: Snapshot) -> Change:
    accounts = []
    for user, logged in tables["accounts"].items():
        assert isinstance(logged, LoggedAccount)
        accounts.append(Account(user, logged.line, logged.kind, now.accounts[user].ha1, logged.numbers, logged.channels))
    fields = tables["psap"]
    return Change(
        lines=tuple(line for line in tables["lines"].values() if isinstance(line, Line)),
        accounts=tuple(accounts),
        psap=tuple(route for routes in fields.values() if isinstance(routes, tuple) for route in routes),
        blocks=tuple(rule for rule in tables["blocks"].values() if isinstance(rule, BlockRule)),
        remove_lines=tuple(key for key in now.lines if key not in tables["lines"]),
        remove_psap=tuple(now.psap),
        remove_blocks=tuple(rule.id for rule in now.blocks if rule.id not in tables["blocks"]),
    )


def _refuse_lost(users: set[str], version: int) -> None:
    if not users:
        return
    shown = ", ".join(sorted(users)[:SHOWN]) + (f" and {len(users) - SHOWN} more" if len(users) > SHOWN else "")
    _refuse(
        f"not as it was at version {version}: the passwords that these accounts had then are kept nowhere: {shown};"
        " import those lines with passwords instead"
    )


def _refuse(reason: str) -> NoReturn:
    raise PolicyError((Fault("rollback", 0, "", reason),))
