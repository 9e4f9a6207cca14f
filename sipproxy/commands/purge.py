"""`sipproxy cdr purge` and `cdr invoiced`: what may not be kept goes, and the report proves it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cdr import pruning
from cdr.journal import JournalError
from cdr.purging import Purge, Report, Tally, holds, invoices, journals_elsewhere, mark_invoiced
from cdr.retention import DAY_MS, HOUR_MS, Invoice, Rules
from cdr.wire import Link
from policy import store as policy_store
from policy.model import LineStatus
from policy.stamp import parse_stamp
from sipproxy.admin import control
from sipproxy.commands.backend import with_store
from sipproxy.commands.output import REFUSED, USAGE, CommandError, many, stamp
from sipproxy.config import load
from sipproxy.crewing import folders
from sipproxy.store import traces

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from sipproxy.commands.output import Output
    from sipproxy.config import Config

__all__ = ["invoiced", "purge", "rules_of"]

TIMEOUT_S = 30.0
JOURNAL = "journal"
BESIDE = "in a file with records that are not confirmed"


def invoiced(path: Path, output: Output, *, until: str, sent: str) -> int:
    """Note that the calls up to `until` are in an invoice that was sent at `sent`; without `until` list what was noted."""
    config = load(path)
    now_ms = time.time_ns() // 1_000_000
    marks = [Invoice(_stamp(until, "UNTIL"), _stamp(sent, "--sent") if sent else now_ms)] if until else []
    for invoice in marks:
        if invoice.until_ms > invoice.sent_ms:
            raise CommandError("an invoice is not sent before the calls in it have ended", code=USAGE)
        if invoice.sent_ms > now_ms + DAY_MS:
            raise CommandError("--sent lies in the future", code=USAGE)

    async def work(client: Redis) -> list[Invoice]:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            for invoice in marks:
                await mark_invoiced(link, config.cdr.stream, invoice)
            return await invoices(link, config.cdr.stream)
        finally:
            await link.drop()

    found = with_store(config, work)
    output.value([invoice._asdict() for invoice in found])
    rows = ((stamp(invoice.until_ms), stamp(invoice.sent_ms)) for invoice in found)
    output.table(("calls before", "invoice sent"), rows, empty="no invoice was told of")
    return 0


def purge(path: Path, output: Output, *, dry_run: bool, unacknowledged: bool) -> int:
    """Delete and report; 1 when something that is overdue is still there."""
    config = load(path)
    now_ms = time.time_ns() // 1_000_000

    async def work(client: Redis) -> Report:
        link = Link(client, timeout_s=TIMEOUT_S)
        try:
            rules = await rules_of(client, link, config)
            found = Purge(
                link,
                config.cdr.stream,
                rules,
                node=config.node.id,
                now_ms=now_ms,
                exports_ms=config.cdr.keep_exports_h * HOUR_MS,
                access_ms=config.cdr.keep_access_days * DAY_MS,
                dry_run=dry_run,
                unacknowledged=unacknowledged,
            )
            report = await found.run()
            await _traces(client, report, now_ms - config.cdr.keep_trace_days * DAY_MS, dry_run=dry_run)
            looked = await asyncio.to_thread(_journal, config, report, rules, now_ms, dry_run=dry_run)
            node = config.node.id if looked else ""
            report.journals = await journals_elsewhere(link, config.cdr.stream, looked_at=node, now_ms=now_ms, dry_run=dry_run)
            return report
        finally:
            await link.drop()

    report = with_store(config, work)
    _print(report, output, dry_run=dry_run, unacknowledged=unacknowledged)
    return REFUSED if report.left and not dry_run else 0


async def rules_of(client: Redis, link: Link, config: Config) -> Rules:
    """How long records are kept, from the configuration and the store. Raises CommandError where a hold cannot be read."""
    kept = config.cdr
    try:
        lines = (await policy_store.load(client)).lines
        held = await holds(link, kept.stream)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"lines or holds cannot be read, and nothing is purged without them: {error}") from None
    return Rules(
        unbilled_ms=kept.keep_unbilled_h * HOUR_MS,
        billed_months=kept.keep_billed_months,
        fraud_ms=kept.keep_fraud_days * DAY_MS,
        free=frozenset(kept.unbilled),
        invoices=await invoices(link, kept.stream),
        holds=tuple(held.values()),
        fraud_lines=frozenset(name for name, line in lines.items() if line.status == LineStatus.FRAUD_HOLD),
    )


def _journal(config: Config, report: Report, rules: Rules, now_ms: int, *, dry_run: bool) -> bool:
    """Old confirmed records in the journals of this machine's node, running or stopped; whether there is a journal."""
    there = [(name, folder / "journal") for name, folder in folders(config) if (folder / "journal").is_dir()]
    for name, directory in there:
        _journal_of(config, name, directory, report, rules, now_ms=now_ms, dry_run=dry_run)
    return bool(there)


