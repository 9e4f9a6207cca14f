"""Runs SIPp scenarios as subprocesses and reads back what happened: exit status, statistics, response times, messages.

The scenarios are in `sipp/`. SIPp answers digest challenges itself (MD5 only, and its digest `uri` is `sip:HOST:PORT`).
Leaves out: SIPp's own rate ramps and its remote control.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import shutil
import signal
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loadtest.net import free_udp_port, wait_udp_bound

__all__ = ["Credentials", "SippError", "SippResult", "SippRun", "run_sipp", "scenario_path", "start_sipp"]

SCENARIOS = Path(__file__).with_name("sipp")
TAIL = 6_000  # characters of a log that an error message shows
STATISTICS_S = 1  # how often SIPp writes its statistics (-fd)
STOP_S = 3.0  # SIPp leaves within this after SIGTERM, or is killed


class SippError(AssertionError):
    """A scenario did not do what it describes; the text holds SIPp's errors and the last messages."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """One row of an injection file: who calls or registers."""

    user: str
    password: str = field(repr=False)

    def row(self) -> str:
        return f"{self.user};[authentication username={self.user} password={self.password}]"


@dataclass(frozen=True, slots=True)
class SippResult:
    """What one run did. `response_ms` are the times of the scenario's `rtd` marks, in order of their end."""

    scenario: str
    exit_status: int
    created: int
    successful: int
    failed: int
    retransmissions: int
    seconds: float
    response_ms: tuple[float, ...]
    call_ids: tuple[str, ...]
    errors: str
    messages: str

    def check(self, expected: int | None = None) -> SippResult:
        """Return self; raises SippError when a call failed or when not exactly `expected` calls succeeded."""
        wrong = self.exit_status != 0 or self.failed or (expected is not None and self.successful != expected)
        if wrong:
            raise SippError(self.describe(expected))
        return self

    def describe(self, expected: int | None = None) -> str:
        """A readable account of the run, for an error message."""
        wanted = "" if expected is None else f", expected {expected}"
        return (
            f"sipp {self.scenario}: exit status {self.exit_status}, {self.successful} successful{wanted}, "
            f"{self.failed} failed of {self.created}\n{self.errors[-TAIL:]}\n{self.messages[-TAIL:]}"
        )


def scenario_path(name: str) -> Path:
    """The file of a scenario; raises FileNotFoundError when there is none of that name."""
    path = SCENARIOS / f"{name}.xml"
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in SCENARIOS.glob("*.xml")))
        raise FileNotFoundError(f"no SIPp scenario {name!r}; there are: {known}")
    return path


class SippRun:
    """A running SIPp. `host` and `port` are where it sends from and listens."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, address: tuple[str, int], directory: Path, cid: str
    ) -> None:
        self.name = name
        self.host, self.port = address
        self.process = process
        self._directory = directory
        self._cid = cid
        self._started_at = asyncio.get_running_loop().time()

    async def wait(self, timeout_s: float) -> SippResult:
        """The result once SIPp ended by itself, or was ended after `timeout_s` seconds (then exit_status is not 0)."""
        try:
            await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            await self._end(signal.SIGKILL)
        return self._collect()

    async def stop(self, *, successful: int = 0, timeout_s: float = 30.0) -> SippResult:
        """End a scenario that would go on for ever (`answer`). Its exit status says nothing then and is given as 0.

        SIPp counts a call some time after it has sent the last message of it, and a call that is not counted when it is told
        to leave is lost to its statistics: it is told once it says itself that `successful` calls were, or after `timeout_s`
        seconds, when the result shows that they were not.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self._successful() < successful and self.process.returncode is None:
            if asyncio.get_running_loop().time() > deadline:
                break
            await asyncio.sleep(STATISTICS_S / 10)
        if self.process.returncode is None:
            await self._end(signal.SIGUSR1)  # SIPp: finish the calls, then leave
        result = self._collect()
        return SippResult(**{**{name: getattr(result, name) for name in SippResult.__slots__}, "exit_status": 0})

    def kill(self) -> None:
        """End it at once, with what it wrote; harmless when it has ended."""
        if self.process.returncode is None:
            self.process.kill()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _successful(self) -> int:
        return int(_last_row(self._directory / "stat.csv").get("SuccessfulCall(C)", 0))

    async def _end(self, first: signal.Signals) -> None:
        for sign in (first, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(sign)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), STOP_S)
                return

    def _collect(self) -> SippResult:
        seconds = asyncio.get_running_loop().time() - self._started_at
        last = _last_row(self._directory / "stat.csv")
        created = int(last.get("TotalCallCreated", 0))
        status = self.process.returncode if self.process.returncode is not None else -1
        result = SippResult(
            scenario=self.name,
            exit_status=status,
            created=created,
            successful=self._successful(),
            failed=int(last.get("FailedCall(C)", 0)),
            retransmissions=int(last.get("Retransmissions(C)", 0)),
            seconds=seconds,
            response_ms=tuple(_response_times(self._directory)),
            call_ids=tuple(self._cid.replace("%u", str(number)) for number in range(1, created + 1)),
            errors=_text(self._directory / "output.log", only_if=status != 0) + _text(self._directory / "errors.log"),
            messages=_text(self._directory / "messages.log"),
        )
        shutil.rmtree(self._directory, ignore_errors=True)
        return result


