"""`sipproxy explain`: the decision that a call would get, in words, one call or a file of them.

The policy data is the store's. Where no store is configured and the embedded one was never used, the files of [policy]
are taken as they are, so that a rule can be tried before anything runs; the answer says which of both it was.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy import evaluate, profiles, store
from policy import explain as words
from policy.build import snapshot_of
from policy.model import CallAttempt, Direction
from policy.parse import PolicyError
from policy.stamp import parse_stamp
from policy.windows import ZONE
from sipproxy import policy_files
from sipproxy.commands.backend import has_store, with_store
from sipproxy.commands.output import USAGE, CommandError, Output
from sipproxy.commands.policy_data import e164, find_line, refused
from sipproxy.config import Config, load
from sipproxy.config_file import split_address
from sipproxy.engine.channels import slots_of_forwarding
from sipproxy.engine.forwarding import Before, decide
from sipproxy.settings import engine_settings
from sipproxy.store.live_slots import slots_of

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from policy.model import Account, Decision, Snapshot

__all__ = ["explain"]

MAX_BATCH_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Question:
    """One call. With `incoming` it comes from outside: `caller` is a number or "anonymous", `dialled` one of ours.

    With `forwarded` it came to the line `caller`, or its number, whose router sends it on to `dialled` by a 302; `earlier` are
    the numbers that forwarded it before, the last one first.
    `used` channels and `started` calls are assumed where given, else those that the store knows of, and none.
    """

    caller: str
    dialled: str
    incoming: bool = False
    used: int | None = None
    started: int | None = None
    forwarded: bool = False
    earlier: tuple[str, ...] = ()


def explain(path: Path, output: Output, question: Question, *, batch: Path | None, at: str) -> int:
    """Explain one call, or each row of `batch`."""
    now_at_ms = _instant(at)
    caller, dialled = question.caller, question.dialled
    try:
        if question.earlier and not question.forwarded:
            raise CommandError("--earlier says who forwarded a call before: it goes with --forwarded", code=USAGE)
        if question.forwarded and (batch is not None or question.incoming):
            raise CommandError("--forwarded goes with neither --incoming nor --batch", code=USAGE)
        if batch is not None:
            if caller or dialled:
                raise CommandError("either LINE and DIALLED, or --batch FILE.csv", code=USAGE)
            return _explain_batch(path, output, batch, now_at_ms)
        if not (caller and dialled):
            raise CommandError(
                "say which line or number calls, and what it dials: sipproxy explain V1001 09001234567", code=USAGE
            )
        return _explain_one(load(path), output, question, now_at_ms)
    except PolicyError as error:
        raise refused(error) from None


def _instant(at: str) -> int:
    """UTC milliseconds of `at`, German time where it names no zone; now for ""."""
    if not at:
        return time.time_ns() // 1_000_000
    found = parse_stamp(at)
    if found is None:
        raise CommandError(f"--at {at[:80]!r} is no time such as 2026-01-31T08:00 or 2026-01-31T07:00Z", code=USAGE)
    return found


def _from_files(config: Config) -> Snapshot:
    change = policy_files.read(config)
    return snapshot_of(0, change.lines, change.accounts, profiles.load(), change.psap, change.blocks)


def _explain_one(config: Config, output: Output, question: Question, now_at_ms: int) -> int:
    if has_store(config):
        snapshot, used, of_account = with_store(config, lambda client: _loaded(client, question, config.registrar.realm))
        source = f"store, version {snapshot.version}"
    else:
        snapshot, used, of_account, source = _from_files(config), 0, 0, "files named by [policy]"
    if question.used is not None:
        used = question.used
    attempt = replace(_attempt(snapshot, question, used, config.registrar.realm), account_used=of_account)
    before = _before(question, attempt.account) if question.forwarded else None
    if before is not None:
        attempt = _sent_on(snapshot, attempt, before)
    way = partial(_forwarded, config, before) if before is not None else evaluate
    explanation = words.explain_attempt(attempt, snapshot, now_at_ms, decide=way)
    decision = explanation.decision
    plain = {**_plain(decision), "rules": [_plain_rule(item) for item in explanation.rules], "words": explanation.words}
    at = dt.datetime.fromtimestamp(now_at_ms // 1000, ZONE).isoformat()
    plain["forwarded"] = {"number": before.number, "earlier": sorted(before.earlier)} if before is not None else None
    output.value({**plain, "slots_used": used, "slots_limit": decision.channels, "at": at, "source": source})
    line = decision.line
    if line is not None:
        limit = snapshot.channels_of(line) if line.profile in snapshot.profiles else line.channels
        output.line(f"line {line.id}, {used} of {limit} channels in use; policy data: {source}; at {at}")
    if before is not None:
        output.line(f"a call to {before.number} that its router sends on, with a channel of its own for that already")
    output.line(str(explanation))
    if question.started is None and any(rule == "line.rate" for rule, _ in decision.steps):
        output.line(
            "as if the line had started no call lately: each node counts that for itself; --started says another number"
        )
    return 0


def _forwarded(config: Config, before: Before, attempt: CallAttempt, snapshot: Snapshot, now_at_ms: int) -> Decision:
    """What the engine decides on a call that the line sends on."""
    bound = [(listen.transport.upper(), *split_address(listen.address)) for listen in config.listen]
    return decide(attempt, before, snapshot, engine_settings(config, bound), now_at_ms)


def _sent_on(snapshot: Snapshot, attempt: CallAttempt, before: Before) -> CallAttempt:
    """The attempt of a call that the line sends on: as the number that it reached, with the channel that it has already."""
    profile = snapshot.profiles.get(attempt.line.profile) if attempt.line is not None else None
    if profile is not None and not slots_of_forwarding(profile):
        return replace(attempt, caller=before.number, slots_used=None, account_used=None)
    used, of_account = (count + 1 if count is not None else None for count in (attempt.slots_used, attempt.account_used))
    return replace(attempt, caller=before.number, slots_used=used, account_used=of_account)


def _before(question: Question, account: Account | None) -> Before:
    """The number that the call came to, and those that it was forwarded from until then."""
    numbers = [number.removesuffix("*") for number in account.numbers] if account is not None else []
    own = e164(question.caller) or next(iter(numbers), "")
    unknown = [number for number in question.earlier if not e164(number)]
    if unknown:
        raise CommandError(f"--earlier {unknown[0][:80]!r} is no number such as +492051555101", code=USAGE)
    return Before(own, frozenset(e164(number) for number in question.earlier), len(question.earlier))


def _attempt(snapshot: Snapshot, question: Question, used: int, realm: str) -> CallAttempt:
    target = question.dialled.encode("utf-8", "surrogateescape")
    if question.forwarded and b":" not in target:
        target = b"sip:%s@%s" % (target, realm.encode())
    if not question.incoming:
        line, account = find_line(snapshot, question.caller)
        started = question.started if question.started is not None else 0
        return CallAttempt(Direction.OUTGOING, target, line, account, slots_used=used, setups=started)
    anonymous = question.caller.lower() == "anonymous"
    number = "" if anonymous else question.caller
    return CallAttempt(Direction.INCOMING, target, caller=number, network=number, anonymous=anonymous, slots_used=used)


async def _loaded(client: Redis, question: Question, realm: str) -> tuple[Snapshot, int, int]:
    """The snapshot, and how many channels the line and the account use now whose call it would be, by the store's clock."""
    snapshot = await store.load(client)
    found = evaluate(_attempt(snapshot, question, 0, realm), snapshot, 0)
    if found.line is None:
        return snapshot, 0, 0
    live = await slots_of(client, "line", [found.line.id])
    account = found.account.user if found.account is not None else ""
    return snapshot, len(live), sum(slot.holder.account == account for slot in live)


