"""Tests with a network of their own: addresses, rules and links that end with the namespace that the test runs in."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mounts import run_inside

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Host", "another_host", "datagram_socket", "exchange", "ip", "rules", "run_in_own_network"]

INSIDE = "TESTS_IN_OWN_NETWORK"  # in the environment of such a run
SBIN = "/usr/sbin:/sbin"
NEW_NETWORK = 0x40000000  # CLONE_NEWNET of <linux/sched.h>; Python has setns and unshare from 3.12 on


def run_in_own_network(cases: Path, *programs: str) -> None:
    """Run the tests in the file `cases` in a network namespace with nothing but loopback; skips where that, or a program that
    they need, cannot be had."""
    for program in ("ip", *programs):
        if shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}") is None:
            pytest.skip(f"needs the program {program}")
    run_inside(["--net"], cases, INSIDE)


def _run(program: str, *arguments: str, stdin: str = "") -> str:
    assert INSIDE in os.environ, "run by run_in_own_network alone"
    path = f"{os.environ['PATH']}:{SBIN}"
    done = subprocess.run(
        [program, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
        timeout=60,
    )
    assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def ip(*arguments: str) -> str:
    """Run `ip` within the test's network."""
    return _run("ip", *arguments)


def rules(*arguments: str, stdin: str = "") -> str:
    """All rules of the test's network, as nft shows them, or what another command of nft says."""
    return _run("nft", *(arguments or ("list", "ruleset")), stdin=stdin)


class Host:
    """Another network beside the test's own: what is opened or run while it is `entered` is there."""

    def __init__(self) -> None:
        self._here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _system("unshare", NEW_NETWORK)
        self._there = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _system("setns", self._here, NEW_NETWORK)

    @property
    def path(self) -> str:
        """For `ip link set ... netns`."""
        return f"/proc/{os.getpid()}/fd/{self._there}"

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is there; sockets that were opened there stay there."""
        _system("setns", self._there, NEW_NETWORK)
        try:
            yield
        finally:
            _system("setns", self._here, NEW_NETWORK)

    def close(self) -> None:
        for descriptor in (self._here, self._there):
            os.close(descriptor)


@contextlib.contextmanager
def another_host(here: str, there: str) -> Iterator[Host]:
    """A second host, with a link between the two: devices of these names, both up."""
    assert INSIDE in os.environ, "run by run_in_own_network alone"
    host = Host()
    try:
        ip("link", "add", "name", here, "type", "veth", "peer", "name", there)
        ip("link", "set", there, "netns", host.path)
        ip("link", "set", here, "up")
        with host.entered():
            for device in ("lo", there):
                ip("link", "set", device, "up")
        yield host
    finally:
        host.close()


def _system(call: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, call)(*arguments):
        error = ctypes.get_errno()
        raise OSError(error, f"{call}: {os.strerror(error)}")


@contextlib.contextmanager
def datagram_socket(host: str, port: int = 0) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        yield sock


def exchange(sock: socket.socket, data: bytes, to: tuple[str, int], *, tries: int = 40, wait_s: float = 1.0) -> bytes:
    """What comes back, b"" when nothing does; the datagram is sent again and again until something does."""
    sock.settimeout(wait_s)
    for _ in range(tries):
        sock.sendto(data, to)
        with contextlib.suppress(TimeoutError):
            return sock.recv(65535)
    return b""
