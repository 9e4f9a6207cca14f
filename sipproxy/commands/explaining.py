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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policy import explain as words
from policy import profiles, store
from policy.build import snapshot_of
from policy.parse import PolicyError
from sipproxy import policy_files
from sipproxy.commands.backend import has_store, with_store
from sipproxy.commands.output import USAGE, CommandError, Output
from sipproxy.commands.policy_data import find_line, refused
from sipproxy.config import Config, load
from sipproxy.store import keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from policy.model import Decision, Snapshot

__all__ = ["explain"]

MAX_BATCH_BYTES = 128 * 1024 * 1024


def explain(path: Path, output: Output, caller: str, dialled: str, *, batch: Path | None, at: str) -> int:
    """Explain one call, or each row of `batch`."""
    now_at_ms = _instant(at)
    try:
        if batch is not None:
            if caller or dialled:
                raise CommandError("either LINE and DIALLED, or --batch FILE.csv", code=USAGE)
            return _explain_batch(path, output, batch, now_at_ms)
        if not (caller and dialled):
            raise CommandError(
                "say which line or number calls, and what it dials: sipproxy explain V1001 09001234567", code=USAGE
            )
        return _explain_one(load(path), output, caller, dialled, now_at_ms)
    except PolicyError as error:
        raise refused(error) from None


def _instant(at: str) -> int:
    """UTC milliseconds of `at`, a local time where it names no zone; now for ""."""
    if not at:
        return time.time_ns() // 1_000_000
    try:
        return int(dt.datetime.fromisoformat(at).astimezone(dt.UTC).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise CommandError(f"--at {at[:80]!r} is no time such as 2026-01-31T08:00 or 2026-01-31T07:00Z", code=USAGE) from None


def _from_files(config: Config) -> Snapshot:
    change = policy_files.read(config)
    return snapshot_of(0, change.lines, change.accounts, profiles.load(), change.psap, change.blocks)


def _explain_one(config: Config, output: Output, caller: str, dialled: str, now_at_ms: int) -> int:
    if has_store(config):
        snapshot, used = with_store(config, lambda client: _loaded(client, caller))
        source = f"store, version {snapshot.version}"
    else:
        snapshot, used, source = _from_files(config), 0, "files named by [policy]"
    line, account = find_line(snapshot, caller)
    explanation = words.explain(snapshot, line, account, dialled, slots_used=used, now_at_ms=now_at_ms)
    output.value({**_plain(explanation.decision), "words": explanation.words, "slots_used": used, "source": source})
    output.line(f"line {line.id}, {used} of {snapshot.channels_of(line)} channels in use; policy data: {source}")
    output.line(str(explanation))
    return 0


async def _loaded(client: Redis, caller: str) -> tuple[Snapshot, int]:
    """The snapshot, and how many channels the calling line uses now, by the store's clock."""
    snapshot = await store.load(client)
    line, _ = find_line(snapshot, caller)
    seconds, micros = await client.time()
    return snapshot, int(await client.zcount(keys.slots(line.id), seconds * 1000 + micros // 1000 + 1, "+inf"))


def _plain(decision: Decision) -> dict[str, Any]:
    return {
        "verdict": str(decision.verdict),
        "rule": decision.rule,
        "reason": decision.reason,
        "status": decision.status or None,
        "cause": decision.cause or None,
        "canonical": decision.destination.canonical,
        "class": str(decision.destination.kind),
        "tariff_prefix": decision.destination.prefix,
        "asserted": decision.asserted,
        "callee": decision.callee.user if decision.callee is not None else None,
        "psap": [route.uri for route in decision.psap],
        "steps": [{"rule": rule, "said": said} for rule, said in decision.steps],
        "snapshot": decision.snapshot,
    }


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
