"""A node with its store, a trunk and an emergency centre around it, for tests and measurements; routers join as needed."""

from __future__ import annotations

import asyncio
import select
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from loadtest.agents import Psap, Router, RouterAccount, Trunk
from loadtest.net import PATIENCE_S
from loadtest.node import TRANSPORTS, LineSpec, Node, PsapSpec, TrunkSpec
from loadtest.reconcile import Reconciliation, becomes, compare, live_slots, records_when
from loadtest.truth import Ledger
from loadtest.valkey import Valkey
from sipproxy.sip.digest import ha1

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from cdr.facts import Record
    from loadtest.ua import Address

__all__ = ["APART_MS", "DOMAIN", "Network", "many_lines", "md5_only"]

DOMAIN = "sip.example"
APART_MS = 2_000  # how differently party and node may see how long a call was, with a message repeated (T1) on a busy machine
TRUNK_HOST = "127.0.0.2"  # Linux answers on all of 127/8: the trunk is told from routers by its address


def md5_only(line: LineSpec, realm: str = DOMAIN) -> LineSpec:
    """The same line, stored with an MD5 hash alone: the node then offers no other algorithm (SIPp and old routers)."""
    return replace(line, password="ha1:" + ha1("MD5", line.user, realm, line.password))


def many_lines(count: int, *, first: int = 0, channels: int = 2) -> list[LineSpec]:
    """Lines with one account and one number each: `u000000` to `u...` with the numbers +4960322000000 and up."""
    numbers = range(first, first + count)
    return [LineSpec(f"L{n:06}", f"u{n:06}", f"p{n:06}", f"+496032{2_000_000 + n}", channels=channels) for n in numbers]


HANDLED = 10  # turns of the event loop that what was read takes through queues and tasks


