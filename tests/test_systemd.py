"""sd_notify(3) as systemd reads it: a real datagram socket, by path and abstract, and the unit file in deploy/."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sipproxy.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator

UNIT = Path(__file__).parents[1] / "deploy" / "sipproxy.service"


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.settimeout(40)
        yield found, str(tmp_path / "notify")


def test_notifier_tells_words_and_status(listener: tuple[socket.socket, str]) -> None:
    received, path = listener
    Notifier({"NOTIFY_SOCKET": path}).tell("READY=1", status="3 calls")
    assert received.recv(1000) == b"READY=1\nSTATUS=3 calls"


def test_notifier_knows_abstract_sockets() -> None:
    name = f"sipproxy-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as received:
        received.bind("\0" + name)
        received.settimeout(40)
        Notifier({"NOTIFY_SOCKET": "@" + name}).tell("STOPPING=1")
        assert received.recv(1000) == b"STOPPING=1"


def test_notifier_without_a_socket_or_with_nobody_at_it_is_silent(tmp_path: Path) -> None:
    Notifier({}).tell("READY=1")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).tell("READY=1")


def test_notifier_whose_listener_does_not_read_never_waits(listener: tuple[socket.socket, str]) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": listener[1]})
    for _ in range(5000):
        notifier.tell("WATCHDOG=1")


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({"WATCHDOG_USEC": "20000000"}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 20.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
def test_notifier_reads_whether_it_is_watched(environ: dict[str, str], wanted: float) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/x", **environ}).watchdog_s == wanted
    assert Notifier(environ).watchdog_s == 0.0


async def test_watchdog_is_patted_only_while_healthy(listener: tuple[socket.socket, str]) -> None:
    received, path = listener
    received.setblocking(False)
    healthy = True
    notifier = Notifier({"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "20000"})
    task = asyncio.create_task(notifier.run(lambda: healthy, lambda: "1 calls"))
    loop = asyncio.get_running_loop()
    try:
        for _ in range(3):
            assert await asyncio.wait_for(loop.sock_recv(received, 1000), 30) == b"WATCHDOG=1\nSTATUS=1 calls"
        healthy = False
        while await asyncio.wait_for(loop.sock_recv(received, 1000), 30) != b"STATUS=1 calls":
            pass
        assert await asyncio.wait_for(loop.sock_recv(received, 1000), 30) == b"STATUS=1 calls"
    finally:
        task.cancel()


def test_unit_agrees_with_the_program() -> None:
    """What the program relies on: it says when it is ready, is watched, and its store is not ended behind its back."""
    lines = UNIT.read_text().splitlines()
    assert {"Type=notify", "KillMode=mixed", "NotifyAccess=main", "Restart=always"} <= set(lines)
    assert any(line.startswith("WatchdogSec=") for line in lines)
    assert not any(line.startswith("ProcSubset=") for line in lines)
    keys = [line for line in lines if line and not line.startswith(("#", "["))]
    assert all("=" in line for line in keys)
