"""Records for billing: every final record reaches the caller's own database at least once, and by its id exactly once.

    from cdr.consumer import Delivery, RefusedError, consume

    def write(batch: list[Delivery]) -> None: ...          # returns once all of it is durable, else raises

    consume("redis://localhost", write, group="billing")    # until SIGTERM

What is promised: an entry is acknowledged after `write` has returned, never before. A consumer that dies between the two gives
the same records again, under the same ids: whoever upserts by `record.id`, as `supersedes` says, has each call once. Several
consumers of one group share the work; what a dead one had is taken over after `idle_s`. `write` may raise

- RefusedError, when records are at fault: each is tried alone, and the refused ones go to the dead-letter stream (`cdr.dead`);
- anything else, when the database is: the batch is tried again until it succeeds, and nothing is acknowledged. A single
  record that fails while others are taken is set aside, tried again after others, and in the end becomes a dead letter.

Entries that are no record, and those with which consumers died again and again while others were taken, are dead letters too.
An outage makes none: tries count only while another record was taken since the last one. Nothing is left out in silence:
`on_event` hears of each.

A store in any state is waited for. A group is created at the beginning of the stream, and again after a flush. Memory is
bounded by `batch` records. `Consumer` is the asynchronous way; `follow=False` ends when nothing is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import random
import secrets
import signal
import socket
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from cdr import dead, steps
from cdr.entries import ADDRESSEE, Fields, Poison, entry_of, pairs, pairs_of_streams
from cdr.facts import Record
from cdr.wire import Link, name_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

    Write = Callable[[list["Delivery"]], None] | Callable[[list["Delivery"]], Awaitable[None]]
    OnEvent = Callable[[str, str], None]

__all__ = ["Consumer", "Delivery", "Poison", "Record", "RefusedError", "consume", "entry_of", "latest", "supersedes"]

STREAM = "sp:cdr"
BATCH = 200
IDLE_S = 60.0  # without a sign of life for so long, a consumer counts as dead
MAX_DELIVERIES = 10
SUSPECT = 3  # an entry given out so often without success comes alone
MAX_SUSPECTS = 1000  # ids in memory; further ones are found again later
BLOCK_MS = 2000
TIMEOUT_S = 5.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
ALONE = 3  # records of a failed batch that are tried alone before the database counts as away
TYPES = {"start": 0, "interim": 1, "final": 2}

# Consumers without anything pending are forgotten: the own one, and those that were not seen for a day. One script, because
# a consumer's pending entries would go with it.
TIDY = """
local gone = 0
for _, found in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local about = {}
  for i = 1, #found, 2 do about[found[i]] = found[i + 1] end
  if about.pending == 0 and (about.name == ARGV[2] or about.idle > 86400000) then
    gone = gone + 1
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about.name)
  end
