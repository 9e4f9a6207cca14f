"""The store's connection: commands of one tick of the event loop leave as one pipeline, their replies come back in order.

Nobody waits here: `submit` queues and returns; the reply, or the reason why there is none (`StoreError`), goes to a
callback, exactly once. No command in flight is ever cancelled, for its reply would be taken for the next one's: a
connection that stalls is dropped as a whole. Before a new connection is used, the server is told to kill the dropped one,
so that what is still unread in its socket cannot be executed after commands that were submitted later.

Health is a state with a reason by name: UP; SLOW, a reply is older than the deadline; REFUSING, the server answers with an
error that is about its own state (READONLY, OOM, ...; see store.errors); AWAY, there is no usable connection and commands
fail at once. See design, "When Redis misbehaves".

Leaves out: Sentinel and Cluster (a server of either kind is not used: AWAY, by that name), and repeating commands, which is up
to those who know whether theirs may be repeated (store.backlog). `client` is redis-py with its own connections, for
what may wait: policy, CDR publishing, administration.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import cast

import hiredis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from sipproxy.store import keys
from sipproxy.store.errors import UNUSABLE, ReplyError, StoreError, next_of, unusable_mode
from sipproxy.store.wire import Wire, address_of, dial, redis_url, run_id_of

__all__ = ["STOPPED", "Bounds", "Command", "OnReply", "State", "Stats", "Store"]

Command = tuple[bytes | str | int, ...]
OnReply = Callable[[object], None]  # gets the reply, or a StoreError

STOPPED = "STOPPED"  # the reason for being away after `close`
_DRAIN_S = 1.0
# How often age and state are looked at, a fifth of the default deadline; while nothing is awaited once in a deadline: what is
# submitted meanwhile is late after that at the earliest.
_TICK_S = 0.05
_CLIENT_TIMEOUT_S = 5.0  # `client` only; whoever blocks in XREAD must block for less
_CLIENT_CONNECTIONS = 32
# Errors after which the same address may lead to another server, or a new greeting may help.
_REDIAL = frozenset({"READONLY", "MASTERDOWN", "MOVED", "CLUSTERDOWN", "NOAUTH"})

_packed = cast(Callable[[Command], bytes], hiredis.pack_command)  # declared for tuples of one element only


class State(StrEnum):
    UP = "up"
    SLOW = "slow"
    REFUSING = "refusing"
    AWAY = "away"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of one connection. Reaching `commands` or `bytes` refuses the next submit; `stall_ms` drops the connection."""

    commands: int = 65_536  # queued and in flight; at 100 calls/s more than a minute's worth
    bytes: int = 32 * 1024 * 1024
    stall_ms: int = 2_000  # without any reply
    connect_ms: int = 1_000  # to connect and be greeted
    backoff_first_ms: int = 50
    backoff_max_ms: int = 2_000
    probe_ms: int = 1_000  # idle time after which the server is asked; also between probes of a refusing server


@dataclass(slots=True)
class Stats:
    """Counters for metrics. `errors` counts the commands without a result by the error's name."""

    submitted: int = 0
    replied: int = 0
    pipelines: int = 0
    connects: int = 0
    drops: dict[str, int] = field(default_factory=dict)  # connections lost, by reason
    errors: dict[str, int] = field(default_factory=dict)
    unfenced: int = 0  # reconnects at which the server did not let us kill the old connection
    callback_faults: int = 0
    latency_ms: float = 0.0  # of the last pipeline's oldest command
    latency_max_ms: float = 0.0


class _Entry:
    __slots__ = ("at", "data", "key", "on_reply", "size")

    def __init__(self, data: bytes, on_reply: OnReply | None, key: Hashable | None, at: float) -> None:
        self.data, self.size = data, len(data)
        self.on_reply, self.key = on_reply, key
        self.at = at  # when it is, or was, to leave, by the loop's clock


