"""From the journal into the Redis stream, in order and exactly once per store (design: §6-§8).

Only what is on disk here is published, so that a call never leads to two different records. Nothing is queued: after an error
the records are read from the journal again, from behind the last confirmed one.

A record is appended by a script that compares its number with the node's mark, a hash at `mark_key`, and moves the mark with
it: a batch that is sent again after a lost reply changes nothing. The mark also names the run of the node that wrote it:

- a command of an earlier run that reaches the store late (it was stopped, and its socket still held the command) is refused;
- a mark above every number that this journal has given (the journal was lost or is an old copy) hides none of its records;
- a mark below what was sent but not confirmed (the store was emptied or fell back) makes us send it again.

In a Cluster both keys must be in one slot: a key with `{...}` in it is placed by what the braces hold. A stream's key that has
braces keeps them in its mark's key, any other is itself put into braces.

`stream_max` trims from the old end, whether or not anyone has read it; trimming behind all consumer groups comes later.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from cdr.journal import JournalError
from cdr.wire import Link, Script, name_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from cdr.journal import Batch, Entry, Journal

__all__ = ["Publisher", "PublisherStats", "mark_key"]

TIMEOUT_S = 5.0  # of one command; nobody waits for it but the records
BARRIER_MS = 1500  # longer than the second within which appendfsync everysec syncs
BARRIER_BATCHES = 20  # batches sent between two barriers while there is a backlog
BATCH_BYTES = 1 << 20
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LINGER_S = 0.05  # records are gathered for so long: one at a time costs ten times the processor time
LOOK_S = 1.0  # how often the journal is looked at without being woken
INLINE_BYTES = 64 * 1024  # so much is read faster than a thread is asked to

# Returns {appended, mark}; {-1, run} when a later run has written the mark; {-2, mark} when the store has lost what was sent.
SCRIPT = Script("""
local mark = redis.call('HMGET', KEYS[2], 'seq', 'run', 'token')
local last, run = tonumber(mark[1] or '0'), tonumber(mark[2] or '0')
local node, my_run, token = ARGV[1], tonumber(ARGV[2]), ARGV[3]
if run > my_run or (run == my_run and mark[3] and mark[3] ~= token) then
  return {-1, run}
end
if mark[3] ~= token then
  last = math.min(last, tonumber(ARGV[4]))
end
if last < tonumber(ARGV[5]) then
  return {-2, last}
end
local limit, added, failed = tonumber(ARGV[6]), 0, nil
for i = 7, #ARGV, 5 do
  local seq = tonumber(ARGV[i])
  if seq > last then
    local fields = {'id', ARGV[i + 1], 'v', ARGV[i + 2], 'type', ARGV[i + 3], 'node', node, 'seq', ARGV[i], 'd', ARGV[i + 4]}
    local reply
    if limit > 0 then
      reply = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', limit, '*', unpack(fields))
    else
      reply = redis.pcall('XADD', KEYS[1], '*', unpack(fields))
    end
    if type(reply) == 'table' and reply.err then
      failed = reply
      break
    end
    last = seq
    added = added + 1
  end
