"""Kamailio as the carrier behind a trunk: starts the configuration in `peers/kamailio.cfg` as a subprocess.

What comes from the proxy's address is relayed to a subscriber, everything else to the proxy; OPTIONS are answered. With a
`password` the proxy's INVITE, BYE and REGISTER are challenged; with a `spare` calls that the subscriber does not take go there.
Leaves out: TCP, TLS, and every kind of number handling.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from pathlib import Path

from loadtest.net import free_udp_port, wait_udp_bound

__all__ = ["Kamailio"]

CONFIG = Path(__file__).with_name("peers") / "kamailio.cfg"
STOP_S = 5.0


class Kamailio:
    """A running Kamailio on `host`:`port`; use as an async context manager.

    Entering raises FileNotFoundError when Kamailio is not installed and RuntimeError, with its log, when it does not start.
    """

    def __init__(
        self,
        *,
        proxy: tuple[str, int],
        subscriber: tuple[str, int],
        host: str = "127.0.0.1",
        port: int = 0,
        password: str = "",
        spare: tuple[str, int] | None = None,
    ) -> None:
        self.host = host
        self.port = port or free_udp_port(host)
        self.pid = 0
        self._proxy = proxy
        self._subscriber = subscriber
        self._password = password
        self._spare = spare
        self._directory = Path()
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Kamailio:
        program = shutil.which("kamailio") or shutil.which("kamailio", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise FileNotFoundError("kamailio is not installed (Debian: apt-get install kamailio)")
        self._directory = Path(tempfile.mkdtemp(prefix="kamailio-"))
        defines = {
            "PROXY_HOST": f'"{self._proxy[0]}"',
            "PROXY_PORT": str(self._proxy[1]),
            "PROXY_URI": f'"sip:{self._proxy[0]}:{self._proxy[1]}"',
            "SUBSCRIBER_URI": f'"sip:{self._subscriber[0]}:{self._subscriber[1]}"',
        }
        if self._password:
            defines["PASSWORD"] = f'"{self._password}"'
        if self._spare is not None:
            defines["SPARE_URI"] = f'"sip:{self._spare[0]}:{self._spare[1]}"'
        command = [program, "-DD", "-E", "-f", str(CONFIG), "-l", f"udp:{self.host}:{self.port}", "-m", "32", "-M", "8"]
        command += ["-Y", str(self._directory), "-P", str(self._directory / "pid")]
        for name, value in defines.items():
            command += ["-A", f"{name}={value}"]
        with (self._directory / "log").open("wb") as output:
            self._process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
        self.pid = self._process.pid
        try:
            await wait_udp_bound(self.host, self.port, self._process)
        except RuntimeError as error:
            log = self.log()
            await self.__aexit__()
            raise RuntimeError(f"kamailio did not start: {error}\n{log[-4000:]}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is not None:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                if process.returncode is not None:
                    break
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(sign)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), STOP_S)
        shutil.rmtree(self._directory, ignore_errors=True)

    def log(self) -> str:
        """What Kamailio wrote so far."""
        path = self._directory / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""
