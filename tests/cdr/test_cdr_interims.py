"""Start and interim records of live calls: due in time, replaced by the final record, never behind it."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cdr_samples import SETUP_AT_MS, answer, draft, ended
from hypothesis import given
from hypothesis import strategies as st
from publishing import STREAM, Node, until

from cdr import assemble
from cdr import publisher as publisher_module
from cdr.consumer import latest
from cdr.entries import Poison
from cdr.facts import Admit, Alive, Record
from cdr.interims import Due, Interims
from cdr.publisher import MADE_AT_ONCE, Publisher
from cdr.stream import Stream
from cdr.tailing import tail
from cdr.wire import Link

if TYPE_CHECKING:
    import redis.asyncio
    from valkey_process import Valkey

    from cdr.facts import Fact


def test_interims_start_at_the_answer_then_every_interval_until_the_end() -> None:
    calls = Interims(900)
    calls.answered("a", 10.0)
    assert calls.due(10.0, 9) == calls.due(10.0, 9) == [Due("a", "start")]  # until it is done
    calls.answered("a", 50.0)  # Another ANSWER of the same call, after a re-INVITE.
    calls.done([Due("a", "start")], 10.5)
    assert (calls.due(910.4, 9), calls.next_at) == ([], 910.5)
    assert calls.due(910.5, 9) == [Due("a", "interim")]
    calls.ended("a")
    calls.ended("a")
    calls.done([Due("a", "interim")], 911.0)
    assert (calls.due(1e9, 9), len(calls), calls.next_at) == ([], 0, None)


def test_interims_go_on_in_their_rhythm_after_a_restart() -> None:
    calls = Interims(900)
    calls.resumed("a", 0.0, since_answer_s=1000)
    calls.resumed("b", 0.0, since_answer_s=-5)  # The wall clock was set back.
    assert calls.due(799.9, 9) == []
    assert calls.due(800.0, 9) == [Due("a", "interim")]
    assert calls.due(900.0, 9) == [Due("a", "interim"), Due("b", "interim")]


def test_interims_switched_off_are_never_due() -> None:
    calls = Interims(0)
    calls.answered("a", 0.0)
    calls.resumed("b", 0.0, since_answer_s=1)
    assert (calls.due(1e9, 9), len(calls)) == ([], 0)


@given(st.lists(st.tuples(st.sampled_from("aed"), st.integers(0, 30), st.integers(0, 40)), max_size=120))
def test_interims_of_any_history_are_those_of_live_calls_and_bounded(history: list[tuple[str, int, int]]) -> None:
    calls, now, live, last = Interims(10), 0.0, set(), {}
    for what, number, step in history:
        now += step / 8  # which floats have exactly, as their sums
        call = f"c{number}"
        if what == "a":
            live.add(call)
            calls.answered(call, now)
            last.setdefault(call, now - 10)
        elif what == "e":
            live.discard(call)
            last.pop(call, None)
            calls.ended(call)
        else:
            found = calls.due(now, 5)
            assert {due.call for due in found} <= live
            assert all(now - last[due.call] >= 10 for due in found)
            assert len(found) == min(5, sum(now - at >= 10 for at in last.values()))
            calls.done(found, now)
            last.update({due.call: now for due in found})
    assert len(calls) == len(live)
    assert len(calls._queue) <= 2 * len(live) + 1000 + len(history)


def test_running_record_has_the_durations_so_far_and_no_end() -> None:
    record = assemble.running(
        draft(seq=7), answer(after_ms=5000), Alive("c1", SETUP_AT_MS + 9, 9000), kind="interim", after_ms=65_000
    )
    assert (record.type, record.seq, record.end_at_ms) == ("interim", 0, 0)
    assert (record.duration_ms, record.billable_ms) == (65_000, 60_000)
    assert (record.answer_at_ms, record.last_seen_at_ms) == (SETUP_AT_MS + 5000, SETUP_AT_MS + 9)


async def entries(client: redis.asyncio.Redis) -> list[tuple[str, str, int]]:
    found = [record async for record in tail(client, STREAM, last=100_000)]
    assert not [record for record in found if isinstance(record, Poison)]
    return [(record.id, record.type, record.seq) for record in found if isinstance(record, Record)]


class LiveNode(Node):
    """A node whose calls are answered and go on until they are ended."""

    def begin(self, call: str, *, boot: str = "b", ago_ms: int = 0) -> None:
        mono_ms = time.monotonic_ns() // 1_000_000 - ago_ms
        for fact in (Admit(draft(call), boot, mono_ms), answer(call, after_ms=ago_ms, at_ms=time.time_ns() // 1_000_000)):
            self.append(fact)

    def append(self, fact: Fact) -> None:
        self.journal.append(fact)
        self.publisher.appended(fact)

    def finish(self, call: str) -> None:
        self.publisher.ended(call)
        self.append(ended(self.journal.last_seq + 1, call))


async def test_publisher_live_call_is_shown_until_its_final_record_takes_its_place(
    tmp_path: Path, client: redis.asyncio.Redis
) -> None:
    node = LiveNode(tmp_path / "journal", client, interim_s=0.2, boot="b").start()
    node.journal.append(Admit(draft("ringing")))
    node.begin("a", ago_ms=60_000)
    await until(lambda: node.publisher.stats.interims >= 3)
    node.finish("a")
    await node.drained()
    found = await entries(client)
    assert found[:2] == [("a", "start", 0), ("a", "interim", 0)]
    assert found[-1] == ("a", "final", 1)
    assert {kind for _, kind, _ in found[1:-1]} == {"interim"}
    records = [record async for record in tail(client, STREAM, last=2)]
    assert isinstance(records[0], Record)
    assert 0 < records[0].billable_ms < 30_000
    assert records[0].duration_ms == records[0].billable_ms + 60_000
    assert node.publisher.stats.live == 0
    await node.stop()


async def test_publisher_call_that_ended_before_it_could_be_shown_has_its_final_record_alone(
    tmp_path: Path, client: redis.asyncio.Redis, valkey: Valkey
) -> None:
    node = LiveNode(tmp_path / "journal", client, interim_s=0.2).start()
    await until(lambda: node.publisher.stats.state == "up")
    valkey.kill()
    for call in ("a", "b"):
        node.begin(call)
    await until(lambda: node.failures() >= 1)
    node.finish("a")
    valkey.start()
    await until(lambda: node.publisher.stats.interims >= 1)
    node.finish("b")
    await node.drained()
    found = await entries(client)
    assert [kind for call, kind, _ in found if call == "a"] == ["final"]
    assert [kind for call, kind, _ in found if call == "b"][:: len(found) - 2] == ["start", "final"]
    await node.stop()


@pytest.mark.plain_alone
async def test_publisher_start_records_are_made_without_the_journal_and_as_from_it(
    tmp_path: Path, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publisher_module, "MAX_FRESH", 30)
    node = LiveNode(tmp_path / "journal", client, interim_s=3600).start()
    await until(lambda: node.publisher.stats.state == "up")
    read: list[str] = []
    facts_of = node.journal.facts_of
    monkeypatch.setattr(node.journal, "facts_of", lambda call: (read.append(call), facts_of(call))[1])
    calls = [f"call-{number}" for number in range(40)]
    for call in calls:
        node.begin(call)
    node.append(Alive("call-39", SETUP_AT_MS + 77_000, 77_000))
    await until(lambda: node.publisher.stats.interims == 40)
    assert read == [*calls[:10], "call-39"], "those that there was no room for, and one that was heard of again"
    assert node.publisher.stats.facts_forgotten == 10
    shown = {record.id: record async for record in tail(client, STREAM, last=100) if isinstance(record, Record)}
    for call in calls:
        facts = facts_of(call)
        assert facts is not None
        admit, answered, alive = facts
        assert answered is not None
        assert shown[call] == assemble.running(admit.record, answered, alive, kind="start", after_ms=shown[call].duration_ms)
    assert shown["call-39"].last_seen_at_ms == SETUP_AT_MS + 77_000
    node.begin("rings")
    node.finish("rings")
    await node.drained()
    assert not node.publisher._fresh
    await node.stop()


async def test_publisher_many_due_records_let_the_loop_do_other_things_in_between(
    tmp_path: Path, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(Publisher, "_interim", lambda _, due: made.append(due.call))
    node = LiveNode(tmp_path / "journal", client, interim_s=3600).start()
    await until(lambda: node.publisher.stats.state == "up")
    for number in range(40):
        node.begin(f"call-{number}")
    most = before = 0
    while len(made) < 40:
        await asyncio.sleep(0)
        most, before = max(most, len(made) - before), len(made)
    assert most <= MADE_AT_ONCE
    await node.stop()


async def test_publisher_live_calls_of_before_a_restart_are_shown_on(tmp_path: Path, client: redis.asyncio.Redis) -> None:
    node = LiveNode(tmp_path / "journal", client, interim_s=3600, boot="b").start()
    for call in ("a", "b", "c"):
        node.begin(call)
    await until(lambda: node.publisher.stats.interims == 3)
    await node.stop()
    node.options["interim_s"] = 0.3
    node.start()
    node.publisher.take_up(node.recovered.unfinished)
    node.finish("c")
    await until(lambda: node.publisher.stats.interims >= 4)
    await node.drained()
    found = await entries(client)
    assert {call for call, _, _ in found[3:]} == {"a", "b", "c"}
    assert [kind for call, kind, _ in found if call == "c"] == ["start", "final"]
    assert {kind for call, kind, _ in found[3:] if call != "c"} == {"interim"}
    await node.stop()


async def test_stream_interim_that_comes_late_never_follows_its_final_record(client: redis.asyncio.Redis) -> None:
    """The server was stopped with the command in a socket that was given up; the call ended meanwhile."""
    from cdr.codec import encode
    from cdr.reading import Entry

    link = Link(client, timeout_s=5)
    stream = Stream(link, STREAM, "n1", token="t")
    late = Entry(0, "call-2", 1, "interim", encode(draft("call-2", type="interim")))
    finals = [Entry(seq, f"call-{seq}", 1, "final", encode(ended(seq).record)) for seq in (1, 2)]
    assert (await stream.append(finals[:1], recovered=0, expected=0)).added == 1
    assert (await stream.append([late], recovered=0, expected=1, highest=1)).added == 1
    assert (await stream.append(finals[1:], recovered=0, expected=1)).added == 1
    mark = await stream.append([late], recovered=0, expected=1, highest=1)
    assert (mark.added, mark.seq) == (0, 2)
    assert await entries(client) == [("call-1", "final", 1), ("call-2", "interim", 0), ("call-2", "final", 2)]
    await link.drop()


async def test_publisher_stopped_store_gets_no_interim_behind_a_final_record(
    tmp_path: Path, client: redis.asyncio.Redis, valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP while interim records are due all the time and calls end: commands are executed long after they were given up."""
    monkeypatch.setattr(publisher_module, "LINGER_S", 0.001)
    node = LiveNode(tmp_path / "journal", client, interim_s=0.01).start()
    calls = [f"c{number}" for number in range(40)]
    for call in calls:
        node.begin(call)
    for call in calls:
        if int(call[1:]) % 10 == 3:
            await until(lambda: node.publisher.stats.state == "up")
            valkey.signal(signal.SIGSTOP)
            before = node.failures()
            await until(lambda before=before: node.failures() > before)  # type: ignore[misc]
        node.finish(call)
        if int(call[1:]) % 10 == 6:
            valkey.signal(signal.SIGCONT)
        await asyncio.sleep(0.005)
    await node.drained()
    over: set[str] = set()
    for call, kind, _ in await entries(client):
        assert call not in over, (call, kind)
        if kind == "final":
            over.add(call)
    assert over == set(calls)
    await node.stop()


