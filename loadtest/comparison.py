"""The same calls and registrations by SIPp against nodes and against Kamailio, in turn: CPU, delay, highest rate, memory.

Nodes differ in how many workers they have, and in the code that they run (another checkout, such as a compiled one). All have
the same accounts, blocked prefixes and limits and each a store of its own; the same SIPp answers behind all. Each round of one
is followed by the same round of the next, so that what else the machine does hits all; figures are medians. Leaves out: what
only one of them does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from loadtest.bracket import Bracket
from loadtest.generate import percentile
from loadtest.mixed import LOAD_SETTINGS
from loadtest.network import DOMAIN, TRUNK_HOST, Network, many_lines, md5_only
from loadtest.node import TrunkSpec
from loadtest.peer import RECORDS, KamailioProxy
from loadtest.reconcile import becomes, compare, read_page
from loadtest.sipp_runner import Credentials, SippRun, run_sipp, start_sipp
from loadtest.usage import tree_cpu_seconds, tree_memory_bytes
from loadtest.valkey import Valkey

if TYPE_CHECKING:
    from loadtest.node import LineSpec
    from loadtest.sipp_runner import SippResult
    from loadtest.ua import Address

__all__ = ["Compared", "Plan", "Round", "compare_peers"]

DIALLED = "03023125001"
CHANNELS = 2
PREFIXES = tuple(f"88{number}" for number in range(2000, 3000))  # of networks that do not exist: blocked by both
SETTLE_S = 60.0
LIMIT = 20_000  # calls at once
FAILED_AT_MOST = 0.001
KEPT_RATE = 0.9  # of the rate that was asked for: with less, SIPp itself was the limit
GUESSED = 0.7  # of the rate at which a core would be full by what a call cost at the rates before
NO_GUESS = 100.0
STARTS_S = 1.0  # that SIPp takes to start and to leave
IDLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`rates` are calls a second, each for `seconds`; `children` are Kamailio's; `settings` further tables of the nodes'.

    There is a node for each number of `workers`, and as many for each directory of `beside`, which has other code.
    """

    rates: Sequence[float] = (50.0, 200.0)
    seconds: float = 10.0
    rounds: int = 3
    hold_ms: int = 1000
    accounts: int = 10_000
    registers: int = 5_000
    register_rate: float = 300.0
    children: int = 2
    search_from: float = 0.0  # 0: by what calls cost before
    search_s: float = 8.0  # of each trial
    search_minutes: float = 12.0  # for all of them together; 0: the highest rate is not looked for
    workers: Sequence[int] = (1, 2)
    beside: Sequence[Path] = ()
    kamailio: bool = True
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Round:
    """What one run of SIPp found; CPU in seconds. `kept` is the share of the wanted rate at which SIPp placed calls."""

    wanted: int
    failed: int
    seconds: float
    kept: float
    cpu_s: float
    store_cpu_s: float
    sipp_cpu_s: float
    delays_ms: tuple[float, ...]
    repeats: int
    fault: str = ""

    @property
    def clean(self) -> bool:
        return not self.fault and self.failed <= FAILED_AT_MOST * self.wanted


@dataclass(slots=True)
class Compared:
    """All rounds of one of them, which has so many processes for messages."""

    title: str
    processes: int = 1
    calls: dict[float, list[Round]] = field(default_factory=dict)
    registers: list[Round] = field(default_factory=list)
    idle_share: float = 0.0  # CPU of a core before the first message
    binding_bytes: float = 0.0
    search: Bracket | None = None
    faults: list[str] = field(default_factory=list)


class Peer(Protocol):
    """One of them."""

    title: str
    processes: int
    pid: int
    store: Valkey
    address: Address

    async def fault(self, call_ids: Sequence[str]) -> str:
        """What does not agree between these calls and the records and slots since the last time; "" when all does."""

    async def unbound(self, count: int) -> str:
        """What is wrong with the bindings of the first so many accounts; "" where nothing is, or where nobody can look."""


class _NodePeer:
    def __init__(self, network: Network, title: str) -> None:
        self._network, self.title, self.processes = network, title, network.node.workers
        self.store = network.store
        self.pid, self.address = network.node.pid, network.node.address
        self._last = b""

    async def fault(self, call_ids: Sequence[str]) -> str:
        wanted, found = len(call_ids), []
        deadline = time.monotonic() + SETTLE_S
        while True:
            records, self._last = await read_page(self.store.client, self._last)
            found += records
            if len(found) >= wanted and not records:
                break
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0 if records else 0.1)
        left = await self._network.slots_of_all(0, timeout_s=SETTLE_S)
        result = compare(call_ids, found)
        return f"{result}; {left} slots left" if left or not result.ok else ""

    async def unbound(self, count: int) -> str:
        async def stored() -> int:
            return len([key async for key in self.store.client.scan_iter(match="sp:{acct:u*}:bindings", count=1000)])

        found = await becomes(stored, count, timeout_s=SETTLE_S)
        return "" if found == count else f"{found} bindings of {count} are in the store"