class Network:
    """An async context manager. `trunks` and `psap` say who else than the simulated parties stands there; `route` are further
    keys of the simulated trunk's route, `certificate`, `ipv6` and `addresses` further listeners of the node's, `transports`
    their order; `workers` how many processes share them; `code` is where its program lies, if not here."""

    def __init__(
        self,
        lines: Iterable[LineSpec],
        *,
        settings: Mapping[str, Mapping[str, object]] | None = None,
        directory: Path | None = None,
        trunks: Sequence[TrunkSpec] | None = None,
        route: Mapping[str, object] | None = None,
        psap: Address | None = None,
        embedded: bool = False,
        store: Valkey | None = None,
        certificate: Path | None = None,
        transports: Sequence[str] = TRANSPORTS,
        ipv6: bool = False,
        addresses: Sequence[str] = (),
        workers: int = 1,
        code: Path | None = None,
    ) -> None:
        self.lines = {line.user: line for line in lines}
        self.ledger = Ledger()
        self.store = store or Valkey()
        self.trunk = Trunk("trunk", self.ledger, host=TRUNK_HOST)
        self.psap = Psap("psap", self.ledger, host="127.0.0.3")
        self.routers: list[Router] = []
        self._settings = settings
        self._directory = directory
        self.trunks = tuple(trunks or ())
        self._route = route or {}
        self._psap = psap
        self._embedded = embedded
        self._certificate, self._ipv6, self._addresses = certificate, ipv6, addresses
        self._transports, self._workers, self._code = transports, workers, code
        self._node: Node | None = None
        self._stack = AsyncExitStack()

    @property
    def node(self) -> Node:
        assert self._node is not None
        return self._node

    async def __aenter__(self) -> Network:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.store)
            for party in (self.trunk, self.psap):
                await party.open()
                stack.callback(party.close)
            if not self.trunks:
                self.trunks = (
                    TrunkSpec("carrier", (self.trunk.host, self.trunk.port), (self.trunk.host,), settings=self._route),
                )
            centre = self._psap or (self.psap.host, self.psap.port)
            places = sorted({line.location for line in self.lines.values()})
            self._node = Node(
                lines=self.lines.values(),
                psap=[PsapSpec(place, service, centre) for place in places for service in ("110", "112")],
                trunks=self.trunks,
                store_url="" if self._embedded else self.store.url,
                domain=DOMAIN,
                settings=self._settings,
                directory=self._directory,
                certificate=self._certificate,
                transports=self._transports,
                ipv6=self._ipv6,
                addresses=self._addresses,
                workers=self._workers,
                code=self._code,
            )
            await stack.enter_async_context(self._node)
            self._stack = stack.pop_all()
        return self

    @asynccontextmanager
    async def another_node(
        self, *, node_id: str = "node2", directory: Path | None = None, certificate: Path | None = None
    ) -> AsyncIterator[Node]:
        """One more node on the same store, with the same trunks and settings; it takes its lines from the store."""
        node = Node(
            trunks=self.trunks,
            store_url=self.store.url,
            domain=DOMAIN,
            node_id=node_id,
            settings=self._settings,
            directory=directory,
            certificate=certificate,
            transports=self._transports,
        )
        async with node:
            yield node

    async def followed(self, node: Node, metric: str, wanted: float | None, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until a metric of a node is `wanted`; raises AssertionError with the node's log."""

        async def value() -> float | None:
            return (await node.metrics()).get(metric)

        found = await becomes(value, wanted, timeout_s=timeout_s)
        assert found == wanted, f"{metric} is {found}, not {wanted}\n{node.log()}"

    async def read_all(self) -> None:
        """Return once the parties have read and handled all that was sent to them by datagram so far."""
        poll = select.poll()
        for party in (self.trunk, self.psap, *self.routers):
            if (descriptor := party.descriptor) is not None:
                poll.register(descriptor, select.POLLIN)
        while any(event & select.POLLIN for _, event in poll.poll(0)):  # noqa: ASYNC110  another turn is all it takes
            await asyncio.sleep(0)
        for _ in range(HANDLED):
            await asyncio.sleep(0)

    async def stop_node(self) -> None:
        """End the node; raises AssertionError with its log when it does not leave by itself with status 0."""
        status = await self.node.stop()
        assert status == 0, f"the node ended with status {status}\n{self.node.log()}"

    async def __aexit__(self, *_: object) -> None:
        for router in self.routers:
            router.close()
        await self._stack.aclose()

    async def router(
        self,
        user: str,
        *,
        algorithms: tuple[str, ...] = ("SHA-256", "MD5"),
        register: bool = True,
        node: Node | None = None,
        tcp: bool = False,
        tls: ssl.SSLContext | None = None,
        ipv6: bool = False,
    ) -> Router:
        """A router with the account `user` of one of the lines, registered when asked, at `node` where it is not the first.

        Raises AssertionError when its registration is refused.
        """
        account = RouterAccount(user, self.lines[user].password, DOMAIN, algorithms)
        at = node or self.node
        proxy = (at.host, at.tls_port) if tls is not None else ("::1", at.port6) if ipv6 else at.address
        router = Router(user, self.ledger, account, proxy, host="::1" if ipv6 else "127.0.0.1", tcp=tcp, tls=tls)
        await router.open()
        self.routers.append(router)
        if register:
            response = await router.register()
            assert response.status == 200, f"{user} was answered {response.status}\n{router.trace()}"
        return router

    async def slots(self, user: str, wanted: int, *, timeout_s: float = PATIENCE_S) -> int:
        """How many slots the line of an account holds: `wanted`, as soon as it does, else what it is after `timeout_s`."""
        line = self.lines[user].line

        async def used() -> int:
            return len((await live_slots(self.store.client)).get(line, ()))

        return await becomes(used, wanted, timeout_s=timeout_s)

    async def route_slots(self, wanted: int, *, timeout_s: float = PATIENCE_S) -> int:
        """How many slots the simulated trunk's route holds over all nodes, as `slots`."""

        async def used() -> int:
            return int(await self.store.client.zcard("sp:{trunk:carrier}:slots"))

        return await becomes(used, wanted, timeout_s=timeout_s)

    async def slots_of_all(self, wanted: int, *, timeout_s: float = PATIENCE_S) -> int:
        """How many slots all lines hold together, as `slots`."""

        async def used() -> int:
            return sum(map(len, (await live_slots(self.store.client)).values()))

        return await becomes(used, wanted, timeout_s=timeout_s)

    async def bindings(self, user: str, wanted: int, *, timeout_s: float = PATIENCE_S) -> int:
        """How many bindings of an account the store has: `wanted`, as soon as it has, else those after `timeout_s`."""

        async def stored() -> int:
            return int(await self.store.client.hlen(f"sp:{{acct:{user}}}:bindings"))

        return await becomes(stored, wanted, timeout_s=timeout_s)

    async def records(self, count: int, *, timeout_s: float = PATIENCE_S) -> list[Record]:
        """The final records once there are `count` of them, or those that are there after `timeout_s` seconds."""
        return await self.records_when(lambda found: len(found) >= count, timeout_s=timeout_s)

    async def records_when(self, enough: Callable[[list[Record]], bool], *, timeout_s: float = PATIENCE_S) -> list[Record]:
        """The final records once `enough` says so of them, or those that are there after `timeout_s` seconds."""
        return await records_when(self.store.client, enough, timeout_s=timeout_s)

    async def reconciled(
        self, *, timeout_s: float = PATIENCE_S, tolerance_ms: int = APART_MS
    ) -> tuple[list[Record], Reconciliation]:
        """The records of all calls that the simulated parties placed, and how they compare."""
        placed = self.ledger.placed()
        records = await self.records(len(placed), timeout_s=timeout_s)
        return records, compare(placed, records, tolerance_ms=tolerance_ms)
