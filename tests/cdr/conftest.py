"""A running Valkey for the tests of this folder, and the event loop that their subject runs on.

A node's parts run on uvloop, as the node does, and what billing imports on asyncio's own, as a program of theirs would; with
CDR_BOTH_LOOPS (`make loops`) each test runs on both.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from publishing import Node
from valkey_process import Valkey

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import redis.asyncio

    from cdr.journal import Journal


SYNC_THREAD = "cdr-journal-sync"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
# What these tests are about, by their module.
OF_THE_NODE = ("journal", "syncer", "publisher", "interims", "sinks", "stream", "groups", "readers")


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if "CDR_BOTH_LOOPS" in os.environ:
        return LOOPS
    subject = item.path.stem.removeprefix("test_cdr_").partition("_")[0]
    name = "uvloop" if subject in OF_THE_NODE else "asyncio"
    return {name: LOOPS[name]}


def syncing() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == SYNC_THREAD}


@pytest.fixture(autouse=True)
def closed_journals() -> Iterator[None]:
    """A journal that a test leaves open syncs on, and retries what it has lost, while later tests count and patch."""
    before = syncing()
    yield
    assert syncing() <= before, "the test has left a journal open"


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    directory = Path(tempfile.mkdtemp(prefix="cdr-"))  # pytest's own directories may be too long for a socket's path
    server = Valkey(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def client(valkey: Valkey) -> AsyncIterator[redis.asyncio.Redis]:
    made = valkey.client()
    yield made
    for left in list(Node.running):
        await left.stop()
    await made.aclose()


@pytest.fixture
async def node(tmp_path: Path, client: redis.asyncio.Redis) -> AsyncIterator[Node]:
    made = Node(tmp_path / "journal", client).start()
    yield made
    await made.stop()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def opened(directory: Path) -> Iterator[list[Journal]]:
    """Journals that a test opens are closed for it."""
    journals: list[Journal] = []
    yield journals
    for journal in journals:
        journal.close()
