"""What a call and a registration cost a node in CPU time, by datagram and by stage, measured inside one process.

A whole node runs here with its engine, shell, journal, publisher and a store of its own; only its sockets are not used: the
datagrams of `desk_calls` are handed to the shell, and what it sends is taken instead of going into a socket. So neither load
generator nor kernel blur the figures, and two versions can be compared call by call. What sockets cost is measured apart. CPU
time is that of the process with all its threads; the store's own is another process's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cdr.journal import Journal
from loadtest.desk_calls import CALL_STEPS, REGISTER_STEPS, Place, Scripted, Step
from loadtest.instructions import Instructions
from loadtest.net import free_udp_port
from loadtest.network import many_lines
from loadtest.node import LineSpec, Node, PsapSpec, TrunkSpec
from loadtest.options import count
from loadtest.report import Report
from loadtest.stages import Sampler
from loadtest.valkey import Valkey
from sipproxy import app
from sipproxy.collecting import settle_memory
from sipproxy.config import load
from sipproxy.engine.actions import Now
from sipproxy.log import configure
from sipproxy.net.resolver import Resolver
from sipproxy.net.transports import Transports
from sipproxy.process import Stop, loop_factory
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Request, check_message, parse_message

__all__ = ["add_cost", "call_cost", "message_cost", "socket_cost"]

DOMAIN = "sip.example"
CHANNELS = 2
LATER_S = 40.0  # when all transactions of calls that ended are over: 64*T1 is 32 s
WAIT_S = 10.0
BURST = 64  # datagrams at once through a socket: fits the smallest receive buffer
PLENTY = 1_000_000
STARTED = 20  # calls of one line: how many it may start within a minute is limited, too

SETTINGS: Mapping[str, Mapping[str, object]] = {
    "log": {"level": "warning"},
    "store": {"deadline_ms": 5000},  # the loop stands still while parties write
    "limits": {
        "lag_ms": 5000,
        **{f"{whose}_{what}": PLENTY for whose in ("source", "line", "strangers", "registers") for what in ("per_s", "burst")},
    },
}


class _Socket(socket.socket):
    """Keeps what the node sends."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.sent: list[tuple[int, bytes]] = []  # port, datagram

    def sendto(self, data: bytes, address: tuple[str, int]) -> int:  # type: ignore[override]
        self.sent.append((address[1], data))
        return len(data)


@dataclass(slots=True)
class Spent:
    """CPU seconds by what they went into; `rounds` are those of each round of calls."""

    by_step: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    rounds: list[float] = field(default_factory=list)
    calls: int = 0
    sent: int = 0
    sampler: Sampler | None = None
    counter: Instructions = field(default_factory=Instructions)
    instructions: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # outside the kernel, by step

    @contextlib.contextmanager
    def on(self, step: str) -> Iterator[None]:
        """What the block takes goes into `step`."""
        with self.sampler.running() if self.sampler is not None else contextlib.nullcontext():
            before, began = self.counter.count(), time.process_time()
            yield
            self.by_step[step] += time.process_time() - began
            self.instructions[step] += self.counter.count() - before

    @property
    def us(self) -> float:
        """Microseconds of each call, all in all."""
        return 1e6 * sum(self.by_step.values()) / max(1, self.calls)


