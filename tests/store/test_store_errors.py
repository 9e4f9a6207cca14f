"""Errors of the store are gone once they are handled: on a node that is busy the garbage collector looks once a day."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
from test_store_following import following_of

from sipproxy.store.connection import Store
from sipproxy.store.errors import StoreError
from sipproxy.store.nodes import nodes_seen
from sipproxy.store.secret import SharedSecret

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collector")
@pytest.mark.parametrize(
    "ask",
    [
        lambda store, path: store.execute("PING"),
        lambda store, path: nodes_seen(store),
        lambda store, path: SharedSecret(store, path, lambda secret: None).step(),
        lambda store, path: following_of(store).follower.step(),
    ],
    ids=["command", "nodes", "secret", "following"],
)
async def test_error_of_a_store_that_is_away_is_gone_once_it_is_handled(
    tmp_path: Path, ask: Callable[[Store, Path], Awaitable[object]]
) -> None:
    store = Store(f"unix://{tmp_path}/nobody", 1000)
    try:
        await ask(store, tmp_path / "secret")
    except StoreError as error:
        raised = weakref.ref(error)
    assert raised() is None
