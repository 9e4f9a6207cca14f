"""Small helpers for parties on loopback: free ports, and waiting until a process has bound its port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import sys
from asyncio.subprocess import Process
from collections import deque

__all__ = ["PATIENCE_S", "free_tcp_port", "free_udp_port", "wait_udp_bound"]

PATIENCE_S = 40.0  # how long is waited for what takes a moment where nothing else runs: beyond 64*T1 (RFC 3261 §17)
FIRST, LAST = 12_000, 32_000  # below the ports that the kernel gives to who asks for any: none of these is taken meanwhile
CLAIMS = 256  # ports that were told lately and may not be bound yet: nobody else who asks here is told them, in any process
_claims: deque[int] = deque()  # their descriptors


def free_udp_port(host: str = "127.0.0.1", *, count: int = 1) -> int:
    """An even UDP port on which nobody listened a moment ago, nor on the `count` - 1 behind it (audio, video, RTCP); none of
    them was told lately."""
    return _free(host, socket.SOCK_DGRAM, count)


def free_tcp_port(host: str = "127.0.0.1") -> int:
    """A TCP port on which nobody listened a moment ago."""
    return _free(host, socket.SOCK_STREAM, 1)


async def wait_udp_bound(host: str, port: int, process: Process, *, timeout_s: float = PATIENCE_S) -> None:
    """Return once nobody else can bind the port; raises RuntimeError when the process ended or did not bind it in time."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while asyncio.get_running_loop().time() < deadline:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                return
        if process.returncode is not None:
            raise RuntimeError(f"ended with status {process.returncode} before it bound {host}:{port}")
        await asyncio.sleep(0.02)
    raise RuntimeError(f"did not bind {host}:{port} within {timeout_s:g} s")


def _free(host: str, kind: socket.SocketKind, count: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(1000):
        first = FIRST + 2 * secrets.randbelow((LAST - FIRST) // 2)
        claims: list[socket.socket] = []
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                claims.append(stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)))
                if sys.platform == "linux":
                    claims[-1].bind(b"\0free port %d" % port)  # a name without a file, which goes with the process that has it
                stack.enter_context(socket.socket(family, kind)).bind((host, port))
            _claims.extend(claim.detach() for claim in claims)
            while len(_claims) > CLAIMS:
                os.close(_claims.popleft())
            return first
    raise OSError(f"no {count} free ports from {FIRST} to {LAST} on {host}")
