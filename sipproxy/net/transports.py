"""All listeners of a node behind one `send`: flows are sent on as they are, hops are resolved first (RFC 3261 §18, RFC 3263).

A hop whose host is a literal leaves at once; a name waits for the resolver without holding up anything else, and is told to the
engine with its addresses. Left out: the next address after a failure, which needs a new transaction (RFC 3263 §4.3) and is the
engine's to choose (engine/addresses.py).
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import TYPE_CHECKING

from sipproxy.engine.backlog import Backlog
from sipproxy.net.addresses import is_here
from sipproxy.net.intake import Intake
from sipproxy.net.passed import Passed
from sipproxy.net.stream import StreamLimits, StreamListener
from sipproxy.net.udp import UdpListener
from sipproxy.sip.flow import Flow, Hop
from sipproxy.sip.stun import is_stun

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Hashable, Iterable, Sequence

    from sipproxy.engine.kinds import Kind
    from sipproxy.engine.shed import Shedder
    from sipproxy.net.resolver import Resolver
    from sipproxy.net.tls import Tls
    from sipproxy.sip.errors import ParseError
    from sipproxy.sip.places import Place

__all__ = ["Transports"]

MAX_LOOKUPS = 1000  # names being resolved at once; beyond that a send fails as if the transport had
MAX_PORT_TRIES = 20
WAYS = 1024  # hops with an address for a host whose flow is kept
AHEAD_S = 4.0  # before a record's time is over that `look_ahead` asks anew: below the least that the resolver keeps one


class Transports:
    """Listeners in the order of the configuration; `Flow.listener` is the index.

    `on_message(data, flow, waited_s, kind)` gets each message, STUN's on UDP included, with the seconds that it waited to be
    looked at as far as that is known, and its kind where that is known; `on_failed(key)` the key of what could not be sent, or
    what ICMP says did not arrive (RFC 3261 §18.4); `on_refused(head, fault, flow)` the head of a message that a stream cannot
    be read beyond, while it can still be answered; `on_closed(flow)` a connection that has ended.
    """

    def __init__(
        self,
        resolver: Resolver,
        on_message: Callable[[bytes, Flow, float, Kind | None], None],
        on_failed: Callable[[Hashable], None],
        on_refused: Callable[[bytes, ParseError, Flow], None],
        on_closed: Callable[[Flow], None],
        *,
        message_bytes: int = 65535,
        tls: Tls | None = None,
        take: Callable[[int], socket.socket] | None = None,
        worker: int = 0,
    ) -> None:
        """`tls` is needed where a listener's transport is TLS.

        In a node of several workers this is one of them, and `take` gives the listener's socket of this index.
        """
        self._take_socket, self._worker = take, worker
        # Brings what is for another worker's connection there; where that is not possible the key has failed.
        self.send_elsewhere: Callable[[Flow, bytes, Hashable | None], None] = lambda flow, data, key: None  # noqa: ARG005
        self.on_stray: Callable[[int, bytes, str, int], None] = lambda index, quoted, host, port: None  # noqa: ARG005
        self.resolver = resolver
        self.on_message = on_message
        self._on_failed = on_failed
        self._on_refused = on_refused
        self._on_closed = on_closed
        self._message_bytes = message_bytes
        self._tls = tls
        self._listeners: list[UdpListener | StreamListener] = []
        self._intake: Intake | None = None
        self._by_kind: dict[tuple[str, int], int] = {}  # (transport, IP version) -> the first listener
        self._lookups: set[asyncio.Task[None]] = set()
        self._way_to = functools.lru_cache(maxsize=WAYS)(self._find_way)
        self.failures: dict[str, int] = {}
        self.on_resolved: Callable[[Hop, Sequence[Place]], None] = lambda hop, places: None  # noqa: ARG005  # for each look-up
        self.may_end: Callable[[Flow], bool] = lambda flow: True  # noqa: ARG005  # whether a silent connection may be ended
        self.customers_at: Callable[[str], int] = lambda host: 0  # noqa: ARG005  # each may have a connection
        self.watchers: list[Callable[[Passed], None]] = []  # are told each message that passes

    def bind(self, listens: Sequence[tuple[str, str, int]], *, next_free: bool = False) -> list[tuple[str, str, int]]:
        """Bind (transport, IP, port) each; what was taken. With `next_free` a busy port is replaced by one of the next 20.

        A listener whose address is not on this machine yet stays closed until `match_addresses` finds it there. Raises OSError
        when an address cannot be had.
        """
        taken: list[tuple[str, str, int]] = []
        moved: dict[int, int] = {}
        for index, (transport, host, wanted) in enumerate(listens):
            tries = range(MAX_PORT_TRIES if next_free and wanted else 1)
            for step in tries:
                port = moved.get(wanted, wanted) + step
                try:
                    listener = self._listener(index, transport, host, port)
                    break
                except OSError:
                    if step == tries[-1]:
                        raise
            self._listeners.append(listener)
            self._by_kind.setdefault((transport, _version(host)), index)
            moved[wanted] = listener.address[1]
            taken.append((transport, *listener.address))
        self._way_to.cache_clear()
        return taken

    def _listener(self, index: int, transport: str, host: str, port: int) -> UdpListener | StreamListener:
        take = self.take
        sockets = self._take_socket
        own = (lambda: sockets(index)) if sockets is not None else None
        if transport == "UDP":
            udp = UdpListener(
                host,
                port,
                take,
                index=index,
                on_failed=lambda key, _: self._on_failed(key),
                max_datagram=self._message_bytes,
                may_wait=True,
                take=own,
            )
            udp.on_stray = lambda quoted, to, to_port: self.on_stray(index, quoted, to, to_port)
            return udp

        def flow_of(source: str, source_port: int, connection: int) -> Flow:
            return Flow(transport, index, source, source_port, connection, stream.names(connection))

        def message(data: bytes, source: str, source_port: int, connection: int) -> None:
            take(data, flow_of(source, source_port, connection), 0.0)

        def refused(head: bytes, fault: ParseError, source: str, source_port: int, connection: int) -> None:
            self._on_refused(head, fault, flow_of(source, source_port, connection))

        def closed(connection: int, source: str, source_port: int, reason: str) -> None:
            if reason != "shutdown":  # the node ends, and takes no notice any more
                self._on_closed(flow_of(source, source_port, connection))

        stream = StreamListener(
            host,
            port,
            message,
            on_failed=lambda key, _: self._on_failed(key),
            on_refused=refused,
            on_closed=closed,
            limits=StreamLimits(message_bytes=self._message_bytes),
            tls=self._tls if transport == "TLS" else None,
            may_wait=True,
            take=own,
            worker=self._worker,
        )
        stream.customers_at = self._customers_at
        stream.may_end = lambda source, source_port, connection: self.may_end(flow_of(source, source_port, connection))
        return stream

    def _customers_at(self, host: str) -> int:
        return self.customers_at(host)  # which is set once there is an engine to ask

    def take(self, data: bytes, flow: Flow, waited_s: float, kind: Kind | None = None) -> None:
        """A message that a listener, or another worker's socket of one, has read."""
        if self.watchers:
            self._show(flow, data, outgoing=False)
        self.on_message(data, flow, waited_s, kind)

    def read_ahead(self, shedder: Shedder, awaited: Collection[object] = ()) -> None:
        """Have messages that wait in the sockets handed on by their urgency, of which the shedder knows. As long as `awaited`
        holds something, a datagram is read behind the answers that came with it."""
        self._intake = Intake(self.take, Backlog(shedder))
        for listener in self._listeners:
            if isinstance(listener, UdpListener):
                listener.intake, listener.awaited = self._intake, awaited

    def failed(self, key: Hashable) -> None:
        """What another worker was to send for this key did not go out."""
        self._on_failed(key)

    def unreachable(self, index: int, quoted: bytes, host: str, port: int) -> None:
        """Another worker's socket of this listener heard that a datagram which begins so did not get there."""
        listener = self._listeners[index]
        assert isinstance(listener, UdpListener)
        listener.unreachable(quoted, host, port, stray=True)

    def _show(self, flow: Flow, data: bytes, *, outgoing: bool) -> None:
        if is_stun(data):
            return  # no SIP message
        local = self._listeners[flow.listener].address
        passed = Passed(time.time_ns(), outgoing, flow.transport, local, (flow.host, flow.port), data)
        for watcher in self.watchers:
            watcher(passed)

    async def start(self) -> None:
        """Deliver messages from now on."""
        for listener in self._listeners:
            if isinstance(listener, UdpListener):
                listener.start()
            else:
                await listener.start()

    async def match_addresses(self) -> list[tuple[str, str]]:
        """Close the listeners whose address is gone from this machine, and open those whose address is there again. Connections
        of others are untouched; a message that would leave from an address that is gone has failed.

        Returns (listener, "closed", "opened" or why it cannot be opened) for each that was, or is not, as its address is.
        """
        changes: list[tuple[str, str]] = []
        for listener in self._listeners:
            here = is_here(listener.address[0])
            if here == listener.is_open:
                continue
            change = "opened" if here else "closed"
            try:
                if isinstance(listener, UdpListener):
                    listener.reopen() if here else listener.close()
                else:
                    await (listener.reopen() if here else listener.close("address"))
            except OSError as error:  # the port has been taken, or the address is gone again
                change = error.strerror or str(error)
            changes.append((_shown(listener), change))
        return changes

    @property
    def away(self) -> list[str]:
        """The listeners that are closed because their address is not on this machine."""
        return [_shown(listener) for listener in self._listeners if not listener.is_open]

    async def close(self) -> None:
        """Close every listener. Harmless when repeated."""
        for task in self._lookups:
            task.cancel()
        await asyncio.gather(*self._lookups, return_exceptions=True)
        if self._intake is not None:
            self._intake.close()
        for listener in self._listeners:
            if isinstance(listener, UdpListener):
                listener.close()
            else:
                await listener.close()

    @property
    def ways(self) -> functools._CacheInfo:
        """How many hops there are whose flow is kept."""
        return self._way_to.cache_info()

    def send(self, target: Flow | Hop, data: bytes, key: Hashable | None, connect_s: float = 0.0, domain: str = "") -> None:
        """Send, or report `key` as failed: in a later turn of the loop, never from within.

        With `connect_s` a connection that is not open after so many seconds is a failure, and the data is not sent any more.
        `domain` is the name that a flow's address was found by.
        """
        if isinstance(target, Flow):
            if self._worker and target.connection and target.worker != self._worker:
                self.send_elsewhere(target, data, key)
                return
            to = target
        else:
            way = self._way_to(target)
            if way is None:
                self._find_out(target, data, key, connect_s)
                return
            to, domain = way, target.domain or target.host
        listener = self._listeners[to.listener]
        if self.watchers:
            self._show(to, data, outgoing=True)
        if isinstance(listener, StreamListener):
            listener.send(data, to.host, to.port, to.connection, domain=domain, key=key, connect_s=connect_s)
            return
        try:
            listener.send(data, to.host, to.port, key)
        except OSError as error:
            self._fail(f"errno_{error.errno}", key)

    def _find_out(self, target: Hop, data: bytes, key: Hashable | None, connect_s: float) -> None:
        """What leads to a hop that has no way: a name is looked up."""
        if self.resolver.literal(target.host, target.port, target.transport) is not None:
            self._fail("no_listener", key)
        elif len(self._lookups) >= MAX_LOOKUPS:
            self._fail("too_many_lookups", key)
        else:
            task = asyncio.get_running_loop().create_task(self._look_up(target, data, key, connect_s))
            self._lookups.add(task)
            task.add_done_callback(self._lookups.discard)

    def end_silent(self, flow: Flow, silent_s: float) -> None:
        """End the connection when nothing comes by it for so many seconds, from now on; 0: no more (RFC 5626 §5.4)."""
        listener = self._listeners[flow.listener]
        if isinstance(listener, StreamListener):
            listener.end_silent(flow.connection, silent_s)

    async def look_ahead(self, hops: Iterable[Hop]) -> None:
        """Look up the names among these, and again before their records run out: what is sent there does not wait."""
        await asyncio.gather(*(self._known(hop, AHEAD_S) for hop in set(hops) if not hop.version))

    async def _known(self, hop: Hop, ahead_s: float = 0.0) -> list[Place]:
        """The places of a hop, which are told."""
        among = {"TLS"} if hop.transport == "TLS" else {transport for transport, _ in self._by_kind}
        found = await self.resolver.resolve(
            hop.host, hop.port, hop.transport, among=among if hop.is_open else (), ahead_s=ahead_s
        )
        if found:
            self.on_resolved(hop, found)
        return found

    async def _look_up(self, target: Hop, data: bytes, key: Hashable | None, connect_s: float) -> None:
        found = await self._known(target)
        way = self._way(target, found) if found else None
        if way is not None:
            self.send(way, data, key, connect_s=connect_s, domain=target.domain or target.host)
        else:
            self._fail("no_listener" if found else "unresolved", key)

    def _find_way(self, target: Hop) -> Flow | None:
        """The way to a hop that is an address; None for a name, and where no listener reaches it. The same for as long as the
        listeners are."""
        place = self.resolver.literal(target.host, target.port, target.transport)
        return self._way(target, [place]) if place is not None else None

    def _way(self, target: Hop, places: Sequence[Place]) -> Flow | None:
        """The way to the first of the places that a listener reaches: the hop's own, else the first of its IP version.

        Of a name's places those count that its Via speaks the transport of, and those come first whose listener's address
        stands there.
        """
        first = min((index for (transport, _), index in self._by_kind.items() if transport == target.transport), default=0)
        found = [
            Flow(target.transport, self._listener_to(target, place.host), place.host, place.port)
            for place in places
            if place.transport == target.transport
        ]
        reachable = [flow for flow in found if flow.listener >= 0]
        return min(reachable, key=lambda flow: flow.listener != first) if reachable else None

    def _listener_to(self, target: Hop, host: str) -> int:
        """The index of the listener that a hop's address is reached from, -1 for none."""
        version = _version(host)
        if target.listener < 0:
            return self._by_kind.get((target.transport, version), -1)
        return target.listener if _version(self._listeners[target.listener].address[0]) == version else -1

    def _fail(self, reason: str, key: Hashable | None) -> None:
        self.failures[reason] = self.failures.get(reason, 0) + 1
        if key is not None:
            asyncio.get_running_loop().call_soon(self._on_failed, key)

    @property
    def drops(self) -> int:
        """Datagrams that found no room: in a socket's buffer, where the kernel drops them, or among those that wait here."""
        kept_out = self._intake.backlog.dropped if self._intake is not None else 0
        return kept_out + sum(listener.kernel_drops for listener in self._listeners if isinstance(listener, UdpListener))

    def counters(self) -> dict[tuple[str, ...], float]:
        """(transport, what) -> count, over all listeners."""
        totals: dict[tuple[str, ...], float] = {}
        for listener in self._listeners:
            if isinstance(listener, UdpListener):
                rows = {**listener.counters, **{f"dropped_{k}": v for k, v in listener.dropped.items()}}
                rows["dropped_kernel"] = listener.kernel_drops
            else:
                rows = {**listener.counters, **{f"closed_{k}": v for k, v in listener.closed.items()}}
                rows.update({f"failed_{k}": v for k, v in listener.failed.items()})
            transport = _transport_of(listener)
            for name, value in rows.items():
                totals[transport, name] = totals.get((transport, name), 0) + value
        if self._intake is not None:
            totals |= {("UDP", f"dropped_{reason}"): count for reason, count in self._intake.backlog.counts.items()}
        return totals


def _transport_of(listener: UdpListener | StreamListener) -> str:
    if isinstance(listener, UdpListener):
        return "UDP"
    return "TCP" if listener.tls is None else "TLS"


def _shown(listener: UdpListener | StreamListener) -> str:
    host, port = listener.address
    return f"{_transport_of(listener).lower()} {host}:{port}"


def _version(host: str) -> int:
    return 6 if ":" in host else 4
