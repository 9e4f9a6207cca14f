"""Calls that a real node ends itself or looks after: by an operator's command, and by asking the parties."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from loadtest.agents import next_call
from loadtest.node import LineSpec
from loadtest.reconcile import wait_until
from sipproxy.admin.control import ControlError, ask, socket_path

if TYPE_CHECKING:
    from loadtest.network import Network

LINES = [LineSpec("B2001", "b2001", "secret-b", "+49603255501", channels=2)]
FIXED = "03023125001"


@pytest_asyncio.fixture
async def network(start_network: Callable[..., Any]) -> Network:
    network: Network = await start_network(LINES, settings={"calls": {"probe_s": 1, "session_expires_s": 0}})
    return network


async def told(network: Network, command: str, **arguments: object) -> dict[str, Any]:
    return await asyncio.to_thread(ask, socket_path(network.node.directory / "data"), command, **arguments)


async def test_operator_ends_a_call_and_both_parties_and_the_record_know(network: Network) -> None:
    router = await network.router("b2001")
    call = await (await router.call(FIXED)).answered()
    at_trunk = await next_call(network.trunk)
    (row,) = (await told(network, "calls"))["calls"]
    assert await told(network, "end", call=row["id"]) == {"id": row["id"], "state": "answered"}
    await call.wait_ended()
    await at_trunk.wait_ended()
    (record,) = await network.records(1)
    assert (record.id, record.end_reason, record.released_by) == (row["id"], "operator", "proxy")
    assert await network.slots("b2001", 0) == 0
    with pytest.raises(ControlError, match="no live call"):
        await told(network, "end", call=row["id"])


async def test_operator_ends_an_emergency_call_only_when_that_is_said(network: Network) -> None:
    router = await network.router("b2001")
    call = await (await router.call("112")).answered()
    (row,) = (await told(network, "calls"))["calls"]
    with pytest.raises(ControlError, match="--emergency"):
        await told(network, "end", call=row["id"])
    assert not call.ended.is_set()
    await told(network, "end", call=row["id"], emergency=True)
    await call.wait_ended()


async def test_parties_that_answer_the_probes_keep_their_call(network: Network) -> None:
    router = await network.router("b2001")
    call = await (await router.call(FIXED)).answered()
    assert await wait_until(lambda: min(router.received.get("OPTIONS", 0), network.trunk.received.get("OPTIONS", 0)) >= 2)
    assert await call.hang_up() == 200
    records, result = await network.reconciled()
    assert result.ok, result
    assert (records[0].end_reason, records[0].duration_certain) == ("normal", True)
