"""What does not start, or is ended while it does, leaves neither a process nor a folder."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from loadtest import billing, valkey
from loadtest.kamailio import Kamailio
from loadtest.node import Node, NodeError
from loadtest.sipp_runner import start_sipp
from loadtest.valkey import Valkey

LOST = ("127.0.0.1", 9)
needs_kamailio = pytest.mark.skipif(shutil.which("kamailio") is None, reason="kamailio is not installed")
needs_sipp = pytest.mark.skipif(shutil.which("sipp") is None, reason="sipp is not installed: apt-get install sip-tester")


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary folders are made; its name is short enough for a store's socket."""
    made = Path(tempfile.mkdtemp(prefix="t-"))
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    shutil.rmtree(made)


def own_children() -> list[str]:
    pid = os.getpid()
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_node_whose_configuration_is_faulty_leaves_nothing(folder: Path) -> None:
    before = own_children()
    with pytest.raises(NodeError, match=r"calls\.probe_s: expected int, got str"):
        async with Node(settings={"calls": {"probe_s": "soon"}}):
            pass
    assert (own_children(), os.listdir(folder)) == (before, [])  # noqa: PTH208


async def test_store_that_does_not_start_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valkey, "server_binary", lambda: shutil.which("false"))
    before = own_children()
    with pytest.raises(RuntimeError, match="the store did not start"):
        async with Valkey():
            pass
    assert (own_children(), os.listdir(folder)) == (before, [])  # noqa: PTH208


async def test_consumers_that_are_kept_running_end_with_who_keeps_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(billing, "DYING", "import time; time.sleep(600)")
    before = own_children()
    fleet = billing.Fleet(2, log=tmp_path / "log")
    keeping = asyncio.create_task(fleet.run(dies_at=1, deaths=1))
    async with asyncio.timeout(60):
        while len(fleet._running) < 2:  # noqa: ASYNC110  another turn is all it takes
            await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.wait({keeping})
    assert own_children() == before


@asynccontextmanager
async def _sipp() -> AsyncIterator[None]:
    await start_sipp("answer", calls=None)
    yield


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(Node, id="node"),
        pytest.param(Valkey, id="store"),
        pytest.param(lambda: Kamailio(proxy=LOST, subscriber=LOST), id="kamailio", marks=needs_kamailio),
        pytest.param(_sipp, id="sipp", marks=needs_sipp),
    ],
)
async def test_start_that_is_cancelled_leaves_nothing(folder: Path, start: Any) -> None:
    before = own_children()

    async def work(started: AbstractAsyncContextManager[object]) -> None:
        async with started:
            await asyncio.Event().wait()

    working = asyncio.create_task(work(start()))
    async with asyncio.timeout(60):
        while own_children() == before:  # noqa: ASYNC110  another turn is all it takes
            await asyncio.sleep(0)
    working.cancel()
    await asyncio.wait({working})
    assert working.cancelled()
    async with asyncio.timeout(60):
        while own_children() != before:  # noqa: ASYNC110  a process that was killed is waited for elsewhere
            await asyncio.sleep(0.01)
    assert os.listdir(folder) == []  # noqa: PTH208
