"""`sipproxy block lint` and `sipproxy block replay`: what is wrong with the rules, and what a change would have done."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
from typing import TYPE_CHECKING, Any

from cdr.entries import Poison, entry_of
from cdr.facts import Record
from policy import lint as linting
from policy import profiles, store
from policy.build import snapshot_of
from policy.parse import PolicyError
from policy.replay import Effect, Recorded, Replay
from policy.stamp import parse_stamp
from sipproxy import policy_files
from sipproxy.commands.accesses import recorded
from sipproxy.commands.backend import has_store, with_store
from sipproxy.commands.output import REFUSED, USAGE, CommandError, Output
from sipproxy.commands.policy_data import refused
from sipproxy.config import Config, load

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from redis.asyncio import Redis

    from policy.model import BlockRule, Snapshot

__all__ = ["lint", "replay"]

PAGE = 500  # entries of the stream asked for at once
SKEW_MS = 3600 * 1000  # by how much the store's clock, which numbers the entries, may be behind a node's
MOST_NAMED = 10  # lines, destinations and rules that a report names


def lint(path: Path, output: Output, *, file: Path | None = None) -> int:
    """Tell what is wrong with the rules: those in force, or as they would be with those of `file`. 1 when there is an error."""
    config = load(path)
    try:
        snapshot = _present(config)
        if file is not None:
            snapshot = _changed(snapshot, _rules_of(config, file), whole=False)
    except PolicyError as error:
        raise refused(error) from None
    findings = linting.check(snapshot, time.time_ns() // 1_000_000)
    errors = sum(item.severity is linting.Severity.ERROR for item in findings)
    names = ("severity", "code", "rule", "message", "number", "other")
    output.value({"ok": not errors, "rules": len(snapshot.blocks), "findings": [_named(item, names) for item in findings]})
    for item in findings:
        output.line(str(item))
    output.line(f"{len(snapshot.blocks)} rules, {errors} errors, {len(findings) - errors} warnings")
    return REFUSED if errors else 0


def replay(path: Path, output: Output, change: Path, cdrs: str, *, whole: bool = False) -> int:
    """Say which of the calls recorded in `cdrs` ("FROM..TO") the rules of `change` would have refused or newly allowed.

    The rules are added to those in force, or replace those with the same id; with `whole` they are all that there is.
    """
    config = load(path)
    begin_ms, end_ms = _period(cdrs)
    try:
        rules = _rules_of(config, change)
    except PolicyError as error:
        raise refused(error) from None

    async def work(client: Redis) -> tuple[Replay, int]:
        before = await store.load(client)
        found = Replay(before, _changed(before, rules, whole=whole))
        unreadable = 0
        async with recorded(client, config.cdr.stream, "block replay", f"{cdrs} with {change}") as seen:
            async for item in _records(client, config.cdr.stream, begin_ms):
                if not isinstance(item, Record):
                    unreadable += 1
                elif item.type == "final" and begin_ms <= item.setup_at_ms < end_ms:
                    found.take(_recorded(item))
                    seen.records += 1
        return found, unreadable

    _tell(output, *with_store(config, work))
    return 0


def _named(item: object, names: tuple[str, ...]) -> dict[str, str]:
    return {name: str(getattr(item, name)) for name in names}


def _present(config: Config) -> Snapshot:
    """The policy data in force; of the configured files where no store was ever used."""
    if has_store(config):
        return with_store(config, store.load)
    change = policy_files.read(config)
    return snapshot_of(0, change.lines, change.accounts, profiles.load(), change.psap, change.blocks)


def _rules_of(config: Config, file: Path) -> tuple[BlockRule, ...]:
    return policy_files.read_change(policy_files.Files(blocks=(str(file),)), realm=config.registrar.realm).blocks


def _changed(before: Snapshot, rules: tuple[BlockRule, ...], *, whole: bool) -> Snapshot:
    kept = {} if whole else {rule.id: rule for rule in before.blocks}
    kept.update({rule.id: rule for rule in rules})
    return dataclasses.replace(before, blocks=tuple(sorted(kept.values(), key=lambda rule: rule.id)))


def _period(text: str) -> tuple[int, int]:
    """UTC ms of "FROM..TO": TO is not part of it, but a whole day is; either may be left out."""
    begin, dots, end = text.partition("..")
    begin_ms = parse_stamp(begin) if begin else 0
    end_ms = parse_stamp(end) if end else parse_stamp("2099-12-31")
    if not dots or begin_ms is None or end_ms is None:
        raise CommandError(f"--cdrs {text[:80]!r} is no period such as 2026-01-01..2026-01-31", code=USAGE)
    if len(end) == len("2026-01-31"):
        end_ms = parse_stamp((dt.date.fromisoformat(end) + dt.timedelta(days=1)).isoformat()) or end_ms
    if begin_ms >= end_ms:
        raise CommandError(f"--cdrs {text[:80]!r} ends before it begins", code=USAGE)
    return begin_ms, end_ms


async def _records(client: Redis, stream: str, begin_ms: int) -> AsyncIterator[Record | Poison]:
    """Records of calls that ended after a time, in the order of their ends."""
    start = f"{max(0, begin_ms - SKEW_MS)}"
    while True:
        page: list[Any] = list(await client.xrange(stream, start, "+", PAGE) or ())
        for entry_id, fields in page:
            yield entry_of(entry_id, fields)
        if len(page) < PAGE:
            return
        start = "(" + page[-1][0].decode()


def _recorded(record: Record) -> Recorded:
    return Recorded(
        record.id,
        record.direction,
        record.line,
        record.account,
        record.dialled,
        record.calling,
        record.presented,
        record.setup_at_ms,
        record.verdict,
    )


def _tell(output: Output, found: Replay, unreadable: int) -> None:
    effects = {"refused": found.refused, "newly_allowed": found.allowed}
    output.value(
        {
            "calls": found.calls,
            "emergencies": found.emergencies,
            "unknown": found.unknown,
            "unreadable": unreadable,
            **{name: _plain(effect) for name, effect in effects.items()},
        }
    )
    output.line(f"{found.calls} recorded calls, {found.emergencies} of them emergency calls, which no list touches")
    for count, what in ((found.unknown, "calls of lines or to numbers that are gone"), (unreadable, "unreadable records")):
        if count:
            output.line(f"{count} {what}: left out")
    for words, effect in (("would have been refused", found.refused), ("would have been newly allowed", found.allowed)):
        output.line(f"{effect.calls} calls {words}, of {len(effect.lines)} lines, to {len(effect.destinations)} destinations")
        for name in ("rules", "lines", "destinations"):
            named = ", ".join(f"{key} ({count})" for key, count in getattr(effect, name).most_common(MOST_NAMED))
            if named:
                output.line(f"  {name}: {named}")


def _plain(effect: Effect) -> dict[str, Any]:
    return {
        "calls": effect.calls,
        "lines": len(effect.lines),
        "destinations": len(effect.destinations),
        "by_rule": dict(effect.rules.most_common(MOST_NAMED)),
        "by_line": dict(effect.lines.most_common(MOST_NAMED)),
        "by_destination": dict(effect.destinations.most_common(MOST_NAMED)),
        "examples": [call._asdict() for call in effect.examples],
    }
