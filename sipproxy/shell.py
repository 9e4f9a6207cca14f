"""Performs the engine's actions and feeds it events: the seam between the pure engine and the sockets, store and journal.

One event is handled to its end, its actions in order, before the next. With `cdr.sync = "wait"` what follows a journal entry
waits until the entry is on disk, and everything behind it in line. Makes no SIP or policy decision.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import structlog

from cdr.facts import Admit, Alive, Answer, End
from cdr.journal import JournalError, UnwritableError
from cdr.quality import RunningFigures
from sipproxy.engine.actions import (
    Action,
    DropSource,
    EndSilent,
    HoldSlot,
    KeepTrace,
    Note,
    Now,
    ReleaseSlot,
    RemoveBinding,
    SaveBinding,
    SendTo,
    SpareSource,
    TakeSlot,
)
from sipproxy.engine.actions import Journal as JournalFact
from sipproxy.engine.shed import Signals
from sipproxy.sip.timers import WIDTH_S

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from cdr.facts import Fact
    from cdr.journal import Journal
    from cdr.publisher import Publisher
    from policy.model import Snapshot
    from sipproxy.engine.core import Engine
    from sipproxy.engine.crew import Word
    from sipproxy.engine.drops import Drops
    from sipproxy.engine.kinds import Kind
    from sipproxy.engine.recover import Ended, Unfinished
    from sipproxy.engine.structs import Binding
    from sipproxy.net.droplist import KernelDrops
    from sipproxy.net.transports import Transports
    from sipproxy.sip.errors import ParseError
    from sipproxy.sip.flow import Flow
    from sipproxy.store.bindings import Bindings
    from sipproxy.store.slots import SlotResult, Slots
    from sipproxy.store.traces import Traces

__all__ = ["Shell"]

MAX_OWED_FACTS = 100_000  # facts that the disk would not take, kept in memory until it does
RETRY_S = 1.0
NOTABLE_S = 0.02  # that a message waited: for less it is not asked whose it was
GRAIN_S = WIDTH_S  # deadlines within one of these run together: a wake-up for each costs more than what most of them do
FILLING_PERCENT = 20.0  # free; design §8: an alarm at 80 % full
FULL_PERCENT = 5.0  # design §8: at 95 % full no new calls, so that live ones can still be recorded
ROOM_PERCENT = 1.0  # by which there has to be more again, so that a level does not come and go


_now = partial(tuple.__new__, Now)  # half of what Now(...) takes, for each message


def instant() -> Now:
    """This moment on both clocks."""
    return _now((time.monotonic(), time.time_ns() // 1_000_000))


class Shell:
    """See the module. To be used from the event loop's thread."""

    def __init__(
        self,
        engine: Engine,
        *,
        journal: Journal,
        publisher: Publisher,
        slots: Slots,
        bindings: Bindings,
        traces: Traces,
        lease_ms: int,
        wait_for_disk: bool,
    ) -> None:
        self.engine = engine
        self.transports: Transports | None = None  # set by the composition root, which needs our callbacks for it
        self.kernel: KernelDrops | None = None  # where there is a drop list that is not only tried
        self.bound_at: Now | None = None  # since when messages may wait in its sockets
        self._journal, self._publisher = journal, publisher
        self._slots, self._bindings, self._traces = slots, bindings, traces
        self.lease_ms = lease_ms
        self._wait_for_disk = wait_for_disk
        self._line: deque[Action] = deque()
        self._draining = False
        self._waiting: asyncio.Task[None] | None = None
        self._owed: deque[Fact] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf  # when it runs, monotonic seconds; never when there is none
        self._performers: dict[type, Callable[[Any], None]] = {
            JournalFact: self._journal_fact,
            TakeSlot: self._take_slot,
            ReleaseSlot: self._release_slot,
            HoldSlot: self._hold_slot,
            SaveBinding: self._save_binding,
            RemoveBinding: self._remove_binding,
            EndSilent: self._end_silent,
            KeepTrace: self._keep_trace,
            DropSource: self._drop_source,
            SpareSource: self._spare_source,
            Note: self._note,
        }
        self._log = structlog.get_logger("engine").bind()  # once: most of what is noted is below the level that is logged
        self.facts_lost = 0
        # Is told what the other workers of the node have to know of this one's bindings.
        self.on_binding: Callable[[SaveBinding | RemoveBinding], None] = lambda action: None  # noqa: ARG005
        self.watchers: list[Callable[[Fact], None]] = []  # are told each fact before it is journalled
        self._started_at = 0.0  # when messages began to be read, monotonic seconds
        self._drops = 0  # datagrams that found no room so far
        self._waited_s = 0.0  # that a message waited at most to be looked at, since somebody asked
        self._strangers_s = 0.0  # the same for strangers'
        self.quality = RunningFigures()
        self.disk: Literal["ok", "filling", "full"] = "ok"  # where the journal lies

    def start(self) -> None:
        """Have the engine do what it does unasked, such as pings; messages may be sent from now on."""
        self._started_at = time.monotonic()
        self._arm()

    # Events

    def message(self, data: bytes, flow: Flow, waited_s: float = 0.0, kind: Kind | None = None) -> None:
        """A message came in, and had waited for so many seconds to be looked at; `kind` is what it counts as, where known."""
        now = instant()
        if waited_s > now.mono - self._started_at:
            waited_s = 0.0  # since before this process served: it says nothing about how fast it is
        if waited_s > self._waited_s:
            if waited_s < NOTABLE_S or self.engine.shedder.is_known(flow):
                self._waited_s = waited_s
            else:
                self._strangers_s = max(self._strangers_s, waited_s)
        self._perform(self.engine.receive(data, flow, now, waited_s, kind))

    def send_failed(self, key: Hashable) -> None:
        """The transport could not send what had this key."""
        self._perform(self.engine.transport_failed(key, instant()))

    def flow_closed(self, flow: Flow) -> None:
        """A connection ended."""
        self._perform(self.engine.flow_closed(flow, instant()))

    def refused(self, head: bytes, fault: ParseError, flow: Flow) -> None:
        """A stream broke at a message with this head."""
        self._perform(self.engine.refuse_stream(head, fault, flow, instant()))

    def told(self, word: Word) -> None:
        """A word of another worker of this node, or of who starts them."""
        self._perform(self.engine.crew.hear(word, instant()))

    def late(self, lag_s: float) -> None:
        """The event loop ran a timer so many seconds late."""
        assert self.transports is not None
        drops = self.transports.drops
        now, signals = instant(), Signals(lag_s, drops - self._drops, self._waited_s, self._strangers_s)
        self._waited_s = self._strangers_s = 0.0
        self._perform(self.engine.observe(signals, now))
        self._drops = drops

    def _slot_result(self, action: TakeSlot, result: SlotResult) -> None:
        actions = self.engine.slot_result(
            action.slot,
            taken=result.taken,
            used=result.used,
            of_account=result.of_account,
            waited_s=result.waited_s,
            now=instant(),
        )
        self._perform(actions)

    def _fire(self) -> None:
        self._timer, self._timer_at = None, math.inf
        self._perform(self.engine.fire(instant()))

    def swap_snapshot(self, snapshot: Snapshot) -> None:
        """Decide with this snapshot from now on."""
        self._perform(self.engine.swap_snapshot(snapshot, instant()))

    def end_call(self, call: str, *, emergency_too: bool) -> str:
        """End a call for an operator; what `Engine.end_call` says."""
        state, actions = self.engine.end_call(call, instant(), emergency_too=emergency_too)
        self._perform(actions)
        return state

    def change_drops(self, change: Callable[[Drops], str]) -> str:
        """Have an operator change the drop list; what `Drops.add` or `Drops.remove` says."""
        desk = self.engine.desk
        desk.now = instant()
        refusal = change(desk.drops)
        self._perform(desk.take_actions())
        return refusal

    def recover(self, unfinished: Sequence[Unfinished], ended: Sequence[Ended] = ()) -> None:
        """Take up the calls that the journal has no end of, and those that ended last; their timers run from `start` on."""
        self._line.extend(self.engine.recover(unfinished, instant(), ended=ended, bound_at=self.bound_at))
        self._drain()

    def bindings_read(self, bindings: Sequence[tuple[str, Binding]], *, own_too: bool) -> None:
        """Some of the bindings of the store."""
        self._perform(self.engine.bindings_read(bindings, instant(), own_too=own_too))

    def binding_seen(self, user: str, binding: Binding, *, is_told: bool = False) -> None:
        """Another node registered this. `is_told` by that worker itself, ahead of the store."""
        self._perform(self.engine.binding_seen(user, binding, instant(), is_told=is_told))

    def binding_gone(self, user: str, key: str, at_ms: int, *, is_told: bool = False) -> None:
        """Another node removed this binding. `is_told` as in `binding_seen`."""
        self._perform(self.engine.binding_gone(user, key, at_ms, instant(), is_told=is_told))

    def refresh_leases(self, part: int = 0, parts: int = 1) -> None:
        """Re-assert the slot of every live call, or of one of so many parts of them."""
        self._slots.refresh(self.engine.channels.leases(part, parts), self.lease_ms)

    @property
    def facts_owed(self) -> int:
        """Facts that the disk has not taken yet."""
        return len(self._owed)

    # Actions

    def _perform(self, actions: list[Action]) -> None:
        if actions:
            self._line.extend(actions)
            if not self._draining and self._waiting is None:
                self._drain()
        if self.engine.desk.queue.looks_at + GRAIN_S < self._timer_at:  # hardly ever
            self._arm()

    def _drain(self) -> None:
        line, performers, transports = self._line, self._performers, self.transports
        self._draining = True
        try:
            while line and self._waiting is None:
                action = line.popleft()
                if type(action) is SendTo:  # which most are
                    assert transports is not None
                    transports.send(action.target, action.data, action.key, action.connect_s)
                else:
                    performers[type(action)](action)
        finally:
            self._draining = False

    def _journal_fact(self, action: JournalFact) -> None:
        self._append(action.fact)

    def _take_slot(self, action: TakeSlot) -> None:
        self._slots.take(action, self.lease_ms, lambda result: self._slot_result(action, result))

    def _release_slot(self, action: ReleaseSlot) -> None:
        self._slots.release(action.slot)

    def _hold_slot(self, action: HoldSlot) -> None:
        self._slots.refresh([(action.slot, action.holder)], self.lease_ms)

    def _save_binding(self, action: SaveBinding) -> None:
        self._bindings.save(action.user, action.binding)
        self.on_binding(action)

    def _remove_binding(self, action: RemoveBinding) -> None:
        self._bindings.remove(action.user, action.key, action.at_ms)
        self.on_binding(action)

    def _end_silent(self, action: EndSilent) -> None:
        assert self.transports is not None
        self.transports.end_silent(action.flow, action.silent_s)

    def _keep_trace(self, action: KeepTrace) -> None:
        self._traces.keep(action.record)

    def _drop_source(self, action: DropSource) -> None:
        if self.kernel is not None:
            self.kernel.put(action.source, action.for_s)

    def _spare_source(self, action: SpareSource) -> None:
        if self.kernel is not None:
            self.kernel.put(action.source, 0)

    def _note(self, action: Note) -> None:
        getattr(self._log, action.level)(action.event, **action.fields)

    def _append(self, fact: Fact) -> None:
        for watcher in self.watchers:
            watcher(fact)
        if isinstance(fact, End):
            self.quality.add(fact.record)
        if self._owed and not isinstance(fact, Admit):
            self._owe(fact)  # in order: nothing overtakes what the disk has not taken
            return
        try:
            position = self._journal.append(fact)
        except UnwritableError as error:
            self._tell_ended(fact)
            self._lose(fact, error)
            return
        except JournalError as error:
            self._log.error("journal_refused", error=str(error))
            self.engine.close("journal")
            # An ADMIT only protects its call from a crash, and END says it all again: it must not stand in END's way to the
            # room that the journal keeps for calls that live.
            if not isinstance(fact, Admit):
                self._owe(fact)
                self.engine.refusals.holding = True
            return
        self._publisher.appended(fact)
        if self._wait_for_disk:
            self._waiting = asyncio.get_running_loop().create_task(self._until_synced(position))

    async def _until_synced(self, position: int) -> None:
        try:
            await self._journal.wait_synced(position)
        except JournalError as error:
            self._log.error("journal_not_synced", error=str(error))  # the kernel has it; calls go on
        self._waiting = None
        self._drain()
        self._arm()

    def _owe(self, fact: Fact) -> None:
        self._tell_ended(fact)
        if len(self._owed) >= MAX_OWED_FACTS:
            self._lose(fact, None)
        else:
            self._owed.append(fact)

    def _tell_ended(self, fact: Fact) -> None:
        """The journal has not taken the fact, or not yet: what it ends has no interim record any more all the same."""
        if isinstance(fact, End):
            self._publisher.ended(fact.record.id)

    def _lose(self, fact: Fact, error: Exception | None) -> None:
        self.facts_lost += 1
        call = fact.id if isinstance(fact, Alive | Answer) else fact.record.id
        self._log.error("journal_fact_lost", call=call, error=str(error) if error is not None else "too many wait for the disk")

    async def run_journal_watch(self) -> None:
        """Write what the disk refused as soon as it takes it; no new calls but emergencies while it is full or failing."""
        while True:
            await asyncio.sleep(RETRY_S)
            while self._owed:
                try:
                    self._journal.append(self._owed[0])
                except UnwritableError as error:
                    self._lose(self._owed.popleft(), error)
                except JournalError:
                    break
                else:
                    self._publisher.appended(self._owed.popleft())
            stats = self._journal.stats
            self._note_disk(stats.free_percent)
            self._hold_records()
            if self._owed or stats.failure or self.disk == "full":
                self.engine.close("journal")
            else:
                self.engine.open("journal")
            with contextlib.suppress(JournalError):
                self._journal.probe()

    def _hold_records(self) -> None:
        """Records of attempts that were refused wait while the disk takes only what belongs to live calls."""
        on = bool(self._owed) or (self.disk == "full" and not self._journal.has_reserve)
        if on != self.engine.refusals.holding:
            self.engine.refusals.hold(on=on)
            self._perform(self.engine.desk.take_actions())

    def _note_disk(self, free: float) -> None:
        """How full the journal's disk is, in words; each change is an alarm or its end."""
        before = self.disk
        room = ROOM_PERCENT if before != "ok" else 0.0
        if free < FULL_PERCENT + (room if before == "full" else 0.0):
            self.disk = "full"
        elif free < FILLING_PERCENT + room:
            self.disk = "filling"
        else:
            self.disk = "ok"
        if self.disk != before:
            level = {"full": "error", "filling": "warning", "ok": "info"}[self.disk]
            getattr(self._log, level)("journal_disk", state=self.disk, free_percent=round(free, 1))

    # The engine's timer

    def _arm(self) -> None:
        """Run what is due at the end of the grain that the earliest deadline lies in. An armed timer that turns out to be early
        is left to run."""
        at = self.engine.next_at
        if at is None:
            return
        at = (at // GRAIN_S + 1) * GRAIN_S
        if at >= self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(max(0.0, at - time.monotonic()), self._fire)
