"""What the shell does when the disk refuses the journal's entries (design §8, last paragraph), and what it hands on."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any

import pytest

from cdr.facts import Admit, End, Fact, Record
from cdr.journal import JournalError, UnwritableError
from sipproxy import shell as shell_module
from sipproxy.engine import shed
from sipproxy.engine.actions import EndSilent, Holder, Now, SendTo, Slot, TakeSlot
from sipproxy.engine.actions import Journal as JournalFact
from sipproxy.net.resolver import Resolver
from sipproxy.net.transports import Transports
from sipproxy.shell import Shell
from sipproxy.sip.flow import Flow
from sipproxy.sip.message import Response, parse_message
from sipproxy.sip.timers import Alarm
from sipproxy.store.slots import SlotResult
from tests.engine.desk import Desk
from tests.sim.conftest import make_town

if TYPE_CHECKING:
    from collections.abc import Callable

    from sipproxy.engine.core import Engine


pytestmark = pytest.mark.plain_alone  # compiled, with a real journal: tests/integration/test_disk.py


class _Stats:
    failure = ""
    free_percent = 50.0


class _Disk:
    """Stands in for a journal whose disk can be told to refuse: a full disk cannot be had without a file system of its own."""

    def __init__(self) -> None:
        self.refuses = False
        self.never: set[str] = set()
        self.taken: list[Fact] = []
        self.stats = _Stats()
        self.has_reserve = True
        self.probes = 0
        self.synced = asyncio.Event()

    async def wait_synced(self, _position: int) -> None:
        await self.synced.wait()

    def probe(self) -> None:
        self.probes += 1

    def append(self, fact: Fact) -> int:
        if isinstance(fact, End) and fact.record.id in self.never:
            raise UnwritableError("cannot be written")
        if self.refuses:
            raise JournalError("no space left")
        self.taken.append(fact)
        return len(self.taken)


class _Publisher:
    def __init__(self) -> None:
        self.over: list[str] = []
        self.taken: list[Fact] = []

    def appended(self, fact: Fact) -> None:
        self.taken.append(fact)

    def ended(self, call: str) -> None:
        self.over.append(call)


def record(name: str) -> Record:
    return Record(id=name, node="n1", direction="outgoing")


def build(*, wait_for_disk: bool = False) -> tuple[Shell, _Disk, Engine]:
    engine, disk = make_town().world.engine, _Disk()
    nothing: Any = None
    shell = Shell(
        engine,
        journal=disk,  # type: ignore[arg-type]
        publisher=_Publisher(),  # type: ignore[arg-type]
        slots=nothing,
        bindings=nothing,
        traces=nothing,
        lease_ms=1000,
        wait_for_disk=wait_for_disk,
    )
    return shell, disk, engine


async def watched(shell: Shell, condition: Any) -> None:
    task = asyncio.create_task(shell.run_journal_watch())
    try:
        async with asyncio.timeout(40):
            while not condition():  # noqa: ASYNC110  nothing tells when the watch has looked
                await asyncio.sleep(0.005)
    finally:
        task.cancel()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell_module, "RETRY_S", 0.01)


@pytest.mark.parametrize("answer", [SlotResult(True, 2, 1, waited_s=0.2), SlotResult(None, 0, waited_s=0.25)])
def test_answer_to_a_take_is_told_with_how_long_the_store_was_waited_for(
    answer: SlotResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 5: what a call may wait at all its askings together is used up by it."""
    shell, _, engine = build()
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(engine, "slot_result", lambda _slot, **answer: told.append(answer) or [])

    class _Slots:
        def take(self, _action: TakeSlot, _lease_ms: int, on_result: Callable[[SlotResult], None]) -> None:
            on_result(answer)

    shell._slots = _Slots()  # type: ignore[assignment]
    shell._perform([TakeSlot(Slot("line", "L1", "c"), Holder("n1", 0), 2, None, 0.25)])
    [found] = told
    assert (found["taken"], found["used"], found["of_account"]) == (answer.taken, answer.used, answer.of_account)
    assert found["waited_s"] == answer.waited_s


def test_recovery_is_told_since_when_messages_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    shell, _, engine = build()
    told = []
    monkeypatch.setattr(engine, "recover", lambda _unfinished, _now, *, ended, bound_at: told.append((ended, bound_at)) or [])
    shell.bound_at = Now(1.0, 1000)
    shell.recover([])
    assert told == [((), Now(1.0, 1000))]


