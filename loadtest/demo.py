"""A narrated run of a whole small network on loopback: store, node, two routers, the carrier's trunk, an emergency centre.

Every sentence is said after what it tells was seen on the wire of a simulated party or in the store; where that is something
else than announced, the run says so, shows the last messages and ends with status 1. Every wait has a bound.
"""

from __future__ import annotations

import asyncio
import json as json_module
import sys
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from loadtest.agents import Answering, Psap, Router, RouterAccount, Trunk, next_call, open_all
from loadtest.node import LineSpec, Node, NodeError, PsapSpec, TrunkSpec
from loadtest.reconcile import becomes, compare, live_slots, records_when
from loadtest.truth import Ledger
from loadtest.ua import Call, CallError, NoAnswerError
from loadtest.valkey import Valkey

if TYPE_CHECKING:
    from cdr.facts import Record

__all__ = ["main"]

BOUND_S = 90.0
STEP_S = 8.0
DOMAIN = "sip.example"
LINE, NEIGHBOUR = "B2001", "V1001"
OWN_NUMBER, NEIGHBOUR_NUMBER = "+49603255501", "+492051555101"
FIXED, FIXED_2, FIXED_3 = "03023125001", "06990009002", "08999998003"  # numbers that BNetzA keeps for films
CARRIER_CALLER = "+492214710004"
TALK_S = 1.2  # so that the records have durations to show
COLUMNS = ("seq", "setup", "direction", "line", "calling", "canonical", "status", "talked", "ended")


class Unexpected(Exception):  # noqa: N818  # it is a finding about the run, not a fault of it
    """Something else happened than what is announced."""


@dataclass(slots=True)
class Story:
    """What is told, as it happens, and kept for the JSON form."""

    console: Console
    quiet: bool
    steps: list[dict[str, object]] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)

    def chapter(self, text: str) -> None:
        if not self.quiet:
            self.console.print(f"\n[bold]{text}[/bold]", highlight=False)

    def tell(self, text: str, *, ok: bool, seen: str = "") -> None:
        """Say what was seen; raises Unexpected when it is not what was announced."""
        at_ms = round((time.monotonic() - self.started_at) * 1000)
        self.steps.append({"at_ms": at_ms, "text": text, "ok": ok, "seen": seen})
        if not self.quiet:
            mark = "[green]ok[/green]" if ok else "[red]NO[/red]"
            self.console.print(f"  {at_ms / 1000:7.3f} s  {mark}  {text}", highlight=False, soft_wrap=True)
            if seen:
                self.console.print(f"                 {seen}", style="dim", markup=False, highlight=False, soft_wrap=True)
        if not ok:
            raise Unexpected(f"{text}: {seen}")


@dataclass(slots=True)
class Cast:
    """Who takes part."""

    ledger: Ledger
    store: Valkey
    node: Node
    router: Router  # on a line with two channels
    neighbour: Router  # on a line with three
    trunk: Trunk
    psap: Psap

    @property
    def parties(self) -> tuple[Router, Router, Trunk, Psap]:
        return (self.router, self.neighbour, self.trunk, self.psap)

    async def slots(self, line: str) -> int:
        return len((await live_slots(self.store.client)).get(line, ()))

    async def all_slots(self) -> int:
        return sum(map(len, (await live_slots(self.store.client)).values()))

    async def bindings(self, key: str) -> int:
        return int(await self.store.client.hlen(key))

    async def slots_become(self, line: str, count: int) -> int:
        """How many slots the line holds: `count`, as soon as it is, else what it is after the bound."""
        return await becomes(lambda: self.slots(line), count)


