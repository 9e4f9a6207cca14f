"""From the journal into the Redis stream, in order and exactly once per store (design: §6-§8).

Only what is on disk here is published, so that a call never leads to two different records. Nothing is queued: after an error
the store is asked which records it has, and the journal is read again from there. What the scripts do, and what the node's mark
in the store is for, is in `stream`.

A record is *published* when it is in the stream and the store has it on its disk, where it can tell. It is *confirmed*, and the
journal may forget it, when every sink has acknowledged it; a sink is a consumer group that is named in the configuration.
Without sinks it is confirmed as soon as it is published. While there are sinks, the store is looked at every second: how far
they are, and whether it still has what was published. If not, what is not confirmed is published again.

Start and interim records of live calls go the same way without the journal: they are made from its facts when they are due, and
one that does not reach the store is made again. They may be there twice; whoever reads upserts by id, the final record last.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from cdr import assemble, codec, steps
from cdr.facts import Admit, Alive, Answer, End
from cdr.interims import Due, Interims
from cdr.journal import JournalError
from cdr.reading import Entry
from cdr.stats import roll_up
from cdr.stream import TRIM_ENTRIES, Stream
from cdr.wire import Link, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from redis.asyncio import Redis

    from cdr.facts import Fact
    from cdr.groups import EntryId
    from cdr.journal import Batch, Journal

__all__ = ["Publisher", "PublisherStats"]

TIMEOUT_S = 5.0  # of one command; nobody waits for it but the records
BARRIER_MS = 1500  # longer than the second within which appendfsync everysec syncs
BARRIER_RECORDS = 10_000  # sent between two barriers while there is a backlog
BATCH_BYTES = 1 << 20
LIVE_BATCH = 50  # start and interim records sent in one go
MADE_AT_ONCE = 8  # of them made in one go: 0.5 ms in which the event loop does nothing else
MAX_FRESH = 2000  # calls whose facts are kept until their start record is made: those of a few seconds, and what rings
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
COUNTED_AT_ONCE = 100  # records counted in one go: 2 ms in which the event loop does nothing else
LINGER_S = 0.1  # records are gathered for so long: one at a time costs ten times the processor time
LOOK_S = 1.0  # how often the journal is looked at without being woken, and the store for what the sinks acknowledged
TRIM_S = 10.0  # how often the store is looked at where there are no sinks
MAX_POINTS = 1024  # remembered places of the stream that are not acknowledged; beyond it every second one is forgotten


class PublisherStats(msgspec.Struct, frozen=True):
    """What the metrics show."""

    state: str  # "starting" until the store was reached, "up", or why not: away, slow, readonly, oom, loading, ..., journal
    reason: str
    backlog: int  # records that are not published
    behind_ms: int  # for how long there has been a backlog
    unconfirmed: int  # records that the journal keeps because they are not confirmed
    unconfirmed_ms: int  # how long ago the oldest of them was published that a sink has not acknowledged
    sinks_missing: bool  # a configured sink has no group in the stream: nothing is confirmed
    published: int  # appended by us
    resent: int  # times that the store had lost what was sent
    interims: int  # start and interim records appended
    facts_forgotten: int  # calls whose start record was to be made of the journal, as there were more than MAX_FRESH
    live: int  # calls that have interim records
    entries: int  # in the stream when it was last looked at
    trimmed: int  # removed by us
    errors: dict[str, int]
    barrier: bool  # whether the store says when it has written to its disk


class _Point(NamedTuple):
    """All records up to `seq` stand in the stream at or before `entry`, since `at_s` on the monotonic clock."""

    seq: int
    entry: EntryId
    at_s: float


class Publisher:
    """Moves final records. `run` is the task; `appended` and `ended` tell it what happens to calls."""

    def __init__(
        self,
        client: Redis,
        journal: Journal,
        *,
        stream: str,
        node: str,
        batch: int = 100,
        keep: int = 0,
        sinks: Sequence[str] = (),
        interim_s: float = 0,
        boot: str = "",
        on_state: Callable[[str, str], None] | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`journal` has been recovered. `keep` entries stay in the stream at least, older ones go when every group has
        acknowledged them; 0 keeps all. `sinks` are the groups that confirm records. `interim_s` is the time between two interim
        records of a call, 0 for none. `boot` names the run of the machine's clock, as in Admit. `on_state` is told every change
        of the state with its reason. Raises ValueError for a stream's key with braces that are no hash tag."""
        self._journal = journal
        self._link = Link(client, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._key = stream
        self._stream = Stream(self._link, stream, node, token=secrets.token_hex(8))
        self._batch = max(1, batch)
        self._keep = max(0, keep)
        self._sinks = tuple(sinks)
        self._interims = Interims(interim_s)
        # What start records are made of, from the admission on; of calls that are not in here the journal is read.
        self._fresh: dict[str, tuple[Admit, Answer | None]] = {}
        self._boot = boot
        self._on_state = on_state
        self._work = asyncio.Event()
        self._idle = asyncio.Condition()
        self._sent = self._durable = journal.confirmed_seq
        self._position = 0
        self._points: list[_Point] = []
        self._state, self._reason = "starting", ""
        self._barrier = True
        self._claimed = self._sinks_missing = False
        self._looked_at = float("-inf")  # -inf: the store has to be looked at before anything else
        self._published = self._resent = self._interims_sent = self._entries = self._trimmed = self._facts_forgotten = 0
        self._published_at_look = 0
        self._errors: Counter[str] = Counter()
        self._behind_since: float | None = None

    def wake(self) -> None:
        """There may be a new record. Cheap; may be called after every append."""
        self._work.set()

    def appended(self, fact: Fact) -> None:
        """The journal has taken the fact. Cheap."""
        if isinstance(fact, End):
            self.ended(fact.record.id)
            self._work.set()
        elif isinstance(fact, Answer):
            self._interims.answered(fact.id, time.monotonic())
            if (fresh := self._fresh.get(fact.id)) is not None:
                self._fresh[fact.id] = fresh[0], msgspec.structs.replace(fact, dialogs=())
            self._work.set()
        elif isinstance(fact, Alive):
            self._fresh.pop(fact.id, None)
        elif isinstance(fact, Admit) and self._interims.wanted:
            self._fresh[fact.record.id] = fact, None
            if len(self._fresh) > MAX_FRESH:
                del self._fresh[next(iter(self._fresh))]
                self._facts_forgotten += 1

    def ended(self, call: str) -> None:
        """The call is over, though the journal may not have taken its END yet: it has no interim record any more."""
        self._interims.ended(call)
        self._fresh.pop(call, None)

    def take_up(self, unfinished: Iterable[tuple[Admit, Answer | None, Alive | None]]) -> None:
        """Calls of before a restart have interim records in their rhythm, those that go on being `ended` in time."""
        now, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        for admit, answer, _ in unfinished:
            if answer is not None:
                self._interims.resumed(admit.record.id, now, since_answer_s=(now_ms - answer.at_ms) / 1000)

    async def run(self) -> None:
        """Publish until cancelled. Raises nothing of the store's or the journal's: these are states."""
        self._position = self._journal.position_of(self._sent + 1)
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
        """Wait until everything is published, as before a shutdown; False when that did not happen in time."""
        self.wake()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._idle:
                await self._idle.wait_for(lambda: self.backlog == 0)
        return self.backlog == 0

    @property
    def backlog(self) -> int:
        """Records that are not published."""
        return self._journal.last_seq - self._durable

    @property
    def stats(self) -> PublisherStats:
        since, now = self._behind_since, time.monotonic()
        return PublisherStats(
            state=self._state,
            reason=self._reason,
            backlog=self.backlog,
            behind_ms=0 if since is None or not self.backlog else int(1000 * (now - since)),
            unconfirmed=self._journal.last_seq - self._journal.confirmed_seq,
            unconfirmed_ms=int(1000 * (now - self._points[0].at_s)) if self._points else 0,
            sinks_missing=self._sinks_missing,
            published=self._published,
            resent=self._resent,
            interims=self._interims_sent,
            facts_forgotten=self._facts_forgotten,
            live=len(self._interims),
            entries=self._entries,
            trimmed=self._trimmed,
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
        """Send everything that is on disk, see that the store has it on its own, and what the sinks have."""
        self._note_backlog()
        await self._look_if_due()
        self._note_backlog()
        unsafe = 0
        while self._sent < self._journal.last_seq:
            end = await self._readable()
            began = time.monotonic()
            batch = self._read(end)
            steps.at("publisher.read")
            if not batch.entries:
                if batch.position == self._position:
                    break
                self._position = batch.position
                continue
            if len(batch.entries) >= self._batch:
                await asyncio.sleep(time.monotonic() - began)  # A backlog leaves half of the time to calls.
            if await self._send(batch):
                unsafe += len(batch.entries)
            if unsafe >= BARRIER_RECORDS:
                unsafe = 0
                await self._make_durable()
                await self._send_interims()
                await self._look_if_due()
            if batch.position >= end:
                self._work.set()  # What has come since is gathered first.
                break
        await self._send_interims()
        await self._make_durable()

    def _note_backlog(self) -> None:
        if self.backlog and self._behind_since is None:
            self._behind_since = time.monotonic()

    async def _look_if_due(self) -> None:
        every = LOOK_S if self._sinks else TRIM_S if self._keep else float("inf")
        if time.monotonic() - self._looked_at >= every or self._looked_at == float("-inf"):
            await self._look()

    async def _look(self) -> None:
        """Go by what the store has: send again what it lost, leave out what is there, confirm what the sinks acknowledged."""
        await self._count()
        while True:
            seen = await self._stream.look(recovered=self._journal.recovered_seq, keep=self._keep, sinks=self._sinks)
            if seen.seq >= 0:
                break
            self._give_way(seen.run)
        claimed, self._claimed, self._looked_at = self._claimed, True, time.monotonic()
        self._published_at_look = self._published
        self._entries = seen.entries
        self._trimmed += seen.trimmed
        confirmed = self._journal.confirmed_seq
        sent = max(confirmed, min(seen.seq, self._journal.last_seq))
        if sent < self._sent:
            self._resent += 1
            self._points.clear()
        if sent != self._sent:
            self._published += max(0, sent - self._sent) if claimed else 0  # Their append was not answered.
            self._sent, self._position = sent, self._journal.position_of(sent + 1)
        self._durable = min(max(self._durable, confirmed), sent)
        self._remember(sent, seen.entry)
        self._sinks_missing = bool(self._sinks) and seen.acknowledged is None
        steps.at("publisher.looked")
        if self._sinks and seen.acknowledged is not None:
            self._acknowledged(seen.acknowledged)
        self._enter("up", "")

    async def _count(self) -> None:
        """Have the daily figures count what is about to be trimmed; what they have not counted is not trimmed."""
        if not self._keep or self._entries + self._published - self._published_at_look <= self._keep:
            return
        try:
            await roll_up(self._link, self._key, most=TRIM_ENTRIES, at_once=COUNTED_AT_ONCE)
        except ResponseError:
            self._errors["figures"] += 1  # Records come first: the stream grows until it can be done.

    def _acknowledged(self, first: EntryId) -> None:
        """The sinks have everything before the entry `first`."""
        seq = 0
        while self._points and self._points[0].entry < first:
            seq = self._points.pop(0).seq
        if seq:
            self._journal.confirm(seq)
            steps.at("publisher.acknowledged")

    def _remember(self, seq: int, entry: EntryId | None) -> None:
        """Where the record `seq` stands, to know it when a sink has come so far."""
        if (
            not self._sinks
            or entry is None
            or seq <= max(self._journal.confirmed_seq, self._points[-1].seq if self._points else 0)
        ):
            return
        self._points.append(_Point(seq, entry, time.monotonic()))
        if len(self._points) > MAX_POINTS:
            self._points = self._points[::2]  # The last one stays; what lies between two is confirmed with the later one.

    async def _readable(self) -> int:
        """The position up to which records may leave: what is on disk, or all of it when the disk refuses."""
        if self._position < self._journal.synced:
            return self._journal.synced  # A backlog does not wait for the latest call.
        position = self._journal.position
        try:
            await self._journal.wait_synced(position)
        except JournalError:
            return position  # Counted by the journal. With a failing disk here, the stream is the safer place.
        return self._journal.synced

    def _read(self, end: int) -> Batch:
        """The next batch, mostly out of the kernel's memory. Not in a thread: for as long as one computes, each of the event
        loop's system calls waits for the interpreter's lock behind it."""
        return self._journal.read(self._position, seq=self._sent + 1, end=end, count=self._batch, size=BATCH_BYTES)

    async def _send(self, batch: Batch) -> bool:
        """Have the script append the entries; False when the store lost what was sent before and we start over."""
        confirmed = self._journal.confirmed_seq
        expected = self._sent if self._sent > confirmed else 0
        while True:
            steps.at("publisher.sending")
            mark = await self._stream.append(batch.entries, recovered=self._journal.recovered_seq, expected=expected)
            steps.at("publisher.sent")
            if mark.added == -1:
                self._give_way(mark.seq)
            elif mark.added == -2:
                await self._look()
                return False
            else:
                break
        self._published += mark.added
        self._sent, self._position = batch.entries[-1].seq, batch.position
        self._remember(self._sent, mark.entry)
        return True

    async def _send_interims(self) -> None:
        """The start and interim records that are due, made as they leave."""
        while due := self._interims.due(time.monotonic(), LIVE_BATCH):
            highest = self._journal.last_seq
            entries: list[Entry] = []
            for at, one in enumerate(due):
                if at and at % MADE_AT_ONCE == 0:
                    await asyncio.sleep(0)
                if (entry := self._interim(one)) is not None:
                    entries.append(entry)
            if entries:
                steps.at("publisher.interims_sending")
                confirmed = self._journal.confirmed_seq
                expected = self._sent if self._sent > confirmed else 0
                mark = await self._stream.append(
                    entries, recovered=self._journal.recovered_seq, expected=expected, highest=highest
                )
                steps.at("publisher.interims_sent")
                if mark.added < 0:
                    self._looked_at = float("-inf")  # The store is looked at first; what was due stays so.
                    self.wake()
                    return
                self._interims_sent += mark.added
            self._interims.done(due, time.monotonic())
            for one in due:
                self._fresh.pop(one.call, None)

    def _interim(self, due: Due) -> Entry | None:
        """The record of a live call as of now; None when the journal has not what it takes."""
        try:
            facts = self._facts_of(due.call)
        except JournalError:
            self._errors["interim"] += 1
            return None
        if facts is None or facts[1] is None:
            self._interims.ended(due.call)  # The disk has not taken its answer, or had it not before the call was over.
            return None
        admit, answer, alive = facts[0], facts[1], facts[2]
        after_ms = max(answer.after_ms, 0 if alive is None else alive.after_ms)
        if due.type == "interim" and self._boot and admit.boot == self._boot:
            after_ms = max(after_ms, time.monotonic_ns() // 1_000_000 - admit.mono_ms)
        record = assemble.running(admit.record, answer, alive, kind=due.type, after_ms=after_ms)
        return Entry(0, record.id, record.schema, record.type, codec.encode(record))  # It came from bytes: it can be encoded.

    def _facts_of(self, call: str) -> tuple[Admit, Answer | None, Alive | None] | None:
        fresh = self._fresh.get(call)
        return self._journal.facts_of(call) if fresh is None or fresh[1] is None else (*fresh, None)

    async def _make_durable(self) -> None:
        """Wait until the store has what was sent on its disk, where it can tell; without sinks that confirms it."""
        if self._sent > self._durable:
            sent = self._sent
            await self._wait_for_disk()
            steps.at("publisher.durable")
            self._durable = sent
            if not self._sinks:
                self._journal.confirm(sent)
                steps.at("publisher.confirmed")
        if self._claimed:
            self._enter("up", "")
        if not self.backlog:
            self._behind_since = None
            async with self._idle:
                self._idle.notify_all()

    async def _wait_for_disk(self) -> None:
        """WAITAOF (Redis 7.2, Valkey). A store that does not know it or keeps no append-only file must be safe by itself.

        It waits for what this connection wrote: each connection of ours begins with a look, which writes the mark behind all
        that was sent before.
        """
        try:
            reply = await self._link.call("WAITAOF", 1, 0, BARRIER_MS, timeout_s=self._timeout_s + BARRIER_MS / 1000)
        except ResponseError as error:
            if "unknown command" not in str(error) and "appendonly is disabled" not in str(error):
                raise
            self._barrier = False
            return
        self._barrier = True
        if not (isinstance(reply, list) and len(reply) == 2 and all(isinstance(part, int) for part in reply)):
            raise InvalidResponse(f"not two integers: {reply!r:.80}")
        if reply[0] < 1:
            raise TimeoutError("the store did not write to its disk in time")

    def _give_way(self, run: int) -> None:
        """A later run has written the mark: ours is the next one."""
        if self._claimed:
            self._errors["contended"] += 1  # Another process publishes under our node id.
        self._stream.run = run + 1

    async def _failed(self, error: Exception) -> None:
        name = "journal" if isinstance(error, JournalError) else name_of(error)
        self._errors[name] += 1
        self._enter(name, str(error) or type(error).__name__)
        self._looked_at = float("-inf")
        await self._link.drop()

    def _enter(self, state: str, reason: str) -> None:
        changed = state != self._state
        self._state, self._reason = state, reason
        if changed and self._on_state is not None:
            self._on_state(state, reason)
