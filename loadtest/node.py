"""A real node as a subprocess: writes its configuration and CSV files, starts it, waits until it answers, measures, ends it.

CPU and memory are read from /proc (Linux). Leaves out: what the node does; callers look at the wire and into the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtest.lateness import node_metrics
from loadtest.net import PATIENCE_S, free_tcp_port, free_udp_port
from loadtest.truth import Ledger
from loadtest.ua import Address, NoAnswerError, UserAgent, new_tag
from sipproxy.sip.build import write_request

__all__ = ["PROGRAM", "START_S", "TRANSPORTS", "LineSpec", "Node", "NodeError", "PsapSpec", "TrunkSpec", "write_toml"]

PROGRAM = ("-m", "sipproxy")  # what the interpreter runs
START_S = 60.0
STOP_S = PATIENCE_S
LOG_TAIL = 8_000
PROBE_S = 2.0
READY = b'{"event": "ready"'  # what a node writes once it serves
LINE_COLUMNS = (
    *("line", "profile", "status", "channels", "location", "area_code", "account", "kind", "password", "number"),
    "account_channels",
)
PSAP_COLUMNS = ("location", "service", "priority", "uri", "name")


class NodeError(RuntimeError):
    """The node did not start, or ended by itself; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class LineSpec:
    """One account with one number (or range) of a line: one row of the import file."""

    line: str
    user: str
    password: str = field(repr=False)
    number: str
    profile: str = "badnauheim"
    area_code: str = "06032"
    location: str = "badnauheim"
    status: str = "active"
    channels: int | None = None
    kind: str = "single"
    account_channels: int | None = None

    def row(self) -> tuple[str, ...]:
        channels, own = ("" if count is None else str(count) for count in (self.channels, self.account_channels))
        head = (self.line, self.profile, self.status, channels, self.location, self.area_code)
        return (*head, self.user, self.kind, self.password, self.number, own)


@dataclass(frozen=True, slots=True)
class PsapSpec:
    """One route to an emergency centre."""

    location: str
    service: str
    address: Address
    priority: int = 1

    def row(self) -> tuple[str, ...]:
        uri = f"sip:{self.service}@{self.address[0]}:{self.address[1]}"
        return (self.location, self.service, str(self.priority), uri, f"{self.location} {self.service}")


@dataclass(frozen=True, slots=True)
class TrunkSpec:
    """One trunk route; without `sources` calls come from exactly `address`. `settings` are further keys of its table."""

    name: str
    address: Address
    sources: tuple[str, ...] = ()
    priority: int = 0
    settings: Mapping[str, object] = field(default_factory=dict)

    def table(self) -> dict[str, object]:
        host, port = self.address
        sources = list(self.sources) or [f"{host}:{port}"]
        return {
            "name": self.name,
            "uri": f"sip:{host}:{port};transport=udp",
            "addresses": sources,
            "priority": self.priority,
            **self.settings,
        }


TRANSPORTS = ("udp", "tcp", "tls")


