"""The secret that nodes share, against a real Valkey."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from loadtest.valkey import Valkey
from sipproxy.store import keys
from sipproxy.store.connection import Store
from sipproxy.store.errors import StoreError
from sipproxy.store.secret import SharedSecret, kept_secret


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Valkey]:
    async with Valkey() as running:
        yield running


@pytest_asyncio.fixture
async def store(server: Valkey) -> AsyncIterator[Store]:
    made = Store(server.own_url, 5000)
    assert await made.start()
    yield made
    await made.close()


async def test_nodes_agree_on_the_first_ones_secret_and_keep_it(store: Store, server: Valkey, tmp_path: Path) -> None:
    taken: list[bytes] = []
    first = SharedSecret(store, tmp_path / "one.key", taken.append)
    second = SharedSecret(store, tmp_path / "two.key", taken.append)
    assert first.current != second.current
    for node in (first, second, first):
        await node.step()
    assert taken == [first.current]
    assert second.current == first.current == await server.client.get(keys.SECRET)
    assert [kept_secret(tmp_path / name) for name in ("one.key", "two.key")] == [first.current] * 2
    assert stat.S_IMODE((tmp_path / "two.key").stat().st_mode) == 0o600


async def test_emptied_store_gets_the_same_secret_again(store: Store, server: Valkey, tmp_path: Path) -> None:
    node = SharedSecret(store, tmp_path / "one.key", lambda _: None)
    await node.step()
    before = node.current
    await server.client.flushall()
    await SharedSecret(store, tmp_path / "one.key", lambda _: None).step()
    assert await server.client.get(keys.SECRET) == before


async def test_secret_of_another_length_is_counted_and_not_taken(store: Store, server: Valkey, tmp_path: Path) -> None:
    await server.client.set(keys.SECRET, b"short")
    node = SharedSecret(store, tmp_path / "one.key", lambda _: pytest.fail("taken"))
    await node.step()
    assert node.undecodable == 1


async def test_store_away_leaves_the_nodes_own_secret(tmp_path: Path) -> None:
    store = Store("unix:///nowhere/s", 50)
    node = SharedSecret(store, tmp_path / "one.key", lambda _: pytest.fail("taken"))
    with pytest.raises(StoreError):
        await node.step()
    assert kept_secret(tmp_path / "one.key") == node.current
    await store.close()
