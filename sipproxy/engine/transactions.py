"""The transaction layer: tables of the machines of `sip.transaction`, their timers, and who uses each (RFC 3261 §17).

Pure. What a machine sends becomes a `SendTo` with the transaction's target; what it passes up goes to its user. The tables are
bounded together: when they are full a new transaction is refused, which the caller answers with 503.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Protocol

from sipproxy.engine.actions import Action, new_send
from sipproxy.engine.long_requests import CONNECT_S
from sipproxy.engine.reduced import reduced, request_of
from sipproxy.sip.build import Sent, whole, write_cancel
from sipproxy.sip.flow import Flow
from sipproxy.sip.matching import client_key, response_key, server_key
from sipproxy.sip.message import Request
from sipproxy.sip.timers import NOWHERE, Timer
from sipproxy.sip.transaction import (
    PASS_UP,
    RELIABLE,
    SEND,
    TIMED_OUT,
    InviteClient,
    InviteServer,
    NonInviteClient,
    NonInviteServer,
    State,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

    from sipproxy.engine.long_requests import LongRequests
    from sipproxy.sip.flow import Hop
    from sipproxy.sip.message import Response
    from sipproxy.sip.timers import TimerQueue, Timers

__all__ = ["ClientUser", "Server", "Transactions"]

Machine = InviteServer | NonInviteServer | InviteClient | NonInviteClient
ACCEPTED, TERMINATED = State.ACCEPTED, State.TERMINATED
_NAMELESS = ("s", ())


class ClientUser(Protocol):
    """Transaction user of a client transaction: told of each response, and once of its failure."""

    def response(self, key: Hashable, response: Response, /) -> None: ...

    def failed(self, key: Hashable, /, *, timed_out: bool) -> None: ...


class _Kept(Timer):
    """A request that is kept whole while it is needed so, and reduced when it is hardly asked for any more. Its transaction's
    timer: the first of the machine's deadlines, or before it."""

    __slots__ = ("_reduced", "_whole")

    _whole: Request | Sent | None
    _reduced: bytes

    @property
    def request(self) -> Request:
        found = self._whole
        if isinstance(found, Request):  # as nearly always
            return found
        if found is None:
            return request_of(self._reduced)
        self._whole = read = whole(found)
        return read

    @property
    def raw(self) -> bytes:
        """Its bytes, or what is kept of them."""
        return self._whole.raw if self._whole is not None else self._reduced

    @property
    def kept(self) -> bytes:
        """What `reduced` keeps of the request."""
        if self._whole is not None and not self._reduced:
            self._reduced = (isinstance(self._whole, Sent) and self._whole.kept) or reduced(self.request)
        return self._reduced

    def rest(self) -> None:
        """Keep only what `reduced` does of the request. Harmless when repeated."""
        if self._whole is not None:
            self._reduced, self._whole = self.kept, None

    def forget(self) -> None:
        """Keep nothing of the request, which nobody asks for any more."""
        self._whole = None


class Server(_Kept):
    """A server transaction with the flow that its responses leave by. `user` is what a CANCEL or a failure concerns; `tried`
    are the flows by which the last response could not be sent; `name` is the transaction among actions."""

    __slots__ = ("machine", "name", "target", "tried", "user")

    def __init__(self, key: Hashable, machine: InviteServer | NonInviteServer, request: Request, target: Flow) -> None:
        self.at, self.order, self.place, self.index = inf, 0, NOWHERE, 0  # as `unset`: a call makes two of these
        self._whole, self._reduced = request, b""
        self.machine, self.target = machine, target
        self.name = ("s", key)
        self.user: object = None
        self.tried: tuple[Flow, ...] = ()

    @property
    def key(self) -> Hashable:
        """What it is found by."""
        return self.name[1]

    @property
    def is_accepted(self) -> bool:
        """Whether it passes an ACK on (RFC 6026 §7.1)."""
        return self.machine.state is State.ACCEPTED

    @property
    def is_final(self) -> bool:
        return self.machine.state not in (State.TRYING, State.PROCEEDING)


