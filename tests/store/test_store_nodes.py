"""store.nodes and store.keys: signs of life, and the loss of data noticed."""

from __future__ import annotations

import asyncio

import pytest
from store_server import Connect, Server, eventually, eventually_async

from sipproxy.store import keys
from sipproxy.store.nodes import Heartbeat, nodes_seen


async def test_heartbeat_is_seen_with_what_the_node_tells(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    for name in ("n2", "n1"):
        Heartbeat(store, name, tell=lambda: {"seq": 7, "version": "1"}, on_forgotten=lambda: None).beat()
    first, second = await nodes_seen(store)
    assert (first.node, second.node, first.beat, first.fields) == ("n1", "n2", 1, {"seq": "7", "version": "1"})
    assert first.at_ms > 1_600_000_000_000


async def test_heartbeats_that_cannot_be_read_are_left_out(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    Heartbeat(store, "n1", tell=dict, on_forgotten=lambda: None).beat()
    server.ask("HSET", keys.node("odd"), "at_ms", "soon", "beat", "1")
    server.ask("SET", keys.node("text"), "x")
    assert [seen.node for seen in await nodes_seen(store)] == ["n1"]


async def test_heartbeat_stops_with_its_node(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    beat = Heartbeat(store, "n", tell=dict, on_forgotten=lambda: None, interval_s=0.05)
    run = asyncio.create_task(beat.run())

    async def beats() -> bool:
        return [seen.beat > 1 for seen in await nodes_seen(store)] == [True]

    await eventually_async(beats)
    run.cancel()
    await eventually(lambda: server.ask("EXISTS", keys.node("n")) == 0)
    assert await nodes_seen(store) == []


async def test_heartbeat_notices_a_flush_once(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    calls: list[int] = []
    beat = Heartbeat(store, "n", tell=dict, on_forgotten=lambda: calls.append(1))
    for _ in range(3):
        beat.beat()
    await store.execute("FLUSHALL")
    for _ in range(3):
        beat.beat()
    await store.execute("PING")
    assert calls == [1]


async def test_heartbeat_notices_an_old_copy(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    calls: list[int] = []
    beat = Heartbeat(store, "n", tell=dict, on_forgotten=lambda: calls.append(1))
    for _ in range(10):
        beat.beat()
    await store.execute("HSET", keys.node("n"), "beat", 4)  # as it was some beats ago
    beat.beat()
    await store.execute("PING")
    assert calls == [1]


async def test_heartbeat_of_a_restarted_node_goes_on_counting(server: Server, connect: Connect) -> None:
    store = await connect(server.url)
    calls: list[int] = []
    for _ in range(3):
        Heartbeat(store, "n", tell=dict, on_forgotten=lambda: calls.append(1)).beat()
    ((seen),) = await nodes_seen(store)
    assert (seen.beat, calls) == (3, [])


@pytest.mark.parametrize("name", ["a", "", "a}b{", "ä", "a:b", "\udcff"])
def test_keys_name_survives_the_way_there_and_back(name: str) -> None:
    assert keys.bindings_user(keys.bindings(name)) == name
    assert keys.node_id(keys.node(name)) == name


def test_keys_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="bindings"):
        keys.bindings_user(b"sp:{line:1}:slots")
    with pytest.raises(ValueError, match="node"):
        keys.node_id(b"sp:lines")


def test_keys_of_one_line_share_its_hash_tag() -> None:
    assert keys.slots("4711") == b"sp:{line:4711}:slots"
    assert keys.bindings("u1") == b"sp:{acct:u1}:bindings"
    assert keys.node("n1") == b"sp:node:n1"
