"""The CSV and TOML files that a configuration's [policy] names, read as one change of the policy data.

Leaves out: the store; whoever has a connection applies the change (`policy.store.apply`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from policy import parse, parse_rules, profiles
from policy.change import Change, empty_snapshot, plan
from policy.emergency import ANY_LOCATION
from policy.review import SERVICES
from policy.table import MAX_TEXT, Fault, PolicyError

if TYPE_CHECKING:
    from policy.model import BlockRule, Profile
    from policy.parse import LinesImport
    from sipproxy.config import Config

__all__ = ["Files", "read", "read_change", "unserved_locations"]

T = TypeVar("T")


class Files(NamedTuple):
    """Files by what they hold."""

    lines: tuple[str, ...] = ()
    psap: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()


def read(config: Config) -> Change:
    """All that the files of `config.policy` hold. Raises PolicyError with the faults of all of them."""
    return read_change(Files(config.policy.lines, config.policy.psap, config.policy.blocks), realm=config.registrar.realm)


def read_change(files: Files, *, realm: str, keep_secrets: bool = False) -> Change:
    """What `files` hold, together without contradiction. Raises PolicyError with the faults of all of them.

    With `keep_secrets` an account may come without a password: what the store keeps for it stays.
    """
    known = profiles.load()
    faults: list[Fault] = []
    imports: list[tuple[str, LinesImport]] = _each(
        files.lines,
        faults,
        lambda text, file: [(file, parse.read_lines(text, file=file, realm=realm, profiles=known, keep_secrets=keep_secrets))],
    )
    rows = {what: (file, row) for file, found in imports for what, row in found.rows.items()}
    change = Change(
        lines=tuple(line for _, found in imports for line in found.lines),
        accounts=tuple(account for _, found in imports for account in found.accounts),
        psap=tuple(_each(files.psap, faults, lambda text, file: parse_rules.read_psap(text, file=file))),
        blocks=tuple(_each(files.blocks, faults, lambda text, file: _blocks(text, file, known, rows))),
        rows=rows,
    )
    faults += _twice("line", (line.id for line in change.lines))
    faults += _twice("account", (account.user for account in change.accounts))
    faults += _twice("number", (number for account in change.accounts for number in account.numbers))
    faults += _twice("block rule", (rule.id for rule in change.blocks))
    if faults:
        raise PolicyError(tuple(faults))
    plan(change, empty_snapshot(), secrets=not keep_secrets)
    return change


def _blocks(text: str, file: str, known: Mapping[str, Profile], rows: dict[str, tuple[str, int]]) -> tuple[BlockRule, ...]:
    places: dict[str, int] = {}
    found = parse_rules.read_blocks(text, file=file, profiles=known, rows=places)
    rows.update({f"rule {key}": (file, row) for key, row in places.items()})
    return found


def unserved_locations(change: Change) -> list[tuple[str, str]]:
    """Location and service ("110", "112") of every line in `change` for which it has no PSAP route."""
    served = {(route.location, route.service) for route in change.psap}
    wanted = {(line.location, service) for line in change.lines for service in SERVICES}
    return sorted(key for key in wanted - served if (ANY_LOCATION, key[1]) not in served)


def _each(files: Iterable[str], faults: list[Fault], parsed: Callable[[str, str], Iterable[T]]) -> list[T]:
    found: list[T] = []
    for file in files:
        try:
            found.extend(parsed(_text(file), file))
        except PolicyError as error:
            faults.extend(error.faults)
    return found


def _text(file: str) -> str:
    """The text of a file; a byte order mark, which spreadsheets write, is dropped."""
    try:
        if Path(file).stat().st_size > MAX_TEXT:
            raise PolicyError((Fault(file, 0, "", f"larger than {MAX_TEXT} bytes; split it"),))
        raw = Path(file).read_bytes()
    except OSError as error:
        raise PolicyError((Fault(file, 0, "", f"cannot be read ({error.strerror or error})"),)) from None
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        raise PolicyError((Fault(file, row, "", "not UTF-8; save the file in that encoding"),)) from None


def _twice(what: str, names: Iterable[str]) -> list[Fault]:
    seen: set[str] = set()
    twice = {name for name in names if name in seen or seen.add(name)}  # type: ignore[func-returns-value]
    return [Fault("the files together", 0, "", f"{what} {name} stands in two of them") for name in sorted(twice)]
