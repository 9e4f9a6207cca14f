"""Policy data in Redis or Valkey: read as one snapshot, changed as a whole, watched.

SHELL: the one module of this package that does I/O. The client is a `redis.asyncio` client that returns bytes. Keys: HASHes
`sp:lines`, `sp:accounts`, `sp:numbers`, `sp:blocks`, `sp:psap` (msgpack values, see `policy.codec`) and the STREAM
`sp:policy:log` with one entry per change: version, who, when, why, before and after (`policy.history`), the SHA-256 of the
previous entry, and a token of the change. The log decides: a change is planned on what was read at the log's last entry, and
one script writes it only if that still is the last entry.

Left out: Redis Cluster, which nodes and commands refuse. The six keys lie in different hash slots there, and both the script
and the reading transaction need them in one.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
from redis.exceptions import RedisError

from policy import codec, history, profiles
from policy.build import snapshot_of
from policy.change import Change, Plan, after_plan, plan
from policy.history import entry_hash
from policy.patch import Touched, Values, patched, touched_by
from policy.review import review
from policy.table import PolicyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from redis.asyncio import Redis

    from policy.history import Entry
    from policy.model import Profile, Snapshot

__all__ = [
    "LOG",
    "TABLES",
    "ConflictError",
    "NothingLostError",
    "Outcome",
    "apply",
    "entry_hash",
    "load",
    "log_of",
    "reseed",
    "submit",
    "version_in",
    "watch",
]

T = TypeVar("T")
U = TypeVar("U")

TABLES = {name: f"sp:{name}" for name in ("lines", "accounts", "numbers", "blocks", "psap")}
LOG = "sp:policy:log"
LOG_ENTRIES = 100_000  # kept at least; older changes are trimmed

ATTEMPTS = 20  # of one change against others made at the same moment
FOLLOWED = 100  # entries of the log that are followed one by one; above it everything is read
FOLLOWED_FIELDS = 5000  # that they may touch together
LOG_CHUNK = 50  # entries asked for in one command
DECODE_SLICE = 250  # values decoded before other work of the event loop has its turn: about 1 ms
BLOCK_MS = 1000
RETRY_S = (0.05, 0.5)  # first and longest wait while the store is away: a change arrives within a second of its return

# Nothing is written before everything that can fail was tried: a script is not undone half way.
_APPLY = """
for i = 1, #KEYS do
  local kind = redis.call('TYPE', KEYS[i]).ok
  if kind ~= 'none' and kind ~= (i == #KEYS and 'stream' or 'hash') then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' is a ' .. kind)
  end
end
local log = KEYS[#KEYS]
local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
if (last[1] and last[1][1] or '0-0') ~= ARGV[1] then
  return false
end
local entry = {}
local first = 4 + tonumber(ARGV[3])
for i = 4, first - 1 do
  entry[#entry + 1] = ARGV[i]
end
local id = redis.call('XADD', log, 'MAXLEN', '~', ARGV[2], '*', unpack(entry))
for i = first, #ARGV, 3 do
  local key = KEYS[tonumber(ARGV[i])]
  if ARGV[i + 2] == '' then
    redis.call('HDEL', key, ARGV[i + 1])
  else
    redis.call('HSET', key, ARGV[i + 1], ARGV[i + 2])
  end
end
return id
"""


class ConflictError(RuntimeError):
    """Others changed the policy data at the same moment, again and again."""


class _Entry(NamedTuple):
    """One entry of the log."""

    id: str
    fields: dict[str, str]

    @property
    def version(self) -> int:
        return int(self.fields.get("version", "0"))

    @property
    def base(self) -> int:
        """The version of the last `reseed` before or at this entry: what was before it does not count any more."""
        return int(self.fields.get("base") or "0")


_NONE = _Entry("0-0", {})


class NothingLostError(RuntimeError):
    """The store holds as new a version as what it was to be filled from."""


class Outcome(NamedTuple):
    """What became of a change: the version that holds it, what it changed, and what is worth a look."""

    version: int
    plan: Plan
    warnings: tuple[str, ...]


async def load(client: Redis, *, known: Mapping[str, Profile] | None = None) -> Snapshot:
    """All policy data at one moment. `known` are the profiles, by default those that ship.

    Raises RedisError, and msgspec.DecodeError when a value cannot be read.
    """
    _, snapshot = await _read(client, known if known is not None else profiles.load())
    return snapshot


async def _read(client: Redis, known: Mapping[str, Profile]) -> tuple[_Entry, Snapshot]:
    """The last log entry and the snapshot at it, from one transaction."""
    async with client.pipeline(transaction=True) as pipe:
        for name in ("lines", "accounts", "blocks", "psap"):
            pipe.hgetall(TABLES[name])
        pipe.execute_command("XREVRANGE", LOG, "+", "-", "COUNT", 1)
        raw_lines, raw_accounts, raw_blocks, raw_psap, raw_log = await pipe.execute()
    last = _last_entry(raw_log)
    lines = await _decoded(raw_lines.values(), codec.decode_line)
    accounts = await _decoded(raw_accounts.values(), codec.decode_account)
    blocks = await _decoded(raw_blocks.values(), codec.decode_block)
    psap = [route for routes in await _decoded(raw_psap.values(), codec.decode_psap) for route in routes]
    # In a thread: with tens of thousands of lines it is a tenth of a second, in which no call is to wait.
    return last, await asyncio.to_thread(snapshot_of, last.version, lines, accounts, known, psap, blocks)


async def _follow(client: Redis, last: _Entry, snapshot: Snapshot) -> tuple[_Entry, Snapshot]:
    """The last log entry and the snapshot at it, made from that at `last`: only what was touched since is read.

    Raises _BrokenHistoryError when the log does not continue `last`.
    """
    entries: list[_Entry] = []
    while len(entries) < FOLLOWED:
        start = entries[-1].id if entries else last.id
        entries += _entries(await _command(client, "XRANGE", LOG, f"({start}", "+", "COUNT", FOLLOWED))
        logged = [history.entry_of(entry.fields) for entry in entries]
        touched = touched_by(logged)
        if not entries or any(entry.base > last.version for entry in entries) or touched is None:
            break
        if broken := history.broken_links([history.entry_of(last.fields), *logged] if last.fields else logged):
            raise _BrokenHistoryError(broken[0])
        if sum(map(len, touched)) > FOLLOWED_FIELDS:
            break
        async with client.pipeline(transaction=True) as pipe:
            for name, fields in zip(Touched._fields, touched, strict=True):
                pipe.hmget(TABLES[name], fields or ("",))
            pipe.execute_command("XREVRANGE", LOG, "+", "-", "COUNT", 1)
            *values, raw_log = await pipe.execute()
        if _last_entry(raw_log) == entries[-1]:
            found = [await _by_field(*each) for each in zip(touched, values, _DECODERS, strict=True)]
            return entries[-1], await asyncio.to_thread(patched, snapshot, entries[-1].version, Values(*found))
    return await _read(client, snapshot.profiles)


async def _by_field(fields: Iterable[str], values: list[bytes | None], decode: Callable[[bytes], Any]) -> dict[str, Any]:
    return dict(zip(fields, await _decoded(values, lambda value: decode(value) if value is not None else None), strict=False))


_DECODERS = (codec.decode_line, codec.decode_account, codec.decode_psap, codec.decode_block)


async def _decoded(values: Iterable[U], decode: Callable[[U], T]) -> list[T]:
    found = []
    for index, value in enumerate(values, 1):
        found.append(decode(value))
        if index % DECODE_SLICE == 0:
            await asyncio.sleep(0)
    return found


async def _command(client: Redis, *words: str | int) -> Any:
    return await client.execute_command(*words)  # type: ignore[no-untyped-call]


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _last_entry(reply: Any) -> _Entry:
    entries = _entries(reply)
    return entries[0] if entries else _NONE


def _entries(reply: Any) -> list[_Entry]:
    """Log entries of a reply, whose fields redis-py gives as a dict or, raw, as a flat list."""
    found = []
    for key, fields in reply or ():
        pairs = fields.items() if isinstance(fields, dict) else zip(fields[::2], fields[1::2], strict=True)
        found.append(_Entry(_text(key), {_text(name): _text(value) for name, value in pairs}))
    return found


async def apply(client: Redis, change: Change, *, who: str, why: str) -> int:
    """Make `change`, whole or not at all; the version that holds it. Raises as `submit`."""
    return (await submit(client, change, who=who, why=why)).version


async def submit(
    client: Redis,
    change: Change | Callable[[Snapshot], Change],
    *,
    who: str,
    why: str,
    dry_run: bool = False,
    known: Mapping[str, Profile] | None = None,
) -> Outcome:
    """Make `change`, or what it makes of the present snapshot, whole or not at all; only look with `dry_run`.

    What changes nothing makes no version. Raises PolicyError with all faults when the change is refused, ConflictError,
    RedisError (the change may have been made when the reply was lost), msgspec.DecodeError when a kept value cannot be read.
    """
    token = uuid.uuid4().hex
    table = known if known is not None else profiles.load()
    for _ in range(ATTEMPTS):
        last, before = await _read(client, table)
        wanted = change(before) if callable(change) else change
        planned = plan(wanted, before)
        found = review(wanted, planned, before, after_plan(before, planned), time.time_ns() // 1_000_000)
        if found.faults:
            raise PolicyError(found.faults)
        if dry_run or not planned.items:
            return Outcome(before.version, planned, found.warnings)
        entry = _log_entry(last, planned, who=who, why=why, token=token)
        if done := await _written(client, last, planned, entry):
            return Outcome(done, planned, found.warnings)
    raise ConflictError(f"policy data changed {ATTEMPTS} times while this change was being made")


async def reseed(client: Redis, snapshot: Snapshot, *, who: str, why: str, dry_run: bool = False) -> Outcome:
    """Make a store that lost its policy data hold exactly what `snapshot` does, as the version after it.

    Every node follows, whatever it knew last. Raises NothingLostError when the store's version is not older than the
    snapshot's, and otherwise as `submit`; the data is not reviewed, since it was in force before.
    """
    token = uuid.uuid4().hex
    for _ in range(ATTEMPTS):
        last, before = await _read(client, snapshot.profiles)
        if last.version >= snapshot.version:
            raise NothingLostError(f"the store has version {last.version}, the snapshot {snapshot.version}: nothing was lost")
        kept = {rule.id for rule in snapshot.blocks}
        change = Change(
            lines=tuple(snapshot.lines.values()),
            accounts=tuple(snapshot.accounts.values()),
            psap=tuple(route for routes in snapshot.psap.values() for route in routes),
            blocks=snapshot.blocks,
            remove_lines=tuple(key for key in before.lines if key not in snapshot.lines),
            remove_psap=tuple(before.psap),
            remove_blocks=tuple(rule.id for rule in before.blocks if rule.id not in kept),
        )
        planned = plan(change, before, secrets=False)
        if dry_run:
            return Outcome(last.version, planned, ())
        entry = _log_entry(last, planned, who=who, why=why, token=token)
        entry["version"] = entry["base"] = str(snapshot.version + 1)
        if done := await _written(client, last, planned, entry):
            return Outcome(done, planned, ())
    raise ConflictError(f"policy data changed {ATTEMPTS} times while the store was being filled")


async def _written(client: Redis, last: _Entry, planned: Plan, entry: dict[str, str]) -> int:
    """Write a planned change if `last` still is the last entry; its version, or 0 when it is not."""
    reply = await client.eval(_APPLY, len(TABLES) + 1, *TABLES.values(), LOG, *_arguments(last, planned, entry))
    return int(entry["version"]) if reply is not None else await _version_of(client, entry["token"], after=last.id)


async def version_in(client: Redis) -> int:
    """The version that the store holds; 0 when it is empty. Raises RedisError."""
    return (await _newest(client)).version


async def _newest(client: Redis) -> _Entry:
    return _last_entry(await _command(client, "XREVRANGE", LOG, "+", "-", "COUNT", 1))


async def log_of(client: Redis, *, after: int = 0) -> list[Entry]:
    """The entries of the log from version `after` on, oldest first. Raises RedisError."""
    found: list[Entry] = []
    end = "+"
    while True:
        chunk = _entries(await _command(client, "XREVRANGE", LOG, end, "-", "COUNT", LOG_CHUNK))
        found += [history.entry_of(entry.fields) for entry in chunk]
        if len(chunk) < LOG_CHUNK or found[-1].version <= after:
            return [entry for entry in reversed(found) if entry.version >= after]
        end = f"({chunk[-1].id}"


def _log_entry(last: _Entry, planned: Plan, *, who: str, why: str, token: str) -> dict[str, str]:
    before, after = history.sides_of(planned.items)
    fields = {
        "version": str(last.version + 1),
        "format": history.FORMAT,
        "who": who[:200],
        "when": str(time.time_ns() // 1_000_000),
        "why": why[:1000],
        "before": before,
        "after": after,
        "previous": entry_hash(last.fields) if last.fields else "",
        "token": token,
    }
    return {**fields, "base": last.fields["base"]} if "base" in last.fields else fields


def _arguments(last: _Entry, planned: Plan, entry: dict[str, str]) -> list[str | bytes | int]:
    index = {name: position for position, name in enumerate(TABLES, 1)}
    arguments: list[str | bytes | int] = [last.id, LOG_ENTRIES, 2 * len(entry)]
    for name, text in entry.items():
        arguments += (name, text)
    for write in planned.writes:
        arguments += (index[write.table], write.field, write.value or b"")
    return arguments


async def _version_of(client: Redis, token: str, *, after: str) -> int:
    """The version that a change with `token` made after a log entry, or 0: its reply may have been lost and it sent twice."""
    reply = await _command(client, "XRANGE", LOG, f"({after}", "+", "COUNT", 1000)
    return next((entry.version for entry in _entries(reply) if entry.fields.get("token") == token), 0)


async def watch(
    client: Redis,
    on_snapshot: Callable[[Snapshot], None],
    *,
    known: Mapping[str, Profile] | None = None,
    on_problem: Callable[[str], None] | None = None,
    floor: int = 0,
) -> None:
    """Hand the present snapshot to `on_snapshot`, then a new one after every change, until cancelled.

    A store whose version is below `floor`, the one that is known already, has lost data, and is a problem as below.
    Changes made in quick succession may come as one snapshot. While the store is away, holds a value that cannot be read, or a
    history that does not continue the one that was read last (it was emptied, or restored from an old copy), nothing is
    handed over, so that the last snapshot stays; `on_problem` gets the reason, and "" when all is well again.
    """
    table = known if known is not None else profiles.load()
    last: _Entry | None = None
    snapshot: Snapshot | None = None
    wait, problem = RETRY_S[0], ""
    while True:
        try:
            if last is None or snapshot is None:
                await _check_floor(client, floor)
                last, snapshot = await _read(client, table)
                on_snapshot(snapshot)
            elif await _moved(client, last):
                last, snapshot = await _follow(client, last, snapshot)
                on_snapshot(snapshot)
            found = ""
        except (RedisError, OSError, msgspec.DecodeError, _BrokenHistoryError) as error:
            found = f"{type(error).__name__}: {str(error)[:200]}"
        if found != problem:
            problem = found
            if on_problem is not None:
                on_problem(problem)
        if problem:
            await asyncio.sleep(wait)
            wait = min(2 * wait, RETRY_S[1])
        else:
            wait = RETRY_S[0]


class _BrokenHistoryError(Exception):
    """The log does not continue what was read last."""


async def _moved(client: Redis, last: _Entry) -> bool:
    """Wait for a log entry after `last`; False when there was none for a while. Raises _BrokenHistoryError."""
    limit = client.connection_pool.connection_kwargs.get("socket_timeout")
    block = BLOCK_MS if not limit else max(1, min(BLOCK_MS, int(limit * 500)))
    reply = await _command(client, "XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", LOG, last.id)
    streams = list(reply.values()) if isinstance(reply, dict) else [entries for _, entries in reply or ()]
    entries = _entries(_flat(streams[0])) if streams else []
    if entries and (not last.fields or entries[0].fields.get("previous") == entry_hash(last.fields)):
        return True
    newest = await _newest(client)
    if newest == last:
        return False
    if newest.base > last.version:
        return True  # filled anew by an operator
    if entries:
        raise _BrokenHistoryError(f"version {entries[0].version} does not continue version {last.version}")
    if newest.version > last.version:
        return False  # written after the XREAD came back: the next one sees it
    raise _BrokenHistoryError(f"version {newest.version} after {last.version}: emptied or restored from an old copy")


async def _check_floor(client: Redis, floor: int) -> None:
    version = await version_in(client) if floor else 0
    if version < floor:
        raise _BrokenHistoryError(f"version {version}, and {floor} is known: emptied or restored from an old copy")


def _flat(entries: Any) -> Any:
    """redis-py nests a stream's entries in one more list under RESP3."""
    return (
        entries[0]
        if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], (list, tuple))
        else entries
    )