def main(json: bool = False) -> int:  # noqa: FBT001, FBT002  # called by the command line with its flag
    """Run the demonstration. Returns the exit status: 0 when everything that is announced happened."""
    console = Console(stderr=json)
    story = Story(console, quiet=json)
    records: list[Record] = []
    problem = ""
    try:
        asyncio.run(_bounded(story, records))
    except Unexpected as error:
        problem = str(error)
    except (NodeError, NoAnswerError, CallError, FileNotFoundError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    except TimeoutError:
        problem = f"not done within {BOUND_S:g} s"
    if json:
        result = {"ok": not problem, "problem": problem, "steps": story.steps, "records": [_row(record) for record in records]}
        sys.stdout.write(json_module.dumps(result, indent=2) + "\n")
    elif problem:
        console.print("\n[red]This is not what was announced.[/red]", highlight=False)
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print("\nEverything happened as announced.", highlight=False)
    return 1 if problem else 0


async def _bounded(story: Story, records: list[Record]) -> None:
    async with asyncio.timeout(BOUND_S), AsyncExitStack() as stack:
        cast = await _begin(story, stack)
        try:
            await _play(story, cast)
            records += await _records(story, cast)
        except (Unexpected, NoAnswerError, CallError):
            if not story.quiet:
                _show_trace(story.console, cast)
            raise


async def _begin(story: Story, stack: AsyncExitStack) -> Cast:
    ledger = Ledger()
    story.chapter("A node, its store, and a network around it, all on loopback")
    store = await stack.enter_async_context(Valkey())
    trunk, psap = Trunk("carrier", ledger), Psap("psap", ledger)
    await open_all([trunk, psap])
    node = Node(
        lines=[
            LineSpec(LINE, "router-b", "demo-b", OWN_NUMBER),
            LineSpec(NEIGHBOUR, "router-v", "demo-v", NEIGHBOUR_NUMBER, "velbert", "02051", "velbert"),
        ],
        psap=[
            PsapSpec(place, service, (psap.host, psap.port))
            for place in ("badnauheim", "velbert")
            for service in ("110", "112")
        ],
        trunks=[TrunkSpec("carrier", (trunk.host, trunk.port))],
        store_url=store.url,
        domain=DOMAIN,
    )
    await stack.enter_async_context(node)
    router = Router("router-b", ledger, RouterAccount("router-b", "demo-b", DOMAIN), node.address)
    neighbour = Router("router-v", ledger, RouterAccount("router-v", "demo-v", DOMAIN, ("MD5",)), node.address)
    await open_all([router, neighbour])
    cast = Cast(ledger, store, node, router, neighbour, trunk, psap)
    for party in cast.parties:
        stack.callback(party.close)
    where = f"{node.host}:{node.port}, trunk at {trunk.host}:{trunk.port}, emergency centre at {psap.host}:{psap.port}"
    story.tell(f"the node answers OPTIONS on {where}", ok=True, seen=f"process {node.pid}, store process {store.pid}")
    return cast


async def _play(story: Story, cast: Cast) -> None:
    await _register(story, cast)
    story.chapter(f"Line {LINE} (profile badnauheim) has two channels")
    first = await _outgoing(story, cast, FIXED, 1)
    second = await _outgoing(story, cast, FIXED_2, 2)
    await _third_refused(story, cast)
    await _premium_refused(story, cast)
    emergency = await _emergency(story, cast)
    story.chapter("The calls end")
    await asyncio.sleep(TALK_S)
    for call in (emergency, first, second):
        status = await call.hang_up()
        story.tell(f"BYE of the call to {call.truth.dialled} was answered {status}", ok=status == 200)
    used = await cast.slots_become(LINE, 0)
    story.tell("the line's slots are free again", ok=used == 0, seen=f"{used} slots in the store")
    await _incoming(story, cast)


async def _register(story: Story, cast: Cast) -> None:
    story.chapter("Two routers register")
    for router in (cast.router, cast.neighbour):
        response = await router.register(expires_s=600, timeout_s=STEP_S)
        algorithm = " or ".join(router.account.algorithms)
        granted = (response.first(b"contact") or b"").decode("utf-8", "replace")
        ok = response.status == 200 and str(router.port) in granted
        story.tell(f"{router.name} registers (knows {algorithm}): {response.status}", ok=ok, seen=granted)
        key = f"sp:{{acct:{router.account.user}}}:bindings"
        count = await becomes(partial(cast.bindings, key), 1)
        story.tell("its binding is in the store", ok=count == 1, seen=f"{key}: {count}")


async def _outgoing(story: Story, cast: Cast, dialled: str, used: int) -> Call:
    call = await cast.router.call(dialled)
    at_trunk = await next_call(cast.trunk, STEP_S)
    await call.answered(STEP_S)
    ok = at_trunk.call_id == call.call_id
    story.tell(
        f"{cast.router.name} calls {dialled}: the carrier answered",
        ok=ok,
        seen=f"the carrier was asked for {at_trunk.truth.dialled}",
    )
    slots = await cast.slots_become(LINE, used)
    story.tell(f"the line uses {used} of 2 channels", ok=slots == used, seen=f"{slots} slots in the store")
    return call


async def _refused(story: Story, cast: Cast, router: Router, dialled: str, what: str) -> None:
    before = cast.trunk.received.get("INVITE", 0)
    call = await router.call(dialled)
    status = await call.final(STEP_S)
    wire = next((data for way, _, data in reversed(router.wire) if way == "<" and b" 403 " in data[:20]), b"")
    reason = next(
        (line for line in wire.decode("utf-8", "replace").split("\r\n") if line.lower().startswith("reason:")), "no Reason"
    )
    story.tell(f"{what}: {status}", ok=status == 403, seen=reason)
    after = cast.trunk.received.get("INVITE", 0)
    story.tell("nothing of it reached the carrier", ok=after == before, seen=f"{after - before} INVITEs")


async def _third_refused(story: Story, cast: Cast) -> None:
    story.chapter("A third call at the same time")
    await _refused(story, cast, cast.router, FIXED_3, f"{cast.router.name} calls {FIXED_3}")
    slots = await cast.slots(LINE)
    story.tell("the two calls go on", ok=slots == 2, seen=f"{slots} slots in the store")


async def _premium_refused(story: Story, cast: Cast) -> None:
    story.chapter("A premium number, from the line that has channels free")
    await _refused(story, cast, cast.neighbour, "09001234567", f"{cast.neighbour.name} calls 0900 1234567")


async def _emergency(story: Story, cast: Cast) -> Call:
    story.chapter("112, while the line is full")
    call = await cast.router.call("112")
    at_psap = await next_call(cast.psap, STEP_S)
    await call.answered(STEP_S)
    invite = at_psap.server.request if at_psap.server is not None else None
    asserted = (invite.first(b"p-asserted-identity") or b"").decode("utf-8", "replace") if invite is not None else ""
    delay = call.truth.setup_ms or 0.0
    ok = at_psap.call_id == call.call_id and OWN_NUMBER in asserted
    story.tell(f"the emergency centre answered after {delay:.0f} ms and sees the line's number", ok=ok, seen=asserted)
    slots = await cast.slots(LINE)
    story.tell("it holds no slot", ok=slots == 2, seen=f"{slots} slots in the store")
    return call


async def _incoming(story: Story, cast: Cast) -> None:
    story.chapter("A call from the carrier")
    cast.neighbour.answering = Answering(ring_s=0.3)
    call = await cast.trunk.call(NEIGHBOUR_NUMBER, cast.node.address, caller=CARRIER_CALLER)
    at_router = await next_call(cast.neighbour, STEP_S)
    await call.answered(STEP_S)
    same = at_router.call_id == call.call_id
    rang = call.truth.ringing_at is not None
    story.tell(f"{CARRIER_CALLER} calls {NEIGHBOUR_NUMBER}: {cast.neighbour.name} rang and answered", ok=same and rang)
    used = await cast.slots_become(NEIGHBOUR, 1)
    story.tell("an incoming call uses a channel too", ok=used == 1, seen=f"{used} slots in the store")
    await asyncio.sleep(TALK_S)
    status = await at_router.hang_up()
    await call.wait_ended(STEP_S)
    story.tell(f"{cast.neighbour.name} hangs up: {status}", ok=status == 200 and call.truth.released_by == "callee")


async def _records(story: Story, cast: Cast) -> list[Record]:
    placed = cast.ledger.placed()
    story.chapter("Their call detail records")
    records = await records_when(cast.store.client, lambda found: len(found) >= len(placed), timeout_s=STEP_S)
    if not story.quiet:
        story.console.print(_table(records))
    result = compare(placed, records)
    story.tell("each call has exactly one record, and it says what its caller saw", ok=result.ok, seen=str(result))
    held = await becomes(cast.all_slots, 0)
    story.tell("no slot is left over", ok=held == 0, seen=f"{held} slots in the store")
    return records


def _table(records: list[Record]) -> Table:
    table = Table(show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in ("seq", "status", "talked") else "left", overflow="fold")
    for record in records:
        row = _row(record)
        table.add_row(*(str(row[name]) for name in COLUMNS))
    return table


def _row(record: Record) -> dict[str, object]:
    setup = datetime.fromtimestamp(record.setup_at_ms / 1000, UTC)
    ended = record.rule if record.verdict == "deny" else f"{record.end_reason}, {record.released_by}"
    return {
        "seq": record.seq,
        "setup": f"{setup:%H:%M:%S}.{setup.microsecond // 1000:03d}",
        "direction": record.direction,
        "line": record.line,
        "calling": record.calling,
        "dialled": record.dialled.removeprefix("sip:").split("@")[0],
        "canonical": record.canonical,
        "route": record.trunk or record.psap,
        "status": record.status,
        "talked": f"{record.billable_ms / 1000:.1f} s" if record.answer_at_ms is not None else "",
        "ended": ended,
        "call_id": record.call_id,
    }


def _show_trace(console: Console, cast: Cast) -> None:
    for party in cast.parties:
        console.print(party.trace(6), markup=False, highlight=False, style="dim")
    console.print(cast.ledger.tail(40), markup=False, highlight=False, style="dim")
    console.print(cast.node.log(tail=3000), markup=False, highlight=False, style="dim")


if __name__ == "__main__":
    raise SystemExit(main("--json" in sys.argv[1:]))