end
redis.call('HSET', KEYS[2], 'seq', string.format('%d', last), 'run', string.format('%d', my_run), 'token', token)
return failed or {added, last}
""")


def mark_key(stream: str, node: str) -> str:
    """The key of a node's mark, in the stream's slot. Raises ValueError for braces that are no hash tag."""
    start = stream.find("{")
    if start >= 0 and stream.find("}", start) > start + 1:
        return f"{stream}:mark:{node}"
    if "{" in stream or "}" in stream:
        raise ValueError(f"key of the stream has braces that are no hash tag: {stream!r:.80}")
    return f"sp:{{{stream}}}:mark:{node}"


class PublisherStats(msgspec.Struct, frozen=True):
    """What the metrics show."""

    state: str  # "starting" until the first record left, "up", or why not: away, slow, readonly, oom, loading, ..., journal
    reason: str
    backlog: int  # records that are not confirmed
    behind_ms: int  # for how long there has been a backlog
    published: int  # appended by us
    repeated: int  # sent though they were there
    resent: int  # times that the store had lost what was sent
    errors: dict[str, int]
    barrier: bool  # whether the store says when it has written to its disk


class Publisher:
    """Moves final records. `run` is the task; `wake` tells it that there may be work."""

    def __init__(
        self,
        client: Redis,
        journal: Journal,
        *,
        stream: str,
        node: str,
        batch: int = 500,
        maxlen: int = 0,
        on_state: Callable[[str, str], None] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`journal` has been recovered. `on_state` is told every change of the state with its reason. Raises ValueError."""
        self._journal = journal
        self._link = Link(client, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._keys = (stream, mark_key(stream, node))
        self._node = node
        self._batch = max(1, batch)
        self._maxlen = max(0, maxlen)
        self._on_state = on_state
        self._work = asyncio.Event()
        self._idle = asyncio.Condition()
        self._run_number = 1
        self._token = secrets.token_hex(8)
        self._sent = self._position = self._safe_position = 0
        self._state, self._reason = "starting", ""
        self._barrier = True
        self._claimed = False
        self._published = self._repeated = self._resent = 0
        self._errors: Counter[str] = Counter()
        self._behind_since: float | None = None

    def wake(self) -> None:
        """There may be a new record. Cheap; may be called after every append."""
        self._work.set()

    async def run(self) -> None:
        """Publish until cancelled. Raises nothing of the store's or the journal's: these are states."""
        self._safe_position = self._journal.position_of(self._journal.confirmed_seq + 1)
        self._rewind()
        pause = FIRST_PAUSE_S
        try:
            while True:
                try:
                    self._work.clear()
                    await self._drain()
                except (RedisError, OSError, JournalError) as error:
                    await self._failed(error)
                    await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                else:
                    pause = FIRST_PAUSE_S
                    await self._wait_for_work()
        finally:
            await self._link.drop()

    async def flush(self, timeout_s: float) -> bool:
        """Wait until everything is confirmed, as before a shutdown; False when that did not happen in time."""
        self.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._idle:
                await self._idle.wait_for(lambda: self.backlog == 0)
        return self.backlog == 0

    @property
    def backlog(self) -> int:
        """Records that are not confirmed."""
        return self._journal.last_seq - self._journal.confirmed_seq

    @property
    def stats(self) -> PublisherStats:
        since = self._behind_since
        return PublisherStats(
            state=self._state,
            reason=self._reason,
            backlog=self.backlog,
            behind_ms=0 if since is None or not self.backlog else int(1000 * (time.monotonic() - since)),
            published=self._published,
            repeated=self._repeated,
            resent=self._resent,
            errors=dict(self._errors),
            barrier=self._barrier,
        )

    async def _wait_for_work(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):  # Not wait_for, which before Python 3.12 may swallow a cancellation.
                await self._work.wait()
        if self.backlog < self._batch:
            await asyncio.sleep(LINGER_S)

    async def _drain(self) -> None:
        """Send everything that is on disk and have it confirmed."""
        if self.backlog and self._behind_since is None:
            self._behind_since = time.monotonic()
        batches = 0
        while self._sent < self._journal.last_seq:
            batch = await self._read(await self._readable())
            self._position = batch.position
            if not batch.entries:
                break
            if await self._send(batch.entries):
                batches += 1
            if batches >= BARRIER_BATCHES:
                batches = 0
                await self._confirm()
        await self._confirm()

    async def _readable(self) -> int:
        """The position up to which records may leave: what is on disk, or all of it when the disk refuses."""
        position = self._journal.position
        try:
            await self._journal.wait_synced(position)
        except JournalError:
            return position  # Counted by the journal. With a failing disk here, the stream is the safer place.
        return self._journal.synced

    async def _read(self, end: int) -> Batch:
        start, seq = self._position, self._sent + 1
        if end - start <= INLINE_BYTES:
            return self._journal.read(start, seq=seq, end=end, count=self._batch, size=BATCH_BYTES)
        return await asyncio.to_thread(self._journal.read, start, seq=seq, end=end, count=self._batch, size=BATCH_BYTES)

    async def _send(self, entries: list[Entry]) -> bool:
        """Have the script append the entries; False when the store lost what was sent before and we start over."""
        confirmed = self._journal.confirmed_seq
        expected = self._sent if self._sent > confirmed else 0
        while True:
            head = (self._node, self._run_number, self._token, self._journal.recovered_seq, expected, self._maxlen)
            body = [part for entry in entries for part in (entry.seq, entry.id, entry.schema, entry.type, entry.record)]
            added, mark = await self._evaluate(*head, *body)
            if added == -1:
                if self._claimed:
                    self._errors["contended"] += 1  # Another process publishes under our node id.
                self._run_number = mark + 1
            elif added == -2:
                self._resent += 1
                self._rewind()
                return False
            else:
                break
        self._claimed = True
        self._published += added
        self._repeated += len(entries) - added
        self._sent = entries[-1].seq
        return True

    async def _evaluate(self, *arguments: str | int | bytes) -> tuple[int, int]:
        return _two(await SCRIPT.run(self._link, self._keys, *arguments))

    async def _confirm(self) -> None:
        """Wait until the store has what was sent on its disk, where it can tell, and let the journal know."""
        if self._sent > self._journal.confirmed_seq:
            await self._wait_for_disk()
            self._journal.confirm(self._sent)
            self._safe_position = self._position
        if self._claimed:
            self._enter("up", "")
        if not self.backlog:
            self._behind_since = None
            async with self._idle:
                self._idle.notify_all()

    async def _wait_for_disk(self) -> None:
        """WAITAOF (Redis 7.2, Valkey). A store that does not know it or keeps no append-only file must be safe by itself."""
        try:
            reply = await self._link.call("WAITAOF", 1, 0, BARRIER_MS, timeout_s=self._timeout_s + BARRIER_MS / 1000)
        except ResponseError as error:
            if "unknown command" not in str(error) and "appendonly is disabled" not in str(error):
                raise
            self._barrier = False
            return
        self._barrier = True
        if _two(reply)[0] < 1:
            raise TimeoutError("the store did not write to its disk in time")

    def _rewind(self) -> None:
        self._sent, self._position = self._journal.confirmed_seq, self._safe_position

    async def _failed(self, error: Exception) -> None:
        name = "journal" if isinstance(error, JournalError) else name_of(error)
        self._errors[name] += 1
        self._enter(name, str(error) or type(error).__name__)
        await self._link.drop()
        self._rewind()

    def _enter(self, state: str, reason: str) -> None:
        changed = state != self._state
        self._state, self._reason = state, reason
        if changed and self._on_state is not None:
            self._on_state(state, reason)


def _two(reply: object) -> tuple[int, int]:
    """A reply that has to be two integers. Raises InvalidResponse for anything else, such as what a proxy makes of it."""
    if isinstance(reply, list) and len(reply) == 2 and all(isinstance(part, int) for part in reply):
        return reply[0], reply[1]
    raise InvalidResponse(f"not two integers: {reply!r:.80}")