async def start_sipp(
    name: str,
    *,
    target: tuple[str, int] | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    accounts: Iterable[Credentials] = (),
    keys: dict[str, str] | None = None,
    calls: int | None = 1,
    rate: float = 10.0,
    hold_ms: int = 200,
    limit: int | None = None,
    trace: bool = True,
    receive_timeout_ms: int = 10_000,
    extra: Sequence[str] = (),
) -> SippRun:
    """Start a scenario.

    `target` is the proxy (None for a scenario that only answers), `calls` how many are made or answered before it ends
    (None: until stopped), `rate` calls per second, `hold_ms` the length of an answered call, `limit` the number of calls
    at once, `trace` whether every message is kept for an error message. Raises FileNotFoundError when SIPp is missing.
    """
    program = shutil.which("sipp")
    if program is None:
        raise FileNotFoundError("sipp is not installed (Debian: apt-get install sip-tester)")
    directory = Path(tempfile.mkdtemp(prefix="sipp-"))
    port = port or free_udp_port(host)
    cid = f"{name}-{directory.name}-%u@{host}"
    command = [program, "-sf", str(scenario_path(name)), "-nostdin", "-t", "u1", "-i", host, "-mi", host, "-p", str(port)]
    command += ["-mp", str(free_udp_port(host, count=4)), "-cid_str", cid, "-r", str(rate), "-d", str(hold_ms)]
    command += ["-trace_err", "-error_file", "errors.log", "-trace_stat", "-stf", "stat.csv", "-fd", str(STATISTICS_S)]
    command += ["-trace_rtt", "-rtt_freq", "1" if trace else "20", "-buff_size", str(4 * 1024 * 1024)]
    if target is not None:
        command += ["-recv_timeout", str(receive_timeout_ms)]
    if trace:
        command += ["-trace_msg", "-message_file", "messages.log"]
    if calls is not None:
        command += ["-m", str(calls)]
    if limit is not None:
        command += ["-l", str(limit)]
    rows = [account.row() for account in accounts]
    if rows:
        (directory / "accounts.csv").write_text("\n".join(["SEQUENTIAL", *rows]) + "\n")
        command += ["-inf", "accounts.csv"]
    for key, value in (keys or {}).items():
        command += ["-key", key, value]
    command += list(extra)
    if target is not None:
        command.append(f"{target[0]}:{target[1]}")
    return await _launch(name, command, (host, port), directory, cid, answers=target is None)


async def _launch(
    name: str, command: Sequence[str], address: tuple[str, int], directory: Path, cid: str, *, answers: bool
) -> SippRun:
    """Start it; one that answers is ready when its port is bound. A cancellation leaves neither a process nor the folder."""
    run: SippRun | None = None
    try:
        with (directory / "output.log").open("wb") as output:
            process = await asyncio.create_subprocess_exec(*command, cwd=directory, stdout=output, stderr=output)
        run = SippRun(name, process, address, directory, cid)
        if answers:
            try:
                await wait_udp_bound(*address, process)
            except RuntimeError as error:
                raise SippError((await run.wait(1)).describe()) from error
    except BaseException:
        if run is not None:
            run.kill()
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return run


async def run_sipp(name: str, *, timeout_s: float = 30.0, **options: object) -> SippResult:
    """Start a scenario and wait for its end, which cancelling brings about; options are those of `start_sipp`."""
    run = await start_sipp(name, **options)  # type: ignore[arg-type]  # passed on as they are
    try:
        return await run.wait(timeout_s)
    finally:
        run.kill()


def _text(path: Path, *, only_if: bool = True) -> str:
    if not only_if or not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - 200_000))
        return file.read().decode("utf-8", "replace")


def _last_row(path: Path) -> dict[str, str]:
    """The last whole row of a statistics file that may be in the middle of being written; empty before there is one."""
    if not path.exists():
        return {}
    whole = path.read_text("utf-8", "replace").rpartition("\n")[0]
    last: dict[str, str] = {}
    for row in csv.DictReader(whole.splitlines(), delimiter=";"):
        last = row
    return last


def _response_times(directory: Path) -> Iterable[float]:
    for path in directory.glob("*_rtt.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file, delimiter=";"):
                value = row.get("response_time_ms")
                if value:
                    yield float(value)