end
return gone
"""


class RefusedError(Exception):
    """The record, not the database, is why it cannot be written; the text says why and stands in the dead letter."""


class Delivery(NamedTuple):
    """A record as it was given out. `data` are its bytes in the stream, `deliveries` counts this time too."""

    record: Record
    entry_id: str
    data: bytes
    deliveries: int


def supersedes(new: Record, old: Record) -> bool:
    """Whether `new` replaces `old` of the same id: a final one anything but a final one, else the one that knows more."""
    if old.type == "final":
        return False
    return (TYPES[new.type], new.duration_ms) >= (TYPES[old.type], old.duration_ms)


def latest(records: Iterable[Record]) -> list[Record]:
    """One record for each id, the one that supersedes the others."""
    found: dict[str, Record] = {}
    for record in records:
        if record.id not in found or supersedes(record, found[record.id]):
            found[record.id] = record
    return list(found.values())


class Consumer:
    """One member of a group. `run` does everything; `batches`, `acknowledge` and `reject` are for other orders of work."""

    def __init__(
        self,
        client: Redis,
        *,
        group: str,
        stream: str = STREAM,
        name: str = "",
        batch: int = BATCH,
        idle_s: float = IDLE_S,
        max_deliveries: int = MAX_DELIVERIES,
        dead_limit: int = dead.LIMIT,
        patience_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        """A `name` must be that of one running consumer only; what it left unacknowledged earlier comes first. With
        `patience_s` a store that is away for longer raises; without, it is waited for. Raises ValueError for an empty group."""
        if not group:
            raise ValueError("a consumer group needs a name")
        self.group, self.stream = group, stream
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.counts: Counter[str] = Counter()  # delivered, acknowledged, dead, full, lost, and store errors by name
        self._link = Link(client, timeout_s=TIMEOUT_S)
        self._batch = max(1, batch)
        self._idle_ms = max(1, round(1000 * idle_s))
        self._max_deliveries = max(1, max_deliveries)
        self._dead_limit = dead_limit
        self._patience_s = patience_s
        self._on_event = on_event
        self._reached = False
        self._stopping = asyncio.Event()
        self._own = True  # what this name was given earlier is still to be looked at
        self._cursor, self._look_at = "-", 0.0
        self._last_read = ""  # id of the newest entry that was read for the first time
        self._pause_s = FIRST_PAUSE_S  # behind a `write` that failed
        self._suspects: deque[tuple[bytes, int]] = deque()  # id, least idle time for a claim
        self._reasons: dict[bytes, str] = {}  # why a suspect failed here
        self._proven = False  # whether anything was taken since the last suspect

    async def __aenter__(self) -> Consumer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def stop(self) -> None:
        """Have `run` and `batches` end after the batch in hand."""
        self._stopping.set()

    async def close(self) -> None:
        """Leave the group, unless something given out is unacknowledged, and give the connection back."""
        with contextlib.suppress(RedisError, OSError):
            await self._link.call("EVAL", TIDY, 1, self.stream, self.group, self.name)
        await self._link.drop()

    async def run(self, write: Write, *, follow: bool = True) -> None:
        """Have `write` take every batch, and acknowledge it then, until `stop`, or with `follow` False until nothing is left.

        A `write` that is no coroutine function runs in a thread, always the same one. Raises RedisError for a store that
        refuses for good (see `_forever`), and with `patience_s` for one that stays away.
        """
        with ThreadPoolExecutor(1, "cdr-write") as thread:
            async for batch in self.batches(follow=follow):
                await self._deliver(write, batch, thread)

    async def batches(self, *, follow: bool = True) -> AsyncIterator[list[Delivery]]:
        """Records that nobody of the group has acknowledged; what is not acknowledged comes again after `idle_s`."""
        await self._create_group()
        await self._call("EVAL", TIDY, 1, self.stream, self.group, "")
        while not self._stopping.is_set():
            batch, more = await self._next(BLOCK_MS if follow else 0)
            if batch:
                self.counts["delivered"] += len(batch)
                yield batch
            elif not more and not follow:
                return

    async def kept(self) -> AsyncIterator[list[Delivery]]:
        """What this name was given earlier and did not acknowledge, and nothing else."""
        await self._create_group()
        while self._own or self._suspects:
            batch = await (self._look() if self._own else self._suspect())
            if batch:
                yield batch

    async def acknowledge(self, batch: Iterable[Delivery]) -> None:
        """The records are durable where the caller keeps them."""
        ids = [one.entry_id for one in batch]
        if not ids:
            return
        await self._call("XACK", self.stream, self.group, *ids)
        steps.at("consumer.acknowledged")
        self._proven, self._pause_s = True, FIRST_PAUSE_S
        self.counts["acknowledged"] += len(ids)
        for entry_id in ids:
            self._reasons.pop(entry_id.encode(), None)

    async def reject(self, delivery: Delivery, reason: str) -> None:
        """The record will never be taken: to the dead-letter stream with it."""
        found = pairs(await self._call("XRANGE", self.stream, delivery.entry_id, delivery.entry_id))
        fields = found[0][1] if found else _fields_of(delivery)
        await self._bury(delivery.entry_id.encode(), fields, reason, delivery.deliveries)

    async def hold(self, batch: Iterable[Delivery]) -> None:
        """Tell that the batch is being worked on, so that others do not take it over. At least once in `idle_s`."""
        ids = [one.entry_id for one in batch]
        await self._call("XCLAIM", self.stream, self.group, self.name, 0, *ids, "JUSTID")

    # Delivery to `write`

    async def _deliver(self, write: Write, batch: list[Delivery], thread: ThreadPoolExecutor) -> None:
        """Until all of the batch is acknowledged, a dead letter, or set aside; or we are stopped."""
        tries = 0
        while batch and not self._stopping.is_set():
            try:
                await self._written(write, batch, thread)
                break
            except RefusedError as error:
                if len(batch) == 1:
                    await self.reject(batch[0], f"refused: {error}")
                    break
                for one in batch:
                    await self._deliver(write, [one], thread)
                break
            except _WriteError as error:
                self._tell("write", str(error))
                tries += 1
                if len(batch) == 1 and tries >= SUSPECT:
                    self._set_aside(batch[0], str(error))  # It may be the record: let others pass, and tell.
                    batch = []
                elif len(batch) > 1:
                    batch = await self._one_by_one(write, batch, thread)
            if batch:
                await self._pause(self._pause_s)
                self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    async def _one_by_one(self, write: Write, batch: list[Delivery], thread: ThreadPoolExecutor) -> list[Delivery]:
        """What is left of a batch that failed: nothing where some of it succeeded, as the rest is set aside then. Where none
        does the database is away, and the batch is turned so that others come first next time."""
        failed: list[tuple[Delivery, str]] = []
        for number, one in enumerate(batch):
            try:
                await self._written(write, [one], thread)
            except RefusedError as error:
                await self.reject(one, f"refused: {error}")
            except _WriteError as error:
                failed.append((one, str(error)))
                if len(failed) > number and (len(failed) >= ALONE or len(failed) == len(batch)):
                    return [*batch[number + 1 :], *batch[: number + 1]]
        for one, reason in failed:
            self._set_aside(one, reason)
        return []

    async def _written(self, write: Write, batch: list[Delivery], thread: ThreadPoolExecutor) -> None:
        """Raises RefusedError or _WriteError; acknowledged when it returns."""
        writing = asyncio.ensure_future(_call_write(write, batch, thread))
        try:
            while not writing.done():
                await asyncio.wait([writing], timeout=self._idle_ms / 3000)
                if not writing.done():
                    await self.hold(batch)
            await writing
            steps.at("consumer.written")
        finally:
            if not writing.done():
                writing.cancel()
        await self.acknowledge(batch)

    def _set_aside(self, delivery: Delivery, reason: str) -> None:
        entry_id = delivery.entry_id.encode()
        if len(self._suspects) < MAX_SUSPECTS:
            self._suspects.append((entry_id, 0))
            self._reasons[entry_id] = reason
        self._tell("aside", f"{delivery.record.id}: {reason}")

    # What comes next

    async def _next(self, block_ms: int) -> tuple[list[Delivery], bool]:
        """A batch, or none, and whether there may be more without waiting."""
        if self._suspects and self._proven:
            return await self._suspect(), True
        if self._own or time.monotonic() >= self._look_at:
            return await self._look(), True
        entries = await self._read(0 if self._suspects else block_ms)
        if entries:
            steps.at("consumer.read")
            self._last_read = entries[-1][0].decode("ascii")
            return await self._opened(entries, {}), True
        return (await self._suspect(), True) if self._suspects else ([], False)

    async def _read(self, block_ms: int) -> list[tuple[bytes, Fields]]:
        """Entries that nobody of the group was given yet."""
        waiting = ("BLOCK", block_ms) if block_ms else ()
        command = ("XREADGROUP", "GROUP", self.group, self.name, "COUNT", self._batch, *waiting, "STREAMS", self.stream, ">")
        return pairs_of_streams(await self._call(*command, timeout_s=TIMEOUT_S + block_ms / 1000))

    async def _look(self) -> list[Delivery]:
        """A page of what was given out and not acknowledged: first to this name, then to consumers that seem dead."""
        least = 0 if self._own else self._idle_ms
        command = ("XPENDING", self.stream, self.group, "IDLE", least, self._cursor, "+", self._batch)
        page = await self._call(*command, *((self.name,) if self._own else ()))
        counts = {bytes(row[0]): int(row[3]) for row in page}
        if len(page) < self._batch:
            self._cursor, self._look_at = "-", 0.0 if self._own else time.monotonic() + self._idle_ms / 2000
            self._own = False
        else:
            self._cursor = "(" + bytes(page[-1][0]).decode("ascii")
        known = {entry_id for entry_id, _ in self._suspects}
        for entry_id, count in counts.items():
            if count >= SUSPECT and entry_id not in known and len(self._suspects) < MAX_SUSPECTS:
                self._suspects.append((entry_id, least))
        fresh = [entry_id for entry_id, count in counts.items() if count < SUSPECT and entry_id not in known]
        return await self._claimed(fresh, least, counts)

    async def _suspect(self) -> list[Delivery]:
        """The next entry that failed often, alone; nothing when it is a dead letter now or others have taken care of it.

        Its count grows only when something else was taken since the last one: then its database works and the entry does not.
        """
        proven, self._proven = self._proven, False
        entry_id, least = self._suspects.popleft()
        page = await self._call("XPENDING", self.stream, self.group, entry_id, entry_id, 1)
        if not page:
            self._reasons.pop(entry_id, None)
            return []
        count = int(page[0][3])
        found = await self._claimed([entry_id], least, {entry_id: count}, count + proven)
        if found and proven and count >= self._max_deliveries:
            reason = self._reasons.pop(entry_id, "its consumers died with it")
            await self.reject(found[0], f"given out {count} times without success: {reason}")
            self._proven = True
            return []
        return found

    async def _claimed(
        self, ids: list[bytes], least_ms: int, counts: dict[bytes, int], count: int | None = None
    ) -> list[Delivery]:
        """The records of pending entries, ours from now on. `count` is what the store shall have for each, else one more."""
        if not ids:
            return []
        retries = () if count is None else ("RETRYCOUNT", count)
        found = pairs(await self._call("XCLAIM", self.stream, self.group, self.name, least_ms, *ids, *retries))
        for entry_id in set(ids) - {entry_id for entry_id, _ in found}:
            if not await self._call("XRANGE", self.stream, entry_id, entry_id):
                self.counts["lost"] += 1
                reason = "trimmed from the stream before it was acknowledged"
                await self._bury(entry_id, {}, reason, counts[entry_id], gone=True)
        return await self._opened(found, counts)

    async def _opened(self, entries: list[tuple[bytes, Fields]], counts: dict[bytes, int]) -> list[Delivery]:
        """The records of entries. What is none becomes a dead letter, what is for another group is acknowledged."""
        batch: list[Delivery] = []
        foreign: list[bytes] = []
        for entry_id, fields in entries:
            if fields.get(ADDRESSEE, self.group.encode()) != self.group.encode():
                foreign.append(entry_id)
                continue
            item = entry_of(entry_id, fields)
            count = counts.get(entry_id, 0) + 1
            if isinstance(item, Poison):
                await self._bury(entry_id, fields, item.reason, count)
            else:
                batch.append(Delivery(item, entry_id.decode("ascii"), fields[b"d"], count))
        if foreign:
            await self._call("XACK", self.stream, self.group, *foreign)
        return batch

    async def _bury(self, entry_id: bytes, fields: Fields, reason: str, deliveries: int, *, gone: bool = False) -> None:
        limit = self._dead_limit
        letter = dead.Letter("", entry_id.decode("ascii", "replace"), self.group, reason, 0, deliveries, fields)
        done = await dead.bury(self._call, self.stream, letter, limit=limit, gone=gone)
        if done > 0:
            self.counts["dead"] += 1
            self._tell("dead", f"entry {entry_id.decode('ascii', 'replace')}: {reason}")
        elif done < 0:
            self.counts["full"] += 1
            self._tell("full", f"{limit} dead letters: entry {entry_id.decode('ascii', 'replace')} stays pending: {reason}")

    # The store

    async def _create_group(self) -> None:
        """At the beginning of the stream, so that nothing is missed. One that exists stays as it is."""
        try:
            await self._call("XGROUP", "CREATE", self.stream, self.group, "0", "MKSTREAM")
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _call(self, *command: Any, timeout_s: float | None = None) -> Any:
        """The reply, after as many tries as it takes. Raises RedisError or OSError as `_forever` and `patience_s` say."""
        pause, began = FIRST_PAUSE_S, time.monotonic()
        while True:
            try:
                reply = await self._link.call(*command, timeout_s=timeout_s)
            except (RedisError, OSError) as error:
                state = name_of(error)
                if isinstance(error, ResponseError) and "NOGROUP" in str(error)[:200]:
                    self._tell("group", "the store has lost the group: it is created again, at the beginning")
                    await self._create_group()
                    continue
                self.counts[state] += 1
                late = self._patience_s is not None and time.monotonic() - began > self._patience_s
                if late or self._stopping.is_set() or _forever(error, state, reached=self._reached):
                    raise
                self._tell("store", f"{state}: {error}")
                await self._link.drop()
                if not self._own:  # The reply may have brought entries that we shall not see otherwise for a while.
                    self._own, self._cursor = True, f"({self._last_read}" if self._last_read else "-"
                await self._pause(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                self._reached = True
                return reply

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds * random.uniform(0.5, 1.0))

    def _tell(self, kind: str, text: str) -> None:
        if self._on_event is not None:
            self._on_event(kind, text)


class _WriteError(Exception):
    """What `write` raised, in words."""


def consume(
    url: str,
    write: Callable[[list[Delivery]], None],
    *,
    group: str,
    follow: bool = True,
    on_event: OnEvent | None = None,
    **options: Any,
) -> None:
    """`Consumer.run` for programs without an event loop: until SIGTERM or SIGINT, or with `follow` False until nothing is left.

    `options` are those of `Consumer`. Raises as `Consumer.run`.
    """

    async def work() -> None:
        async with Redis.from_url(url) as client, Consumer(client, group=group, on_event=on_event, **options) as consumer:
            loop = asyncio.get_running_loop()
            with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread: whoever runs it there stops it
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, consumer.stop)
            try:
                await consumer.run(write, follow=follow)
            except (RedisError, OSError):
                if not consumer.stopping:  # A store that is away keeps nobody from ending.
                    raise

    asyncio.run(work())


async def _call_write(write: Write, batch: list[Delivery], thread: ThreadPoolExecutor) -> None:
    """Raises RefusedError as `write` did, and _WriteError for anything else."""
    try:
        if inspect.iscoroutinefunction(write):
            await write(batch)
        else:
            await asyncio.get_running_loop().run_in_executor(thread, write, batch)
    except RefusedError:
        raise
    except Exception as error:
        raise _WriteError(f"{type(error).__name__}: {error}") from error


def _forever(error: BaseException, state: str, *, reached: bool) -> bool:
    """Whether waiting is useless: the key holds something else, a command is unknown, or credentials never were right."""
    if state == "wrongtype" or (state == "error" and str(error).startswith(("ERR ", "BUSYGROUP"))):
        return True
    return state in ("noauth", "noperm") and not reached


def _fields_of(delivery: Delivery) -> Fields:
    """The entry again, when the stream does not have it any more."""
    record = delivery.record
    texts = {"id": record.id, "v": str(record.schema), "type": record.type, "node": record.node, "seq": str(record.seq)}
    return {**{name.encode(): value.encode() for name, value in texts.items()}, b"d": delivery.data}