class _Desk:
    """A node in this process whose parties are scripted. `messages` are the datagrams that it was given, by step."""

    def __init__(self, node: app.Node, lines: Sequence[LineSpec], sock: _Socket, *, keep: int = 0) -> None:
        self._node = node
        self._lines = lines
        self._socket = sock
        transports = Transports(
            Resolver(), lambda *_: None, lambda *_: None, lambda *_: None, lambda *_: None, take=lambda _: sock
        )
        transports.bind([("UDP", "127.0.0.1", 0)])
        node.shell.transports = transports
        self._place = Place(Flow("UDP", 0, "127.0.0.1", 5070), Flow("UDP", 0, "127.0.0.2", 5080), DOMAIN.encode())
        self._next = 0
        self._keep = keep
        self.messages: dict[str, list[bytes]] = {}

    async def rounds(self, steps: Sequence[Step], count: int, together: int, spent: Spent) -> None:
        """Run `count` calls through their steps, so many `together` at each of them."""
        for first in range(0, count, together):
            before = sum(spent.by_step.values())
            calls = [Scripted(self._place, self._line()) for _ in range(min(together, count - first))]
            for step in steps:
                await self._step(step, calls, spent)
            spent.calls += len(calls)
            spent.rounds.append((sum(spent.by_step.values()) - before) / len(calls))
        later = time.monotonic() + LATER_S
        with spent.on("timers, afterwards"):
            self._node.engine.fire(Now(later, time.time_ns() // 1_000_000 + round(1000 * LATER_S)))

    def _line(self) -> LineSpec:
        self._next = (self._next + 1) % len(self._lines)
        return self._lines[self._next]

    async def _step(self, step: Step, calls: Sequence[Scripted], spent: Spent) -> None:
        flow = self._place.carrier if step.from_carrier else self._place.router
        datagrams = [step.write(call) for call in calls]
        if self._keep:
            self.messages.setdefault(step.name, []).extend(datagrams[: self._keep])
        for call in calls:
            call.got.clear()
        port = (self._place.carrier if step.to_carrier else self._place.router).port
        take = self._node.shell.message
        with spent.on(step.name):
            for data in datagrams:
                take(data, flow)
        await self._settled(step, calls, port, spent)

    async def _settled(self, step: Step, calls: Sequence[Scripted], port: int, spent: Spent) -> None:
        by_id = {call.call_id: call for call in calls}
        deadline = time.monotonic() + WAIT_S
        while True:
            for to, data in self._socket.sent:
                found = by_id.get(parse_message(data).call_id)
                if found is not None:
                    found.got.append((to, data))
            spent.sent += len(self._socket.sent)
            self._socket.sent.clear()
            lacking = [call for call in calls if step.wanted and call.sent(port, step.wanted) is None]
            if not lacking:
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {step.wanted!r} after {step.name}: {[data[:60] for _, data in lacking[0].got]}")
            with spent.on("slot's answer"):  # all else is sent before `take` returns
                await asyncio.sleep(0.0005)


@contextlib.asynccontextmanager
async def _desk(lines: Sequence[LineSpec], *, keep: int = 0) -> AsyncIterator[tuple[_Desk, Valkey]]:
    """A desk whose node knows these lines, and the node's store."""
    async with Valkey() as store, contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cost-")))
        files = Node(
            lines=lines,
            psap=[PsapSpec("badnauheim", service, ("127.0.0.3", 5060)) for service in ("110", "112")],
            trunks=[TrunkSpec("carrier", ("127.0.0.2", 5080))],
            store_url=store.url,
            domain=DOMAIN,
            settings=SETTINGS,
            directory=directory,
        )
        config = load(files.config)
        stack.callback(configure(config.log.level, config.log.format).close)
        journal = Journal(directory / "data" / "journal", node=config.node.id)
        found = journal.recover()
        stack.callback(journal.close)
        node = app.Node(config, files.config, journal, None)
        await node.start(stack, found)
        desk, stop = _Desk(node, lines, stack.enter_context(_Socket()), keep=keep), Stop()
        settle_memory()
        async with asyncio.TaskGroup() as group:
            group.create_task(node.run(stop))
            await asyncio.sleep(0.5)  # what a node does at its start is none of a call's cost
            try:
                yield desk, store
            finally:
                stop.wanted.set()


async def call_cost(*, calls: int, together: int, sampler: Sampler | None = None) -> tuple[Spent, Spent]:
    """What calls cost, and as many registrations; a quarter of both goes before, for warming up. Raises TimeoutError when the
    node does not do what a step waits for."""
    lines = many_lines(max(4 * together, calls // STARTED), channels=CHANNELS)
    spent, registered = Spent(sampler=sampler), Spent()
    async with _desk(lines) as (desk, store):
        await desk.rounds(REGISTER_STEPS, max(len(lines), calls // 4), together, Spent())
        await desk.rounds(CALL_STEPS, max(together, calls // 4), together, Spent())
        await _published(store, max(together, calls // 4), Spent())
        before = int(await store.client.xlen("sp:cdr"))
        await desk.rounds(CALL_STEPS, calls, together, spent)
        await _published(store, before + calls, spent)
        await desk.rounds(REGISTER_STEPS, calls, together, registered)
    return spent, registered


async def _published(store: Valkey, records: int, spent: Spent) -> None:
    """Wait until so many records are in the store."""
    deadline = time.monotonic() + WAIT_S
    with spent.on("event loop"):
        while await store.client.xlen("sp:cdr") < records:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{await store.client.xlen('sp:cdr')} of {records} records are in the store")
            await asyncio.sleep(0.01)


async def message_cost(*, calls: int) -> dict[str, tuple[int, float, float]]:
    """By step of a call and of a registration: bytes, and microseconds to parse and to check what the node gets there."""
    lines = many_lines(80, channels=CHANNELS)
    async with _desk(lines, keep=calls) as (desk, _):
        await desk.rounds(REGISTER_STEPS, max(len(lines), calls), 20, Spent())
        await desk.rounds(CALL_STEPS, calls, 20, Spent())
    found = {}
    for name, messages in desk.messages.items():
        rounds = [_parsed_us(messages) for _ in range(7)]
        parse, check = (statistics.median(values) for values in zip(*rounds, strict=True))
        found[name] = (len(messages[0]), parse, check)
    return found


def _parsed_us(messages: Sequence[bytes]) -> tuple[float, float]:
    began = time.process_time()
    parsed = [parse_message(data) for data in messages]
    between = time.process_time()
    for message in parsed:
        if isinstance(message, Request):
            message.stamp("127.0.0.1", 5070)
        check_message(message)
    ended = time.process_time()
    return 1e6 * (between - began) / len(messages), 1e6 * (ended - between) / len(messages)


async def socket_cost(*, datagrams: int, size: int = 900) -> tuple[float, float]:
    """Microseconds that a datagram costs on its way in, up to the node's shell, and on its way out."""
    got = 0

    def take(*_: object) -> None:
        nonlocal got
        got += 1

    transports = Transports(Resolver(), take, lambda *_: None, lambda *_: None, lambda *_: None)
    (_, host, port), *_ = transports.bind([("UDP", "127.0.0.1", free_udp_port())])
    await transports.start()
    data, received, sent, all_in_all = bytes(size), 0.0, 0.0, 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(WAIT_S)
        target = Flow("UDP", 0, *peer.getsockname())
        while all_in_all < datagrams:
            for _ in range(BURST):
                peer.sendto(data, (host, port))
            got, began = 0, time.process_time()
            while got < BURST:  # noqa: ASYNC110  another turn is all it takes
                await asyncio.sleep(0)
            received += time.process_time() - began
            began = time.process_time()
            for number in range(BURST):
                transports.send(target, data, number)
            sent += time.process_time() - began
            for _ in range(BURST):
                peer.recv(size)
            all_in_all += BURST
    await transports.close()
    return 1e6 * received / all_in_all, 1e6 * sent / all_in_all


def add_cost(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """The command `cost`."""
    found = commands.add_parser("cost", parents=[common], help="CPU time of a call by datagram and stage, without load")
    found.add_argument("--calls", type=count, default=2000, help="calls, and registrations (default %(default)s)")
    found.add_argument("--together", type=count, default=10, help="calls at the same step (default %(default)s)")
    found.add_argument("--only", choices=("call", "stages", "messages", "sockets"), action="append", help="of the four tables")
    found.set_defaults(run=_run, loop_factory=loop_factory())


async def _run(options: argparse.Namespace) -> list[Report]:
    wanted = options.only or ("call", "stages", "messages", "sockets")
    reports = []
    if "call" in wanted:
        reports += _call_reports(*await call_cost(calls=options.calls, together=options.together))
    if "stages" in wanted:
        sampler = Sampler()
        with sampler:
            spent, _ = await call_cost(calls=options.calls, together=options.together, sampler=sampler)
        reports.append(_stage_report(spent, sampler))
    if "messages" in wanted:
        reports.append(_message_report(await message_cost(calls=min(400, options.calls))))
    if "sockets" in wanted:
        report = Report("sockets, us for a datagram")
        for name, value in zip(("in", "out"), await socket_cost(datagrams=10 * options.calls), strict=True):
            report.add(name, name, value, "us")
        reports.append(report)
    return reports


def _call_reports(call: Spent, register: Spent) -> list[Report]:
    reports = []
    for title, spent in (("a call, us of CPU", call), ("a registration, us of CPU", register)):
        report = Report(title)
        for step, seconds in spent.by_step.items():
            report.add(step, step, 1e6 * seconds / spent.calls, "us")
        report.add("all", "all in all", spent.us, "us")
        report.add("median", "median of the rounds, without what follows them", 1e6 * statistics.median(spent.rounds), "us")
        counted = sum(spent.instructions.values())
        if counted:
            report.add("instructions", "instructions outside the kernel, thousands", counted / spent.calls / 1000)
            for step, count in spent.instructions.items():
                report.add(f"instructions {step}", f"of them {step}", count / spent.calls / 1000)
        report.add("sent", "datagrams sent", spent.sent / spent.calls)
        reports.append(report)
    return reports


def _stage_report(spent: Spent, sampler: Sampler) -> Report:
    report = Report("a call by stage, us of CPU")
    samples = sampler.counts.total()
    for stage, taken in sampler.counts.most_common():
        report.add(stage, stage, spent.us * taken / max(1, samples), "us")
    report.add("all", "all in all", spent.us, "us")
    report.add("samples", "samples", samples)
    return report


def _message_report(found: Mapping[str, tuple[int, float, float]]) -> Report:
    report = Report("messages, us to parse and to check")
    for name, (size, parse, check) in found.items():
        report.add(f"{name} parse", f"{name}, {size} bytes: parse", parse, "us")
        report.add(f"{name} check", f"{name}: check", check, "us")
    return report