class Store:
    """See the module. `run` belongs to a TaskGroup; `submit` may be called from the event loop's thread only."""

    def __init__(self, url: str, deadline_ms: int = 250, *, bounds: Bounds | None = None, name: str = "sipproxy") -> None:
        """`name` is shown by CLIENT LIST. Raises ValueError when the URL cannot be read."""
        self.url = url
        self.deadline_s = deadline_ms / 1000
        self.state = State.AWAY
        self.reason = "STARTING"
        self.stats = Stats()
        self.bounds = bounds or Bounds()
        self.client = Redis.from_url(
            redis_url(url),
            socket_connect_timeout=self.bounds.connect_ms / 1000,
            socket_timeout=_CLIENT_TIMEOUT_S,
            max_connections=_CLIENT_CONNECTIONS,
            retry=Retry(NoBackoff(), 0),  # a repeated command may be executed twice: the caller decides
        )
        self._name = name
        self._address = address_of(url)
        self._wire: Wire | None = None
        self._queue: deque[_Entry] = deque()
        self._flight: deque[_Entry] = deque()
        self._keyed: dict[Hashable, _Entry] = {}
        self._bytes = 0
        self._flush_due = False
        self._leaving: asyncio.TimerHandle | None = None  # what lingers leaves by this at the latest
        self._leaves_at = math.inf  # when that is, by the loop's clock
        self._loop: asyncio.AbstractEventLoop | None = None  # since the first connection
        self._refusal = ""
        self._heard_at = 0.0
        self._probed_at = 0.0
        self._backoff_s = self.bounds.backoff_first_ms / 1000
        self._gone = asyncio.Event()
        self._closing = asyncio.Event()
        self._last: tuple[str, int] | None = None  # run id of the server and client id of the latest greeted connection
        self._listeners: list[Callable[[State, str], None]] = []

    # -- for callers ---------------------------------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Commands queued and in flight."""
        return len(self._queue) + len(self._flight)

    @property
    def pending_bytes(self) -> int:
        return self._bytes

    @property
    def closed(self) -> bool:
        return self._closing.is_set()

    def on_state(self, listener: Callable[[State, str], None]) -> None:
        """Have `listener(state, reason)` called after each change. When it hears UP it may submit at once."""
        self._listeners.append(listener)

    def submit(
        self, command: Command | bytes, on_reply: OnReply | None = None, *, key: Hashable | None = None, linger_s: float = 0.0
    ) -> None:
        """Queue `command`, in its parts or as it goes over the wire; it leaves at the end of this tick, after all submitted
        before it.

        With `linger_s` it waits so many seconds at most for others to leave with: for what nobody waits for.

        `on_reply` gets the reply or a `StoreError`, exactly once, never before this call has returned. With `key`, a
        command of the same key that has not left yet is superseded: the last one counts. Raises TypeError for arguments
        that are not bytes, str or int.
        """
        loop = self._loop
        if self._wire is None or loop is None or self.state is State.AWAY or self._closing.is_set():
            self._refuse(on_reply, "AWAY")
            return
        data = command if isinstance(command, bytes) else _packed(command)
        bounds = self.bounds
        if len(self._queue) + len(self._flight) >= bounds.commands or self._bytes + len(data) > bounds.bytes:
            self._refuse(on_reply, "FULL")
            return
        self._append(_Entry(data, on_reply, key, loop.time() + linger_s), loop, linger_s)

    async def execute(self, *command: bytes | str | int) -> object:
        """Submit and wait for the reply. Raises StoreError. For tools and starting up; nothing on a call's way may wait."""
        return next_of(await self.execute_all([command]))

    async def execute_all(self, commands: Sequence[Command]) -> list[object]:
        """Submit all and wait for all replies; each is a reply or a StoreError."""
        if not commands:
            return []
        replies: list[object] = [None] * len(commands)
        missing = len(commands)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_reply(index: int, reply: object) -> None:
            nonlocal missing
            replies[index] = reply
            missing -= 1
            if not missing and not done.done():
                done.set_result(None)

        for index, command in enumerate(commands):
            self.submit(command, partial(on_reply, index))
        await done
        return replies

    async def start(self) -> bool:
        """Try to connect once, within the bound; return whether the store is up. `run` goes on from there."""
        return await self._connect()

    async def run(self) -> None:
        """Keep the connection and the state. Ends after `close`."""
        while not self._closing.is_set():
            if self._wire is not None or await self._connect():
                since = asyncio.get_running_loop().time()
                await self._watch()
                if asyncio.get_running_loop().time() - since > self.bounds.backoff_max_ms / 1000:
                    self._backoff_s = self.bounds.backoff_first_ms / 1000
            await self._pause()

    async def close(self) -> None:
        """Let what was submitted come back (a second at most), then disconnect. What has no reply by then gets an error."""
        drained = asyncio.ensure_future(self.execute("PING"))  # its reply comes after all the others
        await asyncio.sleep(0)
        self._closing.set()
        with contextlib.suppress(TimeoutError, StoreError):
            async with asyncio.timeout(_DRAIN_S):
                await drained
        self._drop(STOPPED)
        self._gone.set()
        await self.client.aclose()

    # -- queue and wire ------------------------------------------------------------------------------------------------

    def _refuse(self, on_reply: OnReply | None, name: str) -> None:
        self.stats.submitted += 1
        self._count_error(name)
        if on_reply is not None:
            asyncio.get_running_loop().call_soon(self._call, on_reply, StoreError(name))

    def _append(self, entry: _Entry, loop: asyncio.AbstractEventLoop, linger_s: float = 0.0) -> None:
        self.stats.submitted += 1
        if entry.key is not None:
            older = self._keyed.get(entry.key)
            if older is not None:
                self._queue.remove(older)
                self._bytes -= older.size
                self._count_error("SUPERSEDED")
                if older.on_reply is not None:
                    loop.call_soon(self._call, older.on_reply, StoreError("SUPERSEDED"))
            self._keyed[entry.key] = entry
        self._queue.append(entry)
        self._bytes += entry.size
        if self._flush_due:
            return
        if not linger_s:
            self._flush_due = True
            loop.call_soon(self._flush)
        elif entry.at < self._leaves_at:
            if self._leaving is not None:
                self._leaving.cancel()
            self._leaves_at = entry.at
            self._leaving = loop.call_later(linger_s, self._lingered)

    def _lingered(self) -> None:
        """Send what has lingered long enough. What that was set for may have left with others: what came since waits on."""
        loop = asyncio.get_running_loop()
        self._leaves_at = min((entry.at for entry in self._queue), default=0.0)
        if self._leaves_at > loop.time() + 0.001:  # as fine as the loops' clocks are
            self._leaving = loop.call_later(self._leaves_at - loop.time(), self._lingered)
            return
        self._leaving, self._leaves_at = None, math.inf
        self._flush()

    def _flush(self) -> None:
        """Send all that is queued, unless the socket's buffer is full; then its `resume_writing` comes back here."""
        self._flush_due = False
        wire = self._wire
        if wire is None or not wire.writable or not self._queue:
            return
        wire.send(b"".join([entry.data for entry in self._queue]))
        assert self._loop is not None  # it was set before there was a wire
        now = self._loop.time()
        for entry in self._queue:
            entry.data = b""
            entry.at = min(entry.at, now)
        self._flight.extend(self._queue)
        self._queue.clear()
        self._keyed.clear()
        self.stats.pipelines += 1

    def _on_replies(self, wire: Wire, replies: list[object]) -> None:
        if wire is not self._wire:
            return  # of a dropped connection: its commands have had their error
        assert self._loop is not None  # it was set before there was a wire
        now = self._heard_at = self._loop.time()
        flight, stats = self._flight, self.stats
        if len(replies) > len(flight):
            self._drop("PROTOCOL")  # a reply to nothing: whose the others are cannot be known
            return
        stats.latency_ms = (now - flight[0].at) * 1000
        stats.latency_max_ms = max(stats.latency_max_ms, stats.latency_ms)
        for reply in replies:
            if wire is not self._wire:
                return  # a callback dropped the connection: the rest have had their error
            entry = flight.popleft()
            self._bytes -= entry.size
            stats.replied += 1
            if isinstance(reply, ReplyError):
                self._on_error(reply)
            if (on_reply := entry.on_reply) is not None:
                self._call(on_reply, reply)

    def _on_error(self, error: ReplyError) -> None:
        self._count_error(error.name)
        if error.is_server_state and self.state is not State.AWAY:
            self._refusal = error.name
            self._assess()

    def _call(self, on_reply: OnReply, reply: object) -> None:
        """Run a callback. Its fault is reported, and must not keep the replies behind it from their owners."""
        try:
            on_reply(reply)
        except Exception as error:
            self.stats.callback_faults += 1
            asyncio.get_running_loop().call_exception_handler({"message": "fault in a store callback", "exception": error})

    def _count_error(self, name: str) -> None:
        errors = self.stats.errors
        if name not in errors and len(errors) >= 64:  # names come from the server; the table of metrics stays bounded
            name = "OTHER"
        errors[name] = errors.get(name, 0) + 1

    # -- connection ----------------------------------------------------------------------------------------------------

    async def _connect(self) -> bool:
        """Connect and greet; True when the store is up."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.bounds.connect_ms / 1000):
                wire = await dial(self._address, self._make_wire)
                if self._closing.is_set() or wire.is_lost:  # of one lost before it was ours no further word would come
                    wire.abort()
                    raise StoreError("CLOSED")
                self._wire = wire
                self._gone.clear()
                await self._greet()
        except TimeoutError:
            self._drop("TIMEOUT")
        except OSError as error:
            self._drop(type(error).__name__)
        except StoreError as error:
            self._drop(error.name)
        except asyncio.CancelledError:
            self._drop("CANCELLED")
            raise
        else:
            self.stats.connects += 1
            self._refusal = ""
            self._heard_at = self._probed_at = self._loop.time()
            self._set_state(State.UP, "")
            return True
        return False

    def _make_wire(self) -> Wire:
        return Wire(self._on_replies, self._on_lost, self._on_writable)

    def _on_writable(self, wire: Wire) -> None:
        if wire is self._wire:
            self._flush()

    def _on_lost(self, wire: Wire, reason: str) -> None:
        if wire is self._wire:
            self._drop(reason)

    async def _greet(self) -> None:
        """Authenticate, and fence off the connection before this one. Raises StoreError."""
        commands = self._address.greeting(self._name)
        replies = await self._exchange([*commands, ("CLIENT", "ID"), ("INFO", "server"), ("PING",)])
        for command, reply in zip(commands, replies, strict=False):
            if isinstance(reply, StoreError) and command[0] != "CLIENT":
                raise reply
        if isinstance(replies[-1], StoreError):
            raise replies[-1]
        client_id, info = replies[-3], replies[-2]
        if isinstance(info, bytes) and (mode := unusable_mode(info)):
            raise StoreError(mode, UNUSABLE[mode])
        run_id = run_id_of(info)
        if self._last is not None and self._last[0] == run_id:
            (killed,) = await self._exchange([("CLIENT", "KILL", "ID", self._last[1])])
            if isinstance(killed, StoreError):
                self.stats.unfenced += 1
        self._last = (run_id, client_id) if run_id and isinstance(client_id, int) else None
        if self._last is None:
            self.stats.unfenced += 1

    async def _exchange(self, commands: list[Command]) -> list[object]:
        """Send the greeting's commands in one pipeline and return their replies. Raises StoreError when the connection ends."""
        loop, replies = asyncio.get_running_loop(), list[object]()
        done: asyncio.Future[None] = loop.create_future()

        def on_reply(reply: object) -> None:
            replies.append(reply)
            if len(replies) == len(commands) and not done.done():
                done.set_result(None)

        for command in commands:
            self._append(_Entry(_packed(command), on_reply, None, loop.time()), loop)
        await done
        for lost in replies:
            if isinstance(lost, StoreError) and not isinstance(lost, ReplyError):
                raise lost
        return replies

    def _drop(self, reason: str) -> None:
        """Give the connection up at once. In flight: LOST, may have been executed. Queued: AWAY, was not."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.abort()
            self.stats.drops[reason] = self.stats.drops.get(reason, 0) + 1
        flight, queue = self._flight, self._queue
        self._flight, self._queue, self._bytes = deque(), deque(), 0
        self._keyed.clear()
        self._gone.set()
        self._set_state(State.AWAY, reason)
        for entries, name in ((flight, "LOST"), (queue, "AWAY")):
            for entry in entries:
                self._count_error(name)
                if entry.on_reply is not None:
                    self._call(entry.on_reply, StoreError(name, reason))

    async def _pause(self) -> None:
        """Wait before the next attempt: doubling up to the bound, with jitter so that nodes do not come back in step."""
        delay = self._backoff_s * random.uniform(0.5, 1.0)
        self._backoff_s = min(2 * self._backoff_s, self.bounds.backoff_max_ms / 1000)
        await self._wait(self._closing, delay)

    @staticmethod
    async def _wait(event: asyncio.Event, seconds: float) -> None:
        """Wait for the event, `seconds` at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()

    # -- health --------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Look after a connection until it is gone."""
        loop = asyncio.get_running_loop()
        looked_at, pause_s = loop.time(), _TICK_S
        while self._wire is not None and not self._gone.is_set():
            now = loop.time()
            delayed, looked_at = now - looked_at > pause_s + 3 * _TICK_S, now
            # When it was this loop that stood still, the replies may be waiting in the socket: they are read first.
            if not delayed and self._oldest_age(now) > self.bounds.stall_ms / 1000:
                self._drop("STALLED")
                return
            self._assess()
            probe_s = self.bounds.probe_ms / 1000
            if now - self._probed_at >= probe_s and (self._refusal or now - self._heard_at >= probe_s):
                self._probed_at = now
                self._probe()
            pause_s = _TICK_S if self.pending else max(_TICK_S, min(self.deadline_s, probe_s))
            await self._wait(self._gone, pause_s)

    def _oldest_age(self, now: float) -> float:
        entries = self._flight or self._queue
        return now - entries[0].at if entries else 0.0

    def _assess(self) -> None:
        """Derive the state of a live connection from what is overdue and what was refused."""
        if self._oldest_age(asyncio.get_running_loop().time()) > self.deadline_s:
            self._set_state(State.SLOW, "DEADLINE")
        elif self._refusal:
            self._set_state(State.REFUSING, self._refusal)
        else:
            self._set_state(State.UP, "")

    def _probe(self) -> None:
        """Ask a silent server whether it lives, and a refusing one whether it takes writes again."""
        if self._refusal:
            self.submit(("SET", keys.PROBE, self._name, "PX", 60_000), self._probed)
        else:
            self.submit(("PING",))

    def _probed(self, reply: object) -> None:
        if not isinstance(reply, StoreError):
            self._refusal = ""
            self._assess()
        elif reply.name in _REDIAL:
            self._drop(reply.name)

    def _set_state(self, state: State, reason: str) -> None:
        if (state, reason) == (self.state, self.reason):
            return
        self.state, self.reason = state, reason
        for listener in self._listeners:
            listener(state, reason)