def _plain(decision: Decision) -> dict[str, Any]:
    return {
        "verdict": str(decision.verdict),
        "rule": decision.rule,
        "reason": decision.reason,
        "status": decision.status or None,
        "cause": decision.cause or None,
        "canonical": decision.destination.canonical,
        "class": str(decision.destination.kind),
        "read_as": decision.destination.how,
        "tariff_prefix": decision.destination.prefix,
        "line": decision.line.id if decision.line is not None else None,
        "asserted": decision.asserted,
        "presented": decision.presented,
        "restricted": decision.restricted,
        "callee": decision.callee.user if decision.callee is not None else None,
        "psap": [route.uri for route in decision.psap],
        "steps": [{"rule": rule, "said": said} for rule, said in decision.steps],
        "snapshot": decision.snapshot,
    }


def _plain_rule(item: words.RuleSaid) -> dict[str, Any]:
    rule = item.rule
    names = ("id", "level", "action", "direction", "kind", "value", "profile", "line", "reason", "ticket", "owner")
    return {**{name: str(getattr(rule, name)) for name in names}, "said": item.said}


def _explain_batch(path: Path, output: Output, batch: Path, now_at_ms: int) -> int:
    answer = words.batch_csv(_text(batch), file=str(batch), snapshot=_batch_snapshot(path), now_at_ms=now_at_ms)
    if output.as_json:
        output.value(list(csv.DictReader(io.StringIO(answer, newline=""))))
    else:
        output.raw(answer)
    return 0


def _batch_snapshot(path: Path) -> Snapshot:
    """The policy data for a batch; without a configuration the shipped profiles alone."""
    if path == Path("config.toml") and not path.exists():
        return snapshot_of(0, (), (), profiles.load(), (), ())
    config = load(path)
    return with_store(config, store.load) if has_store(config) else _from_files(config)


def _text(batch: Path) -> str:
    name = "standard input" if str(batch) == "-" else str(batch)
    try:
        raw = sys.stdin.buffer.read(MAX_BATCH_BYTES + 1) if str(batch) == "-" else _bounded(batch)
    except OSError as error:
        raise CommandError(f"{name}: cannot be read ({error.strerror or error})") from None
    if len(raw) > MAX_BATCH_BYTES:
        raise CommandError(f"{name}: larger than {MAX_BATCH_BYTES} bytes; split it")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        raise CommandError(f"{name}:{row}: not UTF-8; save the file in that encoding") from None


def _bounded(batch: Path) -> bytes:
    with batch.open("rb") as file:
        return file.read(MAX_BATCH_BYTES + 1)