async def test_refused_end_is_kept_in_order_and_written_when_there_is_room() -> None:
    shell, disk, engine = build()
    disk.refuses = True
    ends = [End(record(f"c{n}")) for n in range(3)]
    shell._perform([JournalFact(end) for end in ends])
    assert (disk.taken, shell.facts_owed) == ([], 3)
    assert engine.desk.closed == {"journal"}
    disk.refuses = False
    await watched(shell, lambda: shell.facts_owed == 0 and not engine.desk.closed)
    assert disk.taken == ends


async def test_refused_admit_does_not_stand_in_the_way_of_an_end() -> None:
    shell, disk, _ = build()
    disk.refuses = True
    shell._perform([JournalFact(Admit(record("c1")))])
    disk.refuses = False
    shell._perform([JournalFact(End(record("c0")))])
    assert [type(fact) for fact in disk.taken] == [End]
    assert shell.facts_owed == 0


async def test_fact_that_can_never_be_written_is_counted_and_does_not_block_the_rest() -> None:
    shell, disk, _ = build()
    disk.refuses, disk.never = True, {"bad"}
    shell._perform([JournalFact(End(record(name))) for name in ("a", "bad", "b")])
    assert shell.facts_lost == 0
    disk.refuses = False
    await watched(shell, lambda: shell.facts_owed == 0)
    assert [fact.record.id for fact in disk.taken if isinstance(fact, End)] == ["a", "b"]
    assert shell.facts_lost == 1


async def test_publisher_is_told_once_that_a_call_is_over_whose_end_the_disk_does_not_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it waits for the disk, finds no room to wait, or is lost at once or after it has waited."""
    monkeypatch.setattr(shell_module, "MAX_OWED_FACTS", 2)
    shell, disk, _ = build()
    told: Any = shell._publisher
    disk.never = {"lost", "owed and lost"}
    shell._perform([JournalFact(End(record("lost")))])
    disk.refuses = True
    disk.never = set()
    shell._perform([JournalFact(End(record(name))) for name in ("owed", "owed and lost", "beyond the bound")])
    assert told.over == ["lost", "owed", "owed and lost", "beyond the bound"]
    assert (told.taken, shell.facts_owed, shell.facts_lost) == ([], 2, 2)
    disk.refuses, disk.never = False, {"owed and lost"}
    await watched(shell, lambda: shell.facts_owed == 0)
    assert [fact.record.id for fact in told.taken] == ["owed"]
    assert (len(told.over), shell.facts_lost) == (4, 3)


async def test_filling_disk_is_told_before_it_is_full_and_when_there_is_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shell, disk, engine = build()
    told: list[tuple[str, str, float]] = []

    class _Log:
        def __getattr__(self, level: str) -> Any:
            return lambda event, **fields: told.append((level, fields["state"], fields["free_percent"]))

    shell._log = _Log()
    for free, state in (
        (20.0, "ok"),
        (19.9, "filling"),
        (20.5, "filling"),
        (4.9, "full"),
        (5.5, "full"),
        (6.1, "filling"),
        (21.0, "ok"),
    ):
        disk.stats.free_percent = free
        before = disk.probes
        await watched(shell, lambda before=before: disk.probes > before)
        assert (shell.disk, engine.desk.closed) == (state, {"journal"} if state == "full" else set()), free
    assert told == [
        ("warning", "filling", 19.9),
        ("error", "full", 4.9),
        ("warning", "filling", 6.1),
        ("info", "ok", 21.0),
    ]


async def test_call_is_over_for_interim_records_though_the_disk_refuses_its_end() -> None:
    shell, disk, _ = build()
    disk.refuses = True
    shell._perform([JournalFact(End(record("c1")))])
    publisher: Any = shell._publisher
    assert publisher.over == ["c1"]


async def test_records_of_refused_attempts_wait_while_live_calls_need_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written as long as the disk has its reserve, and again once what live calls owe was written."""
    monkeypatch.setattr(shell_module, "RETRY_S", 0.01)
    shell, disk, engine = build()
    disk.stats.free_percent = 4.0
    await watched(shell, lambda: engine.desk.closed == {"journal"})
    assert not engine.refusals.holding
    disk.has_reserve = False
    await watched(shell, lambda: engine.refusals.holding)
    disk.stats.free_percent = 50.0
    await watched(shell, lambda: not engine.refusals.holding)
    disk.refuses = True
    shell._perform([JournalFact(End(record("c1")))])
    assert engine.refusals.holding
    disk.refuses = False
    await watched(shell, lambda: not engine.refusals.holding)
    assert [fact.record.id for fact in disk.taken if isinstance(fact, End)] == ["c1"]


