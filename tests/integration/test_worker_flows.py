"""Customers whose flow, or whose REGISTER, one worker has and whose calls another: what each knows of the others' in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from loadtest.agents import Answering
from loadtest.network import many_lines

if TYPE_CHECKING:
    from loadtest.network import Network

LINES = many_lines(8, channels=20)  # so that both workers have calls, and connections
ROUNDS = 3
CALLS = 6  # of each device that has gone, for as long as the store's log may be behind
APART_S = 0.03


@pytest.mark.parametrize("tcp", [False, True])
async def test_device_that_unregistered_rings_no_more_whichever_worker_is_asked(
    tcp: bool, start_network: Callable[..., Any]
) -> None:
    """Its REGISTER has just reached the store's log, where the others would read it after its end: 480, as from one process."""
    network: Network = await start_network(LINES, workers=2)
    for line in LINES * ROUNDS:
        router = await network.router(line.user, tcp=tcp)
        router.answering = Answering(status=486)
        assert await network.bindings(line.user, 1) == 1
        assert (await router.register(expires_s=0)).status == 200
        if tcp:
            router.close()
        calls = []
        for _ in range(CALLS):
            calls.append(await network.trunk.call(line.number, network.node.address))
            await asyncio.sleep(APART_S)
        assert [await call.final() for call in calls] == [480] * CALLS
        router.close()
    assert await network.slots_of_all(0) == 0