class _KamailioPeer:
    def __init__(self, proxy: KamailioProxy, store: Valkey, children: int) -> None:
        self._proxy, self.store, self.processes = proxy, store, children
        self.title = f"kamailio -x tlsf, {children} children"
        self.pid, self.address = proxy.pid, proxy.address
        self._last = b""

    async def fault(self, call_ids: Sequence[str]) -> str:
        async def slots() -> int:
            return len(await self.store.client.keys("line:*"))

        left = await becomes(slots, 0, timeout_s=SETTLE_S)
        found: list[str] = []
        while page := await self.store.client.xrange(RECORDS, min=b"(" + self._last if self._last else "-", count=1000):
            entries: Any = page
            found += [fields[b"call"].decode() for _, fields in entries]
            self._last = entries[-1][0]
        if not left and sorted(found) == sorted(call_ids):
            return ""
        return f"{len(call_ids)} calls, {len(found)} records, {left} slots left"

    async def unbound(self, count: int) -> str:  # noqa: ARG002  they are in Kamailio's memory
        return ""


async def compare_peers(plan: Plan, tell: Callable[[str], None], stop: asyncio.Event | None = None) -> list[Compared]:
    """All rounds of the plan, in turn, or what there is of them once `stop` is set. Raises NodeError, FileNotFoundError and
    RuntimeError when something does not start."""
    callers = [md5_only(line) for line in many_lines(plan.accounts, channels=CHANNELS)]
    answering = await start_sipp("answer", calls=None, host=TRUNK_HOST, trace=False, extra=["-l", str(LIMIT)])
    try:
        async with _started(plan, callers, (answering.host, answering.port)) as peers:
            runs = [_Runs(peer, plan, answering, Compared(peer.title, peer.processes), tell) for peer in peers]
            await _until(_in_turn(plan, runs), stop or asyncio.Event())
            return [run.found for run in runs]
    finally:
        await answering.stop()


