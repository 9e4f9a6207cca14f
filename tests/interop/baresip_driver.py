"""Starts baresip parties (baresip_party.py) as processes and speaks JSON lines with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from loadtest.net import free_udp_port


def sent(method: str) -> re.Pattern[str]:
    """The CSeq numbers of what a trace shows as sent."""
    return re.compile(rf" TX \w+ [^\n]*\n\s*{method} (?:(?! [RT]X ).)*?CSeq: (\d+) {method}", re.DOTALL)


PARTY = Path(__file__).with_name("baresip_party.py")


class BaresipParty:
    """One baresip process. `log()` is its SIP trace. Use as an async context manager.

    With `instance`, a UUID, it registers a flow of its own (RFC 5626); `ca` is the PEM file of who signs the proxy's
    certificate.
    """

    def __init__(
        self,
        user: str,
        password: str,
        domain: str,
        *,
        interval: int = 600,
        transport: str = "udp",
        instance: str = "",
        ca: str = "",
    ) -> None:
        self.user = user
        host = "::1" if "[" in domain else "127.0.0.1"
        self.port = free_udp_port(host)
        self._options = {
            "user": user, "password": password, "domain": domain, "port": self.port, "interval": interval, "host": host,
            "transport": transport, "instance": instance, "ca": ca,
        }  # fmt: skip
        self._process: asyncio.subprocess.Process | None = None
        self._trace = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the party leaves
        self.events: list[dict[str, Any]] = []
        self._unseen: list[dict[str, Any]] = []

    async def __aenter__(self) -> BaresipParty:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PARTY),
            json.dumps(self._options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._trace,
        )
        await self.expect("ready")
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        with contextlib.suppress(ConnectionError):
            process.stdin.write(b'{"do": "quit"}\n')
            await process.stdin.drain()
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()
        self._trace.close()

    async def expect(self, *names: str, timeout_s: float = 40.0) -> dict[str, Any]:
        """The next event that has one of these names; others wait for their turn. Fails on a time-out with the SIP trace."""
        for event in self._unseen:
            if event["event"] in names:
                self._unseen.remove(event)
                return event
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(timeout_s):
                while line := await self._process.stdout.readline():
                    event = json.loads(line)
                    self.events.append(event)
                    if event["event"] in names:
                        return event
                    self._unseen.append(event)
        except TimeoutError:
            pass
        raise AssertionError(f"{self.user}: no {names} within {timeout_s:g} s; had {self.events}\n{self.log()[-8000:]}")

    async def do(self, command: str, **fields: str) -> dict[str, Any]:
        """Give a command and return its `ok` or `error` event."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **fields}).encode() + b"\n")
        await self._process.stdin.drain()
        return await self.expect("ok", "error", timeout_s=40)

    async def acknowledges(self, *, timeout_s: float = 40.0) -> None:
        """Return once it has acknowledged the answer to its last INVITE: before that baresip refuses to send another one."""
        async with asyncio.timeout(timeout_s):
            while True:
                log = self.log()
                asked, done = (sent(method).findall(log) for method in ("INVITE", "ACK"))
                if asked and asked[-1] in done:
                    return
                await asyncio.sleep(0.01)

    async def traces(self, text: str, *, timeout_s: float = 40.0) -> str:
        """The SIP trace, once it holds the text: it is written behind the events that it tells of."""
        until = asyncio.get_running_loop().time() + timeout_s
        while text not in (log := self.log()):
            assert asyncio.get_running_loop().time() < until, f"{self.user}: no {text!r} in the trace:\n{log[-8000:]}"
            await asyncio.sleep(0.01)
        return log

    def log(self) -> str:
        self._trace.flush()
        return Path(f"/proc/self/fd/{self._trace.fileno()}").read_text("utf-8", "replace")
