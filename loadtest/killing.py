"""Calls of every kind at a steady rate while the proxy dies (kill -9) again and again and is started again at once.

It dies at random moments, also while it starts, or at each named step of journal and publisher (cdr.steps); at the steps of a
consumer or a pull the reader dies (dying_readers.py). What is owed and what is compared is in lives.py. Leaves out: several
nodes, the store in trouble (faults.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cdr
from cdr import codec
from cdr.consumer import Consumer, Delivery
from cdr.wire import cancel_all
from loadtest.agents import Answering, Router
from loadtest.dialog import LIFETIME_S
from loadtest.dying_readers import AS_USUAL, KILL_HOOK, readers_at
from loadtest.fields import AWAY, CALLED, FULL, KINDS, Kind
from loadtest.lives import Killed, Life, compare_lives, owed_but_missing, tell_ladders
from loadtest.network import Network, many_lines
from loadtest.node import PROGRAM, START_S, NodeError
from loadtest.reconcile import STREAM, live_slots, wait_until
from loadtest.ua import NoAnswerError
from sipproxy import commands

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from cdr.facts import Record
    from loadtest.dialog import Call
    from loadtest.dying_readers import Reader
    from loadtest.truth import CallTruth

__all__ = ["UNSUNK", "kill_again_and_again", "kill_at_steps", "steps_of"]

RING_S = 0.2
TALKS_S = (0.2, 1.0, 3.0)  # some calls live through several lives
ANSWER_S = 5.0  # a call that was cut has no final response from anybody: its caller gives up
EARLY_SHARE = 0.15  # of the kills: while the proxy starts
EARLY_S, LIVES_S = 0.9, (0.1, 2.0)
SETTLE_S, HANG_UP_S = 90.0, 5.0
EXPIRES_S = 3600
MAX_EVENTS = 2_000_000
CALLERS_PER_RATE = 8
CALLED_CHANNELS = 20
FIRST_CALLER = 600_000
STEP_S = 30.0  # a step that is not passed within this is not reached
TO_READ = 10  # entries in the stream for each time that a reader shall pass a step
SINK = "billing"
SETTINGS: Mapping[str, Mapping[str, object]] = {
    "log": {"level": "warning"},
    "store": {"lease_s": 15, "refresh_s": 5},  # a slot that was taken for a call that was not admitted yet ends by itself
}
STEP_CDR: Mapping[str, object] = {"segment_bytes": 65536, "interim_s": 1}
NAMED = re.compile(r'steps\.at\("((?:journal|publisher|consumer|pull)\.[a-z_]+)"')
READERS = ("consumer.", "pull.")  # steps of who reads; the node lives while they die
UNSUNK = "publisher.confirmed"  # passed where there are no sinks: confirmed is what is published
DYING = KILL_HOOK + AS_USUAL


class _Run:
    """The parties, the calls and the lives of one run."""

    def __init__(self, network: Network, found: Killed, begun_ms: int) -> None:
        self.network, self.found = network, found
        self.billed: dict[str, Record] = {}
        self.readers: list[Reader] = []
        self._begun_ms = begun_ms
        self.random = random.Random(found.seed)
        self.over = asyncio.Event()
        self.truths: list[CallTruth] = []
        self._free: asyncio.Queue[Router] = asyncio.Queue()
        self._given_up: list[Call] = []  # without a final response, or without an answer to a BYE
        network.ledger.events = deque(maxlen=MAX_EVENTS)

    async def prepare(self, users: Sequence[str]) -> None:
        network = self.network
        for kind in KINDS:
            network.trunk.answering_by[str(kind.says["canonical"])] = kind.callee
        for user in users:
            self._free.put_nowait(await self._registered(user))
        self._full = await self._registered(FULL.user)
        called = await self._registered(CALLED.user)
        called.answering = Answering(ring_s=RING_S, status=200)

    async def _registered(self, user: str) -> Router:
        router = await self.network.router(user, register=False)
        response = await router.register(expires_s=EXPIRES_S)
        assert response.status == 200, f"{user} was answered {response.status}"
        return router

    # -- calls

    async def calls(self, rate: float) -> None:
        """Place calls of all kinds until `over`, `rate` of them a second."""
        deck = [kind for kind in KINDS for _ in range(kind.weight)]
        began, number = time.monotonic(), 0
        async with asyncio.TaskGroup() as group:
            while not self.over.is_set():
                if number % len(deck) == 0:
                    self.random.shuffle(deck)
                kind, talk_s = deck[number % len(deck)], self.random.choice(TALKS_S)
                group.create_task(self._place(kind, talk_s))
                number += 1
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))

    async def _place(self, kind: Kind, talk_s: float) -> None:
        network = self.network
        if kind.by == "trunk":
            await self._one(kind, await network.trunk.call(kind.dialled, network.node.address), talk_s)
            return
        if kind.by == "full":
            await self._one(kind, await self._full.call(kind.dialled), talk_s)
            return
        router = await self._free.get()
        try:
            await self._one(kind, await router.call(kind.dialled, headers=kind.headers), talk_s)
        finally:
            self._free.put_nowait(router)

    async def _one(self, kind: Kind, call: Call, talk_s: float) -> None:
        """One call to its end. A side that nobody answers gives up: the records are what counts."""
        self.truths.append(call.truth)
        self.found.calls[kind.name] += 1
        try:
            if kind.then == "cancel":
                await wait_until(lambda: call.truth.ringing_at is not None or call.outcome.done(), timeout_s=ANSWER_S)
                call.cancel()
            try:
                status = await call.final(ANSWER_S)
            except NoAnswerError:
                call.cancel()
                status = await call.final(ANSWER_S)
            if status < 300:
                if kind.then != "wait" or kind.by == "full":
                    await asyncio.sleep(talk_s)
                    await call.hang_up()
                else:
                    await call.wait_ended(LIFETIME_S + ANSWER_S)
        except NoAnswerError:
            self._given_up.append(call)

    async def end_all(self) -> None:
        """No party begins or repeats an INVITE any more, the node has taken those that came, and what is left hangs up."""
        for call in self._given_up:
            call.stop_repeating()
        with contextlib.suppress(NoAnswerError):  # datagrams are taken in their order: the INVITEs before this are
            await self._full.register(expires_s=EXPIRES_S, timeout_s=SETTLE_S)
        self.hang_up_all()

    def hang_up_all(self) -> None:
        """Hang up what is left: calls whose 200 came when their caller had given up (RFC 3261 §13.3.1.4, §15). A CANCEL is sent
        again: the one that came before the INVITE was taken had none to cancel, and who is called may ring for ever."""
        for call in self._given_up:
            if not call.outcome.done():
                call.cancel()
        for party in (self.network.trunk, self.network.psap, *self.network.routers):
            for call in party.calls.values():
                if call.truth.answered_at is not None and call.truth.ended_at is None:
                    party.keep(asyncio.ensure_future(call.hang_up()))

    # -- lives

    async def live(self, kills: int, within_s: float, stop: asyncio.Event, on_progress: Callable[[int], None]) -> None:
        """Kill the node `kills` times at random moments, or as often as it can within so many seconds and until `stop`, and
        start it again at once each time."""
        starting: asyncio.Future[None] | None = None
        until = time.monotonic() + within_s
        for number in range(kills):
            if time.monotonic() > until or stop.is_set():
                break
            if starting is None or self.random.random() >= EARLY_SHARE:
                await (starting or asyncio.sleep(0))
                await asyncio.sleep(self.random.uniform(*LIVES_S))
            else:
                await asyncio.sleep(self.random.uniform(0, EARLY_S))
            ready = starting is None or starting.done()
            await self.network.node.kill()
            if not ready and starting is not None:
                with contextlib.suppress(NodeError):
                    await starting
            await self.died(ready=ready)
            starting = await self._start()
            on_progress(number + 1)
        await (starting or asyncio.sleep(0))

    async def _start(self) -> asyncio.Future[None]:
        """Start the node; its process runs when this returns, and the future is done when it answers."""
        node = self.network.node
        before = node.process
        starting = asyncio.ensure_future(node.start())
        await wait_until(lambda: node.process is not before or starting.done(), timeout_s=START_S)
        return starting

    async def die_at(self, steps: Sequence[tuple[str, int]], stop: asyncio.Event, on_progress: Callable[[int], None]) -> None:
        """Have the node die at each step, when it passes it for the so-many-th time, and start it as usual after that; at none
        behind `stop`."""
        node = self.network.node
        for number, (step, count) in enumerate(steps):
            if stop.is_set():
                break
            if step.startswith(READERS):
                await self._reader_dies(step, count)
                on_progress(number + 1)
                continue
            await node.kill()
            await self.died(ready=True)
            node.program = ("-c", DYING, step, str(count))
            ready = True
            try:
                await node.start()
            except NodeError:
                ready = False
            assert node.process is not None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(node.process.wait(), STEP_S)
            if node.running or node.process.returncode != -9:
                self.found.not_reached.append(f"{step} ({count})")
                await node.kill()
            await self.died(ready=ready, step=step)
            node.program = PROGRAM
            await node.start()
            await asyncio.sleep(self.random.uniform(0, 1.0))
            on_progress(number + 1)

    async def _reader_dies(self, step: str, count: int) -> None:
        """Have readers of each kind die at a step of theirs; what they have in the end is compared then."""
        node, until = self.network.node, time.monotonic() + STEP_S
        while await self.network.store.client.xlen(STREAM) < TO_READ * count and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        places = {"directory": node.directory / "readers", "config": node.config}
        for reader in readers_at(step, count, url=self.network.store.url, **places):
            self.readers.append(reader)
            if not await reader.die(STEP_S):
                self.found.not_reached.append(reader.name)

    async def finish_readers(self, records: Sequence[Record]) -> None:
        """All readers take what is left for them, and have what the stream has."""
        said = await asyncio.gather(*(reader.finish(SETTLE_S) for reader in self.readers))
        self.found.readers = len(self.readers)
        self.found.billing += [fault for faults in said for fault in faults]
        self.found.billing += [fault for reader in self.readers for fault in reader.faults(records)]

    async def died(self, *, ready: bool, step: str = "") -> None:
        """The node's process is gone: its life is over once the parties have read what it sent, and the next begins."""
        await self.network.read_all()
        await asyncio.sleep(0.002)  # so that no event of it has the stamp of the next
        now_ms = time.time_ns() // 1_000_000
        self.found.lives.append(Life(self._begun_ms, ready=ready, step=step))
        self._begun_ms = now_ms

    async def settle(self) -> list[Record]:
        """The records, once what is owed is there and all slots are free, or after SETTLE_S."""
        found, network = self.found, self.network
        await self.died(ready=True)
        deadline, ask_at = time.monotonic() + SETTLE_S, 0.0
        while True:
            if time.monotonic() > ask_at:
                self.hang_up_all()
                ask_at = time.monotonic() + HANG_UP_S
            held = await live_slots(network.store.client)
            records, found.entries, last = await self._read()
            missing = owed_but_missing(found.lives, network.ledger, self.truths, records)
            if not (held or missing or any(kind != b"final" for kind in last.values())) or time.monotonic() > deadline:
                break
            await asyncio.sleep(0.5)
        found.slots_left = [f"{call}: of line {line}" for line, calls in held.items() for call in calls]
        found.unfinished = sorted(call.decode() for call, kind in last.items() if kind != b"final")
        return records

    async def _read(self) -> tuple[list[Record], int, dict[bytes, bytes]]:
        """The final records by id, in how many entries they stand, and the type that each id has after upserts."""
        records: dict[str, Record] = {}
        last: dict[bytes, bytes] = {}
        entries, start = 0, "-"
        while page := await self._page(start):
            for _, fields in page:
                call, kind = fields[b"id"], fields[b"type"]
                last[call] = b"final" if b"final" in (kind, last.get(call)) else kind
                if kind == b"final":
                    entries += 1
                    record = codec.decode(fields[b"d"])
                    records[record.id] = record
            start = "(" + page[-1][0].decode("ascii")
        return list(records.values()), entries, last

    async def _page(self, start: str) -> Any:
        return await self.network.store.client.xrange(STREAM, min=start, count=2000)