async def test_publisher_damaged_facts_of_a_live_call_hold_nothing_up(tmp_path: Path, client: redis.asyncio.Redis) -> None:
    node = LiveNode(tmp_path / "journal", client, interim_s=0.05).start()
    refs = node.journal._live
    node.begin("bad")
    answer_ref = refs.of("bad")["answer"]
    with answer_ref.segment.path.open("r+b") as file:
        file.seek(answer_ref.offset + answer_ref.size - 1)
        file.write(b"\xff")
    node.begin("good")
    await until(lambda: node.publisher.stats.errors.get("interim", 0) >= 1 and node.publisher.stats.interims >= 3)
    node.call(3)
    await node.drained()
    found = await entries(client)
    assert {call for call, _, _ in found if call != "bad"} == {"good", "call-1", "call-2", "call-3"}
    assert [kind for call, kind, _ in found if call == "bad"] == ["start"], "made of what was still in memory"
    await node.stop()


class Clocks:
    """Both clocks as the publisher reads them, in a test's hands."""

    def __init__(self) -> None:
        self.mono_ms, self.utc_ms = 5_000_000, SETUP_AT_MS

    def pass_ms(self, ms: int) -> None:
        self.mono_ms += ms
        self.utc_ms += ms

    def monotonic(self) -> float:
        return self.mono_ms / 1000

    def monotonic_ns(self) -> int:
        return self.mono_ms * 1_000_000

    def time_ns(self) -> int:
        return self.utc_ms * 1_000_000