def _journal_of(
    config: Config, name: str, directory: Path, report: Report, rules: Rules, *, now_ms: int, dry_run: bool
) -> None:
    """As `_journal`, of one worker."""
    refusal = ""
    try:
        before = pruning.survey(directory, rules, now_ms)
        if not dry_run and any(one.confirmed for one in before.overdue):
            refusal = _prune(config, name, directory, now_ms - rules.unbilled_ms)
        after = before if dry_run else pruning.survey(directory, rules, now_ms)
    except OSError as error:
        report.note(report.left, JOURNAL, f"{directory}: {error.strerror or error}", now_ms)
        return
    there = {one[:2] for one in after.overdue}
    for one in before.overdue:
        if one.confirmed if dry_run else one[:2] not in there:
            report.note(report.gone, JOURNAL, one.reason, one.ended_ms)
    for one in after.overdue:
        if not one.confirmed:
            report.note(report.left, JOURNAL, f"{one.reason}, not confirmed", one.ended_ms)
        elif not dry_run:
            report.note(report.left, JOURNAL, f"{one.reason}, {refusal or BESIDE}", one.ended_ms)
    for file, at_ms in after.aside:
        report.note(report.left, JOURNAL, f"{file}: damaged, kept for a person to look at", at_ms)


def _prune(config: Config, name: str, directory: Path, before_ms: int) -> str:
    """Have the node do it, or do it in its place; why that was not possible, "" when it was."""
    try:
        try:
            control.ask(control.socket_path(config.node.data_dir), "prune", timeout_s=TIMEOUT_S, before_ms=before_ms)
        except control.NodeAwayError:
            size = config.cdr.segment_bytes
            pruning.prune_stopped(directory, node=name, segment_bytes=size, before_ms=before_ms)
    except (control.ControlError, JournalError, OSError) as error:
        return str(error)[:200]
    return ""


async def _traces(client: Redis, report: Report, before_ms: int, *, dry_run: bool) -> None:
    """Malicious calls have a stream and a time of their own."""
    for place, stamps in (await traces.forget(client, before_ms, dry_run=dry_run)).items():
        for at_ms in stamps:
            report.note(report.gone, place, "older than they are kept", at_ms)


def _print(report: Report, output: Output, *, dry_run: bool, unacknowledged: bool) -> None:
    output.value(
        {
            "dry_run": dry_run,
            "gone": _plain(report.gone),
            "left": _plain(report.left),
            "counted": report.counted,
            "oldest_at_ms": report.oldest_ms,
            "not_invoiced": asdict(report.not_invoiced),
            "on_hold": asdict(report.on_hold),
            "journals_not_looked_at": [{"node": node, "purged_at_ms": at_ms} for node, at_ms in report.journals.items()],
        }
    )
    if unacknowledged:
        output.line("records that no consumer group has acknowledged are not spared (--unacknowledged)")
    verb = "would go" if dry_run else "gone"
    _table(report.gone, output, verb, f"nothing {'would go' if dry_run else 'had to go'}")
    if report.left:
        output.line("")
        _table(report.left, output, "overdue and still there", "")
    if report.not_invoiced.count:
        first, count = stamp(report.not_invoiced.first_ms), report.not_invoiced.count
        output.line(
            f"in no invoice yet: {many(count, 'billed record')}, the oldest of {first}; `sipproxy cdr invoiced` tells of one"
        )
    if report.on_hold.count:
        output.line(f"{many(report.on_hold.count, 'record')} kept because of `sipproxy cdr hold`")
    if report.oldest_ms is not None:
        output.line(f"the oldest record that stays is of {stamp(report.oldest_ms)}: `block replay` sees no further back")
    for node, at_ms in report.journals.items():
        last = f"last purged {stamp(at_ms)}" if at_ms is not None else "never purged by this command"
        output.line(f"the journal of {node} is not on this machine ({last}): run `sipproxy cdr purge` on that node's")


def _table(table: dict[tuple[str, str], Tally], output: Output, title: str, empty: str) -> None:
    rows = (
        (place, reason, tally.count, stamp(tally.first_ms), stamp(tally.last_ms))
        for (place, reason), tally in sorted(table.items())
    )
    output.table(("where", title, "number", "from", "to"), rows, empty=empty)


def _plain(table: dict[tuple[str, str], Tally]) -> list[dict[str, Any]]:
    return [{"place": place, "reason": reason, **asdict(tally)} for (place, reason), tally in sorted(table.items())]


def _stamp(text: str, name: str) -> int:
    found = parse_stamp(text)
    if found is None:
        raise CommandError(f"{name}: {text[:40]!r} is no time such as 2026-01-31 or 2026-01-31T08:00", code=USAGE)
    return found
