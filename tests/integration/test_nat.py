"""Routers behind a NAT with real sockets: many at one address, pings, and a mapping that changes within a call."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from loadtest.agents import Answering, Router, RouterAccount, next_call
from loadtest.network import DOMAIN, many_lines
from loadtest.reconcile import wait_until
from tests.sip.test_stun import PLAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from loadtest.network import Network
    from loadtest.ua import Address

ROUTERS = 20
OUTSIDE = "127.0.0.77"  # the NAT's address on the node's side


class Inside(asyncio.DatagramProtocol):
    """Where the routers send to."""

    def __init__(self, nat: Nat) -> None:
        self.nat = nat

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.nat.outgoing(data, addr[:2])


class Mapping(asyncio.DatagramProtocol):
    """One router's port on the outside."""

    def __init__(self, nat: Nat, router: Address) -> None:
        self.nat, self.router = nat, router

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if addr[:2] == self.nat.node:  # nobody else gets in
            self.nat.heard.append(data)
            self.nat.inside.sendto(data, self.router)


class Nat:
    """Maps each router to a port of one address, and lets in only what comes from the node (RFC 4787 §5)."""

    def __init__(self, node: Address) -> None:
        self.node = node
        self.heard: list[bytes] = []  # what the node sent
        self._mappings: dict[Address, asyncio.DatagramTransport] = {}
        self._opening: dict[Address, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.inside: asyncio.DatagramTransport

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self.inside, _ = await loop.create_datagram_endpoint(lambda: Inside(self), local_addr=("127.0.0.1", 0))

    @property
    def address(self) -> Address:
        """What the routers take for the proxy."""
        host, port = self.inside.get_extra_info("sockname")[:2]
        return host, port

    def outgoing(self, data: bytes, router: Address) -> None:
        if (mapping := self._mappings.get(router)) is not None:
            mapping.sendto(data, self.node)
        elif router in self._opening:
            self._opening[router].append(data)
        else:
            self._opening[router] = [data]
            task = asyncio.ensure_future(self._map(router))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _map(self, router: Address) -> None:
        loop = asyncio.get_running_loop()
        mapping, _ = await loop.create_datagram_endpoint(lambda: Mapping(self, router), local_addr=(OUTSIDE, 0))
        self._mappings[router] = mapping
        for data in self._opening.pop(router):
            mapping.sendto(data, self.node)

    def forget(self) -> None:
        """All mappings time out, and none is ever the same again."""
        for mapping in self._mappings.values():
            mapping.close()
        self._mappings.clear()

    def close(self) -> None:
        self.forget()
        self.inside.close()


@pytest_asyncio.fixture
async def network(start_network: Callable[..., Any]) -> Network:
    network: Network = await start_network(many_lines(ROUTERS, channels=5))
    return network


@pytest_asyncio.fixture
async def nat(network: Network) -> AsyncIterator[Nat]:
    nat = Nat(network.node.address)
    await nat.open()
    yield nat
    nat.close()


async def routers_of(network: Network, nat: Nat) -> list[Router]:
    """All routers behind the NAT, registered at the same time."""
    found = []
    for user, line in network.lines.items():
        router = Router(user, network.ledger, RouterAccount(user, line.password, DOMAIN), nat.address)
        await router.open()
        network.routers.append(router)
        found.append(router)
    responses = await asyncio.gather(*(router.register() for router in found))
    assert {response.status for response in responses} == {200}
    return found


async def test_routers_behind_one_address_are_each_called_and_told_their_own_port(network: Network, nat: Nat) -> None:
    routers = await routers_of(network, nat)
    for router, line in zip(routers[:5], network.lines.values(), strict=False):
        call = await network.trunk.call(line.number, network.node.address)
        at_router = await next_call(router)
        await call.answered()
        assert await call.hang_up() == 200
        await at_router.wait_ended()
    assert await network.slots_of_all(0) == 0
    nat.heard.clear()
    for ping in (b"\r\n\r\n", b"\0", PLAIN):
        for router in routers:
            router.send(ping, nat.address)
    assert await wait_until(lambda: len(nat.heard) >= ROUTERS)
    assert {data[:2] for data in nat.heard} == {b"\x01\x01"}
    assert len({data[24:] for data in nat.heard}) == ROUTERS, "each is told its own port"
    metrics = await network.node.metrics()
    assert metrics['sipproxy_stun_total{outcome="answered"}'] == ROUTERS
    assert metrics['sipproxy_transport_total{transport="UDP",what="keepalives"}'] == 2 * ROUTERS


async def test_call_survives_a_new_mapping_once_the_router_registered_again(network: Network, nat: Nat) -> None:
    """The carrier hangs up; the mapping that the call was set up by leads nowhere any more."""
    router = (await routers_of(network, nat))[0]
    network.trunk.answering = Answering()
    call = await (await router.call("03023125001")).answered()
    at_trunk = await next_call(network.trunk)
    nat.forget()
    assert (await router.register()).status == 200
    assert await at_trunk.hang_up() == 200
    await call.wait_ended()
    [record] = await network.records(1)
    assert (record.released_by, record.duration_certain) == ("callee", True)
    assert await network.bindings(router.user, 1) == 1
