"""A real node on a file system that is full, or that becomes read-only (design §8).

Not collected by itself: test_disk.py runs it in a mount namespace of its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from test_disk import DIALLED, accepted, reconciled, refused

from loadtest.network import many_lines
from loadtest.node import NodeError
from tests.mounts import mounted

if TYPE_CHECKING:
    from pathlib import Path

    from loadtest.network import Network

PAGE = os.sysconf("SC_PAGE_SIZE")
SEGMENT_BYTES = 65_536


def fill_up(path: Path) -> None:
    """Give the file all that is left of its disk."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(PAGE)):
            pass


def run(*command: str) -> None:
    subprocess.run(command, check=True)


async def test_full_disk_refuses_new_calls_and_records_live_ones(tmp_path: Path, start_network: Callable[..., Any]) -> None:
    with mounted(tmp_path / "disk", "16m") as disk:
        settings = {"cdr": {"segment_bytes": 262_144}, "log": {"level": "warning"}}
        network: Network = await start_network(many_lines(2), directory=disk / "node", settings=settings)
        caller, other = await network.router("u000000"), await network.router("u000001")
        live = await (await caller.call(DIALLED)).answered(30)
        fill_up(disk / "filler")
        await refused(network, other)
        assert await live.hang_up() == 200
        (disk / "filler").unlink()
        await accepted(network, other)
        assert "node.disk" in {record.rule for record in await reconciled(network)}
        assert (await network.node.metrics())["sipproxy_journal_lost_total"] == 0
        await network.stop_node()


async def test_directory_that_becomes_read_only_does_not_stop_the_recording(
    tmp_path: Path, start_network: Callable[..., Any]
) -> None:
    """The open segment takes it all; a node that is to start there says why it cannot."""
    with mounted(tmp_path / "disk", "16m") as disk:
        settings = {"cdr": {"segment_bytes": SEGMENT_BYTES}, "log": {"level": "warning"}}
        network: Network = await start_network(many_lines(30), directory=disk / "node", settings=settings)
        caller, *others = [await network.router(f"u{number:06}") for number in range(30)]
        live = await (await caller.call(DIALLED)).answered(30)
        segment = next((disk / "node" / "data").rglob("*.cdrj"))
        run("mount", "--bind", str(segment.parent), str(segment.parent))
        run("mount", "-o", "remount,bind,ro", str(segment.parent))
        for number in range(300):  # some 100 fill a segment: how many, the length of what is recorded decides
            call = await (await others[number % len(others)].call(DIALLED)).answered(30)
            assert await call.hang_up() == 200
            if segment.stat().st_size > SEGMENT_BYTES:
                break
        assert (await network.node.metrics())['sipproxy_journal{what="write_errors"}'] > 0
        await network.node.kill()
        with pytest.raises(NodeError, match="Read-only file system"):
            await network.node.start()
        run("umount", str(segment.parent))
        await network.node.start()
        assert await live.hang_up() == 200
        await accepted(network, caller)
        await reconciled(network)
        await network.stop_node()