async def test_publisher_call_of_26_hours_is_shown_every_quarter_and_its_final_record_replaces_all_of_it(
    tmp_path: Path, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way the node is started again, and the wall clock is set by an hour, back and forth: no record says otherwise."""
    clocks = Clocks()
    monkeypatch.setattr(publisher_module, "time", clocks)
    monkeypatch.setattr(publisher_module, "LINGER_S", 0.0)
    node = LiveNode(tmp_path / "journal", client, interim_s=900, boot="b").start()
    node.journal.append(Admit(draft("long"), "b", clocks.mono_ms))
    clocks.pass_ms(5000)
    node.journal.append(answer("long", after_ms=5000))
    node.publisher.appended(answer("long", after_ms=5000))
    node.publisher.wake()
    await until(lambda: node.publisher.stats.interims == 1)
    sent = 1
    for quarter in range(1, 105):
        clocks.pass_ms(900_000)
        node.publisher.wake()
        sent += 1
        await until(lambda sent=sent: node.publisher.stats.interims >= sent)
        if quarter == 40:
            clocks.utc_ms += 3_600_000
        if quarter == 50:
            await node.stop()
            clocks.utc_ms -= 7_200_000
            node.start()
            node.publisher.take_up(node.recovered.unfinished)
            sent = 0
    assert node.publisher.stats.interims == 54, "none is early, and none comes twice"
    day = ended(1, "long", answer_at_ms=SETUP_AT_MS + 5000, duration_ms=93_605_000, billable_ms=93_600_000)
    node.publisher.ended("long")
    node.journal.append(day)
    node.publisher.appended(day)
    await node.drained()
    records = [record async for record in tail(client, STREAM, last=1000) if isinstance(record, Record)]
    assert [record.type for record in records] == ["start", *["interim"] * 104, "final"]
    assert [record.billable_ms for record in records[1:-1]] == [900_000 * quarter for quarter in range(1, 105)]
    assert {record.answer_at_ms for record in records} == {SETUP_AT_MS + 5000}
    assert latest(records) == [day.record]
    clocks.pass_ms(1_800_000)
    node.publisher.wake()
    await node.drained()
    assert node.publisher.stats.interims == 54
    await node.stop()
