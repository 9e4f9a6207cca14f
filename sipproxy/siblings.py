"""One worker among the others of its node: what it passes to them and takes from them, and what the supervisor tells it.

The owner of each message is read from its bytes (`engine.steering`); what is another's goes to it whole, with the flow that it
came by. A connection is used by all workers through the one that has it. Bindings and what fraud is counted by are told at
once, not only through the store. Makes no SIP decision.

A call for help that is another's is kept until that one says that it has it: who dies or stands still keeps none from help.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

from sipproxy.engine.actions import SaveBinding
from sipproxy.engine.crew import Gone
from sipproxy.engine.location import STATIC
from sipproxy.engine.steering import Steering
from sipproxy.net.handover import MAX_MESSAGE, Post
from sipproxy.net.taken import Taken
from sipproxy.net.udp import UdpListener
from sipproxy.orders import Live, State
from sipproxy.words import (
    Asked,
    Bound,
    Closed,
    Confirmed,
    Failed,
    Followed,
    Kept,
    Known,
    Passed,
    Send,
    Unbound,
    Unreachable,
    decode,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from sipproxy.engine.actions import RemoveBinding
    from sipproxy.engine.kinds import Kind
    from sipproxy.metrics import Metrics
    from sipproxy.net.transports import Transports
    from sipproxy.orders import Spec
    from sipproxy.shell import Shell
    from sipproxy.sip.flow import Flow
    from sipproxy.watching import Watching
    from sipproxy.words import Word

__all__ = ["Siblings"]

MAX_PENDING = 4096  # messages on others' connections whose failure may yet be told
MAX_ASKED = 1024  # calls for help that others were given and have not confirmed; further ones are given to nobody
CONFIRM_S = 0.4  # until such a call is taken here: it has not been repeated yet (T1, RFC 3261 §17.1.1.2)
KEPT_AT_ONCE = 5000  # exceptions of the steering in one message
MAX_AHEAD = 100  # bindings that a worker which asked has not taken yet: messages to it have to find room
AHEAD_S = 0.01  # until it is looked at again whether it has
TAKE_OVER_S = 0.5  # that a new worker waits for what the others took in its place
PATS_S = 0.5  # between two signs of life to the supervisor
LINK_BYTES = 4096


class Handed(NamedTuple):
    """The key of what is sent for another worker."""

    worker: int
    ident: int


class Given(NamedTuple):
    """A call for help that the last of these workers has not confirmed yet."""

    passed: Passed
    tried: tuple[int, ...]
    timer: asyncio.TimerHandle


class Siblings:
    """See the module. `key` is the node's secret."""

    def __init__(self, spec: Spec, key: bytes) -> None:
        self.spec, self.me = spec, spec.worker
        self.steering = steering = Steering(spec.worker, spec.count, key)
        taken = self._taken = Taken(spec.taken, spec.worker)
        steering.first, steering.first_of = taken.take, taken.owner
        steering.tell = lambda key: self._tell(Kept(self.me, [(key, self.me)], last=False))
        self._others = [worker for worker in range(1, len(spec.names) + 1) if worker != spec.worker]
        outboxes = {worker: _socket(spec.outboxes[worker - 1]) for worker in self._others}
        self.post = Post(_socket(spec.inboxes[spec.worker - 1]), outboxes, self._take)
        self._link = _socket(spec.link)
        self._pending: OrderedDict[int, tuple[int, Hashable]] = OrderedDict()
        self._given: dict[int, Given] = {}
        self._last_ident = 0
        self._held: list[Word] | None = []  # what came before this worker serves
        self._heard: set[int] = set()
        self._knows_others = False  # the supervisor has said who is there
        self._waiting = asyncio.Event()
        self._askers: asyncio.Queue[int] = asyncio.Queue()
        self._standing_in: dict[int, list[UdpListener]] = {}
        self._log = structlog.get_logger("node")
        self.counters = {"responses": 0, "requests": 0, "sends": 0, "taken_here": 0, "lost": 0}
        self.counters |= {"undecodable": 0, "sends_forgotten": 0}
        self.on_live: Callable[[Live], None] = lambda live: None  # noqa: ARG005  # what was reloaded
        self.on_followed: Callable[[int, str], None] = lambda ident, call_id: None  # noqa: ARG005
        self._shell: Shell | None = None
        self._transports: Transports | None = None

    def socket_of(self, listener: int) -> socket.socket:
        """This worker's socket of a listener, for the listener to close."""
        stream, sockets = self.spec.streams[listener], self.spec.udp[listener]
        return _socket(os.dup(stream if stream >= 0 else sockets[0 if self.spec.is_leaving else self.me - 1]))

    def attach(self, shell: Shell, transports: Transports) -> None:
        """Serve this worker's engine and sockets."""
        self._shell, self._transports = shell, transports
        shell.engine.crew.tell = self._tell
        shell.on_binding = self._tell_binding
        transports.send_elsewhere = self._send_elsewhere
        transports.on_stray = lambda index, quoted, host, port: self._tell(Unreachable(index, quoted, host, port))

    def follow_with(self, watching: Watching) -> None:
        """Have an operator who follows a call here follow it at the others, and the other way round."""
        watching.tell_others = lambda ident, call_id: self._tell(Followed(ident, call_id))
        self.on_followed = watching.followed

    def register(self, metrics: Metrics) -> None:
        """Announce what is passed between the workers."""
        what = ("what",)
        metrics.counter(
            "sipproxy_worker_passed",
            "messages that this worker read and another one owns, by what they were",
            lambda: self.counters,
            what,
        )
        metrics.counter("sipproxy_worker_post", "words between workers, and those without room", self._posted, what)
        metrics.gauge("sipproxy_worker_post_queued", "words that wait for another worker", lambda: self.post.queued)
        metrics.gauge(
            "sipproxy_worker_exceptions",
            "calls for help, and calls that are not where their Call-ID says",
            lambda: len(self.steering),
        )
        metrics.counter("sipproxy_worker_exceptions_forgotten", "for lack of room", lambda: self.steering.forgotten)
        metrics.counter(
            "sipproxy_worker_taken_forgotten",
            "calls for help of which others know by word alone, for lack of room",
            lambda: self._taken.forgotten,
        )
        metrics.gauge("sipproxy_worker_standing_in", "workers whose datagrams are read here", lambda: len(self._standing_in))

        what_is = "bindings that workers removed, remembered because the store may tell of them yet"
        metrics.gauge("sipproxy_worker_removals", what_is, self._removals)

    def _removals(self) -> int:
        assert self._shell is not None
        return self._shell.engine.desk.location.removed

    def _posted(self) -> dict[str, float]:
        return {**self.post.counters}

    # The supervisor

    async def take_over(self) -> None:
        """Learn what the others took while this worker was not there. Its own sockets are read by nobody meanwhile."""
        asyncio.get_running_loop().add_reader(self._link.fileno(), self._on_link)
        self.post.start()
        self.say("taking")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TAKE_OVER_S):
                await self._waiting.wait()

    def serve(self) -> None:
        """From now on this worker takes messages; first those that were passed to it before."""
        held, self._held = self._held or [], None
        for word in held:
            if isinstance(word, Passed) and self.steering.owner(word.data) != self.me:
                self.message(word.data, word.flow, word.waited_s)  # somebody took it meanwhile
            else:
                self._perform(word)
        self.say("ready")

    def ask_bindings(self) -> None:
        """Have another worker tell the bindings, since the store does not."""
        others = self.steering.alive - {self.me}
        if others:
            self._pass(min(others), Asked(self.me))

    async def tell_bindings(self) -> None:
        """Tell workers that ask all bindings that are known here, until cancelled."""
        assert self._shell is not None
        location = self._shell.engine.desk.location
        while True:
            worker = await self._askers.get()
            for user, binding in list(location.items()):
                if binding.key.startswith(STATIC):
                    continue
                while self.post.queued > MAX_AHEAD:  # noqa: ASYNC110  what is waited for has no event
                    await asyncio.sleep(AHEAD_S)
                if worker not in self.steering.alive:
                    break
                if location.get(user, binding.key) is binding:  # else what is newer was told
                    self._pass(worker, Known(user, binding))
                await asyncio.sleep(0)  # messages come first

    async def run(self, is_healthy: Callable[[], bool]) -> None:
        """Show the supervisor that the event loop runs, until cancelled."""
        while True:
            if is_healthy():
                self.say("alive")
            await asyncio.sleep(PATS_S)

    def close(self) -> None:
        """Pass nothing on any more."""
        for listeners in self._standing_in.values():
            for listener in listeners:
                listener.close()
        self._standing_in.clear()
        for given in self._given.values():
            given.timer.cancel()
        self._given.clear()
        self.post.close()
        asyncio.get_running_loop().remove_reader(self._link.fileno())

    def say(self, word: str) -> None:
        """Tell the supervisor how this worker does."""
        with contextlib.suppress(OSError):  # the supervisor is gone: the reader below notices
            self._link.send(word.encode())

    def _on_link(self) -> None:
        try:
            data = self._link.recv(LINK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            # Nobody would start the others again, nor let a new supervisor have the sockets. The journal has the calls.
            os._exit(1)
        word: State | Live = msgspec.json.decode(data, type=State | Live)
        if isinstance(word, Live):
            self.on_live(word)
        else:
            self._on_state(word)

    def _on_state(self, state: State) -> None:
        alive, before = frozenset(state.alive), self.steering.alive
        self.steering.alive, self.steering.leaving = alive | {self.me}, frozenset(state.leaving)
        self._knows_others = True
        for worker in alive - before - {self.me}:
            self._tell_kept(worker)
        for worker in before - alive - {self.me}:
            self._lost(worker)
        for worker in self._standing_in.keys() - set(state.read):
            for listener in self._standing_in.pop(worker):
                listener.close()
        for worker in set(state.read) - self._standing_in.keys():
            self._stand_in(worker)
        self._note_heard()

    def _note_heard(self) -> None:
        if self._knows_others and self._heard >= self.steering.alive - {self.me}:
            self._waiting.set()

    def _tell_kept(self, worker: int) -> None:
        kept = self.steering.kept()
        parts = [kept[at : at + KEPT_AT_ONCE] for at in range(0, len(kept), KEPT_AT_ONCE)] or [[]]
        for number, part in enumerate(parts, 1):
            self.post.send(worker, encode(Kept(self.me, part, number == len(parts))))

    def _lost(self, worker: int) -> None:
        """A worker has died: so have its connections, and what was to be sent by them."""
        assert self._shell is not None
        failed = [ident for ident, (owner, _) in self._pending.items() if owner == worker]
        for ident in failed:
            self._fail(ident)
        for ident in [ident for ident, given in self._given.items() if given.tried[-1] == worker]:
            self._not_confirmed(ident)
        self._shell.told(Gone(worker))

    def _stand_in(self, worker: int) -> None:
        """Read the datagrams that the kernel has for a worker which is not there."""
        assert self._transports is not None
        listeners = []
        for index, sockets in enumerate(self.spec.udp):
            if not sockets:
                continue
            listeners.append(self._reader(index, sockets[worker - 1]))
        self._standing_in[worker] = listeners
        self._log.warning("standing_in", worker=worker)

    def _reader(self, index: int, descriptor: int) -> UdpListener:
        transports = self._transports
        assert transports is not None
        _, host, port = self.spec.bound[index]

        def take() -> socket.socket:
            return _socket(os.dup(descriptor))

        reader = UdpListener(host, port, transports.take, index=index, take=take)
        reader.on_stray = lambda quoted, to, to_port: self._unreachable(index, quoted, to, to_port)
        reader.start()
        return reader

    def _unreachable(self, index: int, quoted: bytes, host: str, port: int) -> None:
        assert self._transports is not None
        self._transports.unreachable(index, quoted, host, port)
        self._tell(Unreachable(index, quoted, host, port))

    # Messages

    def message(self, data: bytes, flow: Flow, waited_s: float, kind: Kind | None = None) -> None:
        """A message that this worker's sockets brought: handled here, or by the worker whose it is."""
        assert self._shell is not None
        owner = self.steering.owner(data)
        if owner == self.me:
            self._shell.message(data, flow, waited_s, kind)
        else:
            self._hand_over(Passed(flow, data, waited_s), owner, (), kind)

    def _hand_over(self, passed: Passed, owner: int, tried: tuple[int, ...], kind: Kind | None = None) -> None:
        """Pass a message on to the worker whose it is; what that has no room for and can be begun here as well is."""
        assert self._shell is not None
        while owner != self.me:
            if not owner:
                self.counters["lost"] += 1
                return
            tried = (*tried, owner)
            if self._is_passed(passed, tried):
                self.counters["responses" if passed.data.startswith(b"SIP/2.0 ") else "requests"] += 1
                return
            owner = self.steering.instead(passed.data, tried)
        self.counters["taken_here"] += 1
        self._shell.message(passed.data, passed.flow, passed.waited_s, kind)

    def _is_passed(self, passed: Passed, tried: tuple[int, ...]) -> bool:
        """Whether there was room for it. A call for help is kept until it is confirmed (design: invariant 1)."""
        if not self.steering.is_for_help(passed.data):
            return self._pass(tried[-1], passed)
        self._last_ident = ident = self._last_ident + 1
        asking = Passed(passed.flow, passed.data, passed.waited_s, self.me, ident)
        if len(self._given) >= MAX_ASKED or not self._pass(tried[-1], asking):
            return False
        timer = asyncio.get_running_loop().call_later(CONFIRM_S, self._look_again, ident)
        self._given[ident] = Given(passed, tried, timer)
        return True

    def _confirmed(self, ident: int) -> None:
        given = self._given.pop(ident, None)
        if given is not None:
            given.timer.cancel()

    def _look_again(self, ident: int) -> None:
        self.post.read()  # it is this worker that was late where the word is there
        if ident in self._given:
            self._not_confirmed(ident)

    def _not_confirmed(self, ident: int) -> None:
        """The worker has died, or stands still: the call is taken in its place."""
        given = self._given[ident]
        self._confirmed(ident)
        self._log.warning("help_not_confirmed", worker=given.tried[-1])
        self._hand_over(given.passed, self.steering.instead(given.passed.data, given.tried), given.tried)

    def flow_closed(self, flow: Flow) -> None:
        """A connection of this worker has ended."""
        self._tell(Closed(flow))

    def is_failure_of_another(self, key: Hashable) -> bool:
        """Whether what could not be sent was sent for another worker, which is told."""
        if not isinstance(key, Handed):
            return False
        self._pass(key.worker, Failed(key.ident))
        return True

    def _send_elsewhere(self, flow: Flow, data: bytes, key: Hashable | None) -> None:
        worker, ident = flow.worker, 0
        if key is not None:
            self._last_ident = ident = self._last_ident + 1
            self._pending[ident] = worker, key
            if len(self._pending) > MAX_PENDING:
                self._pending.popitem(last=False)
                self.counters["sends_forgotten"] += 1
        if worker not in self.steering.alive or not self._pass(worker, Send(flow, data, self.me, ident)):
            asyncio.get_running_loop().call_soon(self._fail, ident)
        else:
            self.counters["sends"] += 1

    def _fail(self, ident: int) -> None:
        assert self._transports is not None
        _, key = self._pending.pop(ident, (0, None))
        if key is not None:
            self._transports.failed(key)

    # Words

    def _pass(self, worker: int, word: Word) -> bool:
        data = encode(word)
        return worker in self._others and len(data) <= MAX_MESSAGE and self.post.send(worker, data)

    def _tell(self, word: Any) -> None:
        data = encode(word)
        for worker in self._others:
            if worker in self.steering.alive:
                self.post.send(worker, data)

    def _tell_binding(self, action: SaveBinding | RemoveBinding) -> None:
        if isinstance(action, SaveBinding):
            self._tell(Bound(action.user, action.binding))
        else:
            self._tell(Unbound(action.user, action.key, action.at_ms))

    def _take(self, data: memoryview) -> None:
        try:
            word: Word = decode(data)
        except msgspec.MsgspecError:
            self.counters["undecodable"] += 1  # of a worker of another version: none is left after a restart of the node
            return
        if isinstance(word, Kept):
            self.steering.learn(word.exceptions, word.worker)
            if word.last:
                self._heard.add(word.worker)
                self._note_heard()
        elif isinstance(word, Confirmed):
            self._confirmed(word.ident)
        elif self._held is not None:
            self._held.append(word)
        else:
            self._perform(word)

    def _take_passed(self, word: Passed) -> None:
        assert self._shell is not None
        self._shell.message(word.data, word.flow, word.waited_s)
        if word.ident:
            self._pass(word.worker, Confirmed(word.ident))

    def _perform(self, word: Word) -> None:
        shell, transports = self._shell, self._transports
        assert shell is not None
        assert transports is not None
        if isinstance(word, Passed):
            self._take_passed(word)
        elif isinstance(word, Send):
            transports.send(word.flow, word.data, Handed(word.worker, word.ident) if word.ident else None)
        elif isinstance(word, Failed):
            self._fail(word.ident)
        elif isinstance(word, Closed):
            shell.flow_closed(word.flow)
        elif isinstance(word, Unreachable):
            transports.unreachable(word.listener, word.quoted, word.host, word.port)
        elif isinstance(word, Bound):
            shell.binding_seen(word.user, word.binding, is_told=True)
        elif isinstance(word, Unbound):
            shell.binding_gone(word.user, word.key, word.at_ms, is_told=True)
        elif isinstance(word, Known):
            shell.bindings_read([(word.user, word.binding)], own_too=True)
        elif isinstance(word, Asked):
            self._askers.put_nowait(word.worker)
        elif isinstance(word, Followed):
            self.on_followed(word.ident, word.call_id)
        elif not isinstance(word, Kept | Confirmed):
            shell.told(word)


def _socket(descriptor: int) -> socket.socket:
    found = socket.socket(fileno=descriptor)
    found.settimeout(0)
    return found
