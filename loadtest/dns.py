"""A name server on loopback with a zone of one's own: dnsmasq, as tests and measurements need it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import dns.asyncquery
import dns.exception
import dns.message

from loadtest.net import free_udp_port

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["NameServer"]

START_S = 20.0
PROBE_S = 0.2
SBIN = "/usr/sbin"  # not everybody has it on the path


class NameServer:
    """An async context manager. `zone` are lines of dnsmasq's configuration: host-record, srv-host, naptr-record, local-ttl.

    It knows nothing but its zone; what is not there does not exist.
    """

    def __init__(self, directory: Path, zone: str) -> None:
        self._file = directory / "dnsmasq.conf"
        self._zone = zone
        self.address = ("127.0.0.1", free_udp_port())
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> NameServer:
        await self.serve(self._zone)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def serve(self, zone: str) -> None:
        """Serve this zone from now on, at the same address; returns when it answers."""
        await self.stop()
        host, port = self.address
        own = f"listen-address={host}\nport={port}\nbind-interfaces\nno-resolv\nno-hosts\nno-daemon\naddress=/#/\n"
        await asyncio.to_thread(self._file.write_text, own + zone)
        program = shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:{SBIN}")
        assert program is not None, "dnsmasq is not installed"
        self._process = await asyncio.create_subprocess_exec(
            program,
            f"--conf-file={self._file}",
            "--user=",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        query = dns.message.make_query("probe.invalid.", "A")
        async with asyncio.timeout(START_S):
            while True:
                with contextlib.suppress(dns.exception.Timeout, OSError):
                    await dns.asyncquery.udp(query, host, timeout=PROBE_S, port=port)
                    return
                assert self._process.returncode is None, f"dnsmasq has ended: {self._file}"

    async def stop(self) -> None:
        """End it. Harmless when repeated."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()
        self._process = None
