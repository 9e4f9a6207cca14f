"""Tests with a network of their own: addresses, rules and links that end with the namespace that the test runs in."""

from __future__ import annotations

import contextlib
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

__all__ = ["datagram_socket", "exchange", "ip", "rules", "run_in_own_network"]

INSIDE = "TESTS_IN_OWN_NETWORK"  # in the environment of such a run
SBIN = "/usr/sbin:/sbin"


def run_in_own_network(cases: Path, *programs: str) -> None:
    """Run the tests in the file `cases` in a network namespace with nothing but loopback; skips where that, or a program that
    they need, cannot be had."""
    for program in ("ip", *programs):
        if shutil.which(program, path=f"{os.environ['PATH']}:{SBIN}") is None:
            pytest.skip(f"needs the program {program}")
    run_inside(["--net"], cases, INSIDE)


def _run(program: str, *arguments: str) -> str:
    assert INSIDE in os.environ, "run by run_in_own_network alone"
    path = f"{os.environ['PATH']}:{SBIN}"
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}, timeout=30
    )
    assert done.returncode == 0, f"{program} {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def ip(*arguments: str) -> str:
    """Run `ip` within the test's network."""
    return _run("ip", *arguments)


def rules(*arguments: str) -> str:
    """All rules of the test's network, as nft shows them, or what another command of nft says."""
    return _run("nft", *(arguments or ("list", "ruleset")))


@contextlib.contextmanager
def datagram_socket(host: str, port: int = 0) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((host, port))
        yield sock


def exchange(sock: socket.socket, data: bytes, to: tuple[str, int], *, tries: int = 5, wait_s: float = 1.0) -> bytes:
    """What comes back, b"" when nothing does; the datagram is sent again and again until something does."""
    sock.settimeout(wait_s)
    for _ in range(tries):
        sock.sendto(data, to)
        with contextlib.suppress(TimeoutError):
            return sock.recv(65535)
    return b""