async def test_nearly_full_disk_closes_the_node_for_new_calls_until_there_is_room() -> None:
    shell, disk, engine = build()
    disk.stats.free_percent = 4.0
    await watched(shell, lambda: engine.desk.closed == {"journal"})
    disk.stats.free_percent = 6.5
    await watched(shell, lambda: not engine.desk.closed)


class _Wire:
    """Notes what is sent, and what the disk had by then."""

    drops = 0

    def __init__(self, disk: _Disk) -> None:
        self.disk = disk
        self.sent: list[tuple[bytes, int]] = []
        self.silences: list[tuple[Flow, float]] = []

    def end_silent(self, flow: Flow, silent_s: float) -> None:
        self.silences.append((flow, silent_s))

    def send(self, _target: object, data: bytes, _key: object, connect_s: float = 0.0) -> None:
        self.sent.append((data, len(self.disk.taken)))


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("served_s", "waits_s", "told_s"),
    [(2.0, [0.0, 1.0, 0.2], 1.0), (0.5, [1.0], 0.0), (0.5, [1.0, 0.2, 0.3, 0.0], 0.3)],
)
async def test_longest_wait_of_a_message_is_told_unless_it_began_before_the_node_served(
    monkeypatch: pytest.MonkeyPatch, served_s: float, waits_s: list[float], told_s: float, *, known: bool
) -> None:
    """A worker's sockets are bound before it is there; what waited in them is old and has to be taken."""
    shell, disk, engine = build()
    shell.transports = _Wire(disk)  # type: ignore[assignment]
    monkeypatch.setattr(shell_module.time, "monotonic", lambda: 1000.0)
    shell.start()
    monkeypatch.setattr(shell_module.time, "monotonic", lambda: 1000.0 + served_s)
    told: list[tuple[float, float]] = []
    monkeypatch.setattr(engine, "observe", lambda signals, _: told.append((signals.wait_s, signals.strangers_s)) or [])
    monkeypatch.setattr(engine.shedder, "is_known", lambda _: known)
    taken: list[float] = []
    monkeypatch.setattr(engine, "receive", lambda *arguments: taken.append(arguments[3]) or [])
    for waited_s in waits_s:
        shell.message(b"", Flow("UDP", 0, "192.0.2.1", 5060), waited_s)
    shell.late(0.0)
    shell.late(0.0)
    assert told == [(told_s, 0.0) if known else (0.0, told_s), (0.0, 0.0)], "and nothing once it was told"
    assert taken == [waited_s if waited_s <= served_s else 0.0 for waited_s in waits_s]