async def kill_again_and_again(
    kills: int,
    *,
    rate: float,
    seed: int,
    callers: int = 0,
    within_s: float = float("inf"),
    stop: asyncio.Event | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Killed:
    """Kill the node `kills` times at random moments under calls of every kind, `rate` of them a second, by so many `callers`
    (0: as many as the rate needs), and no more once `within_s` seconds are over or `stop` is set."""
    found = Killed("kill -9 at random moments", seed)
    async with _running(found, rate, SETTINGS, callers) as run:
        await run.live(kills, within_s, stop or asyncio.Event(), on_progress)
    return run.found


async def kill_at_steps(
    steps: Sequence[str],
    *,
    times: Sequence[int],
    rate: float,
    seed: int,
    callers: int = 0,
    stop: asyncio.Event | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Killed:
    """Have the node die at each of these steps, at each of the `times` that it passes it, until `stop`.
    `publisher.confirmed` is passed without sinks alone; for any other step the records have a sink."""
    sinks = [] if UNSUNK in steps else [SINK]
    title = f"death at {len(steps)} steps of node and readers, {'with' if sinks else 'without'} a sink"
    settings = {**SETTINGS, "cdr": {**STEP_CDR, "sinks": sinks}}
    async with _running(Killed(title, seed), rate, settings, callers) as run:
        await run.die_at([(step, count) for step in steps for count in times], stop or asyncio.Event(), on_progress)
    return run.found


def steps_of() -> list[list[str]]:
    """The named steps of journal, publisher and readers, as the code itself has them: those with a sink, and those without."""
    folders = (Path(cdr.__path__[0]), Path(commands.__path__[0]))
    texts = [path.read_text("utf-8") for folder in folders for path in folder.glob("*.py")]
    names = sorted({name for text in texts for name in NAMED.findall(text)})
    return [[name for name in names if name != UNSUNK], [name for name in names if name == UNSUNK]]


@contextlib.asynccontextmanager
async def _running(
    found: Killed, rate: float, settings: Mapping[str, Mapping[str, object]], callers: int
) -> AsyncIterator[_Run]:
    """Parties that call while the body runs, and the comparison after it."""
    lines = many_lines(callers or max(20, round(CALLERS_PER_RATE * rate)), first=FIRST_CALLER)
    begun_ms, began = time.time_ns() // 1_000_000, time.monotonic()
    async with Network([*lines, FULL, replace(CALLED, channels=CALLED_CHANNELS), AWAY], settings=settings) as network:
        run = _Run(network, found, begun_ms)
        await run.prepare([line.user for line in lines])
        sink = asyncio.ensure_future(_bill(network, run.billed)) if "cdr" in settings else None
        placing = asyncio.ensure_future(run.calls(rate))
        try:
            yield run
        except BaseException:
            placing.cancel()
            raise
        run.over.set()
        await placing
        await run.end_all()
        records = await run.settle()
        if sink is not None:
            await wait_until(lambda: all(run.billed.get(one.id) == one for one in records), timeout_s=SETTLE_S)
            found.billing = [one.id for one in records if run.billed.get(one.id) != one]
            await cancel_all([sink])
        await run.finish_readers(records)
        compare_lives(found, network.ledger, run.truths, records)
        tell_ladders(found, network.ledger, run.truths, records)
        found.seconds = time.monotonic() - began


async def _bill(network: Network, billed: dict[str, Record]) -> None:
    """A reader that keeps one record for each id, the final one once it is there."""

    def write(batch: list[Delivery]) -> None:
        for one in batch:
            if one.record.type == "final" or one.record.id not in billed:
                billed[one.record.id] = one.record

    async with Consumer(network.store.client, group=SINK, stream=STREAM) as consumer:
        await consumer.run(write)