async def _until(work: Coroutine[object, object, None], stop: asyncio.Event) -> None:
    """Work until it is done or `stop` is set."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.wait({working, stopping})
    with contextlib.suppress(asyncio.CancelledError):
        working.result()


async def _in_turn(plan: Plan, runs: Sequence[_Runs]) -> None:
    for run in runs:
        await run.idle()
    for number in range(plan.rounds if plan.registers else 0):
        for run in runs:
            await run.register(first=not number)
    for rate in plan.rates:
        for _ in range(plan.rounds):
            for run in runs:
                await run.call(rate)
    until = time.monotonic() + 60 * plan.search_minutes
    for number, run in enumerate(runs if plan.search_minutes else ()):
        left_s = until - time.monotonic()
        await run.search(left_s / (len(runs) - number))


@asynccontextmanager
async def _started(plan: Plan, callers: Sequence[LineSpec], trunk: Address) -> AsyncIterator[list[Peer]]:
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        for code in (None, *plan.beside):
            for workers in plan.workers:
                folder = stack.enter_context(TemporaryDirectory(prefix="sipproxy-"))
                network = await stack.enter_async_context(
                    _network(plan, callers, trunk, Path(folder), workers=workers, code=code)
                )
                name = f"{code.name}, " if code is not None else "node, "
                peers.append(_NodePeer(network, f"{name}{workers} worker{'' if workers == 1 else 's'}"))
        if plan.kamailio:
            store = await stack.enter_async_context(Valkey())
            proxy = KamailioProxy(
                many_lines(plan.accounts, channels=CHANNELS),
                [f"00{prefix}" for prefix in PREFIXES],
                realm=DOMAIN,
                trunk=trunk,
                store=store,
                children=plan.children,
            )
            await stack.enter_async_context(proxy)
            peers.append(_KamailioPeer(proxy, store, plan.children))
        yield peers


def _network(
    plan: Plan, callers: Sequence[LineSpec], trunk: Address, folder: Path, *, workers: int, code: Path | None
) -> Network:
    rows = ["id,prefix,reason", *(f"none-{prefix},+{prefix},no such network" for prefix in PREFIXES)]
    (folder / "blocks.csv").write_text("\n".join([*rows, ""]))
    policy = {"lines": ["lines.csv"], "psap": ["psap.csv"], "blocks": ["blocks.csv"]}
    settings: dict[str, Mapping[str, object]] = {**LOAD_SETTINGS, "policy": policy}
    for name, keys in plan.settings.items():
        settings[name] = {**settings.get(name, {}), **keys}
    route = TrunkSpec("carrier", trunk, (TRUNK_HOST,))
    return Network(callers, settings=settings, directory=folder, trunks=[route], workers=workers, code=code)


class _Runs:
    def __init__(self, peer: Peer, plan: Plan, answering: SippRun, found: Compared, tell: Callable[[str], None]) -> None:
        self.peer, self.plan, self.found = peer, plan, found
        self._answering, self._tell = answering, tell
        self._accounts = [Credentials(line.user, line.password) for line in many_lines(plan.accounts)]

    async def idle(self) -> None:
        """What it uses while nothing is asked of it."""
        used, seconds = tree_cpu_seconds(self.peer.pid), min(IDLE_S, self.plan.seconds)
        await asyncio.sleep(seconds)
        self.found.idle_share = (tree_cpu_seconds(self.peer.pid) - used) / seconds

    async def register(self, *, first: bool) -> None:
        """REGISTERs of so many accounts; the first time they are new."""
        plan = self.plan
        memory = tree_memory_bytes(self.peer.pid)
        result = await self._run(
            "register", plan.registers, plan.register_rate, keys={"expires": "3600", "contact_port": "5099"}
        )
        self.found.registers.append(result)
        self._tell(f"{self.peer.title}: {result.wanted} REGISTERs, {_cost(result)} each")
        if first:
            self.found.binding_bytes = (tree_memory_bytes(self.peer.pid) - memory) / plan.registers
        if result.failed or (fault := await self.peer.unbound(plan.registers)):
            self.found.faults.append(f"{result.failed} of {result.wanted} REGISTERs failed" if result.failed else fault)

    async def call(self, rate: float) -> None:
        """One round of calls at this rate."""
        result = await self._calls(rate, self.plan.seconds)
        self._tell(f"{self.peer.title}: {rate:g} calls a second, {_cost(result)} each")
        self.found.calls.setdefault(rate, []).append(result)
        if not result.clean:
            self.found.faults.append(f"at {rate:g} calls a second: {result.failed} failed; {result.fault}")

    async def search(self, within_s: float) -> None:
        """The highest rate with no more failed calls than allowed, as closely as it is found within so many seconds."""
        search = self.found.search = Bracket(self.plan.search_from or self._guess())
        until = time.monotonic() + within_s
        while (rate := search.next_rate()) is not None and time.monotonic() < until - self.plan.search_s:
            search.tried(rate, await self._too_high(rate))

    def _guess(self) -> float:
        """By what a call cost at the highest rate that was measured: of its processes, and of all that run on the machine."""
        rounds = self.found.calls.get(max(self.found.calls, default=0.0), [])
        cost = median([one.cpu_s / one.wanted for one in rounds])
        others = median([(one.store_cpu_s + one.sipp_cpu_s) / one.wanted for one in rounds])
        if not cost:
            return NO_GUESS
        return GUESSED * min(self.found.processes / cost, (os.cpu_count() or 1) / (cost + others))

    async def _too_high(self, rate: float) -> str:
        """Why a rate is too high, "" where it is not; it has to fail twice, as once may be the machine's doing."""
        why = ""
        for _ in range(2):
            result = await self._calls(rate, self.plan.search_s)
            if result.clean and result.kept >= KEPT_RATE:
                why = ""
                self._tell(f"{self.peer.title}: {rate:.0f} calls a second go well, {result.failed} of {result.wanted} failed")
                break
            why = f"at {rate:.0f}: {result.failed} of {result.wanted} failed"
            if result.clean:
                why = f"at {rate:.0f} SIPp placed {100 * result.kept:.0f} % of them in time"
            self._tell(f"{self.peer.title}: too many, {why}")
        return why

    async def _calls(self, rate: float, seconds: float) -> Round:
        return await self._run("call", round(rate * seconds), rate, keys={"dialled": DIALLED}, settle=True)

    async def _run(self, scenario: str, count: int, rate: float, *, keys: dict[str, str], settle: bool = False) -> Round:
        peer, plan = self.peer, self.plan
        pids = peer.pid, peer.store.pid, self._answering.process.pid
        before, own = [tree_cpu_seconds(pid) for pid in pids], _children_cpu_s()
        began = time.monotonic()
        result: SippResult = await run_sipp(
            scenario,
            timeout_s=3 * count / rate + 60,
            target=peer.address,
            accounts=self._accounts,
            keys=keys,
            calls=count,
            rate=rate,
            hold_ms=plan.hold_ms,
            limit=LIMIT,
            trace=False,
        )
        seconds = time.monotonic() - began
        # A call that failed may have a record or not, by where it failed: then the records show nothing, and are only read.
        fault = await peer.fault(result.call_ids) if settle else ""
        cpu, store, answering = (tree_cpu_seconds(pid) - used for pid, used in zip(pids, before, strict=True))
        wanted_s = count / rate + (plan.hold_ms / 1000 if settle else 0.0)
        return Round(
            wanted=count,
            failed=count - result.successful,
            seconds=seconds,
            kept=min(1.0, wanted_s / max(seconds - STARTS_S, 0.001)),
            cpu_s=cpu,
            store_cpu_s=store,
            sipp_cpu_s=answering + _children_cpu_s() - own,
            delays_ms=(percentile(result.response_ms, 0.5), percentile(result.response_ms, 0.99)),
            repeats=result.retransmissions,
            fault=_first_error(result.errors) if result.successful < count else fault,
        )


def _cost(one: Round) -> str:
    return f"{1e6 * one.cpu_s / one.wanted:.0f} µs CPU"


def _first_error(errors: str) -> str:
    """SIPp's first complaint about a call, without its time stamp."""
    line = next((line for line in errors.splitlines() if "call" in line.lower() or "timeout" in line.lower()), "")
    return line.rpartition("\t")[2][:200]


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def median(values: Sequence[float]) -> float:
    """The middle one; 0 of none."""
    return statistics.median(values) if values else 0.0