async def test_new_call_that_waited_in_a_real_socket_is_refused_and_a_call_for_help_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the kernel's stamp of its arrival. What is not read meanwhile waits because this test keeps the loop busy."""
    monkeypatch.setattr(shed, "STANDING_S", 0.0)
    shell, _, engine = build()
    transports = Transports(Resolver(), shell.message, shell.send_failed, shell.refused, shell.flow_closed)
    shell.transports = transports
    (_, host, port), *_ = transports.bind([("UDP", "127.0.0.1", 0)])
    await transports.start()
    shell.start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as router:
        router.bind((host, 0))
        router.setblocking(False)
        flow = Flow("UDP", 0, *router.getsockname())
        desk = Desk(engine, mono=time.monotonic(), utc_ms=time.time_ns() // 1_000_000)
        assert desk.register(b"<sip:alice@%b:%d>" % (host.encode(), flow.port), flow=flow).status == 200
        via = b"SIP/2.0/UDP %b:%d;rport" % (host.encode(), flow.port)
        time.sleep(0.1)  # noqa: ASYNC251  the messages below have to wait for less time than the node has served
        for target in (b"sip:03023125001@sip.example", b"sip:112@sip.example"):
            router.sendto(desk.request(b"INVITE", target, call_id=target, via=via), (host, port))
        shell._started_at -= 60.0
        time.sleep(0.3)  # noqa: ASYNC251  as a loop that has too much to do
        answers = dict[bytes, Response]()
        async with asyncio.timeout(30.0):
            while not (any(a.status == 503 for a in answers.values()) and engine.calls.by_id):
                await asyncio.sleep(0.005)
                with contextlib.suppress(BlockingIOError):
                    answer = parse_message(router.recv(65535))
                    assert isinstance(answer, Response)
                    answers[answer.call_id] = answer
    refused = answers[b"sip:03023125001@sip.example"]
    assert (refused.status, refused.via.param(b"rport")) == (503, b"%d" % flow.port)
    assert int(refused.first(b"retry-after") or b"0") >= 5
    assert engine.shedder.counts == {("late", "invite"): 1}
    [call] = engine.calls.by_id.values()
    assert call.is_emergency
    await transports.close()


async def test_deadlines_near_each_other_run_together_and_none_runs_early(monkeypatch: pytest.MonkeyPatch) -> None:
    shell, _, engine = build()
    ran: list[tuple[float, list[str]]] = []

    def fire(now: Now) -> list[object]:
        due = engine.desk.queue.due(now.mono)
        ran.append((now.mono, [name for timer in due for name, one in timers.items() if one is timer]))
        return []

    monkeypatch.setattr(engine, "fire", fire)
    grain = shell_module.GRAIN_S
    first = (time.monotonic() // grain + 5) * grain
    deadlines = {
        "third": first + 0.6 * grain,
        "first": first + 0.2 * grain,
        "second": first + 0.4 * grain,
        "far": first + 600,
    }
    timers = {name: Alarm(lambda: None) for name in deadlines}
    for name, at in deadlines.items():
        engine.desk.queue.set(timers[name], at)
        shell._perform([])
    async with asyncio.timeout(20.0):
        while len(engine.desk.queue) > 1:  # noqa: ASYNC110  nothing tells when a deadline has run
            await asyncio.sleep(0.005)
    assert [names for _, names in ran] == [["first", "second", "third"]]
    assert all(at >= deadlines[name] for at, names in ran for name in names)
    assert shell._timer is not None, "and the one that is far away is still to come"
    shell._timer.cancel()


async def test_earlier_deadline_does_not_wait_for_one_that_was_there_before() -> None:
    shell, _, engine = build()
    start, ran = time.monotonic(), asyncio.Event()
    engine.desk.queue.set(Alarm(lambda: None), start + 600)
    shell._perform([])
    engine.desk.queue.set(Alarm(ran.set), start + 0.05)
    shell._perform([])
    async with asyncio.timeout(20.0):
        await ran.wait()
    assert shell._timer is not None, "and the other one is still to come"
    shell._timer.cancel()


async def test_how_long_a_connection_may_be_silent_is_told_to_the_transports() -> None:
    shell, disk, _ = build()
    wire, flow = _Wire(disk), Flow("TCP", 1, "192.0.2.1", 40_000, 7)
    shell.transports = wire  # type: ignore[assignment]
    shell._perform([EndSilent(flow, 100.0), EndSilent(flow, 0.0)])
    assert wire.silences == [(flow, 100.0), (flow, 0.0)]


def send(data: bytes) -> SendTo:
    return SendTo(Flow("UDP", 0, "192.0.2.1", 5060), data)


async def test_what_follows_a_fact_leaves_when_the_journal_has_it() -> None:
    """Design, invariant 3: ADMIT before the INVITE leaves, ANSWER before the 200 goes up, END before state is dropped."""
    shell, disk, _ = build()
    wire = _Wire(disk)
    shell.transports = wire  # type: ignore[assignment]
    shell._perform([send(b"a"), JournalFact(Admit(record("c1"))), send(b"b"), JournalFact(End(record("c1"))), send(b"c")])
    assert wire.sent == [(b"a", 0), (b"b", 1), (b"c", 2)]


async def test_what_follows_a_fact_leaves_when_it_is_on_disk_where_that_is_asked_for() -> None:
    shell, disk, _ = build(wait_for_disk=True)
    wire = _Wire(disk)
    shell.transports = wire  # type: ignore[assignment]
    shell._perform([send(b"a"), JournalFact(Admit(record("c1"))), send(b"b"), JournalFact(End(record("c1"))), send(b"c")])
    shell._perform([send(b"d")])  # of another event, which is behind in line
    await asyncio.sleep(0)
    assert [data for data, _ in wire.sent] == [b"a"]
    disk.synced.set()
    async with asyncio.timeout(40):
        while len(wire.sent) < 4:  # noqa: ASYNC110  nothing tells when the line is empty
            await asyncio.sleep(0.005)
    assert wire.sent == [(b"a", 0), (b"b", 1), (b"c", 2), (b"d", 2)]