class Client(_Kept):
    """A client transaction. `challenged` counts the challenges that its request is the answer to; `instead` is the request as
    it goes over UDP, where it left over TCP for its length alone."""

    __slots__ = ("challenged", "instead", "key", "machine", "method", "name", "target", "user")

    def __init__(
        self,
        key: Hashable,
        machine: InviteClient | NonInviteClient,
        request: Request | Sent,
        target: Flow | Hop,
        user: ClientUser,
    ) -> None:
        self.at, self.order, self.place, self.index = inf, 0, NOWHERE, 0  # as above
        self._whole, self._reduced = request, b""
        self.key, self.machine, self.target, self.user = key, machine, target, user
        self.name = ("c", key)
        self.method = request.method
        self.challenged = 0
        self.instead: tuple[Request | Sent, Flow | Hop] | None = None

    def replace(self, machine: InviteClient | NonInviteClient, request: Request | Sent, target: Flow | Hop) -> None:
        """Begin anew with another request."""
        self.machine, self._whole, self._reduced, self.target, self.instead = machine, request, b"", target, None


class Ignored:
    """User of a transaction whose outcome changes nothing: CANCEL (§9.1 speaks of the INVITE's response only)."""

    def response(self, key: Hashable, response: Response, /) -> None:
        """Take no notice."""

    def failed(self, key: Hashable, /, *, timed_out: bool) -> None:
        """Take no notice."""


