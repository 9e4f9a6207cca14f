"""Connections that never come to anything, with customers in the middle of them: silent ones, ones that send a byte a second of
a message that is never whole, and TLS handshakes that take for ever. Each that the node closes is opened again at once.

Leaves out: more of them than one machine has ports for, and a flood of whole messages (overload).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.bystanders import Bystanders
from loadtest.network import Network, many_lines
from loadtest.overload import SETTINGS, Measured, measured, report_of, routers_of
from loadtest.planned import add_planned
from loadtest.report import Report, counted
from loadtest.truth import Ledger
from loadtest.ua import NoAnswerError, UserAgent, new_tag
from sipproxy.sip.build import write_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from loadtest.ua import Address

__all__ = ["Slow", "add_slow", "slow", "slow_report"]

KINDS = ("silent", "trickle", "handshake")
# What is sent a byte at a time: the beginning of a message and of a ClientHello, both too long to ever be whole.
MESSAGE = b"OPTIONS sip:node SIP/2.0\r\nSubject: " + b"x" * 8000
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(8000)
AGAIN_S = 0.05
OPTIONS_S = 0.1
MEMORY_BYTES_EACH = 64 * 1024  # by which the node may grow for each connection that is open at once


@dataclass(frozen=True, slots=True)
class Slow:
    """So many connections at a time, of each kind a third, from `sources` addresses, for `seconds`."""

    connections: int = 2000
    sources: int = 40
    seconds: float = 60.0
    calls: int = 10
    asks_per_s: float = 10.0
    help_per_s: float = 2.0


@dataclass(slots=True)
class Crowd:
    """Who holds the connections. `most` is how many were open at once; `opened` and `refused` are counted by kind."""

    plan: Slow
    node: dict[str, Address]  # where each kind connects to
    open: int = 0
    most: int = 0
    opened: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    answered: int = 0

    async def run(self) -> dict[str, Any]:
        """Hold the connections, and ask the node for its options every 100 ms meanwhile."""
        until = time.monotonic() + self.plan.seconds
        async with asyncio.TaskGroup() as group:
            for number in range(self.plan.connections):
                group.create_task(self._hold(KINDS[number % len(KINDS)], number % self.plan.sources, until))
            group.create_task(self._ask(until))
        return {"opened": dict(self.opened), "refused": dict(self.refused), "most": self.most}

    async def _hold(self, kind: str, source: int, until: float) -> None:
        await asyncio.sleep(self.plan.seconds / 10 * (source / self.plan.sources))
        while (left := until - time.monotonic()) > 0:
            with socket.socket() as sock, contextlib.suppress(TimeoutError):
                sock.settimeout(0)
                sock.bind((f"127.1.{source // 200}.{1 + source % 200}", 0))
                async with asyncio.timeout(left):
                    await self._one(kind, sock)
            await asyncio.sleep(AGAIN_S)

    async def _one(self, kind: str, sock: socket.socket) -> None:
        """One connection, until the node closes it."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(sock, self.node[kind])
        except OSError:
            self.refused[kind] += 1
            return
        self.opened[kind] += 1
        self.open += 1
        self.most = max(self.most, self.open)
        reading = asyncio.ensure_future(loop.sock_recv(sock, 4096))
        try:
            for number in range(8000):
                if kind != "silent":
                    data = HELLO if kind == "handshake" else MESSAGE
                    await loop.sock_sendall(sock, data[number : number + 1])
                done, _ = await asyncio.wait([reading], timeout=1.0)
                if done:
                    return
        except OSError:
            return
        finally:
            self.open -= 1
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _ask(self, until: float) -> None:
        """A valid OPTIONS every 100 ms, over UDP, from a customer's network."""
        asker = UserAgent("asker", Ledger())
        await asker.open()
        pending: set[asyncio.Task[None]] = set()

        async def one() -> None:
            tag, (host, port) = new_tag(), self.node["silent"]
            uri = f"sip:{host}:{port}".encode()
            lines = [(b"Via", asker.new_via()), (b"Max-Forwards", b"70"), (b"Call-ID", b"ask-" + tag)]
            lines += [(b"From", b"<sip:asker@127.0.0.1>;tag=" + tag), (b"To", b"<" + uri + b">"), (b"CSeq", b"1 OPTIONS")]
            self.asked += 1
            with contextlib.suppress(NoAnswerError):
                await asker.transact(write_request(b"OPTIONS", uri, lines), self.node["silent"])
                self.answered += 1

        while time.monotonic() < until:
            task = asyncio.create_task(one())
            pending.add(task)
            task.add_done_callback(pending.discard)
            await asyncio.sleep(OPTIONS_S)
        await asyncio.gather(*pending)
        asker.close()


def _certificate(folder: Path) -> Path:
    """A certificate of nobody's authority, with its key."""
    import trustme  # noqa: PLC0415  # of the tests' extra, and for this command alone

    file = folder / "node.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
    return file


async def slow(plan: Slow, tell: Callable[[str], None]) -> tuple[Measured, Crowd, dict[str, float]]:
    """What customers noticed, what became of the connections, and what the node counted of them."""
    with tempfile.TemporaryDirectory(prefix="slow-") as folder:
        certificate = _certificate(Path(folder))
        async with Network(many_lines(plan.calls + 3, channels=20), settings=SETTINGS, certificate=certificate) as network:
            people = Bystanders(await routers_of(network), asks_per_s=plan.asks_per_s, help_per_s=plan.help_per_s)
            await people.start()
            node = network.node
            tls = (node.host, node.tls_port)
            crowd = Crowd(plan, {"silent": node.address, "trickle": node.address, "handshake": tls})
            tell("connections")
            found = await measured(network, people, crowd.run, tell)
            counts = {
                name: value
                for name, value in (await node.metrics()).items()
                if name.startswith("sipproxy_transport_total") and value and ("closed_" in name or '"accepted"' in name)
            }
            return found, crowd, counts


def slow_report(plan: Slow, found: Measured, crowd: Crowd, counts: dict[str, float]) -> Report:
    """Whether customers noticed anything, and whether each connection was ended and counted."""
    report = report_of(f"{plan.connections} connections that send next to nothing, for {plan.seconds:g} s", found)
    report.add("open", "open at once, at most", crowd.most)
    report.add("opened", "opened", counted(crowd.opened))
    report.add("refused_connections", "not taken", counted(crowd.refused) or "none")
    report.add("options", "OPTIONS, one every 100 ms", crowd.asked)
    report.add("options_answered", "answered", crowd.answered)
    for name, value in sorted(counts.items()):
        report.add(name, name, value)
    report.expect(crowd.answered == crowd.asked > 0, f"{crowd.asked - crowd.answered} OPTIONS were not answered")
    report.expect(found.during.called == found.during.calls > 0, "ordinary calls failed")
    report.expect(found.growth_bytes <= crowd.most * MEMORY_BYTES_EACH + 16 * 1024 * 1024, "the node grew with what it holds")
    report.expect(set(crowd.opened) == set(KINDS), "not every kind was opened")
    return report


async def measure(plan: Slow, tell: Callable[[str], None]) -> list[Report]:
    """The one report of it."""
    return [slow_report(plan, *await slow(plan, tell))]


def add_slow(commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser) -> None:
    """The command `slow`."""
    add_planned(
        commands,
        common,
        "slow",
        Slow(),
        measure,
        text="connections that send next to nothing, with live calls and 112",
        options={"connections": "at a time", "sources": "addresses that they come from", "seconds": "for so long"},
    )