class Node:
    """A node with its files in a directory of its own. `start` and `stop` may be called again and again.

    `settings` are tables of the configuration that replace or add keys: `{"calls": {"route_s": 2}}`. With `certificate`, a PEM
    file with its key, it listens for TLS as well, with `ipv6` on ::1, and on further IPv4 `addresses`. `transports` is the
    order of its listeners: other nodes come by the first. `workers` are its processes. `code` is a directory with another
    version of the program, run by its own environment (.venv) where it has one.
    """

    def __init__(
        self,
        *,
        lines: Iterable[LineSpec] = (),
        psap: Iterable[PsapSpec] = (),
        trunks: Sequence[TrunkSpec] = (),
        store_url: str = "",
        domain: str = "sip.example",
        node_id: str = "node1",
        settings: Mapping[str, Mapping[str, object]] | None = None,
        directory: Path | None = None,
        certificate: Path | None = None,
        transports: Sequence[str] = TRANSPORTS,
        ipv6: bool = False,
        addresses: Sequence[str] = (),
        workers: int = 1,
        code: Path | None = None,
    ) -> None:
        self.directory = directory if directory is not None else Path(tempfile.mkdtemp(prefix="sipproxy-"))
        self._own_directory = directory is None
        self.host = "127.0.0.1"
        self.port = free_udp_port()
        self.tls_port = free_tcp_port() if certificate is not None else 0
        self.port6 = free_udp_port("::1") if ipv6 else 0
        self._certificate, self._transports, self._addresses = certificate, transports, addresses
        self.metrics_port = free_tcp_port()
        self.domain = domain
        self.node_id = node_id
        own: Mapping[str, object] = (settings or {}).get("node", {})
        self.workers = int(str(own.get("workers", workers)))
        self.config = self.directory / "config.toml"
        self.log_path = self.directory / "log"
        self.process: asyncio.subprocess.Process | None = None
        self._code = code or Path(__file__).parents[1]
        own_python = self._code / ".venv" / "bin" / "python"
        self._python = str(own_python) if code is not None and own_python.exists() else sys.executable
        self.program: Sequence[str] = PROGRAM  # of the next start; tests of crashes put one in that kills itself
        self._command = "serve" if store_url else "up"  # `up` brings the embedded store with it
        self._write(list(lines), list(psap), trunks, store_url, settings or {})

    @property
    def address(self) -> Address:
        """Where it speaks SIP."""
        return (self.host, self.port)

    def _listens(self) -> list[tuple[str, str]]:
        ports = {"udp": self.port, "tcp": self.port, "tls": self.tls_port}
        places = [(transport, f"{self.host}:{ports[transport]}") for transport in self._transports if ports[transport]]
        further = [f"{address}:{self.port}" for address in self._addresses] + ([f"[::1]:{self.port6}"] if self.port6 else [])
        return places + [(transport, place) for place in further for transport in ("udp", "tcp")]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def __aenter__(self) -> Node:
        try:
            await self.start()
        except BaseException:  # a cancellation, too, leaves neither a process nor a folder
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    async def start(self) -> None:
        """Start it and return once it answers an OPTIONS; raises NodeError. Under load it does not answer who is a stranger to
        it: then what it says itself has to do."""
        with self.log_path.open("ab") as output:
            written = output.tell()
            self.process = await asyncio.create_subprocess_exec(
                self._python,
                *self.program,
                self._command,
                "-c",
                str(self.config),
                cwd=self._code,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        await self._wait_ready(written)

    async def stop(self, sign: signal.Signals = signal.SIGTERM) -> int | None:
        """End it and return its exit status. When it does not leave within the bound it is made to tell where it hangs
        (SIGABRT, which its log then shows) and killed: the status is negative then."""
        process = self.process
        if process is None:
            return None
        for way in (sign, signal.SIGABRT, signal.SIGKILL):
            if process.returncode is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(way)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), STOP_S)
        return process.returncode

    async def kill(self) -> None:
        """End it as a power cut would (SIGKILL), and return once it is gone."""
        await self.stop(signal.SIGKILL)

    def log(self, *, tail: int = LOG_TAIL) -> str:
        """The end of what it wrote to its standard output and error."""
        return self.log_path.read_text("utf-8", "replace")[-tail:] if self.log_path.exists() else ""

    def cpu_seconds(self) -> float:
        """User and system time that it has used so far, its workers included."""
        ticks = 0
        for pid in (self.pid, *self.worker_pids().values()):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory_bytes(self) -> int:
        """Resident memory, its workers' included."""
        pids = (self.pid, *self.worker_pids().values())
        return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids) * os.sysconf("SC_PAGE_SIZE")

    def worker_pids(self) -> dict[int, int]:
        """The processes of its workers by number; none where it is one process itself."""
        found: dict[int, int] = {}
        for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with contextlib.suppress(OSError, ValueError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                found[int(words[words.index(b"sipproxy.worker") + 1])] = int(pid)
        return found

    async def metrics(self) -> dict[str, float]:
        """Its metrics by name with labels; empty when it does not answer."""
        return await node_metrics(self.host, self.metrics_port)

    async def _wait_ready(self, written: int) -> None:
        probe = UserAgent("probe", Ledger())
        await probe.open()
        deadline, patience_s = asyncio.get_running_loop().time() + START_S, PROBE_S / 16
        try:
            while asyncio.get_running_loop().time() < deadline and self.running:
                tag = new_tag()
                lines = [(b"Via", probe.new_via()), (b"Max-Forwards", b"70"), (b"Call-ID", b"probe-" + tag)]
                lines += [(b"From", b"<sip:probe@127.0.0.1>;tag=" + tag), (b"CSeq", b"1 OPTIONS")]
                uri = f"sip:{self.host}:{self.port}".encode()
                lines += [(b"To", b"<" + uri + b">")]
                with contextlib.suppress(NoAnswerError):
                    await probe.transact(write_request(b"OPTIONS", uri, lines), self.address, timeout_s=patience_s)
                    if self.workers == 1:
                        return
                    await asyncio.sleep(PROBE_S / 32)  # the first worker answers while the others start
                patience_s = min(2 * patience_s, PROBE_S)  # a node under load may take its time
                if READY in self.log_path.read_bytes()[written:]:
                    return
        finally:
            probe.close()
        why = "is not ready in time" if self.running else f"ended with status {self.process and self.process.returncode}"
        log = self.log()
        await self.kill()
        raise NodeError(f"the node {why}\n{log}")

    def _write(
        self,
        lines: list[LineSpec],
        psap: list[PsapSpec],
        trunks: Sequence[TrunkSpec],
        store_url: str,
        settings: Mapping[str, Mapping[str, object]],
    ) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        _write_csv(self.directory / "lines.csv", LINE_COLUMNS, [line.row() for line in lines])
        _write_csv(self.directory / "psap.csv", PSAP_COLUMNS, [route.row() for route in psap])
        tables: dict[str, object] = {
            "node": {"id": self.node_id, "data_dir": "data", "drain_s": 1, "workers": self.workers},
            "listen": [{"transport": transport, "address": place} for transport, place in self._listens()],
            "store": {"url": store_url},
            "registrar": {"realm": self.domain, "domains": [self.domain]},
            "policy": {"lines": ["lines.csv"] if lines else [], "psap": ["psap.csv"] if psap else []},
            "trunk": [trunk.table() for trunk in trunks],
            "metrics": {"address": f"127.0.0.1:{self.metrics_port}"},
        }
        if self._certificate is not None:
            tables["tls"] = {"certificate": str(self._certificate)}
        for name, keys in settings.items():
            current = tables.setdefault(name, {})
            assert isinstance(current, dict)
            current.update(keys)
        self.config.write_text(write_toml(tables))


def write_toml(tables: Mapping[str, Any]) -> str:
    """TOML of a mapping of tables (mappings) and arrays of tables (lists of mappings) with plain values."""
    out: list[str] = []
    for name, content in tables.items():
        entries: list[dict[str, object]] = content if isinstance(content, list) else [content]
        head = f"[[{name}]]" if isinstance(content, list) else f"[{name}]"
        for entry in entries:
            out.append(head)
            out += [f"{key} = {_toml_value(value)}" for key, value in entry.items()]
            out.append("")
    return "\n".join(out)


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