class Transactions:
    """All transactions of a node. `emit` takes the actions; `now` of each call is monotonic seconds."""

    def __init__(
        self,
        timers: Timers,
        *,
        limit: int,
        emit: Callable[[Action], None],
        queue: TimerQueue,
        long_requests: LongRequests | None = None,
    ) -> None:
        self._timers = timers
        self._limit = limit
        self._emit = emit
        self._queue = queue
        self._long_requests = long_requests
        self.servers: dict[Hashable, Server] = {}
        self.clients: dict[Hashable, Client] = {}
        self._by_flow: dict[Flow, set[Hashable]] = {}  # the clients of each connection
        # Where else the sender of an INVITE is reached whose connection has ended, and who is told which way is taken, if any.
        self.ways_back: Callable[[Server], Iterable[Flow]] = lambda server: ()  # noqa: ARG005
        self.unheard: Callable[[Server, Flow | None], None] = lambda server, way: None  # noqa: ARG005
        self.over: Callable[[object], None] = lambda user: None  # noqa: ARG005  # is told whose INVITE's transaction is over
        self._over: InviteServer | None = None  # the machine of all INVITEs' transactions that are over: it absorbs everything
        self.told: Client | None = None  # whose response its user is being told; over TCP it has left the table by then

    @property
    def share(self) -> float:
        """How full the tables are, from 0 to 1."""
        return (len(self.servers) + len(self.clients)) / self._limit

    @property
    def is_full(self) -> bool:
        return len(self.servers) + len(self.clients) >= self._limit

    # Server side

    def find_server(self, request: Request) -> Server | None:
        """The transaction that a retransmission, or an ACK for a non-2xx, belongs to."""
        return self.servers.get(server_key(request))

    def new_server(self, request: Request, target: Flow, now: float) -> Server:
        kind = InviteServer if request.method == b"INVITE" else NonInviteServer
        machine = kind(request, self._timers, target.transport, now)
        key = server_key(request)
        self.servers[key] = server = Server(key, machine, request, target)
        self._queue.set(server, machine.again_at, machine.end_at)
        return server

    def accepted_server(self, request: Request, target: Flow) -> Server:
        """An INVITE's server transaction that was answered with a 2xx before; in no table yet."""
        machine = InviteServer(request, self._timers, target.transport, 0.0)
        return Server(server_key(request), machine, request, target)

    def put_server(self, server: Server, now: float) -> None:
        """Let an accepted server transaction absorb and pass on what still arrives for it (RFC 6026 §7.1)."""
        server.machine.respond(200, b"", now)  # without sending: the 2xx is the UAS's to repeat
        self.servers[server.key] = server
        self._arm_server(server)

    def receive_request(self, server: Server, request: Request, now: float) -> Request | None:
        """Feed a retransmission or an ACK. Returns an ACK that is the transaction user's (RFC 6026 §7.1)."""
        todo = server.machine.receive(request, now)
        if todo & SEND:
            self._emit(new_send((server.target, server.machine.out, server.name, 0.0)))
        self._arm_server(server)
        return request if todo & PASS_UP else None

    def respond(self, server: Server, status: int, data: bytes, now: float) -> None:
        server.tried = ()
        machine = server.machine
        if machine.respond(status, data, now):
            self._emit(new_send((server.target, data, server.name, 0.0)))
        if machine.state is TERMINATED:
            self._arm_server(server)
            return
        self._queue.set(server, machine.again_at, machine.end_at)
        if status >= 200 and isinstance(machine, NonInviteServer):
            server.forget()  # what repeats it gets the same answer, and its user gets no other one for it (§17.1.2.2)

    def _arm_server(self, server: Server) -> None:
        machine = server.machine
        if machine.state is not TERMINATED:
            self._queue.set(server, machine.again_at, machine.end_at)
            return
        self._queue.cancel(server)
        self.servers.pop(server.key, None)
        user, server.user = server.user, None  # which refers back to it: memory is free at once, without the garbage collector
        if isinstance(machine, InviteServer):
            server.rest()  # its call goes on with it, and needs neither key nor machine
            self._over = self._over or machine
            server.name, server.machine = _NAMELESS, self._over
            self.over(user)

    # Client side

    def new_client(
        self,
        request: Request | Sent,
        branch: bytes,
        target: Flow | Hop,
        user: ClientUser,
        now: float,
        *,
        challenged: int = 0,
        urgent: bool = False,
    ) -> Hashable:
        """Start a client transaction with the request as it is to be sent; its key is returned.

        One that is too long for a datagram leaves over TCP where that is possible, an `urgent` one where that is known.
        """
        key = client_key(branch, request.method)
        longer = self._long_requests.choose(request, target, urgent=urgent) if self._long_requests is not None else None
        instead = None
        if longer is not None:
            instead, (request, target) = (request, target), longer
        machine = self._machine(request, target)
        client = Client(key, machine, request, target, user)
        client.challenged, client.instead = challenged, instead
        self._add_client(client)
        machine.start(now)
        self._queue.set(client, machine.again_at, machine.end_at)
        self._emit(new_send((target, machine.out, client.name, CONNECT_S if instead is not None else 0.0)))
        return key

    def _machine(self, request: Request | Sent, target: Flow | Hop) -> InviteClient | NonInviteClient:
        kind = InviteClient if request.method == b"INVITE" else NonInviteClient
        return kind(request, self._timers, target.transport)

    def _over_udp(self, client: Client, now: float) -> None:
        """Nobody takes TCP there: the transaction begins anew over UDP (RFC 3261 §18.1.1)."""
        assert client.instead is not None
        assert self._long_requests is not None
        request, target = client.instead
        client.replace(self._machine(request, target), request, target)
        self._long_requests.learnt(client.target, takes_tcp=False)
        self._add_client(client)
        self._perform(client, client.machine.start(now), None)

    def send_ack(self, ack: Request | Sent, target: Flow | Hop) -> None:
        """Send the ACK of a 2xx, which has no transaction: over TCP where it is too long for a datagram and TCP is known."""
        longer = self._long_requests.choose(ack, target, urgent=True) if self._long_requests is not None else None
        sent, to = longer or (ack, target)
        self._emit(new_send((to, sent.raw, None, 0.0)))

    def accepted_client(self, request: Request, branch: bytes, target: Flow | Hop, user: ClientUser, now: float) -> None:
        """An INVITE's client transaction that got a 2xx before: repetitions of it go to `user` (RFC 6026 §7.2)."""
        machine = InviteClient(request, self._timers, target.transport)
        machine.accept(now)
        client = Client(client_key(branch, request.method), machine, request, target, user)
        self._add_client(client)
        self._queue.set(client, machine.again_at, machine.end_at)

    def _add_client(self, client: Client) -> None:
        self.clients[client.key] = client
        if isinstance(client.target, Flow) and client.target.connection:
            self._by_flow.setdefault(client.target, set()).add(client.key)

    def _drop_client(self, client: Client) -> None:
        self._queue.cancel(client)
        self.clients.pop(client.key, None)
        target = client.target
        keys = self._by_flow.get(target) if isinstance(target, Flow) else None
        if keys is not None and isinstance(target, Flow):
            keys.discard(client.key)
            if not keys:
                del self._by_flow[target]

    def connections(self) -> list[Flow]:
        """The connections that something was sent by and may yet be answered on."""
        return list(self._by_flow)

    def flow_closed(self, flow: Flow, now: float) -> None:
        """A connection ended: what was sent by it and has not been heard of did not arrive, or its answer cannot come."""
        for key in list(self._by_flow.get(flow, ())):
            if (client := self.clients.get(key)) is not None:
                self._perform(client, client.machine.transport_failed(now), None)

    def cancel(self, client: Client, now: float) -> None:
        """Send a CANCEL for a pending INVITE, which then ends within 64*T1 whatever the peer does (§9.1)."""
        branch = client.request.via.branch
        assert branch is not None
        self.new_client(Sent(b"CANCEL", write_cancel(client.request)), branch, client.target, Ignored(), now)
        if isinstance(client.machine, InviteClient):
            self._perform(client, client.machine.cancelled(now), None)

    def find_client(self, response: Response) -> Client | None:
        """The transaction that a response belongs to."""
        return self.clients.get(response_key(response))

    def receive_response(self, client: Client, response: Response, now: float) -> None:
        """Feed a response to its client transaction, which `find_client` found."""
        if client.instead is not None and self._long_requests is not None:
            self._long_requests.learnt(client.target, takes_tcp=True)
            client.instead = None
        self._perform(client, client.machine.receive(response, now), response)

    def transport_failed(self, key: Hashable, now: float) -> None:
        """The transport could not send for `key`, which is the `key` of a `SendTo`."""
        if not isinstance(key, tuple) or len(key) != 2:
            return
        side, transaction = key
        if side == "c" and (client := self.clients.get(transaction)) is not None:
            if client.instead is not None:
                self._over_udp(client, now)
            else:
                self._perform(client, client.machine.transport_failed(now), None)
        elif side == "s" and (server := self.servers.get(transaction)) is not None:
            server.machine.transport_failed(now)
            self._arm_server(server)
            self._respond_elsewhere(server)

    def _respond_elsewhere(self, server: Server) -> None:
        """The last response to an INVITE could not be sent on its connection: it goes by the next way to the same sender."""
        if not isinstance(server.machine, InviteServer) or server.target.transport not in RELIABLE:
            return
        server.tried = (*server.tried, server.target)
        way = next((flow for flow in self.ways_back(server) if flow not in server.tried), None)
        self.unheard(server, way)
        if way is None:
            return
        server.target = way
        self._emit(new_send((way, server.machine.out, server.name, 0.0)))

    def fire(self, timer: Timer, now: float) -> None:
        """Run what is due of the transaction that the queue gave out."""
        if isinstance(timer, Client):
            self._perform(timer, timer.machine.fire(now), None)
        elif isinstance(timer, Server):
            if timer.machine.fire(now) & SEND:
                self._emit(new_send((timer.target, timer.machine.out, timer.name, 0.0)))
            self._arm_server(timer)

    def _perform(self, client: Client, todo: int, response: Response | None) -> None:
        """Do what the machine wants done; `response` is what came for it, if anything did."""
        machine = client.machine
        # The table is brought up to date first: the user may start or end transactions while it is told.
        if machine.state is TERMINATED:
            self._drop_client(client)
        else:
            self._queue.set(client, machine.again_at, machine.end_at)
        if todo & SEND:
            self._emit(new_send((client.target, machine.out, client.name, CONNECT_S if client.instead is not None else 0.0)))
        if todo <= SEND:
            return
        self.told = client
        if response is not None and todo & PASS_UP:
            client.user.response(client.key, response)
            if machine.state is ACCEPTED and not client.challenged:  # whose credentials a fork's ACK may need
                client.rest()
            return
        if client.instead is not None and self._long_requests is not None:
            self._long_requests.learnt(client.target, takes_tcp=False)  # somebody accepts connections and says nothing
        client.user.failed(client.key, timed_out=bool(todo & TIMED_OUT))
