"""How every command changes the policy data: planned, shown, refused or made, and answered in one way.

A change is made whole or not at all, and what it says of itself holds no password and no HA1 value.
"""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from policy import diff, store
from policy.change import Change
from policy.parse import PolicyError
from sipproxy import policy_files
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import CommandError, Output
from sipproxy.commands.policy_data import counts_of, load_snapshot, refused
from sipproxy.config import Config, load

if TYPE_CHECKING:
    from policy.model import Snapshot
    from policy.store import Outcome

__all__ = ["Kind", "Make", "change_data", "export_text", "import_file", "operator", "submit", "tell", "write_out"]

Kind = Literal["lines", "psap", "blocks"]
Make = Callable[["Snapshot"], Change]
SHOWN_CHANGES = 1000  # lines of a diff for people; programs get them all


def operator() -> str:
    """Who runs the command, for the log."""
    user, behind = getpass.getuser(), os.environ.get("SUDO_USER", "")
    return f"{behind} as {user} (command line)" if behind and behind != user else f"{user} (command line)"


def submit(config: Config, change: Change | Make, *, why: str, dry_run: bool) -> Outcome:
    """Make the change, or only plan it. Raises CommandError when it is refused."""
    try:
        return with_store(
            config,
            lambda client: store.submit(client, change, who=operator(), why=why, dry_run=dry_run),
            create=not dry_run,
        )
    except PolicyError as error:
        raise refused(error) from None
    except store.ConflictError as error:
        raise CommandError(f"{error}; nothing was changed, try again") from None
    except msgspec.DecodeError as error:
        raise CommandError(f"the store holds policy data that cannot be read: {str(error)[:200]}") from None


def change_data(path: Path, output: Output, change: Make, *, why: str, dry_run: bool, done: str) -> int:
    """Change the policy data by `change`, and tell what was changed; `done` says it in words."""
    outcome = submit(load(path), change, why=why, dry_run=dry_run)
    return tell(output, outcome, done, dry_run=dry_run)


def tell(output: Output, outcome: Outcome, done: str, *, dry_run: bool, more: dict[str, Any] | None = None) -> int:
    """What became of a change: the changes themselves with `dry_run`, and for a small one."""
    changes = diff.changes_of(outcome.plan.items)
    result: dict[str, Any] = {"ok": True, "version": outcome.version, "changed": len(changes), **(more or {})}
    if dry_run:
        result |= {"dry_run": True, "changes": changes}
    output.value({**result, "warnings": list(outcome.warnings)})
    for change in changes[:SHOWN_CHANGES] if dry_run else ():
        output.line(diff.words_of(change))
    if dry_run and len(changes) > SHOWN_CHANGES:
        output.line(f"... and {len(changes) - SHOWN_CHANGES} more; --json gives all of them")
    for warning in outcome.warnings:
        output.line(f"warning: {warning}")
    if not changes:
        output.line(f"{done}: nothing to change; policy version {outcome.version}")
    elif dry_run:
        output.line(f"{done}: {len(changes)} changes, none of them made; policy version {outcome.version} stays")
    else:
        output.line(f"{done}; policy version {outcome.version}")
    return 0


def import_file(kind: Kind, file: Path, path: Path, output: Output, *, why: str, dry_run: bool) -> int:
    """Apply a CSV or TOML file to the store, whole or not at all."""
    config = load(path)
    try:
        files = policy_files.Files(**{kind: (str(file),)})
        change = policy_files.read_change(files, realm=config.registrar.realm, keep_secrets=True)
    except PolicyError as error:
        raise refused(error) from None
    outcome = submit(config, change, why=why or f"import of {file}", dry_run=dry_run)
    counts = counts_of(change)
    words = f"{file}: {', '.join(f'{count} {name}' for name, count in counts.items()) or 'nothing'}"
    return tell(output, outcome, words, dry_run=dry_run, more={"file": str(file), **counts})


def export_text(
    path: Path, output: Output, file: Path | None, make: Callable[[Snapshot], str], *, private: bool = False
) -> int:
    """Write what `make` gives to a file, or to standard output."""
    text = make(load_snapshot(path))
    if file is None:
        output.raw(text)
        return 0
    write_out(file, text, private=private)
    output.value({"ok": True, "file": str(file)})
    output.line(f"{file}: written")
    return 0


def write_out(file: Path, text: str, *, private: bool) -> None:
    """Write a file whole; `private` for its owner alone. Raises CommandError."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as stream:
            if private:
                os.fchmod(stream.fileno(), 0o600)
            stream.write(text)
    except OSError as error:
        raise CommandError(f"{file}: cannot be written ({error.strerror or error})") from None
