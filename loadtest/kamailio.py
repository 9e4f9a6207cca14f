"""Kamailio as the carrier behind a trunk: starts the configuration in `peers/kamailio.cfg` as a subprocess.

What comes from the proxy's address is relayed to a subscriber, everything else to the proxy; OPTIONS are answered. With a
`password` the proxy's INVITE, BYE and REGISTER are challenged; with a `spare` calls that the subscriber does not take go there.
Leaves out: TCP, TLS, and every kind of number handling. Kamailio as the node's own peer is in peer.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from loadtest.net import free_udp_port, wait_udp_bound

__all__ = ["Kamailio", "KamailioProcess", "kamailio_program"]

PEERS = Path(__file__).with_name("peers")
STOP_S = 5.0


def kamailio_program() -> str:
    """The program; raises FileNotFoundError when it is not installed."""
    program = shutil.which("kamailio") or shutil.which("kamailio", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise FileNotFoundError("kamailio is not installed (Debian: apt-get install kamailio)")
    return program


class KamailioProcess:
    """A Kamailio on `host`:`port` with a directory of its own; what it runs with is told by who starts it."""

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port or free_udp_port(host)
        self.pid = 0
        self.directory = Path()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> tuple[str, int]:
        return (self.host, self.port)

    def prepare(self) -> None:
        """Make its directory."""
        self.directory = Path(tempfile.mkdtemp(prefix="kamailio-"))

    async def launch(self, config: str, defines: Mapping[str, str], options: Sequence[str]) -> None:
        """Start it and return once it listens. Raises FileNotFoundError, and RuntimeError with its log when it ends at once."""
        command = [kamailio_program(), "-DD", "-E", "-f", str(PEERS / config), "-l", f"udp:{self.host}:{self.port}", *options]
        command += ["-Y", str(self.directory), "-P", str(self.directory / "pid")]
        for name, value in defines.items():
            command += ["-A", f"{name}={value}"]
        try:
            with (self.directory / "log").open("wb") as output:
                self._process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
            self.pid = self._process.pid
            await wait_udp_bound(self.host, self.port, self._process)
        except RuntimeError as error:
            log = self.log()
            await self.end()
            raise RuntimeError(f"kamailio did not start: {error}\n{log[-4000:]}") from error
        except BaseException:  # a cancellation, too, leaves neither a process nor a folder
            await self.end()
            raise

    async def end(self) -> None:
        """End it and remove its directory."""
        process = self._process
        if process is not None:
            for sign in (signal.SIGTERM, signal.SIGKILL):
                if process.returncode is not None:
                    break
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(sign)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(process.wait(), STOP_S)
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """What Kamailio wrote so far."""
        path = self.directory / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""


class Kamailio(KamailioProcess):
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
        super().__init__(host, port)
        self._proxy = proxy
        self._subscriber = subscriber
        self._password = password
        self._spare = spare

    async def __aenter__(self) -> Kamailio:
        kamailio_program()
        self.prepare()
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
        await self.launch("kamailio.cfg", defines, ["-m", "32", "-M", "8"])
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()
